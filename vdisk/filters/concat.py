"""Several devices one after another, read as one disk.

parts    |  a  |   b    |c|
concat   |0                 size|
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from vdisk.block import BlockDevice, close_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vdisk.block import Extent


class Concatenation(BlockDevice):
    """The ``parts`` in order, read-only.  Closing it closes them."""

    readonly = True

    def __init__(self, parts: Sequence[BlockDevice]) -> None:
        self.parts = parts
        self._ends = list(accumulate(part.size for part in parts))
        self.name = " + ".join(part.name for part in parts)

    @property
    def size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        end = start + length
        index = bisect_right(self._ends, start)
        while start < end:
            base = self._ends[index] - self.parts[index].size
            stop = min(end, self._ends[index])
            for extent in self.parts[index].map(start - base, stop - start):
                yield extent.shifted(base)
            start = stop
            index += 1

    def _close(self) -> None:
        close_all(*self.parts)
