"""Forgetting what the TLB knows: flushes, and pages that turn out to hold code.

Its layout is described in :mod:`vdisk.vm.cpu.mmu`, which fills it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.routines import routine
from vdisk.vm.cpu.state import (
    CODE_ENTRY,
    CODE_TLB,
    DATA_ENTRY,
    NO_TAG,
    TLB_ENTRIES,
    TLB_SET,
    TLB_SUPERVISOR,
    TLB_USER,
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
    place = b.variable("i64", TLB_SUPERVISOR)
    with b.loop():
        at = place.get()
        tag = b.load_state(at + 8, "i64")
        with b.if_((tag + b.load_state(at + 16, "i64")).eq(host)):
            b.store_state(at + 8, b.const("i64", NO_TAG))
        last = at.eq(TLB_SUPERVISOR + CODE_TLB - DATA_ENTRY)
        place.set(b.select(last, TLB_USER, at + DATA_ENTRY))
        b.break_if(at.eq(TLB_USER + CODE_TLB - DATA_ENTRY))
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
            place = at.get() * DATA_ENTRY + start
            for tag in (place, place + 8):
                with b.if_((b.load_state(tag, "i64") >> LARGE_PAGE_BITS).eq(region)):
                    b.store_state(tag, empty)
            code = at.get() * CODE_ENTRY + (start + CODE_TLB)
            with b.if_((b.load_state(code, "i64") >> LARGE_PAGE_BITS).eq(region)):
                b.store_state(code, empty)
        at.set(at.get() + 1)
        b.break_if(at.get().eq(TLB_ENTRIES))
    b.return_()
