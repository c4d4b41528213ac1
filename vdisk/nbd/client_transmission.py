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
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.nbd import chunks
from vdisk.nbd._buffer import ReceiveBuffer
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
from vdisk.nbd.gate import Gate
from vdisk.nbd.limits import DEFAULT_LIMITS, Limits
from vdisk.nbd.session import HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import (
    EXTENDED_REPLY,
    EXTENDED_REQUEST,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_FLAG_ERROR,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    REQUEST,
    SIMPLE_REPLY,
    STRUCTURED_REPLY,
    UINT32,
    UINT64,
    Command,
    CommandFlag,
    ErrorValue,
    ReplyType,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.nbd.replies import Buffer


class State(IntEnum):  # looked up for every message: an IntEnum hashes faster
    HEADER = auto()
    OFFSET = auto()
    PAYLOAD = auto()
    CLOSED = auto()


class Outgoing(NamedTuple):
    """A request to send: the buffers in order, without others in between."""

    cookie: int
    buffers: list[Buffer]


_EMPTY: Final = memoryview(b"")


class _Pending:
    """A request that was sent, and what its reply has brought so far."""

    __slots__ = (
        "chunked",
        "command",
        "contents",
        "contexts",
        "cookie",
        "coverage",
        "data",
        "error",
        "error_offsets",
        "errors",
        "flags",
        "length",
        "offset",
    )

    def __init__(self, cookie: int, command: Command, flags: int, offset: int, length: int) -> None:
        self.cookie = cookie
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.data = _EMPTY
        self.contexts: dict[int, MetaContext] = {}
        self.chunked = False
        self.contents = 0
        self.coverage: Coverage | None = None
        self.errors = 0
        self.error_offsets: list[int] = []
        self.error: RequestError | None = None


class _Reply(NamedTuple):
    """The message being received: ``kind`` is ``None`` for the data of a simple reply.

    ``offset``: of the data in the export, where that is what the message brings.
    """

    pending: _Pending
    kind: int | None
    done: bool
    offset: int = 0


class ClientTransmission:
    """Client side of one connection's transmission phase; see the module for how to drive it.

    The methods that make requests raise LocalProtocolError for one the server would refuse: past
    the end, unaligned, larger than it takes, of a kind it does not offer.
    """

    def __init__(self, session: Session, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.session = session
        self.gate = Gate(session, limits.payload)
        self._style = session.headers
        self._limits = limits
        self._inbox = ReceiveBuffer(limits.receive_buffer)
        self._state = State.HEADER
        self._pending: dict[int, _Pending] = {}
        self._last_cookie = 0
        self._reply: _Reply | None = None
        self._payload_length = 0
        self._payload = _EMPTY
        self._missing = 0
        self._events: deque[ClientEvent] = deque()
        self._disconnecting = False
        self._eof = False

    # --- requests ---------------------------------------------------------------------------------

    def read(
        self,
        offset: int,
        length: int,
        *,
        into: bytearray | memoryview | None = None,
        dont_fragment: bool = False,
    ) -> Outgoing:
        """Read *length* bytes, into the start of *into* if given."""
        flags = CommandFlag.NBD_CMD_FLAG_DF if dont_fragment else 0
        pending = self._request(Command.NBD_CMD_READ, flags, offset, length)
        target = memoryview(bytearray(length) if into is None else into)
        if len(target) < length or target.readonly:
            raise LocalProtocolError(f"a buffer of {len(target)} bytes for a read of {length}")
        pending.data = target[:length]
        return self._send(pending, length)

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Outgoing:
        pending = self._request(Command.NBD_CMD_WRITE, _fua(fua), offset, len(data))
        outgoing = self._send(pending, len(data), CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN)
        outgoing.buffers.append(data)
        return outgoing

    def flush(self) -> Outgoing:
        """Make every write that was answered before durable."""
        return self._send(self._request(Command.NBD_CMD_FLUSH, 0, 0, 0), 0)

    def trim(self, offset: int, length: int, *, fua: bool = False) -> Outgoing:
        return self._send(self._request(Command.NBD_CMD_TRIM, _fua(fua), offset, length), length)

    def cache(self, offset: int, length: int) -> Outgoing:
        return self._send(self._request(Command.NBD_CMD_CACHE, 0, offset, length), length)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fast_zero: bool = False,
        fua: bool = False,
    ) -> Outgoing:
        """*fast_zero*: fail with NBD_ENOTSUP rather than be as slow as a write."""
        flags = _fua(fua)
        if no_hole:
            flags |= CommandFlag.NBD_CMD_FLAG_NO_HOLE
        if fast_zero:
            flags |= CommandFlag.NBD_CMD_FLAG_FAST_ZERO
        pending = self._request(Command.NBD_CMD_WRITE_ZEROES, flags, offset, length)
        return self._send(pending, length)

    def block_status(
        self, offset: int, length: int, *, one: bool = False, contexts: Iterable[int] = ()
    ) -> Outgoing:
        """Ask for extents: of all meta contexts, or of those with the ids in *contexts*.

        *one*: a single extent of each, not beyond the range.
        """
        ids = tuple(contexts)
        refusal = self.gate.check_contexts(ids)
        if refusal is not None:
            raise LocalProtocolError(refusal[1])
        flags = CommandFlag.NBD_CMD_FLAG_REQ_ONE if one else 0
        pending = self._request(Command.NBD_CMD_BLOCK_STATUS, flags, offset, length)
        pending.contexts = {
            context.id: context
            for context in self.session.meta_contexts
            if not ids or context.id in ids
        }
        if not ids:
            return self._send(pending, length)
        offered = self.session.export.flags
        if TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD not in offered:
            raise LocalProtocolError("the server cannot choose among meta contexts")
        payload = UINT64.pack(length) + b"".join(map(UINT32.pack, ids))
        outgoing = self._send(pending, len(payload), CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN)
        outgoing.buffers.append(payload)
        return outgoing

    def disconnect(self) -> list[Buffer]:
        """NBD_CMD_DISC: no request may follow; replies to earlier ones still arrive."""
        self._check_open()
        self._disconnecting = True
        return [self._header(Command.NBD_CMD_DISC, 0, 0, 0, 0)]

    def _request(self, command: Command, flags: int, offset: int, length: int) -> _Pending:
        """Check a request; nothing is counted as sent yet."""
        self._check_open()
        if len(self._pending) >= self._limits.requests_in_flight:
            raise LocalProtocolError(f"{len(self._pending)} requests are unanswered already")
        if not (0 <= offset < 2**64 and 0 <= length <= self._longest):
            raise LocalProtocolError(f"{offset} + {length} does not fit into a request")
        refusal = self.gate.check(command, flags, offset, length)
        if refusal is not None:
            raise LocalProtocolError(refusal[1], offset=offset, operation=command.name)
        return _Pending(self._last_cookie + 1, command, flags, offset, length)

    @property
    def _longest(self) -> int:
        return 2**64 - 1 if self._style is HeaderStyle.EXTENDED else 2**32 - 1

    def _send(self, pending: _Pending, length: int, payload_flag: int = 0) -> Outgoing:
        """Number the request and build its header; *payload_flag* is for extended headers only."""
        self._last_cookie = pending.cookie
        self._pending[pending.cookie] = pending
        flags = pending.flags
        if self._style is HeaderStyle.EXTENDED:
            flags |= payload_flag
        header = self._header(pending.command, flags, pending.cookie, pending.offset, length)
        return Outgoing(pending.cookie, [header])

    def _header(self, command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
        if self._style is HeaderStyle.EXTENDED:
            magic = NBD_EXTENDED_REQUEST_MAGIC
            return EXTENDED_REQUEST.pack(magic, flags, command, cookie, offset, length)
        return REQUEST.pack(NBD_REQUEST_MAGIC, flags, command, cookie, offset, length)

    def _check_open(self) -> None:
        if self._disconnecting or self._eof or self._state is State.CLOSED:
            raise LocalProtocolError("the connection is closed")

    # --- driving ----------------------------------------------------------------------------------

    @property
    def unanswered(self) -> int:
        return len(self._pending)

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

    def plain_replies(self, cookie: int) -> tuple[bytes, ...]:
        """The headers with which most servers say that a request succeeded.

        Those of a read are followed by its data, and by nothing else; the reply to any other
        request is one of them.  For who wants to know the usual reply without taking it apart:
        it is then not given to the machine, which is told by :meth:`answered`.
        """
        pending = self._pending[cookie]
        simple = SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, cookie)
        if self._style is HeaderStyle.SIMPLE:
            return (simple,)
        reads = pending.command is Command.NBD_CMD_READ
        kind = ReplyType.NBD_REPLY_TYPE_OFFSET_DATA if reads else ReplyType.NBD_REPLY_TYPE_NONE
        length = 8 + pending.length if reads else 0
        offset = UINT64.pack(pending.offset) if reads else b""
        done = NBD_REPLY_FLAG_DONE
        if self._style is HeaderStyle.EXTENDED:
            magic = NBD_EXTENDED_REPLY_MAGIC
            return (
                EXTENDED_REPLY.pack(magic, done, kind, cookie, pending.offset, length) + offset,
            )
        chunk = STRUCTURED_REPLY.pack(NBD_STRUCTURED_REPLY_MAGIC, done, kind, cookie, length)
        return (chunk + offset,) if reads else (chunk, simple)

    def answered(self, cookie: int) -> None:
        """One of :meth:`plain_replies` has come, a read's data in its buffer."""
        del self._pending[cookie]

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

    def _find(self, cookie: int) -> _Pending:
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
        self._reply, self._payload, self._state = None, _EMPTY, State.HEADER
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

    def _fill(self, pending: _Pending, offset: int, length: int) -> None:
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

    def _take_hole(self, pending: _Pending, payload: memoryview) -> None:
        offset, length = chunks.parse_hole(payload)
        self._fill(pending, offset, length)
        start = offset - pending.offset
        pending.data[start : start + length] = bytes(length)
        self._events.append(HoleReceived(pending.cookie, offset, length))

    def _take_error(self, pending: _Pending, kind: int, payload: memoryview) -> None:
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

    def _take_status(self, pending: _Pending, kind: int, payload: memoryview) -> None:
        one = bool(pending.flags & CommandFlag.NBD_CMD_FLAG_REQ_ONE)
        number, extents = chunks.parse_block_status(kind, payload, pending.length, one=one)
        context = pending.contexts.pop(number, None)
        if context is None:
            raise self._violation(f"the meta context {number}, unknown, not asked for, or twice")
        self._events.append(StatusReceived(pending.cookie, context, extents))

    def _complete(self, pending: _Pending) -> None:
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


def _fua(fua: bool) -> int:
    return CommandFlag.NBD_CMD_FLAG_FUA if fua else 0


def _request_error(
    pending: _Pending, value: ErrorValue, message: str, offset: int | None = None
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
