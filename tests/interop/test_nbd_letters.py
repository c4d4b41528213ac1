"""The letters of qemu-nbd 7.2, one by one, beside qemu-nbd itself where both show something."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools import nbd_server, peers, qemu
from tests.tools.peers import requires_peer

MiB = 1 << 20
SIZE = 16 * MiB

pytestmark = requires_peer("qemu-nbd", "qemu-img", "qemu-io", "nbdinfo")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu.img("create", "-q", "-f", "qcow2", path, str(SIZE))
    qemu.io(path, "write -P 3 0 4M")
    return path


def at(path: Path) -> str:
    return f"nbd+unix:///?socket={path}"


@pytest.mark.parametrize(
    "options",
    [
        ("-n",),
        ("--cache=none",),
        ("--cache=directsync",),
        ("--cache=writethrough",),
        ("--cache=unsafe",),
        ("--aio=threads",),
        ("--aio=native", "-n"),
        ("--aio=io_uring",),
        ("-v",),
        ("-q",),
        ("-t",),
        ("--discard=ignore",),
        ("--detect-zeroes=on",),
        ("--iops=5000", "--bps=512M"),
        ("--no-backing",),
    ],
    ids="".join,
)
def test_what_is_written_is_read(image: Path, options: tuple[str, ...]) -> None:
    with nbd_server.process("-f", "qcow2", *options, image) as (path, _server):
        qemu.io(
            at(path),
            "write -P 7 1M 3M",
            "write -P 8 12345 678",
            "read -P 7 1M 3M",
            "read -P 8 12345 678",
            "flush",
            "read -P 3 0 4k",
            format="raw",
        )
    qemu.io(image, "read -P 7 1M 3M", "read -P 8 12345 678")
    qemu.check(image)


@pytest.mark.parametrize("bound", [("-b", "127.0.0.1"), ("-b", "*"), ()])
def test_b_and_p(image: Path, bound: tuple[str, ...]) -> None:
    """Where a client by TCP finds it."""
    with nbd_server.process(*bound, "-p", "0", "-r", image) as (_path, server):
        port = nbd_server.tcp_port(server)
        said = peers.run("nbdinfo", "--size", f"nbd://127.0.0.1:{port}").stdout
        assert int(said) == SIZE


def test_k_twice(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sock"
    with nbd_server.process("-k", other, "-r", image) as (path, _server):
        for each in (path, other):
            assert int(peers.run("nbdinfo", "--size", at(each)).stdout) == SIZE


def test_e_1(image: Path) -> None:
    """The second client is connected, and served when the first has left."""
    with nbd_server.process("-e", "1", "-r", image) as (path, _server):
        first = socket.socket(socket.AF_UNIX)
        with first:
            first.connect(str(path))
            assert len(first.recv(18)) == 18
            second = subprocess.Popen(
                peers.command("nbdinfo", "--size", at(path)), stdout=subprocess.PIPE
            )
            time.sleep(0.3)
            assert second.poll() is None
        said, _ = second.communicate(timeout=peers.TIMEOUT)
        assert int(said) == SIZE


def contexts(place: str) -> list[str]:
    export = json.loads(peers.run("nbdinfo", "--json", place).stdout)["exports"][0]
    found: list[str] = export["contexts"]
    return sorted(found)


@pytest.mark.parametrize("options", [("-B", "one"), ("-B", "one", "-B", "two", "-A"), ("-A",)])
def test_bitmaps_and_depths_are_those_of_qemu_nbd(image: Path, options: tuple[str, ...]) -> None:
    for name, granularity in (("one", "64k"), ("two", "128k")):
        qemu.img("bitmap", "--add", "-g", granularity, image, name)
    qemu.io(image, "write -P 5 5M 1M", "write -P 6 9M 1k")
    maps = {}
    with qemu.nbd(image, "qcow2", *options, readonly=True) as place:
        wanted = contexts(place)
        for name in wanted:
            maps[name] = peers.run("nbdinfo", f"--map={name}", place).stdout
    assert len(wanted) > 1
    with nbd_server.process(*options, "-r", "-f", "qcow2", image) as (path, _server):
        assert contexts(at(path)) == wanted
        for name in wanted:
            ours = peers.run("nbdinfo", f"--map={name}", at(path)).stdout
            if name == "base:allocation":
                continue  # what is a hole and what zero, the two may see differently
            assert ours == maps[name], name


def test_a_bitmap_of_the_backing_file(image: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    for name in ("one", "two"):
        qemu.img("bitmap", "--add", image, name)
    qemu.io(image, "write -P 5 5M 1M")
    size = str(SIZE + (4 << 20))
    qemu.img("create", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay, size)
    qemu.img("bitmap", "--add", overlay, "two")
    qemu.io(overlay, "write -P 6 1M 64k")
    options = ("-B", "one", "-B", "two")
    asked = [f"--map=qemu:dirty-bitmap:{name}" for name in ("one", "two")]
    with qemu.nbd(overlay, "qcow2", *options, readonly=True) as place:
        theirs = [peers.run("nbdinfo", ask, place).stdout for ask in asked]
    with nbd_server.process(*options, "-r", "-f", "qcow2", overlay) as (path, _server):
        assert [peers.run("nbdinfo", ask, at(path)).stdout for ask in asked] == theirs
    assert all(b"dirty" in said for said in theirs) and theirs[0] != theirs[1]


def test_x_and_capital_d(image: Path) -> None:
    options = ("-x", "näme", "-D", "a disk, of sorts")
    listings = []
    with qemu.nbd(image, "qcow2", "-D", options[3], export="näme", readonly=True) as place:
        root = f"nbd+unix:///?{place.partition('?')[2]}"
        listings.append(peers.run("nbdinfo", "--list", "--json", root).stdout)
    with nbd_server.process(*options, "-r", "-f", "qcow2", image) as (path, _server):
        listings.append(peers.run("nbdinfo", "--list", "--json", at(path)).stdout)
        assert peers.run("nbdinfo", at(path), check=False).returncode != 0
    theirs, ours = (json.loads(listing)["exports"][0] for listing in listings)
    for key in ("export-name", "description", "export-size", "is_read_only", "can_multi_conn"):
        assert ours[key] == theirs[key], key


def test_capital_l(image: Path) -> None:
    """The same lines, of either server; "transaction size" is of later versions."""
    options = ("-x", "näme", "-D", "a disk, of sorts", "-A", "-r", "-f", "qcow2")
    with nbd_server.process(*options, image) as (path, _server):
        said = listed(path)
        assert said.pop(8) == "  transaction size: 64-bit"
        assert said[:3] == [
            "exports available: 1",
            " export: 'näme'",
            "  description: a disk, of sorts",
        ]
        assert said[4] == "  flags: 0x1587 ( readonly flush df multi cache block-status-payload )"
        said[4] = "  flags: 0x587 ( readonly flush df multi cache )"  # without extended headers
        assert said == peers.run("qemu-nbd", "-L", "-k", path).stdout.decode().splitlines()
    with qemu.nbd(image, "qcow2", "-A", "-D", "theirs", readonly=True) as place:
        path = Path(place.partition("socket=")[2])
        said = listed(path)
        said.remove("  transaction size: 32-bit")
        assert said == peers.run("qemu-nbd", "-L", "-k", path).stdout.decode().splitlines()


def listed(path: Path) -> list[str]:
    """What ``vdisk-nbd serve -L`` tells of the server at a socket."""
    words = [sys.executable, "-m", "vdisk.cli.nbd", "serve", "-L", "-k", str(path)]
    done = subprocess.run(words, capture_output=True, timeout=60, check=True)
    return done.stdout.decode().splitlines()


def test_image_opts_and_secret(tmp_path: Path) -> None:
    """-f luks by --object secret, as qemu-nbd takes it."""
    path = tmp_path / "disk.luks"
    secret = ["--object", "secret,id=s,data=sesame"]
    options = "key-secret=s,iter-time=10"
    qemu.img("create", "-q", "-f", "luks", *secret, "-o", options, path, "4M")
    node = f"driver=luks,key-secret=s,file.filename={path}"
    with nbd_server.process(*secret, "--image-opts", node) as (server, _server):
        qemu.io(at(server), "write -P 9 1M 1M", "read -P 9 1M 1M", format="raw")
    done = peers.run("qemu-io", *secret, "-r", "-c", "read -P 9 1M 1M", "--image-opts", node)
    assert b"verification failed" not in done.stdout
