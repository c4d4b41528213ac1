"""A small Debian as it would be installed, on a disk image that vdisk writes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import vdisk
from tests.tools import debian, peers

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 30
PACKAGES = ("systemd-sysv", "udev", "e2fsprogs", "kmod", "login", "util-linux")
SECONDS = 900


def debian_disk() -> Path:
    """A qcow2 whose whole disk is one ext4 with a Debian; root needs no password.

    Made once, as root, by debootstrap; it takes a minute or two.  Use it through an overlay.
    """
    return debian.made("debian.qcow2", _make)


def _make(target: Path) -> None:
    tree, raw = target.with_suffix(".tree"), target.with_suffix(".raw")
    shutil.rmtree(tree, ignore_errors=True)
    words = ("--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", tree)
    peers.run("debootstrap", *words, timeout=SECONDS)
    _configure(tree)
    with raw.open("wb") as file:
        file.truncate(SIZE)
    peers.run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", tree, raw)
    vdisk.convert(raw, target, target_format="qcow2")
    shutil.rmtree(tree)
    raw.unlink()


def _configure(tree: Path) -> None:
    shadow = tree / "etc" / "shadow"
    shadow.write_text(shadow.read_text().replace("root:*:", "root::"))
    (tree / "etc" / "hostname").write_text("guest\n")
    for name in ("cache/apt/archives", "lib/apt/lists"):
        shutil.rmtree(tree / "var" / name)
