"""The server as a whole: exports, who may use them, how many, how fast, and how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_client import HostileClient, request
from tests.tools.nbd_pair import BlockingClient
from tests.tools.nbd_server import Running, running
from tests.tools.patience import PATIENCE, eventually
from vdisk.errors import (
    AlreadyExistsError,
    AuthenticationError,
    DeviceError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
    VdiskError,
)
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.errors import NegotiationError
from vdisk.nbd_server import (
    DirectoryOfImages,
    Export,
    Server,
    ServerLimits,
    Throttle,
    certificates,
    pre_shared_keys,
)
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 1 << 20


def disk(letter: bytes = b"a") -> MemoryStore:
    return MemoryStore(letter * SIZE, growable=False)


def connect(server: Running, export: str = "") -> BlockingClient:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(server.path))
    try:
        return BlockingClient(connection, ClientSettings(export))
    except VdiskError:
        connection.close()
        raise


class SlowToZero(MemoryStore):
    """A disk that takes its time; ``order``: what has happened to it."""

    def __init__(self) -> None:
        super().__init__(bytes(SIZE), growable=False)
        self.order: list[str] = []
        self._begun = threading.Event()

    def asked(self, server: Running) -> BlockingClient:
        """A client that has asked for zeroes, which are being written."""
        client = connect(server)
        outgoing = client.machine.write_zeroes(0, 4096)
        client.socket.sendall(b"".join(map(bytes, outgoing.buffers)))
        assert self._begun.wait(PATIENCE)
        return client

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._begun.set()
        time.sleep(0.3)
        self.order.append("written")

    def _flush(self) -> None:
        self.order.append("flushed")


def first_byte(client: BlockingClient) -> bytes:
    events = client.call(client.machine.read(0, 1))
    return bytes(events[-1].data)  # type: ignore[union-attr]


# -- exports -------------------------------------------------------------------------------------


def test_exports_are_found_by_name_and_one_can_be_the_default() -> None:
    exports = [Export("one", disk(b"1")), Export("two", disk(b"2"))]
    with running(lambda: Server(exports, default="two")) as server:
        for name, expected in (("one", b"1"), ("two", b"2"), ("", b"2")):
            client = connect(server, name)
            assert first_byte(client) == expected
            client.close()
        with pytest.raises(NegotiationError):
            connect(server, "three")


def test_exports_come_and_go_while_the_server_runs() -> None:
    with running(lambda: Server([Export("old", disk())])) as server:
        old = connect(server, "old")
        server.call(lambda: server.server.add_export(Export("new", disk(b"n"))))
        new = connect(server, "new")
        assert first_byte(new) == b"n"
        with pytest.raises(AlreadyExistsError):
            server.call(lambda: server.server.add_export(Export("new", disk())))
        server.call(lambda: server.server.remove_export("old"))
        with pytest.raises((VdiskError, OSError)):
            first_byte(old)
        assert first_byte(new) == b"n"
        with pytest.raises(NegotiationError):
            connect(server, "old")
        with pytest.raises(NotFoundError):
            server.call(lambda: server.server.remove_export("old"))
        old.socket.close()
        new.close()


def test_a_removed_export_has_answered_and_flushed_what_was_asked() -> None:
    device = SlowToZero()
    with running(lambda: Server([Export("", device)])) as server:
        client = device.asked(server)
        server.call(lambda: server.server.remove_export(""))
        assert device.order == ["written", "flushed"]
        assert len(client.socket.recv(100)) >= 16
        client.socket.close()


def test_a_read_only_device_is_not_exported_for_writing() -> None:
    device = disk()
    device.readonly = True
    assert Export("", device).read_only
    with pytest.raises(InvalidRequestError):
        Export("", device, read_only=False)


def test_images_of_a_directory_are_open_while_somebody_uses_them(tmp_path: Path) -> None:
    for name in ("a", "b", ".hidden"):
        (tmp_path / name).write_bytes(name[:1].encode() * 4096)
    (tmp_path / "folder").mkdir()
    opened: list[str] = []
    closed: list[str] = []

    class Tracked(MemoryStore):
        def _close(self) -> None:
            closed.append(self.name)

    def open_file(path: str, name: str) -> Export:
        if name == "b":
            raise DeviceError("cannot be read", path=path)
        opened.append(name)
        content = (tmp_path / name).read_bytes()
        return Export(name, Tracked(content, growable=False, name=name))

    source = DirectoryOfImages(str(tmp_path), open_file)
    assert source.names() == [("a", ""), ("b", "")]
    with running(lambda: Server(sources=[source])) as server:
        first, second = connect(server, "a"), connect(server, "a")
        assert opened == ["a"]
        assert first_byte(first) == first_byte(second) == b"a"
        for name in ("b", ".hidden", "folder", "../a", "a/", "nothing"):
            with pytest.raises(NegotiationError):
                connect(server, name)
        first.close()
        time.sleep(1.5)
        assert first_byte(second) == b"a"
        assert closed == []
        second.close()
        assert eventually(lambda: closed == ["a"])
        third = connect(server, "a")
        assert opened == ["a", "a"]
        third.close()
    assert closed == ["a", "a"]


# -- who -----------------------------------------------------------------------------------------


def test_users_are_told_apart_by_their_id() -> None:
    me, other = f"uid:{os.getuid()}", f"uid:{os.getuid() + 1}"
    exports = [
        Export("mine", disk(), allow=[other, me]),
        Export("theirs", disk(), allow=[other]),
    ]
    with running(lambda: Server(exports)) as server:
        connect(server, "mine").close()
        with pytest.raises(NegotiationError):
            connect(server, "theirs")
    with running(lambda: Server(exports, allow=[me])) as server:
        connect(server, "mine").close()
    with (
        running(lambda: Server(exports, allow=[other])) as server,
        HostileClient(server.path) as client,
    ):
        assert client.closed()


@pytest.mark.parametrize("text", ["", "uid", "uid:", "uid:root", "user:root", "cn:", "dn"])
def test_rules_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        Export("", disk(), allow=[text])


def test_credentials_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        certificates(tmp_path)
    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        (tmp_path / name).write_text("no certificate")
    with pytest.raises(AuthenticationError):
        certificates(tmp_path)


def test_pre_shared_keys_need_a_python_that_has_them(tmp_path: Path) -> None:
    import ssl

    (tmp_path / "keys.psk").write_text("# keys\nalice:001122\n")
    if hasattr(ssl.SSLContext, "set_psk_server_callback"):
        assert pre_shared_keys(tmp_path).psk
    else:
        with pytest.raises(UnsupportedFeatureError, match=r"Python 3\.13"):
            pre_shared_keys(tmp_path)


# -- how many, how fast --------------------------------------------------------------------------


def test_with_shared_others_wait_until_one_leaves() -> None:
    with running(lambda: Server([Export("", disk())], shared=1)) as server:
        first = connect(server)
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(str(server.path))
            second.settimeout(0.5)
            with pytest.raises(TimeoutError):
                second.recv(1)
            first.close()
            second.settimeout(PATIENCE)
            assert second.recv(8) == b"NBDMAGIC"


@pytest.mark.parametrize(
    ("throttle", "seconds"),
    [(lambda: Throttle(iops=200), 100 / 200), (lambda: Throttle(bps=SIZE), 100 * 4096 / SIZE)],
    ids=["iops", "bps"],
)
def test_a_throttled_export_keeps_its_rate(
    throttle: Callable[[], Throttle], seconds: float
) -> None:
    export = Export("", disk(), throttle=throttle())
    with running(lambda: Server([export])) as server, HostileClient(server.path) as client:
        client.begin()
        began = time.monotonic()
        client.send(b"".join(request(cookie=n) for n in range(100)))
        assert len(client.receive(100 * 4112)) == 100 * 4112
        took = time.monotonic() - began
    # The first tenth of a second's worth comes at once.
    assert seconds - 0.15 < took < seconds + PATIENCE


def test_a_slow_device_delays_only_its_own_clients() -> None:
    over = threading.Event()

    class Slow(MemoryStore):
        def _read_into(self, offset: int, view: memoryview) -> None:
            over.wait(PATIENCE)

    exports = [Export("slow", Slow(bytes(SIZE), growable=False)), Export("quick", disk())]
    with running(lambda: Server(exports)) as server:
        slow = connect(server, "slow")
        outgoing = slow.machine.read(0, 512)
        slow.socket.sendall(b"".join(map(bytes, outgoing.buffers)))
        quick = connect(server, "quick")
        for _ in range(20):
            assert first_byte(quick) == b"a"
        assert not over.is_set()
        over.set()
        quick.close()
        slow.socket.close()


@pytest.mark.parametrize(
    "limits",
    [{"connections": 0}, {"client_bytes": -1}, {"largest_request": 100}, {"workers": 0}],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError):
        ServerLimits(**limits)


# -- the end -------------------------------------------------------------------------------------


def test_the_end_answers_what_was_asked_and_flushes() -> None:
    device = SlowToZero()
    with running(lambda: Server([Export("", device)])) as server:
        client = device.asked(server)
    assert device.order == ["written", "flushed"]
    assert len(client.socket.recv(100)) >= 16
    client.socket.close()


def test_a_flush_that_fails_at_the_end_is_not_silent() -> None:
    class Failing(MemoryStore):
        def _flush(self) -> None:
            raise DeviceError("the disk is gone")

    async def serve() -> None:
        async with Server([Export("", Failing(bytes(SIZE), growable=False))]):
            pass

    with pytest.raises(DeviceError):
        asyncio.run(serve())


def test_a_client_that_fetches_nothing_does_not_hold_up_the_end() -> None:
    limits = ServerLimits(drain_seconds=0.5)
    with running(lambda: Server([Export("", disk())], limits=limits)) as server:
        client = HostileClient(server.path)
        client.begin()
        client.send(request(length=SIZE) * 64)
        assert eventually(lambda: server.server.budget.bytes > 0)
    client.socket.close()


def test_unix_sockets_are_removed_and_stale_ones_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def serve() -> None:
        async with Server([Export("", disk())]) as server:
            await server.listen_unix(path)
            async with Server() as other:
                with pytest.raises(DeviceError):
                    await other.listen_unix(path)

    asyncio.run(serve())
    assert not path.exists()


def test_tcp_on_a_free_port_of_every_address_of_localhost() -> None:
    async def serve() -> None:
        async with Server([Export("", disk())]) as server:
            ports = await server.listen_tcp("localhost", 0)
            assert len(set(ports)) == 1
            with socket.create_connection(("localhost", ports[0])) as client:
                client.setblocking(False)
                data = await asyncio.get_running_loop().sock_recv(client, 8)
            assert data == b"NBDMAGIC"
            assert server.uris[0].startswith("nbd://")

    asyncio.run(serve())
