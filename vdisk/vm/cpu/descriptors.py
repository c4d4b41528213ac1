"""Segment descriptors and loading segment registers (SDM volume 3, chapters 3 and 5).

A descriptor is 8 bytes (16 for system segments in long mode)::

    63      56 55 54 53 52 51      48 47 46 45 44 43  40 39      32 31         16 15          0
    +---------+--+--+--+---+---------+--+-----+--+------+----------+-------------+------------+
    | base    |G |DB|L |AVL| limit   |P | DPL |S | type | base     | base        | limit      |
    | 31-24   |  |  |  |   | 19-16   |  |     |  |      | 23-16    | 15-0        | 15-0       |
    +---------+--+--+--+---+---------+--+-----+--+------+----------+-------------+------------+
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.faults import GuestFault

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core
    from vdisk.vm.cpu.state import CpuState

TYPE, S, DPL_SHIFT, P, L, DB, G = 0x0F, 0x10, 5, 0x80, 0x2000, 0x4000, 0x8000
ACCESSED, READABLE, WRITABLE, CONFORMING, EXPAND_DOWN, CODE = 1, 2, 2, 4, 4, 8

TSS16, LDT, TSS16_BUSY, CALL_GATE16, TASK_GATE, INTERRUPT_GATE16, TRAP_GATE16 = range(1, 8)
TSS32, TSS32_BUSY, CALL_GATE32, INTERRUPT_GATE32, TRAP_GATE32 = 9, 11, 12, 14, 15
BUSY = 2


class Descriptor(NamedTuple):
    """A segment descriptor, taken apart.  ``attributes``: as in ``accel.base.Segment``."""

    base: int
    limit: int
    attributes: int

    @property
    def type(self) -> int:
        return self.attributes & TYPE

    @property
    def is_segment(self) -> bool:
        """Code or data, not a system descriptor."""
        return bool(self.attributes & S)

    @property
    def is_code(self) -> bool:
        return bool(self.attributes & S and self.attributes & CODE)

    @property
    def dpl(self) -> int:
        return self.attributes >> DPL_SHIFT & 3

    @property
    def present(self) -> bool:
        return bool(self.attributes & P)


def parse(low: int) -> Descriptor:
    """The descriptor that eight bytes are."""
    attributes = (low >> 40) & 0xF0FF
    limit = (low & 0xFFFF) | (low >> 32 & 0xF0000)
    if attributes & G:
        limit = limit << 12 | 0xFFF
    base = (low >> 16 & 0xFF_FFFF) | (low >> 32 & 0xFF00_0000)
    return Descriptor(base, limit, attributes)


NULL = Descriptor(0, 0, 0)


def table_entry(cpu: Core, selector: int, width: int = 8) -> int:
    """Linear address of the descriptor of ``selector``; #GP(selector) outside its table."""
    state = cpu.state
    if selector & 4:
        base, limit = state.ldtr_base, state.ldtr_limit
        if not state.ldtr_attributes & P:
            limit = -1
    else:
        base, limit = state.gdt_base, state.gdt_limit
    if (selector & ~7) + width - 1 > limit:
        raise GuestFault(faults.GP, selector & ~3)
    return cpu.wrap_linear(base + (selector & ~7))


def fetch(cpu: Core, selector: int) -> tuple[Descriptor, int, int]:
    """The descriptor of a selector, its linear address, and its raw eight bytes."""
    where = table_entry(cpu, selector)
    raw = cpu.load(where, 8, supervisor=True)
    return parse(raw), where, raw


def fetch_system(cpu: Core, selector: int) -> tuple[Descriptor, int, int]:
    """A system descriptor: 16 bytes in long mode, whose base has 64 bits."""
    descriptor, where, raw = fetch(cpu, selector)
    if cpu.long_mode:
        table_entry(cpu, selector, 16)
        high = cpu.load(cpu.wrap_linear(where + 8), 8, supervisor=True)
        if high >> 40 & 0x1F:
            raise GuestFault(faults.GP, selector & ~3)
        descriptor = descriptor._replace(base=descriptor.base | (high & 0xFFFF_FFFF) << 32)
    return descriptor, where, raw


def mark_accessed(cpu: Core, where: int, raw: int) -> None:
    """Set the A bit in memory, where it is not set yet."""
    if not raw >> 40 & ACCESSED:
        cpu.store(cpu.wrap_linear(where + 5), 1, raw >> 40 & 0xFF | ACCESSED, supervisor=True)


def set_segment(state: CpuState, name: str, selector: int, descriptor: Descriptor) -> None:
    """Load the visible and the hidden part of a segment register."""
    setattr(state, f"{name}_selector", selector)
    setattr(state, f"{name}_base", descriptor.base)
    setattr(state, f"{name}_limit", descriptor.limit)
    setattr(state, f"{name}_attributes", descriptor.attributes)


