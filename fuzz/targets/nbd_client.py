"""Any server: a session and answers, or an error of NBD, however it is cut; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings, a byte that says how the stream is cut, and all that a server sends,
from its greeting to the last reply.  Data that a client is given lies inside what it asked for.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from fuzz.targets.nbd_server import CONTEXTS, pieces
from fuzz.wire_fields import change_stream
from tests.tools.nbd_pair import MemoryDisk, answer, negotiate
from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.connect import (
    ClientHandshake,
    ClientSettings,
    PlanDone,
    connect,
    describe_export,
    list_exports,
)
from vdisk.nbd.errors import LocalProtocolError, NegotiationError, RemoteProtocolError
from vdisk.nbd.events import (
    DataReceived,
    HoleReceived,
    ReplyDone,
    Request,
    SessionStarted,
    StatusReceived,
)
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import Session, TlsMode
from vdisk.nbd.wire import Option

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from vdisk.nbd.client_requests import Outgoing
    from vdisk.nbd.events import ClientEvent

LONGEST = 8192
SIZE = 64 << 10
ASKED = 4096
"""Bytes of each request that is sent."""
PLANS: list[Any] = [connect, connect, list_exports, describe_export]
"""What a handshake is for, by the lowest bits of the settings."""


def handshake(settings: int) -> ClientHandshake[Any]:
    wanted = ClientSettings(
        export="name" if settings & 0x20 else "",
        tls=list(TlsMode)[settings >> 6 & 1],
        meta_contexts=CONTEXTS,
        structured_replies=not settings & 0x08,
        extended_headers=not settings & 0x10,
    )
    return ClientHandshake(wanted, PLANS[settings & 3])


def requests(machine: ClientTransmission) -> list[Outgoing]:
    """What the client asks for; its cookies are the same every time."""
    asks: list[Callable[[], Outgoing]] = [
        lambda: machine.read(0, ASKED),
        lambda: machine.write(0, bytes(ASKED)),
        machine.flush,
        lambda: machine.read(ASKED, ASKED, dont_fragment=True),
        lambda: machine.block_status(0, ASKED),
    ]
    sent = []
    for ask in asks:
        with suppress(LocalProtocolError):  # the export does not offer this
            sent.append(ask())
    return sent


class Recorder(ServerNegotiation):
    """A server that remembers what it sent."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.sent = bytearray()

    def data_to_send(self) -> bytes:
        data = super().data_to_send()
        self.sent += data
        return data


@cache
def seeds() -> dict[str, bytes]:
    """What a server of ours sends to clients of each kind."""
    return {
        "extended": _recorded(0x00),
        "structured": _recorded(0x10),
        "simple": _recorded(0x18),
        "an old server": _recorded(0x18, {Option.NBD_OPT_GO, Option.NBD_OPT_INFO}),
        "with TLS": _recorded(0x40),
        "a list": _recorded(0x02),
        "a description": _recorded(0x23),
    }


def _recorded(settings: int, unsupported: set[Option] | None = None) -> bytes:
    server = Recorder(tls=TlsMode.ALLOW, unsupported=unsupported or ())
    disk = MemoryDisk.of(SIZE, "name", meta_contexts=CONTEXTS, description="a disk")
    ours, theirs = negotiate(server, handshake(settings), {"name": disk, "": disk})
    if ours is not None and isinstance(theirs, Session):
        server.sent += _replies(ours, theirs, disk)
    return bytes([settings, 0]) + server.sent


def _replies(ours: Session, theirs: Session, disk: MemoryDisk) -> bytes:
    server, sent = ServerTransmission(ours), bytearray()
    for request in requests(ClientTransmission(theirs)):
        for part in request.buffers:
            server.receive_data(bytes(part))
    while (event := server.next_event()) is not None:
        assert isinstance(event, Request)
        sent += b"".join(map(bytes, answer(server, disk, event)))
    return bytes(sent)


def mutate(data: bytes, rng: random.Random) -> bytes:
    settings = bytes(rng.randrange(256) if rng.random() < 0.1 else byte for byte in data[:2])
    return settings + change_stream(data[2:], [seed[2:] for seed in seeds().values()], rng)


def run(data: bytes) -> None:
    settings, cut = data.ljust(2, b"\0")[:2]
    whole = talk(data[2:], settings, 0)
    if cut and not settings & 0x40:  # what is in flight when TLS begins is refused
        assert talk(data[2:], settings, cut) == whole


def talk(stream: bytes, settings: int, cut: int) -> list[str]:
    """What a client learns from a server that sends ``stream``, and how it ends."""
    learnt: list[str] = []
    client = handshake(settings)
    parts = pieces(stream, cut)
    try:
        session = _negotiate(client, parts, learnt)
        if session is not None:
            _transmit([client.trailing_data, *parts], session, learnt)
    except (RemoteProtocolError, NegotiationError) as error:
        learnt.append(str(error))
    return learnt


def _negotiate(client: ClientHandshake[Any], parts: Any, learnt: list[str]) -> Session | None:
    for part in parts:
        client.receive_data(part)
        while (event := client.next_event()) is not None:
            learnt.append(repr(event))
            if isinstance(event, SessionStarted):
                return event.session
            if isinstance(event, PlanDone):
                return None
            client.tls_started()
        client.data_to_send()
    client.receive_eof()
    client.next_event()
    return None


def _transmit(parts: list[bytes], session: Session, learnt: list[str]) -> None:
    machine = ClientTransmission(session)
    requests(machine)
    for part in parts:
        if not machine.wants_data:
            return
        machine.receive_data(part)
        _take_all(machine, learnt)
    machine.receive_eof()
    _take_all(machine, learnt)
    assert machine.unanswered == 0


def _take_all(machine: ClientTransmission, learnt: list[str]) -> None:
    while (event := machine.next_event()) is not None:
        _check(event)
        if not isinstance(event, DataReceived | HoleReceived):  # merged as they happen to arrive
            learnt.append(_shown(event))


def _check(event: ClientEvent) -> None:
    match event:
        case DataReceived():
            assert 0 <= event.offset <= event.offset + len(event.data) <= 2 * ASKED
        case HoleReceived():
            assert 0 <= event.offset <= event.offset + event.length <= 2 * ASKED
        case StatusReceived():
            assert event.extents
        case ReplyDone():
            assert event.error is not None or len(event.data) in (0, ASKED)


def _shown(event: ClientEvent) -> str:
    parts = [bytes(part) if isinstance(part, memoryview) else part for part in event]
    return f"{type(event).__name__} {parts!r}"
