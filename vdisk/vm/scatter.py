"""Scatter lists: the pieces of guest memory that one transfer goes to or comes from.

A guest gives a buffer as pages wherever they are, mostly not neighbours upwards; yet Linux's page
allocator hands them out downwards in long runs.  So a list is kept twice: *ranges* in the order
of the transfer, for ``preadv``, and *runs*, the same memory as fewer and longer ranges, for what
does not mind the order (whether it is RAM, that it was written)::

    pieces  5000+1000  4000+1000  3000+1000  9000+800 9800+10
    ranges  5000+1000  4000+1000  3000+1000  9000+810
    runs    3000+3000                        9000+810
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.vm.memory import GuestMemory

    Range = tuple[int, int]
    """(gpa, bytes)"""


class ScatterList:
    """``ranges`` and ``runs``, each (gpa, bytes); no range is empty."""

    __slots__ = ("ranges", "runs")

    def __init__(self, pieces: Iterable[Range] = ()) -> None:
        self.ranges: list[Range] = []
        self.runs: list[Range] = []
        self._join(pieces)

    def _join(self, pieces: Iterable[Range]) -> None:
        """One pass; [start, end) is the present range and [low, high) the present run."""
        ranges, runs = self.ranges, self.runs
        start = end = low = high = -1
        for gpa, length in pieces:
            if gpa == end:
                end += length
                high = max(high, end)
                continue
            if end > start:
                ranges.append((start, end - start))
            start, end = gpa, gpa + length
            if end == low:
                low = gpa
                continue
            if high > low:
                runs.append((low, high - low))
            low, high = start, end
        if end > start:
            ranges.append((start, end - start))
        if high > low:
            runs.append((low, high - low))

    def views(self, memory: GuestMemory) -> list[memoryview]:
        """The RAM of the ranges; raises :class:`OutOfRangeError` where it is not RAM."""
        for gpa, length in self.runs:
            if not memory.is_ram(gpa, length):
                raise OutOfRangeError(f"guest memory {gpa:#x}+{length:#x} is not all RAM")
        everything = memory.everything()
        return [everything[gpa : gpa + length] for gpa, length in self.ranges]

    def dirtied(self, memory: GuestMemory) -> None:
        """Say that a device has written all of it."""
        for gpa, length in self.runs:
            memory.dirtied(gpa, length)
