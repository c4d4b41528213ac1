"""A small Linux: a Debian kernel, and an initial RAM disk of busybox made here.

The kernel is ``/boot/vmlinuz-*-cloud-amd64``; ``VDISK_TEST_LINUX`` names another root directory
(where a package was unpacked, say).  Its modules are taken from ``lib/modules`` beside it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.tools import peers

READY = "/ # "
INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in MODULES; do insmod /modules/$module.ko; done
exec setsid cttyhack sh
"""
MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *(
        "virtio_blk",
        "scsi_common",
        "scsi_mod",
        "libata",
        "ata_piix",
        "t10-pi",
        "crc-t10dif",
        "sd_mod",
    ),
)
"""In the order in which they can be loaded; those that are built in are left out."""
TRAILER = "TRAILER!!!"


class Linux:
    """Where the kernel is, and what it needs."""

    def __init__(self) -> None:
        root = Path(os.environ.get("VDISK_TEST_LINUX", "/"))
        kernels = sorted(root.glob("boot/vmlinuz-*-cloud-amd64"))
        busybox = peers.find("busybox")
        if not kernels or busybox is None:
            pytest.skip("linux-image-cloud-amd64 and busybox-static are not installed")
        self.kernel = kernels[-1]
        self._busybox = Path(busybox)
        release = re.sub("^vmlinuz-", "", self.kernel.name)
        self._modules = root / "lib" / "modules" / release

    def initrd(self, path: Path, extra: dict[str, bytes] | None = None) -> Path:
        """Write an initial RAM disk whose shell is the console's."""
        found = {file.stem: file for file in self._modules.rglob("*.ko")}
        modules = [name for name in MODULES if name in found]
        files: dict[str, tuple[int, bytes]] = {
            **dict.fromkeys(("bin", "dev", "proc", "sys", "mnt", "modules"), (16877, b"")),
            "bin/busybox": (0o100755, self._busybox.read_bytes()),
            "bin/sh": (0o120777, b"busybox"),
            "init": (0o100755, INIT.replace("MODULES", " ".join(modules)).encode()),
            **{f"modules/{name}.ko": (0o100644, found[name].read_bytes()) for name in modules},
            **{name: (0o100755, data) for name, data in (extra or {}).items()},
        }
        entries = [entry(number, name, *file) for number, (name, file) in enumerate(files.items())]
        path.write_bytes(b"".join(entries) + entry(0, TRAILER, 0, b""))
        return path


def entry(number: int, name: str, mode: int, data: bytes) -> bytes:
    """A file of a cpio archive in the "newc" format (Linux, initramfs/buffer-format.rst)."""
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head.ljust(-(-len(head) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")
