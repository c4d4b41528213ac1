"""Hardware task switches (SDM volume 3, chapter 7; not in long mode).

The 32-bit TSS, offsets in bytes::

    0 link | 4 ESP0 | 8 SS0 | … | 28 CR3 | 32 EIP | 36 EFLAGS | 40 EAX ECX EDX EBX ESP EBP ESI EDI
    72 ES CS SS DS FS GS (4 bytes each) | 96 LDT | 100 T, I/O map base
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu import descriptors as d
from vdisk.vm.cpu import faults, flags
from vdisk.vm.cpu.debug import BT
from vdisk.vm.cpu.faults import GuestFault

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

LEAST_LIMIT32, LEAST_LIMIT16 = 0x67, 0x2B
CR0_TS, CR4_PAE = 8, 1 << 5
T_FLAG = 100
HIGH_HALVES = 0xFFFF_0000
"""Above registers from a 16-bit TSS: SDM 3, 7.6, leaves it open; the 80386 loaded ones."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


class Layout(NamedTuple):
    """Where a TSS keeps things; ``cr3`` is None in the 16-bit form."""

    size: int
    cr3: int | None
    ip: int
    flags: int
    registers: int
    segments: int
    segment_count: int
    ldt: int


TSS_32 = Layout(4, 28, 32, 36, 40, 72, 6, 96)
TSS_16 = Layout(2, None, 14, 16, 18, 34, 4, 42)


