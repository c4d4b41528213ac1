"""Replies being put together: the server's send buffer, and one client's use of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vdisk.nbd.bulk import BulkReplies, ReadSheet
from vdisk.nbd.session import HeaderStyle

if TYPE_CHECKING:
    from vdisk.nbd_serving.outbox import Outbox

SEND_BUFFER: Final = 4 << 20
"""Bytes of replies collected before they are sent, shared by all clients of a server."""

SHEET_LENGTHS: Final = frozenset(1 << bits for bits in range(9, 15))
"""Lengths of reads whose replies are prepared: the usual ones among those short enough for it to
matter."""

SINGLE_LENGTHS: Final = frozenset(1 << bits for bits in range(9, 17))
"""Lengths of reads for whose replies, one at a time, there is room kept."""

SHEET_BYTES: Final = 1 << 20
SHEET_REPLIES: Final = 256
"""Data that the prepared replies of one length have room for, and how many they are at most."""


class Sheets(dict[int, ReadSheet]):
    """Prepared replies to reads of one of ``SHEET_LENGTHS``, made when they are wanted first."""

    def __init__(self, style: HeaderStyle) -> None:
        super().__init__()
        self._style = style

    def __missing__(self, length: int) -> ReadSheet:
        count = min(SHEET_REPLIES, SHEET_BYTES // length)
        self[length] = sheet = ReadSheet(self._style, length, count)
        return sheet


class Singles(dict[int, tuple[memoryview, tuple[memoryview]]]):
    """Room for one reply to a read of one of ``SINGLE_LENGTHS``, made when it is wanted first.

    All of the reply, and the view where its data belong, as ``os.preadv`` has it.
    """

    def __init__(self, style: HeaderStyle) -> None:
        super().__init__()
        self._header = BulkReplies(style).read_header

    def __missing__(self, length: int) -> tuple[memoryview, tuple[memoryview]]:
        reply = memoryview(bytearray(self._header + length))
        self[length] = found = reply, (reply[self._header :],)
        return found


class SendBuffer:
    """Where replies are put together; one for a server, used during one wake-up at a time."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(SEND_BUFFER))
        self.sheets = {style: Sheets(style) for style in HeaderStyle}
        self.singles = {style: Singles(style) for style in HeaderStyle}


class Outgoing:
    """Replies to one client, put one behind the other into ``buffer`` and then sent.

    ``filled``: bytes of the buffer that wait for :meth:`send`.
    """

    def __init__(self, style: HeaderStyle, buffer: SendBuffer, outbox: Outbox) -> None:
        self.buffer = buffer.view
        self.sheets = buffer.sheets[style]
        self.singles = buffer.singles[style]
        self.outbox = outbox
        self.filled = 0
        replies = BulkReplies(style)
        self.pack_read, self.read_header = replies.pack_read, replies.read_header
        self.pack_done, self.done = replies.pack_done, replies.done

    def send(self) -> bool:
        """Send what was put together; True when nothing is left.  Raises ``OSError``."""
        if not self.filled:
            return not self.outbox
        filled, self.filled = self.filled, 0
        return self.outbox.send_now(self.buffer[:filled])

    def make_room(self, length: int) -> None:
        """Send what is there if ``length`` bytes would not fit behind it."""
        if self.filled + length > SEND_BUFFER:
            self.send()
