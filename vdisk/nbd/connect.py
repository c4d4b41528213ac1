"""Which options a client sends, in which order, and what it does without those a server lacks.

To connect::

    NBD_OPT_STARTTLS            first, so that all else is private; refused: go on (ALLOW) or leave
    NBD_OPT_EXTENDED_HEADERS    refused: the older
    NBD_OPT_STRUCTURED_REPLY    refused: simple replies
    NBD_OPT_SET_META_CONTEXT    refused: no block status
    NBD_OPT_GO                  unknown to the server: the older
    NBD_OPT_EXPORT_NAME         which cannot be refused, only answered by closing

Each plan is a generator: it yields the option to send and receives the OptionDone.  A plan that
cannot go on raises NegotiationError; the client then leaves with NBD_OPT_ABORT.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from vdisk.nbd.client_negotiation import ClientNegotiation, State
from vdisk.nbd.errors import NegotiationError
from vdisk.nbd.events import Greeted, OptionDone, SessionStarted, TlsWanted
from vdisk.nbd.limits import DEFAULT_LIMITS, Limits
from vdisk.nbd.options import ExportQuery, MetaContextQuery
from vdisk.nbd.session import ExportInfo, HandshakeStyle, HeaderStyle, TlsMode
from vdisk.nbd.wire import BASE_ALLOCATION, Info, Option, OptionReply

if TYPE_CHECKING:
    from vdisk.nbd._exchange import OptionData

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client wants of a server.

    ``export``: its name, empty for the server's default.  ``meta_contexts``: those to select when
    the server has them.  Both reply styles are tried unless switched off.
    """

    export: str = ""
    tls: TlsMode = TlsMode.OFF
    meta_contexts: tuple[str, ...] = (BASE_ALLOCATION,)
    structured_replies: bool = True
    extended_headers: bool = True


class OptionCall(NamedTuple):
    option: Option
    data: OptionData = None


class Negotiated(NamedTuple):
    """What client and server speak; ``tls``: inside TLS."""

    style: HandshakeStyle
    headers: HeaderStyle
    tls: bool


class PlanDone(NamedTuple, Generic[T]):
    """A plan that opens no session is complete."""

    result: T


Plan = Generator[OptionCall, OptionDone, T]

_ALL_INFO: Final = frozenset(Info)

_FATAL: Final = (OptionReply.NBD_REP_ERR_TLS_REQD, OptionReply.NBD_REP_ERR_SHUTDOWN)
"""Replies after which no other option can succeed."""

_REASONS: Final = {
    OptionReply.NBD_REP_ERR_POLICY: "Denied by server",
    OptionReply.NBD_REP_ERR_PLATFORM: "Server lacks support",
    OptionReply.NBD_REP_ERR_TLS_REQD: "Server requires TLS (nbds://, or tls-creds)",
    OptionReply.NBD_REP_ERR_UNKNOWN: "Requested export not available",
    OptionReply.NBD_REP_ERR_SHUTDOWN: "Server shutting down",
}
"""In QEMU's words, which scripts look for."""


# --- plans ----------------------------------------------------------------------------------------


def connect(settings: ClientSettings, greeted: Greeted) -> Plan[None]:
    """Open a session; ends in SessionStarted."""
    if greeted.style is not HandshakeStyle.FIXED_NEWSTYLE:
        yield from _connect_old(settings, greeted)
        return
    headers = yield from _prepare(settings)
    if headers and settings.meta_contexts:
        query = MetaContextQuery(settings.export, settings.meta_contexts)
        # An unknown export fails here too; NBD_OPT_GO will say so better.
        yield from _optional(OptionCall(Option.NBD_OPT_SET_META_CONTEXT, query))
    done = yield OptionCall(Option.NBD_OPT_GO, ExportQuery(settings.export, _ALL_INFO))
    if done.reply != OptionReply.NBD_REP_ERR_UNSUP or headers is Option.NBD_OPT_EXTENDED_HEADERS:
        raise _refused(done, f"export {settings.export!r}")
    yield OptionCall(Option.NBD_OPT_EXPORT_NAME, settings.export)


def _connect_old(settings: ClientSettings, greeted: Greeted) -> Plan[None]:
    if settings.tls is TlsMode.REQUIRE:
        raise NegotiationError(f"a server of the {greeted.style.value} kind has no TLS")
    if greeted.style is HandshakeStyle.NEWSTYLE:
        yield OptionCall(Option.NBD_OPT_EXPORT_NAME, settings.export)
    elif settings.export:
        raise NegotiationError(f"an oldstyle server has no export {settings.export!r}, only one")


def list_exports(settings: ClientSettings, greeted: Greeted) -> Plan[tuple[ExportInfo, ...]]:
    """Describe every export the server names, with all its meta contexts.

    An export that it names and then refuses to describe (TLS-only, no longer there) is left out.
    """
    yield from _begin_asking(settings, greeted)
    done = yield OptionCall(Option.NBD_OPT_LIST)
    if not done.accepted:
        raise _refused(done, "the list of exports")
    exports = []
    for name, description in done.exports:
        export, _ = yield from _describe(name)
        if export is not None:
            exports.append(replace(export, description=description or export.description))
    yield OptionCall(Option.NBD_OPT_ABORT)
    return tuple(exports)


