"""Many ranges of guest memory at once, as one long number.

A guest's buffer of 1 MiB is some 256 pages, wherever they were free.  Handled one by one they cost
more than it takes the kernel to fill them; so they stay what they are in the descriptor table that
they come from, and are computed with all at once::

    bits   0        64       128      192      256
           | gpa 0  | bytes  | gpa 1  | bytes  | …       a *lane* of 128 bits for each range

An addition to each lane is one addition of a number that has the same in all lanes, a comparison
is a subtraction that leaves the lanes' highest bits alone.  And with the host's address of gpa 0
added, this is the array of ``struct iovec`` that ``preadv2`` takes, and a part of that array a part
of the ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from struct import Struct
from typing import TYPE_CHECKING, overload

from vdisk.emu_block.scatter import Scattered

if TYPE_CHECKING:
    from collections.abc import Iterator

    Range = tuple[int, int]
    """(gpa, bytes)"""

LANE = 16
"""Bytes."""
LANE_BITS = 8 * LANE
HALF_BITS = LANE_BITS // 2
HALF = (1 << HALF_BITS) - 1
HIGHEST = 1 << LANE_BITS - 1
"""Of a lane, which no sum of a gpa and a length reaches."""
MOST_CONSTANTS = 256
"""Kept; six for each length of a table, of which a guest's driver has few.  16 KiB at most each."""
_RANGE = Struct("<QQ")


@lru_cache(maxsize=MOST_CONSTANTS)
def in_each(count: int, value: int = 1) -> int:
    """A number with ``value`` in each of ``count`` lanes."""
    return int.from_bytes(value.to_bytes(LANE, "little") * count, "little")


@lru_cache(maxsize=MOST_CONSTANTS)
def _lengths_of(count: int) -> Struct:
    return Struct("<" + "8xQ" * count)


class Ranges(Sequence["Range"]):
    """(gpa, bytes) of each of several ranges, in the lanes of ``data``; slices are like it.

    Where that is known already: ``total``, bytes of all; ``iovec``, where the host has them, all
    of which is RAM then.
    """

    __slots__ = ("_total", "data", "iovec")

    def __init__(self, data: bytes, total: int | None = None, iovec: bytes | None = None) -> None:
        self.data, self._total, self.iovec = data, total, iovec

    def __len__(self) -> int:
        return len(self.data) // LANE

    def __iter__(self) -> Iterator[Range]:
        return _RANGE.iter_unpack(self.data)

    @overload
    def __getitem__(self, index: int) -> Range: ...
    @overload
    def __getitem__(self, index: slice) -> Ranges: ...
    def __getitem__(self, index: int | slice) -> Range | Ranges:
        if isinstance(index, slice):
            return Ranges(part(self.data, index))
        return _range_at(self.data, index)

    @property
    def total(self) -> int:
        """Bytes of all."""
        if self._total is None:
            self._total = _total_of(self.data)
        return self._total

    def placed(self, start: int, end: int, base: int) -> bytes | None:
        """The lanes, with a number added to each gpa; None unless all ranges lie between two
        addresses, of less than 64 bits."""
        count, number = len(self), int.from_bytes(self.data, "little")
        begin = number & in_each(count, HALF)
        # The highest bit stays where ``end`` is not less, and comes where ``start`` is not more.
        right = in_each(count, HIGHEST + end) - begin - ((number ^ begin) >> HALF_BITS)
        right &= begin + in_each(count, HIGHEST - start)
        highest = in_each(count, HIGHEST)
        if right & highest != highest:
            return None
        return (number + in_each(count, base)).to_bytes(len(self.data), "little")


def part(data: bytes, index: slice) -> bytes:
    """Some lanes."""
    start, stop, step = index.indices(len(data) // LANE)
    if step != 1:
        raise ValueError("a slice of ranges with gaps")
    return data[start * LANE : stop * LANE]


def _range_at(data: bytes, index: int) -> Range:
    place = range(len(data) // LANE)[index] * LANE
    found: Range = _RANGE.unpack_from(data, place)
    return found


def _total_of(data: bytes) -> int:
    return sum(_lengths_of(len(data) // LANE).unpack(data))


class Views(Scattered):
    """The memory of ranges that were found to be RAM; each view is made when it is asked for.

    ``iovec``: the ranges, each gpa with ``base`` added, the host's address of gpa 0;
    ``everything``: the memory; ``total``: bytes of all, where that is known already.
    """

    def __init__(
        self, iovec: bytes, everything: memoryview, base: int, total: int | None = None
    ) -> None:
        self._iovec, self._everything, self._base, self._total = iovec, everything, base, total

    def __len__(self) -> int:
        return len(self._iovec) // LANE

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> Views: ...
    def __getitem__(self, index: int | slice) -> memoryview | Views:
        if isinstance(index, slice):
            return Views(part(self._iovec, index), self._everything, self._base)
        place, length = _range_at(self._iovec, index)
        return self._view(place, length)

    def without_last(self) -> tuple[Views, memoryview]:
        """All but the last one, and that."""
        place, length = _RANGE.unpack_from(self._iovec, len(self._iovec) - LANE)
        total = None if self._total is None else self._total - length
        others = Views(self._iovec[:-LANE], self._everything, self._base, total)
        return others, self._view(place, length)

    def _view(self, place: int, length: int) -> memoryview:
        return self._everything[place - self._base : place - self._base + length]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views)

    @cached_property
    def _views(self) -> list[memoryview]:
        return [self._view(place, length) for place, length in _RANGE.iter_unpack(self._iovec)]

    @property
    def total(self) -> int:
        if self._total is None:
            self._total = _total_of(self._iovec)
        return self._total

    def iovec(self) -> bytes:
        return self._iovec
