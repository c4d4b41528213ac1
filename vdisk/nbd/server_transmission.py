"""The server's half of the transmission phase: requests in, replies out, in any order.

::

    machine = ServerTransmission(session)
    machine.receive_data(negotiation.trailing_data)
    while True:
        match machine.next_event():
            case None:
                machine.receive_data(recv())       # only while machine.wants_data
            case Request(command=Command.NBD_CMD_READ) as request:
                sendmsg(machine.reply_read(request, read(request.offset, request.length)))
            case Request() as request:
                sendmsg(machine.reply_success(request))
            case InvalidRequest(request, error, message):
                sendmsg(machine.reply_error(request, error, message))
            case Disconnected():
                break                              # finish what is unanswered, then close

Every reply method returns buffers to send one after the other, without others in between.  They may
be called at any later time and in any order; each request is answered once.

A large payload need not pass through a buffer of the program: while ``payload_buffer`` is not
``None``, receive into it and report with ``payload_received``.

The states: HEADER -> PAYLOAD or SKIP -> HEADER; HEADER -> CLOSED at NBD_CMD_DISC, at the end of
the input, on a violation.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.nbd import replies
from vdisk.nbd._buffer import ReceiveBuffer
from vdisk.nbd.coverage import Coverage
from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError
from vdisk.nbd.events import Disconnected, InvalidRequest, Request, ServerEvent
from vdisk.nbd.gate import Gate, permitted_error
from vdisk.nbd.limits import DEFAULT_LIMITS, Limits
from vdisk.nbd.session import HeaderStyle, Session
from vdisk.nbd.wire import (
    EXTENDED_REQUEST,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REQUEST_MAGIC,
    REQUEST,
    UINT32,
    UINT64,
    Command,
    CommandFlag,
    ErrorValue,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vdisk.nbd.gate import Refusal
    from vdisk.nbd.replies import Buffer


class State(IntEnum):  # looked up for every message: an IntEnum hashes faster
    HEADER = auto()
    PAYLOAD = auto()
    SKIP = auto()
    CLOSED = auto()


class _Header(NamedTuple):
    """A request header, before anything of it was checked."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int


class _Reading:
    """A read that is answered in several chunks, so far."""

    def __init__(self, request: Request) -> None:
        self.coverage = Coverage(request.offset, request.length)
        self.failed = False


_EMPTY: Final = memoryview(b"")
_COMMANDS: Final = {int(command): command for command in Command}
_FLAGS: Final = tuple(CommandFlag(number) for number in range(64))
_PAYLOAD_LEN: Final = int(CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN)


