"""The client's half of the transmission phase: requests out, replies in, in any order.

::

    machine = ClientTransmission(session)
    machine.receive_data(handshake.trailing_data)
    cookie, buffers = machine.read(0, 4096, into=buffer)
    sendmsg(buffers)
    while True:
        match machine.next_event():
            case None:
                machine.receive_data(recv())
            case ReplyDone(cookie, error, data):
                ...                                # raise error, or data is the filled buffer
            case DataReceived() | HoleReceived() | StatusReceived() | ErrorReceived():
                ...                                # what the reply consists of, as it arrives

The server is not trusted.  A reply to a cookie that is not waiting, of the wrong kind, length or
place, with bytes twice or missing, ends the connection with RemoteProtocolError; nothing is stored
but what a request asked for.

A payload need not pass through a buffer of the program: while ``payload_buffer`` is not ``None``,
receive into it and report with ``payload_received``.

The states: HEADER -> OFFSET (of NBD_REPLY_TYPE_OFFSET_DATA) -> PAYLOAD -> HEADER; any -> CLOSED at
a violation.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum, auto
from typing import Final, NamedTuple

from vdisk.nbd import chunks
from vdisk.nbd._buffer import ReceiveBuffer
from vdisk.nbd.client_requests import EMPTY, ClientRequests, Pending
from vdisk.nbd.coverage import Coverage
from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError, RequestError
from vdisk.nbd.events import (
    ClientEvent,
    DataReceived,
    ErrorReceived,
    HoleReceived,
    ReplyDone,
    StatusReceived,
)
from vdisk.nbd.limits import DEFAULT_LIMITS, Limits
from vdisk.nbd.session import HeaderStyle, Session
from vdisk.nbd.wire import (
    EXTENDED_REPLY,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_FLAG_ERROR,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    SIMPLE_REPLY,
    STRUCTURED_REPLY,
    UINT32,
    UINT64,
    Command,
    CommandFlag,
    ErrorValue,
    ReplyType,
)


class State(IntEnum):  # looked up for every message: an IntEnum hashes faster
    HEADER = auto()
    OFFSET = auto()
    PAYLOAD = auto()
    CLOSED = auto()


class _Reply(NamedTuple):
    """The message being received: ``kind`` is ``None`` for the data of a simple reply.

    ``offset``: of the data in the export, where that is what the message brings.
    """

    pending: Pending
    kind: int | None
    done: bool
    offset: int = 0


class ClientTransmission(ClientRequests):
    """Client side of one connection's transmission phase; see the module for how to drive it."""

    def __init__(self, session: Session, *, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(session, limits)
        self._inbox = ReceiveBuffer(limits.receive_buffer)
        self._state = State.HEADER
        self._reply: _Reply | None = None
        self._payload_length = 0
        self._payload = EMPTY
        self._missing = 0
        self._events: deque[ClientEvent] = deque()
        self._eof = False

    # --- driving ----------------------------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        return not self._eof and self._state is not State.CLOSED

    @property
    def payload_buffer(self) -> memoryview | None:
        """Where the next bytes of a payload belong, or ``None`` when a header is next."""
        if self._state is not State.PAYLOAD or self._inbox or not self._missing:
            return None
        return self._payload[len(self._payload) - self._missing :]

    @property
    def at_boundary(self) -> bool:
        """Whether no reply is awaited, and nothing of one was received."""
        return not (self._pending or self._inbox or self._events) and self._state is State.HEADER

    def payload_received(self, count: int) -> None:
        """*count* bytes were received into ``payload_buffer``."""
        if self._state is not State.PAYLOAD or not 0 <= count <= self._missing:
            raise LocalProtocolError(f"{count} bytes of payload, {self._missing} missing")
        self._missing -= count

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        if self._state is State.CLOSED:
            raise LocalProtocolError("the connection is closed")
        target = self.payload_buffer
        if target is not None:
            count = min(len(target), len(data))
            view = memoryview(data)
            target[:count] = view[:count]
            self._missing -= count
            data = view[count:]
        self._inbox.append(data)

    def receive_eof(self) -> None:
        """The server closed the connection: an error where replies are missing."""
        self._eof = True

    def next_event(self) -> ClientEvent | None:
        """The next event, or ``None`` while input is missing.

        Raises RemoteProtocolError when the server broke the protocol, or closed the connection
        with requests unanswered.
        """
        while not self._events and self._state is not State.CLOSED and _STEPS[self._state](self):
            pass
        if self._events:
            return self._events.popleft()
        if self._eof and self._state is not State.CLOSED:
            self._at_eof()
        return None

    def _at_eof(self) -> None:
        missing = len(self._pending)
        if missing or self._inbox:
            raise self._violation(
                f"the server closed the connection with {missing} requests unanswered"
            )
        self._state = State.CLOSED

    # --- replies ----------------------------------------------------------------------------------

    def _read_header(self) -> bool:
        if self._style is HeaderStyle.EXTENDED:
            fields = self._inbox.unpack(EXTENDED_REPLY)
            return fields is not None and self._begin_extended(fields)
        magic = self._inbox.peek(UINT32)
        if magic is None:
            return False
        if magic[0] == NBD_SIMPLE_REPLY_MAGIC:
            fields = self._inbox.unpack(SIMPLE_REPLY)
            return fields is not None and self._begin_simple(*fields)
        if magic[0] == NBD_STRUCTURED_REPLY_MAGIC and self._style is HeaderStyle.STRUCTURED:
            fields = self._inbox.unpack(STRUCTURED_REPLY)
            return fields is not None and self._begin_chunk(*fields[1:])
        raise self._violation(f"a reply with the magic {magic[0]:#x}")

    def _begin_extended(self, fields: tuple[int, ...]) -> bool:
        magic, flags, kind, cookie, offset, length = fields
        if magic != NBD_EXTENDED_REPLY_MAGIC:
            raise self._violation(f"a reply with the magic {magic:#x}")
        if offset != self._find(cookie).offset:
            raise self._violation(f"the reply {cookie} with the offset {offset} of another request")
        return self._begin_chunk(flags, kind, cookie, length)

    def _find(self, cookie: int) -> Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise self._violation(f"a reply to the cookie {cookie}, which waits for none")
        return pending

    def _begin_simple(self, _magic: int, error: int, cookie: int) -> bool:
        pending = self._find(cookie)
        reading = pending.command is Command.NBD_CMD_READ
        structured = self._style is not HeaderStyle.SIMPLE
        if pending.chunked or (reading and structured):
            raise self._violation("a simple reply where chunks are due")
        if error:
            pending.error = _request_error(pending, ErrorValue.from_wire(error), "")
        elif pending.command is Command.NBD_CMD_BLOCK_STATUS:
            raise self._violation("a block status without extents")
        elif reading:
            self._expect(_Reply(pending, None, True, pending.offset), pending.data)
            return True
        self._complete(pending)
        return True

    def _begin_chunk(self, flags: int, kind: int, cookie: int, length: int) -> bool:
        pending = self._find(cookie)
        pending.chunked = True
        reply = _Reply(pending, kind, bool(flags & NBD_REPLY_FLAG_DONE))
        self._check_chunk(reply, length)
        if kind == ReplyType.NBD_REPLY_TYPE_OFFSET_DATA:
            self._reply, self._payload_length = reply, length - UINT64.size
            self._state = State.OFFSET
        else:
            self._expect(reply, memoryview(bytearray(length)))
        return True

    def _check_chunk(self, reply: _Reply, length: int) -> None:
        """Is this type of chunk a reply to this command here, and can it be this long?"""
        pending, kind = reply.pending, reply.kind
        if kind is not None and kind & NBD_REPLY_TYPE_FLAG_ERROR:
            if not chunks.SHORTEST_ERROR <= length <= self._limits.error_payload:
                raise self._violation(f"an error chunk of {length} bytes")
            return
        bounds = chunks.bounds(
            kind, pending.command, pending.length, self._style, self._limits.status_descriptors
        )
        if bounds is None:
            raise self._violation(f"a chunk of type {kind} in reply to {pending.command.name}")
        if length not in bounds:
            raise self._violation(f"a chunk of type {kind} with {length} bytes")
        if kind == ReplyType.NBD_REPLY_TYPE_NONE and not reply.done:
            raise self._violation("NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE")

    def _read_offset(self) -> bool:
        fields = self._inbox.unpack(UINT64)
        if fields is None or self._reply is None:
            return False
        pending = self._reply.pending
        (offset,) = fields
        self._fill(pending, offset, self._payload_length)
        start = offset - pending.offset
        target = pending.data[start : start + self._payload_length]
        self._expect(self._reply._replace(offset=offset), target)
        return True

    def _expect(self, reply: _Reply, target: memoryview) -> None:
        self._reply, self._payload, self._missing = reply, target, len(target)
        self._state = State.PAYLOAD

    def _read_payload(self) -> bool:
        if self._missing:
            start = len(self._payload) - self._missing
            self._missing -= self._inbox.move_to(self._payload[start:])
        if self._missing or self._reply is None:
            return False
        reply, payload = self._reply, self._payload
        self._reply, self._payload, self._state = None, EMPTY, State.HEADER
        try:
            self._take(reply, payload)
        except ValueError as error:
            raise self._violation(f"malformed reply: {error}") from error
        if reply.done:
            self._complete(reply.pending)
        return True

    # --- the chunks -------------------------------------------------------------------------------

    def _take(self, reply: _Reply, payload: memoryview) -> None:
        """Act on a complete message; raises ValueError when its payload is malformed."""
        pending, kind = reply.pending, reply.kind
        if kind is None or kind == ReplyType.NBD_REPLY_TYPE_OFFSET_DATA:
            self._events.append(DataReceived(pending.cookie, reply.offset, payload))
        elif kind & NBD_REPLY_TYPE_FLAG_ERROR:
            self._take_error(pending, kind, payload)
        elif kind == ReplyType.NBD_REPLY_TYPE_OFFSET_HOLE:
            self._take_hole(pending, payload)
        elif kind != ReplyType.NBD_REPLY_TYPE_NONE:
            self._take_status(pending, kind, payload)

    def _fill(self, pending: Pending, offset: int, length: int) -> None:
        """A content chunk: it must lie in the read, and touch nothing that was there before."""
        coverage = pending.coverage
        if coverage is None:
            coverage = pending.coverage = Coverage(pending.offset, pending.length)
        if not coverage.contains(offset, length):
            raise self._violation(f"bytes {offset} + {length}, outside the read")
        if not coverage.add(offset, length):
            raise self._violation(f"bytes {offset} + {length}, received before")
        if any(offset <= error < offset + length for error in pending.error_offsets):
            raise self._violation(f"bytes {offset} + {length}, after an error in them")
        if coverage.fragments > self._limits.read_fragments:
            raise self._violation("a read in too many pieces")
        pending.contents += 1
        if pending.contents > 1 and pending.flags & CommandFlag.NBD_CMD_FLAG_DF:
            raise self._violation("a second piece of a read that must not be split")

    def _take_hole(self, pending: Pending, payload: memoryview) -> None:
        offset, length = chunks.parse_hole(payload)
        self._fill(pending, offset, length)
        start = offset - pending.offset
        pending.data[start : start + length] = bytes(length)
        self._events.append(HoleReceived(pending.cookie, offset, length))

    def _take_error(self, pending: Pending, kind: int, payload: memoryview) -> None:
        value, message, offset = chunks.parse_error(kind, payload)
        pending.errors += 1
        if pending.errors > self._limits.error_chunks:
            raise self._violation("too many errors in one reply")
        if offset is not None:
            if not pending.offset <= offset < pending.offset + pending.length:
                raise self._violation(f"an error at {offset}, outside the request")
            pending.error_offsets.append(offset)
        if pending.error is None:
            pending.error = _request_error(pending, value, message, offset)
        self._events.append(ErrorReceived(pending.cookie, value, message, offset))

    def _take_status(self, pending: Pending, kind: int, payload: memoryview) -> None:
        one = bool(pending.flags & CommandFlag.NBD_CMD_FLAG_REQ_ONE)
        number, extents = chunks.parse_block_status(kind, payload, pending.length, one=one)
        context = pending.contexts.pop(number, None)
        if context is None:
            raise self._violation(f"the meta context {number}, unknown, not asked for, or twice")
        self._events.append(StatusReceived(pending.cookie, context, extents))

    def _complete(self, pending: Pending) -> None:
        """The reply ends: a success must be whole."""
        if pending.error is None:
            if pending.command is Command.NBD_CMD_READ and pending.chunked:
                filled = pending.coverage.filled if pending.coverage else 0
                if filled != pending.length:
                    raise self._violation(f"a read with {filled} of {pending.length} bytes")
            if pending.contexts:
                raise self._violation("a block status without all its contexts")
        del self._pending[pending.cookie]
        self._events.append(ReplyDone(pending.cookie, pending.error, pending.data))

    def _violation(self, message: str) -> RemoteProtocolError:
        self._state = State.CLOSED
        self._events.clear()
        return RemoteProtocolError(message, operation="receive reply")


def _request_error(
    pending: Pending, value: ErrorValue, message: str, offset: int | None = None
) -> RequestError:
    text = f"{pending.command.name} of {pending.length} bytes failed: {value.name}"
    if message:
        text += f": {message}"
    return RequestError(value, text, offset=pending.offset if offset is None else offset)


_STEPS: Final = {
    State.HEADER: ClientTransmission._read_header,
    State.OFFSET: ClientTransmission._read_offset,
    State.PAYLOAD: ClientTransmission._read_payload,
}
