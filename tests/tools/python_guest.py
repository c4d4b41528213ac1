"""A guest with Python and vdisk in it: what only a real kernel can show, inside QEMU's machine.

:func:`guest` adds Debian's Python, and vdisk as it is here, to the initramfs of
:mod:`tests.tools.guests`; :func:`running` boots it on QEMU, and gives its shell.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import vdisk
from tests.tools import debian, guests, peers
from tests.tools.cpio import Archive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HOME = "opt/vdisk"
MEMORY_MIB = 512
LIBRARIES = ("libc6", "libexpat1", "zlib1g", "libssl3", "libffi8", "libbz2-1.0", "liblzma5")
"""What Python's own modules are linked with, as far as vdisk uses them."""
LEFT_OUT = ("share", "doc", "gconv", "__pycache__", "ossl-modules", "engines-3")


def guest(modules: Iterable[str], folder: Path) -> guests.Guest:
    """A kernel, and an initramfs made in ``folder``; it has the commands vdisk-nbd and vdisk."""
    plain = guests.guest(modules=modules)
    version = debian.dependency("python3", r"python3\.\d+")

    def make(target: Path) -> None:
        target.write_bytes(gzip.compress(_python(version), 3, mtime=0))

    recipe = hashlib.sha256(repr((LIBRARIES, LEFT_OUT)).encode()).hexdigest()[:12]
    python = debian.made(f"{version}-{recipe}.cpio.gz", make)
    whole = folder / "initramfs.cpio.gz"
    archives = (Path(plain.initrd).read_bytes(), python.read_bytes(), gzip.compress(_vdisk(), 1))
    whole.write_bytes(b"".join(archives))
    return guests.Guest(plain.kernel, str(whole))


def _python(version: str) -> bytes:
    """Debian's Python, and what it is linked with; an archive."""
    archive = Archive()
    seen: set[str] = set()
    parts = (f"{version}-minimal", f"lib{version}-minimal", f"lib{version}-stdlib")
    for package in (*parts, *LIBRARIES):
        _add_tree(archive, debian.unpacked(package), "", seen)
    archive.link("usr/bin/python3", version)
    return archive.finished()


def _vdisk() -> bytes:
    """vdisk as it is here, and the one package that is imported by whatever opens an image."""
    archive = Archive()
    for name in ("opt", HOME):
        archive.directory(name)
    construct = importlib.util.find_spec("construct")
    assert construct is not None and construct.origin is not None
    for package in (Path(vdisk.__file__).parent, Path(construct.origin).parent):
        _add_tree(archive, package, f"{HOME}/{package.name}", set())
    for name, module in (("vdisk", "main"), ("vdisk-nbd", "nbd")):
        run = f'#!/bin/sh\nPYTHONPATH=/{HOME} exec python3 -m vdisk.cli.{module} "$@"\n'
        archive.file(f"bin/{name}", run.encode())
    return archive.finished()


def _add_tree(archive: Archive, folder: Path, prefix: str, seen: set[str]) -> None:
    """Add a directory's content, and the directory itself if it has a name there."""
    if prefix:
        archive.directory(prefix)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name = f"{prefix}/{inside}" if prefix else str(inside)
        if not set(inside.parts).isdisjoint(LEFT_OUT) or name in seen:
            continue
        seen.add(name)
        if path.is_symlink():
            archive.link(name, os.readlink(path))
        elif path.is_dir():
            archive.directory(name)
        else:
            archive.file(name, path.read_bytes())


class QemuConsole:
    """A QEMU and its first serial line, as :class:`~tests.tools.guests.Shell` uses a machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._input, self._output = process.stdin.fileno(), process.stdout.fileno()
        self._said = bytearray()
        self.serial = (self,)

    def send(self, text: str) -> None:
        """Type something."""
        os.write(self._input, text.encode())

    def run_until(self, *, serial: str | None = None, timeout: float) -> bytes:
        """Wait until the guest has written ``serial``: what came up to there; or until it ends."""
        if serial is None:
            self._process.wait(timeout)
            return b""
        deadline = time.monotonic() + timeout
        while (end := self._said.find(serial.encode())) < 0:
            left = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._output], [], [], left)
            more = os.read(self._output, 1 << 16) if ready else b""
            assert more, f"no {serial!r} in {timeout} s, but {bytes(self._said[-4000:])!r}"
            self._said += more
        end += len(serial)
        said = bytes(self._said[:end])
        del self._said[:end]
        return said


class OneLineShell(guests.Shell):
    """For long commands: what is typed while one of them runs is echoed among what it prints."""

    def _type(self, command: str) -> None:
        self.machine.serial[0].send(f"echo '<'\">\"; {command}; echo \"=$?\"'='\n")


@contextlib.contextmanager
def running(modules: Iterable[str], boot_seconds: float) -> Iterator[guests.Shell]:
    """The shell of a guest with these modules."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vdisk-"))
        found = guest(modules, Path(folder))
        words = ["-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio"]
        words += ["-m", str(MEMORY_MIB), "-kernel", found.kernel, "-initrd", found.initrd]
        command = peers.command("qemu-system-x86_64", *words, "-append", guests.APPEND)
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        stack.callback(process.kill)
        shell = OneLineShell(QemuConsole(process)).start(boot_seconds)
        shell.run("dmesg -n 1")  # the kernel's messages would come between
        yield shell
