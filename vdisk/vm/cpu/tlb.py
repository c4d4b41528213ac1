"""Forgetting what the TLB knows: flushes, and pages that turn out to hold code.

Its layout is described in :mod:`vdisk.vm.cpu.mmu`, which fills it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from vdisk.vm.cpu.routines import routine
from vdisk.vm.cpu.state import (
    FIELDS,
    NO_TAG,
    TLB_ENTRIES,
    TLB_ENTRY,
    TLB_NOTES,
    TLB_SET,
    TLB_SUPERVISOR,
    TLB_USER,
    WRITE_TLB,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    with b.else_(), _noted_entries(b) as place:
        b.store_state(place, b.const("i64", NO_TAG))
    b.set("tlb_made", 0)
    b.return_()


@contextmanager
def _noted_entries(b: Builder) -> Iterator[Value]:
    """What is written inside happens for each entry that was made since the last flush."""
    left = b.variable("i32", b.get("tlb_made"))
    with b.loop():
        b.break_if(left.get().eq(0))
        left.set(left.get() - 1)
        note = left.get().zext("i64") * 4 + FIELDS["tlb_notes"].offset
        yield b.load_state(note, "i32").zext("i64")


LARGE_PAGE_BITS = 22
"""INVLPG drops whatever is as near as the largest page of 32-bit paging: the entries of a large
page are many, and none of them knows of it.  (1 GiB pages are not offered.)"""


@routine("void", "i64")
def flush_page(b: Builder, linear: Value) -> None:
    """Forget what a page, be it a large one, was translated to (INVLPG)."""
    region = linear >> LARGE_PAGE_BITS
    with b.if_(b.get("tlb_made").ule(TLB_NOTES)):
        with _noted_entries(b) as place:
            _drop_if(b, place, region)
        b.return_()
    at = b.variable("i64", TLB_SUPERVISOR)
    with b.loop():
        _drop_if(b, at.get(), region)
        at.set(at.get() + TLB_ENTRY)
        b.break_if(at.get().eq(TLB_SUPERVISOR + 2 * TLB_SET))
    b.return_()


def _drop_if(b: Builder, place: Value, region: Value) -> None:
    """Empty an entry if it is about a region."""
    with b.if_((b.load_state(place, "i64") >> LARGE_PAGE_BITS).eq(region)):
        b.store_state(place, b.const("i64", NO_TAG))
