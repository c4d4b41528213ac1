"""Far control transfers: JMP, CALL, RET, IRET, interrupts and exceptions, task switches.

SDM volume 3, sections 5.8 (privilege levels), 6.12 and 6.14 (delivery), chapter 7 (tasks);
volume 2, the instructions' pages.  Each function checks everything before it changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu import faults, flags
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.tasks import switch_task

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

EXTERNAL = 1  # EXT of an error code
IN_IDT = 2

JUMP, CALL = "jump", "call"


# -- stacks ------------------------------------------------------------------------------------


class Stack:
    """Pushing to, or popping from, a stack that is not in SS:rSP yet."""

    def __init__(self, cpu: Core, base: int, pointer: int, wide: int, *, supervisor: bool) -> None:
        self.cpu, self.base, self.pointer, self.supervisor = cpu, base, pointer, supervisor
        self.mask = (1 << wide) - 1

    def _linear(self) -> int:
        linear = self.cpu.wrap_linear(self.base + (self.pointer & self.mask))
        if self.mask >> 63 and not self.cpu.canonical(linear):
            raise GuestFault(faults.SS)
        return linear

    def push(self, size: int, value: int) -> None:
        self.pointer -= size
        self.cpu.store(self._linear(), size, value, supervisor=self.supervisor)

    def pop(self, size: int) -> int:
        value = self.cpu.load(self._linear(), size, supervisor=self.supervisor)
        self.pointer += size
        return value

    def commit(self) -> None:
        """Make the pointer RSP's, as wide as the stack is."""
        self.cpu.set_stack_pointer(self.pointer, self.mask)


def current_stack(cpu: Core) -> Stack:
    """SS:rSP as it is."""
    state = cpu.state
    wide = 64 if state.mode == 64 else 32 if state.ss_attributes & d.DB else 16
    base = 0 if wide == 64 else state.ss_base
    return Stack(cpu, base, state.rsp, wide, supervisor=state.cpl != 3)


def inner_stack(cpu: Core, level: int) -> tuple[int, int]:
    """SS and ESP of a privilege level from the TSS of the task (SDM volume 3, section 7.2)."""
    state = cpu.state
    wide = (state.tr_attributes & d.TYPE) in (d.TSS32, d.TSS32_BUSY)
    at = 4 + 8 * level if wide else 2 + 4 * level
    size = 4 if wide else 2
    if at + size + 1 > state.tr_limit:
        raise GuestFault(faults.TS, state.tr_selector & ~3)
    base = state.tr_base
    pointer = cpu.load(cpu.wrap_linear(base + at), size, supervisor=True)
    selector = cpu.load(cpu.wrap_linear(base + at + size), 2, supervisor=True)
    return selector, pointer


def interrupt_stack(cpu: Core, index: int) -> int:
    """RSPn (index 0-2) or ISTn (index 4-10 counting from RSP0) of a 64-bit TSS."""
    state = cpu.state
    at = 4 + 8 * index
    if at + 7 > state.tr_limit:
        raise GuestFault(faults.TS, state.tr_selector & ~3)
    return cpu.load(state.tr_base + at, 8, supervisor=True)


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
    _load_inner_ss(cpu, level, None if loaded is None else (selector, *loaded))
    stack.commit()


def _load_inner_ss(
    cpu: Core, level: int, loaded: tuple[int, d.Descriptor, int, int] | None
) -> None:
    """SS after a change of level: from the TSS, or null in long mode."""
    if loaded is None:
        null = d.NULL._replace(attributes=level << d.DPL_SHIFT)
        d.set_segment(cpu.state, "ss", level, null)
        return
    selector, descriptor, where, raw = loaded
    d.mark_accessed(cpu, where, raw)
    d.set_segment(cpu.state, "ss", selector, descriptor)


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
    """Data segments that the outer level may not use become null."""
    for name in ("es", "ds", "fs", "gs"):
        attributes = getattr(cpu.state, f"{name}_attributes")
        conforming = attributes & d.CODE and attributes & d.CONFORMING
        if not conforming and attributes >> d.DPL_SHIFT & 3 < level and attributes & d.S:
            d.set_segment(cpu.state, name, 0, d.NULL)
    cpu.update_mode()