def load_real(cpu: Core, name: str, selector: int) -> None:
    """Real mode: base is the selector times 16; limit and rights stay ("unreal" mode)."""
    state = cpu.state
    setattr(state, f"{name}_selector", selector)
    setattr(state, f"{name}_base", selector << 4)
    if name == "cs":
        # Readable, writable data: nothing is protected in real mode, code neither.
        state.cs_attributes = state.cs_attributes & ~0x6F | 0x93
    cpu.update_mode()


def load_v86(cpu: Core, name: str, selector: int) -> None:
    """Virtual-8086 mode: 64 KiB, writable, DPL 3."""
    set_segment(cpu.state, name, selector, Descriptor(selector << 4, 0xFFFF, 0xF3))


def load_data(cpu: Core, name: str, selector: int) -> None:
    """MOV, POP, LxS to a data segment register (SDM volume 2, MOV)."""
    state = cpu.state
    if not state.cr0 & 1:
        load_real(cpu, name, selector)
        return
    if cpu.virtual_8086:
        load_v86(cpu, name, selector)
        cpu.update_mode()
        return
    if name == "ss":
        load_stack(cpu, selector, state.cpl)
    elif not selector & ~3:
        set_segment(state, name, selector, NULL)
    else:
        _load_data_descriptor(cpu, name, selector)
    cpu.update_mode()


def _load_data_descriptor(cpu: Core, name: str, selector: int) -> None:
    descriptor, where, raw = fetch(cpu, selector)
    code = descriptor.is_code
    if not descriptor.is_segment or (code and not descriptor.type & READABLE):
        raise GuestFault(faults.GP, selector & ~3)
    conforming = code and descriptor.type & CONFORMING
    if not conforming and descriptor.dpl < max(selector & 3, cpu.state.cpl):
        raise GuestFault(faults.GP, selector & ~3)
    if not descriptor.present:
        raise GuestFault(faults.NP, selector & ~3)
    mark_accessed(cpu, where, raw)
    set_segment(cpu.state, name, selector, descriptor)


def stack_descriptor(
    cpu: Core, selector: int, level: int, vector: int = faults.GP
) -> tuple[Descriptor, int, int]:
    """A descriptor that may become SS at a privilege level; else ``vector`` (selector)."""
    error = selector & ~3
    if not error:
        raise GuestFault(vector, 0)
    try:
        descriptor, where, raw = fetch(cpu, selector)
    except GuestFault as fault:
        if fault.vector == faults.GP:
            raise GuestFault(vector, error) from None
        raise
    writable = descriptor.is_segment and not descriptor.is_code and descriptor.type & WRITABLE
    if not writable or descriptor.dpl != level or selector & 3 != level:
        raise GuestFault(vector, error)
    if not descriptor.present:
        raise GuestFault(faults.SS, error)
    return descriptor, where, raw


def load_stack(cpu: Core, selector: int, level: int) -> None:
    """SS in protected mode; in 64-bit mode it may be null below ring 3."""
    if not selector & ~3 and cpu.state.mode == 64 and level != 3 and selector & 3 == level:
        set_segment(cpu.state, "ss", selector, NULL._replace(attributes=level << DPL_SHIFT))
        return
    descriptor, where, raw = stack_descriptor(cpu, selector, level)
    mark_accessed(cpu, where, raw)
    set_segment(cpu.state, "ss", selector, descriptor)


def load_code(cpu: Core, selector: int, descriptor: Descriptor, level: int) -> None:
    """CS with a checked descriptor; the privilege level becomes ``level``."""
    base = 0 if cpu.long_mode and descriptor.attributes & L else descriptor.base
    set_segment(cpu.state, "cs", selector & ~3 | level, descriptor._replace(base=base))
    cpu.set_cpl(level)
    cpu.update_mode()


def segment_linear(core: Core, name: str, offset: int, size: int, *, write: bool = False) -> int:
    """The linear address of an access through a segment, its limit and rights checked."""
    state = core.state
    if state.mode == 64:
        base = getattr(state, f"{name}_base") if name in ("fs", "gs") else 0
        linear = (base + offset) & 0xFFFF_FFFF_FFFF_FFFF
        last = (linear + size - 1) & 0xFFFF_FFFF_FFFF_FFFF
        if not core.canonical(linear) or not core.canonical(last):
            raise GuestFault(faults.SS if name == "ss" else faults.GP)
        return linear
    attributes = getattr(state, f"{name}_attributes")
    limit, last = getattr(state, f"{name}_limit"), offset + size - 1
    code, writable = attributes & 8, attributes & 2
    if attributes & 0xC == 4:
        top = 0xFFFF_FFFF if attributes & 0x4000 else 0xFFFF
        outside = offset <= limit or last > top
    else:
        outside = last > limit
    refused = (code or not writable) if write else (code and not writable)
    if outside or refused or not attributes & 0x80:
        raise GuestFault(faults.SS if name == "ss" else faults.GP)
    return int(getattr(state, f"{name}_base") + offset) & 0xFFFF_FFFF
