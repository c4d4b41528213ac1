"""Forgetting what the TLB knows: flushes, and pages that turn out to hold code.

Its layout is described in :mod:`vdisk.vm.cpu.mmu`, which fills it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.mmu import tlb_place
from vdisk.vm.cpu.routines import page_of, routine
from vdisk.vm.cpu.state import (
    CODE_TLB,
    FIELDS,
    NO_TAG,
    READ_TLB,
    TLB_ENTRIES,
    TLB_ENTRY,
    TLB_NOTES,
    TLB_SET,
    TLB_SUPERVISOR,
    TLB_USER,
    WRITE_TLB,
)

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value


@routine("void", "i64")
def drop_write_entries(b: Builder, host: Value) -> None:
    """The page at a host address holds translated code now: writes to it must come here.

    Also called for another processor's state while that one runs: an entry that it makes
    meanwhile is either seen here, or ``fill`` sees the page's mask, which was set before.
    """
    b.fence()
    at = b.variable("i64", WRITE_TLB)
    with b.loop():
        for start in (TLB_SUPERVISOR, TLB_USER):
            place = at.get() + start
            with b.if_((b.load_state(place, "i64") + b.load_state(place + 8, "i64")).eq(host)):
                b.store_state(place, b.const("i64", NO_TAG))
        at.set(at.get() + TLB_ENTRY)
        b.break_if(at.get().eq(WRITE_TLB + TLB_ENTRIES * TLB_ENTRY))
    b.return_()


@routine("void")
def flush_all(b: Builder) -> None:
    """Forget every translation (MOV to CR3)."""
    with b.if_(b.get("tlb_made").ugt(TLB_NOTES)):
        b.fill_state(TLB_SUPERVISOR, 2 * TLB_SET, 0xFF)
    with b.else_():
        left = b.variable("i32", b.get("tlb_made"))
        with b.loop():
            b.break_if(left.get().eq(0))
            left.set(left.get() - 1)
            note = b.load_state(left.get().zext("i64") * 4 + FIELDS["tlb_notes"].offset, "i32")
            b.store_state(note.zext("i64"), b.const("i64", NO_TAG))
    b.set("tlb_made", 0)
    b.set("large_address", NO_TAG)
    b.return_()


@routine("void", "i64")
def flush_page(b: Builder, linear: Value) -> None:
    """Forget what a page was translated to (INVLPG); everything, if it may be a large one."""
    large = (b.get("large_address") ^ linear) & b.get("large_mask")
    with b.if_(b.get("large_address").ne(NO_TAG) & large.eq(0)):
        b.call("flush_all")
        b.return_()
    for set_ in (TLB_SUPERVISOR, TLB_USER):
        for table in (READ_TLB, WRITE_TLB, CODE_TLB):
            place = tlb_place(b.const("i64", set_), table, linear)
            with b.if_(b.load_state(place, "i64").eq(page_of(linear))):
                b.store_state(place, b.const("i64", NO_TAG))
    b.return_()
