"""Which bytes a transfer of int 13h moves, and the ways in which it fails."""

from __future__ import annotations

import enum
import errno
import time
from typing import TYPE_CHECKING

from vdisk.emu_blockdev import Operation
from vdisk.errors import ReadOnlyError, VdiskError
from vdisk.vm._bios.drives import DriveKind

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.vm._bios.drives import Volume

VERIFY_CHUNK = 1 << 20  # so that verifying much takes little memory


class Status(enum.IntEnum):
    """AH of int 13h."""

    OK = 0x00
    INVALID = 0x01
    WRITE_PROTECTED = 0x03
    NOT_FOUND = 0x04
    CHANGED = 0x06
    BAD_MEDIA = 0x0C
    UNCORRECTABLE = 0x10
    NO_MEDIA = 0x31
    NOT_READY = 0x80
    NOT_LOCKED = 0xB0
    LOCKED = 0xB1
    NOT_REMOVABLE = 0xB2
    WRITE_FAULT = 0xCC


class DiskError(Exception):
    """This call fails with a status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


def medium(found: Volume) -> BlockDevice:
    """The device behind a volume; raises where the drive is empty."""
    device = found.drive.medium()
    if device is None:
        raise DiskError(Status.NO_MEDIA)
    return device


def read_into(found: Volume, offset: int, view: memoryview) -> None:
    """Bytes of the medium into memory."""
    began = time.perf_counter_ns()
    medium(found).read_into(offset, view)
    taken = time.perf_counter_ns() - began
    found.drive.disk.statistics.add(Operation.READ, len(view), taken)


def write(found: Volume, offset: int, data: bytes) -> None:
    """Bytes of memory onto the medium."""
    disk = found.drive.disk
    device = medium(found)
    if found.emulated or found.drive.kind is DriveKind.CDROM or disk.readonly:
        raise DiskError(Status.WRITE_PROTECTED)
    began = time.perf_counter_ns()
    device.write(offset, data)
    if not disk.write_cache:
        device.flush()
    disk.statistics.add(Operation.WRITE, len(data), time.perf_counter_ns() - began)


def extent(found: Volume, lba: int, count: int) -> tuple[int, int]:
    """Offset and length in bytes of sectors that must exist."""
    if lba + count > found.sectors:
        raise DiskError(Status.NOT_FOUND)
    return found.first + lba * found.sector_size, count * found.sector_size


def verify(found: Volume, lba: int, count: int) -> None:
    """Read sectors to nowhere."""
    offset, length = extent(found, lba, count)
    buffer = memoryview(bytearray(min(length, VERIFY_CHUNK)))
    for start in range(0, length, VERIFY_CHUNK):
        read_into(found, offset + start, buffer[: length - start])


def status_of(error: VdiskError, function: int) -> Status:
    """What a failure of the device looks like to a program."""
    if isinstance(error, ReadOnlyError) or error.errno in {errno.EROFS, errno.EPERM}:
        return Status.WRITE_PROTECTED
    writing = function in {0x03, 0x05, 0x43}
    return Status.WRITE_FAULT if writing else Status.UNCORRECTABLE
