"""The requests a client makes, and what it remembers of each until it is answered.

Nothing leaves that the server would refuse: a request is checked as the server's own gate does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.nbd.errors import LocalProtocolError
from vdisk.nbd.gate import Gate
from vdisk.nbd.session import HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import (
    EXTENDED_REPLY,
    EXTENDED_REQUEST,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REPLY_FLAG_DONE,
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
    ReplyType,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.nbd.coverage import Coverage
    from vdisk.nbd.errors import RequestError
    from vdisk.nbd.limits import Limits
    from vdisk.nbd.replies import Buffer

EMPTY: Final = memoryview(b"")


class Outgoing(NamedTuple):
    """A request to send: the buffers in order, without others in between."""

    cookie: int
    buffers: list[Buffer]


class Pending:
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
        self.data = EMPTY
        self.contexts: dict[int, MetaContext] = {}
        self.chunked = False
        self.contents = 0
        self.coverage: Coverage | None = None
        self.errors = 0
        self.error_offsets: list[int] = []
        self.error: RequestError | None = None


class ClientRequests(ABC):
    """What of a connection's client side makes requests.

    The methods that do raise LocalProtocolError for one the server would refuse: past the end,
    unaligned, larger than it takes, of a kind it does not offer.
    """

    def __init__(self, session: Session, limits: Limits) -> None:
        self.session = session
        self.gate = Gate(session, limits.payload)
        self._style = session.headers
        self._limits = limits
        self._pending: dict[int, Pending] = {}
        self._last_cookie = 0
        self._disconnecting = False

    @property
    @abstractmethod
    def wants_data(self) -> bool:
        """Whether replies can still arrive."""

    @property
    def unanswered(self) -> int:
        return len(self._pending)

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

    def _request(self, command: Command, flags: int, offset: int, length: int) -> Pending:
        """Check a request; nothing is counted as sent yet."""
        self._check_open()
        if len(self._pending) >= self._limits.requests_in_flight:
            raise LocalProtocolError(f"{len(self._pending)} requests are unanswered already")
        if not (0 <= offset < 2**64 and 0 <= length <= self._longest):
            raise LocalProtocolError(f"{offset} + {length} does not fit into a request")
        refusal = self.gate.check(command, flags, offset, length)
        if refusal is not None:
            raise LocalProtocolError(refusal[1], offset=offset, operation=command.name)
        return Pending(self._last_cookie + 1, command, flags, offset, length)

    @property
    def _longest(self) -> int:
        return 2**64 - 1 if self._style is HeaderStyle.EXTENDED else 2**32 - 1

    def _send(self, pending: Pending, length: int, payload_flag: int = 0) -> Outgoing:
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
        if self._disconnecting or not self.wants_data:
            raise LocalProtocolError("the connection is closed")

    # --- replies that are as expected -------------------------------------------------------------

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


def _fua(fua: bool) -> int:
    return CommandFlag.NBD_CMD_FLAG_FUA if fua else 0
