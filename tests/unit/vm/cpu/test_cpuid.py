"""What the processor says of itself."""

from __future__ import annotations

import pytest

from vdisk.vm.accel.interp import InterpAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.clock import RealClock
from vdisk.vm.cpu import cpuid, msr
from vdisk.vm.cpu.core import Core
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.devices.apic_bus import ApicBus
from vdisk.vm.devices.lapic import Lapic
from vdisk.vm.memory import GuestMemory


def make_core() -> Core:
    vcpu = InterpAccelerator(GuestMemory(1 << 20), Bus()).vcpu(0)
    vcpu.reset()
    assert isinstance(vcpu, Core)
    return vcpu


def test_family_and_model_are_a_core_2s():
    """Bits 11-8 and 7-4 of EAX; the extended ones count only with family 15 and 6 or 15."""
    eax, *_ = cpuid.leaf(make_core(), 1, 0)
    assert (eax >> 8 & 0xF, eax >> 4 & 0xF) == (6, 15)
    assert not eax >> 16


def test_a_reset_leaves_the_signature_in_edx():
    core = make_core()
    assert core.state.rdx == cpuid.leaf(core, 1, 0)[0]


def test_fast_strings_are_on():
    assert msr.read(make_core(), msr.MISC_ENABLE) & 1


def test_misc_enable_keeps_what_can_be_written():
    core = make_core()
    msr.write(core, msr.MISC_ENABLE, (1 << 64) - 1)
    assert msr.read(core, msr.MISC_ENABLE) == (1 << 64) - 1 & ~0x1880
    core.reset()
    assert msr.read(core, msr.MISC_ENABLE) == 1 | 1 << 18


def test_monitor_is_there_as_long_as_misc_enable_says_so():
    core = make_core()
    assert cpuid.leaf(core, 1, 0)[2] & 1 << 3
    assert cpuid.leaf(core, 5, 0) == (64, 64, 3, 0)
    msr.write(core, msr.MISC_ENABLE, 1)
    assert not cpuid.leaf(core, 1, 0)[2] & 1 << 3


def test_memory_type_ranges_are_kept_and_checked():
    core = make_core()
    assert cpuid.leaf(core, 1, 0)[3] >> 12 & 1
    assert msr.read(core, 0xFE) == 0x508
    for index, value in (
        (0x200, 0xE0_0000_0000),
        (0x20F, 0xFF_8000_0800),
        (0x26F, 0x0006_0504_0100_0606),
        (0x2FF, 0xC06),
    ):
        msr.write(core, index, value)
        assert msr.read(core, index) == value
    for index, value in (
        (0x200, 2),  # no such type
        (0x200, 0x100),
        (0x201, 1),
        (0x201, 1 << 40),
        (0x250, 7),
        (0x2FF, 0x1006),
        (0xFE, 0x508),
    ):
        with pytest.raises(GuestFault):
            msr.write(core, index, value)
    core.set_msrs(core.get_msrs() | {0x258: 6})
    assert msr.read(core, 0x258) == 6 and msr.read(core, 0x2FF) == 0xC06


def test_an_apic_that_is_switched_off_is_not_there():
    core = make_core()
    apic = Lapic(0, ApicBus(), RealClock(core.bus.lock), None)
    core.apic = apic
    page = 0xFEE0_0000

    def seen() -> tuple[bool, int]:
        return bool(cpuid.leaf(core, 1, 0)[3] >> 9 & 1), core.mmio_read(page + 0x30, 4)

    assert seen() == (True, 0x5_0014)
    core.mmio_write(page + 0x20, 4, 7 << 24)
    msr.write(core, msr.APIC_BASE, page | 0x100)
    core.mmio_write(page + 0x80, 4, 0x55)
    assert seen() == (False, 0xFFFF_FFFF)
    msr.write(core, msr.APIC_BASE, page | 0x900)
    assert seen() == (True, 0x5_0014)
    assert core.mmio_read(page + 0x80, 4) == 0
    assert core.mmio_read(page + 0x20, 4) == 0  # the ID is that of power-up again
