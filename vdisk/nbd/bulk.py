"""The hot path: many small requests in one receive buffer, parsed and answered together.

A client with a deep queue sends dozens of 28-byte requests at once.  :class:`BulkParser` takes all
whole ones off the front of a buffer with one ``Struct.iter_unpack``; :class:`BulkReplies` builds
reply headers right in the send buffer, so that a server reads file data to its final place and
sends everything with one call::

    reads, used = parser.reads(view, most)
    for cookie, offset, length in reads:
        start = replies.pack_read(out, position, cookie, offset, length)
        position = start + length
        os.preadv(fd, [out[start:position]], offset)
    machine.receive_data(view[used:])

It is for use while the machine's ``at_boundary`` is true.  It takes only what is plain and valid;
the first request that is not ends the run, and is the machine's to judge.

Magic, flags and command are read as one 64-bit number: a plain read is one comparison.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from vdisk.nbd.session import HeaderStyle, Session
from vdisk.nbd.wire import (
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    Command,
    CommandFlag,
    ReplyType,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from vdisk.nbd.gate import Gate

PlainRead = tuple[int, int, int]
"""Cookie, offset, length."""
PlainWrite = tuple[int, int, memoryview, bool]
"""Cookie, offset, data, NBD_CMD_FLAG_FUA."""

Target = bytearray | memoryview

_HEAD: Final = Struct(">Q")
_COMPACT: Final = Struct(">QQQI")
_EXTENDED: Final = Struct(">QQQQ")
_COMPACT_WITHOUT_COOKIE: Final = Struct(">Q8xQI")
_EXTENDED_WITHOUT_COOKIE: Final = Struct(">Q8xQQ")

_READ_LAYOUTS: Final = {
    HeaderStyle.SIMPLE: Struct(">QQ"),  # head, cookie
    HeaderStyle.STRUCTURED: Struct(">QQIQ"),  # head, cookie, length of payload, offset of data
    HeaderStyle.EXTENDED: Struct(">QQQQQ"),  # head, cookie, offset, length of payload, and again
}
_DONE_LAYOUTS: Final = {
    HeaderStyle.SIMPLE: Struct(">QQ"),
    HeaderStyle.STRUCTURED: Struct(">QQ"),
    HeaderStyle.EXTENDED: Struct(">QQQQ"),
}

_WORDS_OF_REQUESTS: Final = {
    HeaderStyle.SIMPLE: ((2, 2), (3, 3)),
    HeaderStyle.STRUCTURED: ((2, 2), (3, 3), (5, 4), (6, 5)),
    HeaderStyle.EXTENDED: ((2, 2), (3, 3), (4, 4), (5, 5), (8, 4), (9, 5)),
}
"""Which 32-bit words of a read's reply are which of its request: cookie and offset."""


def _head(magic: int, flags: int, kind: int) -> int:
    """The first eight bytes of a request, or of a reply chunk, as a number."""
    return magic << 32 | flags << 16 | kind


def _write_heads(session: Session, magic: int) -> dict[int, bool]:
    """The heads of the writes an export allows; whether they ask for NBD_CMD_FLAG_FUA."""
    if session.export.read_only:
        return {}
    flags = {0: False}
    if TransmissionFlag.NBD_FLAG_SEND_FUA in session.export.flags:
        flags[int(CommandFlag.NBD_CMD_FLAG_FUA)] = True
    if session.headers is HeaderStyle.EXTENDED:
        payload_len = int(CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN)
        flags |= {number | payload_len: fua for number, fua in flags.items()}
    return {_head(magic, number, Command.NBD_CMD_WRITE): fua for number, fua in flags.items()}


