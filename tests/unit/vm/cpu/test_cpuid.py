"""What the processor says of itself."""

from __future__ import annotations

from vdisk.vm.accel.interp import accelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu import cpuid, msr
from vdisk.vm.cpu.core import Core
from vdisk.vm.memory import GuestMemory


def make_core() -> Core:
    vcpu = accelerator(GuestMemory(1 << 20), Bus()).vcpu(0)
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
