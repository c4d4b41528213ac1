"""A small Debian as it would be installed, on a disk image that vdisk writes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import vdisk
from tests.tools import bootable, debian, guests, peers

SIZE = 1 << 30
PACKAGES = ("systemd-sysv", "udev", "e2fsprogs", "kmod", "login", "util-linux")
SECONDS = 900
PATIENCE = """[Manager]
DefaultTimeoutStartSec=15min
DefaultDeviceTimeoutSec=15min
"""
"""For systemd, which gives up after 90 seconds otherwise: hosts may be busy."""


GRUB_CONFIG = f"""
set timeout=0
menuentry "Debian" {{
    linux /boot/vmlinuz {guests.APPEND} root=LABEL={bootable.LABEL}
    initrd /boot/initrd.gz
}}
"""


def debian_disk() -> Path:
    """A qcow2 with a Debian that boots itself by GRUB; root needs no password.

    Made once, as root, by debootstrap; it takes a minute or two.  Use it through an overlay.
    """
    guest = guests.guest()
    parts = [str(SIZE), *PACKAGES, PATIENCE, GRUB_CONFIG, Path(guest.initrd).name]
    recipe = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return debian.made(f"debian-{recipe}.qcow2", lambda target: _make(target, guest))


def _make(target: Path, guest: guests.Guest) -> None:
    folder = target.with_suffix(".making")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tree = folder / "tree"
    words = ("--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", tree)
    peers.run("debootstrap", *words, timeout=SECONDS)
    _configure(tree)
    files = {"vmlinuz": Path(guest.kernel), "initrd.gz": Path(guest.initrd)}
    raw = bootable.grub_disk(folder, GRUB_CONFIG, files, tree=tree, size=SIZE)
    vdisk.convert(raw, target, target_format="qcow2")
    shutil.rmtree(folder)


def file_system(disk: Path, folder: Path) -> Path:
    """What its partition holds now, by a name that e2fsprogs understand."""
    whole = folder / "whole.raw"
    vdisk.convert(disk, whole, target_format="raw")
    return whole.with_name(f"{whole.name}?offset={bootable.PARTITION_START * bootable.SECTOR}")


def _configure(tree: Path) -> None:
    shadow = tree / "etc" / "shadow"
    shadow.write_text(shadow.read_text().replace("root:*:", "root::"))
    (tree / "etc" / "hostname").write_text("guest\n")
    settings = tree / "etc" / "systemd" / "system.conf.d"
    settings.mkdir()
    (settings / "patience.conf").write_text(PATIENCE)
    for name in ("cache/apt/archives", "lib/apt/lists"):
        shutil.rmtree(tree / "var" / name)
