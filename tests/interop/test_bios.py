"""Our BIOS under boot loaders from Debian, on QEMU's chips and processor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import bootable
from tests.tools.peers import requires_peer
from tests.tools.qemu_bios import DOWN, ENTER, QemuBios
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.vm._bios.drives import Drive, DriveKind, Drives

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    requires_peer("qemu-system-x86_64"),
    pytest.mark.skipif(sys.platform != "linux", reason="sockets of QEMU"),
]


def drive(path: Path, kind: DriveKind) -> Drive:
    device = vdisk.open(path, format="raw")
    removable = kind is not DriveKind.HARD_DISK
    return Drive(kind, EmuBlockDevice(device, removable=removable, threads=0), path.name)


def test_nothing_to_boot_is_said(tmp_path: Path) -> None:
    with QemuBios(tmp_path, Drives()) as machine:
        assert machine.run(lambda: "No bootable device" in machine.screen())
        assert "Memory: 64 MiB" in machine.screen()


def test_a_key_tries_again(tmp_path: Path) -> None:
    with QemuBios(tmp_path, Drives()) as machine:
        machine.run(lambda: "No bootable device" in machine.screen())
        machine.press(*ENTER)
        assert machine.run(lambda: machine.screen().count("No bootable device") == 2)


@requires_peer("syslinux", "mformat", "mcopy", str(bootable.SYSLINUX_MBR))
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (bootable.syslinux_floppy, DriveKind.FLOPPY),
        (bootable.syslinux_disk, DriveKind.HARD_DISK),
    ],
)
def test_syslinux(make: Callable[[Path], Path], kind: DriveKind, tmp_path: Path) -> None:
    image = make(tmp_path)
    with QemuBios(tmp_path, Drives.of([drive(image, kind)])) as machine:
        assert machine.run(lambda: "boot:" in machine.screen()), machine.screen()
        assert bootable.GREETING in machine.screen()
        machine.type("nosuch")
        machine.press(*ENTER)
        assert machine.run(lambda: "nosuch" in machine.screen()), machine.screen()


@requires_peer("xorriso", str(bootable.ISOLINUX))
def test_isolinux(tmp_path: Path) -> None:
    image = bootable.isolinux(tmp_path)
    with QemuBios(tmp_path, Drives.of([drive(image, DriveKind.CDROM)])) as machine:
        assert machine.run(lambda: "boot:" in machine.screen()), machine.screen()
        assert "ISOLINUX" in machine.screen() and bootable.GREETING in machine.screen()


@requires_peer("xorriso", "syslinux", "mformat", "mcopy")
def test_a_cdrom_that_emulates_a_diskette(tmp_path: Path) -> None:
    image = bootable.floppy_on_cdrom(tmp_path)
    with QemuBios(tmp_path, Drives.of([drive(image, DriveKind.CDROM)])) as machine:
        assert machine.run(lambda: "boot:" in machine.screen()), machine.screen()


@requires_peer(str(bootable.MEMTEST), str(bootable.ISOLINUX), "xorriso")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (bootable.memtest_floppy, DriveKind.FLOPPY),
        (bootable.memtest_cdrom, DriveKind.CDROM),
    ],
)
def test_memtest_sees_the_memory(
    make: Callable[[Path], Path], kind: DriveKind, tmp_path: Path
) -> None:
    image = make(tmp_path)
    with QemuBios(tmp_path, Drives.of([drive(image, kind)])) as machine:
        assert machine.run(lambda: "Memory  :   64MB" in machine.screen()), machine.screen()


@requires_peer("grub-mkrescue", "xorriso", str(bootable.GRUB))
@pytest.mark.parametrize("kind", [DriveKind.CDROM, DriveKind.HARD_DISK])
def test_grub_shows_its_menu_and_obeys_keys(kind: DriveKind, tmp_path: Path) -> None:
    image = bootable.grub_rescue(tmp_path)
    with QemuBios(tmp_path, Drives.of([drive(image, kind)])) as machine:
        assert machine.run(lambda: "Second choice" in machine.screen(), timeout=60)
        assert "*First choice" in machine.screen()
        machine.press(*DOWN)
        assert machine.run(lambda: "*Second choice" in machine.screen()), machine.screen()
        machine.press(*ENTER)
        assert machine.run(lambda: "chosen: two" in machine.screen()), machine.screen()
