"""A core's registers as :mod:`vdisk.vm.accel.base` names them, and the state after a reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.accel.base import DescriptorTable, FpuState, Registers, Segment, SystemRegisters
from vdisk.vm.cpu import cpuid, debug, monitor, mtrr
from vdisk.vm.cpu.state import SEGMENTS, SYSTEM_SEGMENTS

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

MSRS = {
    0x174: "sysenter_cs",
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0x1A0: "misc_enable",
    0x277: "pat",
    0xC000_0080: "efer",
    0xC000_0081: "star",
    0xC000_0082: "lstar",
    0xC000_0083: "cstar",
    0xC000_0084: "sfmask",
    0xC000_0100: "fs_base",
    0xC000_0101: "gs_base",
    0xC000_0102: "kernel_gs_base",
    0xC000_0103: "tsc_aux",
}
"""MSRs that are fields of the state."""

CR4_PAE = 1 << 5
RESET_PAT = 0x0007_0406_0007_0406
FAST_STRINGS = 1
"""Of IA32_MISC_ENABLE: without it systems copy and clear memory word by word."""


def reset(core: Core) -> None:
    """SDM volume 3, table 9-1."""
    state = core.state
    pointers = core.pointers()
    state.view[:] = bytes(len(state.view))
    for name, value in pointers.items():
        setattr(state, name, value)
    state.flush_tlb()
    state.direction = 1
    state.rdx = cpuid.SIGNATURE
    state.rip, state.a20_mask = 0xFFF0, (1 << 64) - 1
    state.pat, state.mxcsr, state.fpu_control, state.fpu_tag = RESET_PAT, 0x1F80, 0x40, 0x5555
    state.misc_enable = FAST_STRINGS | monitor.ENABLED
    core.mtrrs = mtrr.reset()
    state.apic_base = 0xFEE0_0800 | (0x100 if core.index == 0 else 0)
    core.halted = core.watched = None
    core.inhibit = core.holds_debug = False
    set_system(core, SystemRegisters(cs=Segment(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B)))


def get_general(core: Core) -> Registers:
    state = core.state
    return Registers([state.gpr(number) for number in range(16)], state.rip, core.flags_word())


def set_general(core: Core, registers: Registers) -> None:
    state = core.state
    for number, value in enumerate(registers.gprs):
        state.set_gpr(number, value)
    state.rip = registers.rip
    core.set_flags(registers.rflags)


def get_system(core: Core) -> SystemRegisters:
    state = core.state
    result = SystemRegisters()
    for name in (*SEGMENTS, *SYSTEM_SEGMENTS):
        parts = ("selector", "base", "limit", "attributes")
        values = {part: getattr(state, f"{name}_{part}") for part in parts}
        setattr(result, name, Segment(**values))
    result.gdt = DescriptorTable(state.gdt_base, state.gdt_limit)
    result.idt = DescriptorTable(state.idt_base, state.idt_limit)
    for name in ("cr0", "cr2", "cr3", "cr4", "efer", "apic_base"):
        setattr(result, name, getattr(state, name))
    result.cr8 = core.apic.task_priority if core.apic is not None else state.cr8
    result.dr = [getattr(state, f"dr{number}") for number in range(8)]
    return result


def set_system(core: Core, registers: SystemRegisters) -> None:
    state = core.state
    for name in (*SEGMENTS, *SYSTEM_SEGMENTS):
        segment: Segment = getattr(registers, name)
        setattr(state, f"{name}_selector", segment.selector)
        setattr(state, f"{name}_base", segment.base)
        setattr(state, f"{name}_limit", segment.limit)
        setattr(state, f"{name}_attributes", segment.attributes)
    state.gdt_base, state.gdt_limit = registers.gdt.base, registers.gdt.limit
    state.idt_base, state.idt_limit = registers.idt.base, registers.idt.limit
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        setattr(state, name, getattr(registers, name))
    state.apic_id_place = 0
    for number, value in enumerate(registers.dr):
        setattr(state, f"dr{number}", value)
    state.flush_tlb()
    if state.cr4 & CR4_PAE:
        core.load_pdptes(state.cr3)  # outside long mode they are a part of the processor's state
    debug.watch(core)
    core.set_cpl(registers.ss.attributes >> 5 & 3 if registers.cr0 & 1 else 0)
    core.update_mode()


def get_fpu(core: Core) -> FpuState:
    state = core.state
    top = state.fpu_top
    mask = (1 << 80) - 1
    return FpuState(
        st=[getattr(state, f"st{(top + number) & 7}") & mask for number in range(8)],
        control=state.fpu_control,
        status=state.fpu_status & ~0x3800 | top << 11,
        tag=state.fpu_tag,
        opcode=state.fpu_opcode,
        instruction_pointer=state.fpu_ip,
        data_pointer=state.fpu_dp,
        xmm=[getattr(state, f"xmm{number}") for number in range(16)],
        mxcsr=state.mxcsr,
    )


def set_fpu(core: Core, fpu: FpuState) -> None:
    state = core.state
    top = state.fpu_top = fpu.status >> 11 & 7
    for number, value in enumerate(fpu.st):
        setattr(state, f"st{(top + number) & 7}", value)
    pending = fpu.status & ~fpu.control & 0x3F
    state.fpu_status = fpu.status & ~0xB880 | (0x8080 if pending else 0)  # TOP is kept apart
    state.fpu_control, state.fpu_tag = fpu.control, fpu.tag
    state.fpu_opcode, state.fpu_ip = fpu.opcode, fpu.instruction_pointer
    state.fpu_dp, state.mxcsr = fpu.data_pointer, fpu.mxcsr
    for number, value in enumerate(fpu.xmm):
        setattr(state, f"xmm{number}", value)


def get_msrs(core: Core) -> dict[int, int]:
    return {index: getattr(core.state, name) for index, name in MSRS.items()} | core.mtrrs


def set_msrs(core: Core, msrs: dict[int, int]) -> None:
    for index, value in msrs.items():
        if index in MSRS:
            setattr(core.state, MSRS[index], value)
        elif index in core.mtrrs:
            core.mtrrs[index] = value & (1 << 64) - 1
    core.update_mode()
