"""The file under an image that is being fuzzed."""

from __future__ import annotations

from vdisk.errors import NoSpaceError
from vdisk.stores.memory import MemoryStore

ROOM = 64 << 20
"""Bytes that the disk under the image has: an image may want more, which is an error then."""


class SmallDisk(MemoryStore):
    """Memory that is full at :data:`ROOM`."""

    def _grow(self, end: int) -> None:
        if end > ROOM:
            raise NoSpaceError("the disk is full", path=self.name, offset=end)
        super()._grow(end)
