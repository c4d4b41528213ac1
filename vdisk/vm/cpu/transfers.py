"""Far control transfers: JMP, CALL, RET and IRET.

SDM volume 3, section 5.8 (privilege levels); volume 2, the instructions' pages.  Each function
checks everything before it changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu import faults, flags
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.stacks import Stack, current_stack, inner_stack, interrupt_stack, load_inner
from vdisk.vm.cpu.tasks import switch_task

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

JUMP, CALL = "jump", "call"


# -- JMP and CALL far --------------------------------------------------------------------------


def far_transfer(cpu: Core, selector: int, offset: int, size: int, how: str) -> None:
    """JMP or CALL to ``selector:offset``; ``size``: operand size in bytes."""
    state = cpu.state
    if not state.cr0 & 1 or cpu.virtual_8086:
        _far_real(cpu, selector, offset, size, how)
        return
    if not selector & ~3:
        raise GuestFault(faults.GP, 0)
    descriptor, where, raw = d.fetch(cpu, selector)
    if descriptor.is_code:
        _far_code(cpu, selector, offset, size, how, (descriptor, where, raw))
    elif descriptor.is_segment:
        raise GuestFault(faults.GP, selector & ~3)
    else:
        _far_system(cpu, selector, how, descriptor, raw)


def _far_real(cpu: Core, selector: int, offset: int, size: int, how: str) -> None:
    state = cpu.state
    if offset > state.cs_limit:
        raise GuestFault(faults.GP, 0)
    if how == CALL:
        stack = current_stack(cpu)
        stack.push(size, state.cs_selector)
        stack.push(size, cpu.next_rip)
        stack.commit()
    if cpu.virtual_8086:
        d.load_v86(cpu, "cs", selector)
        cpu.update_mode()
    else:
        d.load_real(cpu, "cs", selector)
    cpu.next_rip = offset


def _check_code(cpu: Core, selector: int, descriptor: d.Descriptor) -> None:
    """A code segment that is gone to directly, at the same privilege level."""
    error, cpl = selector & ~3, cpu.state.cpl
    if descriptor.type & d.CONFORMING:
        if descriptor.dpl > cpl:
            raise GuestFault(faults.GP, error)
    elif selector & 3 > cpl or descriptor.dpl != cpl:
        raise GuestFault(faults.GP, error)
    if not descriptor.present:
        raise GuestFault(faults.NP, error)
    if cpu.long_mode and descriptor.attributes & d.L and descriptor.attributes & d.DB:
        raise GuestFault(faults.GP, error)


def _check_target(cpu: Core, descriptor: d.Descriptor, offset: int) -> None:
    """#GP(0) outside the limit, or for an address that is not canonical."""
    if cpu.long_mode and descriptor.attributes & d.L:
        if not cpu.canonical(offset):
            raise GuestFault(faults.GP, 0)
    elif offset > descriptor.limit:
        raise GuestFault(faults.GP, 0)


def _far_code(
    cpu: Core,
    selector: int,
    offset: int,
    size: int,
    how: str,
    found: tuple[d.Descriptor, int, int],
) -> None:
    descriptor, where, raw = found
    _check_code(cpu, selector, descriptor)
    _check_target(cpu, descriptor, offset)
    if how == CALL:
        stack = current_stack(cpu)
        stack.push(size, cpu.state.cs_selector)
        stack.push(size, cpu.next_rip)
        stack.commit()
    d.mark_accessed(cpu, where, raw)
    d.load_code(cpu, selector, descriptor, cpu.state.cpl)
    cpu.next_rip = offset


def _far_system(cpu: Core, selector: int, how: str, gate: d.Descriptor, raw: int) -> None:
    """Through a call gate, a task gate or a TSS."""
    kind, error = gate.type, selector & ~3
    allowed = {d.CALL_GATE32} if cpu.long_mode else _GATES
    if kind not in allowed or gate.dpl < max(cpu.state.cpl, selector & 3):
        raise GuestFault(faults.GP, error)
    if not gate.present:
        raise GuestFault(faults.NP, error)
    if kind == d.TASK_GATE:
        switch_task(cpu, raw >> 16 & 0xFFFF, how)
    elif kind in (d.TSS16, d.TSS32):
        switch_task(cpu, selector, how)
    else:
        _through_call_gate(cpu, selector, how, kind, raw)


_GATES = {d.CALL_GATE16, d.CALL_GATE32, d.TASK_GATE, d.TSS16, d.TSS32}