def describe_export(settings: ClientSettings, greeted: Greeted) -> Plan[ExportInfo]:
    """Describe one export, with all its meta contexts, without opening it."""
    yield from _begin_asking(settings, greeted)
    export, done = yield from _describe(settings.export)
    if export is None:
        raise _refused(done, f"export {settings.export!r}")
    yield OptionCall(Option.NBD_OPT_ABORT)
    return export


def _begin_asking(settings: ClientSettings, greeted: Greeted) -> Plan[None]:
    if greeted.style is not HandshakeStyle.FIXED_NEWSTYLE:
        raise NegotiationError(f"a server of the {greeted.style.value} kind answers no questions")
    yield from _prepare(settings)


def _describe(name: str) -> Plan[tuple[ExportInfo | None, OptionDone]]:
    done = yield OptionCall(Option.NBD_OPT_INFO, ExportQuery(name, _ALL_INFO))
    if done.export is None:
        return None, done
    # Without structured replies too: some servers answer, and the others only refuse.
    listed = yield OptionCall(Option.NBD_OPT_LIST_META_CONTEXT, MetaContextQuery(name, ()))
    contexts = tuple(context.name for context in listed.contexts)
    return replace(done.export, meta_contexts=contexts), done


def _prepare(settings: ClientSettings) -> Plan[Option | None]:
    """TLS, then the best reply style; returns the option that brought it."""
    if settings.tls is not TlsMode.OFF:
        done = yield OptionCall(Option.NBD_OPT_STARTTLS)
        if not done.accepted and settings.tls is TlsMode.REQUIRE:
            raise _refused(done, "TLS")
    wanted = [
        (settings.extended_headers, Option.NBD_OPT_EXTENDED_HEADERS),
        (settings.structured_replies, Option.NBD_OPT_STRUCTURED_REPLY),
    ]
    for enabled, option in wanted:
        if enabled and (yield from _optional(OptionCall(option))):
            return option
    return None


def _optional(call: OptionCall) -> Plan[bool]:
    """Send an option that the client can do without."""
    done = yield call
    if done.reply in _FATAL:
        raise _refused(done, call.option.name)
    return done.accepted


def _refused(done: OptionDone, what: str) -> NegotiationError:
    reply = done.reply
    if not isinstance(reply, OptionReply):
        return NegotiationError(f"{what} refused: unknown error reply {reply:#x}")
    reason = f"{_REASONS[reply]}, {reply.name}" if reply in _REASONS else reply.name
    text = f"; server reported: {done.message}" if done.message else ""
    return NegotiationError(f"{what} refused: {reason}{text}", reply=reply)


# --- carrying them out ----------------------------------------------------------------------------


class ClientHandshake(Generic[T]):
    """A :class:`ClientNegotiation` that follows a plan; drive it in the same way.

    ``next_event`` gives TlsWanted, then SessionStarted (of :func:`connect`) or PlanDone with the
    plan's result.  When it raises NegotiationError, send what ``data_to_send`` holds, then close.
    """

    def __init__(
        self,
        settings: ClientSettings,
        plan: Callable[[ClientSettings, Greeted], Plan[T]],
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._running: Plan[T] | None = None
        self._machine = ClientNegotiation(limits=limits)
        self.ended = False
        """The server closed the connection."""

    @property
    def wants_data(self) -> bool:
        return self._machine.wants_data

    @property
    def trailing_data(self) -> bytes:
        return self._machine.trailing_data

    @property
    def negotiated(self) -> Negotiated:
        machine = self._machine
        return Negotiated(machine.style, machine.headers, machine.tls_active)

    def data_to_send(self) -> bytes:
        return self._machine.data_to_send()

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        self._machine.receive_data(data)

    def receive_eof(self) -> None:
        self.ended = True
        self._machine.receive_eof()

    def tls_started(self) -> None:
        self._machine.tls_started()

    def next_event(self) -> TlsWanted | SessionStarted | PlanDone[T] | None:
        """The next event, or ``None`` while input is missing; see the machine for its errors."""
        while True:
            event = self._machine.next_event()
            match event:
                case Greeted():
                    self._running = self._plan(self._settings, event)
                    finished = self._step(None)
                case OptionDone():
                    finished = self._step(event)
                case _:
                    return event
            if finished is not None:
                return finished

    def _step(self, done: OptionDone | None) -> PlanDone[T] | None:
        """Give the plan the answer it waits for, and send the option it wants next."""
        if self._running is None:
            return None
        try:
            call = next(self._running) if done is None else self._running.send(done)
        except StopIteration as stop:
            return None if stop.value is None else PlanDone(stop.value)
        except NegotiationError:
            self._leave()
            raise
        self._machine.send(call.option, call.data)
        return None

    def _leave(self) -> None:
        """Say goodbye where the server can understand it."""
        if self._machine.state is State.READY and self._machine.fixed_newstyle:
            self._machine.send(Option.NBD_OPT_ABORT)