def switch_task(cpu: Core, selector: int, how: str, error: int | None = None) -> None:
    """To the task of a TSS; ``how``: "jump", "call", "interrupt" or "return" (IRET)."""
    vector = faults.TS if how == "return" else faults.GP
    if selector & 4 or not selector & ~3:
        raise GuestFault(vector, selector & ~3)
    descriptor, where, _ = d.fetch(cpu, selector)
    kinds = (d.TSS16_BUSY, d.TSS32_BUSY) if how == "return" else (d.TSS16, d.TSS32)
    if descriptor.is_segment or descriptor.type not in kinds:
        raise GuestFault(vector, selector & ~3)
    if not descriptor.present:
        raise GuestFault(faults.NP, selector & ~3)
    wide = descriptor.type | d.BUSY == d.TSS32_BUSY
    if descriptor.limit < (LEAST_LIMIT32 if wide else LEAST_LIMIT16):
        raise GuestFault(faults.TS, selector & ~3)
    _save(cpu, how)
    new = TSS_32 if wide else TSS_16
    image = [
        cpu.load(cpu.wrap_linear(descriptor.base + at), new.size, supervisor=True)
        for at in range(0, 104 if wide else 44, new.size)
    ]
    if how in ("call", "interrupt"):
        link = cpu.state.tr_selector
        cpu.store(cpu.wrap_linear(descriptor.base), 2, link, supervisor=True)
    if how != "return":
        _set_busy(cpu, where, True)
    state = cpu.state
    busy = descriptor._replace(attributes=descriptor.attributes | d.BUSY)
    d.set_segment(state, "tr", selector, busy)
    state.cr0 |= CR0_TS
    _load(cpu, image, new, nested=how in ("call", "interrupt"))
    if error is not None:
        cpu.push(error, 4 if wide else 2)
    if wide and image[T_FLAG // 4] & 1:
        cpu.state.debug_hits |= BT  # #DB before the new task's first instruction


def _set_busy(cpu: Core, descriptor: int, busy: bool) -> None:
    where = cpu.wrap_linear(descriptor + 5)
    byte = cpu.load(where, 1, supervisor=True)
    cpu.store(where, 1, byte | d.BUSY if busy else byte & ~d.BUSY, supervisor=True)


def _save(cpu: Core, how: str) -> None:
    """The state of the old task into its TSS."""
    state = cpu.state
    wide = (state.tr_attributes & d.TYPE) == d.TSS32_BUSY
    layout, base = (TSS_32 if wide else TSS_16), state.tr_base
    word = cpu.flags_word()
    if how == "return":
        word &= ~flags.NT
    if how in ("jump", "return"):
        _set_busy(cpu, d.table_entry(cpu, state.tr_selector), False)

    def put(at: int, value: int) -> None:
        cpu.store(cpu.wrap_linear(base + at), layout.size, value, supervisor=True)

    put(layout.ip, cpu.next_rip)
    put(layout.flags, word)
    for number in range(8):
        put(layout.registers + number * layout.size, state.gpr(number))
    for number, name in enumerate(SEGMENTS[: layout.segment_count]):
        put(layout.segments + number * layout.size, getattr(state, f"{name}_selector"))


def _load(cpu: Core, image: list[int], layout: Layout, *, nested: bool) -> None:
    """The new task's state from its TSS; faults from here on are the new task's."""
    state, size = cpu.state, layout.size
    if layout.cr3 is not None and state.cr0 >> 31:
        state.cr3 = image[layout.cr3 // size]
        state.flush_tlb()
        if state.cr4 & CR4_PAE and not cpu.load_pdptes(state.cr3):
            raise GuestFault(faults.TS, 0)
    cpu.next_rip = image[layout.ip // size]
    word = image[layout.flags // size] | (flags.NT if nested else 0)
    cpu.set_flags(word, TSS_32.size, kept=0)
    high = HIGH_HALVES if size == TSS_16.size else 0
    for number in range(8):
        state.set_gpr(number, image[layout.registers // size + number] | high)
    selectors = [image[layout.segments // size + n] & 0xFFFF for n in range(layout.segment_count)]
    selectors += [0] * (6 - len(selectors))
    ldt = image[layout.ldt // size] & 0xFFFF
    d.set_segment(state, "ldtr", ldt, d.NULL)
    for name, selector in zip(SEGMENTS, selectors, strict=True):
        d.set_segment(state, name, selector, d.NULL)
    if word & flags.VM:
        cpu.set_cpl(3)
        for name, selector in zip(SEGMENTS, selectors, strict=True):
            d.load_v86(cpu, name, selector)
    else:
        cpu.set_cpl(selectors[1] & 3)
        _load_ldt(cpu, ldt)
        _load_segments(cpu, selectors)
    cpu.update_mode()


def _load_ldt(cpu: Core, selector: int) -> None:
    if not selector & ~3:
        return
    if selector & 4:
        raise GuestFault(faults.TS, selector & ~3)
    descriptor, _, _ = d.fetch(cpu, selector)
    if descriptor.is_segment or descriptor.type != d.LDT or not descriptor.present:
        raise GuestFault(faults.TS, selector & ~3)
    d.set_segment(cpu.state, "ldtr", selector, descriptor)


def _load_segments(cpu: Core, selectors: list[int]) -> None:
    """CS, SS and the data segments with the checks of a task switch: #TS instead of #GP."""
    cs = selectors[1]
    code, where, raw = _as_task_fault(cpu, cs)
    level = cs & 3
    wrong = code.dpl > level if code.type & d.CONFORMING else code.dpl != level
    if not code.is_code or wrong:
        raise GuestFault(faults.TS, cs & ~3)
    if not code.present:
        raise GuestFault(faults.NP, cs & ~3)
    d.mark_accessed(cpu, where, raw)
    d.load_code(cpu, cs, code, level)
    stack, where, raw = d.stack_descriptor(cpu, selectors[2], level, faults.TS)
    d.mark_accessed(cpu, where, raw)
    d.set_segment(cpu.state, "ss", selectors[2], stack)
    for name, selector in zip(
        ("es", "ds", "fs", "gs"), (selectors[0], *selectors[3:]), strict=True
    ):
        try:
            d.load_data(cpu, name, selector)
        except GuestFault as fault:
            if fault.vector == faults.GP:
                raise GuestFault(faults.TS, fault.error) from None
            raise


def _as_task_fault(cpu: Core, selector: int) -> tuple[d.Descriptor, int, int]:
    if not selector & ~3:
        raise GuestFault(faults.TS, 0)
    try:
        return d.fetch(cpu, selector)
    except GuestFault as fault:
        if fault.vector == faults.GP:
            raise GuestFault(faults.TS, fault.error) from None
        raise
