"""The NBD client as a device: against qemu-nbd 7.2, nbdkit 1.32 and our own server."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import qemu
from tests.tools.certificates import make_credentials
from tests.tools.content import content, exercise
from tests.tools.nbdkit import nbdkit
from tests.tools.peers import requires_peer
from vdisk.block import Kind
from vdisk.errors import AuthenticationError, DeviceError, VdiskError
from vdisk.opening import open_image
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

trustme = pytest.importorskip("trustme")

MiB = 1 << 20


# -- qemu-nbd --------------------------------------------------------------------------------


@requires_peer("qemu-nbd", "qemu-img")
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_qemu_nbd_7_2_serves(format: str, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    qemu.create(image, "8M", format)
    with (
        qemu.nbd(image, format, "--discard=unmap", "--cache=writeback") as uri,
        NbdStore(uri, readonly=False) as store,
    ):
        model = exercise(store, 8 * MiB)
    assert qemu.content(image, format) == model
    if format == "qcow2":
        assert qemu.check(image)["check-errors"] == 0


@requires_peer("qemu-nbd", "qemu-img")
def test_qemu_nbd_7_2_with_direct_io_has_larger_blocks(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(content())
    with (
        qemu.nbd(image, "raw", "--cache=none", "--aio=threads") as uri,
        NbdStore(uri, readonly=False) as store,
    ):
        model = exercise(store, 8 * MiB)
    assert image.read_bytes() == model


@requires_peer("qemu-nbd", "qemu-img")
def test_a_qcow2_image_on_an_export_of_qemu_nbd_7_2(tmp_path: Path) -> None:
    """Our qcow2, over NBD, on a raw file: qemu-img finds nothing wrong with it."""
    place = tmp_path / "place.raw"
    with place.open("wb") as file:
        file.truncate(32 * MiB)
    with qemu.nbd(place) as uri:
        vdisk.create(uri, 16 * MiB, format="qcow2")
        with vdisk.open(uri, "r+", format="qcow2") as image:
            model = exercise(image, 16 * MiB)
    assert qemu.check(place, "qcow2")["check-errors"] == 0
    assert qemu.content(place, "qcow2") == model


@requires_peer("qemu-nbd", "qemu-img", "qemu-io")
def test_the_map_of_qemu_nbd_7_2(tmp_path: Path) -> None:
    qemu.create(tmp_path / "base.qcow2", "4M")
    qemu.io(tmp_path / "base.qcow2", "write 0 1M")
    qemu.create(tmp_path / "top.qcow2", "4M", backing_file="base.qcow2", backing_fmt="qcow2")
    qemu.io(tmp_path / "top.qcow2", "write 64k 64k", "write -z 2M 64k")
    with qemu.nbd(tmp_path / "top.qcow2", "qcow2", "-A", readonly=True) as uri:
        with NbdStore(uri) as store:
            found = [(each.start, each.length, each.kind, each.depth) for each in store.map()]
        listed = qemu.img_json("map", "-f", "raw", uri)
    assert found == [
        (0, 65536, Kind.DATA, 1),
        (65536, 65536, Kind.DATA, 0),
        (131072, MiB - 131072, Kind.DATA, 1),
        (MiB, MiB, Kind.HOLE, 0),
        (2 * MiB, 65536, Kind.ZERO, 0),
        (2 * MiB + 65536, 2 * MiB - 65536, Kind.HOLE, 0),
    ]
    # qemu-img, which knows of no depth here, agrees about what is zero.
    zero = [(each["start"], each["length"]) for each in listed if each["zero"]]
    assert sum(length for _, length in zero) == 3 * MiB


# -- nbdkit ----------------------------------------------------------------------------------


@requires_peer("nbdkit")
@pytest.mark.parametrize(
    "words",
    [
        ["memory", "8M"],
        ["--filter=noextents", "memory", "8M"],
        ["--filter=nozero", "memory", "8M"],
        ["--filter=nozero", "--filter=fua", "memory", "8M", "fuamode=emulate"],
        ["--filter=multi-conn", "memory", "8M", "multi-conn-mode=disable"],
        ["--filter=noparallel", "memory", "8M"],
        [
            "--filter=blocksize-policy",
            "memory",
            "8M",
            "blocksize-minimum=4096",
            "blocksize-maximum=64k",
            "blocksize-error-policy=error",
        ],
        ["--no-sr", "memory", "8M"],
        # Not "-o": nbdkit 1.32 offers an oldstyle client flushes, and then refuses them.
    ],
)
def test_nbdkit_1_32_serves(words: list[str]) -> None:
    with nbdkit(*words) as server, NbdStore(server.uri, readonly=False) as store:
        exercise(store, 8 * MiB)


@requires_peer("nbdkit")
def test_the_pattern_of_nbdkit_1_32() -> None:
    """Every 8 bytes say where they are: nothing is delivered to a wrong place."""
    with (
        nbdkit("pattern", "1G") as server,
        NbdStore(server.uri, settings=NbdSettings(request_size=65536)) as store,
    ):
        for offset in (0, 8, 123 * MiB, 1024 * MiB - 5 * MiB):
            found = store.read(offset, 5 * MiB)
            step = 4096 * 8
            for position in range(0, len(found), step):
                value = int.from_bytes(found[position : position + 8], "big")
                assert value == offset + position


@requires_peer("nbdkit")
def test_sparse_data_of_nbdkit_1_32() -> None:
    with (
        nbdkit("data", "data=@65536 0xff*65536 @1048576 1", "size=2M") as server,
        NbdStore(server.uri) as store,
    ):
        kinds = [(each.start, each.kind) for each in store.map()]
        assert kinds == [
            (0, Kind.ZERO),
            (65536, Kind.DATA),
            (131072, Kind.ZERO),
            (MiB, Kind.DATA),
            (MiB + 32768, Kind.ZERO),
        ]
        assert store.read(65535, 3) == b"\0\xff\xff"
        assert store.read(0, 2 * MiB).count(0xFF) == 65536


@requires_peer("nbdkit")
@pytest.mark.parametrize(
    ("name", "number"), [("EIO", 5), ("ENOSPC", 28), ("ENOMEM", 12), ("EPERM", 1)]
)
def test_the_error_filter_of_nbdkit_1_32(name: str, number: int) -> None:
    words = ["--filter=error", "memory", "1M", f"error={name}", "error-pwrite-rate=100%"]
    with nbdkit(*words) as server, NbdStore(server.uri, readonly=False) as store:
        with pytest.raises(VdiskError) as caught:
            store.write(4096, b"x")
        assert caught.value.errno == number
        assert store.read(0, 512) == bytes(512)


@requires_peer("nbdkit")
def test_some_of_many_requests_fail() -> None:
    words = ["--filter=error", "pattern", "64M", "error-pread-rate=20%"]
    with (
        nbdkit(*words) as server,
        NbdStore(server.uri, settings=NbdSettings(request_size=4096)) as store,
    ):
        with pytest.raises(DeviceError, match="NBD_EIO"):
            store.read(0, 16 * MiB)
        good = 0
        for number in range(200):
            with contextlib.suppress(DeviceError):
                data = store.read(number * 4096, 4096)
                assert int.from_bytes(data[:8], "big") == number * 4096
                good += 1
        assert 100 < good < 200


@requires_peer("nbdkit")
def test_the_delay_filter_of_nbdkit_1_32() -> None:
    """64 requests that take half a second each are under way together: not in 32 s."""
    with (
        nbdkit("--filter=delay", "-t", "64", "memory", "1M", "delay-read=500ms") as server,
        NbdStore(server.uri, settings=NbdSettings(request_size=16384)) as store,
    ):
        begin = time.monotonic()
        assert store.read(0, MiB) == bytes(MiB)
        assert time.monotonic() - begin < 32


@requires_peer("nbdkit")
def test_a_server_that_is_too_slow() -> None:
    settings = NbdSettings(PoolSettings(request_timeout=0.5))
    with nbdkit("--filter=delay", "memory", "1M", "delay-read=30") as server:
        silent = pytest.raises(DeviceError, match="silent")
        with NbdStore(server.uri, settings=settings) as store, silent:
            store.read(0, 512)
        server.kill()  # or it would wait for the request


# -- ours, and NBD on NBD --------------------------------------------------------------------


def test_our_own_server(tmp_path: Path) -> None:
    from tests.tools import nbd_server

    vdisk.create(tmp_path / "disk.qcow2", 8 * MiB, format="qcow2")
    with (
        nbd_server.process("-f", "qcow2", tmp_path / "disk.qcow2") as (path, _process),
        NbdStore(f"nbd+unix:///?socket={path}", readonly=False) as store,
    ):
        model = exercise(store, 8 * MiB)
    with vdisk.open(tmp_path / "disk.qcow2") as image:
        assert image.read(0, 8 * MiB) == model


@requires_peer("nbdkit", "qemu-img")
def test_nbd_on_nbd() -> None:
    """Our server on our client on nbdkit 1.32; read by qemu-img 7.2."""
    from tests.tools import nbd_server

    with nbdkit("memory", "8M") as server:
        with nbd_server.process("-f", "raw", server.uri) as (path, _process):
            outer = f"nbd+unix:///?socket={path}"
            with NbdStore(outer, readonly=False) as store:
                model = exercise(store, 8 * MiB)
            assert qemu.content(outer, "raw") == model
        assert qemu.content(server.uri, "raw") == model


# -- TLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_credentials(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def tls_server(kind: str, credentials: Path, tmp_path: Path) -> Iterator[str]:
    """A server that demands TLS and client certificates; gives its socket's path."""
    server = credentials / "server"
    if kind == "nbdkit":
        words = ["--tls=require", f"--tls-certificates={server}", "--tls-verify-peer"]
        with nbdkit(*words, "memory", "8M") as running:
            yield str(running.path)
        return
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(8 * MiB))
    object = f"tls-creds-x509,id=t,endpoint=server,dir={server},verify-peer=on"
    with qemu.nbd(image, "raw", "--object", object, "--tls-creds", "t") as uri:
        yield uri.partition("socket=")[2]


