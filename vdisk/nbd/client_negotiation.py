"""The client's half of the handshake, one option at a time.

The machine sends an option when it is told to and turns the server's replies into one
:class:`~vdisk.nbd.events.OptionDone`.  *Which* options, in what order and with which way out
when a server does not know one, is :mod:`vdisk.nbd.connect`'s matter.

The states::

    GREETING --newstyle--> READY <--replied-- REPLY <-> REPLY_DATA
        |                    | option sent ---^   | NBD_OPT_GO granted --> TRANSMISSION
        |                    | NBD_OPT_EXPORT_NAME sent --> EXPORT --> TRANSMISSION
        |                    <--secured-- TLS <-- NBD_OPT_STARTTLS granted
        +--oldstyle--> OLDSTYLE --> TRANSMISSION              any --ended--> CLOSED
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vdisk.errors import VdiskError
from vdisk.nbd._exchange import DATA, Exchange, OptionData, encode
from vdisk.nbd._haggling import Haggling
from vdisk.nbd.errors import LocalProtocolError, NegotiationError
from vdisk.nbd.events import ClientHandshakeEvent, Greeted, OptionDone, SessionStarted, TlsWanted
from vdisk.nbd.limits import DEFAULT_LIMITS, Limits
from vdisk.nbd.session import (
    ExportInfo,
    HandshakeStyle,
    HeaderStyle,
    Session,
)
from vdisk.nbd.wire import (
    CLIENT_FLAGS,
    CLISERV_MAGIC,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    GREETING,
    GREETING_MAGICS,
    IHAVEOPT,
    NBD_REP_FLAG_ERROR,
    NBD_REP_MAGIC,
    NBDMAGIC,
    OLDSTYLE_EXPORT,
    OPTION_HEADER,
    OPTION_REPLY_HEADER,
    ClientFlag,
    HandshakeFlag,
    Option,
    OptionReply,
    TransmissionFlag,
    decode_string,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class State(Enum):
    GREETING = auto()
    OLDSTYLE = auto()
    READY = auto()
    REPLY = auto()
    REPLY_DATA = auto()
    EXPORT = auto()
    TLS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class Trigger(Enum):
    OLDSTYLE_MAGIC = auto()
    NEWSTYLE_MAGIC = auto()
    OPTION_SENT = auto()
    EXPORT_NAME_SENT = auto()
    REPLY_HEADER = auto()
    INTERMEDIATE_REPLY = auto()
    FINAL_REPLY = auto()
    TLS_GRANTED = auto()
    SECURED = auto()
    EXPORT_GRANTED = auto()


TRANSITIONS: Final = {
    (State.GREETING, Trigger.OLDSTYLE_MAGIC): State.OLDSTYLE,
    (State.GREETING, Trigger.NEWSTYLE_MAGIC): State.READY,
    (State.OLDSTYLE, Trigger.EXPORT_GRANTED): State.TRANSMISSION,
    (State.READY, Trigger.OPTION_SENT): State.REPLY,
    (State.READY, Trigger.EXPORT_NAME_SENT): State.EXPORT,
    (State.EXPORT, Trigger.EXPORT_GRANTED): State.TRANSMISSION,
    (State.REPLY, Trigger.REPLY_HEADER): State.REPLY_DATA,
    (State.REPLY_DATA, Trigger.INTERMEDIATE_REPLY): State.REPLY,
    (State.REPLY_DATA, Trigger.FINAL_REPLY): State.READY,
    (State.REPLY_DATA, Trigger.TLS_GRANTED): State.TLS,
    (State.REPLY_DATA, Trigger.EXPORT_GRANTED): State.TRANSMISSION,
    (State.TLS, Trigger.SECURED): State.READY,
}
"""Any state also goes to CLOSED: after NBD_OPT_ABORT, at the end of the input, on a violation."""


class ClientNegotiation(Haggling[State, Trigger, ClientHandshakeEvent]):
    """Client side of one connection's handshake; drive it like the server's."""

    transitions = TRANSITIONS
    deaf = frozenset((State.TLS, State.CLOSED))

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits, State.GREETING, State.CLOSED, Trigger.SECURED)
        self._style = HandshakeStyle.FIXED_NEWSTYLE
        self._client_flags = ClientFlag(0)
        self._exchange: Exchange | None = None
        self._reply = 0
        self._length = 0
        self._eof = False

    # --- driving ----------------------------------------------------------------------------------

    @property
    def style(self) -> HandshakeStyle:
        return self._style

    @property
    def fixed_newstyle(self) -> bool:
        """Whether the server takes options other than NBD_OPT_EXPORT_NAME."""
        return self._style is HandshakeStyle.FIXED_NEWSTYLE

    @property
    def headers(self) -> HeaderStyle:
        """The best style negotiated so far."""
        return self._headers

    @property
    def wants_data(self) -> bool:
        return self._state in _STEPS and not self._eof

    def receive_eof(self) -> None:
        """The server closed the connection: ``next_event`` will say what that means."""
        self._eof = True

    def next_event(self) -> ClientHandshakeEvent | None:
        """The next event, or ``None`` while input or an option to send is missing.

        Raises RemoteProtocolError when the server broke the protocol, and NegotiationError when it
        closed the connection to refuse NBD_OPT_EXPORT_NAME.
        """
        while self._event is None:
            step = _STEPS.get(self._state)
            if step is None or not step(self):
                if self._eof:
                    self._end()
                break
        event, self._event = self._event, None
        return event

    def tls_started(self) -> None:
        super().tls_started()
        self._event = OptionDone(Option.NBD_OPT_STARTTLS, OptionReply.NBD_REP_ACK)

    def send(self, option: Option, data: OptionData = None) -> None:
        """Send an option; OptionDone, or another event named there, follows.

        *data*: the export name for NBD_OPT_EXPORT_NAME, an ExportQuery for INFO and GO, a
        MetaContextQuery for the META_CONTEXT options, ``None`` for the others.
        After NBD_OPT_EXPORT_NAME or GO: SessionStarted.  After NBD_OPT_STARTTLS: TlsWanted.
        """
        self._check_option(option, data)
        encoded = encode(data)
        naming = option is Option.NBD_OPT_EXPORT_NAME
        self._advance(Trigger.EXPORT_NAME_SENT if naming else Trigger.OPTION_SENT)
        self._exchange = Exchange(option, data)
        if option is Option.NBD_OPT_SET_META_CONTEXT:
            self._contexts = ()  # even where the server will refuse
        self._outbox.append(OPTION_HEADER.pack(IHAVEOPT, option, len(encoded)) + encoded)

    def _check_option(self, option: Option, data: OptionData) -> None:
        if not isinstance(data, DATA.get(option, type(None))):
            raise LocalProtocolError(f"wrong data for {option.name}")
        if option is not Option.NBD_OPT_EXPORT_NAME and not self.fixed_newstyle:
            raise LocalProtocolError(f"{option.name} needs a fixed newstyle server")
        if option is Option.NBD_OPT_EXPORT_NAME and self._headers is HeaderStyle.EXTENDED:
            raise LocalProtocolError("NBD_OPT_EXPORT_NAME cannot follow extended headers")
        if option is Option.NBD_OPT_STARTTLS and self._tls:
            raise LocalProtocolError("TLS is on already")
        if option is Option.NBD_OPT_SET_META_CONTEXT and self._headers is HeaderStyle.SIMPLE:
            raise LocalProtocolError("meta contexts need structured replies")

    # --- greeting ---------------------------------------------------------------------------------

    def _read_greeting(self) -> bool:
        magics = self._inbox.peek(GREETING_MAGICS)
        if magics is None:
            return False
        if magics == (NBDMAGIC, CLISERV_MAGIC):
            self._inbox.skip(GREETING_MAGICS.size)
            self._style = HandshakeStyle.OLDSTYLE
            self._advance(Trigger.OLDSTYLE_MAGIC)
            self._event = Greeted(HandshakeStyle.OLDSTYLE)
            return True
        if magics != (NBDMAGIC, IHAVEOPT):
            raise self._violation("the server's greeting is not that of an NBD server")
        fields = self._inbox.unpack(GREETING)
        if fields is None:
            return False
        self._greet(HandshakeFlag(fields[2]))
        return True

    def _greet(self, offered: HandshakeFlag) -> None:
        flags = ClientFlag(0)
        self._style = HandshakeStyle.NEWSTYLE
        if HandshakeFlag.NBD_FLAG_FIXED_NEWSTYLE in offered:
            flags |= ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE
            self._style = HandshakeStyle.FIXED_NEWSTYLE
        if HandshakeFlag.NBD_FLAG_NO_ZEROES in offered:
            flags |= ClientFlag.NBD_FLAG_C_NO_ZEROES
        self._client_flags = flags
        self._outbox.append(CLIENT_FLAGS.pack(flags))
        self._advance(Trigger.NEWSTYLE_MAGIC)
        self._event = Greeted(self._style)

    def _read_oldstyle_export(self) -> bool:
        fields = self._inbox.unpack(OLDSTYLE_EXPORT)
        if fields is None:
            return False
        size, flags = fields
        # The field has 32 bits, of which only the transmission flags' 16 were ever given a meaning.
        self._start_session("", size, flags & 0xFFFF)
        return True

    def _read_export(self) -> bool:
        padded = ClientFlag.NBD_FLAG_C_NO_ZEROES not in self._client_flags
        padding = EXPORT_NAME_ZEROES if padded else 0
        if len(self._inbox) < EXPORT_NAME_REPLY.size + padding:
            return False
        fields = self._inbox.unpack(EXPORT_NAME_REPLY)
        self._inbox.skip(padding)
        if fields is None or self._exchange is None:
            return False
        self._start_session(self._exchange.export_name, *fields)
        return True

    # --- option replies ---------------------------------------------------------------------------

    def _read_reply(self) -> bool:
        fields = self._inbox.unpack(OPTION_REPLY_HEADER)
        if fields is None or self._exchange is None:
            return False
        magic, option, self._reply, self._length = fields
        exchange = self._exchange
        if magic != NBD_REP_MAGIC:
            raise self._violation(f"an option reply with the magic {magic:#x}")
        if option != exchange.option:
            raise self._violation(f"a reply to option {option}, not to {exchange.option.name}")
        exchange.replies += 1
        exchange.bytes += self._length
        if self._length > self._limits.option_reply_data:
            raise self._violation(f"an option reply with {self._length} bytes of data")
        if (
            exchange.replies > self._limits.option_replies
            or exchange.bytes > self._limits.option_replies_data
        ):
            raise self._violation(f"endless replies to {exchange.option.name}")
        self._advance(Trigger.REPLY_HEADER)
        return True

    def _read_reply_data(self) -> bool:
        data = self._inbox.take(self._length)
        if data is None or self._exchange is None:
            return False
        try:
            self._take_reply(self._exchange, data)
        except ValueError as error:
            raise self._violation(f"malformed option reply: {error}") from error
        return True

    def _take_reply(self, exchange: Exchange, data: bytes) -> None:
        if self._reply & NBD_REP_FLAG_ERROR:
            self._finish(exchange, _message(data))
        elif self._reply == OptionReply.NBD_REP_ACK:
            if data:
                raise ValueError("NBD_REP_ACK with data")
            self._acknowledged(exchange)
        else:
            exchange.take(self._reply, data)
            self._advance(Trigger.INTERMEDIATE_REPLY)

    def _acknowledged(self, exchange: Exchange) -> None:
        option = exchange.option
        if option is Option.NBD_OPT_GO:
            self._start(exchange.described_export())
        elif option is Option.NBD_OPT_STARTTLS:
            if len(self._inbox):
                # Plain text slipped in before the upgrade would pass for the server's own words.
                raise self._violation("data between NBD_REP_ACK and the TLS handshake")
            self._advance(Trigger.TLS_GRANTED)
            self._event = TlsWanted()
        else:
            self._remember(exchange)
            self._finish(exchange, "")

    def _remember(self, exchange: Exchange) -> None:
        """What a granted option changes for the session."""
        if exchange.option is Option.NBD_OPT_STRUCTURED_REPLY:
            self._headers = HeaderStyle.STRUCTURED
        elif exchange.option is Option.NBD_OPT_EXTENDED_HEADERS:
            self._headers = HeaderStyle.EXTENDED
        elif exchange.option is Option.NBD_OPT_SET_META_CONTEXT:
            ids = {context.id for context in exchange.contexts}
            if len(ids) != len(exchange.contexts):
                raise ValueError("two meta contexts with one id")
            self._contexts = tuple(exchange.contexts)
            self._contexts_export = exchange.export_name

    def _finish(self, exchange: Exchange, message: str) -> None:
        """The final reply: hand the whole answer over."""
        self._advance(Trigger.FINAL_REPLY)
        self._exchange = None
        done = OptionDone(exchange.option, _OPTION_REPLIES.get(self._reply, self._reply), message)
        if done.accepted:
            done = OptionDone(
                done.option,
                done.reply,
                exports=tuple(exchange.exports),
                export=(
                    exchange.described_export() if exchange.option is Option.NBD_OPT_INFO else None
                ),
                contexts=tuple(exchange.contexts),
            )
        if exchange.option is Option.NBD_OPT_ABORT:
            self._state = State.CLOSED
        self._event = done

    # --- small moves ------------------------------------------------------------------------------

    def _start_session(self, name: str, size: int, flags: int) -> None:
        """Transmission begins by one of the ways that tell nothing but size and flags."""
        try:
            export = ExportInfo(name, size, TransmissionFlag(flags))
        except VdiskError as error:
            raise self._violation(str(error)) from error
        self._start(export)

    def _start(self, export: ExportInfo) -> None:
        name = self._exchange.export_name if self._exchange else ""
        contexts = self._selected_contexts(name)
        self._advance(Trigger.EXPORT_GRANTED)
        self._event = SessionStarted(Session(export, self._headers, contexts, self._tls))

    def _end(self) -> None:
        """The input ended: after NBD_OPT_ABORT that is as good as its acknowledgement."""
        exchange, state = self._exchange, self._state
        if state in (State.CLOSED, State.TRANSMISSION):
            return
        self._state = State.CLOSED
        if state is State.EXPORT and exchange is not None:
            raise NegotiationError(
                f"the server closed the connection: no export {exchange.export_name!r} for us"
            )
        if exchange is None or exchange.option is not Option.NBD_OPT_ABORT:
            raise self._violation("the server closed the connection during the handshake")
        self._event = OptionDone(Option.NBD_OPT_ABORT, OptionReply.NBD_REP_ACK)


_STEPS: Final[dict[State, Callable[[ClientNegotiation], bool]]] = {
    State.GREETING: ClientNegotiation._read_greeting,
    State.OLDSTYLE: ClientNegotiation._read_oldstyle_export,
    State.EXPORT: ClientNegotiation._read_export,
    State.REPLY: ClientNegotiation._read_reply,
    State.REPLY_DATA: ClientNegotiation._read_reply_data,
}

_OPTION_REPLIES: Final = {int(reply): reply for reply in OptionReply}


def _message(data: bytes) -> str:
    """The text of an error reply; one that is not a string of the protocol is only left out."""
    try:
        return decode_string(data)
    except ValueError:
        return ""
