"""System instructions: what generated code leaves to Python (SDM volume 3; volume 2 by name).

:func:`execute` decodes the instruction at ``rip`` again and carries it out on a
:class:`~vdisk.vm.cpu.core.Core`.  ``core.next_rip`` is where the guest goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpKind, Register

from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.cpu import (
    cpuid,
    debug,
    faults,
    flags,
    msr,
    strings_io,
    transfers,
)
from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.instruction import (
    CR4_TSD,
    EFER_SCE,
    HANDLERS,
    SEGMENT_NAMES,
    Instruction,
    fetch,
    on,
    privileged,
    protected,
)
from vdisk.vm.cpu.stacks import current_stack

if TYPE_CHECKING:
    import iced_x86 as iced

    from vdisk.vm.cpu.core import Core


ABSENT = frozenset(getattr(Mnemonic, name) for name in ("UD2", "XGETBV", "XSETBV", "RDPID"))
"""What comes here and is not there: #UD."""


def execute(core: Core) -> bool:
    """Carry out the instruction at ``rip``.

    False: another processor has put one there meanwhile that never comes here, over INT3, say, as
    systems do that change running code.  Then generated code has to look again.
    """
    instruction = fetch(core)
    if _is_native(instruction.i):
        return False
    handler = HANDLERS.get(instruction.i.mnemonic)
    if handler is None:
        raise GuestFault(faults.UD)
    handler(core, instruction)
    return True


def _is_native(i: iced.Instruction) -> bool:
    """True for what generated code always does alone."""
    if i.mnemonic in (Mnemonic.JMP, Mnemonic.CALL):
        far_jump, far_call = i.is_jmp_far, i.is_call_far
        return not (far_jump or far_call or i.is_jmp_far_indirect or i.is_call_far_indirect)
    if i.mnemonic in (Mnemonic.MOV, Mnemonic.POP):
        return not any(
            i.op_kind(n) == OpKind.REGISTER and _is_special(i.op_register(n))
            for n in range(i.op_count)
        )
    return i.mnemonic not in HANDLERS and i.mnemonic not in ABSENT


def _is_special(register: int) -> bool:
    return register in SEGMENT_NAMES or Register.CR0 <= register <= Register.TR7


# -- far transfers -----------------------------------------------------------------------------


@on("JMP", "CALL")
def _far(core: Core, n: Instruction) -> None:
    how = transfers.JUMP if n.i.mnemonic == Mnemonic.JMP else transfers.CALL
    if n.i.op_kind(0) in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
        wide = n.i.op_kind(0) == OpKind.FAR_BRANCH32
        offset = n.i.far_branch32 if wide else n.i.far_branch16
        transfers.far_transfer(core, n.i.far_branch_selector, offset, 4 if wide else 2, how)
        return
    size = n.size() - 2
    offset = core.load(n.linear(size + 2), size)
    selector = core.load(n.linear(2, plus=size), 2)
    transfers.far_transfer(core, selector, offset, size, how)


@on("RETF")
def _retf(core: Core, n: Instruction) -> None:
    transfers.far_return(core, n.operand_size(), n.i.immediate(0) if n.i.op_count else 0)


@on("IRET", "IRETD", "IRETQ")
def _iret(core: Core, n: Instruction) -> None:
    transfers.interrupt_return(core, {Mnemonic.IRET: 2, Mnemonic.IRETD: 4}.get(n.i.mnemonic, 8))


@on("INT")
def _int(core: Core, n: Instruction) -> None:
    if core.virtual_8086 and (core.state.eflags >> 12 & 3) < 3:
        raise GuestFault(faults.GP)
    core.software_interrupt(n.i.immediate(0))


@on("INT3")
def _int3(core: Core, _: Instruction) -> None:
    core.software_interrupt(faults.BP)


@on("INT1")
def _int1(core: Core, _: Instruction) -> None:
    core.software_interrupt(faults.DB, checked=False)
    debug.merge(core)


@on("INTO")
def _into(core: Core, _: Instruction) -> None:
    if core.arithmetic_flags() & flags.OF:
        core.software_interrupt(faults.OF)


# -- SYSCALL and its kin -----------------------------------------------------------------------


def _flat_segment(core: Core, name: str, selector: int, attributes: int) -> None:
    d.set_segment(core.state, name, selector, d.Descriptor(0, 0xFFFF_FFFF, attributes))


@on("SYSCALL")
def _syscall(core: Core, _: Instruction) -> None:
    state = core.state
    if not state.efer & EFER_SCE or state.mode != 64:
        raise GuestFault(faults.UD)
    state.rcx, state.r11 = core.next_rip, core.flags_word() & ~flags.RF
    selector = state.star >> 32 & 0xFFFC
    _flat_segment(core, "cs", selector, 0xA09B)
    _flat_segment(core, "ss", selector + 8, 0xC093)
    core.set_flags(core.flags_word() & ~state.sfmask & ~flags.RF)
    core.set_cpl(0)
    core.update_mode()
    core.traced = bool(state.eflags & flags.TF)
    core.next_rip = state.lstar


@on("SYSRET", "SYSRETQ")
def _sysret(core: Core, n: Instruction) -> None:
    state = core.state
    if not state.efer & EFER_SCE or not core.long_mode:
        raise GuestFault(faults.UD)
    privileged(core)
    selector = state.star >> 48
    if n.i.mnemonic == Mnemonic.SYSRETQ:
        if not core.canonical(state.rcx):
            raise GuestFault(faults.GP)
        _flat_segment(core, "cs", selector + 16 | 3, 0xA0FB)
        core.next_rip = state.rcx
    else:
        _flat_segment(core, "cs", selector | 3, 0xC0FB)
        core.next_rip = state.rcx & 0xFFFF_FFFF
    _flat_segment(core, "ss", selector + 8 | 3, 0xC0F3)
    core.set_flags(state.r11, kept=flags.RF | flags.VM)
    core.set_cpl(3)
    core.update_mode()


