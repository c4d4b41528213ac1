"""Disks and CD-ROMs booted by our BIOS on our own machine and processor."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.tools import bootable
from tests.tools import small_guests as guests
from tests.tools.peers import requires_peer
from vdisk.vm import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
PATIENCE = 40

engines = [engine for engine in guests.accelerators() if "llvm" in str(engine)]


def screen(machine: Machine) -> str:
    """The text on the screen; nothing in graphics modes."""
    with machine.bus.lock:
        vga = machine.board.vga
        frame = vga.text() if vga is not None else None
    if frame is None:
        return ""
    cells = frame.cells[::2]
    rows = (cells[at : at + frame.columns] for at in range(0, len(cells), frame.columns))
    return "\n".join(bytes(row).decode("cp437").replace("\0", " ").rstrip() for row in rows)


def shows(machine: Machine, text: str) -> bool:
    """Wait until the screen shows a text."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not machine.is_over():
        if text in screen(machine):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("accel", guests.accelerators())
def test_nothing_to_boot(accel: str) -> None:
    with Machine(memory=16 * MIB, accel=accel) as machine:
        machine.start()
        assert shows(machine, "No bootable device"), screen(machine)
        machine.type_keys("\n")
        assert shows(machine, "key.\nNo bootable device"), screen(machine)


@requires_peer("syslinux", "mformat", "mcopy")
@pytest.mark.parametrize("interface", ["ide", "virtio"])
@pytest.mark.parametrize("accel", engines)
def test_syslinux_from_a_disk(accel: str, interface: str, tmp_path: Path) -> None:
    image = bootable.syslinux_disk(tmp_path)
    disk = f"{image},if={interface},format=raw"
    with Machine(memory=64 * MIB, accel=accel, disks=[disk]) as machine:
        machine.start()
        assert shows(machine, "boot:"), screen(machine)
        assert bootable.GREETING in screen(machine)
        machine.type_keys("nosuch\n")
        assert shows(machine, "Loading nosuch... failed"), screen(machine)


@requires_peer("xorriso", "syslinux", "mformat", "mcopy", str(bootable.ISOLINUX))
@pytest.mark.parametrize("make", [bootable.isolinux, bootable.floppy_on_cdrom])
@pytest.mark.parametrize("accel", engines)
def test_syslinux_from_a_cdrom(accel: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    with Machine(memory=64 * MIB, accel=accel, cdroms=[str(make(tmp_path))]) as machine:
        machine.start()
        assert shows(machine, "boot:"), screen(machine)
        assert bootable.GREETING in screen(machine)


@requires_peer("xorriso", str(bootable.MEMTEST), str(bootable.ISOLINUX))
@pytest.mark.parametrize("accel", engines)
def test_memtest_from_a_cdrom(accel: str, tmp_path: Path) -> None:
    image = bootable.memtest_cdrom(tmp_path)
    with Machine(memory=64 * MIB, accel=accel, cdroms=[str(image)]) as machine:
        machine.start()
        assert shows(machine, "Memory  :   64MB"), screen(machine)
