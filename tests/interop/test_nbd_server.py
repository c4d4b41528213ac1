"""Our server and other clients: QEMU 7.2, libnbd 1.14, fio 3.33 and nbd-client 3.24."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import nbd_server, peers, qemu
from tests.tools.certificates import make_credentials
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

trustme = pytest.importorskip("trustme")

SIZE = 32 << 20
KINDS = ("raw", "qcow2", "chain")


def content(seed: int = 3) -> bytes:
    """Data with holes in it."""
    source = random.Random(seed)
    parts = [source.randbytes(1 << 20) if n % 3 else bytes(1 << 20) for n in range(SIZE >> 20)]
    return b"".join(parts)


def make_image(folder: Path, kind: str, data: bytes) -> tuple[Path, str]:
    """An image of ``data``: (path, format)."""
    raw = folder / "disk.raw"
    raw.write_bytes(data)
    if kind == "raw":
        return raw, "raw"
    qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, folder / "0.qcow2")
    if kind == "qcow2":
        return folder / "0.qcow2", "qcow2"
    for number in range(1, 4):
        backing = {"backing_file": f"{number - 1}.qcow2", "backing_fmt": "qcow2"}
        qemu.create(folder / f"{number}.qcow2", SIZE, **backing)
        qemu.io(folder / f"{number}.qcow2", f"write -P {number} {number}M 300k")
    return folder / "3.qcow2", "qcow2"


def nbdsh_environment(place: str) -> dict[str, str]:
    """nbdsh runs the first python3 on the PATH, and libnbd's binding is the system's own."""
    path = os.pathsep.join(["/usr/bin", os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "URI": place}


def uri(socket: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={socket}"


@requires_peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("kind", KINDS)
def test_qemu_img_reads_what_is_in_the_image(tmp_path: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind, content())
    with nbd_server.process("-r", "-f", format, image) as (socket, _server):
        qemu.img("compare", "-U", "-f", "raw", "-F", format, uri(socket), image)
        qemu.img("convert", "-f", "raw", "-O", "raw", uri(socket), tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == qemu.content(image, format)


@requires_peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("kind", KINDS)
def test_qemu_io_writes_trims_and_zeroes(tmp_path: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind, content())
    with nbd_server.process("--discard=unmap", "-f", format, image) as (socket, _server):
        qemu.io(
            uri(socket),
            "write -P 17 0 1M",
            "write -P 18 1234567 54321",
            "aio_write -P 19 5M 64k",
            "aio_write -P 20 6M 4k",
            "aio_flush",
            "write -f -P 21 7M 512",
            "write -z 8M 2M",
            "write -zu 11M 70k",
            "discard 14M 1M",
            "flush",
            "read -P 17 0 1M",
            "read -P 18 1234567 54321",
            "read -P 19 5M 64k",
            "read -P 20 6M 4k",
            "read -P 0 8M 2M",
            format="raw",
        )
    if format == "qcow2":
        qemu.check(image)
    data = qemu.content(image, format)
    assert data[: 1 << 20] == bytes([17]) * (1 << 20)
    assert not any(data[8 << 20 : 10 << 20])


@requires_peer("qemu-img")
def test_qemu_img_sees_the_map_and_the_chain(tmp_path: Path) -> None:
    image, format = make_image(tmp_path, "chain", content())
    with nbd_server.process("-r", "-A", "-f", format, image) as (socket, _server):
        seen = qemu.img_json("map", "-f", "raw", uri(socket))
        node = {"driver": "nbd", "server.type": "unix", "server.path": str(socket)}
        node["x-dirty-bitmap"] = "qemu:allocation-depth"
        depths = qemu.img_json("map", "json:" + json.dumps({"driver": "raw", "file": node}))
    direct = qemu.img_json("map", "-f", format, image)

    def data_of(extents: list[dict[str, int]]) -> set[tuple[int, int]]:
        clusters = set()
        for one in extents:
            if one["data"]:
                clusters |= set(range(one["start"] >> 16, one["start"] + one["length"] >> 16))
        return clusters

    assert data_of(seen) == data_of(direct)
    assert len(depths) > 4


@requires_peer("nbdinfo", "nbdcopy")
@pytest.mark.parametrize("kind", KINDS)
def test_nbdinfo_and_nbdcopy(tmp_path: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind, content())
    said = {"description": "what it is", "export-size": SIZE, "is_read_only": True}
    with nbd_server.process("-r", "-D", "what it is", "-x", "disk", "-f", format, image) as (
        socket,
        _server,
    ):
        place = uri(socket, "disk")
        info = json.loads(peers.run("nbdinfo", "--json", place).stdout)["exports"][0]
        assert {key: info[key] for key in said} == said
        assert info["can_multi_conn"] and info["can_df"] and info["can_flush"]
        listed = json.loads(peers.run("nbdinfo", "--list", "--json", uri(socket)).stdout)
        assert [one["export-name"] for one in listed["exports"]] == ["disk"]
        peers.run("nbdcopy", place, tmp_path / "copy.raw")
        total = json.loads(peers.run("nbdinfo", "--map", "--json", place).stdout)
        assert sum(one["length"] for one in total) == SIZE
    assert (tmp_path / "copy.raw").read_bytes() == qemu.content(image, format)


@requires_peer("nbdcopy", "qemu-img")
@pytest.mark.parametrize("options", [[], ["--connections=4", "--requests=64"]])
def test_nbdcopy_writes_a_new_image(tmp_path: Path, options: list[str]) -> None:
    data = content(5)
    (tmp_path / "source.raw").write_bytes(data)
    vdisk.create(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    with nbd_server.process("--discard=unmap", tmp_path / "disk.qcow2") as (socket, _server):
        peers.run("nbdcopy", "--flush", *options, tmp_path / "source.raw", uri(socket))
    assert qemu.content(tmp_path / "disk.qcow2") == data
    qemu.check(tmp_path / "disk.qcow2")


@requires_peer("nbdsh")
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_libnbd_with_many_requests_in_flight(tmp_path: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind, content())
    script = textwrap.dedent(
        """
        import os, random
        h.connect_uri(os.environ["URI"])
        size = h.get_size()
        assert h.can_multi_conn() and h.can_fua() and h.can_cache() and h.can_fast_zero()
        chosen = random.Random(7).sample(range(size // 4096), 300)
        waiting = []
        for block in chosen:
            data = nbd.Buffer.from_bytearray(bytearray([block & 255]) * 4096)
            waiting.append(h.aio_pwrite(data, block * 4096))
        while h.aio_in_flight():
            h.poll(-1)
        assert all(h.aio_command_completed(cookie) for cookie in waiting)
        h.flush()
        buffers = []
        for block in chosen:
            buffer = nbd.Buffer(4096)
            buffers.append((block, buffer, h.aio_pread(buffer, block * 4096)))
        while h.aio_in_flight():
            h.poll(-1)
        for block, buffer, cookie in buffers:
            assert h.aio_command_completed(cookie)
            assert buffer.to_bytearray() == bytes([block & 255]) * 4096
        h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
        h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
        h.trim(65536, 131072, nbd.CMD_FLAG_FUA)
        h.cache(65536, 0)
        assert h.pread(131072, 0) == bytes(131072)
        chunks = []
        h.pread_structured(1 << 20, 0, lambda *chunk: chunks.append(chunk[2]) and 0 or 0)
        assert chunks
        whole = h.pread_structured(1 << 20, 0, lambda *chunk: 0, nbd.CMD_FLAG_DF)
        h.set_strict_mode(0)
        for offset, length in ((size, 512), (size - 511, 512)):
            try:
                h.pread(length, offset)
                raise SystemExit("a read past the end succeeded")
            except nbd.Error as error:
                assert error.errno == "EINVAL", error.errno
        assert h.pread(4096, 0) == bytes(4096)
        h.shutdown()
        """
    )
    with nbd_server.process("--discard=unmap", "-f", format, image) as (socket, _server):
        done = subprocess.run(
            [*peers.command("nbdsh"), "-c", "-"],
            input=script.encode(),
            env=nbdsh_environment(uri(socket)),
            capture_output=True,
            timeout=peers.TIMEOUT,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    if format == "qcow2":
        qemu.check(image)


@requires_peer("fio", "qemu-img")
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize(("block", "depth"), [("4k", 32), ("64k", 8), ("1k-70k", 16)])
def test_fio_verifies_what_it_wrote(tmp_path: Path, kind: str, block: str, depth: int) -> None:
    image, format = make_image(tmp_path, kind, content())
    sizes = f"--bsrange={block}" if "-" in block else f"--bs={block}"
    with nbd_server.process("-f", format, image) as (socket, _server):
        peers.run(
            "fio",
            "--name=job",
            "--ioengine=nbd",
            f"--uri={uri(socket)}",
            "--rw=randrw",
            sizes,
            f"--iodepth={depth}",
            "--size=8M",
            "--verify=crc32c",
            "--fsync=64",
            "--randseed=1",
            cwd=tmp_path,
        )
    if format == "qcow2":
        qemu.check(image)


@requires_peer("nbd-client")
def test_nbd_client_lists_the_exports(tmp_path: Path) -> None:
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(bytes(4096))
    images = [tmp_path / "a.raw", tmp_path / "b.raw"]
    with nbd_server.process("-f", "raw", *images) as (socket, _server):
        listed = peers.run("nbd-client", "-l", "-unix", socket).stdout.decode()
    assert listed.split()[-2:] == ["a.raw", "b.raw"]


@requires_peer("qemu-img", "nbdinfo")
def test_a_directory_and_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image, _format = make_image(tmp_path, "qcow2", content())
    image.rename(folder / "one.qcow2")
    vdisk.create(folder / "two.qcow2", SIZE, format="qcow2")
    (folder / ".hidden").write_bytes(bytes(512))
    with nbd_server.process(folder) as (socket, _server):
        listed = json.loads(peers.run("nbdinfo", "--list", "--json", uri(socket)).stdout)
        assert [one["export-name"] for one in listed["exports"]] == ["one.qcow2", "two.qcow2"]
        one, two = uri(socket, "one.qcow2"), uri(socket, "two.qcow2")
        qemu.img("convert", "-n", "-f", "raw", "-O", "raw", one, two)
        outside = uri(socket, "../disk.raw")
        assert peers.run("nbdinfo", outside, check=False).returncode != 0
        assert peers.run("nbdinfo", uri(socket, ".hidden"), check=False).returncode != 0
    qemu.compare(folder / "one.qcow2", folder / "two.qcow2")


@requires_peer("qemu-img", "qemu-io")
def test_snapshots_and_a_temporary_overlay(tmp_path: Path) -> None:
    image, _format = make_image(tmp_path, "qcow2", content())
    qemu.img("snapshot", "-c", "before", image)
    qemu.io(image, "write -P 99 0 1M")
    with nbd_server.process("--snapshots", image) as (socket, _server):
        qemu.io(uri(socket), "read -P 99 0 1M", format="raw")
        qemu.io(uri(socket, "@before"), "read -P 0 0 1M", format="raw", readonly=True)
    for wanted in ("before", "snapshot.name=before", "snapshot.id=1,snapshot.name=before"):
        with nbd_server.process("-l", wanted, image) as (socket, _server):
            qemu.io(uri(socket), "read -P 0 0 1M", format="raw", readonly=True)
    before = image.read_bytes()
    with nbd_server.process("-s", image) as (socket, _server):
        qemu.io(uri(socket), "write -P 7 0 2M", "read -P 7 0 2M", "flush", format="raw")
    assert image.read_bytes() == before


@requires_peer("qemu-io", "qemu-img")
def test_reading_copies_into_the_image(tmp_path: Path) -> None:
    data = content()
    (tmp_path / "base.raw").write_bytes(data)
    qemu.create(tmp_path / "top.qcow2", SIZE, backing_file="base.raw", backing_fmt="raw")
    with nbd_server.process("--copy-on-read", tmp_path / "top.qcow2") as (socket, _server):
        qemu.io(uri(socket), "read 1M 2M", "read 10M 4k", format="raw")
    kept = qemu.img_json("map", tmp_path / "top.qcow2")
    own = [one for one in kept if one["data"] and one["depth"] == 0]
    assert (1 << 20) in [one["start"] for one in own]
    assert qemu.content(tmp_path / "top.qcow2") == data
    qemu.check(tmp_path / "top.qcow2")


@requires_peer("qemu-io", "qemu-img")
def test_zeroes_written_are_detected(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    options = ["--detect-zeroes=unmap", "--discard=unmap"]
    with nbd_server.process(*options, tmp_path / "disk.qcow2") as (socket, _server):
        qemu.io(
            uri(socket), "write -P 5 0 1M", "write -P 0 0 512k", "write -P 0 8M 1M", format="raw"
        )
    allocated = [one for one in qemu.img_json("map", tmp_path / "disk.qcow2") if one["data"]]
    assert [(one["start"], one["length"]) for one in allocated] == [(512 << 10, 512 << 10)]


@requires_peer("qemu-io")
def test_offsets_and_partitions(tmp_path: Path) -> None:
    data = bytearray(SIZE)
    data[446:462] = bytes.fromhex("00000000 83000000 00080000 00100000")
    data[510:512] = b"\x55\xaa"
    data[1 << 20 : 3 << 20] = b"p" * (2 << 20)
    (tmp_path / "disk.raw").write_bytes(data)
    for options in (["--partition=1"], ["-o", "1M", "--size", "2M"]):
        with nbd_server.process("-f", "raw", *options, tmp_path / "disk.raw") as (socket, _server):
            said = qemu.io(uri(socket), "length", "read -P 112 0 2M", format="raw")
        assert "2 MiB" in said


# -- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_credentials(tmp_path_factory.mktemp("tls"))


def qemu_over_tls(socket: Path, folder: Path, who: str) -> subprocess.CompletedProcess[bytes]:
    options = f"driver=nbd,server.type=unix,server.path={socket},tls-creds=t,tls-hostname=localhost"
    return peers.run(
        "qemu-io",
        "--object",
        f"tls-creds-x509,id=t,endpoint=client,dir={folder / who},verify-peer=on",
        "-c",
        "write -P 33 1M 3M",
        "-c",
        "read -P 33 1M 3M",
        "-c",
        "write -P 34 0 4k",
        "-c",
        "read -P 34 0 4k",
        "-c",
        "flush",
        "--image-opts",
        options,
        check=False,
    )


@requires_peer("qemu-io", "qemu-img")
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_qemu_io_over_tls(tmp_path: Path, credentials: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind, content())
    tls = ["--tls-certificates", credentials / "server"]
    with nbd_server.process(*tls, "-f", format, image) as (socket, _server):
        done = qemu_over_tls(socket, credentials, "client")
        assert done.returncode == 0, done.stderr
        assert b"Pattern verification failed" not in done.stdout
        assert qemu_over_tls(socket, credentials, "stranger").returncode != 0
        plain = peers.run("qemu-io", "-f", "raw", "-c", "read 0 512", uri(socket), check=False)
        assert plain.returncode != 0
    qemu.io(image, "read -P 33 1M 3M", "read -P 34 0 4k", format=format)


@requires_peer("nbdcopy", "nbdinfo")
def test_libnbd_over_tls_by_tcp(tmp_path: Path, credentials: Path) -> None:
    image, format = make_image(tmp_path, "raw", content())
    tls = ["--tls-certificates", credentials / "server", "-p", "0"]
    with nbd_server.process(*tls, "-r", "-f", format, image) as (_socket, server):
        assert server.stdout is not None
        said = b""
        while b"nbds://" not in said:
            said = server.stdout.readline()
        port = int(said.rsplit(b":", 1)[1])
        place = f"nbds://localhost:{port}/?tls-certificates={credentials / 'client'}"
        peers.run("nbdcopy", place, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == image.read_bytes()


@requires_peer("qemu-io")
def test_the_name_in_the_certificate_decides(tmp_path: Path, credentials: Path) -> None:
    image, format = make_image(tmp_path, "raw", content())
    creds = f"tls-creds-x509,id=c,endpoint=server,dir={credentials / 'server'}"
    for rules, expected in (
        (["--allow", "cn:client.example"], True),
        (["--allow", "cn:somebody.else"], False),
        (["--allow-export", "=cn:client.example"], True),
        (["--allow-export", "=cn:somebody.else"], False),
    ):
        options = ["--object", creds, "--tls-creds", "c", *rules]
        with nbd_server.process(*options, "-f", format, image) as (socket, _server):
            done = qemu_over_tls(socket, credentials, "client")
            assert (done.returncode == 0) is expected, (rules, done.stderr)


@requires_peer("qemu-io")
def test_tls_allowed_is_not_demanded(tmp_path: Path, credentials: Path) -> None:
    image, format = make_image(tmp_path, "raw", content())
    tls = ["--tls=allow", "--tls-certificates", credentials / "server"]
    with nbd_server.process(*tls, "-f", format, image) as (socket, _server):
        assert qemu_over_tls(socket, credentials, "client").returncode == 0
        qemu.io(uri(socket), "read -P 33 1M 3M", format="raw")


# -- ends ----------------------------------------------------------------------------------------


@requires_peer("qemu-io", "qemu-img")
def test_the_end_of_the_server_is_clean(tmp_path: Path) -> None:
    """SIGTERM while a client writes: the image is consistent, and has what was acknowledged."""
    vdisk.create(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    with nbd_server.process(tmp_path / "disk.qcow2") as (socket, server):
        qemu.io(uri(socket), "write -P 5 0 4M", format="raw")
        server.send_signal(signal.SIGTERM)
        server.wait(peers.TIMEOUT)
    qemu.check(tmp_path / "disk.qcow2")
    qemu.io(tmp_path / "disk.qcow2", "read -P 5 0 4M")


WRITER = """
import os, sys
h.connect_uri(os.environ["URI"])
for number in range(10_000):
    h.pwrite(bytes([number % 255 + 1]) * 65536, number % 400 * 65536)
    if number % 10 == 9:
        h.flush()
        print(number, flush=True)
"""


@requires_peer("nbdsh", "qemu-img")
@pytest.mark.parametrize("victim", ["server", "client"])
def test_kill_9_in_mid_write_loses_nothing_that_was_flushed(tmp_path: Path, victim: str) -> None:
    vdisk.create(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    killed = victim == "server"
    with nbd_server.process(tmp_path / "disk.qcow2", ends_well=not killed) as (socket, server):
        client = subprocess.Popen(
            [*peers.command("nbdsh"), "-c", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=nbdsh_environment(uri(socket)),
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(WRITER.encode())
        client.stdin.close()
        flushed = [int(client.stdout.readline()) for _ in range(5)]
        time.sleep(0.05)
        (server if killed else client).kill()
        client.kill() if killed else None
        flushed += [int(line) for line in client.stdout]
        client.wait(peers.TIMEOUT)
        client.stdout.close()
    report = qemu.img("check", tmp_path / "disk.qcow2", check=False)
    assert report.returncode in (0, 3), report.stdout  # 3: leaked clusters, and no error
    last = max(flushed)
    with vdisk.open(tmp_path / "disk.qcow2") as disk:
        for number in range(max(last - 399, 0), last + 1):
            piece = disk.read(number % 400 * 65536, 65536)
            # Where the writer had come round again, a write after the flush may show.
            fits = [bytes([one % 255 + 1]) * 65536 for one in (number, number + 400)]
            assert piece in fits, f"write {number} was flushed and is lost"
