"""TLS with pre-shared keys, both directions: qemu-nbd and qemu-io 7.2, nbdkit 1.32, libnbd 1.14.

Python's ssl module has them since 3.13.  Under an older one, the tests run our programs in a 3.13
that they find beside it; the programs need nothing but the standard library for this.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tools import peers, qemu
from tests.tools.nbdkit import nbdkit
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from collections.abc import Iterator

MiB = 1 << 20
SOURCE = Path(__file__).parents[2]
HAS_PSK = "import ssl; raise SystemExit(not hasattr(ssl.SSLContext, 'set_psk_server_callback'))"


def _succeeds(python: str) -> bool:
    words = [python, "-c", HAS_PSK]
    done = subprocess.run(words, capture_output=True, check=False, timeout=peers.TIMEOUT)
    return done.returncode == 0


@functools.cache
def python_with_psk() -> str | None:
    """An interpreter of 3.13 or newer: this one, one on the PATH, one of pyenv's."""
    if sys.version_info >= (3, 13):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [os.environ.get("VDISK_TEST_PYTHON3_13"), shutil.which("python3.13")]
    found += [str(path / "bin" / "python3") for path in sorted(pyenv.glob("3.1[3-9]*"))]
    for path in found:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if path and _succeeds(path):
                return path
    return None


@pytest.fixture(autouse=True)
def needs_psk() -> None:
    if python_with_psk() is None:
        pytest.skip("TLS with pre-shared keys needs Python 3.13, and there is none here")


def words(module: str, *arguments: str | Path) -> list[str]:
    python = python_with_psk()
    assert python is not None
    return [python, "-m", f"vdisk.cli.{module}", *map(str, arguments)]


