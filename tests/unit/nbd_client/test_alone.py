"""One small request at a time: the short road, and where it must not be taken."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools.hostile_server import HostileServer, honest
from tests.tools.nbd_pair import MemoryDisk, serve
from tests.tools.nbd_server import running
from vdisk.errors import DeviceError
from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.wire import ErrorValue
from vdisk.nbd_server import Export, Server
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.memory import MemoryStore
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    import socket

    from vdisk.nbd.events import ClientEvent

SIZE = 1 << 20
ONE = NbdSettings(PoolSettings(connections=1), meta_contexts=())
STYLES = {
    "simple": ONE._replace(structured_replies=False, extended_headers=False),
    "structured": ONE._replace(extended_headers=False),
    "extended": ONE,
}


def disk() -> MemoryDisk:
    found = MemoryDisk.of(SIZE)
    found.content[:] = random.Random(3).randbytes(SIZE)
    return found


class Cutting:
    """A socket whose replies arrive in two pieces, the first of them ``cut`` bytes long."""

    def __init__(self, connection: socket.socket, cut: int) -> None:
        self._connection = connection
        self.cut = cut

    def __enter__(self) -> Cutting:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendmsg(self, buffers: list[bytes], *_rest: Any) -> int:
        data = b"".join(map(bytes, buffers))
        self.sendall(data)
        return len(data)

    def sendall(self, data: bytes) -> None:
        head = bytes(data[:4])
        if head in (b"\x67\x44\x66\x98", b"\x66\x8e\x33\xef", b"\x6e\x8a\x27\x8c"):
            self._connection.sendall(data[: self.cut])
            time.sleep(0.003)
            data = data[self.cut :]
        self._connection.sendall(data)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 20, 27, 28, 29, 40, 48, 49, 500, 511, 4111])
def test_a_reply_in_two_pieces(style: str, cut: int) -> None:
    served = disk()
    expected = bytes(served.content)

    def behave(connection: socket.socket, _number: int) -> None:
        cutting: Any = Cutting(connection, cut)
        serve(cutting, {"": served}, ServerNegotiation())

    with (
        HostileServer(behave) as server,
        NbdStore(server.uri, readonly=False, settings=STYLES[style]) as store,
    ):
        for offset in (0, 77_777):
            assert store.read(offset, 4096) == expected[offset : offset + 4096]
            store.write(offset, b"w" * 512)
            store.flush()
            assert store.read(offset, 600) == b"w" * 512 + expected[offset + 512 : offset + 600]


@pytest.mark.parametrize("style", STYLES)
def test_the_state_machine_is_not_asked_for_the_usual(
    style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    next_event = ClientTransmission.next_event

    def counting(machine: ClientTransmission) -> ClientEvent | None:
        nonlocal asked
        event = next_event(machine)
        asked += event is not None
        return event

    with (
        running(lambda: Server([Export("", MemoryStore(bytes(SIZE), growable=False))])) as server,
        NbdStore(server.uri, readonly=False, settings=STYLES[style]) as store,
    ):
        monkeypatch.setattr(ClientTransmission, "next_event", counting)
        store.write(100, b"x" * 4096)
        assert store.read(100, 4096) == b"x" * 4096
        store.flush()
        assert asked == 0
        assert store.read(0, 1 << 17)  # too long for it
        assert asked > 0


@pytest.mark.parametrize("style", STYLES)
def test_a_request_that_fails_is_named(style: str) -> None:
    served = disk()
    served.failures[5000] = ErrorValue.NBD_EIO
    with (
        HostileServer(honest(served)) as server,
        NbdStore(server.uri, readonly=False, settings=STYLES[style]) as store,
    ):
        for _ in range(3):
            with pytest.raises(DeviceError, match="NBD_EIO"):
                store.read(4096, 4096)
            with pytest.raises(DeviceError, match="NBD_EIO"):
                store.write(4096, b"w" * 4096)
            assert store.read(0, 100) == bytes(served.content[:100])


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_that_meet_in_one_connection(threads: int) -> None:
    """Each with one small request at a time, in its own range; now and then a long one."""
    failures: list[BaseException] = []

    def work(store: NbdStore, number: int) -> None:
        try:
            rng, span = random.Random(number), SIZE // threads // 4096 * 4096
            mine = bytearray(store.read(number * span, span))
            for _ in range(150):
                length = rng.choice([1, 512, 4096, 4096, 40_000])
                offset = rng.randrange(span - length)
                if rng.random() < 0.4:
                    mine[offset : offset + length] = data = rng.randbytes(length)
                    store.write(number * span + offset, data)
                else:
                    found = store.read(number * span + offset, length)
                    assert found == mine[offset : offset + length]
        except BaseException as error:
            failures.append(error)

    with (
        HostileServer(honest(disk())) as server,
        NbdStore(server.uri, readonly=False, settings=ONE) as store,
    ):
        workers = [threading.Thread(target=work, args=(store, n)) for n in range(threads)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join(60)
        assert not any(thread.is_alive() for thread in workers)
    assert not failures
