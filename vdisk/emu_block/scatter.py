"""Reading into memory that is scattered over hundreds of pages, by one call of the C library.

``os.preadv`` wants a Python object for each page; making them takes longer than the reading.  Who
knows all addresses at once has :class:`Scattered`, and the kernel gets its array as it is.
"""

from __future__ import annotations

import ctypes
import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Callable

IOVEC_SIZE = 16
"""Of a ``struct iovec``: an address and a length, of 64 bits each."""


class Scattered(Sequence[memoryview]):
    """Parts of memory, whose addresses are known without making a view of each."""

    @property
    @abstractmethod
    def total(self) -> int:
        """Bytes of all."""

    @abstractmethod
    def iovec(self) -> bytes:
        """An array of ``struct iovec`` of 64 bits, little-endian; the memory stays where it is
        as long as this object lives."""


@cache
def _preadv2() -> Callable[[int, bytes, int, int, int], int] | None:
    """The system's, where an iovec is as it is here."""
    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != IOVEC_SIZE // 2:
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "preadv2", None)
    if function is not None:
        number, offset = ctypes.c_int, ctypes.c_int64  # glibc's off_t of 64-bit systems
        function.argtypes = number, ctypes.c_char_p, number, offset, number
        function.restype = ctypes.c_ssize_t
    return function


def _is_scattered(views: Sequence[memoryview]) -> TypeGuard[Scattered]:
    """Of a list, as most are, told without asking an abstract class, which takes a third of a
    microsecond."""
    return type(views) is not list and isinstance(views, Scattered)


def total(views: Sequence[memoryview]) -> int:
    """Bytes of all buffers."""
    return views.total if _is_scattered(views) else sum(map(len, views))


def preadv(descriptor: int, views: Sequence[memoryview], offset: int, flags: int) -> int:
    """What ``os.preadv`` does: bytes read; raises :class:`OSError`."""
    if not _is_scattered(views):
        return os.preadv(descriptor, views, offset, flags)
    function = _preadv2()
    if function is None:
        return os.preadv(descriptor, list(views), offset, flags)
    done = function(descriptor, views.iovec(), len(views), offset, flags)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done