def _through_call_gate(cpu: Core, selector: int, how: str, kind: int, raw: int) -> None:
    """SDM volume 3, section 5.8.4; in long mode the gate has 16 bytes and no parameters."""
    target, offset = raw >> 16 & 0xFFFF, raw & 0xFFFF
    size = 2 if kind == d.CALL_GATE16 else 8 if cpu.long_mode else 4
    if kind != d.CALL_GATE16:
        offset |= raw >> 32 & 0xFFFF_0000
    if cpu.long_mode:
        high = d.table_entry(cpu, selector, 16) + 8
        offset |= (cpu.load(high, 8, supervisor=True) & 0xFFFF_FFFF) << 32
    if not target & ~3:
        raise GuestFault(faults.GP, 0)
    code, where, raw_code = d.fetch(cpu, target)
    cpl, error = cpu.state.cpl, target & ~3
    if not code.is_code or code.dpl > cpl or (cpu.long_mode and not code.attributes & d.L):
        raise GuestFault(faults.GP, error)
    if not code.present:
        raise GuestFault(faults.NP, error)
    _check_target(cpu, code, offset)
    inner = not code.type & d.CONFORMING and code.dpl < cpl
    if how == JUMP and not code.type & d.CONFORMING and code.dpl != cpl:
        raise GuestFault(faults.GP, error)
    if how == CALL:
        if inner:
            _call_inward(cpu, code.dpl, size, raw >> 32 & 31)
        else:
            stack = current_stack(cpu)
            stack.push(size, cpu.state.cs_selector)
            stack.push(size, cpu.next_rip)
            stack.commit()
    d.mark_accessed(cpu, where, raw_code)
    d.load_code(cpu, target, code, code.dpl if inner and how == CALL else cpl)
    cpu.next_rip = offset


def _call_inward(cpu: Core, level: int, size: int, parameters: int) -> None:
    """Switch to the stack of an inner level, and copy the parameters over."""
    state = cpu.state
    old, ss, rsp = current_stack(cpu), state.ss_selector, state.rsp
    if cpu.long_mode:
        stack = Stack(cpu, 0, interrupt_stack(cpu, level), 64, supervisor=True)
        loaded = None
    else:
        selector, pointer = inner_stack(cpu, level)
        loaded = d.stack_descriptor(cpu, selector & ~3 | selector & 3, level, faults.TS)
        wide = 32 if loaded[0].attributes & d.DB else 16
        stack = Stack(cpu, loaded[0].base, pointer, wide, supervisor=True)
    stack.push(size, ss)
    stack.push(size, rsp & old.mask)
    if not cpu.long_mode:
        values = [old.pop(size) for _ in range(parameters)]
        for value in reversed(values):
            stack.push(size, value)
    stack.push(size, state.cs_selector)
    stack.push(size, cpu.next_rip)
    load_inner(cpu, level, None if loaded is None else (selector, *loaded))
    stack.commit()


# -- RET far and IRET --------------------------------------------------------------------------


def far_return(cpu: Core, size: int, drop: int) -> None:
    """RETF: ``drop`` bytes of parameters go too."""
    stack = current_stack(cpu)
    offset, selector = stack.pop(size), stack.pop(size) & 0xFFFF
    if not cpu.state.cr0 & 1 or cpu.virtual_8086:
        _return_real(cpu, selector, offset)
        stack.pointer += drop
        stack.commit()
        return
    _return_protected(cpu, stack, selector, offset, size, drop)


def _return_real(cpu: Core, selector: int, offset: int) -> None:
    if offset > cpu.state.cs_limit:
        raise GuestFault(faults.GP, 0)
    if cpu.virtual_8086:
        d.load_v86(cpu, "cs", selector)
        cpu.update_mode()
    else:
        d.load_real(cpu, "cs", selector)
    cpu.next_rip = offset


def _return_code(cpu: Core, selector: int) -> tuple[d.Descriptor, int, int]:
    """The code segment that a return goes to."""
    if not selector & ~3:
        raise GuestFault(faults.GP, 0)
    found = d.fetch(cpu, selector)
    code, level, error = found[0], selector & 3, selector & ~3
    conforming = code.type & d.CONFORMING
    if not code.is_code or level < cpu.state.cpl:
        raise GuestFault(faults.GP, error)
    if (code.dpl > level) if conforming else (code.dpl != level):
        raise GuestFault(faults.GP, error)
    if not code.present:
        raise GuestFault(faults.NP, error)
    return found


