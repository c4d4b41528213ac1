"""Booting CD-ROMs (Phoenix and IBM, "El Torito" Bootable CD-ROM Format Specification 1.0).

::

    sector 17   boot record: "EL TORITO SPECIFICATION", at 47h the catalog's sector
    catalog     0   validation entry   01  platform  id[24]  checksum  55 AA
                20  default entry      88  media  load segment  system type  sectors  first sector

Media 0 loads so many 512-byte sectors and runs them; media 1-4 make the image a diskette or a hard
disk, which takes the first number of its kind.  What is in force stands in the EBDA as the
specification packet that int 13h AH=4Bh returns.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.emu_block.geometry import MAX_LOGICAL_CYLINDERS, Geometry
from vdisk.errors import VdiskError
from vdisk.vm._bios.drives import (
    CD_SECTOR,
    FIRST_CDROM,
    FIRST_HARD_DISK,
    SECTOR,
    Drive,
    Volume,
)
from vdisk.vm._bios.layout import EMULATION
from vdisk.vm._bios.transfer import DiskError, Status, read

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

BOOT_RECORD = 17
IDENTIFIER = b"\0CD001\x01EL TORITO SPECIFICATION".ljust(0x27, b"\0")
CATALOG_POINTER = 0x47
VALIDATION, BOOTABLE = 0x01, 0x88
EFI = 0xEF
DEFAULT_SEGMENT = 0x07C0
NO_EMULATION, HARD_DISK = 0, 4
DISKETTES = {1: Geometry(80, 2, 15), 2: Geometry(80, 2, 18), 3: Geometry(80, 2, 36)}

PACKET = struct.Struct("<BBBBIHHHHBBB")
"""The specification packet: size, media, drive, controller, first sector, device, buffer segment,
load segment, sector count, then CH, CL and DH of the geometry."""


class BootEntry(NamedTuple):
    """The default entry of a boot catalog."""

    media: int
    segment: int
    sectors: int
    first: int  # 2048-byte sector

    @property
    def drive(self) -> int:
        """The number that the image gets; a CD-ROM's own for no emulation."""
        if self.media == NO_EMULATION:
            return FIRST_CDROM
        return FIRST_HARD_DISK if self.media == HARD_DISK else 0


def find_catalog(drive: Drive) -> int | None:
    """The sector of the boot catalog; None: not a bootable CD-ROM."""
    if drive.sectors() <= BOOT_RECORD:
        return None
    record = read(drive, BOOT_RECORD * CD_SECTOR, CD_SECTOR)
    if not record.startswith(IDENTIFIER):
        return None
    sector = int.from_bytes(record[CATALOG_POINTER : CATALOG_POINTER + 4], "little")
    return sector if sector < drive.sectors() else None


def default_entry(drive: Drive) -> BootEntry | None:
    """What the CD-ROM boots by default; None: nothing.  Raises :class:`VdiskError`."""
    sector = find_catalog(drive)
    if sector is None:
        return None
    catalog = read(drive, sector * CD_SECTOR, CD_SECTOR)
    checksum = sum(struct.unpack("<16H", catalog[:32])) & 0xFFFF
    if catalog[0] != VALIDATION or catalog[1] == EFI or catalog[30:32] != b"\x55\xaa" or checksum:
        return None
    flag, media, segment, _, _, sectors, first = struct.unpack("<BBHBBHI", catalog[32:44])
    if flag != BOOTABLE or media & 0xF > HARD_DISK:
        return None
    return BootEntry(media & 0xF, segment or DEFAULT_SEGMENT, sectors or 1, first)


