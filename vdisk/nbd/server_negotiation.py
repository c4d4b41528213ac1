"""The server's half of the handshake: newstyle and fixed newstyle option haggling.

The machine knows the protocol, the program knows the exports.  What the machine cannot answer it
asks by an event, and stops until the program has answered, at once or after an ``await``::

    machine = ServerNegotiation(tls=TlsMode.ALLOW)
    send(machine.data_to_send())                       # the greeting
    while True:
        match machine.next_event():
            case None:
                machine.receive_data(recv())
            case ExportWanted(name=name):
                machine.send_export(exports[name])     # or machine.refuse(reply, message)
            case ExportsWanted():
                machine.send_exports((e.name, e.description) for e in exports.values())
            case TlsWanted():
                send(machine.data_to_send()); wrap_in_tls(); machine.tls_started()
            case SessionStarted(session=session):
                break                                  # on with ServerTransmission(session)
            case NegotiationAborted():
                ...                                    # send, then close
        send(machine.data_to_send())

The states::

    CLIENT_FLAGS --flags--> OPTION <--complete--> DATA, SKIP     (parsing)
                              | question ^ answered
                              v          |
                            ANSWER ------+---- granted --> TRANSMISSION
    OPTION --starttls--> TLS --secured--> OPTION          any --ended--> CLOSED
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.nbd import options
from vdisk.nbd._haggling import Haggling
from vdisk.nbd.errors import LocalProtocolError
from vdisk.nbd.events import (
    ExportsWanted,
    ExportWanted,
    NegotiationAborted,
    ServerHandshakeEvent,
    SessionStarted,
    TlsWanted,
)
from vdisk.nbd.limits import DEFAULT_LIMITS, Limits
from vdisk.nbd.offer import Offer
from vdisk.nbd.session import HeaderStyle, MetaContext, TlsMode
from vdisk.nbd.wire import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    GREETING,
    IHAVEOPT,
    NBD_REP_FLAG_ERROR,
    NBD_REP_MAGIC,
    NBDMAGIC,
    OPTION_HEADER,
    OPTION_REPLY_HEADER,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    decode_string,
    encode_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vdisk.nbd.session import ExportInfo


class State(Enum):
    CLIENT_FLAGS = auto()
    OPTION = auto()
    DATA = auto()
    SKIP = auto()
    ANSWER = auto()
    TLS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class Trigger(Enum):
    FLAGS = auto()
    HEADER = auto()
    LARGE_HEADER = auto()
    COMPLETE = auto()
    QUESTION = auto()
    ANSWERED = auto()
    GRANTED = auto()
    STARTTLS = auto()
    SECURED = auto()


TRANSITIONS: Final = {
    (State.CLIENT_FLAGS, Trigger.FLAGS): State.OPTION,
    (State.OPTION, Trigger.HEADER): State.DATA,
    (State.OPTION, Trigger.LARGE_HEADER): State.SKIP,
    (State.DATA, Trigger.COMPLETE): State.OPTION,
    (State.SKIP, Trigger.COMPLETE): State.OPTION,
    (State.OPTION, Trigger.QUESTION): State.ANSWER,
    (State.ANSWER, Trigger.ANSWERED): State.OPTION,
    (State.ANSWER, Trigger.GRANTED): State.TRANSMISSION,
    (State.OPTION, Trigger.STARTTLS): State.TLS,
    (State.TLS, Trigger.SECURED): State.OPTION,
}
"""Any state also goes to CLOSED: on NBD_OPT_ABORT, at the end of the input, on a violation."""


class _Question(NamedTuple):
    """What the program was asked, with what its answer is needed for."""

    option: Option
    name: str = ""
    requests: frozenset[Info] = frozenset()
    queries: tuple[str, ...] = ()


class ServerNegotiation(Haggling[State, Trigger, ServerHandshakeEvent]):
    """Server side of one connection's handshake; see the module for how to drive it.

    ``tls``: OFF, ALLOW or REQUIRE (the specification's NOTLS, SELECTIVETLS, FORCEDTLS).
    ``unsupported``: options to answer with NBD_REP_ERR_UNSUP, as a server without them would.
    """

    transitions = TRANSITIONS
    deaf = frozenset((State.TLS, State.CLOSED))

    def __init__(
        self,
        *,
        tls: TlsMode = TlsMode.OFF,
        unsupported: Collection[Option] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(limits, State.CLIENT_FLAGS, State.CLOSED, Trigger.SECURED)
        self._tls_mode = tls
        self._unsupported = set(unsupported)
        if Option.NBD_OPT_GO in self._unsupported:  # extended headers exclude the older option
            self._unsupported.add(Option.NBD_OPT_EXTENDED_HEADERS)
        flags = HandshakeFlag.NBD_FLAG_FIXED_NEWSTYLE | HandshakeFlag.NBD_FLAG_NO_ZEROES
        self._outbox.append(GREETING.pack(NBDMAGIC, IHAVEOPT, flags))
        self._client_flags = ClientFlag(0)
        self._option = 0
        self._length = 0
        self._options_seen = 0
        self._question: _Question | None = None
        self._shutting_down = False

    # --- driving ----------------------------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        """False while the program owes an answer, and when the handshake is over."""
        return self._state in _STEPS

    def receive_eof(self) -> None:
        """The client closed the connection; NegotiationAborted follows."""
        if self._state not in (State.CLOSED, State.TRANSMISSION):
            self._end("the client closed the connection")

    def next_event(self) -> ServerHandshakeEvent | None:
        """The next event, or ``None`` while input or the program's answer is missing.

        Raises RemoteProtocolError when the client broke the protocol.
        """
        while self._event is None:
            step = _STEPS.get(self._state)
            if step is None or not step(self):
                return None
        event, self._event = self._event, None
        return event

    def shut_down(self) -> None:
        """Answer NBD_REP_ERR_SHUTDOWN to every later option except NBD_OPT_ABORT."""
        self._shutting_down = True

    # --- answers ----------------------------------------------------------------------------------

    def send_exports(self, exports: Iterable[tuple[str, str]]) -> None:
        """Answer ExportsWanted with (name, description) pairs.

        A program may leave out exports that this client may not use.
        """
        entries = [options.build_server(name, description) for name, description in exports]
        question = self._take_question(Option.NBD_OPT_LIST)
        for entry in entries:
            self._reply(question.option, OptionReply.NBD_REP_SERVER, entry)
        self._accept(question.option)
        self._advance(Trigger.ANSWERED)

    def send_export(self, export: ExportInfo) -> None:
        """Answer ExportWanted: this is the export of that name."""
        question = self._take_question(*_ANSWERS)
        if export.tls_required and not self._tls:
            self._refuse_plain_text(question)
        else:
            _ANSWERS[question.option](self, question, export)
        if self._state is State.ANSWER:
            self._advance(Trigger.ANSWERED)

    def refuse(
        self, reply: OptionReply = OptionReply.NBD_REP_ERR_UNKNOWN, message: str = ""
    ) -> None:
        """Answer either question with an error: no such export, policy…"""
        if not reply & NBD_REP_FLAG_ERROR:
            raise LocalProtocolError(f"{reply.name} refuses nothing")
        question = self._take_question(*Option)
        self._refuse(question.option, reply, message)
        if self._state is State.ANSWER:
            self._advance(Trigger.ANSWERED)

    def _take_question(self, *allowed: Option) -> _Question:
        question = self._question
        if question is None or question.option not in allowed:
            raise LocalProtocolError("an answer to a question that was not asked")
        self._question = None
        return question

    def _refuse_plain_text(self, question: _Question) -> None:
        """A TLS-only export before TLS: NBD_REP_ERR_TLS_REQD is for INFO and GO alone."""
        reply = OptionReply.NBD_REP_ERR_UNKNOWN
        if question.option in (Option.NBD_OPT_INFO, Option.NBD_OPT_GO):
            reply = OptionReply.NBD_REP_ERR_TLS_REQD
        self._refuse(question.option, reply, f"export {question.name!r} requires TLS")

    def _answer_export_name(self, question: _Question, export: ExportInfo) -> None:
        if export.block_sizes_required:
            self._end("NBD_OPT_EXPORT_NAME cannot promise to obey the block sizes")
            return
        flags = self._offer(question, export).flags
        self._outbox.append(EXPORT_NAME_REPLY.pack(export.size, flags))
        if ClientFlag.NBD_FLAG_C_NO_ZEROES not in self._client_flags:
            self._outbox.append(bytes(EXPORT_NAME_ZEROES))
        self._start_session(question, export)

    def _answer_info(self, question: _Question, export: ExportInfo) -> None:
        asking = question.option is Option.NBD_OPT_INFO
        for item in self._offer(question, export).information(question.requests, asking=asking):
            self._reply(question.option, OptionReply.NBD_REP_INFO, item)
        if export.block_sizes_required and Info.NBD_INFO_BLOCK_SIZE not in question.requests:
            reply = OptionReply.NBD_REP_ERR_BLOCK_SIZE_REQD
            self._refuse(question.option, reply, "ask for NBD_INFO_BLOCK_SIZE, and obey it")
            return
        self._accept(question.option)
        if question.option is Option.NBD_OPT_GO:
            self._start_session(question, export)

    def _answer_meta_contexts(self, question: _Question, export: ExportInfo) -> None:
        listing = question.option is Option.NBD_OPT_LIST_META_CONTEXT
        try:
            names = options.match_meta_contexts(
                question.queries, export.meta_contexts, wildcards=listing
            )
        except ValueError as error:
            self._refuse(question.option, OptionReply.NBD_REP_ERR_INVALID, str(error))
            return
        # A listed id means nothing and is zero; a selected one names the context in every reply.
        contexts = tuple(
            MetaContext(0 if listing else number, name) for number, name in enumerate(names)
        )
        for context in contexts:
            data = options.build_meta_context(context)
            self._reply(question.option, OptionReply.NBD_REP_META_CONTEXT, data)
        self._accept(question.option)
        if not listing:
            self._contexts, self._contexts_export = contexts, question.name

    def _start_session(self, question: _Question, export: ExportInfo) -> None:
        self._advance(Trigger.GRANTED)
        self._event = SessionStarted(self._offer(question, export).session(tls=self._tls))

    def _offer(self, question: _Question, export: ExportInfo) -> Offer:
        return Offer(export, self._headers, self._selected_contexts(question.name))

    # --- parsing ----------------------------------------------------------------------------------

    def _read_client_flags(self) -> bool:
        fields = self._inbox.unpack(CLIENT_FLAGS)
        if fields is None:
            return False
        (number,) = fields
        if number & ~_OFFERED_CLIENT_FLAGS:
            raise self._violation(f"client flags {number:#x}, not all of them offered")
        self._client_flags = ClientFlag(number)
        self._advance(Trigger.FLAGS)
        return True

    def _read_option(self) -> bool:
        fields = self._inbox.unpack(OPTION_HEADER)
        if fields is None:
            return False
        magic, self._option, self._length = fields
        if magic != IHAVEOPT:
            raise self._violation(f"an option with the magic {magic:#x}")
        self._options_seen += 1
        if self._options_seen > self._limits.options:
            raise self._violation(f"more than {self._limits.options} options")
        if self._length > self._limits.skipped:
            raise self._violation(f"an option with {self._length} bytes of data")
        large = self._length > self._limits.option_data
        self._advance(Trigger.LARGE_HEADER if large else Trigger.HEADER)
        return True

    def _read_option_data(self) -> bool:
        data = self._inbox.take(self._length)
        if data is None:
            return False
        self._advance(Trigger.COMPLETE)
        self._dispatch(data)
        return True

    def _skip_option_data(self) -> bool:
        skipped = self._inbox.skip(self._length)
        self._length -= skipped
        if self._length:
            return False
        self._advance(Trigger.COMPLETE)
        self._dispatch(None)
        return True

    # --- options ----------------------------------------------------------------------------------

    def _dispatch(self, data: bytes | None) -> None:
        """Act on one option; *data* is ``None`` when there was too much of it."""
        number = self._option
        fixed = ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE in self._client_flags
        if not fixed and number != Option.NBD_OPT_EXPORT_NAME:
            raise self._violation(f"option {number} in a handshake that is not fixed newstyle")
        if number == Option.NBD_OPT_ABORT:
            self._accept(number)
            self._end("NBD_OPT_ABORT")
            return
        refusal = self._policy(number)
        if refusal is not None:
            self._refuse(number, *refusal)
        elif data is None:
            self._refuse(number, OptionReply.NBD_REP_ERR_TOO_BIG, "too much data")
        else:
            self._run(Option(number), data)

    def _policy(self, number: int) -> tuple[OptionReply, str] | None:
        """Why an option is refused before anyone looks at its data."""
        if self._shutting_down:
            return OptionReply.NBD_REP_ERR_SHUTDOWN, "the server is shutting down"
        forced = self._tls_mode is TlsMode.REQUIRE and not self._tls
        if forced and number != Option.NBD_OPT_STARTTLS:
            return OptionReply.NBD_REP_ERR_TLS_REQD, f"Option {number:#x} not permitted before TLS"
        if number not in _OPTIONS or number in self._unsupported:
            return OptionReply.NBD_REP_ERR_UNSUP, f"option {number} is not known here"
        return None

    def _run(self, option: Option, data: bytes) -> None:
        rule = _OPTIONS[option]
        if data and not rule.has_data:
            self._refuse(option, OptionReply.NBD_REP_ERR_INVALID, "the option has no data")
            return
        try:
            rule.run(self, option, data)
        except ValueError as error:
            self._refuse(option, OptionReply.NBD_REP_ERR_INVALID, f"malformed data: {error}")

    def _ask(self, question: _Question) -> None:
        self._question = question
        self._advance(Trigger.QUESTION)
        if question.option is Option.NBD_OPT_LIST:
            self._event = ExportsWanted()
        else:
            self._event = ExportWanted(question.name, question.option)

    def _run_export_name(self, option: Option, data: bytes) -> None:
        if self._headers is HeaderStyle.EXTENDED:
            raise self._violation("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS")
        self._ask(_Question(option, decode_string(data)))

    def _run_list(self, option: Option, _data: bytes) -> None:
        self._ask(_Question(option))

    def _run_info(self, option: Option, data: bytes) -> None:
        query = options.parse_export_query(data)
        self._ask(_Question(option, query.name, requests=query.requests))

    def _run_meta_context(self, option: Option, data: bytes) -> None:
        if option is Option.NBD_OPT_SET_META_CONTEXT:
            self._contexts = ()  # even where this option fails
            if self._headers is HeaderStyle.SIMPLE:
                reply = OptionReply.NBD_REP_ERR_INVALID
                self._refuse(option, reply, "negotiate structured replies first")
                return
        query = options.parse_meta_context_query(data)
        self._ask(_Question(option, query.name, queries=query.queries))

    def _run_structured_reply(self, option: Option, _data: bytes) -> None:
        if self._headers is HeaderStyle.EXTENDED:
            reply = OptionReply.NBD_REP_ERR_EXT_HEADER_REQD
            self._refuse(option, reply, "extended headers are negotiated already")
            return
        self._turn_to(HeaderStyle.STRUCTURED, option)

    def _run_extended_headers(self, option: Option, _data: bytes) -> None:
        self._turn_to(HeaderStyle.EXTENDED, option)

    def _turn_to(self, headers: HeaderStyle, option: Option) -> None:
        if self._headers is headers:
            self._refuse(option, OptionReply.NBD_REP_ERR_INVALID, "that is negotiated already")
        else:
            self._headers = headers
            self._accept(option)

    def _run_starttls(self, option: Option, _data: bytes) -> None:
        if self._tls:
            self._refuse(option, OptionReply.NBD_REP_ERR_INVALID, "TLS is on already")
        elif self._tls_mode is TlsMode.OFF:
            self._refuse(option, OptionReply.NBD_REP_ERR_POLICY, "TLS not configured")
        elif len(self._inbox):
            # Plain text sent ahead of the upgrade would be taken for the client's encrypted words.
            raise self._violation("data between NBD_OPT_STARTTLS and the TLS handshake")
        else:
            self._accept(option)
            self._advance(Trigger.STARTTLS)
            self._event = TlsWanted()

    # --- small moves ------------------------------------------------------------------------------

    def _accept(self, option: int) -> None:
        self._reply(option, OptionReply.NBD_REP_ACK)

    def _refuse(self, option: int, reply: OptionReply, message: str) -> None:
        """Send an error; to NBD_OPT_EXPORT_NAME there is none but the end of the connection."""
        if option == Option.NBD_OPT_EXPORT_NAME:
            self._end(message or reply.name)
        else:
            self._reply(option, reply, encode_message(message))

    def _reply(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._outbox.append(OPTION_REPLY_HEADER.pack(NBD_REP_MAGIC, option, reply, len(data)))
        if data:
            self._outbox.append(data)

    def _end(self, reason: str) -> None:
        self._state = State.CLOSED
        self._event = NegotiationAborted(reason)


_OFFERED_CLIENT_FLAGS: Final = int(
    ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE | ClientFlag.NBD_FLAG_C_NO_ZEROES
)
"""A plain number: the complement of an IntFlag would leave out the unknown bits."""

_STEPS: Final[dict[State, Callable[[ServerNegotiation], bool]]] = {
    State.CLIENT_FLAGS: ServerNegotiation._read_client_flags,
    State.OPTION: ServerNegotiation._read_option,
    State.DATA: ServerNegotiation._read_option_data,
    State.SKIP: ServerNegotiation._skip_option_data,
}
"""The states that read, and what they read.  True: something was read."""


class _OptionRule(NamedTuple):
    has_data: bool
    run: Callable[[ServerNegotiation, Option, bytes], None]


_OPTIONS: Final = {
    Option.NBD_OPT_EXPORT_NAME: _OptionRule(True, ServerNegotiation._run_export_name),
    Option.NBD_OPT_LIST: _OptionRule(False, ServerNegotiation._run_list),
    Option.NBD_OPT_STARTTLS: _OptionRule(False, ServerNegotiation._run_starttls),
    Option.NBD_OPT_INFO: _OptionRule(True, ServerNegotiation._run_info),
    Option.NBD_OPT_GO: _OptionRule(True, ServerNegotiation._run_info),
    Option.NBD_OPT_STRUCTURED_REPLY: _OptionRule(False, ServerNegotiation._run_structured_reply),
    Option.NBD_OPT_LIST_META_CONTEXT: _OptionRule(True, ServerNegotiation._run_meta_context),
    Option.NBD_OPT_SET_META_CONTEXT: _OptionRule(True, ServerNegotiation._run_meta_context),
    Option.NBD_OPT_EXTENDED_HEADERS: _OptionRule(False, ServerNegotiation._run_extended_headers),
}

_ANSWERS: Final = {
    Option.NBD_OPT_EXPORT_NAME: ServerNegotiation._answer_export_name,
    Option.NBD_OPT_INFO: ServerNegotiation._answer_info,
    Option.NBD_OPT_GO: ServerNegotiation._answer_info,
    Option.NBD_OPT_LIST_META_CONTEXT: ServerNegotiation._answer_meta_contexts,
    Option.NBD_OPT_SET_META_CONTEXT: ServerNegotiation._answer_meta_contexts,
}