class ServerTransmission:
    """Server side of one connection's transmission phase; see the module for how to drive it.

    ``allocate(length)`` gives the buffer for a payload, at least that long and writable: a program
    can hand out parts of a pool, or look at ``payload_wanted`` and stop reading first.
    """

    def __init__(
        self,
        session: Session,
        *,
        limits: Limits = DEFAULT_LIMITS,
        allocate: Callable[[int], bytearray | memoryview] = bytearray,
    ) -> None:
        self.session = session
        self.gate = Gate(session, limits.payload)
        self._style = session.headers
        self._limits = limits
        self._allocate = allocate
        self._extended = session.headers is HeaderStyle.EXTENDED
        self._layout = EXTENDED_REQUEST if self._extended else REQUEST
        self._magic = NBD_EXTENDED_REQUEST_MAGIC if self._extended else NBD_REQUEST_MAGIC
        self._inbox = ReceiveBuffer(limits.receive_buffer)
        self._state = State.HEADER
        self._header: _Header | None = None
        self._refusal: Refusal | None = None
        self._payload = _EMPTY
        self._missing = 0
        self._serial = 0
        self._unanswered: set[int] = set()
        self._readings: dict[int, _Reading] = {}
        self._eof = False
        self._disconnected: Disconnected | None = None

    # --- driving ----------------------------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        """False once the client disconnected, and while too many requests are unanswered.

        A program that goes on reading then would only fill memory.  After each reply, take the
        events again: some may have been held back.
        """
        if self._state is State.HEADER:
            return not self._eof and len(self._unanswered) < self._limits.requests_in_flight
        return not self._eof and self._state is not State.CLOSED

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte received begins a request: :mod:`vdisk.nbd.bulk` may parse it."""
        return self._state is State.HEADER and not self._inbox

    @property
    def unanswered(self) -> int:
        """How many requests have been handed out and not been answered."""
        return len(self._unanswered)

    @property
    def payload_wanted(self) -> int:
        """Bytes still missing of the payload being received."""
        return self._missing if self._state is State.PAYLOAD else 0

    @property
    def payload_buffer(self) -> memoryview | None:
        """Where the next bytes of a payload belong, or ``None`` when a header is next."""
        if self._state is not State.PAYLOAD or self._inbox or not self._missing:
            return None
        return self._payload[len(self._payload) - self._missing :]

    def payload_received(self, count: int) -> None:
        """*count* bytes were received into ``payload_buffer``."""
        if not 0 <= count <= self.payload_wanted:
            raise LocalProtocolError(f"{count} bytes of payload, {self.payload_wanted} missing")
        self._missing -= count

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        if self._state is State.CLOSED:
            return  # a client sends nothing after NBD_CMD_DISC; if it does, nobody listens
        target = self.payload_buffer
        if target is not None:
            count = min(len(target), len(data))
            view = memoryview(data)
            target[:count] = view[:count]
            self._missing -= count
            data = view[count:]
        self._inbox.append(data)

    def receive_eof(self) -> None:
        """The client closed its side of the connection."""
        self._eof = True

    def next_event(self) -> ServerEvent | None:
        """The next event, or ``None`` while input or answers are missing.

        Raises RemoteProtocolError when the client broke the protocol.
        """
        event: ServerEvent | None = None
        while event is None and self._state is not State.CLOSED:
            before = self._state
            event = _STEPS[before](self)
            if event is None and self._state is before:
                return self._at_eof() if self._eof and not self._paused else None
        if event is None:
            event, self._disconnected = self._disconnected, None
        return event

    # --- parsing ----------------------------------------------------------------------------------

    @property
    def _paused(self) -> bool:
        return (
            self._state is State.HEADER and len(self._unanswered) >= self._limits.requests_in_flight
        )

    def _read_header(self) -> ServerEvent | None:
        if self._paused:
            return None
        fields = self._inbox.unpack(self._layout)
        if fields is None:
            return None
        magic, flags, command, cookie, offset, length = fields
        if magic != self._magic:
            raise self._violation(f"a request with the magic {magic:#x}")
        if command == Command.NBD_CMD_DISC:
            self._close(Disconnected(clean=True))
            return None
        header = _Header(command, flags, cookie, offset, length)
        return self._begin(header, self._payload_length(header))

    def _payload_length(self, header: _Header) -> int:
        """How many bytes follow the header.

        A write is always followed by its data.  With extended headers it must say so by
        NBD_CMD_FLAG_PAYLOAD_LEN, but the client of QEMU (10.0) does not: like QEMU's own server,
        do without.
        """
        flagged = self._extended and header.flags & _PAYLOAD_LEN
        return header.length if flagged or header.command == Command.NBD_CMD_WRITE else 0

    def _begin(self, header: _Header, payload_length: int) -> ServerEvent | None:
        """Check what a header says, before anything is allocated for its payload."""
        if payload_length > max(self._limits.skipped, self.gate.max_payload):
            raise self._violation(f"a request with {payload_length} bytes of payload")
        refusal = self._check(header)
        if refusal is not None and not payload_length:
            return self._refuse(header, refusal)
        if not payload_length:
            return self._admit(header, header.length)
        self._header, self._refusal, self._missing = header, refusal, payload_length
        if refusal is not None:
            self._state = State.SKIP
        else:
            self._payload = memoryview(self._allocate(payload_length))[:payload_length]
            self._state = State.PAYLOAD
        return None

    def _check(self, header: _Header) -> Refusal | None:
        command, flags, _, offset, length = header
        if self._extended:
            payload_length = self._payload_length(header)
            refusal = self._check_payload_form(command, payload_length)
            if refusal is not None:
                return refusal
            flags &= ~_PAYLOAD_LEN
            if payload_length and command == Command.NBD_CMD_BLOCK_STATUS:
                return None  # range and contexts are in the payload
        refusal = self.gate.check(command, flags, offset, length)
        if refusal is None and command == Command.NBD_CMD_BLOCK_STATUS:
            refusal = self.gate.check_contexts(())
        return refusal

    def _check_payload_form(self, command: int, payload_length: int) -> Refusal | None:
        """Extended headers: which commands may carry a payload, and how long."""
        if command == Command.NBD_CMD_WRITE or not payload_length:
            return None
        offered = TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD in self.session.export.flags
        if command != Command.NBD_CMD_BLOCK_STATUS or not offered:
            return ErrorValue.NBD_EINVAL, f"command {command} takes no payload"
        ids, rest = divmod(payload_length - UINT64.size, UINT32.size)
        if rest or not 1 <= ids <= self._limits.status_ids:
            return ErrorValue.NBD_EINVAL, f"a block status payload of {payload_length} bytes"
        return None

    def _read_payload(self) -> ServerEvent | None:
        if self._missing:
            start = len(self._payload) - self._missing
            self._missing -= self._inbox.move_to(self._payload[start:])
        if self._missing or self._header is None:
            return None
        header, payload = self._header, self._payload
        self._header, self._payload, self._state = None, _EMPTY, State.HEADER
        if header.command == Command.NBD_CMD_WRITE:
            return self._admit(header, header.length, payload)
        return self._admit_block_status(header, payload)

    def _admit_block_status(self, header: _Header, payload: memoryview) -> ServerEvent:
        (length,) = UINT64.unpack_from(payload)
        ids = tuple(number for (number,) in UINT32.iter_unpack(payload[UINT64.size :]))
        flags = header.flags & ~_PAYLOAD_LEN
        refusal = self.gate.check(header.command, flags, header.offset, length)
        refusal = refusal or self.gate.check_contexts(ids)
        if refusal is not None:
            return self._refuse(header, refusal)
        return self._admit(header, length, context_ids=ids)

    def _skip_payload(self) -> ServerEvent | None:
        self._missing -= self._inbox.skip(self._missing)
        if self._missing or self._header is None or self._refusal is None:
            return None
        header, refusal = self._header, self._refusal
        self._header, self._refusal, self._state = None, None, State.HEADER
        return self._refuse(header, refusal)

    def _admit(
        self,
        header: _Header,
        length: int,
        data: memoryview = _EMPTY,
        context_ids: tuple[int, ...] = (),
    ) -> Request:
        flags = header.flags & ~_PAYLOAD_LEN if self._extended else header.flags
        self._serial += 1
        self._unanswered.add(self._serial)
        return Request(
            _COMMANDS.get(header.command, header.command),
            _FLAGS[flags] if flags < len(_FLAGS) else CommandFlag(flags),
            header.cookie,
            header.offset,
            length,
            data,
            context_ids,
            self._serial,
        )

    def _refuse(self, header: _Header, refusal: Refusal) -> InvalidRequest:
        return InvalidRequest(self._admit(header, header.length), *refusal)

    def _at_eof(self) -> Disconnected:
        if not self.at_boundary:
            raise self._violation("the connection ended in the middle of a request")
        self._state = State.CLOSED
        return Disconnected(clean=False)

    def _close(self, event: Disconnected) -> None:
        self._state = State.CLOSED
        self._disconnected = event

    def _violation(self, message: str) -> RemoteProtocolError:
        self._state = State.CLOSED
        return RemoteProtocolError(message, operation="receive request")

    # --- replies ----------------------------------------------------------------------------------

    def reply_success(self, request: Request) -> list[Buffer]:
        """A write, flush, trim, cache or write zeroes is done."""
        if request.command in (Command.NBD_CMD_READ, Command.NBD_CMD_BLOCK_STATUS):
            raise LocalProtocolError("this command is answered with data")
        self._finish(request)
        return replies.success(self._style, request)

    def reply_error(
        self, request: Request, error: ErrorValue, message: str = "", *, offset: int | None = None
    ) -> list[Buffer]:
        """The request failed, and nothing more is said about it; *offset*: where in the export."""
        if offset is not None and not request.offset <= offset < request.offset + request.length:
            raise LocalProtocolError(f"an error at {offset}, outside the request")
        self._finish(request)
        value = permitted_error(request.command, request.flags, error)
        return replies.error_reply(self._style, request, value, message, offset=offset)

    def reply_read(self, request: Request, data: Buffer) -> list[Buffer]:
        """All bytes of a read, in one message."""
        self._check_command(request, Command.NBD_CMD_READ)
        if len(data) != request.length or request.serial in self._readings:
            raise LocalProtocolError(f"{len(data)} bytes for a read of {request.length}")
        self._finish(request)
        return replies.read_data(self._style, request, request.offset, data, done=True)

    def can_split(self, request: Request) -> bool:
        """Whether a read may be answered in chunks: the ``read_...`` methods."""
        dont_fragment = request.flags & CommandFlag.NBD_CMD_FLAG_DF
        return self._style is not HeaderStyle.SIMPLE and not dont_fragment

    def read_data(
        self, request: Request, offset: int, data: Buffer, *, done: bool = False
    ) -> list[Buffer]:
        """Some bytes of a read, in any order; *done* when they complete it."""
        self._fill(request, offset, len(data), done=done)
        return replies.read_data(self._style, request, offset, data, done=done)

    def read_hole(
        self, request: Request, offset: int, length: int, *, done: bool = False
    ) -> list[Buffer]:
        """A part of a read that is zeroes."""
        self._fill(request, offset, length, done=done)
        return replies.read_hole(self._style, request, offset, length, done=done)

    def read_error(
        self, request: Request, offset: int, error: ErrorValue, message: str = ""
    ) -> list[Buffer]:
        """A part of a read failed at *offset*; others may follow, then ``read_done``."""
        reading = self._reading(request)
        if not reading.coverage.contains(offset, 1):
            raise LocalProtocolError(f"an error at {offset}, outside the read")
        reading.failed = True
        value = permitted_error(request.command, request.flags, error)
        return replies.error_reply(self._style, request, value, message, offset=offset, done=False)

    def read_done(self, request: Request) -> list[Buffer]:
        """The end of a read whose last chunk was not flagged done."""
        self._complete(request, self._reading(request))
        return replies.success(self._style, request)

    def reply_block_status(
        self, request: Request, statuses: Mapping[int, Iterable[tuple[int, int]]]
    ) -> list[Buffer]:
        """The extents of each context asked for: context id -> (length, status flags) each.

        The extents begin at the request's offset and may go beyond its end; what the reply cannot
        hold is left out (the client asks again from there).
        """
        self._check_command(request, Command.NBD_CMD_BLOCK_STATUS)
        known = {context.id for context in self.session.meta_contexts}
        if statuses.keys() != (set(request.context_ids) or known):
            raise LocalProtocolError("not the meta contexts the request asks for")
        fitted = {
            number: replies.fit_extents(
                self._style, request, extents, self._limits.status_descriptors
            )
            for number, extents in statuses.items()
        }
        if not all(fitted.values()):
            raise LocalProtocolError("a context without extents")
        self._finish(request)
        last = next(reversed(fitted))
        buffers: list[Buffer] = []
        for number, extents in fitted.items():
            done = number == last
            buffers += replies.block_status(self._style, request, number, extents, done=done)
        return buffers

    def _check_command(self, request: Request, command: Command) -> None:
        if request.command != command:
            raise LocalProtocolError(f"this answers {command.name} only")

    def _finish(self, request: Request) -> None:
        if request.serial not in self._unanswered:
            raise LocalProtocolError("the request was answered already")
        self._unanswered.remove(request.serial)
        self._readings.pop(request.serial, None)

    def _reading(self, request: Request) -> _Reading:
        self._check_command(request, Command.NBD_CMD_READ)
        if not self.can_split(request):
            raise LocalProtocolError("this read is answered in one piece, by reply_read")
        if request.serial not in self._unanswered:
            raise LocalProtocolError("the request was answered already")
        return self._readings.setdefault(request.serial, _Reading(request))

    def _fill(self, request: Request, offset: int, length: int, *, done: bool) -> None:
        reading = self._reading(request)
        inside = length > 0 and reading.coverage.contains(offset, length)
        if not inside or not reading.coverage.add(offset, length):
            raise LocalProtocolError(f"{offset} + {length} is outside the read or sent already")
        if done:
            self._complete(request, reading)

    def _complete(self, request: Request, reading: _Reading) -> None:
        if not (reading.coverage.complete or reading.failed):
            raise LocalProtocolError("a read ends with bytes missing and no error")
        self._finish(request)


_STEPS: Final = {
    State.HEADER: ServerTransmission._read_header,
    State.PAYLOAD: ServerTransmission._read_payload,
    State.SKIP: ServerTransmission._skip_payload,
}
