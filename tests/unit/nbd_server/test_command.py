"""``vdisk-nbd serve``: its options, its life as a process, activation, metrics."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import nbd_server
from tests.tools.hostile_client import HostileClient, request
from tests.tools.patience import PATIENCE, eventually

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"d" * SIZE)
    return path


def fails(*arguments: str | Path) -> str:
    """What the command says when it ends with status 1."""
    done = subprocess.run(
        nbd_server.words(*arguments), capture_output=True, timeout=60, check=False, text=True
    )
    assert done.returncode == 1, done
    assert done.stderr.startswith("vdisk-nbd: ")
    return done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name at least one image"),
        (("-L", "x"), "name no image"),
        (("-L", "-k", "a", "-b", "b"), "asks one server"),
        (("-L", "-k", "/nonexistent/socket"), "cannot connect"),
        (("-c", "/dev/nbd0", "x"), "vdisk-nbd connect"),
        (("-d", "/dev/nbd0"), "vdisk-nbd disconnect"),
        (("-T", "nbd_*", "x"), "--metrics"),
        (("-t", "--one-shot", "x"), "give one of them"),
        (("-x", "name", "one", "two"), "there are several"),
        (("--detect-zeroes=unmap", "x"), "--discard=unmap"),
        (("--limit", "nonsense=1", "x"), "'--limit help' lists them"),
        (("--limit", "connections=0", "x"), "cannot be 0"),
        (("--tls=require", "x"), "needs credentials"),
        (("--tls-creds", "t", "x"), "defines no 't'"),
        (("-n", "--cache=unsafe", "x"), "give one of them"),
        (("-l", "snap", "-s", "x"), "can only be read"),
        (("--fork", "/nonexistent/image"), "Could not open"),
        (("--partition=1", "-o", "1M", "x"), "sets the offset"),
    ],
)
def test_what_cannot_be_is_said(options: tuple[str, ...], said: str) -> None:
    assert said in fails(*options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-p", "65536"), "port 65536 is not in 0..65535"),
        (("-p", "-1"), "port -1 is not in 0..65535"),
        (("--vsock", "4294967296"), "port 4294967296 is not in 0..4294967295"),
        (("--metrics", "127.0.0.1:70000"), "port 70000 is not in 0..65535"),
        (("-e", "-1"), "-1 is no number of clients"),
        (("-B", "b0"), "no dirty bitmaps"),
    ],
)
def test_what_no_server_can_be(options: tuple[str, ...], said: str, image: Path) -> None:
    assert said in fails("-q", "-k", image.parent / "s", *options, "-f", "raw", image)


def test_a_bitmap_that_is_not_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    vdisk.create(disk, 1 << 20, format="qcow2")
    assert "no bitmap 'b0'" in fails("-k", tmp_path / "s", "-B", "b0", disk)


def test_a_label_that_selinux_does_not_take(image: Path) -> None:
    options = ["-k", image.parent / "s", "-f", "raw", image]
    assert "--selinux-label a:b:c:d: SELinux is off" in fails(
        "--selinux-label", "a:b:c:d", *options
    )


def test_the_bounds_are_listed() -> None:
    words = nbd_server.words("--limit", "help")
    done = subprocess.run(words, capture_output=True, timeout=60, check=True, text=True)
    assert "client-bytes=67108864" in done.stdout


def test_several_images_are_named_by_their_files(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(b"o" * SIZE)
    options = ["-f", "raw", "-r", "--default", "other.raw", image, other]
    with nbd_server.process(*options) as (path, _server):
        for name, letter in ((b"disk.raw", b"d"), (b"other.raw", b"o"), (b"", b"o")):
            with HostileClient(path) as client:
                assert client.begin(name) == SIZE
                client.send(request(length=1))
                assert client.receive(17)[16:] == letter


def test_one_shot_ends_with_its_last_client(image: Path) -> None:
    with nbd_server.process("--one-shot", "-r", "-f", "raw", image) as (path, server):
        with HostileClient(path):
            pass  # a client that reaches no export does not count
        with HostileClient(path) as client:
            client.begin()
            assert server.poll() is None
        assert server.wait(PATIENCE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(image: Path, number: signal.Signals) -> None:
    with nbd_server.process("-f", "raw", image) as (path, server):
        with HostileClient(path) as client:
            client.begin()
            client.send(request(1, 0, 4096, payload=b"w" * 4096))
            assert len(client.receive(16)) == 16
            server.send_signal(number)
            assert client.closed()
        assert server.wait(PATIENCE) == 0
        assert not path.exists()
    assert image.read_bytes()[:4097] == b"w" * 4096 + b"d"


def test_fork_returns_when_the_server_is_ready(tmp_path: Path, image: Path) -> None:
    path, pid_file, log = tmp_path / "s", tmp_path / "pid", tmp_path / "log"
    words = nbd_server.words(
        "--fork", "--pid-file", pid_file, "--log-file", log, "-k", path, "-r", "-f", "raw", image
    )
    subprocess.run(words, check=True, timeout=60)
    process = int(pid_file.read_text())
    with HostileClient(path) as client:
        assert client.begin() == SIZE
    os.kill(process, signal.SIGTERM)
    assert eventually(lambda: not pid_file.exists())
    assert "uses export ''" in log.read_text()


def test_sockets_handed_over_by_systemd_are_used(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "activated"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        words = nbd_server.words("-r", "-f", "raw", image)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(listener.fileno()), *words],
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        ) as server:
            with HostileClient(path) as client:
                assert client.begin() == SIZE
            server.terminate()
            assert server.wait(PATIENCE) == 0


def test_metrics_count_requests_bytes_and_errors(image: Path) -> None:
    pytest.importorskip("prometheus_client")
    options = ["--metrics", "127.0.0.1:0", "-x", "disk", "-r", "-f", "raw", image]
    with nbd_server.process(*options) as (path, server):
        assert server.stdout is not None
        line = b""
        while b"metrics are at" not in line:
            line = server.stdout.readline()
        place = line.split()[-1].decode()
        with HostileClient(path) as client:
            client.begin(b"disk")
            client.send(b"".join(request(cookie=n) for n in range(10)) + request(99))
            client.receive(10 * 4112 + 16)
        text = urllib.request.urlopen(place, timeout=PATIENCE).read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['nbd_requests_total{command="read",export="disk"}']) == 10
    assert float(values['nbd_bytes_total{command="read",export="disk"}']) == 40960
    assert float(values['nbd_refused_requests_total{export="disk"}']) == 1
    buckets = 'nbd_request_seconds_bucket{command="read",export="disk",le="+Inf"}'
    assert float(values[buckets]) == 10


def test_vsock_reaches_a_server_on_the_same_machine(image: Path) -> None:
    loopback = getattr(socket, "VMADDR_CID_LOCAL", 1)
    if not hasattr(socket, "AF_VSOCK"):
        pytest.skip("this Python has no AF_VSOCK")
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((loopback, socket.VMADDR_PORT_ANY))
        except OSError as error:
            pytest.skip(f"no vsock loopback here: {error}")
    with (
        nbd_server.process("--vsock", "10899", "-r", "-f", "raw", image),
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client,
    ):
        client.settimeout(PATIENCE)
        client.connect((loopback, 10899))
        assert client.recv(8) == b"NBDMAGIC"


def test_a_corrupt_image_of_a_directory_is_refused_and_the_others_served(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "good.qcow2", SIZE, format="qcow2")
    (tmp_path / "bad.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 1000)
    with nbd_server.process(tmp_path) as (path, _server):
        with HostileClient(path) as client, pytest.raises(AssertionError, match="cannot be opened"):
            client.begin(b"bad.qcow2")
        with HostileClient(path) as client:
            assert client.begin(b"good.qcow2") == SIZE


def test_a_backing_file_is_refused_where_that_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(SIZE))
    overlay = tmp_path / "top.qcow2"
    vdisk.create(overlay, format="qcow2", backing_file="base.raw", backing_format="raw")
    assert "base.raw" in fails("--no-backing", overlay)
    node = {"driver": "qcow2", "file.driver": "file", "file.filename": str(overlay)}
    options = ",".join(f"{key}={value}" for key, value in node.items())
    with (
        nbd_server.process("-r", "--image-opts", options) as (path, _server),
        HostileClient(path) as client,
    ):
        assert client.begin() == SIZE
