"""Our server over TLS, and every client that speaks it: each demands our certificate, we theirs.

qemu-img and qemu-io 7.2, libnbd 1.14 (nbdinfo, nbdcopy, the Python binding), fio 3.33,
nbd-client 3.24.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.tools import nbd_server, peers, qemu
from tests.tools.certificates import make_credentials
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

MiB = 1 << 20
SIZE = 16 * MiB
KINDS = ("raw", "qcow2", "chain")

pytestmark = requires_peer("qemu-img", "qemu-io")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_credentials(tmp_path_factory.mktemp("tls"))


def make_image(folder: Path, kind: str) -> tuple[Path, str]:
    """An image (path, format), alone or with a backing file, of data with a hole in it."""
    data = (
        random.Random(5).randbytes(6 * MiB) + bytes(4 * MiB) + random.Random(6).randbytes(6 * MiB)
    )
    raw = folder / "disk.raw"
    raw.write_bytes(data)
    if kind == "raw":
        return raw, "raw"
    top = folder / "disk.qcow2"
    if kind == "qcow2":
        qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, top)
    else:
        qemu.create(top, SIZE, backing_file="disk.raw", backing_fmt="raw")
        qemu.io(top, "write -P 77 3M 200k")
    return top, "qcow2"


def place(path: Path, credentials: Path, who: str = "client") -> str:
    return f"nbds+unix:///?socket={path}&tls-certificates={credentials / who}"


def qemu_words(path: Path, credentials: Path, who: str = "client") -> tuple[list[str], str]:
    object = f"tls-creds-x509,id=t,endpoint=client,dir={credentials / who}"
    node = f"driver=nbd,server.type=unix,server.path={path},tls-creds=t,tls-hostname=localhost"
    return ["--object", object, "--image-opts"], node


@pytest.mark.parametrize("kind", KINDS)
def test_qemu_img_and_qemu_io(tmp_path: Path, credentials: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind)
    expected = qemu.content(image, format)
    options = ["--tls-certificates", credentials / "server", "-f", format, image]
    with nbd_server.process(*options) as (path, _server):
        words, node = qemu_words(path, credentials)
        qemu.img("convert", *words, "-O", "raw", node, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == expected
        said = json.loads(qemu.img("map", "--output=json", *words, node).stdout)
        assert kind != "qcow2" or any(one["zero"] for one in said)
        commands = ["write -P 9 1M 3M", "write -z 5M 1M", "aio_write -P 8 8M 64k", "aio_flush"]
        commands += ["read -P 9 1M 3M", "read -P 0 5M 1M", "read -P 8 8M 64k", "flush"]
        flags = [part for command in commands for part in ("-c", command)]
        done = peers.run("qemu-io", *flags, *words, node)
        assert b"verification failed" not in done.stdout
        words, node = qemu_words(path, credentials, "stranger")
        assert qemu.img("info", *words, node, check=False).returncode != 0
    if format == "qcow2":
        qemu.check(image)


@requires_peer("nbdinfo", "nbdcopy")
@pytest.mark.parametrize("kind", KINDS)
def test_nbdinfo_and_nbdcopy(tmp_path: Path, credentials: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind)
    expected = qemu.content(image, format)
    options = ["--tls-certificates", credentials / "server", "-r", "-f", format, image]
    with nbd_server.process(*options) as (path, _server):
        where = place(path, credentials)
        info = json.loads(peers.run("nbdinfo", "--json", where).stdout)
        assert info["TLS"] is True
        peers.run("nbdcopy", where, tmp_path / "copy")
        stranger = place(path, credentials, "stranger")
        assert peers.run("nbdinfo", stranger, check=False).returncode != 0
        plain = f"nbd+unix:///?socket={path}"
        assert peers.run("nbdinfo", plain, check=False).returncode != 0
    assert (tmp_path / "copy").read_bytes() == expected


BINDING = """
import os
h.set_uri_allow_local_file(True)
h.connect_uri(os.environ["URI"])
assert h.get_tls_negotiated()
buffers = [nbd.Buffer(65536) for _ in range(32)]
for number in range(64):
    h.pwrite(bytes([number + 1]) * 65536, number * 65536)
