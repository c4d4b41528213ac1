"""Received bytes that are not parsed yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.nbd.errors import LocalProtocolError

if TYPE_CHECKING:
    from struct import Struct


class ReceiveBuffer:
    """A bounded queue of bytes.  Deleting at the front of a bytearray costs no copy."""

    def __init__(self, limit: int) -> None:
        self._data = bytearray()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._data)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        if len(self._data) + len(data) > self._limit:
            raise LocalProtocolError(
                f"more than {self._limit} received bytes are waiting: take the events first, and"
                " read nothing while wants_data is false"
            )
        self._data += data

    def peek(self, layout: Struct) -> tuple[Any, ...] | None:
        """The fields at the front, or ``None`` while they are incomplete."""
        if len(self._data) < layout.size:
            return None
        return layout.unpack_from(self._data)

    def unpack(self, layout: Struct) -> tuple[Any, ...] | None:
        """Take the fields at the front, or ``None`` while they are incomplete."""
        fields = self.peek(layout)
        if fields is not None:
            del self._data[: layout.size]
        return fields

    def take(self, length: int) -> bytes | None:
        """Take exactly *length* bytes, or ``None`` while they are incomplete."""
        if len(self._data) < length:
            return None
        with memoryview(self._data) as view:
            taken = view[:length].tobytes()
        del self._data[:length]
        return taken

    def move_to(self, target: memoryview) -> int:
        """Move what there is into *target*; returns how much that was."""
        count = min(len(self._data), len(target))
        with memoryview(self._data) as view:
            target[:count] = view[:count]
        del self._data[:count]
        return count

    def skip(self, length: int) -> int:
        """Throw away up to *length* bytes; returns how many."""
        count = min(len(self._data), length)
        del self._data[:count]
        return count

    def take_all(self) -> bytes:
        taken = bytes(self._data)
        self._data.clear()
        return taken
