"""Which parts of a range have been filled: how the chunks of one read add up."""

from __future__ import annotations

from bisect import bisect_left


class Coverage:
    """The pieces of ``[start, end)`` that content chunks have filled, merged where they touch."""

    __slots__ = ("_ends", "_starts", "end", "filled", "start")

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.end = start + length
        self.filled = 0
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def fragments(self) -> int:
        return len(self._starts)

    @property
    def complete(self) -> bool:
        return self.filled == self.end - self.start

    def contains(self, offset: int, length: int) -> bool:
        """Whether the piece lies within the range."""
        return self.start <= offset and offset + length <= self.end

    def add(self, offset: int, length: int) -> bool:
        """Fill a piece within the range; False, and no change, if it overlaps an earlier one."""
        starts, ends = self._starts, self._ends
        end = offset + length
        index = bisect_left(ends, offset)  # the first fragment that ends at or after offset
        after = index
        if after < len(ends) and ends[after] == offset:
            after += 1
        if after < len(starts) and starts[after] < end:
            return False
        joins_left = after > index
        joins_right = after < len(starts) and starts[after] == end
        if joins_left and joins_right:
            ends[index] = ends.pop(after)
            del starts[after]
        elif joins_left:
            ends[index] = end
        elif joins_right:
            starts[after] = offset
        else:
            starts.insert(index, offset)
            ends.insert(index, end)
        self.filled += length
        return True
