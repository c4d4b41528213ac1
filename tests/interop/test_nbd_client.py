"""The NBD client against qemu-nbd 7.2, nbdkit 1.32 and our own server; beside nbdinfo 1.14."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools import peers, qemu
from tests.tools.certificates import make_credentials
from tests.tools.command import vdisk as vdisk_image
from tests.tools.nbdkit import nbdkit
from tests.tools.peers import requires_peer
from vdisk.block import Kind
from vdisk.errors import AuthenticationError, DeviceError, VdiskError
from vdisk.nbd.wire import QEMU_ALLOCATION_DEPTH
from vdisk.opening import open_image
from vdisk.opening.names import parse_image_options as tree
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

trustme = pytest.importorskip("trustme")

MiB = 1 << 20


def content(size: int = 8 * MiB, seed: int = 1) -> bytes:
    """Data with a hole in every third mebibyte."""
    source = random.Random(seed)
    parts = [source.randbytes(MiB) if n % 3 else bytes(MiB) for n in range(size // MiB)]
    return b"".join(parts)


def vdisk_nbd(
    *arguments: object, check: bool = True, input: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """``vdisk-nbd`` in a process of its own."""
    words = [sys.executable, "-m", "vdisk.cli.nbd", *map(str, arguments)]
    done = peers.run_words(words, input=input, timeout=peers.TIMEOUT, cwd=None)
    return peers.checked(done) if check else done


def exercise(store: vdisk.BlockDevice, size: int, seed: int = 5) -> bytearray:
    """Writes, zeroes and discards of all lengths; the content that results, as far as known."""
    chance = random.Random(seed)
    model = bytearray(store.read(0, size))
    for _ in range(60):
        offset = chance.randrange(size)
        length = min(chance.choice([1, 512, 4096, 70_000, 3 * MiB]), size - offset)
        if chance.random() < 0.3:
            store.write_zeroes(offset, length, unmap=chance.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            store.write(offset, data)
            model[offset : offset + length] = data
        assert store.read(offset, length) == model[offset : offset + length]
    store.flush()
    assert store.read(0, size) == model
    return model


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


@requires_peer("qemu-nbd", "nbdinfo", "qemu-img", "qemu-io")
@pytest.mark.parametrize(
    "context", ["base:allocation", QEMU_ALLOCATION_DEPTH, "qemu:dirty-bitmap:b0"]
)
def test_maps_are_those_of_nbdinfo_1_14(context: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.create(image, "16M")
    qemu.img("bitmap", "--add", image, "b0")
    qemu.io(image, "write 1M 2M", "write 5M 100k", "write -z 8M 1M")
    with qemu.nbd(image, "qcow2", "-A", "-B", "b0", readonly=True) as uri:
        for ours, theirs in (
            ([], []),
            (["--totals"], ["--totals"]),
        ):
            peer = peers.run("nbdinfo", f"--map={context}", *theirs, uri)
            for words in (["map", "--context", context], ["info", f"--map={context}"]):
                assert vdisk_nbd(*words, *ours, uri).stdout == peer.stdout
            done = vdisk_nbd("map", "--context", context, "--json", *ours, uri)
            peer = peers.run("nbdinfo", f"--map={context}", "--json", *theirs, uri)
            assert json.loads(done.stdout) == json.loads(peer.stdout)


@requires_peer("qemu-nbd", "qemu-img", "qemu-io")
@pytest.mark.parametrize("context", [QEMU_ALLOCATION_DEPTH, "qemu:dirty-bitmap:b0"])
def test_another_context_is_shown_as_qemu_img_7_2_does(context: str, tmp_path: Path) -> None:
    qemu.create(tmp_path / "base.qcow2", "4M")
    qemu.io(tmp_path / "base.qcow2", "write 0 2M")
    image = tmp_path / "top.qcow2"
    qemu.create(image, "4M", backing_file="base.qcow2", backing_fmt="qcow2")
    qemu.img("bitmap", "--add", image, "b0")
    qemu.io(image, "write 1M 2M")
    with qemu.nbd(image, "qcow2", "-A", "-B", "b0", readonly=True) as uri:
        node = f"driver=nbd,path={uri.partition('socket=')[2]},x-dirty-bitmap="
        words = ["map", "--output=json", "--image-opts", node + context]
        theirs = qemu.img(*words).stdout
        assert vdisk_image(*words).stdout == theirs
        assert len(json.loads(theirs)) >= 3
        assert vdisk_image(*words[:-1], node + "none", check=False).returncode == 1
        with open_image(f"json:{json.dumps(tree(node + context))}") as store:
            assert [each.kind for each in store.map()] == [Kind.DATA]  # reading is not misled


@requires_peer("qemu-nbd", "nbdinfo", "qemu-img")
def test_info_is_that_of_nbdinfo_1_14(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.create(image, "10M")
    with qemu.nbd(image, "qcow2", "-A", "-D", "a disk", export="x y") as name:
        uri = name.replace(" ", "%20")
        compare_info(uri)
        assert vdisk_nbd("info", "--size", uri).stdout == b"10485760\n"
        for question, status in (
            (("--can", "trim"), 0),
            (("--is", "read-only"), 2),
            (("--can", "nonsense"), 1),
        ):
            ours = vdisk_nbd("info", *question, uri, check=False).returncode
            theirs = peers.run("nbdinfo", *question, uri, check=False).returncode
            assert ours == theirs == status


def compare_info(uri: str) -> None:
    """All that nbdinfo tells, with and without a look into the export."""
    for flags in ([], ["--no-content"], ["--color"]):
        theirs = json.loads(peers.run("nbdinfo", "--json", *flags, uri).stdout)
        assert same_json(vdisk_nbd("info", "--json", *flags, uri).stdout, theirs)
        if flags != ["--color"]:  # whose colours are its own
            said = peers.run("nbdinfo", *flags, uri).stdout
            assert same_text(vdisk_nbd("info", *flags, uri).stdout, said)
    if theirs["protocol"] == "newstyle-fixed":
        theirs = json.loads(peers.run("nbdinfo", "--list", "--json", uri).stdout)
        assert same_json(vdisk_nbd("list", "--json", uri).stdout, theirs)
        said = peers.run("nbdinfo", "--list", uri).stdout
        assert same_text(vdisk_nbd("list", uri).stdout, said)
        inside = peers.run("nbdinfo", "--list", "--content", uri).stdout
        assert same_text(vdisk_nbd("info", "-L", "--content", uri).stdout, inside)


def same_json(said: bytes, theirs: dict[str, Any]) -> bool:
    """What we say is what they say; version 1.14 knows nothing of extended headers."""
    ours = json.loads(said)
    if "extended" not in theirs:
        assert ours.pop("extended") is False
        for export in ours["exports"]:
            assert export.pop("can_block_status_payload") is False
    return bool(ours == theirs)


def same_text(ours: bytes, theirs: bytes) -> bool:
    """As :func:`same_json`; version 1.14 gives the sizes of blocks in bytes alone."""
    if b"can_block_status_payload" not in theirs:
        ours = ours.replace(b"\tcan_block_status_payload: false\n", b"")
        ours = re.sub(rb"(\tblock_size_\w+: \d+) \(\w+\)", rb"\1", ours)
    return ours == theirs


@requires_peer("nbdkit", "nbdinfo")
@pytest.mark.parametrize("words", [[], ["--no-sr"], ["-o"], ["-n", "--mask-handshake=0"], ["-r"]])
def test_info_of_every_kind_of_nbdkit_1_32(words: list[str]) -> None:
    with nbdkit(*words, "memory", "1000k") as server:
        compare_info(server.uri)
        with NbdStore(server.uri) as store:
            assert store.read(0, 4096) == bytes(4096)


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
    """64 requests that take 100 ms each are under way together: not in 6.4 s."""
    with (
        nbdkit("--filter=delay", "-t", "64", "memory", "1M", "delay-read=100ms") as server,
        NbdStore(server.uri, settings=NbdSettings(request_size=16384)) as store,
    ):
        begin = time.monotonic()
        assert store.read(0, MiB) == bytes(MiB)
        assert time.monotonic() - begin < 3


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


@requires_peer("nbdkit", "qemu-img")
def test_every_command_takes_uris(tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(content())
    target = tmp_path / "disk.qcow2"
    with nbdkit("file", source) as server:
        peers.run_vdisk("convert", "-O", "qcow2", server.uri, target)
        qemu.compare(source, target)
        peers.run_vdisk("compare", server.uri, target)
        info = json.loads(peers.run_vdisk("info", "--output=json", server.uri).stdout)
        assert info["virtual-size"] == 8 * MiB
        assert info["filename"] == server.uri
        listed = json.loads(peers.run_vdisk("map", "--output=json", server.uri).stdout)
        theirs = qemu.img_json("map", "-f", "raw", server.uri)
        assert [(e["start"], e["length"], e["zero"]) for e in listed] == [
            (e["start"], e["length"], e["zero"]) for e in theirs
        ]
        done = peers.run_vdisk("io", "-r", "-f", "raw", "-c", "read -v 1M 16", server.uri)
        assert b"read 16/16 bytes" in done.stdout
    with nbdkit("memory", "8M") as server:
        peers.run_vdisk("convert", "-n", "-O", "raw", target, server.uri)
        assert qemu.content(server.uri, "raw") == source.read_bytes()


# -- copy ------------------------------------------------------------------------------------


@requires_peer("nbdkit", "qemu-nbd", "qemu-img")
def test_copies_in_all_directions(tmp_path: Path) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(content())
    with nbdkit("file", source) as one, nbdkit("memory", "8M") as other:
        vdisk_nbd("copy", one.uri, target)
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_blocks * 512 < 6 * MiB  # the holes are holes
        vdisk_nbd("copy", "--allocated", "--synchronous", one.uri, target)
        assert target.stat().st_blocks * 512 >= 8 * MiB
        vdisk_nbd("copy", "--flush", one.uri, other.uri)
        assert qemu.content(other.uri, "raw") == source.read_bytes()
        assert vdisk_nbd("copy", other.uri, "-").stdout == source.read_bytes()
        vdisk_nbd("copy", "--no-extents", other.uri, "null:")
        vdisk_nbd("copy", "-", other.uri, input=b"stream" * 1000)
        assert vdisk_nbd("copy", other.uri, "-").stdout.startswith(b"stream" * 1000)
    qemu.create(tmp_path / "d.qcow2", "8M")
    words = ["[", "qemu-nbd", "-f", "qcow2", str(tmp_path / "d.qcow2"), "]"]
    vdisk_nbd("copy", "--", source, *words)
    assert qemu.content(tmp_path / "d.qcow2") == source.read_bytes()


@requires_peer("nbdkit")
def test_a_source_that_fails_to_tell_its_extents_is_read(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content())
    words = [
        "nbdkit",
        "--filter=error",
        "file",
        str(tmp_path / "source"),
        "error-extents-rate=100%",
    ]
    vdisk_nbd("copy", "--", "[", *words, "]", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content()
    vdisk_nbd("copy", "--", tmp_path / "target", "[", *words, "]")  # as a target, too


@requires_peer("nbdkit")
def test_a_map_of_more_than_a_question_holds() -> None:
    """nbdkit 1.32 ended itself when it was asked about 2**32 - 1 bytes of a longer extent."""
    with nbdkit("null", "8G") as server:
        assert vdisk_nbd("map", server.uri).stdout.split()[:3] == [b"0", b"8589934592", b"3"]


@requires_peer("nbdkit")
def test_a_copy_into_too_little_room(tmp_path: Path) -> None:
    with nbdkit("memory", "4M") as server:
        (tmp_path / "large").write_bytes(content())
        done = vdisk_nbd("copy", tmp_path / "large", server.uri, check=False)
        assert done.returncode == 1
        assert b"holds 4194304 bytes, and the source has 8388608" in done.stderr
        done = vdisk_nbd("copy", "-", server.uri, check=False, input=content())
        assert b"past the end" in done.stderr


@requires_peer("nbdkit")
@pytest.mark.parametrize("words", [["-d", "16"], ["--write", "-C", "2", "-b", "64k", "-d", "4"]])
def test_bench_measures_nbdkit_1_32(words: list[str]) -> None:
    with nbdkit("memory", "16M") as server:
        found = json.loads(vdisk_nbd("bench", "-s", "0.3", "--json", *words, server.uri).stdout)
    assert found["requests"] > 50
    assert found["bytes"] == found["requests"] * found["block-size"]
    latency = found["latency-microseconds"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p100"]


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


# -- a server that is killed -----------------------------------------------------------------


@requires_peer("nbdkit")
def test_kill_9_in_the_middle_of_writing(tmp_path: Path) -> None:
    """nbdkit 1.32 dies twice while four threads write; nothing that was flushed is missing."""
    place = tmp_path / "disk.raw"
    place.write_bytes(bytes(64 * MiB))
    data = random.Random(3).randbytes(16 * MiB)
    pool = PoolSettings(reconnect_delay=30)
    settings = NbdSettings(pool, request_size=65536)
    errors: list[BaseException] = []

    def fill(store: NbdStore, number: int) -> None:
        try:
            for start in range(0, 16 * MiB, 256 << 10):
                store.write(number * 16 * MiB + start, data[start : start + (256 << 10)])
        except BaseException as error:
            errors.append(error)

    with (
        nbdkit("file", place) as server,
        NbdStore(server.uri, readonly=False, settings=settings) as store,
    ):
        threads = [threading.Thread(target=fill, args=(store, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(0.05)
            server.kill()
            server.start()
        for thread in threads:
            thread.join(60)
        store.flush()
        assert not errors
    assert place.read_bytes() == data * 4


@requires_peer("nbdkit")
def test_kill_9_again_and_again(tmp_path: Path) -> None:
    """Six threads, each with a model of its part of the disk; nbdkit 1.32 dies and returns."""
    part = 4 * MiB
    place = tmp_path / "disk.raw"
    place.write_bytes(bytes(6 * part))
    pool = PoolSettings(connections=3, depth=8, reconnect_delay=30)
    settings = NbdSettings(pool, request_size=32768)
    errors: list[BaseException] = []
    end = time.monotonic() + 8

    def work(store: NbdStore, number: int) -> None:
        chance, model = random.Random(number), bytearray(part)
        try:
            while time.monotonic() < end:
                offset = chance.randrange(part)
                length = min(chance.choice([1, 4096, 100_000, 600_000]), part - offset)
                if chance.random() < 0.05:
                    store.flush()
                if chance.random() < 0.5:
                    model[offset : offset + length] = chance.randbytes(length)
                    store.write(number * part + offset, model[offset : offset + length])
                found = store.read(number * part + offset, length)
                assert found == model[offset : offset + length]
        except BaseException as error:
            errors.append(error)

    with (
        nbdkit("file", place) as server,
        NbdStore(server.uri, readonly=False, settings=settings) as store,
    ):
        threads = [threading.Thread(target=work, args=(store, n)) for n in range(6)]
        for thread in threads:
            thread.start()
        pauses = random.Random(9)
        while time.monotonic() < end - 1:
            time.sleep(pauses.random())
            server.kill()
            server.start()
        for thread in threads:
            thread.join(60)
    assert not errors


@requires_peer("nbdkit")
def test_kill_9_of_a_server_that_forgets_everything() -> None:
    """nbdkit's memory is gone when it dies: what was not flushed is written again."""
    settings = NbdSettings(PoolSettings(reconnect_delay=30))
    with (
        nbdkit("memory", "8M") as server,
        NbdStore(server.uri, readonly=False, settings=settings) as store,
    ):
        model = exercise(store, 4 * MiB)
        store.write(0, bytes(model))
        server.kill()
        server.start()
        assert store.read(0, 4 * MiB) == model
        store.flush()


