"""QEMU's image tools as functions and context managers.

Written against QEMU 7.2; every function asserts that the tool succeeded unless told otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tools import peers

if TYPE_CHECKING:
    from collections.abc import Iterator

    Argument = str | os.PathLike[str]


def img(*arguments: Argument, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """``qemu-img`` with these arguments."""
    return peers.run("qemu-img", *arguments, check=check)


def img_json(*arguments: Argument) -> Any:
    """What ``qemu-img … --output=json`` prints, parsed."""
    return json.loads(img(*arguments, "--output=json").stdout)


def create(path: Argument, size: int | str, format: str = "qcow2", **options: object) -> None:
    """``qemu-img create``; ``options`` are ``-o`` names (dots written as ``__``), bools on/off."""
    words = ["create", "-q", "-f", format]
    for name, value in options.items():
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        words += ["-o", f"{name.replace('__', '.')}={text}"]
    img(*words, path, str(size))


def check(path: Argument, format: str = "qcow2") -> dict[str, Any]:
    """``qemu-img check``, which must find no error and no leak."""
    report: dict[str, Any] = img_json("check", "-f", format, path)
    return report


def content(path: Argument, format: str = "qcow2") -> bytes:
    """All bytes of the disk in an image, as QEMU reads them."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "content.raw")
        img("convert", "-f", format, "-O", "raw", path, target)
        return target.read_bytes()


def compare(first: Argument, second: Argument, *options: str) -> None:
    """``qemu-img compare``: both hold the same bytes (sizes may differ by zeroes)."""
    img("compare", *options, first, second)


def io(path: Argument, *commands: str, format: str = "qcow2", readonly: bool = False) -> str:
    """Run ``qemu-io`` commands on an image and give what it printed; none may fail."""
    words: list[str] = []
    for one in commands:
        words += ["-c", one]
    flags = ["-r"] if readonly else []
    done = peers.run("qemu-io", "-f", format, *flags, *words, path)
    return done.stdout.decode()


@contextlib.contextmanager
def holding(path: Argument, format: str = "raw", *, readonly: bool = False) -> Iterator[None]:
    """A running ``qemu-io`` that has the image open, with the locks a machine would take."""
    flags = ["-r"] if readonly else []
    with subprocess.Popen(
        peers.command("qemu-io", "-f", format, *flags, path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # Its answer to a command shows that it is up and the image open.
            process.stdin.write(b"length\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert b"iB" in answer or b"bytes" in answer, answer
            yield
        finally:
            process.communicate(timeout=peers.TIMEOUT)


@contextlib.contextmanager
def nbd(
    path: Argument,
    format: str = "raw",
    *options: str,
    export: str = "",
    readonly: bool = False,
) -> Iterator[str]:
    """A running ``qemu-nbd`` that serves an image on a Unix socket; gives its NBD URI."""
    flags = ["--read-only"] if readonly else []
    # Not under tmp_path: the path of a Unix socket holds 107 characters.
    with tempfile.TemporaryDirectory(prefix="vdisk-") as folder:
        server = Path(folder, "nbd.sock")
        words = ["--persistent", "--shared=0", f"--socket={server}", "-f", format]
        process = subprocess.Popen(
            peers.command("qemu-nbd", *words, "-x", export, *flags, *options, path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with process:
            try:
                wait_for_server(process, server)
                yield f"nbd+unix:///{export}?socket={server}"
            finally:
                process.terminate()
                process.communicate(timeout=peers.TIMEOUT)


def wait_for_server(process: subprocess.Popen[bytes], path: Path) -> None:
    """Return once an NBD server that was started greets a client; fail if it ends first.

    That its socket exists is not enough: it may not listen yet, and a SIGTERM that reaches
    qemu-nbd before its main loop runs is lost.
    """
    deadline = time.monotonic() + peers.TIMEOUT
    while not _greets(path):
        if process.poll() is not None:
            assert process.stdout is not None
            raise AssertionError(f"{process.args!r} ended: {process.stdout.read()!r}")
        assert time.monotonic() < deadline, f"nobody answered on {path} in {peers.TIMEOUT} s"
        time.sleep(0.01)


def _greets(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(peers.TIMEOUT)
        try:
            client.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return client.recv(8) == b"NBDMAGIC"