@requires_peer("nbdkit", "qemu-nbd")
@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_tls(kind: str, credentials: Path, tmp_path: Path) -> None:
    with tls_server(kind, credentials, tmp_path) as path:
        base = f"nbds+unix:///?socket={path}&tls-certificates={credentials}"
        with NbdStore(f"{base}/client&tls-hostname=localhost", readonly=False) as store:
            assert store.session.tls
            exercise(store, 8 * MiB)
        with NbdStore(f"{base}/client") as store:  # a unix socket: no name to be checked
            assert store.read(0, 1)
        with pytest.raises(AuthenticationError, match="certificate is refused"):
            NbdStore(f"{base}/client&tls-hostname=example.org")
        with pytest.raises(AuthenticationError, match="certificate is refused"):
            NbdStore(f"{base}/foreigner")
        with pytest.raises(VdiskError):  # we accept it, and it does not accept us
            NbdStore(f"{base}/foreigner&tls-verify-peer=0").read(0, 1)
        with pytest.raises(VdiskError, match="requires TLS"):
            NbdStore(f"nbd+unix:///?socket={path}")
        with NbdStore(f"nbd+unix:///?socket={path}&tls-certificates={credentials}/client") as store:
            assert store.session.tls  # asked for where it can be had


@requires_peer("nbdkit")
def test_tls_is_done_without_where_it_may_be(credentials: Path) -> None:
    with nbdkit("memory", "1M") as server:
        place = f"socket={server.path}&tls-certificates={credentials}/client"
        with NbdStore(f"nbd+unix:///?{place}") as store:
            assert not store.session.tls
        with pytest.raises(VdiskError, match="TLS refused"):
            NbdStore(f"nbds+unix:///?{place}")


