"""Forgetting what the TLB knows: flushes, and pages that turn out to hold code.

Its layout is described in :mod:`vdisk.vm.cpu.mmu`, which fills it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.routines import routine
from vdisk.vm.cpu.state import (
    CODE_TLB,
    NO_TAG,
    READ_TLB,
    TLB_ENTRIES,
    TLB_ENTRY,
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
    b.fill_state(TLB_SUPERVISOR, 2 * TLB_SET, 0xFF)
    b.return_()


LARGE_PAGE_BITS = 22
"""INVLPG drops whatever is as near as the largest page of 32-bit paging: the entries of a large
page are many, and none of them knows of it.  (1 GiB pages are not offered.)"""


@routine("void", "i64")
def flush_page(b: Builder, linear: Value) -> None:
    """Forget what a page, be it a large one, was translated to (INVLPG)."""
    region = linear >> LARGE_PAGE_BITS
    empty = b.const("i64", NO_TAG)
    at = b.variable("i64", 0)
    with b.loop():
        for start in (TLB_SUPERVISOR, TLB_USER):
            for table in (READ_TLB, WRITE_TLB, CODE_TLB):
                tag = at.get() + (start + table)
                with b.if_((b.load_state(tag, "i64") >> LARGE_PAGE_BITS).eq(region)):
                    b.store_state(tag, empty)
        at.set(at.get() + TLB_ENTRY)
        b.break_if(at.get().eq(TLB_ENTRIES * TLB_ENTRY))
    b.return_()
