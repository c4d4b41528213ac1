"""Model-specific registers (SDM volume 4; AMD APM volume 2, appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults, mtrr
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.registers import MSRS

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

TSC, APIC_BASE, TSC_ADJUST, MISC_ENABLE = 0x10, 0x1B, 0x3B, 0x1A0
ARCH_CAPABILITIES = 0x10A
NOT_VULNERABLE = sum(1 << bit for bit in (0, 3, 4, 5, 6, 8, 13, 14, 15, 20, 26, 27))
"""RDCL_NO, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
BHI_NO, GDS_NO, RFDS_NO: this processor does not speculate, so systems need no mitigations."""
READ_ONLY = {MISC_ENABLE: 1 << 7 | 3 << 11}
"""Bits that writes leave alone: performance monitoring, branch trace and PEBS not there.  What the
others of IA32_MISC_ENABLE would switch off stays on."""
BIOS_SIGN_ID, EFER = 0x8B, 0xC000_0080
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11
CANONICAL = {0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102}

IGNORED = {BIOS_SIGN_ID: 0, 0x17: 0}
"""Read as these values and accept writes: systems touch them without asking CPUID."""


def read(core: Core, index: int) -> int:
    """RDMSR; #GP(0) for one that is not there."""
    if index in MSRS:
        return int(getattr(core.state, MSRS[index]))
    if index == TSC:
        return core.timestamp()
    if index in core.mtrrs:
        return core.mtrrs[index]
    if index == mtrr.CAP:
        return mtrr.CAPABILITIES
    if core.apic is not None:
        with core.bus.lock:
            value = core.apic.read_msr(index)
        if value is not None:
            return value
    if index == ARCH_CAPABILITIES:
        return NOT_VULNERABLE
    if index == APIC_BASE:
        return core.state.apic_base
    if index in IGNORED:
        return IGNORED[index]
    raise GuestFault(faults.GP)


def write(core: Core, index: int, value: int) -> None:
    """WRMSR; #GP(0) for one that is not there, or a value that it refuses."""
    if index == EFER:
        _write_efer(core, value)
    elif index in MSRS:
        if index in CANONICAL and not core.canonical(value):
            raise GuestFault(faults.GP)
        kept = READ_ONLY.get(index, 0)
        setattr(core.state, MSRS[index], value & ~kept | getattr(core.state, MSRS[index]) & kept)
    elif index == TSC:
        core.set_timestamp(value)
    elif index in core.mtrrs:
        mtrr.check(index, value)
        core.mtrrs[index] = value
    elif index in IGNORED:
        return
    else:
        _write_apic(core, index, value)


def _write_apic(core: Core, index: int, value: int) -> None:
    if core.apic is None:
        raise GuestFault(faults.GP)
    with core.bus.lock:
        accepted = core.apic.write_msr(index, value)
    if not accepted:
        raise GuestFault(faults.GP)
    if index == APIC_BASE:
        core.state.apic_base = value
        core.state.apic_id_place = 0
        core.state.flush_tlb()


def _write_efer(core: Core, value: int) -> None:
    state = core.state
    if value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE):
        raise GuestFault(faults.GP)
    if (value ^ state.efer) & EFER_LME and state.cr0 >> 31:
        raise GuestFault(faults.GP)
    state.efer = value & ~EFER_LMA | state.efer & EFER_LMA
    state.flush_tlb()
    core.update_mode()
