"""Exceptions, interrupts and returns from them in 64-bit mode, without leaving native code.

What nearly always happens in a 64-bit system is done here: interrupt and trap gates to 64-bit
code, stacks from the TSS, IRETQ to 64-bit code.  Whatever is out of the ordinary is declined (the
routine gives 0 and has changed nothing but memory below the new stack), and
:mod:`vdisk.vm.cpu.interrupts` does it in full, with every check and every fault.

SDM volume 3, section 6.14; volume 2, IRET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.mmu import tlb_place
from vdisk.vm.cpu.paging import is_set
from vdisk.vm.cpu.routines import page_of, routine
from vdisk.vm.cpu.state import FIELDS, READ_TLB, TLB_SUPERVISOR, TLB_USER, WRITE_TLB

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value

RSP = FIELDS["rsp"].offset
CODE_64 = 0x2099  # L, not D; present; S, code, not conforming, accessed
CODE_64_MASK = 0x609D
DATA = 0x0093
DATA_MASK = 0x009F
SUSPENDED = -(1 << 63)


def load(b: Builder, tlb_set: Value, linear: Value, size: int = 8) -> Value:
    """Memory by way of the TLB; a fault is for whoever asked (``pending``)."""
    kind = f"i{8 * size}"
    entry, value = tlb_place(tlb_set, READ_TLB, linear), b.variable("i64")
    with b.if_(b.load_state(entry, "i64").eq(page_of(linear + (size - 1)))):
        value.set(b.load_host(linear + b.load_state(entry + 8, "i64"), kind).zext("i64"))
    with b.else_():
        value.set(b.call("slow_load", tlb_set, linear, b.const("i64", size)))
    return value.get()


def store(b: Builder, tlb_set: Value, linear: Value, value: Value, size: int = 8) -> None:
    """The counterpart."""
    entry = tlb_place(tlb_set, WRITE_TLB, linear)
    with b.if_(b.load_state(entry, "i64").eq(page_of(linear + (size - 1)))):
        b.store_host(linear + b.load_state(entry + 8, "i64"), value.trunc(f"i{8 * size}"))
    with b.else_():
        b.call("slow_store", tlb_set, linear, b.const("i64", size), value)


def supervisor_load(b: Builder, linear: Value, size: int = 8) -> Value:
    """Memory as the processor itself reads it; declines (returns 0) on a fault."""
    value = load(b, b.const("i64", TLB_SUPERVISOR), linear, size)
    decline_pending(b)
    return value


def decline_pending(b: Builder) -> None:
    """Give up where an access has faulted: the whole is repeated in Python."""
    with b.if_(b.get("pending").ne(0), unlikely=True):
        b.set("pending", 0)
        b.return_(b.const("i64", 0))


def decline_if(b: Builder, condition: Value) -> None:
    """Give up where something is out of the ordinary."""
    with b.if_(condition, unlikely=True):
        b.return_(b.const("i64", 0))


@routine("i64", "i64")
def code_descriptor(b: Builder, selector: Value) -> None:
    """The descriptor of 64-bit code in the GDT, or 0: non-conforming, present, accessed."""
    index = selector & 0xFFF8
    limit = b.get("gdt_limit").zext("i64")
    decline_if(b, index.eq(0) | (selector & 4).ne(0) | (index + 7).ugt(limit))
    raw = supervisor_load(b, b.get("gdt_base") + index)
    attributes = raw >> 40
    decline_if(b, (attributes & CODE_64_MASK).ne(CODE_64))
    b.return_(raw)


def _load_code_segment(b: Builder, selector: Value, raw: Value) -> None:
    b.set("cs_selector", selector.trunc("i32"))
    b.set("cs_base", 0)
    b.set("cs_limit", 0xFFFF_FFFF)
    b.set("cs_attributes", ((raw >> 40) & 0xF0FF).trunc("i32"))


def set_level(b: Builder, level: Value) -> None:
    """The privilege level, and with it the TLB set."""
    b.set("cpl", level.trunc("i32"))
    user = b.const("i64", TLB_USER)
    b.set("tlb_current", b.select(level.eq(3), user, b.const("i64", TLB_SUPERVISOR)))


def interrupt_wanted(b: Builder, word: Value) -> None:
    """Where IF is set and an interrupt waits, leave at the next chance."""
    with b.if_((word & flags.IF).ne(0) & b.poll("irq_pending").ne(0)):
        b.set("kick", SUSPENDED)


@routine("i64")
def flags_word(b: Builder) -> None:
    """EFLAGS, whole."""
    down = b.get("direction").slt(0).zext("i64") << 10
    b.return_(b.call("arithmetic_flags") | b.get("eflags").zext("i64") | down | flags.ALWAYS)


@routine("i64", "i64", "i64", "i64")
def deliver_long(b: Builder, vector: Value, error: Value, with_error: Value) -> None:
    """Deliver an exception or an external interrupt; the state's ``rip`` is what is saved.

    Gives 1, with ``rip`` the handler; or 0: declined.
    """
    where = vector << 4
    decline_if(b, (where + 15).ugt(b.get("idt_limit").zext("i64")))
    gate = supervisor_load(b, b.get("idt_base") + where)
    high = supervisor_load(b, b.get("idt_base") + where + 8)
    kind = (gate >> 40) & 0x9F
    decline_if(b, kind.ne(0x8E) & kind.ne(0x8F))
    selector = (gate >> 16) & 0xFFFF
    raw = b.call("code_descriptor", selector)
    decline_if(b, raw.eq(0))
    level = (raw >> 45) & 3
    present = b.get("cpl").zext("i64")
    decline_if(b, level.ugt(present))
    table = (gate >> 32) & 7
    old = b.load_state(RSP, "i64")
    stack = b.variable("i64", old)
    inward = level.ult(present)
    with b.if_(table.ne(0) | inward):
        index = b.select(table.ne(0), table + 3, level)
        place = index * 8 + 4
        decline_if(b, (place + 7).ugt(b.get("tr_limit").zext("i64")))
        stack.set(supervisor_load(b, b.get("tr_base") + place))
    canonical = stack.get().ashr(47)
    decline_if(b, canonical.ne(0) & canonical.ne(-1))
    _push_frame(b, stack.get() & ~15, (old, error, with_error), level)
    with b.if_(inward):
        b.set("ss_selector", level.trunc("i32"))
        b.set("ss_base", 0)
        b.set("ss_limit", 0)
        b.set("ss_attributes", (level << 5).trunc("i32"))
    _load_code_segment(b, (selector & 0xFFFC) | level, raw)
    set_level(b, level)
    cleared = flags.TF | flags.VM | flags.RF | flags.NT
    word = b.get("eflags")
    shut = b.select(kind.eq(0x8E), b.const("i32", flags.IF), b.const("i32", 0))
    b.set("eflags", word & ~(shut | cleared))
    b.set("rip", (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000) | ((high & 0xFFFF_FFFF) << 32))
    b.return_(b.const("i64", 1))


def _push_frame(b: Builder, top: Value, saved: tuple[Value, Value, Value], level: Value) -> None:
    """SS, RSP, RFLAGS, CS, RIP and the error code; RSP becomes the new stack's."""
    rsp, error, with_error = saved
    user = b.const("i64", TLB_USER)
    tlb_set = b.select(level.eq(3), user, b.const("i64", TLB_SUPERVISOR))
    values = (
        b.get("ss_selector").zext("i64"),
        rsp,
        b.call("flags_word"),
        b.get("cs_selector").zext("i64"),
        b.get("rip"),
    )
    for place, value in enumerate(values, 1):
        store(b, tlb_set, top - 8 * place, value)
        decline_pending(b)
    bottom = b.variable("i64", top - 40)
    with b.if_(with_error.ne(0)):
        store(b, tlb_set, top - 48, error)
        decline_pending(b)
        bottom.set(top - 48)
    b.store_state(RSP, bottom.get())


