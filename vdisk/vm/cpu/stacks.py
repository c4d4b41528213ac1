"""Stacks that Python works on: the present one, and those that a change of privilege brings.

SDM volume 3, sections 5.8.5 (stack switching), 6.14.2 to 6.14.5 (in 64-bit mode), 7.2 (the TSS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu import faults
from vdisk.vm.cpu.faults import GuestFault

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core


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


def load_inner(cpu: Core, level: int, loaded: tuple[int, d.Descriptor, int, int] | None) -> None:
    """SS after a change of level: from the TSS, or null in long mode."""
    if loaded is None:
        null = d.NULL._replace(attributes=level << d.DPL_SHIFT)
        d.set_segment(cpu.state, "ss", level, null)
        return
    selector, descriptor, where, raw = loaded
    d.mark_accessed(cpu, where, raw)
    d.set_segment(cpu.state, "ss", selector, descriptor)
