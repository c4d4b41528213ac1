"""Many ranges of guest memory at once, as one long number.

A guest's buffer of 1 MiB is some 256 pages, wherever they were free.  Handled one by one they cost
more than it takes the kernel to fill them; so they stay what they are in the descriptor table that
they come from, and are computed with all at once::

    bits   0        64       128      192      256
           | gpa 0  | bytes  | gpa 1  | bytes  | …       a *lane* of 128 bits for each range

An addition to each lane is one addition of a number that has the same in all lanes, a comparison
is a subtraction that leaves the lanes' highest bits alone.  And with the host's address of gpa 0
added, this is the array of ``struct iovec`` that ``preadv2`` takes.
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


class Ranges(Sequence["Range"]):
    """(gpa, bytes) of each of ``count`` ranges, in lanes of ``number``; slices are like it."""

    __slots__ = ("_count", "number")

    def __init__(self, number: int, count: int) -> None:
        self.number, self._count = number, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Range]:
        return _RANGE.iter_unpack(self.packed())

    @overload
    def __getitem__(self, index: int) -> Range: ...
    @overload
    def __getitem__(self, index: slice) -> Ranges: ...
    def __getitem__(self, index: int | slice) -> Range | Ranges:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            if step != 1:
                raise ValueError("a slice of ranges with gaps")
            count = max(stop - start, 0)
            number = self.number >> start * LANE_BITS & (1 << count * LANE_BITS) - 1
            return Ranges(number, count)
        place = range(self._count)[index] * LANE_BITS
        return self.number >> place & HALF, self.number >> place + HALF_BITS & HALF

    @property
    def total(self) -> int:
        """Bytes of all."""
        lengths, count = self._lengths, self._count
        while count > 1:  # the upper half of the lanes is added to the lower one
            count = count + 1 >> 1
            half = count * LANE_BITS
            lengths = (lengths >> half) + (lengths & (1 << half) - 1)
        return lengths

    @property
    def any_empty(self) -> bool:
        """Whether one of them has no bytes."""
        highest = in_each(self._count, HIGHEST)
        return self._lengths + in_each(self._count, HIGHEST - 1) & highest != highest

    @property
    def _lengths(self) -> int:
        return self.number >> HALF_BITS & in_each(self._count, HALF)

    def lie_in(self, start: int, end: int) -> bool:
        """Whether all of them lie between two addresses, of less than 64 bits."""
        count = self._count
        begin = self.number & in_each(count, HALF)
        # The highest bit stays where ``end`` is not less, and comes where ``start`` is not more.
        right = in_each(count, HIGHEST + end) - begin - self._lengths
        right &= begin + in_each(count, HIGHEST - start)
        highest = in_each(count, HIGHEST)
        return right & highest == highest

    def packed(self, base: int = 0) -> bytes:
        """The lanes, with a number added to each gpa."""
        number = self.number + in_each(self._count, base) if base else self.number
        return number.to_bytes(LANE * self._count, "little")


def total(ranges: Sequence[Range]) -> int:
    """Bytes of all."""
    return ranges.total if type(ranges) is Ranges else sum(length for _, length in ranges)


class Views(Scattered):
    """The memory of ranges that were found to be RAM; each view is made when it is asked for.

    ``everything``: the memory; ``base``: the host's address of its gpa 0.
    """

    def __init__(self, ranges: Ranges, everything: memoryview, base: int) -> None:
        self._ranges, self._everything, self._base = ranges, everything, base

    def __len__(self) -> int:
        return len(self._ranges)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> Views: ...
    def __getitem__(self, index: int | slice) -> memoryview | Views:
        if isinstance(index, slice):
            return Views(self._ranges[index], self._everything, self._base)
        gpa, length = self._ranges[index]
        return self._everything[gpa : gpa + length]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views)

    @cached_property
    def _views(self) -> list[memoryview]:
        everything = self._everything
        return [everything[gpa : gpa + length] for gpa, length in self._ranges]

    @property
    def total(self) -> int:
        return self._ranges.total

    def iovec(self) -> bytes:
        return self._ranges.packed(self._base)