@requires_peer("nbdkit")
def test_credentials_by_id(credentials: Path, tmp_path: Path) -> None:
    """As --object tls-creds-x509 defines them, and "tls-creds" refers to them."""
    folder = {"endpoint": "client", "dir": str(credentials / "client")}
    objects = {"t": {"qom-type": "tls-creds-x509", "id": "t", **folder}}
    with tls_server("nbdkit", credentials, tmp_path) as path:
        node = {"driver": "nbd", "path": path, "tls-creds": "t", "tls-hostname": "localhost"}
        with open_image(node, secrets=objects) as image:
            assert image.read(0, 1) == b"\0"
        with pytest.raises(VdiskError, match="no object"):
            open_image(node)
        with pytest.raises(VdiskError, match="endpoint=client"):
            open_image(node, secrets={"t": {**objects["t"], "endpoint": "server"}})


@requires_peer("nbdkit")
def test_the_asyncio_client_over_tls(credentials: Path) -> None:
    import asyncio

    from vdisk.nbd_client import connect

    async def main(uri: str) -> None:
        async with await connect(uri) as client:
            assert client.session.tls
            data = random.Random(1).randbytes(3 * MiB)
            await client.write(1000, data)
            assert await client.read(1000, len(data)) == data

    words = ["--tls=require", f"--tls-certificates={credentials / 'server'}", "--tls-verify-peer"]
    with nbdkit(*words, "memory", "8M") as server:
        place = f"socket={server.path}&tls-hostname=localhost"
        asyncio.run(main(f"nbds+unix:///?{place}&tls-certificates={credentials}/client"))
        with pytest.raises(AuthenticationError):
            asyncio.run(main(f"nbds+unix:///?{place}&tls-certificates={credentials}/foreigner"))
