"""Clients that mean harm: others notice nothing, memory stays bounded, the log names the fault."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_client import (
    FLAGS,
    GREETING_LENGTH,
    HANDSHAKE_FAULTS,
    REQUEST_FAULTS,
    HostileClient,
    option,
    request,
)
from tests.tools.nbd_pair import BlockingClient
from tests.tools.nbd_server import Running, running
from tests.tools.patience import PATIENCE, eventually
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.wire import Option
from vdisk.nbd_server import Export, Server, ServerLimits
from vdisk.nbd_serving.pace import Pace
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64 << 20
MIB = 1 << 20

BOTH = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


@contextlib.contextmanager
def serving(fast: bool = True, **limits: float) -> Iterator[Running]:
    disk = MemoryStore(b"v" * 4096 + bytes(SIZE - 4096), growable=False)

    def make() -> Server:
        return Server([Export("", disk)], fast=fast, limits=ServerLimits(**limits))  # type: ignore[arg-type]

    with running(make) as server:
        yield server


def works(server: Running) -> None:
    """An honest client is served."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(server.path))
    with connection:
        honest = BlockingClient(connection, ClientSettings())
        events = honest.call(honest.machine.read(0, 4096))
        assert bytes(events[-1].data) == b"v" * 4096  # type: ignore[union-attr]
        honest.close()


def nobody_left(server: Running) -> bool:
    return eventually(lambda: not server.server.clients)


def nothing_held(server: Running) -> bool:
    budget = server.server.budget
    return eventually(lambda: budget.bytes == budget.requests == 0)


@BOTH
def test_every_fault_in_the_handshake(fast: bool) -> None:
    with serving(fast) as server:
        for name, fault in HANDSHAKE_FAULTS.items():
            with HostileClient(server.path) as hostile:
                assert len(hostile.receive(GREETING_LENGTH)) == GREETING_LENGTH, name
                hostile.send(fault)
                works(server)
        works(server)
        assert nobody_left(server)
        assert nothing_held(server)


@BOTH
def test_every_fault_in_a_request(fast: bool) -> None:
    with serving(fast) as server:
        for name, fault in REQUEST_FAULTS.items():
            with HostileClient(server.path) as hostile:
                assert hostile.begin() == SIZE, name
                hostile.send(fault)
                works(server)
        assert nobody_left(server)
        assert nothing_held(server)


@BOTH
def test_a_client_that_broke_the_protocol_is_logged_with_the_reason(
    fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "vdisk.nbd_server")
    with serving(fast) as server, HostileClient(server.path) as hostile:
        hostile.begin()
        hostile.send(REQUEST_FAULTS["wrong magic"])
        assert hostile.closed()
    assert "a request with the magic 0x12345678" in caplog.text


@BOTH
@pytest.mark.parametrize("cut", [1, 17, 27, 28, 100, 28 + 4095])
def test_a_request_cut_off_ends_only_its_connection(fast: bool, cut: int) -> None:
    with serving(fast) as server, HostileClient(server.path) as hostile:
        hostile.begin()
        hostile.send(request(1, 0, 4096, payload=bytes(4096))[:cut])
        hostile.socket.shutdown(socket.SHUT_WR)
        assert hostile.closed()
        works(server)


