"""The same as :mod:`vdisk.vm.cpu.delivery` for 32-bit systems with flat segments.

Interrupt and trap gates to flat 32-bit code, the inner stack from a 32-bit TSS, IRETD to flat
code.  Task gates, virtual-8086 mode and every check that fails are left to Python.
SDM volume 3, section 6.12; volume 2, IRET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.delivery import (
    RSP,
    decline_if,
    decline_inner_segments,
    decline_pending,
    load,
    restore_flags,
    set_level,
    store,
    supervisor_load,
)
from vdisk.vm.cpu.paging import is_set
from vdisk.vm.cpu.routines import routine
from vdisk.vm.cpu.segments import ATTRIBUTES, LIMIT
from vdisk.vm.cpu.state import FIELDS, TLB_SUPERVISOR, TLB_USER

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value, Variable

FLAT_CODE, FLAT_DATA = 0x00CF_9900_0000_FFFF, 0x00CF_9300_0000_FFFF
"""Base 0, all of 4 GiB, D/B, present, accessed; code not conforming, data writable …"""
CODE_ANY = 1 << 52 | 3 << 45 | 1 << 41
DATA_ANY = 1 << 52 | 3 << 45
"""… and the bits that may be either: AVL, DPL, code's R."""
TSS32_BUSY = 0x8B
MASK = 0xFFFF_FFFF


@routine("i64", "i64", "i64")
def flat_descriptor(b: Builder, selector: Value, is_code: Value) -> None:
    """The descriptor of a flat segment in the GDT, or 0."""
    index = selector & 0xFFF8
    limit = b.get("gdt_limit").zext("i64")
    decline_if(b, index.eq(0) | (selector & 4).ne(0) | (index + 7).ugt(limit))
    raw = supervisor_load(b, (b.get("gdt_base") + index) & MASK)
    code = is_code.ne(0)
    wanted = b.select(code, FLAT_CODE, b.const("i64", FLAT_DATA))
    free = b.select(code, CODE_ANY, b.const("i64", DATA_ANY))
    decline_if(b, (raw & ~free).ne(wanted))
    b.return_(raw)


def _set_segment(b: Builder, name: str, selector: Value, raw: Value) -> None:
    b.set(f"{name}_selector", selector.trunc("i32"))
    b.set(f"{name}_base", 0)
    b.set(f"{name}_limit", 0xFFFF_FFFF)
    b.set(f"{name}_attributes", ((raw >> 40) & 0xF0FF).trunc("i32"))


def level_of(raw: Value) -> Value:
    """A descriptor's DPL."""
    return (raw >> 45) & 3


@routine("i64", "i64", "i64", "i64")
def deliver_flat(b: Builder, vector: Value, error: Value, with_error: Value) -> None:
    """Deliver an exception or an external interrupt; 1 with ``rip`` the handler, or 0: declined."""
    decline_if(b, b.get("flat").eq(0))
    where = vector << 3
    decline_if(b, (where + 7).ugt(b.get("idt_limit").zext("i64")))
    gate = supervisor_load(b, (b.get("idt_base") + where) & MASK)
    kind = (gate >> 40) & 0x9F
    decline_if(b, kind.ne(0x8E) & kind.ne(0x8F))
    selector = (gate >> 16) & 0xFFFF
    raw = b.call("flat_descriptor", selector, b.const("i64", 1))
    decline_if(b, raw.eq(0))
    level, present = level_of(raw), b.get("cpl").zext("i64")
    decline_if(b, level.ugt(present))
    old, old_ss = b.load_state(RSP, "i64") & MASK, b.get("ss_selector").zext("i64")
    stack, stack_selector, stack_raw = b.variable("i64", old), b.variable("i64"), b.variable("i64")
    inward = level.ult(present)
    with b.if_(inward):
        usual = (b.get("tr_attributes") & 0x9F).eq(TSS32_BUSY)
        place = level * 8 + 4
        decline_if(b, ~usual | (place + 7).ugt(b.get("tr_limit").zext("i64")))
        both = supervisor_load(b, (b.get("tr_base") + place) & MASK)
        stack.set(both & MASK)
        stack_selector.set((both >> 32) & 0xFFFF)
        stack_raw.set(b.call("flat_descriptor", stack_selector.get(), b.const("i64", 0)))
        wrong = level_of(stack_raw.get()).ne(level) | (stack_selector.get() & 3).ne(level)
        decline_if(b, stack_raw.get().eq(0) | wrong)
        _push(b, stack, level, old_ss)
        _push(b, stack, level, old)
    _push(b, stack, level, b.call("flags_word"))
    _push(b, stack, level, b.get("cs_selector").zext("i64"))
    _push(b, stack, level, b.get("rip"))
    with b.if_(with_error.ne(0)):
        _push(b, stack, level, error)
    with b.if_(inward):
        _set_segment(b, "ss", stack_selector.get(), stack_raw.get())
    _set_segment(b, "cs", (selector & 0xFFFC) | level, raw)
    set_level(b, level)
    b.store_state(RSP, stack.get() & MASK)
    word = b.get("eflags")
    shut = b.select(kind.eq(0x8E), flags.IF, b.const("i32", 0))
    b.set("eflags", word & ~(shut | (flags.TF | flags.VM | flags.RF | flags.NT)))
    b.set("rip", (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000))
    b.return_(b.const("i64", 1))


