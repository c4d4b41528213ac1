"""Which bytes a transfer of int 13h moves, and the ways in which it fails."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

from vdisk.emu_blockdev import Operation, Request
from vdisk.errors import ReadOnlyError, VdiskError
from vdisk.vm._bios.drives import DriveKind

if TYPE_CHECKING:
    from vdisk.emu_blockdev import EmuBlockDevice
    from vdisk.vm._bios.drives import Drive, Volume

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


class Held(Exception):
    """The storage has failed and the machine stands still: the ROM calls again when it goes on."""


def read_into(drive: Drive, offset: int, view: memoryview) -> None:
    """Bytes of the medium into memory."""
    _perform(drive.disk, Request(Operation.READ, offset, len(view), (view,)))


def read(drive: Drive, offset: int, length: int) -> bytes:
    """Bytes of the medium."""
    data = bytearray(length)
    read_into(drive, offset, memoryview(data))
    return bytes(data)


def write(found: Volume, offset: int, data: bytes) -> None:
    """Bytes of memory onto the medium."""
    drive = found.drive
    if found.emulated or drive.kind is DriveKind.CDROM:
        raise DiskError(Status.WRITE_PROTECTED)
    _perform(drive.disk, Request(Operation.WRITE, offset, len(data), (memoryview(data),)))


def _perform(disk: EmuBlockDevice, request: Request) -> None:
    """One request, under the disk's error policy as those of its controller are."""
    if not disk.present:
        raise DiskError(Status.NO_MEDIA)
    if not disk.perform(request):
        raise Held
    if request.error is not None:
        raise request.error


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
        read_into(found.drive, offset + start, buffer[: length - start])


def status_of(error: VdiskError, function: int) -> Status:
    """What a failure of the device looks like to a program."""
    if isinstance(error, ReadOnlyError) or error.errno in {errno.EROFS, errno.EPERM}:
        return Status.WRITE_PROTECTED
    writing = function in {0x03, 0x05, 0x43}
    return Status.WRITE_FAULT if writing else Status.UNCORRECTABLE
