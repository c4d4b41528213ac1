"""From power-on to Linux's shell by what a disk holds: boot sector, boot loader, kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import vdisk
from tests.tools import bootable, guests, qemu
from tests.tools.peers import requires_peer
from vdisk.vm import Machine

pytestmark = [requires_peer("qemu-img", "apt-get", "dpkg-deb"), pytest.mark.timeout(300)]
MIB = 1 << 20
MENU_SECONDS, BOOT_SECONDS, COMMAND_SECONDS = 60, 200, 60

GRUB_CONFIG = f"""
set timeout=-1
menuentry "Linux" {{
    linux /boot/vmlinuz {guests.APPEND}
    initrd /boot/initrd.gz
}}
menuentry "Something else" {{ sleep 600 }}
"""
SYSLINUX_CONFIG = f"""
PROMPT 1
TIMEOUT 0
SAY {bootable.GREETING}
LABEL linux
  LINUX vmlinuz
  INITRD initrd.gz
  APPEND {guests.APPEND}
"""
MODULES = (*guests.DISK_MODULES, "vfat", "nls_cp437", "nls_ascii")
PARTITIONS = {"virtio": "vda1", "ide": "sda1"}


def grub(folder: Path, files: Mapping[str, Path]) -> Path:
    return bootable.grub_disk(folder, GRUB_CONFIG, files)


def syslinux(folder: Path, files: Mapping[str, Path]) -> Path:
    return bootable.syslinux_disk(folder, SYSLINUX_CONFIG, files)


class Loader(NamedTuple):
    """How a disk with it is made, what it shows when it waits, and what is typed then."""

    make: Callable[[Path, Mapping[str, Path]], Path]
    waits: str
    keys: str


GRUB = Loader(grub, "Something else", "\n")
SYSLINUX = Loader(syslinux, "boot:", "linux\n")


@requires_peer("grub-mkimage", "mke2fs", str(bootable.GRUB), "syslinux", "mformat", "mcopy")
@pytest.mark.parametrize(
    ("loader", "interface"),
    [
        pytest.param(GRUB, "ide", id="grub-ide"),
        pytest.param(SYSLINUX, "virtio", id="syslinux-virtio"),
        pytest.param(GRUB, "virtio", id="grub-virtio", marks=guests.on_demand),
        pytest.param(SYSLINUX, "ide", id="syslinux-ide", marks=guests.on_demand),
    ],
)
def test_from_the_boot_sector_to_linux(tmp_path: Path, loader: Loader, interface: str) -> None:
    """The kernel and its first file system come from the disk, by int 13h; Linux mounts that."""
    guest = guests.guest(modules=MODULES)
    raw = loader.make(tmp_path, {"vmlinuz": Path(guest.kernel), "initrd.gz": Path(guest.initrd)})
    image = tmp_path / "disk.qcow2"
    vdisk.convert(raw, image, target_format="qcow2")
    digest = hashlib.md5(Path(guest.kernel).read_bytes()).hexdigest()
    with Machine(memory=192 * MIB, accel="llvm", disks=[f"{image},if={interface}"],
                 reboot=False) as machine:  # fmt: skip
        machine.run_until(screen=loader.waits, timeout=MENU_SECONDS)
        machine.type_keys(loader.keys)
        shell = guests.Shell(machine, COMMAND_SECONDS).start(BOOT_SECONDS)
        assert "BOOT_IMAGE=" in shell.run("cat /proc/cmdline")  # both loaders tell
        shell.run(f"mount /dev/{PARTITIONS[interface]} /mnt")
        assert digest in shell.run("md5sum $(find /mnt -name vmlinuz)")
        shell.run("echo it was here > /mnt/mark; umount /mnt")
        shell.power_off()
    qemu.check(image)
    assert b"it was here" in qemu.content(image)