@on("SYSENTER")
def _sysenter(core: Core, _: Instruction) -> None:
    state = core.state
    protected(core)
    selector = state.sysenter_cs & 0xFFFC
    if not selector:
        raise GuestFault(faults.GP)
    state.eflags &= ~(flags.VM | flags.IF | flags.RF)
    _flat_segment(core, "cs", selector, 0xA09B if core.long_mode else 0xC09B)
    _flat_segment(core, "ss", selector + 8, 0xC093)
    state.rsp, core.next_rip = state.sysenter_esp, state.sysenter_eip
    core.set_cpl(0)
    core.update_mode()


@on("SYSEXIT", "SYSEXITQ")
def _sysexit(core: Core, n: Instruction) -> None:
    state = core.state
    protected(core)
    privileged(core)
    selector = state.sysenter_cs & 0xFFFC
    if not selector:
        raise GuestFault(faults.GP)
    wide = n.i.mnemonic == Mnemonic.SYSEXITQ
    mask = (1 << 64) - 1 if wide else 0xFFFF_FFFF
    if not core.canonical(state.rcx & mask) or not core.canonical(state.rdx & mask):
        raise GuestFault(faults.GP)
    selector += 32 if wide else 16
    _flat_segment(core, "cs", selector | 3, 0xA0FB if wide else 0xC0FB)
    _flat_segment(core, "ss", selector + 8 | 3, 0xC0F3)
    state.rsp, core.next_rip = state.rcx & mask, state.rdx & mask
    core.set_cpl(3)
    core.update_mode()


# -- the rest ----------------------------------------------------------------------------------


@on("HLT")
def _hlt(core: Core, _: Instruction) -> None:
    privileged(core)
    core.halted = VcpuExit.HLT


@on("CLI", "STI")
def _interrupt_flag(core: Core, n: Instruction) -> None:
    """Reached where CPL > IOPL, in virtual-8086 mode, or instruction by instruction."""
    state = core.state
    if state.cpl > state.eflags >> 12 & 3:
        raise GuestFault(faults.GP)
    if n.i.mnemonic == Mnemonic.CLI:
        state.eflags &= ~flags.IF
    else:
        core.inhibit = not state.eflags & flags.IF
        state.eflags |= flags.IF


@on("PUSHF", "PUSHFD", "PUSHFQ")
def _pushf(core: Core, n: Instruction) -> None:
    """Virtual-8086 mode."""
    if core.virtual_8086 and (core.state.eflags >> 12 & 3) < 3:
        raise GuestFault(faults.GP)
    core.push(core.flags_word() & ~(flags.VM | flags.RF), abs(n.i.stack_pointer_increment))


@on("POPF", "POPFD", "POPFQ")
def _popf(core: Core, n: Instruction) -> None:
    state, size = core.state, abs(n.i.stack_pointer_increment)
    iopl = state.eflags >> 12 & 3
    if core.virtual_8086 and iopl < 3:
        raise GuestFault(faults.GP)
    stack = current_stack(core)
    word = stack.pop(size)
    stack.commit()
    kept = flags.VM | flags.VIF | flags.VIP | flags.RF
    if state.cpl > 0:
        kept |= flags.IOPL
    if state.cpl > iopl:
        kept |= flags.IF
    core.set_flags(word & ~flags.RF, size, kept=kept)
    core.update_mode()


@on("CPUID")
def _cpuid(core: Core, _: Instruction) -> None:
    state = core.state
    values = cpuid.leaf(core, state.rax & 0xFFFF_FFFF, state.rcx & 0xFFFF_FFFF)
    state.rax, state.rbx, state.rcx, state.rdx = values


@on("RDTSC", "RDTSCP")
def _rdtsc(core: Core, n: Instruction) -> None:
    state = core.state
    if state.cr4 & CR4_TSD and state.cpl:
        raise GuestFault(faults.GP)
    now = core.timestamp()
    state.rax, state.rdx = now & 0xFFFF_FFFF, now >> 32
    if n.i.mnemonic == Mnemonic.RDTSCP:
        state.rcx = state.tsc_aux & 0xFFFF_FFFF


@on("RDMSR")
def _rdmsr(core: Core, _: Instruction) -> None:
    privileged(core)
    value = msr.read(core, core.state.rcx & 0xFFFF_FFFF)
    core.state.rax, core.state.rdx = value & 0xFFFF_FFFF, value >> 32


@on("WRMSR")
def _wrmsr(core: Core, _: Instruction) -> None:
    privileged(core)
    state = core.state
    value = (state.rdx & 0xFFFF_FFFF) << 32 | state.rax & 0xFFFF_FFFF
    msr.write(core, state.rcx & 0xFFFF_FFFF, value)


@on("SALC")
def _salc(core: Core, _: Instruction) -> None:
    core.state.view[0] = 0xFF if core.arithmetic_flags() & flags.CF else 0


@on("IN", "OUT", "INSB", "INSW", "INSD", "OUTSB", "OUTSW", "OUTSD")
def _ports(core: Core, n: Instruction) -> None:
    strings_io.execute(core, n)
