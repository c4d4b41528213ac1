"""Buffers for the payloads of large writes, used again and again.

The system gives a process large pieces of memory page by page, zeroed, each at its first touch;
for a payload of a mebibyte that takes longer than receiving it.
"""

from __future__ import annotations

from typing import Final

SMALLEST: Final = 1 << 17
"""Bytes of the smallest payload worth keeping the buffer of."""

KEPT: Final = 32 << 20
"""Bytes of buffers kept for later: the queue of a client that writes mebibytes."""


class PayloadBuffers:
    """Of one server; sizes are powers of two, so that buffers fit the next payload too."""

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._kept = 0

    def take(self, length: int) -> bytearray:
        """A buffer of ``length`` bytes or more."""
        if length < SMALLEST:
            return bytearray(length)
        size = 1 << (length - 1).bit_length()
        free = self._free.get(size)
        if free:
            self._kept -= size
            return free.pop()
        return bytearray(size)

    def give(self, payload: memoryview) -> None:
        """Take back the buffer of a payload that nobody looks at any more."""
        buffer = payload.obj
        if not isinstance(buffer, bytearray) or len(buffer) < SMALLEST:
            return
        if self._kept + len(buffer) <= KEPT:
            self._kept += len(buffer)
            self._free.setdefault(len(buffer), []).append(buffer)