@BOTH
def test_urgent_bytes_between_requests_hurt_only_who_sends_them(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that looks at requests first may then receive something else."""
    monkeypatch.setattr(Pace, "processors_are_free", lambda _: True)
    with serving(fast) as server:
        for at in (0, 1, 28, 40, 56):
            with HostileClient(server.path) as hostile:
                hostile.begin()
                sent = request(cookie=1) + request(cookie=2)
                hostile.send(sent[:at])
                try:
                    hostile.socket.send(b"!", socket.MSG_OOB)
                except OSError:
                    pytest.skip("no urgent bytes on unix sockets here")
                hostile.send(sent[at:])
                hostile.socket.shutdown(socket.SHUT_WR)
                works(server)
        assert nobody_left(server)
        assert nothing_held(server)


@BOTH
def test_a_half_closed_socket_still_gets_its_answers(fast: bool) -> None:
    with serving(fast) as server, HostileClient(server.path) as hostile:
        hostile.begin()
        hostile.send(b"".join(request(cookie=n) for n in range(100)))
        hostile.socket.shutdown(socket.SHUT_WR)
        assert len(hostile.receive(100 * (16 + 4096) + 1)) == 100 * (16 + 4096)


@BOTH
@pytest.mark.parametrize("length", [4096, 20_000, 100_000, 8 << 20])
def test_a_client_that_fetches_nothing_holds_little_and_delays_nobody(
    fast: bool, length: int
) -> None:
    with serving(fast, client_bytes=16 * MIB, stall_seconds=0) as server:
        with HostileClient(server.path) as hostile:
            hostile.begin()
            hostile.socket.settimeout(1)
            with contextlib.suppress(TimeoutError):
                for _ in range(200):
                    hostile.send(request(length=length) * 256)
            for _ in range(5):
                works(server)
                assert server.server.budget.bytes <= 16 * MIB + max(8 * MIB, length)
        assert nobody_left(server)
        assert nothing_held(server)


@BOTH
def test_a_flood_of_invalid_requests_is_answered_without_piling_up(fast: bool) -> None:
    with serving(fast) as server, HostileClient(server.path) as hostile:
        hostile.begin()
        hostile.socket.settimeout(1)
        with contextlib.suppress(TimeoutError):
            for _ in range(100):
                hostile.send(request(77) * 1000)
        works(server)
        hostile.socket.settimeout(PATIENCE)
        assert len(hostile.receive(16_000)) == 16_000
        works(server)


def test_a_flood_of_listings_is_answered_without_piling_up() -> None:
    disk = MemoryStore(bytes(4096), growable=False)
    exports = [Export(f"export number {n}", disk) for n in range(1000)]
    exports.append(Export("", MemoryStore(b"v" * 4096, growable=False)))
    with running(lambda: Server(exports)) as server, HostileClient(server.path) as hostile:
        hostile.socket.settimeout(1)
        with contextlib.suppress(TimeoutError):
            hostile.send(FLAGS + option(Option.NBD_OPT_LIST) * 9000)
        works(server)
        assert len(hostile.receive(1000)) == 1000


def test_too_many_options_end_the_connection() -> None:
    with serving() as server, HostileClient(server.path) as hostile:
        hostile.send(FLAGS)
        for _ in range(11):
            hostile.send(option(Option.NBD_OPT_STRUCTURED_REPLY) * 1000)
            hostile.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                while hostile.socket.recv(1 << 16):
                    pass
            hostile.socket.settimeout(PATIENCE)
        assert hostile.closed()
        works(server)


def test_silence_in_the_handshake_is_ended() -> None:
    with serving(handshake_seconds=0.5) as server, HostileClient(server.path) as hostile:
        assert hostile.closed()
        server.server.limits = ServerLimits()  # the honest one may take its time
        works(server)


def test_a_handshake_drop_by_drop_is_ended() -> None:
    with serving(handshake_seconds=1) as server, HostileClient(server.path) as hostile:
        assert eventually(lambda: not hostile.send(b"\0"), pause=0.05)
        server.server.limits = ServerLimits()
        works(server)


@BOTH
def test_stopping_within_a_request_is_ended(fast: bool) -> None:
    with serving(fast, stall_seconds=0.5) as server:
        for beginning in (request()[:20], request(1, 0, MIB) + bytes(1000)):
            with HostileClient(server.path) as hostile:
                hostile.begin()
                hostile.send(beginning)
                assert hostile.closed()
        works(server)


@BOTH
def test_a_client_that_stops_fetching_is_ended(fast: bool) -> None:
    with serving(fast, stall_seconds=0.5) as server, HostileClient(server.path) as hostile:
        hostile.begin()
        hostile.send(request(length=MIB) * 16)
        assert nobody_left(server)
        works(server)


def test_an_idle_client_is_ended_only_where_that_is_asked_for() -> None:
    with serving(idle_seconds=0.5) as server, HostileClient(server.path) as hostile:
        hostile.begin()
        assert hostile.closed()
    with serving() as server, HostileClient(server.path) as hostile:
        hostile.begin()
        hostile.socket.settimeout(2)
        assert not hostile.closed()


def test_silent_connections_keep_nobody_out() -> None:
    with serving(connections=10) as server, contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(HostileClient(server.path))
        works(server)
        assert len(server.server.clients) <= 10


def test_connections_over_the_limit_are_refused() -> None:
    with serving(connections=2) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(HostileClient(server.path)).begin()
        with HostileClient(server.path) as late:
            assert late.closed()
        assert len(server.server.clients) == 2


@BOTH
def test_large_writes_never_finished_hold_one_request_each(fast: bool) -> None:
    with serving(fast, total_bytes=MIB, largest_request=4 * MIB) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                hostile = stack.enter_context(HostileClient(server.path))
                hostile.begin()
                hostile.send(request(1, 0, 4 * MIB) + bytes(3 * MIB))
            works(server)
        works(server)