def _return_protected(
    cpu: Core, stack: Stack, selector: int, offset: int, size: int, drop: int
) -> None:
    """To the same or an outer level; an outer one gets its own stack back."""
    code, where, raw = _return_code(cpu, selector)
    _check_target(cpu, code, offset)
    level = selector & 3
    stack.pointer += drop
    if level == cpu.state.cpl and not (cpu.state.mode == 64 and size == 8 and cpu.iret):
        d.mark_accessed(cpu, where, raw)
        d.load_code(cpu, selector, code, level)
        stack.commit()
        cpu.next_rip = offset
        return
    pointer, ss = stack.pop(size), stack.pop(size) & 0xFFFF
    _load_outer_stack(cpu, ss, code, level)
    d.mark_accessed(cpu, where, raw)
    d.load_code(cpu, selector, code, level)
    wide = 64 if cpu.state.mode == 64 else 32 if cpu.state.ss_attributes & d.DB else 16
    cpu.set_stack_pointer(pointer + drop, (1 << wide) - 1)
    cpu.next_rip = offset
    _drop_inner_segments(cpu, level)


def _load_outer_stack(cpu: Core, ss: int, code: d.Descriptor, level: int) -> None:
    to_64 = cpu.long_mode and code.attributes & d.L
    if not ss & ~3 and to_64 and level != 3:
        null = d.NULL._replace(attributes=level << d.DPL_SHIFT)
        d.set_segment(cpu.state, "ss", ss, null)
        return
    descriptor, where, raw = d.stack_descriptor(cpu, ss, level)
    d.mark_accessed(cpu, where, raw)
    d.set_segment(cpu.state, "ss", ss, descriptor)


def _drop_inner_segments(cpu: Core, level: int) -> None:
    """Data segments that the outer level may not use become null; the base of FS and GS stays."""
    for name in ("es", "ds", "fs", "gs"):
        attributes = getattr(cpu.state, f"{name}_attributes")
        conforming = attributes & d.CODE and attributes & d.CONFORMING
        if not conforming and attributes >> d.DPL_SHIFT & 3 < level and attributes & d.S:
            base = getattr(cpu.state, f"{name}_base")
            d.set_segment(cpu.state, name, 0, d.NULL._replace(base=base))
    cpu.update_mode()


def interrupt_return(cpu: Core, size: int) -> None:
    """IRET, IRETD, IRETQ; even one that faults lets NMIs through again (SDM volume 3, 6.7.1)."""
    state = cpu.state
    state.nmi_blocked = 0
    if state.cr0 & 1 and not cpu.virtual_8086 and state.eflags & flags.NT:
        if cpu.long_mode:
            raise GuestFault(faults.GP, 0)
        link = cpu.load(cpu.wrap_linear(state.tr_base), 2, supervisor=True)
        switch_task(cpu, link, "return")
        return
    if cpu.virtual_8086 and (state.eflags >> 12 & 3) < 3:
        raise GuestFault(faults.GP, 0)
    stack = current_stack(cpu)
    offset, selector, word = stack.pop(size), stack.pop(size) & 0xFFFF, stack.pop(size)
    if not state.cr0 & 1 or cpu.virtual_8086:
        _return_real(cpu, selector, offset)
        stack.commit()
        kept = flags.VM | flags.VIF | flags.VIP
        if cpu.virtual_8086:
            kept |= flags.IOPL
        cpu.set_flags(word, size, kept=kept)
        return
    if word & flags.VM and state.cpl == 0 and size == 4:
        _return_to_v86(cpu, stack, selector, offset, word)
        return
    level_before = state.cpl
    iopl = state.eflags >> 12 & 3
    cpu.iret = True
    try:
        _return_protected(cpu, stack, selector, offset, size, 0)
    finally:
        cpu.iret = False
    kept = flags.VM
    if level_before > 0:
        kept |= flags.IOPL | flags.VIF | flags.VIP
    if level_before > iopl:
        kept |= flags.IF
    cpu.set_flags(word, size, kept=kept)


def _return_to_v86(cpu: Core, stack: Stack, selector: int, offset: int, word: int) -> None:
    pointer, *segments = (stack.pop(4) for _ in range(6))
    cpu.set_flags(word, 4, kept=0)
    cpu.set_cpl(3)
    d.load_v86(cpu, "cs", selector)
    for name, value in zip(("ss", "es", "ds", "fs", "gs"), segments, strict=True):
        d.load_v86(cpu, name, value & 0xFFFF)
    cpu.state.rsp = pointer
    cpu.update_mode()
    cpu.next_rip = offset & 0xFFFF
