"""A block device in memory: for tests, for temporary overlays, for images not yet on disk."""

from __future__ import annotations

import threading

from vdisk.block import BlockDevice, fill_zeroes


class MemoryStore(BlockDevice):
    """Bytes in a ``bytearray``; grows like a file when ``growable``."""

    zeroes_fast = True

    def __init__(
        self, content: bytes | bytearray = b"", *, growable: bool = True, name: str = "memory"
    ) -> None:
        self._bytes = bytearray(content)
        self._lock = threading.Lock()
        self.growable = growable
        self.name = name

    @property
    def size(self) -> int:
        return len(self._bytes)

    def content(self) -> bytes:
        """A copy of everything the device holds."""
        with self._lock:
            return bytes(self._bytes)

    def _read_into(self, offset: int, view: memoryview) -> None:
        with self._lock:
            found = self._bytes[offset : offset + len(view)]
        view[: len(found)] = found
        fill_zeroes(view[len(found) :])

    def _grow(self, end: int) -> None:
        if end > len(self._bytes):
            self._bytes.extend(bytes(end - len(self._bytes)))

    def _write(self, offset: int, view: memoryview) -> None:
        with self._lock:
            self._grow(offset + len(view))
            self._bytes[offset : offset + len(view)] = view

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._lock:
            self._grow(offset + length)
            self._bytes[offset : offset + length] = bytes(length)

    def _truncate(self, size: int) -> None:
        with self._lock:
            del self._bytes[size:]
            self._grow(size)
