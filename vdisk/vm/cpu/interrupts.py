"""Interrupts and exceptions: through the interrupt table, in every mode (SDM volume 3, chapter 6).

What native code does not deliver itself comes here.  Each function checks everything before it
changes anything.
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

EXTERNAL = 1  # EXT of an error code
IN_IDT = 2


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
        load_inner(cpu, level, loaded)
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
        load_inner(cpu, level, None)
    state.rsp = stack.pointer
    _enter_handler(cpu, (selector, code, where, raw_code, level), gate, offset)
