"""A disk image's life: packed from a real directory, converted, kept, broken, restored, checked.

Run by ``make demo``, or ``python examples/demo.py [DIRECTORY]`` for a directory of your own.
Everything happens in a temporary directory, which is gone afterwards.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import vdisk

MIB = 1 << 20
VDISK = [sys.executable, "-m", "vdisk.cli.main"]
SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

BOLD, DIM, OFF = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def say(text: str) -> None:
    """What happens next, and why."""
    print(f"\n{BOLD}{text}{OFF}", flush=True)


def run(command: str, *, expect: int = 0, quiet: bool = False) -> None:
    """Show a command and run it; it must end with the status ``expect``."""
    print(f"{DIM}${OFF} {command}", flush=True)
    program, *words = shlex.split(command)
    found = VDISK if program == "vdisk" else [shutil.which(program, path=SBIN) or program]
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run([*found, *words], stdout=output, stderr=output, check=False)
    if done.returncode != expect:
        sys.exit(f"'{command}' ended with status {done.returncode} instead of {expect}")


def sizes(*names: str) -> None:
    """How long the files look, and what they take."""
    for name in names:
        status = os.stat(name)
        apparent, taken = status.st_size / MIB, status.st_blocks * 512 / MIB
        print(f"  {name:16}{apparent:8.1f} MiB long, {taken:6.1f} MiB on disk")


def python_library() -> Path:
    """A copy of Python's standard library, without what was added to it."""
    ignored = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "test")
    target = Path("library")
    shutil.copytree(sysconfig.get_path("stdlib"), target, symlinks=True, ignore=ignored)
    return target


def pack(tree: Path) -> None:
    """``tree`` as an ext4 file system in disk.raw, with some room left."""
    entries = list(tree.rglob("*"))
    files = [path for path in entries if path.is_file() and not path.is_symlink()]
    content = sum(path.stat().st_size for path in files)
    room = content + 4096 * len(files)  # the last block of a file is half empty on average
    print(f"  {tree}: {len(files)} files, {content / MIB:.1f} MiB")
    source, inodes = shlex.quote(str(tree)), len(entries) + 1024
    run(f"mke2fs -q -t ext4 -L demo -N {inodes} -d {source} disk.raw {room // MIB + 64}M")


def convert() -> None:
    """raw to qcow2, plain and compressed."""
    run("vdisk convert -p -f raw -O qcow2 disk.raw disk.qcow2")
    run("vdisk convert -c -f raw -O qcow2 -o compression_type=zstd disk.raw small.qcow2")
    sizes("disk.raw", "disk.qcow2", "small.qcow2")
    run("vdisk compare -f raw -F qcow2 disk.raw small.qcow2")


def look() -> None:
    """The same image from Python: the map, and a field of the file system."""
    with vdisk.open("disk.qcow2") as disk:
        by_kind: dict[str, int] = {}
        for extent in disk.map():
            by_kind[extent.kind.value] = by_kind.get(extent.kind.value, 0) + extent.length
        label = disk.read(1024 + 0x78, 16).rstrip(b"\0")  # s_volume_name of the ext4 superblock
    for kind, size in sorted(by_kind.items()):
        print(f"  {size / MIB:6.1f} MiB {kind}")
    print(f"  the file system's label, read through the image: {label.decode()}")


def break_and_restore() -> None:
    """A snapshot, an accident, and the way back."""
    run("vdisk snapshot -c fresh disk.qcow2")
    run('vdisk io -f qcow2 -c "write -P 0xbd 0 1M" disk.qcow2')
    run("vdisk compare -f raw -F qcow2 disk.raw disk.qcow2", expect=1)
    say("The file system is gone, but the image knows what it was.")
    run("vdisk snapshot -a fresh disk.qcow2")
    run("vdisk snapshot -l disk.qcow2")
    run("vdisk compare -f raw -F qcow2 disk.raw disk.qcow2")


def overlay() -> None:
    """Changes in a file of their own."""
    run("vdisk create -q -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2")
    run('vdisk io -f qcow2 -c "write -P 0x11 32M 192k" -c "write -z 40M 1M" overlay.qcow2')
    run("vdisk info --backing-chain overlay.qcow2")
    sizes("disk.qcow2", "overlay.qcow2")


def check() -> None:
    """Is everything sound, by our own judgement and by others'?"""
    for name in ("disk.qcow2", "small.qcow2", "overlay.qcow2"):
        run(f"vdisk check {name}")
    run("vdisk convert -f qcow2 -O raw small.qcow2 restored.raw")
    run("e2fsck -fn restored.raw", quiet=True)
    print("  e2fsck finds the file system whole.")
    if shutil.which("qemu-img"):
        run("qemu-img check -q disk.qcow2")
        run("qemu-img compare -f raw -F qcow2 disk.raw disk.qcow2")


def main(arguments: list[str]) -> None:
    given = [Path(argument).resolve() for argument in arguments]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vdisk-demo-") as folder:
        os.chdir(folder)
        say("1. Pack a directory of this machine into a disk: a raw image with a file system.")
        pack(given[0] if given else python_library())
        say("2. Make it a qcow2 image, and a compressed one. Neither stores what is empty.")
        convert()
        say("3. Look inside from Python.")
        look()
        say("4. Take a snapshot, then overwrite the first megabyte, as accidents do.")
        break_and_restore()
        say("5. Put an overlay on top: changes go there, the image below stays as it is.")
        overlay()
        say("6. Check it all.")
        check()
        os.chdir("/")
    say(f"Done in {time.monotonic() - began:.1f} s; nothing was left behind.")


if __name__ == "__main__":
    main(sys.argv[1:])