def ours(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """``vdisk`` (main) or ``vdisk-nbd`` (nbd), run to its end in the Python that has keys."""
    return subprocess.run(
        words(module, *arguments),
        cwd=SOURCE,
        capture_output=True,
        check=False,
        timeout=peers.TIMEOUT,
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories "good" and "bad", each a ``keys.psk`` with one of alice, and not the same."""
    folder = tmp_path_factory.mktemp("psk")
    for name in ("good", "bad"):
        (folder / name).mkdir()
        (folder / name / "keys.psk").write_text(f"alice:{secrets.token_hex(32)}\n")
    with (folder / "bad" / "keys.psk").open("a") as file:
        file.write(f"mallory:{secrets.token_hex(32)}\n")
    return folder


@contextlib.contextmanager
def serving(*arguments: str | Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vdisk-") as folder:
        socket = Path(folder, "nbd.sock")
        server = subprocess.Popen(
            words("nbd", "serve", "-k", socket, *arguments),
            cwd=SOURCE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with server:
            try:
                qemu.wait_for_server(server, socket)
                yield socket
            finally:
                server.terminate()
                server.communicate(timeout=peers.TIMEOUT)


def raw_image(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(b"\x2a" * 2 * MiB + bytes(6 * MiB))
    return path


# -- our server ----------------------------------------------------------------------------------


def qemu_io(socket: Path, folder: Path, user: str) -> int:
    creds = f"tls-creds-psk,id=t,endpoint=client,dir={folder},username={user}"
    node = f"driver=nbd,server.type=unix,server.path={socket},tls-creds=t"
    commands = ["-c", "read -P 42 0 2M", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M"]
    done = peers.run("qemu-io", "--object", creds, *commands, "--image-opts", node, check=False)
    assert b"verification failed" not in done.stdout
    return done.returncode


@requires_peer("qemu-io")
@pytest.mark.parametrize("how", ["--tls-psk", "--object"])
def test_qemu_io_7_2_with_a_key(tmp_path: Path, keys: Path, how: str) -> None:
    good = keys / "good"
    creds = f"tls-creds-psk,id=k,endpoint=server,dir={good}"
    tls = [how, good] if how == "--tls-psk" else ["--object", creds, "--tls-creds", "k"]
    with serving(*tls, "-f", "raw", raw_image(tmp_path)) as socket:
        assert qemu_io(socket, keys / "bad", "alice") != 0
        assert qemu_io(socket, keys / "bad", "mallory") != 0
        assert qemu_io(socket, good, "alice") == 0
        plain = peers.run(
            "qemu-io", "-f", "raw", "-c", "read 0 1", f"nbd+unix:///?socket={socket}", check=False
        )
        assert plain.returncode != 0


@requires_peer("nbdinfo", "nbdcopy")
def test_libnbd_1_14_with_a_key(tmp_path: Path, keys: Path) -> None:
    image = raw_image(tmp_path)
    with serving("--tls-psk", keys / "good", "-r", "-f", "raw", image) as socket:
        place = f"nbds+unix://alice@/?socket={socket}&tls-psk-file={keys}"
        assert peers.run("nbdinfo", "--size", f"{place}/good/keys.psk").stdout == b"8388608\n"
        peers.run("nbdcopy", f"{place}/good/keys.psk", tmp_path / "copy.raw")
        assert peers.run("nbdinfo", f"{place}/bad/keys.psk", check=False).returncode != 0
    assert (tmp_path / "copy.raw").read_bytes() == image.read_bytes()


# -- our client ----------------------------------------------------------------------------------


@contextlib.contextmanager
def peer_with_keys(kind: str, folder: Path, tmp_path: Path) -> Iterator[str]:
    if kind == "nbdkit":
        words = ["--tls=require", f"--tls-psk={folder / 'keys.psk'}"]
        with nbdkit(*words, "file", raw_image(tmp_path)) as running:
            yield str(running.path)
        return
    creds = f"tls-creds-psk,id=s,endpoint=server,dir={folder}"
    with qemu.nbd(raw_image(tmp_path), "raw", "--object", creds, "--tls-creds", "s") as uri:
        yield uri.partition("socket=")[2]


@requires_peer("nbdkit", "qemu-nbd")
@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_our_client_with_a_key(kind: str, tmp_path: Path, keys: Path) -> None:
    with peer_with_keys(kind, keys / "good", tmp_path) as socket:
        place = f"nbds+unix://alice@/?socket={socket}&tls-psk-file={keys}"
        done = ours("nbd", "copy", f"{place}/good/keys.psk", tmp_path / "copy.raw")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()
        creds = f"tls-creds-psk,id=t,endpoint=client,dir={keys / 'good'},username=alice"
        node = f"driver=raw,file.driver=nbd,file.path={socket},file.tls-creds=t"
        commands = ["-c", "write -P 9 4M 1M", "-c", "read -P 9 4M 1M", "-c", "read -P 42 0 2M"]
        done = ours("main", "io", "--object", creds, *commands, "--image-opts", node)
        assert done.returncode == 0, (done.stdout, done.stderr)
        for wrong in (f"{place}/bad/keys.psk", f"{place}/good/keys.psk".replace("alice", "bob")):
            done = ours("nbd", "info", wrong)
            assert done.returncode == 1
            assert b"Traceback" not in done.stderr
        assert b"there is no key of 'bob'" in done.stderr


def test_nbd_on_nbd_with_a_key(tmp_path: Path, keys: Path) -> None:
    """Our client and our server, one above the other."""
    good = keys / "good"
    with serving("--tls-psk", good, "-f", "raw", raw_image(tmp_path)) as inner:
        creds = f"tls-creds-psk,id=t,endpoint=client,dir={good},username=alice"
        node = f"driver=raw,file.driver=nbd,file.path={inner},file.tls-creds=t"
        with serving("--object", creds, "--image-opts", node) as outer:
            done = ours(
                "main", "io", "-f", "raw", "-c", "read -P 42 0 2M", f"nbd+unix:///?socket={outer}"
            )
    assert done.returncode == 0, (done.stdout, done.stderr)
