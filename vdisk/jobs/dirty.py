"""Which parts of a disk have changed, or have still to be dealt with: a flag for each part.

A part is 64 KiB, or more on a disk so large that there would be more than :data:`MOST_PARTS`.
"""

from __future__ import annotations

import threading
from typing import Final

SMALLEST_PART: Final = 64 << 10
"""A cluster of most images: less is not worth another write."""

MOST_PARTS: Final = 1 << 20
"""Bounds the memory: a byte for each part."""


class DirtyParts:
    """Parts of a disk of ``size`` bytes; all of them, or none, to begin with."""

    def __init__(self, size: int, *, everything: bool = False) -> None:
        self.part = SMALLEST_PART
        while self.part * MOST_PARTS < size:
            self.part *= 2
        self._size = size
        self._flags = bytearray([everything]) * -(-size // self.part)
        self._lock = threading.Lock()

    def mark(self, offset: int, length: int) -> None:
        """These bytes have changed."""
        if not length:
            return
        first, last = offset // self.part, (offset + length - 1) // self.part
        with self._lock:
            self._flags[first : last + 1] = b"\1" * (last + 1 - first)

    def take(self, start: int, end: int, most: int) -> tuple[int, int] | None:
        """Forget the first dirty run inside [start, end), and give it: (offset, length).

        A part that is only begun inside counts.  ``most``: bytes; more is left for the next time.
        """
        first, last = start // self.part, -(-end // self.part)
        with self._lock:
            begin = self._flags.find(1, first, last)
            if begin < 0:
                return None
            stop = min(last, begin + max(most // self.part, 1))
            clean = self._flags.find(0, begin, stop)
            stop = stop if clean < 0 else clean
            self._flags[begin:stop] = bytes(stop - begin)
        offset = begin * self.part
        return offset, min(stop * self.part, self._size) - offset