def _push(b: Builder, stack: Variable, level: Value, value: Value) -> None:
    top = (stack.get() - 4) & MASK
    user = b.const("i64", TLB_USER)
    tlb_set = b.select(level.eq(3), user, b.const("i64", TLB_SUPERVISOR))
    store(b, tlb_set, top, value & MASK, 4)
    decline_pending(b)
    stack.set(top)


@routine("i64")
def return_flat(b: Builder) -> None:
    """IRETD to flat 32-bit code; 1 and ``rip``, or 0: declined."""
    decline_if(b, b.get("flat").eq(0))
    top, present = b.load_state(RSP, "i64") & MASK, b.get("cpl").zext("i64")
    rip, selector = _pop(b, top, 0), _pop(b, top, 4) & 0xFFFF
    word = _pop(b, top, 8)
    old = b.get("eflags").zext("i64")
    decline_if(b, is_set(old | word, flags.TF | flags.VM | flags.NT | flags.AC))
    raw, level = b.call("flat_descriptor", selector, b.const("i64", 1)), selector & 3
    decline_if(b, raw.eq(0) | level.ult(present) | level_of(raw).ne(level))
    stack = b.variable("i64", top + 12)
    with b.if_(level.ne(present)):
        pointer, ss = _pop(b, top, 12), _pop(b, top, 16) & 0xFFFF
        stack_raw = b.call("flat_descriptor", ss, b.const("i64", 0))
        wrong = level_of(stack_raw).ne(level) | (ss & 3).ne(level)
        decline_if(b, stack_raw.eq(0) | wrong)
        decline_inner_segments(b, level)
        _set_segment(b, "ss", ss, stack_raw)
        stack.set(pointer)
    _set_segment(b, "cs", selector, raw)
    set_level(b, level)
    b.store_state(RSP, stack.get() & MASK)
    restore_flags(b, word, old, present)
    b.set("rip", rip)
    b.return_(b.const("i64", 1))


def _pop(b: Builder, top: Value, above: int) -> Value:
    where = (top + above) & MASK
    value = load(b, b.get("tlb_current"), where, 4)
    decline_pending(b)
    return value


@routine("i64", "i64", "i64")
def load_selector(b: Builder, segment: Value, selector: Value) -> None:
    """DS, ES, FS or GS (``segment``: its base field); 1, or 0: declined.

    Done here: real mode; null selectors in 64-bit mode; in 32-bit code with flat segments, flat
    data in DS and ES, and any data in FS and GS, which are looked at on each access anyway.
    """
    null = (selector & 0xFFFC).eq(0)
    with b.if_(~is_set(b.get("cr0"), 1)):
        b.store_state(segment, selector << 4)
        b.store_state(segment + SELECTOR, selector.trunc("i32"))
        b.return_(b.const("i64", 1))
    with b.if_(b.get("mode").eq(64)):
        decline_if(b, ~null)
        _store_segment(b, segment, selector, b.const("i64", 0))
        b.return_(b.const("i64", 1))
    decline_if(b, b.get("flat").eq(0) | null | (selector & 4).ne(0))
    index = selector & 0xFFF8
    decline_if(b, (index + 7).ugt(b.get("gdt_limit").zext("i64")))
    raw = supervisor_load(b, (b.get("gdt_base") + index) & MASK)
    level, asked = b.get("cpl").zext("i64"), selector & 3
    most = b.select(asked.ugt(level), asked, level)
    usual = ((raw >> 40) & 0x99).eq(0x91)  # present data, accessed
    decline_if(b, ~usual | level_of(raw).ult(most))
    always_checked = segment.uge(FIELDS["fs_base"].offset)
    flat = (raw & ~DATA_ANY).eq(FLAT_DATA)
    decline_if(b, ~always_checked & ~flat)
    _store_segment(b, segment, selector, raw)
    b.return_(b.const("i64", 1))


def _store_segment(b: Builder, segment: Value, selector: Value, raw: Value) -> None:
    """All parts of a segment register, from a descriptor's eight bytes."""
    limit = (raw & 0xFFFF) | ((raw >> 32) & 0xF_0000)
    scaled = b.select(is_set(raw, 1 << 55), (limit << 12) | 0xFFF, limit)
    b.store_state(segment, ((raw >> 16) & 0xFF_FFFF) | ((raw >> 32) & 0xFF00_0000))
    b.store_state(segment + LIMIT, scaled.trunc("i32"))
    b.store_state(segment + ATTRIBUTES, ((raw >> 40) & 0xF0FF).trunc("i32"))
    b.store_state(segment + SELECTOR, selector.trunc("i32"))


SELECTOR = 16
assert FIELDS["fs_selector"].offset == FIELDS["fs_base"].offset + SELECTOR
assert FIELDS["gs_base"].offset > FIELDS["fs_base"].offset > FIELDS["ds_base"].offset
