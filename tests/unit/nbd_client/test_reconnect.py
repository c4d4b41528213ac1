"""When a connection is lost: what is sent again, what fails, and what a flush means then."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_server import (
    Edit,
    HostileServer,
    Phase,
    Tampered,
    honest,
    stall,
    tampered,
)
from tests.tools.nbd_pair import MemoryDisk
from tests.tools.patience import PATIENCE
from vdisk.errors import DeviceError, VdiskError
from vdisk.stores._nbd.channel import ConnectionLostError
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from tests.tools.hostile_server import Behaviour
    from vdisk.nbd.events import Request
    from vdisk.nbd.wire import ErrorValue

SIZE = 1 << 20
ONCE = NbdSettings(
    PoolSettings(connections=1, request_timeout=PATIENCE), extended_headers=False, timeout=PATIENCE
)
AGAIN = ONCE._replace(pool=ONCE.pool._replace(reconnect_delay=PATIENCE))


class SlowDisk(MemoryDisk):
    def failure(self, request: Request) -> tuple[int, ErrorValue] | None:
        time.sleep(0.002)
        return super().failure(request)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """A behaviour for each connection; the last for all that follow."""

    def behave(connection: socket.socket, number: int) -> None:
        behaviours[min(number, len(behaviours) - 1)](connection, number)

    return behave


def dying(disk: MemoryDisk, reply: int) -> Behaviour:
    """Carries out requests, and closes instead of giving the reply with this number."""
    return tampered(disk, Edit(Phase.TRANSMISSION, reply, 0, b"", then="close"))


@pytest.mark.parametrize("settings", [ONCE, AGAIN])
def test_a_request_without_an_answer(settings: NbdSettings) -> None:
    disk = MemoryDisk.of(SIZE)
    disk.content[:] = b"x" * SIZE
    behaviour = in_turn(dying(disk, 0), honest(disk))
    with HostileServer(behaviour) as server, NbdStore(server.uri, settings=settings) as store:
        if settings is ONCE:
            with pytest.raises(ConnectionLostError, match="closed the connection"):
                store.read(0, 4096)
        assert store.read(0, 4096) == b"x" * 4096  # over a new connection in both cases
        assert server.connections == 2


def test_many_requests_are_sent_again() -> None:
    disk = MemoryDisk.of(SIZE)
    disk.content[:] = bytes(range(256)) * (SIZE // 256)
    settings = AGAIN._replace(request_size=4096)
    behaviour = in_turn(dying(disk, 5), dying(disk, 9), honest(disk))
    results: list[bool] = []

    def work(store: NbdStore) -> None:
        results.append(store.read(0, SIZE) == disk.content)

    with HostileServer(behaviour) as server, NbdStore(server.uri, settings=settings) as store:
        threads = [threading.Thread(target=work, args=(store,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert results == [True] * 4


def test_acknowledged_writes_come_back_before_a_flush_succeeds() -> None:
    """The first server forgets all it was told when it dies; the second is a fresh one."""
    first, second = MemoryDisk.of(SIZE), MemoryDisk.of(SIZE)
    behaviour = in_turn(dying(first, 3), honest(second))
    with HostileServer(behaviour) as server:
        store = NbdStore(server.uri, readonly=False, settings=AGAIN)
        with store:
            store.write(0, b"a" * 4096)
            store.write_zeroes(1024, 1024)
            store.write(512, b"b" * 512)
            store.flush()  # the fourth reply, which never comes
    expected = b"a" * 512 + b"b" * 512 + bytes(1024) + b"a" * 2048
    assert second.content[:4096] == expected


def test_a_server_that_dies_while_it_is_told_again() -> None:
    """The order of the writes survives any number of deaths: the newest wins."""
    disk = MemoryDisk.of(SIZE)
    behaviour = in_turn(dying(disk, 3), dying(disk, 1), dying(disk, 2), honest(disk))
    with (
        HostileServer(behaviour) as server,
        NbdStore(server.uri, readonly=False, settings=AGAIN) as store,
    ):
        for letter in (b"a", b"b", b"c"):
            store.write(0, letter * 4096)
        assert store.read(0, 4096) == b"c" * 4096
        assert server.connections == 4


def test_what_a_flush_covered_is_not_written_again() -> None:
    first, second = MemoryDisk.of(SIZE), MemoryDisk.of(SIZE)
    behaviour = in_turn(dying(first, 3), honest(second))
    with (
        HostileServer(behaviour) as server,
        NbdStore(server.uri, readonly=False, settings=AGAIN) as store,
    ):
        store.write(0, b"a" * 4096)
        store.flush()
        store.write(4096, b"b" * 4096)
        store.write(8192, b"c" * 4096)
    assert second.content[:12288] == bytes(4096) + b"b" * 4096 + b"c" * 4096


def test_without_reconnecting_a_flush_admits_the_loss_once() -> None:
    disk = MemoryDisk.of(SIZE)
    behaviour = in_turn(dying(disk, 1), honest(disk))
    with (
        HostileServer(behaviour) as server,
        NbdStore(server.uri, readonly=False, settings=ONCE) as store,
    ):
        store.write(0, b"a" * 4096)
        with pytest.raises(ConnectionLostError):
            store.read(0, 512)
        with pytest.raises(DeviceError, match="may be gone"):
            store.flush()
        store.flush()


def test_a_flush_admits_nothing_where_nothing_was_lost() -> None:
    disk = MemoryDisk.of(SIZE)
    behaviour = in_turn(dying(disk, 2), honest(disk))
    with (
        HostileServer(behaviour) as server,
        NbdStore(server.uri, readonly=False, settings=ONCE) as store,
    ):
        store.write(0, b"a" * 4096)
        store.flush()
        with pytest.raises(ConnectionLostError):
            store.read(0, 512)
        store.flush()


def test_writes_are_not_repeated_behind_the_back_of_a_silent_server() -> None:
    disk = MemoryDisk.of(SIZE)
    quick = AGAIN._replace(pool=AGAIN.pool._replace(request_timeout=0.5))
    silent = tampered(disk, Edit(Phase.TRANSMISSION, 0, 0, b"", then="stall"))
    for call, fails in ((lambda s: s.write(0, b"x"), True), (lambda s: s.read(0, 1), False)):
        with (
            HostileServer(in_turn(silent, honest(disk))) as server,
            NbdStore(server.uri, readonly=False, settings=quick) as store,
        ):
            if fails:
                with pytest.raises(ConnectionLostError, match="is unknown"):
                    call(store)
            else:
                call(store)


def test_a_server_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdisk.stores._nbd.pool.REFUSING", PATIENCE)
    disk = MemoryDisk.of(SIZE)
    settings = AGAIN._replace(pool=AGAIN.pool._replace(reconnect_delay=1), timeout=3)
    with HostileServer(in_turn(dying(disk, 0), stall)) as server:
        store = NbdStore(server.uri, settings=settings)
        begin = time.monotonic()
        with pytest.raises(ConnectionLostError, match="did not end"):
            store.read(0, 512)
        assert time.monotonic() - begin > 0.9
        tried = server.connections
        with pytest.raises(VdiskError):  # and now without waiting once more
            store.read(0, 512)
        assert server.connections == tried
        store.close()


def test_another_export_is_not_taken_for_the_old_one() -> None:
    disk, other = MemoryDisk.of(SIZE), MemoryDisk.of(2 * SIZE)
    with HostileServer(in_turn(dying(disk, 0), honest(other))) as server:
        store = NbdStore(server.uri, settings=AGAIN)
        with pytest.raises(DeviceError, match="another export: 2097152 bytes"):
            store.read(0, 512)
        store.close()


def test_a_request_that_kills_every_server_fails_in_the_end() -> None:
    disk = MemoryDisk.of(SIZE)
    with HostileServer(dying(disk, 0)) as server:
        store = NbdStore(server.uri, settings=AGAIN)
        with pytest.raises(ConnectionLostError):
            store.read(0, 512)
        assert server.connections == 5
        store.close()


def test_opening_waits_for_a_server_to_come() -> None:
    disk = MemoryDisk.of(SIZE)
    server = HostileServer(honest(disk))
    waiting = NbdSettings(PoolSettings(open_timeout=PATIENCE))
    with pytest.raises(VdiskError, match="No such file"):
        NbdStore(server.uri)
    timer = threading.Timer(0.3, server.__enter__)
    timer.start()
    try:
        with NbdStore(server.uri, settings=waiting) as store:
            assert store.size == SIZE
    finally:
        timer.join()
        server.__exit__()


def test_the_last_of_several_connections_carries_on() -> None:
    """One of two connections dies: its requests go over the other, nothing is written twice."""
    disk = SlowDisk.of(SIZE)  # so slow that the client opens a second connection
    settings = AGAIN._replace(pool=AGAIN.pool._replace(connections=2), request_size=4096)
    behaviour = in_turn(honest(disk), dying(disk, 3), honest(disk))
    with HostileServer(behaviour) as server:
        with NbdStore(server.uri, readonly=False, settings=settings) as store:
            together = threading.Barrier(8)

            def write(number: int) -> None:
                together.wait(PATIENCE)  # however slow the host starts them
                for part in range(4):  # each chooses a connection: the busy one, or another
                    start = number * 131072 + part * 32768
                    store.write(start, bytes([number + 1]) * 32768)

            threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            store.flush()
        assert server.connections >= 2
    for number in range(8):
        part = disk.content[number * 131072 : (number + 1) * 131072]
        assert part == bytes([number + 1]) * 131072


def test_a_closed_store_says_so() -> None:
    with HostileServer(honest(MemoryDisk.of(SIZE))) as server:
        store = NbdStore(server.uri)
        store.close()
        with pytest.raises(VdiskError, match="closed"):
            store.read(0, 1)


def test_tampering_is_seen() -> None:
    """The test tool itself: a message that is edited arrives edited."""
    one, other = socket.socketpair()
    with one, other:
        stream = Tampered(one, Edit(Phase.GREETING, 0, 3, b"xx"))
        stream.sendall(b"NBDMAGIC")
        assert other.recv(8) == b"NBDxxGIC"