def interrupt_return(cpu: Core, size: int) -> None:
    """IRET, IRETD, IRETQ."""
    state = cpu.state
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


# -- interrupts and exceptions -----------------------------------------------------------------


def deliver(cpu: Core, vector: int, *, error: int | None, software: bool, external: bool) -> None:
    """Go through the interrupt table; ``cpu.next_rip`` is what is saved."""
    if not cpu.state.cr0 & 1:
        _deliver_real(cpu, vector)
    elif cpu.long_mode:
        _deliver_long(cpu, vector, error, software, external)
    else:
        _deliver_protected(cpu, vector, error, software, external)


def _deliver_real(cpu: Core, vector: int) -> None:
    state = cpu.state
    if 4 * vector + 3 > state.idt_limit:
        raise GuestFault(faults.GP, 0)
    where = state.idt_base + 4 * vector
    offset = cpu.load(cpu.wrap_linear(where), 2)
    selector = cpu.load(cpu.wrap_linear(where + 2), 2)
    stack = current_stack(cpu)
    stack.push(2, cpu.flags_word())
    stack.push(2, state.cs_selector)
    stack.push(2, cpu.next_rip)
    stack.commit()
    state.eflags &= ~(flags.IF | flags.TF | flags.AC | flags.RF)
    d.load_real(cpu, "cs", selector)
    cpu.next_rip = offset


def _gate(
    cpu: Core, vector: int, width: int, software: bool, external: bool
) -> tuple[d.Descriptor, int, int]:
    """The gate of a vector: (descriptor, low 8 bytes, high 8 bytes)."""
    state = cpu.state
    error = vector * 8 | IN_IDT | (EXTERNAL if external else 0)
    if vector * width + width - 1 > state.idt_limit:
        raise GuestFault(faults.GP, error)
    where = cpu.wrap_linear(state.idt_base + vector * width)
    raw = cpu.load(where, 8, supervisor=True)
    high = cpu.load(where + 8, 8, supervisor=True) if width == 16 else 0
    gate = d.parse(raw)
    kinds = {d.INTERRUPT_GATE32, d.TRAP_GATE32}
    if width == 8:
        kinds |= {d.TASK_GATE, d.INTERRUPT_GATE16, d.TRAP_GATE16}
    if gate.is_segment or gate.type not in kinds or (software and gate.dpl < state.cpl):
        raise GuestFault(faults.GP, error)
    if not gate.present:
        raise GuestFault(faults.NP, error)
    return gate, raw, high


def _handler_code(cpu: Core, selector: int, external: bool) -> tuple[d.Descriptor, int, int, int]:
    """The handler's code segment, and the level it runs at."""
    ext = EXTERNAL if external else 0
    if not selector & ~3:
        raise GuestFault(faults.GP, ext)
    try:
        code, where, raw = d.fetch(cpu, selector)
    except GuestFault as fault:
        if fault.vector == faults.GP:
            fault.error |= ext
        raise
    error = selector & ~3 | ext
    if not code.is_code or code.dpl > cpu.state.cpl:
        raise GuestFault(faults.GP, error)
    if not code.present:
        raise GuestFault(faults.NP, error)
    level = cpu.state.cpl if code.type & d.CONFORMING else code.dpl
    return code, where, raw, level


