"""Writes of nothing but zeroes, turned into zeroing: a sparse image stays sparse.

Looked at in pieces of 64 KiB, the usual cluster, so that a large write with zeroes in it is split
where that saves room::

    write    |ddddddd|0000000|0000000|dddd|
    becomes  | write | write_zeroes  |write|
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vdisk.block import ZEROES
from vdisk.filters.passing import Passing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vdisk.block import BlockDevice

GRANULARITY: Final = 64 << 10


class DetectZeroes(Passing):
    """``inner`` with zeroes detected; ``unmap``: their room may be given back."""

    def __init__(self, inner: BlockDevice, *, unmap: bool) -> None:
        super().__init__(inner)
        self._unmap = unmap

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self._write(offset, view)
            offset += len(view)

    def _write(self, offset: int, view: memoryview) -> None:
        for start, length, zero in zero_runs(offset, view):
            if zero:
                self.inner.write_zeroes(offset + start, length, unmap=self._unmap)
            else:
                self.inner.write(offset + start, view[start : start + length])


def zero_runs(offset: int, view: memoryview) -> Iterator[tuple[int, int, bool]]:
    """(start, length, zero) of the runs in ``view``, cut where the device's pieces begin."""
    start = position = 0
    run_zero = False
    while position < len(view):
        stop = min(position + GRANULARITY - (offset + position) % GRANULARITY, len(view))
        zero = is_zero(view[position:stop])
        if zero != run_zero and position:
            yield start, position - start, run_zero
            start = position
        run_zero, position = zero, stop
    if position:
        yield start, position - start, run_zero


def is_zero(view: memoryview) -> bool:
    """Whether every byte is zero, of a ``view`` no longer than :data:`ZEROES`."""
    return ZEROES.startswith(view)
