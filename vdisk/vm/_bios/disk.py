"""int 13h: drives by cylinder, head and sector, and what all of its functions share.

Facts: Ralf Brown's Interrupt List, the IBM AT technical reference.  Functions 41h and up are in
``edd.py``, CD-ROM booting (4Ah-4Dh) in ``eltorito.py``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vdisk.emu_block.diskettes import diskette_geometry
from vdisk.errors import VdiskError
from vdisk.vm._bios import edd, eltorito
from vdisk.vm._bios.drives import (
    FIRST_CDROM,
    FIRST_HARD_DISK,
    SECTOR,
    DriveKind,
    Volume,
    volume,
)
from vdisk.vm._bios.layout import (
    DISK_COUNT,
    DISK_STATUS,
    DISK_TABLES,
    DISKETTE_STATUS,
    FIRST_DISK,
)
from vdisk.vm._bios.transfer import DiskError, Status, extent, read_into, status_of, verify, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

MOST_SECTORS = 128  # of one CHS transfer: 64 KiB, one segment
LAST_STATUS = 0x01
KEEPS_AH = frozenset({0x15, 0x41})
"""Functions whose AH is an answer where they succeed."""


class DiskService:
    """int 13h (and 40h)."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.eltorito = eltorito.ElTorito(hardware)
        self._functions: dict[int, Callable[[Call], None]] = {
            0x00: self._reset,
            0x01: self._last_status,
            0x02: self._read,
            0x03: self._write,
            0x04: self._verify,
            0x05: self._format,
            0x08: self._parameters,
            0x09: self._ready,
            0x0C: self._seek,
            0x0D: self._reset,
            0x10: self._ready,
            0x11: self._ready,
            0x14: self._hard_disk_only,
            0x15: self._type,
            0x16: self._change_line,
            0x17: self._ready,
            0x18: self._media_for_format,
            **{number: partial(handler, self) for number, handler in edd.FUNCTIONS.items()},
            0x4A: self.eltorito.initiate,
            0x4B: self.eltorito.status,
            0x4C: self.eltorito.initiate_and_boot,
            0x4D: self.eltorito.read_catalog,
        }

    def service(self, call: Call) -> None:
        """Carry out AH on drive DL; AH and carry tell how it went."""
        number, hard_disk = call.ah, call.dl >= FIRST_HARD_DISK
        function = self._functions.get(number)
        try:
            if function is None:
                raise DiskError(Status.INVALID)
            function(call)
            status = Status.OK
        except DiskError as error:
            status = error.status
        except VdiskError as error:
            status = status_of(error, number)
        if number == LAST_STATUS:
            return
        self.hw.bda.set_byte(DISK_STATUS if hard_disk else DISKETTE_STATUS, status)
        if status is not Status.OK or number not in KEEPS_AH:
            call.ah = status
        call.carry = status is not Status.OK

    # -- which sectors are meant -------------------------------------------------------------

    def find(self, number: int) -> Volume | None:
        """What drive ``number`` is; None: there is none."""
        emulated = self.eltorito.emulated_volume()
        if emulated is not None:
            at, found = emulated
            if number == at:
                return found
            if at <= number < at + 0x60 and number < FIRST_CDROM:
                number -= 1  # the emulated drive has taken the first number of its kind
        drive = self.hw.drives.numbered(number, self.hw.ebda.byte(FIRST_DISK))
        return None if drive is None else volume(drive)

    def required(self, number: int) -> Volume:
        """As :meth:`find`; raises for a drive that is not there or has no medium."""
        found = self.find(number)
        if found is None:
            raise DiskError(Status.INVALID if number >= FIRST_HARD_DISK else Status.NOT_READY)
        if not found.sectors:
            raise DiskError(Status.NO_MEDIA)
        return found

    def count(self, kind: DriveKind) -> int:
        """How many drives of a kind there are, the emulated one included."""
        drives = self.hw.drives
        number = len(drives.floppies if kind is DriveKind.FLOPPY else drives.hard_disks)
        emulated = self.eltorito.emulated_volume()
        first = 0 if kind is DriveKind.FLOPPY else FIRST_HARD_DISK
        return number + (emulated is not None and emulated[0] == first)

    # -- transfers ---------------------------------------------------------------------------

    def read_sectors(self, call: Call, found: Volume, lba: int, count: int, linear: int) -> None:
        """Sectors into memory at a linear address."""
        offset, length = extent(found, lba, count)
        call.fill(linear, length, lambda done, view: read_into(found.drive, offset + done, view))

    def write_sectors(self, call: Call, found: Volume, lba: int, count: int, linear: int) -> None:
        """Sectors from memory."""
        offset, length = extent(found, lba, count)
        write(found, offset, call.read(linear, length))

    def _address(self, call: Call) -> tuple[Volume, int, int]:
        found = self.required(call.dl)
        cylinder, sector = call.ch | (call.cl & 0xC0) << 2, call.cl & 0x3F
        lba = found.geometry.lba(cylinder, call.dh, sector)
        if not 1 <= call.al <= MOST_SECTORS or found.sector_size != SECTOR:
            raise DiskError(Status.INVALID)
        if lba is None:
            raise DiskError(Status.NOT_FOUND)
        return found, lba, call.al

    def _read(self, call: Call) -> None:
        found, lba, count = self._address(call)
        self.read_sectors(call, found, lba, count, call.at_es(call.bx))

    def _write(self, call: Call) -> None:
        found, lba, count = self._address(call)
        self.write_sectors(call, found, lba, count, call.at_es(call.bx))

    def _verify(self, call: Call) -> None:
        found, lba, count = self._address(call)
        verify(found, lba, count)

    def _format(self, call: Call) -> None:
        """A track of a diskette is filled with F6h; a hard disk keeps what it has."""
        found = self.required(call.dl)
        if found.drive.kind is not DriveKind.FLOPPY:
            return
        lba = found.geometry.lba(call.ch, call.dh, 1)
        if lba is None:
            raise DiskError(Status.NOT_FOUND)
        offset, length = extent(found, lba, found.geometry.sectors)
        write(found, offset, b"\xf6" * length)

    # -- everything else ---------------------------------------------------------------------

    def _reset(self, call: Call) -> None:
        if call.dl >= FIRST_HARD_DISK and self.find(call.dl) is None:
            raise DiskError(Status.INVALID)

    def _last_status(self, call: Call) -> None:
        hard_disk = call.dl >= FIRST_HARD_DISK
        status = self.hw.bda.byte(DISK_STATUS if hard_disk else DISKETTE_STATUS)
        call.ah = status
        call.carry = status != Status.OK

    def _parameters(self, call: Call) -> None:
        found = self.find(call.dl)
        hard_disk = call.dl >= FIRST_HARD_DISK
        count = self.count(DriveKind.HARD_DISK if hard_disk else DriveKind.FLOPPY)
        if found is None or call.dl >= FIRST_CDROM:
            call.dx = count
            call.cx = 0
            raise DiskError(Status.INVALID)
        shape = found.geometry
        last = min(shape.cylinders, 1024) - 1
        call.ch, call.cl = last & 0xFF, (last >> 2 & 0xC0) | shape.sectors
        call.dh, call.dl = shape.heads - 1, count
        call.al = 0
        if not hard_disk:
            call.bx = diskette_geometry(found.sectors)[1]
            call.es = self.hw.rom.far("diskette_parameters") >> 16
            call.di = self.hw.rom.labels["diskette_parameters"]

    def _ready(self, call: Call) -> None:
        self.required(call.dl)

    def _hard_disk_only(self, call: Call) -> None:
        self.required(call.dl)
        call.al = 0

    def _seek(self, call: Call) -> None:
        found = self.required(call.dl)
        cylinder = call.ch | (call.cl & 0xC0) << 2
        if cylinder >= found.geometry.cylinders or call.dh >= found.geometry.heads:
            raise DiskError(Status.NOT_FOUND)

    def _type(self, call: Call) -> None:
        """AH: 0 no drive, 1 diskette, 2 diskette with change line, 3 hard disk (CX:DX sectors)."""
        found = self.find(call.dl)
        if found is None or call.dl >= FIRST_CDROM:
            call.ah = 0
            return
        if call.dl < FIRST_HARD_DISK:
            call.ah = 2
            return
        shape = found.geometry
        sectors = shape.cylinders * shape.heads * shape.sectors
        call.cx, call.dx = sectors >> 16, sectors & 0xFFFF
        call.ah = 3

    def _change_line(self, call: Call) -> None:
        """Whether the diskette was changed is known to nobody here: it was not."""
        if call.dl >= FIRST_HARD_DISK:
            raise DiskError(Status.INVALID)
        self.required(call.dl)

    def _media_for_format(self, call: Call) -> None:
        found = self.required(call.dl)
        if found.drive.kind is not DriveKind.FLOPPY:
            raise DiskError(Status.INVALID)
        if (call.cl & 0x3F, call.ch) != (found.geometry.sectors, found.geometry.cylinders - 1):
            raise DiskError(Status.BAD_MEDIA)
        call.es = self.hw.rom.far("diskette_parameters") >> 16
        call.di = self.hw.rom.labels["diskette_parameters"]

    # -- POST --------------------------------------------------------------------------------

    def initialize(self) -> None:
        """The count of hard disks, and the tables at vectors 41h and 46h."""
        bda, space = self.hw.bda, self.hw.space
        disks = self.hw.drives.hard_disks
        bda.set_byte(DISK_COUNT, len(disks))
        bda.set_byte(0x3E, 0)
        for number, drive in enumerate(disks[:2]):
            at = self.hw.ebda.base + DISK_TABLES + 16 * number
            space.write(at, fixed_disk_table(volume(drive)))
            vector = 0x41 if number == 0 else 0x46
            space.write(vector * 4, (at & 0xF).to_bytes(2, "little"))
            space.write(vector * 4 + 2, (at >> 4).to_bytes(2, "little"))
        pointer = self.hw.rom.far("diskette_parameters")
        space.write(0x1E * 4, pointer.to_bytes(4, "little"))


def fixed_disk_table(found: Volume) -> bytes:
    """The fixed disk parameter table (FDPT) of 16 bytes, in its plain form."""
    shape = found.geometry
    table = bytearray(16)
    table[0:2] = shape.cylinders.to_bytes(2, "little")
    table[2] = shape.heads
    table[5:7] = b"\xff\xff"  # no write precompensation
    table[8] = 0xC0 | (shape.heads > 8) << 3
    table[12:14] = shape.cylinders.to_bytes(2, "little")
    table[14] = shape.sectors
    return bytes(table)
