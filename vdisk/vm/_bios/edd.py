"""int 13h AH=41h-49h: drives by LBA (Phoenix, Enhanced Disk Drive Specification 3.0).

The disk address packet at DS:SI::

    0   size of the packet: 10h, or 18h with the 64-bit address
    2   word   sectors to move; how many were moved, afterwards
    4   dword  far pointer to the buffer; FFFF:FFFF: the flat address at 10h instead
    8   qword  first sector
    10  qword  flat address
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.errors import VdiskError
from vdisk.vm._bios.drives import DriveKind, Volume
from vdisk.vm._bios.transfer import DiskError, Status, extent, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.disk import DiskService
    from vdisk.vm._bios.drives import Drive

    Function = Callable[["DiskService", Call], None]

VERSION = 0x30
SUPPORTED = 0x0007  # fixed disk access, locking and ejecting, enhanced drive parameters
PACKET, LONG_PACKET = 0x10, 0x18
FLAT = 0xFFFFFFFF
FLAT_LIMIT = 1 << 32

RESULT = struct.Struct("<HHIIIQH")
"""Size, flags, cylinders, heads, sectors, all sectors, bytes per sector."""
DMA_TRANSPARENT, GEOMETRY_VALID, REMOVABLE, CHANGE_LINE, LOCKABLE, NO_MEDIA = 1, 2, 4, 16, 32, 64
RESULT_1, RESULT_2, RESULT_3 = 0x1A, 0x1E, 0x42
PATH_KEY, PATH_LENGTH = 0xBEDD, 0x24
NO_TABLE = 0xFFFFFFFF
EXTENSION = 0x60
"""Offset in the EBDA of the device parameter table extension, made anew for each question."""


def present(disk: DiskService, call: Call) -> None:
    """41h: installation check."""
    if call.bx != 0x55AA or disk.find(call.dl) is None:
        raise DiskError(Status.INVALID)
    call.bx, call.ah, call.cx = 0xAA55, VERSION, SUPPORTED


def _packet(disk: DiskService, call: Call) -> tuple[Volume, int, int, int]:
    """The volume, first sector, count, and linear address of the buffer."""
    found = disk.required(call.dl)
    at = call.at_ds(call.si)
    size = call.read(at, 1)[0]
    if size < PACKET:
        raise DiskError(Status.INVALID)
    count, offset, segment, lba = struct.unpack("<HHHQ", call.read(at + 2, 14))
    address = (segment << 4) + offset
    if segment << 16 | offset == FLAT and size >= LONG_PACKET:
        address = int.from_bytes(call.read(at + 16, 8), "little")
        if address + count * found.sector_size > FLAT_LIMIT:
            raise DiskError(Status.INVALID)
    return found, lba, count, address


def _transfer(disk: DiskService, call: Call, move: Callable[[Volume, int, int, int], None]) -> None:
    """Move what the packet says; one that fails has moved nothing."""
    found, lba, count, address = _packet(disk, call)
    try:
        extent(found, lba, count)
        move(found, lba, count, address)
    except (DiskError, VdiskError):
        call.write(call.at_ds(call.si) + 2, bytes(2))
        raise


def read(disk: DiskService, call: Call) -> None:
    """42h."""
    _transfer(disk, call, lambda *what: disk.read_sectors(call, *what))


def write(disk: DiskService, call: Call) -> None:
    """43h; AL says whether to verify, which the device does in its own way."""
    if call.al > 2:
        raise DiskError(Status.INVALID)
    _transfer(disk, call, lambda *what: disk.write_sectors(call, *what))


def verify_sectors(disk: DiskService, call: Call) -> None:
    """44h."""
    _transfer(disk, call, lambda found, lba, count, _: verify(found, lba, count))


def seek(disk: DiskService, call: Call) -> None:
    """47h."""
    found, lba, _, _ = _packet(disk, call)
    extent(found, lba, 1)


def _removable(disk: DiskService, call: Call) -> Drive:
    found = disk.find(call.dl)
    if found is None:
        raise DiskError(Status.INVALID)
    if not found.drive.removable or found.emulated:
        raise DiskError(Status.NOT_REMOVABLE)
    return found.drive


def lock(disk: DiskService, call: Call) -> None:
    """45h: AL 0 locks, 1 unlocks, 2 tells."""
    drive = _removable(disk, call).disk
    if call.al > 2:
        raise DiskError(Status.INVALID)
    if call.al == 1 and not drive.tray_locked:
        raise DiskError(Status.NOT_LOCKED)
    if call.al < 2:
        drive.tray_locked = call.al == 0
    call.al = int(drive.tray_locked)


def eject(disk: DiskService, call: Call) -> None:
    """46h."""
    drive = _removable(disk, call).disk
    if drive.tray_locked:
        raise DiskError(Status.LOCKED)
    if not drive.present:
        raise DiskError(Status.NO_MEDIA)
    drive.move_tray(out=True)


def changed(disk: DiskService, call: Call) -> None:
    """49h: whether the medium was changed is known to nobody here: it was not."""
    if disk.find(call.dl) is None:
        raise DiskError(Status.INVALID)


def parameters(disk: DiskService, call: Call) -> None:
    """48h: as much of the result as the caller has room for."""
    found = disk.find(call.dl)
    if found is None:
        raise DiskError(Status.INVALID)
    at = call.at_ds(call.si)
    room = int.from_bytes(call.read(at, 2), "little")
    size = max((each for each in (RESULT_1, RESULT_2, RESULT_3) if each <= room), default=0)
    if not size:
        raise DiskError(Status.INVALID)
    result = _result(found, size)
    if size >= RESULT_2:
        result += _extension(disk, found)
    if size >= RESULT_3:
        result += _path(found)
    call.write(at, result)


def _result(found: Volume, size: int) -> bytes:
    drive = found.drive
    flags = DMA_TRANSPARENT
    if drive.kind is not DriveKind.CDROM:
        flags |= GEOMETRY_VALID
    elif not found.emulated:
        flags |= REMOVABLE | LOCKABLE | (0 if found.sectors else NO_MEDIA)
    shape, sectors = found.geometry, found.sectors
    cylinders = -(-sectors // (shape.heads * shape.sectors))
    if cylinders > 16383:  # what an ATA drive tells of itself beyond 8.4 GB
        flags &= ~GEOMETRY_VALID
        cylinders = 16383
    return RESULT.pack(
        size, flags, cylinders, shape.heads, shape.sectors, sectors, found.sector_size
    )


def _extension(disk: DiskService, found: Volume) -> bytes:
    """The far pointer to the DPTE, for a drive on an ATA channel."""
    ports = found.drive.ata
    if ports is None or found.emulated:
        return NO_TABLE.to_bytes(4, "little")
    cdrom = found.drive.kind is DriveKind.CDROM
    flags = 0x10 | (0x60 if cdrom else 0)  # LBA; removable, ATAPI
    table = bytearray(
        struct.pack(
            "<HHBBBBBBHHB",
            *(ports.command, ports.control, 0xE0 | ports.slave << 4, 0xCB, ports.irq),
            *(1, 0, 0, flags, 0, 0x11),
        )
    )
    table.append(-sum(table) & 0xFF)
    at = disk.hw.ebda.base + EXTENSION
    disk.hw.space.write(at, table)
    return struct.pack("<HH", at & 0xF, at >> 4)


def _path(found: Volume) -> bytes:
    """Device path information: the bus, the interface, where on them; a checksum."""
    path = found.drive.path
    if path is None or found.emulated:
        return bytes(RESULT_3 - RESULT_2)
    interface_path = bytes(path.location).ljust(8, b"\0")
    device_path = path.unit.to_bytes(8, "little")
    data = struct.pack("<HBBH", PATH_KEY, PATH_LENGTH, 0, 0)
    data += path.bus.encode().ljust(4) + path.interface.encode().ljust(8)
    data += interface_path + device_path + b"\0"
    return data + bytes([-sum(data) & 0xFF])


FUNCTIONS: dict[int, Function] = {
    0x41: present,
    0x42: read,
    0x43: write,
    0x44: verify_sectors,
    0x45: lock,
    0x46: eject,
    0x47: seek,
    0x48: parameters,
    0x49: changed,
}
