"""Firmware, boot loaders and Linux under ``--accel kvm``: as far as this host's KVM goes.

A KVM that uses the processor runs them all.  A nested or paravirtual one emulates kernel code, and
ends where its emulator lacks an instruction; which one, and where, docs/machines.md says.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools import bootable
from tests.tools import guests as real_guests
from tests.tools import small_guests as guests
from tests.tools.peers import requires_peer
from vdisk.vm import Machine, MachineError
from vdisk.vm.accel import kvm_probe

pytestmark = [
    pytest.mark.skipif("kvm" not in guests.accelerators(), reason="/dev/kvm cannot be opened here"),
    pytest.mark.timeout(600),
]
MIB = 1 << 20
PATIENCE = 100
FLOATING_POINT = "9b"  # FWAIT
RETURN = "cf"  # IRET, in protected mode
LINUX_ENDS = "((f0 )?48 0f (c7|ae)|cc)"  # CMPXCHG16B, XRSTOR64, INT3


def ends_at(machine: Machine, instruction: str, *, serial: str | None = None,
            screen: str | None = None, timeout: float = PATIENCE) -> None:  # fmt: skip
    """Run until it shows that; where KVM emulates, it may end at this instruction instead."""
    try:
        machine.run_until(serial=serial, screen=screen, timeout=timeout)
    except MachineError as error:
        assert not kvm_probe.available(), error
        lacks = rf"KVM cannot go on at rip 0x\w+: its emulator lacks an instruction \({instruction}"
        assert re.search(lacks, machine.error), error


@requires_peer("nasm")
@guests.either_firmware
def test_a_boot_sector(tmp_path: Path, bios: str | None) -> None:
    interface = "virtio" if bios is None else "ide"
    disk = guests.boot_disk(tmp_path, "'B'", interface)
    with Machine(memory=16 * MIB, accel="kvm", bios=bios, disks=[disk]) as machine:
        machine.run_until(serial="B", timeout=PATIENCE)


@requires_peer("syslinux", "mformat", "mcopy")
def test_syslinux(tmp_path: Path) -> None:
    """Its first part is real-mode code; then it goes to protected mode and back by IRET."""
    disk = f"{bootable.syslinux_disk(tmp_path)},format=raw"
    with Machine(memory=32 * MIB, accel="kvm", disks=[disk]) as machine:
        machine.run_until(screen="SYSLINUX 6.0", timeout=PATIENCE)
        ends_at(machine, RETURN, screen="boot:")


@requires_peer("grub-mkimage", "mke2fs", str(bootable.GRUB))
@pytest.mark.parametrize(
    "shown",
    [
        pytest.param("GRUB loading.", id="its sectors"),
        pytest.param("Second choice", id="its menu", marks=real_guests.on_demand),
    ],
)
def test_grub(tmp_path: Path, shown: str) -> None:
    """It unpacks itself and takes its menu from a file system, all with what is emulated."""
    disk = f"{bootable.grub_disk(tmp_path, bootable.GRUB_CONFIG)},format=raw"
    with Machine(memory=64 * MIB, accel="kvm", disks=[disk]) as machine:
        machine.run_until(screen=shown, timeout=5 * PATIENCE)


@requires_peer(str(bootable.MEMTEST))
def test_memtest(tmp_path: Path) -> None:
    with Machine(memory=32 * MIB, accel="kvm", kernel=str(bootable.MEMTEST)) as machine:
        ends_at(machine, FLOATING_POINT, screen="Memory  :")


@real_guests.on_demand
@pytest.mark.timeout(2400)
@requires_peer("apt-get", "dpkg-deb")
def test_linux() -> None:
    """It unpacks itself, finds its memory, and reads the ACPI tables, at an emulator's pace."""
    guest = real_guests.guest()
    append = "console=ttyS0 earlyprintk=ttyS0 panic=-1"
    with Machine(memory=192 * MIB, accel="kvm", kernel=guest.kernel, initrd=guest.initrd,
                 append=append, reboot=False) as machine:  # fmt: skip
        machine.run_until(serial="Linux version", timeout=1200)
        ends_at(machine, LINUX_ENDS, serial=real_guests.READY, timeout=1200)
        assert b"Zone ranges" in machine.serial[0].output()
