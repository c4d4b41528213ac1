"""What the state machines tell the program that drives them.

Handshake, server side: :class:`ExportsWanted`, :class:`ExportWanted` (questions the program
answers), :class:`TlsWanted`, :class:`SessionStarted`, :class:`NegotiationAborted`.
Handshake, client side: :class:`Greeted`, :class:`OptionDone`, :class:`TlsWanted`,
:class:`SessionStarted`.
Transmission, server side: :class:`Request`, :class:`InvalidRequest`, :class:`Disconnected`.
Transmission, client side: :class:`DataReceived`, :class:`HoleReceived`,
:class:`StatusReceived`, :class:`ErrorReceived`, :class:`ReplyDone`.

Those of the transmission phase are named tuples: one is made for every request, and costs a
quarter of what a frozen dataclass does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from vdisk.nbd.wire import CommandFlag, ErrorValue, Option, OptionReply

if TYPE_CHECKING:
    from vdisk.nbd.errors import RequestError
    from vdisk.nbd.session import ExportInfo, HandshakeStyle, MetaContext, Session

# --- handshake ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExportsWanted:
    """NBD_OPT_LIST: answer with ``send_exports`` or ``refuse``."""


@dataclass(frozen=True, slots=True)
class ExportWanted:
    """An option that names an export: answer with ``send_export`` or ``refuse``.

    ``option`` tells what for: NBD_OPT_EXPORT_NAME and NBD_OPT_GO start transmission; NBD_OPT_INFO
    and the two META_CONTEXT options only ask.  The empty ``name`` is the default export.
    """

    name: str
    option: Option


@dataclass(frozen=True, slots=True)
class TlsWanted:
    """Send what ``data_to_send`` holds, wrap the connection in TLS, then call ``tls_started``."""


@dataclass(frozen=True, slots=True)
class NegotiationAborted:
    """The handshake ended without a session; ``reason`` says why, for a log.

    The client left (NBD_OPT_ABORT or a closed connection), or its NBD_OPT_EXPORT_NAME was refused.
    Send what ``data_to_send`` holds (the client may no longer listen), then close.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """The handshake succeeded; ``trailing_data`` of the machine belongs to the next one."""

    session: Session


@dataclass(frozen=True, slots=True)
class Greeted:
    """The client knows the server's kind.

    Fixed newstyle: it may send options, one at a time.  Newstyle: only NBD_OPT_EXPORT_NAME.
    Oldstyle: nothing, SessionStarted follows.
    """

    style: HandshakeStyle


@dataclass(frozen=True, slots=True)
class OptionDone:
    """The server's whole answer to an option.

    ``reply`` is NBD_REP_ACK or an error (an unknown one stays a number), ``message`` the server's
    text for it.  Filled by option: ``exports`` (name, description) by LIST; ``export`` by INFO;
    ``contexts`` by the two META_CONTEXT options (the ids mean something after SET only).
    """

    option: Option
    reply: OptionReply | int
    message: str = ""
    exports: tuple[tuple[str, str], ...] = ()
    export: ExportInfo | None = None
    contexts: tuple[MetaContext, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.reply == OptionReply.NBD_REP_ACK


# --- transmission, server side --------------------------------------------------------------------


class Request(NamedTuple):
    """A request that passed the :class:`~vdisk.nbd.gate.Gate`: do it, and reply.

    ``command`` is a Command; in an InvalidRequest it may be any number.
    ``data``: the payload of NBD_CMD_WRITE, empty otherwise; the program may keep it.
    ``context_ids``: which contexts NBD_CMD_BLOCK_STATUS asks for; all where none are named.
    ``serial`` numbers the requests of a connection: cookies are the client's and may repeat.
    """

    command: int
    flags: CommandFlag
    cookie: int
    offset: int
    length: int
    data: memoryview = memoryview(b"")
    context_ids: tuple[int, ...] = ()
    serial: int = 0

    @property
    def fua(self) -> bool:
        return CommandFlag.NBD_CMD_FLAG_FUA in self.flags


class InvalidRequest(NamedTuple):
    """A request to refuse: pass it on to ``reply_error``, or disconnect."""

    request: Request
    error: ErrorValue
    message: str


class Disconnected(NamedTuple):
    """No more requests will come.  ``clean``: the client said so with NBD_CMD_DISC.

    Finish what is unanswered; after a clean end nothing more is sent.
    """

    clean: bool


# --- transmission, client side --------------------------------------------------------------------


class DataReceived(NamedTuple):
    """Bytes of a read, also in place in its buffer; ``offset`` is that in the export."""

    cookie: int
    offset: int
    data: memoryview


class HoleReceived(NamedTuple):
    """A part of a read that is zeroes; they are also in place in its buffer."""

    cookie: int
    offset: int
    length: int


class StatusReceived(NamedTuple):
    """The extents of one context, from the request's offset on: (length, status flags) each."""

    cookie: int
    context: MetaContext
    extents: tuple[tuple[int, int], ...]


class ErrorReceived(NamedTuple):
    """An error chunk.  ``offset``: where in the export, if the server knows.

    Unless every error of a reply has an offset, nothing of its data is valid.
    """

    cookie: int
    error: ErrorValue
    message: str
    offset: int | None


class ReplyDone(NamedTuple):
    """The reply is complete; the cookie is free again.  ``error`` is its first, or ``None``.

    ``data``: for NBD_CMD_READ the buffer that was filled, empty otherwise.
    """

    cookie: int
    error: RequestError | None
    data: memoryview


ServerHandshakeEvent: TypeAlias = (
    ExportsWanted | ExportWanted | TlsWanted | NegotiationAborted | SessionStarted
)
ClientHandshakeEvent: TypeAlias = Greeted | OptionDone | TlsWanted | SessionStarted
ServerEvent: TypeAlias = Request | InvalidRequest | Disconnected
ClientEvent: TypeAlias = DataReceived | HoleReceived | StatusReceived | ErrorReceived | ReplyDone