class ElTorito:
    """What is emulated at the moment, and int 13h AH=4Ah-4Dh."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware

    def activate(self, number: int, entry: BootEntry) -> int:
        """Put the entry of CD-ROM ``number`` into force; the drive number that DL gets."""
        drive = entry.drive + (number if entry.media == NO_EMULATION else 0)
        fields = (entry.media, drive, number, entry.first, number, 0)
        packet = PACKET.pack(PACKET.size, *fields, entry.segment, entry.sectors, 0, 0, 0)
        self.hw.space.write(self.hw.ebda.base + EMULATION, packet)
        found = self.emulated_volume()
        if found is not None:
            shape = found[1].geometry
            last = shape.cylinders - 1
            chs = bytes([last & 0xFF, last >> 2 & 0xC0 | shape.sectors, shape.heads - 1])
            self.hw.space.write(self.hw.ebda.base + EMULATION + PACKET.size - 3, chs)
        return drive

    def deactivate(self) -> None:
        self.hw.space.write(self.hw.ebda.base + EMULATION, bytes(PACKET.size))

    def packet(self) -> bytes | None:
        """The specification packet in force."""
        packet = self.hw.space.read(self.hw.ebda.base + EMULATION, PACKET.size)
        return packet if packet[0] == PACKET.size else None

    def emulated_volume(self) -> tuple[int, Volume] | None:
        """The number and sectors of the emulated drive, where there is one."""
        packet = self.packet()
        if packet is None or packet[1] & 0xF == NO_EMULATION:
            return None
        _, media, number, controller, first = PACKET.unpack(packet)[:5]
        cdroms = self.hw.drives.cdroms
        if controller >= len(cdroms):
            return None
        drive = cdroms[controller]
        room = max(drive.sectors() - first, 0) * (CD_SECTOR // SECTOR)
        shape = DISKETTES.get(media & 0xF) or _disk_geometry(drive, first)
        sectors = min(room, shape.cylinders * shape.heads * shape.sectors)
        return number, Volume(drive, first * CD_SECTOR, sectors, SECTOR, shape, emulated=True)

    # -- int 13h -----------------------------------------------------------------------------

    def initiate(self, call: Call) -> None:
        """4Ah: emulate what the packet at DS:SI says."""
        packet = PACKET.unpack(call.read(call.at_ds(call.si), PACKET.size))
        size, media, _, controller, first = packet[:5]
        if size < PACKET.size or media & 0xF > HARD_DISK:
            raise DiskError(Status.INVALID)
        if controller >= len(self.hw.drives.cdroms):
            raise DiskError(Status.INVALID)
        segment, count = packet[7] or DEFAULT_SEGMENT, packet[8] or 1
        self.activate(controller, BootEntry(media & 0xF, segment, count, first))

    def status(self, call: Call) -> None:
        """4Bh: the packet in force; with AL = 0 the emulation ends."""
        packet = self.packet()
        if packet is None or call.dl not in {packet[2], 0x7F}:
            raise DiskError(Status.INVALID)
        call.write(call.at_ds(call.si), packet)
        if call.al == 0:
            self.deactivate()
        call.al = 0

    def initiate_and_boot(self, call: Call) -> None:
        """4Ch: as 4Ah, and into the boot sector."""
        self.initiate(call)
        found = self.emulated_volume()
        if found is None or not found[1].sectors:
            raise DiskError(Status.NO_MEDIA)
        self.hw.space.write(0x7C00, read(found[1].drive, found[1].first, SECTOR))
        call.dl = found[0]
        call.write(call.stack_address(), struct.pack("<HH", 0x7C00, 0))

    def read_catalog(self, call: Call) -> None:
        """4Dh: sectors of the boot catalog into memory."""
        at = call.at_ds(call.si)
        size, count, buffer, start = struct.unpack("<BBIH", call.read(at, 8))
        packet = self.packet()
        if packet is None or size < 8:
            raise DiskError(Status.INVALID)
        drive = self.hw.drives.cdroms[packet[3]] if packet[3] < len(self.hw.drives.cdroms) else None
        if drive is None or not drive.sectors():
            raise DiskError(Status.NO_MEDIA)
        catalog = find_catalog(drive)
        if catalog is None or catalog + start + count > drive.sectors():
            raise DiskError(Status.NOT_FOUND)
        call.write(buffer, read(drive, (catalog + start) * CD_SECTOR, count * CD_SECTOR))


def _disk_geometry(drive: Drive, first: int) -> Geometry:
    """The emulated hard disk's shape: the end of the only partition in its table."""
    device = drive.medium()
    try:
        sector = device.read(first * CD_SECTOR, SECTOR) if device is not None else bytes(SECTOR)
    except VdiskError:
        sector = bytes(SECTOR)
    entry = sector[446:462]
    cylinders = (entry[7] | (entry[6] & 0xC0) << 2) + 1
    return Geometry(min(cylinders, MAX_LOGICAL_CYLINDERS), entry[5] + 1, max(entry[6] & 0x3F, 1))
