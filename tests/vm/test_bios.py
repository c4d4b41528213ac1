"""Disks and CD-ROMs booted by our BIOS on our own machine and processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools import bootable
from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.vm import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20

engines = [engine for engine in guests.accelerators() if "llvm" in str(engine)]


@pytest.mark.parametrize("accel", guests.accelerators())
def test_nothing_to_boot(accel: str) -> None:
    with Machine(memory=16 * MIB, accel=accel) as machine:
        machine.run_until(screen="No bootable device", timeout=PATIENCE)
        machine.type_keys("\n")
        machine.run_until(screen="key.\nNo bootable device", timeout=PATIENCE)


@pytest.mark.parametrize("accel", guests.accelerators())
def test_memory_types_are_set_after_every_reset(accel: str) -> None:
    with Machine(memory=16 * MIB, accel=accel) as machine:
        for _ in range(2):
            machine.run_until(screen="No bootable device", timeout=PATIENCE)
            machine.pause()
            registers = machine.processors[0].vcpu.get_msrs()
            assert registers[0x2FF] == 0xC06  # on, write-back but where ranges say otherwise
            assert (registers[0x200], registers[0x201]) == (0x8000_0000, 0xFF_8000_0800)
            machine.reset()


SLOW_READER = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    sti
    mov al, '>'
    mov cx, 15                  ; a second: longer than it takes to fill the BIOS's buffer
say:
    mov dx, 0x3f8
    out dx, al
again:
    mov dx, 0x4240
    mov ah, 0x86
    int 0x15
    mov ah, 0
    int 0x16
    xor cx, cx                  ; then 17 ms for each key
    jmp say
times 510 - ($ - $$) db 0
dw 0xaa55
"""


@requires_peer("nasm")
@guests.either_firmware
@pytest.mark.parametrize("accel", engines)
def test_typing_waits_for_a_program_that_is_slow(
    accel: str, bios: str | None, tmp_path: Path
) -> None:
    """What is typed is longer than the BIOS's buffer."""
    text = "the quick brown fox jumps over the lazy dog and types on and on\n"
    (tmp_path / "disk").write_bytes(guests.assemble(tmp_path, SLOW_READER) + bytes(1 << 20))
    disk = f"{tmp_path}/disk,format=raw"
    with Machine(memory=16 * MIB, accel=accel, bios=bios, disks=[disk]) as machine:
        machine.run_until(serial=">", timeout=PATIENCE)
        machine.type_keys(text)
        machine.run_until(serial=text.replace("\n", "\r"), timeout=PATIENCE)


@requires_peer("syslinux", "mformat", "mcopy")
@pytest.mark.parametrize("interface", ["ide", "virtio"])
@pytest.mark.parametrize("accel", engines)
def test_syslinux_from_a_disk(accel: str, interface: str, tmp_path: Path) -> None:
    image = bootable.syslinux_disk(tmp_path)
    disk = f"{image},if={interface},format=raw"
    with Machine(memory=64 * MIB, accel=accel, disks=[disk]) as machine:
        machine.run_until(screen="boot:", timeout=PATIENCE)
        assert bootable.GREETING in machine.screen_text()
        machine.type_keys("nosuch\n")
        machine.run_until(screen="Loading nosuch... failed", timeout=PATIENCE)


@requires_peer("xorriso", "syslinux", "mformat", "mcopy", str(bootable.ISOLINUX))
@pytest.mark.parametrize("make", [bootable.isolinux, bootable.floppy_on_cdrom])
@pytest.mark.parametrize("accel", engines)
def test_syslinux_from_a_cdrom(accel: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    with Machine(memory=64 * MIB, accel=accel, cdroms=[str(make(tmp_path))]) as machine:
        machine.run_until(screen="boot:", timeout=PATIENCE)
        assert bootable.GREETING in machine.screen_text()


@requires_peer("xorriso", str(bootable.MEMTEST), str(bootable.ISOLINUX))
@pytest.mark.parametrize("accel", engines)
def test_memtest_from_a_cdrom(accel: str, tmp_path: Path) -> None:
    image = bootable.memtest_cdrom(tmp_path)
    with Machine(memory=64 * MIB, accel=accel, cdroms=[str(image)]) as machine:
        machine.run_until(screen="Memory  :   64MB", timeout=PATIENCE)
