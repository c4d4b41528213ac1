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


def block_device_discard(fd: int, offset: int, length: int) -> None:
    """ioctl BLKDISCARD; offset and length in sectors' multiples."""
    _range_ioctl(fd, _BLKDISCARD, offset, length)


def block_device_zero(fd: int, offset: int, length: int) -> None:
    """ioctl BLKZEROOUT; offset and length in sectors' multiples."""
    _range_ioctl(fd, _BLKZEROOUT, offset, length)
