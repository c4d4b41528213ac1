"""The negotiation with a server, carried out over a channel in a bounded time."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

from vdisk.errors import VdiskError
from vdisk.nbd.connect import ClientHandshake, ClientSettings, PlanDone, connect, list_exports
from vdisk.nbd.connect import describe_export as plan_to_describe
from vdisk.nbd.errors import NegotiationError, RemoteProtocolError
from vdisk.nbd.events import SessionStarted, TlsWanted
from vdisk.nbd.session import HandshakeStyle
from vdisk.nbd.wire import OptionReply
from vdisk.stores._nbd.address import describe, open_socket
from vdisk.stores._nbd.channel import Channel, ConnectionLostError
from vdisk.stores._nbd.tls import TlsSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.connect import Negotiated, Plan
    from vdisk.nbd.events import Greeted
    from vdisk.nbd.session import ExportInfo, Session
    from vdisk.nbd.uri import NbdUri

T = TypeVar("T")

HANDSHAKE_TIMEOUT = 30.0
"""Seconds from the first packet to the session: a server that needs longer serves nobody."""

_READ_SIZE = 1 << 16


class Server(NamedTuple):
    """Where to connect, and how."""

    uri: NbdUri
    settings: ClientSettings
    tls: TlsSettings = TlsSettings()
    timeout: float = HANDSHAKE_TIMEOUT

    @property
    def name(self) -> str:
        return describe(self.uri)


class Opened(NamedTuple):
    """A connection in the transmission phase; ``trailing``: bytes received already."""

    channel: Channel
    session: Session
    trailing: bytes


def open_session(server: Server) -> Opened:
    """Connect and negotiate; raises :class:`~vdisk.errors.VdiskError`, the connection closed."""
    deadline = time.monotonic() + server.timeout
    channel = Channel(open_socket(server.uri, server.timeout), server.name)
    return negotiate(server, channel, deadline)


def negotiate(server: Server, channel: Channel, deadline: float) -> Opened:
    """Open a session over a channel, which is closed when that fails."""
    handshake: ClientHandshake[None] = ClientHandshake(server.settings, connect)
    channel, outcome = _carry_out(server, channel, handshake, deadline)
    return Opened(channel, cast("Session", outcome), handshake.trailing_data)


class Answer(NamedTuple, Generic[T]):
    """What a server said, and in which terms."""

    result: T
    negotiated: Negotiated


def ask(server: Server, plan: Callable[[ClientSettings, Greeted], Plan[T]]) -> Answer[T]:
    """Connect, ask what ``plan`` asks, and leave without opening a session."""
    deadline = time.monotonic() + server.timeout
    channel = Channel(open_socket(server.uri, server.timeout), server.name)
    handshake = ClientHandshake(server.settings, plan)
    channel, outcome = _carry_out(server, channel, handshake, deadline)
    channel.close()
    return Answer(cast("T", outcome), handshake.negotiated)


def describe_exports(server: Server) -> Answer[tuple[ExportInfo, ...]]:
    """Every export that the server names."""
    return ask(server, list_exports)


def describe_export(server: Server) -> Answer[ExportInfo]:
    """The export that ``server.settings`` names, as well as its server can tell.

    Old servers only tell of an export when it is opened.
    """
    try:
        return ask(server, _describe)
    except NegotiationError as error:
        if error.reply is not OptionReply.NBD_REP_ERR_UNSUP:
            raise
    answer: Answer[Session] = ask(server, cast("Callable[..., Plan[Session]]", connect))
    return Answer(answer.result.export, answer.negotiated)


def _describe(settings: ClientSettings, greeted: Greeted) -> Plan[ExportInfo]:
    if greeted.style is HandshakeStyle.FIXED_NEWSTYLE:
        return (yield from plan_to_describe(settings, greeted))
    raise NegotiationError("too old to be asked", reply=OptionReply.NBD_REP_ERR_UNSUP)


def _carry_out(
    server: Server, channel: Channel, handshake: ClientHandshake[T], deadline: float
) -> tuple[Channel, object]:
    """Drive the machine to its end; what the plan ended in, and the channel, perhaps secured."""
    buffer = memoryview(bytearray(_READ_SIZE))
    try:
        while True:
            channel.set_timeout(deadline - time.monotonic())
            event = _next_event(channel, handshake)
            _send(channel, handshake)
            match event:
                case SessionStarted(session):
                    return channel, session
                case PlanDone(result):
                    return channel, result
                case TlsWanted():
                    channel = channel.secured(server.tls)
                    handshake.tls_started()
                case None if time.monotonic() >= deadline:
                    raise _too_slow(server)
                case None:
                    _receive(server, channel, handshake, buffer)
    except BaseException as error:
        with contextlib.suppress(ConnectionLostError, RemoteProtocolError):
            _send(channel, handshake)  # the goodbye
        channel.close()
        if isinstance(error, VdiskError) and error.path is None:
            error.path = server.name
        raise


def _next_event(
    channel: Channel, handshake: ClientHandshake[T]
) -> TlsWanted | SessionStarted | PlanDone[T] | None:
    try:
        return handshake.next_event()
    except RemoteProtocolError as error:
        if handshake.ended:  # it broke nothing: it is gone
            raise ConnectionLostError(error.message, path=channel.name) from error
        raise


def _send(channel: Channel, handshake: ClientHandshake[T]) -> None:
    data = handshake.data_to_send()
    if data:
        channel.send([data], lambda: False)


def _receive(
    server: Server, channel: Channel, handshake: ClientHandshake[T], buffer: memoryview
) -> None:
    try:
        count = channel.receive_into(buffer) or 0
    except ConnectionLostError as error:
        if error.silent:
            raise _too_slow(server) from error
        handshake.receive_eof()  # which may be an answer: the machine knows
    else:
        handshake.receive_data(buffer[:count])


def _too_slow(server: Server) -> ConnectionLostError:
    return ConnectionLostError(
        f"the handshake did not end in {server.timeout:g} s",
        path=server.name,
        errno=errno.ETIMEDOUT,
        silent=True,
    )