cookies = [h.aio_pread(buffer, number * 65536) for number, buffer in enumerate(buffers)]
while h.aio_in_flight():
    h.poll(-1)
for number, buffer in enumerate(buffers):
    assert buffer.to_bytearray() == bytes([number + 1]) * 65536, number
h.flush()
h.shutdown()
"""


@requires_peer("nbdsh")
@pytest.mark.parametrize("kind", KINDS)
def test_the_python_binding_of_libnbd(tmp_path: Path, credentials: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind)
    options = ["--tls-certificates", credentials / "server", "-f", format, image]
    with nbd_server.process(*options) as (path, _server):
        search = os.pathsep.join(["/usr/bin", os.environ.get("PATH", "")])  # the system's python3
        done = subprocess.run(
            [*peers.command("nbdsh"), "-c", "-"],
            input=BINDING.encode(),
            env={**os.environ, "PATH": search, "URI": place(path, credentials)},
            capture_output=True,
            timeout=peers.TIMEOUT,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    qemu.io(image, "read -P 64 4032k 64k", format=format)
    if format == "qcow2":
        qemu.check(image)


@requires_peer("fio")
@pytest.mark.parametrize("kind", KINDS)
def test_fio_verifies_what_it_wrote(tmp_path: Path, credentials: Path, kind: str) -> None:
    image, format = make_image(tmp_path, kind)
    options = ["--tls-no-verify", "--tls-certificates", credentials / "server"]
    with nbd_server.process(*options, "-f", format, image) as (path, _server):
        job = ["--rw=randrw", "--bsrange=1k-70k", "--iodepth=16", "--size=6M", "--randseed=1"]
        # fio lets no URI name files, so neither side shows or checks a certificate's authority.
        uri = f"--uri=nbds+unix:///?socket={path}&tls-verify-peer=false"
        checks = ["--verify=crc32c", "--fsync=64"]
        peers.run("fio", "--name=job", "--ioengine=nbd", uri, *job, *checks, cwd=tmp_path)
    if format == "qcow2":
        qemu.check(image)


@requires_peer("nbd-client")
def test_nbd_client_lists_the_exports(tmp_path: Path, credentials: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(4096))
    options = ["--tls-certificates", credentials / "server", "-p", "0", "-x", "hello"]
    with nbd_server.process(*options, "-f", "raw", tmp_path / "disk.raw") as (_path, server):
        port = nbd_server.tcp_port(server)
        folder = credentials / "client"
        words = ["-enable-tls", "-tlshostname", "localhost", "-cacertfile", folder / "ca-cert.pem"]
        words += ["-certfile", folder / "client-cert.pem", "-keyfile", folder / "client-key.pem"]
        listed = peers.run("nbd-client", "-l", "localhost", str(port), *words).stdout.decode()
    assert listed.split()[-1] == "hello"


@requires_peer("nbdkit", "nbdinfo")
def test_tls_on_both_sides_of_a_server_in_the_middle(tmp_path: Path, credentials: Path) -> None:
    """libnbd -- TLS -- ours -- TLS -- nbdkit: a qcow2 image on an export, served once more."""
    from tests.tools.nbdkit import nbdkit

    image, _format = make_image(tmp_path, "qcow2")
    expected = qemu.content(image, "qcow2")
    tls = ["--tls=require", f"--tls-certificates={credentials / 'server'}", "--tls-verify-peer"]
    with nbdkit(*tls, "file", image) as inner:
        creds = f"tls-creds-x509,id=t,endpoint=client,dir={credentials / 'client'}"
        node = f"driver=qcow2,file.driver=nbd,file.path={inner.path},file.tls-creds=t,"
        node += "file.tls-hostname=localhost"
        options = ["--object", creds, "--tls-certificates", credentials / "server"]
        with nbd_server.process(*options, "--image-opts", node) as (path, _server):
            where = place(path, credentials)
            peers.run("nbdcopy", where, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == expected
