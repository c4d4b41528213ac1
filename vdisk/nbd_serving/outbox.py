"""What waits to be sent to one client: buffers, and ranges of files that the kernel sends.

Replies go out whole and in order.  What the socket does not take now is kept; a range of a
device is kept as such, not as bytes and not as host offsets, and is looked up again when there
is room in the socket: meanwhile a write may have moved it.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import Kind
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.nbd.replies import Buffer
    from vdisk.nbd_serving.channel import Channel
    from vdisk.nbd_serving.limits import Account

_BUFFERS_AT_ONCE = 64
"""Buffers of one ``sendmsg``: enough to fill a socket, little to gather again if it is full."""

_PIECE = 1 << 18
"""Bytes read at once of a range that turned out not to stand in a file."""

_PROBE_STEP = 1 << 18
"""Between two looks whether the page cache holds a range: the read-ahead of a whole disk."""

_CROWD = 1024
_CROWD_BYTES = 1 << 20
"""Replies, and bytes copied for them, from which on a client must fetch some first."""

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class FilePiece(NamedTuple):
    """Bytes of a file: its descriptor, host offset, length."""

    descriptor: int
    offset: int
    length: int


def file_pieces(device: BlockDevice, offset: int, length: int) -> list[FilePiece] | None:
    """Where in files a range of ``device`` stands verbatim; None if some of it does not.

    True only while ``device`` is held.
    """
    found = device.locate(offset, length)
    if found is not None:
        store, host = found
        return [FilePiece(store.fileno(), host, length)] if type(store) is FileStore else None
    pieces = []
    for extent in device.map(offset, length):
        source, host_offset = extent.source, extent.source_offset
        if extent.kind is not Kind.DATA or type(source) is not FileStore or host_offset is None:
            return None
        if host_offset + extent.length > source.size:
            return None
        pieces.append(FilePiece(source.fileno(), host_offset, extent.length))
    return pieces


def cached(pieces: list[FilePiece]) -> bool:
    """Whether the page cache seems to hold the pieces, so that sending waits for no disk."""
    if not _NOWAIT:
        return False
    byte = [bytearray(1)]
    try:
        for descriptor, offset, length in pieces:
            for at in range(offset, offset + length, _PROBE_STEP):
                os.preadv(descriptor, byte, at, _NOWAIT)
            os.preadv(descriptor, byte, offset + length - 1, _NOWAIT)
    except OSError:  # EAGAIN, or a file system that cannot tell
        return False
    return True


class DeviceRange:
    """Bytes of a device on their way from the page cache to a socket.

    ``pieces``: where they are; of this moment, as :func:`file_pieces` says.
    """

    def __init__(
        self, device: BlockDevice, offset: int, length: int, pieces: list[FilePiece]
    ) -> None:
        self._device = device
        self._offset = offset
        self._left = length
        self._pieces: deque[FilePiece] | None = deque(pieces)

    def send(self, channel: Channel) -> None:
        """Send all that is left; raises ``BlockingIOError`` when the socket is full."""
        if self._pieces is not None:
            self._send_pieces(channel, self._pieces)
        else:
            with self._device.hold():
                pieces = file_pieces(self._device, self._offset, self._left) or []
                self._send_pieces(channel, deque(pieces))
        while self._left:
            self._send_copy(channel)

    def _send_pieces(self, channel: Channel, pieces: deque[FilePiece]) -> None:
        try:
            while pieces:
                descriptor, offset, length = pieces.popleft()
                while length:
                    sent = channel.send_file(descriptor, offset, length)
                    if not sent:
                        return  # past the end of the file: zeroes, which are sent as a copy
                    offset, length = offset + sent, length - sent
                    self._sent(sent)
        finally:
            self._pieces = None

    def _send_copy(self, channel: Channel) -> None:
        """The bytes moved to where no file has them verbatim; they are few."""
        data = memoryview(self._device.read(self._offset, min(self._left, _PIECE)))
        while data:
            sent = channel.send(data)
            self._sent(sent)
            data = data[sent:]

    def forget_pieces(self) -> None:
        """The device is not held any longer."""
        self._pieces = None

    def _sent(self, count: int) -> None:
        self._offset += count
        self._left -= count


class _Data(NamedTuple):
    """``charge``: bytes that were accounted for, and are free once this is sent."""

    view: memoryview
    charge: int
    copied: bool = False


class Outbox:
    """The queue of one client, whose ``account`` is charged with what it holds."""

    def __init__(self, channel: Channel, account: Account) -> None:
        self.channel = channel
        self._account = account
        self._items: deque[_Data | DeviceRange] = deque()
        self._copied = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def crowded(self) -> bool:
        """Whether more should not be added now."""
        return len(self._items) >= _CROWD or self._copied >= _CROWD_BYTES

    def push(self, buffers: list[Buffer], charge: int = 0) -> None:
        """Queue one reply; ``charge`` is released when its last byte is sent."""
        for buffer in buffers[:-1]:
            self._items.append(_Data(memoryview(buffer), 0))
        self._items.append(_Data(memoryview(buffers[-1]), charge))

    def push_range(self, data: DeviceRange) -> None:
        """Queue the data of a reply whose header was just sent."""
        self._items.append(data)

    def send_now(self, data: memoryview, *, more: bool = False) -> bool:
        """Send from a buffer that is about to be used again; what is left over is copied.

        ``more``: something follows at once.  True when nothing is left.
        """
        sent = 0
        if not self._items:
            try:
                sent = self.channel.send(data, more=more)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return True
        rest = memoryview(bytes(data[sent:]))
        self._account.charge(len(rest))
        self._copied += len(rest)
        self._items.append(_Data(rest, len(rest), copied=True))
        return False

    def send(self) -> bool:
        """Send what the socket takes; True when nothing is left.  Raises ``OSError``."""
        items = self._items
        try:
            while items:
                first = items[0]
                if isinstance(first, DeviceRange):
                    first.send(self.channel)
                    items.popleft()
                else:
                    self._send_data()
        except BlockingIOError:
            return False
        return True

    def _send_data(self) -> None:
        views: list[memoryview] = []
        more = False
        for item in self._items:
            more = isinstance(item, DeviceRange)
            if isinstance(item, DeviceRange) or len(views) == _BUFFERS_AT_ONCE:
                break
            views.append(item.view)
        left = self.channel.send_all(views, more=more)
        for view in views:
            if left < len(view):
                item = self._items[0]
                assert isinstance(item, _Data)
                self._items[0] = item._replace(view=view[left:])
                return
            left -= len(view)
            item = self._items.popleft()
            assert isinstance(item, _Data)
            if item.charge:
                self._account.release(item.charge)
                self._copied -= item.charge if item.copied else 0