@requires_peer("nbdkit")
def test_kill_9_without_reconnecting() -> None:
    with nbdkit("memory", "8M") as server:
        store = NbdStore(server.uri, readonly=False)
        store.write(0, b"x")
        server.kill()
        with pytest.raises(DeviceError) as caught:
            store.read(0, 1)
        assert caught.value.errno in (104, 32)
        with pytest.raises(DeviceError, match=r"refused|No such"):
            store.read(0, 1)
        server.start()
        time.sleep(0.6)
        assert store.read(0, 1) == b"\0"
        with pytest.raises(DeviceError, match="may be gone"):
            store.close()


@requires_peer("qemu-nbd", "qemu-img")
def test_a_qcow2_image_survives_the_death_of_its_server(tmp_path: Path) -> None:
    """Our qcow2 over NBD; the server, qemu-nbd 7.2, is killed and comes back."""
    place = tmp_path / "place.raw"
    with place.open("wb") as file:
        file.truncate(64 * MiB)
    path = tmp_path / "s"
    words = peers.command("qemu-nbd", "-t", "-e", "0", "-k", path, "-f", "raw", place)

    def start() -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        qemu.wait_for_server(process, path)
        return process

    process = start()
    try:
        node = {"driver": "nbd", "path": str(path), "reconnect-delay": 30}
        vdisk.create(f"nbd:unix:{path}", 32 * MiB, format="qcow2")
        with vdisk.open({"driver": "qcow2", "file": node}, "r+") as image:
            image.write(0, content(8 * MiB))
            process.kill()
            process.communicate()
            process = start()
            image.write(8 * MiB, content(8 * MiB, seed=2))
            image.flush()
    finally:
        process.terminate()
        process.communicate()
    assert qemu.check(place, "qcow2")["check-errors"] == 0
    expected = content(8 * MiB) + content(8 * MiB, seed=2) + bytes(16 * MiB)
    assert qemu.content(place, "qcow2") == expected
