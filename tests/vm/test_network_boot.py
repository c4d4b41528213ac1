"""Machines that boot from the user-mode network: iPXE, and what it fetches by TFTP."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.tools import debian, guests
from tests.tools.peers import requires_peer
from vdisk.vm import Machine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [requires_peer("apt-get", "dpkg-deb"), pytest.mark.timeout(600)]
MIB = 1 << 20
BOOT_SECONDS = 300
MENU = "serial 0 115200\nprompt 1\ntimeout 0\nlabel fetched\nkernel none\n"


def ipxe() -> str:
    return str(debian.unpacked("ipxe") / "boot" / "ipxe.lkrn")


def test_ipxe_fetches_linux(tmp_path: Path) -> None:
    guest = guests.guest(modules=("virtio_pci", "virtio_net"))
    shutil.copy(guest.kernel, tmp_path / "vmlinuz")
    shutil.copy(guest.initrd, tmp_path / "initrd")
    script = f"#!ipxe\nkernel vmlinuz initrd=initrd {guests.APPEND}\ninitrd initrd\nboot\n"
    (tmp_path / "boot.ipxe").write_text(script)
    network = f"user,restrict=on,tftp={tmp_path},bootfile=boot.ipxe"
    with Machine(memory=192 * MIB, accel="llvm", kernel=ipxe(), network=network) as machine:
        shell = guests.Shell(machine).start(BOOT_SECONDS)
        assert "initrd=initrd console=ttyS0" in shell.run("cat /proc/cmdline")
        shell.run("ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up")
        assert "#!ipxe\nkernel vmlinuz" in shell.run("tftp -g -r boot.ipxe -l - 10.0.2.2")
        refused = shell.run("tftp -p -l /init -r x 10.0.2.2 2>&1", check=False)
        assert "files are only read here" in refused
        shell.power_off()


def test_ipxe_fetches_pxelinux(tmp_path: Path) -> None:
    folder = tmp_path / "tftp"
    (folder / "pxelinux.cfg").mkdir(parents=True)
    (folder / "pxelinux.cfg" / "default").write_text(MENU)
    libraries = debian.unpacked("pxelinux"), debian.unpacked("syslinux-common")
    shutil.copy(libraries[0] / "usr/lib/PXELINUX/pxelinux.0", folder)
    shutil.copy(libraries[1] / "usr/lib/syslinux/modules/bios/ldlinux.c32", folder)
    network = f"user,tftp={folder},bootfile=pxelinux.0"
    with Machine(memory=64 * MIB, accel="llvm", kernel=ipxe(), network=network) as machine:
        machine.run_until(serial="boot: ", timeout=BOOT_SECONDS)
        machine.serial[0].send("\t")  # it lists what it knows
        machine.run_until(serial="fetched", timeout=60)
