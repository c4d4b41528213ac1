"""Real guests: Debian's kernels with a small first file system, which gives a shell at once.

The initramfs holds busybox, the modules that reach a disk, and an ``init`` that loads these and
leaves a shell on the serial line, or the machine to the system on the disk that ``root=`` names.
:class:`Shell` talks to either.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.tools import debian
from tests.tools.cpio import Archive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.tools.python_guest import QemuConsole
    from vdisk.vm import Machine

DISK_MODULES = ("virtio_pci", "virtio_blk", "ata_piix", "sd_mod", "ext4")
ON_DEMAND = "VDISK_TEST_GUESTS"
on_demand = pytest.mark.skipif(
    ON_DEMAND not in os.environ, reason=f"takes minutes: 'make guests' runs it ({ON_DEMAND})"
)
PROMPT = "/ # "
READY = "the shell is ready"
APPEND = "console=ttyS0 quiet panic=-1"

INIT = f"""#!/bin/busybox sh
busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod "$module"; done < /modules
for word in $(cat /proc/cmdline); do
    case $word in
    root=*)
        mount -t ext4 "${{word#root=}}" /mnt
        mount --move /dev /mnt/dev
        umount /proc /sys
        exec busybox switch_root /mnt /sbin/init
    esac
done
echo "{READY}"
exec setsid cttyhack sh
"""


class Flavour(NamedTuple):
    """A kernel: the package that asks for the newest, and its architecture."""

    package: str
    architecture: str


CLOUD = Flavour("linux-image-cloud-amd64", "amd64")
GENERIC = Flavour("linux-image-amd64", "amd64")
I686 = Flavour("linux-image-686", "i386")
PAE = Flavour("linux-image-686-pae", "i386")


class Guest(NamedTuple):
    """What ``Machine(kernel=…, initrd=…)`` takes."""

    kernel: str
    initrd: str


def guest(flavour: Flavour = CLOUD, modules: Iterable[str] = DISK_MODULES) -> Guest:
    """The newest kernel of a flavour, and an initramfs with these modules and what they need."""
    tree = kernel_tree(flavour)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    recipe = hashlib.sha256("\n".join([INIT, *modules]).encode()).hexdigest()[:12]

    def make(target: Path) -> None:
        target.write_bytes(gzip.compress(initramfs(flavour, modules), 6, mtime=0))

    return Guest(str(kernel), str(debian.made(f"{tree.name}-{recipe}.cpio.gz", make)))


def kernel_tree(flavour: Flavour) -> Path:
    """The files of the newest kernel's package."""
    pattern = r"linux-image-\d.*"
    package = debian.dependency(flavour.package, pattern, flavour.architecture)
    return debian.unpacked(package, flavour.architecture)


def initramfs(flavour: Flavour, modules: Iterable[str]) -> bytes:
    """The archive, not compressed."""
    archive = Archive()
    for name in ("bin", "dev", "lib", "mnt", "proc", "sys", "tmp"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    busybox = debian.unpacked("busybox-static", flavour.architecture) / "bin" / "busybox"
    archive.file("bin/busybox", busybox.read_bytes())
    archive.link("bin/sh", "busybox")
    paths = []
    for name, content in module_files(kernel_tree(flavour), modules):
        paths.append(f"/lib/{name}.ko\n")
        archive.file(paths[-1].strip().lstrip("/"), content)
    archive.file("modules", "".join(paths).encode())
    archive.file("init", INIT.encode())
    return archive.finished()


def module_files(tree: Path, modules: Iterable[str]) -> list[tuple[str, bytes]]:
    """Names and contents of modules, each after those that it depends on; none that is built in."""
    (folder,) = (tree / "lib" / "modules").iterdir()
    files = {_module_name(path): path for path in folder.rglob("*.ko*")}
    built_in = {_module_name(path) for path in (folder / "modules.builtin").read_text().split()}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name not in files and name not in built_in:
            name = f"{name}_generic"  # an algorithm, by a name that several modules answer to
        if name in found or name in built_in:
            return
        content = files[name].read_bytes()
        content = lzma.decompress(content) if files[name].suffix == ".xz" else content
        for needed in _needed(content):
            add(needed)
        found[name] = content

    for name in modules:
        add(name)
    return list(found.items())


def _module_name(path: Path | str) -> str:
    return str(path).rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _needed(content: bytes) -> list[str]:
    """The modules that a module's ``.modinfo`` names: depmod's work."""
    named = re.findall(rb"\0depends=([^\0]*)|\0softdep=pre: ([^\0]*)", content)
    names = [name for pair in named for words in pair for name in re.split("[, ]", words.decode())]
    return [name.removeprefix("crypto-").replace("-", "_") for name in names if name]


class Shell:
    """A shell on the first serial line, however it came there."""

    def __init__(self, machine: Machine | QemuConsole, timeout: float = 60) -> None:
        self.machine, self.timeout = machine, timeout

    def start(self, timeout: float) -> Shell:
        """Wait for the initramfs's shell; what is typed before it prompts may be lost."""
        self.machine.run_until(serial=READY, timeout=timeout)
        self.machine.run_until(serial=PROMPT, timeout=self.timeout)
        return self

    def log_in(self, timeout: float) -> Shell:
        """Become root, which needs no password, where an installed system asks who is there."""
        self.machine.run_until(serial="login: ", timeout=timeout)
        self.machine.serial[0].send("root\n")
        self.machine.run_until(serial="# ", timeout=self.timeout)
        return self

    def run(self, command: str, *, check: bool = True, timeout: float | None = None) -> str:
        """What a command prints; with ``check`` it must succeed."""
        self._type(command)
        wait = self.timeout if timeout is None else timeout
        self.machine.run_until(serial="<>\r\n", timeout=wait)
        said = self.machine.run_until(serial="=\r\n", timeout=wait).decode(errors="replace")
        said, _, status = said.removesuffix("=\r\n").rpartition("=")
        assert not check or status == "0", f"{command!r} ended with {status}:\n{said}"
        return said.replace("\r\n", "\n")

    def _type(self, command: str) -> None:
        # What the terminal echoes is another text than what the command prints.
        self.machine.serial[0].send(f"echo '<'\">\"; {command}\necho \"=$?\"'='\n")

    def power_off(self, timeout: float = 60) -> None:
        """Turn the machine off from inside."""
        self.machine.serial[0].send("sync; poweroff -f\n")
        self.machine.run_until(timeout=timeout)