def _deliver_protected(
    cpu: Core, vector: int, error: int | None, software: bool, external: bool
) -> None:
    state = cpu.state
    gate, raw, _ = _gate(cpu, vector, 8, software, external)
    if gate.type == d.TASK_GATE:
        switch_task(cpu, raw >> 16 & 0xFFFF, "interrupt", error)
        return
    size = 4 if gate.type >= d.CALL_GATE32 else 2
    offset = raw & 0xFFFF | (raw >> 32 & 0xFFFF_0000 if size == 4 else 0)
    selector = raw >> 16 & 0xFFFF
    code, where, raw_code, level = _handler_code(cpu, selector, external)
    if offset > code.limit:
        raise GuestFault(faults.GP, EXTERNAL if external else 0)
    virtual = cpu.virtual_8086
    if virtual and level != 0:
        raise GuestFault(faults.GP, selector & ~3)
    word, ss, rsp = cpu.flags_word(), state.ss_selector, state.rsp
    if level < state.cpl:
        stack, loaded = _inner_32(cpu, level, external)
        if virtual:
            for name in ("gs", "fs", "ds", "es"):
                stack.push(size, getattr(state, f"{name}_selector"))
        stack.push(size, ss)
        stack.push(size, rsp)
    else:
        stack, loaded = current_stack(cpu), None
        stack.supervisor = level != 3
    stack.push(size, word)
    stack.push(size, state.cs_selector)
    stack.push(size, cpu.next_rip)
    if error is not None:
        stack.push(size, error)
    if loaded is not None:
        _load_inner_ss(cpu, level, loaded)
    stack.commit()
    if virtual:
        for name in ("gs", "fs", "ds", "es"):
            d.set_segment(state, name, 0, d.NULL)
    _enter_handler(cpu, (selector, code, where, raw_code, level), gate, offset)


def _inner_32(
    cpu: Core, level: int, external: bool
) -> tuple[Stack, tuple[int, d.Descriptor, int, int]]:
    selector, pointer = inner_stack(cpu, level)
    try:
        descriptor, where, raw = d.stack_descriptor(cpu, selector, level, faults.TS)
    except GuestFault as fault:
        fault.error |= EXTERNAL if external else 0
        raise
    wide = 32 if descriptor.attributes & d.DB else 16
    stack = Stack(cpu, descriptor.base, pointer, wide, supervisor=level != 3)
    return stack, (selector, descriptor, where, raw)


def _enter_handler(
    cpu: Core,
    handler: tuple[int, d.Descriptor, int, int, int],
    gate: d.Descriptor,
    offset: int,
) -> None:
    selector, code, where, raw, level = handler
    cleared = flags.TF | flags.VM | flags.RF | flags.NT
    if gate.type in (d.INTERRUPT_GATE16, d.INTERRUPT_GATE32):
        cleared |= flags.IF
    cpu.state.eflags &= ~cleared
    d.mark_accessed(cpu, where, raw)
    d.load_code(cpu, selector, code, level)
    cpu.next_rip = offset


def _deliver_long(
    cpu: Core, vector: int, error: int | None, software: bool, external: bool
) -> None:
    """SDM volume 3, section 6.14: always SS:RSP, aligned to 16, interrupt stack table."""
    state = cpu.state
    gate, raw, high = _gate(cpu, vector, 16, software, external)
    offset = raw & 0xFFFF | raw >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
    selector = raw >> 16 & 0xFFFF
    code, where, raw_code, level = _handler_code(cpu, selector, external)
    if not code.attributes & d.L or code.attributes & d.DB:
        raise GuestFault(faults.GP, selector & ~3)
    table = raw >> 32 & 7
    ss, rsp, word = state.ss_selector, state.rsp, cpu.flags_word()
    if table:
        pointer = interrupt_stack(cpu, 3 + table)
    elif level < state.cpl:
        pointer = interrupt_stack(cpu, level)
    else:
        pointer = rsp
    if not cpu.canonical(pointer):
        raise GuestFault(faults.SS, EXTERNAL if external else 0)
    stack = Stack(cpu, 0, pointer & ~15, 64, supervisor=level != 3)
    stack.push(8, ss)
    stack.push(8, rsp)
    stack.push(8, word)
    stack.push(8, state.cs_selector)
    stack.push(8, cpu.next_rip)
    if error is not None:
        stack.push(8, error)
    if level < state.cpl:
        _load_inner_ss(cpu, level, None)
    state.rsp = stack.pointer
    _enter_handler(cpu, (selector, code, where, raw_code, level), gate, offset)
