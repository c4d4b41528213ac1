"""The drives that int 13h numbers: floppies from 00h, hard disks from 80h, CD-ROMs from E0h.

Sectors travel straight between the disk and guest memory, past the emulated controller.
CHS addresses follow the logical geometry of :mod:`vdisk.emu_block.geometry`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vdisk.emu_block.diskettes import diskette_geometry

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.emu_block.geometry import Geometry
    from vdisk.emu_blockdev import EmuBlockDevice

SECTOR = 512
CD_SECTOR = 2048
FIRST_HARD_DISK = 0x80
FIRST_CDROM = 0xE0
MOST_OF_A_KIND = 16


class DriveKind(enum.Enum):
    """What int 13h takes a drive for."""

    FLOPPY = "floppy"
    HARD_DISK = "hard disk"
    CDROM = "CD-ROM"


class DevicePath(NamedTuple):
    """Where a drive is attached, in the words of EDD 3.0 (int 13h AH=48h).

    ``bus``: "PCI" or "ISA".  ``interface``: "ATA", "ATAPI", "SCSI" …  ``location``: PCI bus,
    device and function, and the channel.  ``unit``: master 0 or slave 1, or the SCSI target.
    """

    bus: str
    interface: str
    location: tuple[int, int, int, int]
    unit: int = 0


class AtaPorts(NamedTuple):
    """The registers of an ATA drive's channel, for the device parameter table extension."""

    command: int
    control: int
    irq: int
    slave: bool


@dataclass(eq=False)
class Drive:
    """A drive of the machine: ``disk``, and what the user would call it."""

    kind: DriveKind
    disk: EmuBlockDevice
    name: str = ""
    path: DevicePath | None = None
    ata: AtaPorts | None = None

    @property
    def sector_size(self) -> int:
        return CD_SECTOR if self.kind is DriveKind.CDROM else self.disk.sector_size

    @property
    def removable(self) -> bool:
        return self.kind is not DriveKind.HARD_DISK

    def medium(self) -> BlockDevice | None:
        """The device that is in the drive; None while it is empty or its tray is open."""
        return self.disk.device if self.disk.present else None

    def sectors(self) -> int:
        """How many sectors the medium has; 0 without one."""
        return self.disk.size // self.sector_size if self.disk.present else 0


class Volume(NamedTuple):
    """Sectors that a drive number stands for: a whole drive, or an image on a CD-ROM."""

    drive: Drive
    first: int  # byte offset in the medium
    sectors: int
    sector_size: int
    geometry: Geometry
    emulated: bool = False


def volume(drive: Drive) -> Volume:
    """The whole of a drive."""
    sectors = drive.sectors()
    if drive.kind is DriveKind.FLOPPY:
        shape = diskette_geometry(sectors)[0]
    else:
        shape = drive.disk.geometry.logical
    return Volume(drive, 0, sectors, drive.sector_size, shape)


@dataclass
class Drives:
    """All drives by kind, in the order in which they are numbered."""

    floppies: list[Drive] = field(default_factory=list)
    hard_disks: list[Drive] = field(default_factory=list)
    cdroms: list[Drive] = field(default_factory=list)

    @classmethod
    def of(cls, drives: list[Drive]) -> Drives:
        """Number the drives of each kind in their order."""
        by_kind = [
            [drive for drive in drives if drive.kind is kind][:MOST_OF_A_KIND]
            for kind in (DriveKind.FLOPPY, DriveKind.HARD_DISK, DriveKind.CDROM)
        ]
        return cls(*by_kind)

    def numbered(self, number: int, first_disk: int = 0) -> Drive | None:
        """The drive that a BIOS drive number means, without emulation.

        ``first_disk``: the hard disk that was booted is 80h, the others follow in their order.
        """
        if number >= FIRST_CDROM:
            return _at(self.cdroms, number - FIRST_CDROM)
        if number < FIRST_HARD_DISK:
            return _at(self.floppies, number)
        disks = self.hard_disks
        if first_disk < len(disks):
            disks = [disks[first_disk], *disks[:first_disk], *disks[first_disk + 1 :]]
        return _at(disks, number - FIRST_HARD_DISK)


def _at(drives: list[Drive], index: int) -> Drive | None:
    return drives[index] if index < len(drives) else None
