"""Calls that the standard library lacks: ``fallocate`` with modes, and a few ioctls.

Each raises ``OSError`` as the system call does, with ``EOPNOTSUPP`` where the platform has no
such call; callers hold the portable way of doing the same.
"""

from __future__ import annotations

import errno
import os
import sys

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_FS_IOC_GETFLAGS = 0x8008_6601  # linux/fs.h, as are those that follow
_FS_IOC_SETFLAGS = 0x4008_6602
_FS_NOCOW_FL = 0x0080_0000
_FS_IOC_FSGETXATTR = 0x801C_581F
_FS_IOC_FSSETXATTR = 0x401C_5820
_FS_XFLAG_EXTSIZE = 0x800

_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F

UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EXDEV})
"""Answers that mean "not here", so that the caller should try the next way."""

_fallocate = None


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    global _fallocate
    if not sys.platform.startswith("linux"):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    import ctypes  # here: it costs 10 ms, and most runs never punch a hole

    if _fallocate is None:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
        function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        _fallocate = function
    while _fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _range_ioctl(fd: int, number: int, offset: int, length: int) -> None:
    import fcntl
    import struct

    fcntl.ioctl(fd, number, struct.pack("=QQ", offset, length))


def set_extent_size(fd: int, size: int) -> None:
    """Ask the file system (XFS) to allocate ``size`` bytes, or multiples, at a time."""
    import fcntl
    import struct

    fsxattr = bytearray(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(28)))
    (flags,) = struct.unpack_from("=I", fsxattr)
    struct.pack_into("=II", fsxattr, 0, flags | _FS_XFLAG_EXTSIZE, size)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, bytes(fsxattr))


def set_nocow(fd: int) -> None:
    """Have the file system (btrfs) write in place: of an empty file."""
    import fcntl
    import struct

    (flags,) = struct.unpack("=I", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)))
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=I", flags | _FS_NOCOW_FL))


def block_device_discard(fd: int, offset: int, length: int) -> None:
    """ioctl BLKDISCARD; offset and length in sectors' multiples."""
    _range_ioctl(fd, _BLKDISCARD, offset, length)


def block_device_zero(fd: int, offset: int, length: int) -> None:
    """ioctl BLKZEROOUT; offset and length in sectors' multiples."""
    _range_ioctl(fd, _BLKZEROOUT, offset, length)