@routine("i64")
def return_long(b: Builder) -> None:
    """IRETQ in 64-bit mode, to 64-bit code; 1 and ``rip``, or 0: declined."""
    top = b.load_state(RSP, "i64")
    present = b.get("cpl").zext("i64")
    tlb_set = b.get("tlb_current")
    frame = []
    for place in range(5):
        frame.append(load(b, tlb_set, top + 8 * place))
        decline_pending(b)
    rip, selector, word, rsp, ss = frame[0], frame[1] & 0xFFFF, frame[2], frame[3], frame[4]
    old = b.get("eflags").zext("i64")
    decline_if(b, is_set((old | word), flags.TF | flags.VM | flags.NT | flags.AC))
    raw = b.call("code_descriptor", selector)
    level = selector & 3
    decline_if(b, raw.eq(0) | level.ult(present) | ((raw >> 45) & 3).ne(level))
    upper = rip.ashr(47)
    decline_if(b, upper.ne(0) & upper.ne(-1))
    outward = level.ne(present)
    with b.if_(outward):
        decline_inner_segments(b, level)
    _load_stack_segment(b, ss & 0xFFFF, level)
    _load_code_segment(b, selector, raw)
    set_level(b, level)
    b.store_state(RSP, rsp)
    restore_flags(b, word, old, present)
    b.set("rip", rip)
    b.return_(b.const("i64", 1))