class BulkParser:
    """Takes runs of plain reads, or of plain writes, off the front of a receive buffer.

    ``header_size``: bytes of a request without its payload.  ``read_kind``: what :meth:`kind` says
    of plain reads; ``write_kinds``: of plain writes, and whether they ask for NBD_CMD_FLAG_FUA.
    """

    def __init__(self, session: Session, gate: Gate) -> None:
        extended = session.headers is HeaderStyle.EXTENDED
        self._layout = _EXTENDED if extended else _COMPACT
        self.header_size = self._layout.size
        self._without_cookie = _EXTENDED_WITHOUT_COOKIE if extended else _COMPACT_WITHOUT_COOKIE
        magic = NBD_EXTENDED_REQUEST_MAGIC if extended else NBD_REQUEST_MAGIC
        self.read_kind = _head(magic, 0, Command.NBD_CMD_READ)
        self.write_kinds = _write_heads(session, magic)
        self._size = gate.size
        self._longest = gate.max_payload
        self._unaligned = session.block_sizes.minimum - 1

    def read(self, view: memoryview) -> PlainRead | None:
        """The plain read at the front."""
        head, cookie, offset, length = self._layout.unpack_from(view)
        if (
            head != self.read_kind
            or not 0 < length <= self._longest
            or offset + length > self._size
            or (offset | length) & self._unaligned
        ):
            return None
        return cookie, offset, length

    def kind(self, view: memoryview) -> int:
        """What the first request in *view* is, to be compared; 0 if it is not whole."""
        return _HEAD.unpack_from(view)[0] if len(view) >= self.header_size else 0

    def reads(self, view: memoryview, most: int) -> tuple[list[PlainRead], int]:
        """The run of plain reads at the front, at most *most*, and the bytes they take."""
        each = self._layout.size
        whole = min(len(view) // each, most) * each
        if self.kind(view) != self.read_kind:
            return [], 0
        plain, size = self.read_kind, self._size
        longest, unaligned = self._longest, self._unaligned
        found: list[PlainRead] = []
        append = found.append
        requests = view if whole == len(view) else view[:whole]
        for head, cookie, offset, length in self._layout.iter_unpack(requests):
            if (
                head != plain
                or not 0 < length <= longest
                or offset + length > size
                or (offset | length) & unaligned
            ):
                break
            append((cookie, offset, length))
        return found, len(found) * each

    def alike(self, view: memoryview) -> tuple[int, list[int]]:
        """Length and offsets of the plain reads in *view*, if all of it is such, of one length.

        *view*: whole requests.  Else 0 and no offsets.
        """
        head, _offset, length = self._without_cookie.unpack_from(view)
        plain, last, unaligned = self.read_kind, self._size - length, self._unaligned
        if head != plain or not 0 < length <= self._longest or length & unaligned:
            return 0, []
        found = [
            offset
            for head, offset, size in self._without_cookie.iter_unpack(view)
            if head == plain and size == length and offset <= last and not offset & unaligned
        ]
        return (length, found) if len(found) * self.header_size == len(view) else (0, [])

    def incomplete(self, view: memoryview, longest: int) -> bool:
        """Whether *view* is only a beginning of a request that might be taken once it is whole.

        *longest*: bytes of a write's data that are worth waiting for.
        """
        each = self._layout.size
        if len(view) < each:
            return True
        head, _cookie, _offset, length = self._layout.unpack_from(view)
        return head in self.write_kinds and length <= longest and len(view) < each + length

    def missing(self, view: memoryview, lengths: range) -> int:
        """Bytes that are missing of the plain write, without FUA, at the front of *view*.

        0 if it is whole, or something else, or the length of its data is not one of *lengths*.
        """
        each = self._layout.size
        if len(view) < each:
            return 0
        head, _cookie, _offset, length = self._layout.unpack_from(view)
        if self.write_kinds.get(head) is not False or length not in lengths:
            return 0
        end: int = each + length
        return max(end - len(view), 0)

    def write(self, view: memoryview) -> tuple[int, int, memoryview] | None:
        """Cookie, offset and data of the plain write that is all of *view*, without FUA."""
        head, cookie, offset, length = self._layout.unpack_from(view)
        if (
            self.write_kinds.get(head) is not False
            or self.header_size + length != len(view)
            or not 0 < length <= self._longest
            or offset + length > self._size
            or (offset | length) & self._unaligned
        ):
            return None
        return cookie, offset, view[self.header_size :]

    def writes(self, view: memoryview, most: int) -> tuple[list[PlainWrite], int]:
        """The run of plain writes at the front, whole with their data, and the bytes they take.

        The data are views into *view*: done with before the buffer is used again.
        """
        unpack, each = self._layout.unpack_from, self._layout.size
        heads, size = self.write_kinds, self._size
        longest, unaligned = self._longest, self._unaligned
        found: list[PlainWrite] = []
        used, available = 0, len(view)
        while used + each <= available and len(found) < most:
            head, cookie, offset, length = unpack(view, used)
            fua = heads.get(head)
            end = used + each + length
            if (
                fua is None
                or end > available
                or not 0 < length <= longest
                or offset + length > size
                or (offset | length) & unaligned
            ):
                break
            found.append((cookie, offset, view[used + each : end], fua))
            used = end
        return found, used


class BulkReplies:
    """Packs successful replies into a send buffer, one behind the other.

    ``read_header`` and ``done``: the bytes each reply takes, without data.
    """

    def __init__(self, style: HeaderStyle) -> None:
        self._read_layout = _READ_LAYOUTS[style].pack_into
        self._done_layout = _DONE_LAYOUTS[style].pack_into
        self._read_head, self._done_head = _reply_heads(style)
        self.read_header = _READ_LAYOUTS[style].size
        self.done = _DONE_LAYOUTS[style].size
        self.pack_read = {
            HeaderStyle.SIMPLE: self._simple_read,
            HeaderStyle.STRUCTURED: self._structured_read,
            HeaderStyle.EXTENDED: self._extended_read,
        }[style]
        """``(out, position, cookie, offset, length)``: put the header of a read's reply there;
        returns where its ``length`` bytes of data belong."""
        self.pack_done = self._extended_done if style is HeaderStyle.EXTENDED else self._short_done
        """``(out, position, cookie, offset)``: put the reply to a request without data in it
        there; returns the position after it."""

    def _simple_read(
        self, out: Target, position: int, cookie: int, _offset: int, _length: int
    ) -> int:
        self._read_layout(out, position, self._read_head, cookie)
        return position + self.read_header

    def _structured_read(
        self, out: Target, position: int, cookie: int, offset: int, length: int
    ) -> int:
        self._read_layout(out, position, self._read_head, cookie, 8 + length, offset)
        return position + self.read_header

    def _extended_read(
        self, out: Target, position: int, cookie: int, offset: int, length: int
    ) -> int:
        self._read_layout(out, position, self._read_head, cookie, offset, 8 + length, offset)
        return position + self.read_header

    def _short_done(self, out: Target, position: int, cookie: int, _offset: int) -> int:
        self._done_layout(out, position, self._done_head, cookie)
        return position + self.done

    def _extended_done(self, out: Target, position: int, cookie: int, offset: int) -> int:
        self._done_layout(out, position, self._done_head, cookie, offset, 0)
        return position + self.done


class ReadSheet:
    """Replies to reads of one length, one behind the other, prepared but for cookies and offsets.

    These are the same bytes in a request and in its reply, so they are copied as they came, a
    column of all requests at once::

        requests  | head cookie offset length | head cookie offset length | ...
                           |                           |
        sheet     | head cookie data .............. | head cookie data .............. | ...

    ``targets``: for each reply a tuple of the view where its data belong, as ``os.preadv`` has it.
    *length* is a multiple of 4.
    """

    def __init__(self, style: HeaderStyle, length: int, count: int) -> None:
        replies = BulkReplies(style)
        room = replies.read_header
        stride = room + length
        self._out = memoryview(bytearray(stride * count))
        for position in range(0, stride * count, stride):
            replies.pack_read(self._out, position, 0, 0, length)
        self.targets = [
            (self._out[position + room : position + stride],)
            for position in range(0, stride * count, stride)
        ]
        self._stride = stride
        self._request_words = (_EXTENDED if style is HeaderStyle.EXTENDED else _COMPACT).size // 4
        words = self._out.cast("I")
        self._columns = [
            (words[to :: stride // 4], origin) for to, origin in _WORDS_OF_REQUESTS[style]
        ]

    def replies(self, requests: memoryview, count: int) -> memoryview:
        """The first *count* replies, to that many *requests*; their data are in their places."""
        words = requests.cast("I")
        for column, origin in self._columns:
            column[:count] = words[origin :: self._request_words]
        return self._out[: count * self._stride]


def _reply_heads(style: HeaderStyle) -> tuple[int, int]:
    """The first eight bytes of the reply to a read, and of one without data."""
    simple = NBD_SIMPLE_REPLY_MAGIC << 32
    if style is HeaderStyle.SIMPLE:
        return simple, simple
    extended = style is HeaderStyle.EXTENDED
    magic = NBD_EXTENDED_REPLY_MAGIC if extended else NBD_STRUCTURED_REPLY_MAGIC
    data = _head(magic, NBD_REPLY_FLAG_DONE, ReplyType.NBD_REPLY_TYPE_OFFSET_DATA)
    none = _head(magic, NBD_REPLY_FLAG_DONE, ReplyType.NBD_REPLY_TYPE_NONE)
    return data, none if extended else simple