def decline_inner_segments(b: Builder, level: Value) -> None:
    """Data segments of an inner level would have to be cleared."""
    for name in ("es", "ds", "fs", "gs"):
        attributes = b.get(f"{name}_attributes").zext("i64")
        decline_if(b, is_set(attributes, 0x10) & ((attributes >> 5) & 3).ult(level))


def _load_stack_segment(b: Builder, selector: Value, level: Value) -> None:
    """SS from the GDT, or null below level 3."""
    index = selector & 0xFFF8
    raw = b.variable("i64", level << 45)
    with b.if_(index.eq(0)):
        decline_if(b, level.eq(3) | selector.ne(level))
    with b.else_():
        limit = b.get("gdt_limit").zext("i64")
        decline_if(b, (selector & 4).ne(0) | (index + 7).ugt(limit))
        found = supervisor_load(b, b.get("gdt_base") + index)
        attributes = found >> 40
        wrong = (attributes & DATA_MASK).ne(DATA) | ((attributes >> 5) & 3).ne(level)
        decline_if(b, wrong | (selector & 3).ne(level))
        raw.set(found)
    descriptor = raw.get()
    b.set("ss_selector", selector.trunc("i32"))
    b.set("ss_base", 0)
    b.set("ss_limit", b.select(index.eq(0), 0, b.const("i32", 0xFFFF_FFFF)))
    b.set("ss_attributes", ((descriptor >> 40) & 0xF0FF).trunc("i32"))


def restore_flags(b: Builder, word: Value, old: Value, level: Value) -> None:
    """RFLAGS from the frame, as the level that executes IRET may change them."""
    b.set("cc_op", 0)
    b.set("cc_src", word & flags.ARITHMETIC)
    b.set("direction", b.select(is_set(word, flags.DF), -1, b.const("i64", 1)))
    changeable = b.variable("i64", flags.NT | flags.RF | flags.AC | flags.ID)
    with b.if_(level.eq(0)):
        changeable.set(changeable.get() | flags.IOPL | flags.VIF | flags.VIP)
    with b.if_(level.ule((old >> 12) & 3)):
        changeable.set(changeable.get() | flags.IF)
    mask = changeable.get()
    new = (old & ~mask) | (word & mask)
    b.set("eflags", new.trunc("i32"))
    interrupt_wanted(b, new)
