"""Memory access: the TLB, and what an access does that misses it.

An address goes through three steps::

    segment:offset --(base, limit)--> linear --(TLB, page tables)--> physical --> RAM, ROM, bus

An entry of the TLB (16 bytes) is found by bits 12-21 of the linear address:

    tag | addend       host address = linear + addend

A tag is the page's linear address, or NO_TAG.  Reads, writes and code have tables of their own: a
loop that copies from one page to another never has both in one place.  Only pages that are
dirty already and hold no translated code are in that for writes, so that the first write of either
kind comes here.  Supervisor and user accesses have sets of such tables of their own, which makes
the U/S check part of the tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.paging import (
    EFER_LMA,
    NOWHERE,
    READ,
    WRITE,
    is_ram,
    is_set,
    not_canonical,
)
from vdisk.vm.cpu.routines import page_of, routine
from vdisk.vm.cpu.state import (
    FIELDS,
    NO_TAG,
    READ_TLB,
    TLB_ENTRIES,
    TLB_ENTRY,
    TLB_NOTES,
    TLB_USER,
    WRITE_TLB,
)
from vdisk.vm.memory import PageKind

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value


def tlb_place(set_: Value, table: int, linear: Value) -> Value:
    """Where the entry of an address is, in one of a set's tables."""
    return set_ + ((linear >> (12 - 4)) & ((TLB_ENTRIES - 1) * TLB_ENTRY)) + table


def note_entry(b: Builder, place: Value) -> None:
    """An entry is about to be made: the next flush has to empty it."""
    made = b.get("tlb_made")
    with b.if_(made.ult(TLB_NOTES)):
        b.store_state(made.zext("i64") * 4 + FIELDS["tlb_notes"].offset, place.trunc("i32"))
    b.set("tlb_made", made + 1)


@routine("i64", "i64", "i64", "i64")
def fill(b: Builder, set_: Value, linear: Value, access: Value) -> None:
    """Walk for a data access and remember RAM and ROM pages; the physical address or NOWHERE."""
    user = set_.eq(TLB_USER).zext("i64")
    physical = b.call("walk", linear, access, user)
    with b.if_(physical.eq(NOWHERE) | physical.uge(b.get("memory_top")), unlikely=True):
        b.return_(physical)
    kind = b.load_table("kinds", physical >> 12, "i8")
    with b.if_(kind.eq(PageKind.MMIO)):
        b.return_(physical)
    watching = b.get("watching").ne(0)
    with b.if_(watching, unlikely=True), b.if_(b.call("is_watched", linear).ne(0)):
        b.return_(physical)
    page = page_of(linear)
    addend = page_of(physical) - page + b.get("memory")
    with b.if_(access.ne(WRITE)):
        place = tlb_place(set_, READ_TLB, linear)
        note_entry(b, place)
        b.store_state(place, page)
        b.store_state(place + 8, addend)
        b.return_(physical)
    no_code = b.load_table("code_masks", physical >> 12, "i64").eq(0)
    with b.if_(kind.eq(PageKind.RAM) & no_code):
        place = tlb_place(set_, WRITE_TLB, linear)
        note_entry(b, place)
        b.store_state(place + 8, addend)
        b.store_state(place, page)
        b.fence()  # whoever translates this page now has either seen the tag, or we see the mask
        with b.if_(b.load_table("code_masks", physical >> 12, "i64").ne(0), unlikely=True):
            b.store_state(place, b.const("i64", NO_TAG))
    b.return_(physical)


def _wrapped(b: Builder, linear: Value) -> Value:
    """An address that was counted up: 32 bits wide outside long mode."""
    long_mode = is_set(b.get("efer"), EFER_LMA)
    return b.select(long_mode, linear, linear & 0xFFFF_FFFF)


def _crosses(linear: Value, size: Value) -> Value:
    return ((linear & 0xFFF) + size).ugt(0x1000)


def _refuse_border(b: Builder, linear: Value, size: Value, result: Value | None = None) -> None:
    """Return with a fault if an access from one page to the next leaves the canonical addresses.

    It comes before the faults of either page.
    """
    last = linear + size - 1
    outside = linear.ashr(47).eq(0) & (last >> 47).eq(1)
    with b.if_(outside & is_set(b.get("efer"), EFER_LMA), unlikely=True):
        not_canonical(b, linear)
        b.return_(result)


@routine("i64", "i64", "i64")
def physical_load(b: Builder, physical: Value, size: Value) -> None:
    """1, 2, 4 or 8 bytes within one page, from RAM, ROM or the bus."""
    with b.if_(physical.ult(b.get("memory_top"))):
        kind = b.load_table("kinds", physical >> 12, "i8")
        with b.if_(kind.ne(PageKind.MMIO)):
            host = physical + b.get("memory")
            for width in (1, 2, 4):
                with b.if_(size.eq(width)):
                    b.return_(b.load_host(host, f"i{8 * width}").zext("i64"))
            b.return_(b.load_host(host, "i64"))
    with b.if_(physical.eq(b.get("apic_id_place")) & size.eq(4)):
        b.return_(b.get("apic_id"))  # by which some systems tell processors apart, all the time
    b.return_(b.callback("mmio_read", "i64", b.get("vcpu"), physical, size))


@routine("void", "i64", "i64", "i64")
def physical_store(b: Builder, physical: Value, size: Value, value: Value) -> None:
    """The counterpart of ``physical_load``; tells of writes to translated code."""
    with b.if_(physical.uge(b.get("memory_top"))):
        b.callback("mmio_write", "void", b.get("vcpu"), physical, size, value)
        b.return_()
    kind = b.load_table("kinds", physical >> 12, "i8")
    with b.if_(kind.eq(PageKind.MMIO)):
        b.callback("mmio_write", "void", b.get("vcpu"), physical, size, value)
        b.return_()
    with b.if_(kind.eq(PageKind.ROM)):
        b.return_()
    host = physical + b.get("memory")
    for width in (1, 2, 4):
        with b.if_(size.eq(width)):
            b.store_host(host, value.trunc(f"i{8 * width}"))
    with b.if_(size.eq(8)):
        b.store_host(host, value)
    b.call("stored", physical, size)
    b.return_()


@routine("void", "i64", "i64")
def stored(b: Builder, physical: Value, size: Value) -> None:
    """RAM was written, not by way of a write tag: tell if there is translated code.

    The mask is looked at after the store is visible: whoever translates marks first and reads
    the code then (:meth:`~vdisk.vm.accel.software.SoftwareAccelerator.translate`).
    """
    b.fence()
    touched = b.const("i64", 1) << ((physical & 0xFFF) >> 6)
    last = b.const("i64", 1) << (((physical + size - 1) & 0xFFF) >> 6)
    masks = b.load_table("code_masks", physical >> 12, "i64")
    with b.if_((masks & (touched | last)).ne(0)):
        b.call("change_code", physical, size)
    b.return_()


@routine("i64", "i64", "i64", "i64")
def slow_load(b: Builder, set_: Value, linear: Value, size: Value) -> None:
    """A load that missed the TLB: fills it, reads the bus, or joins two pages."""
    with b.if_(_crosses(linear, size)):
        _refuse_border(b, linear, size, b.const("i64", 0))
        total, done = b.variable("i64"), b.variable("i64")
        with b.loop():
            at = _wrapped(b, linear + done.get())
            byte = b.call("slow_load", set_, at, b.const("i64", 1))
            with b.if_(b.get("pending").ne(0)):
                b.return_(b.const("i64", 0))
            total.set(total.get() | (byte << (done.get() * 8)))
            done.set(done.get() + 1)
            b.break_if(done.get().eq(size))
        b.return_(total.get())
    physical = b.call("fill", set_, linear, b.const("i64", READ))
    with b.if_(physical.eq(NOWHERE)):
        b.return_(b.const("i64", 0))
    with b.if_(b.get("watching").ne(0), unlikely=True):
        b.call("note_access", linear, size, b.const("i64", READ))
    b.return_(b.call("physical_load", physical, size))


@routine("void", "i64", "i64", "i64", "i64")
def slow_store(b: Builder, set_: Value, linear: Value, size: Value, value: Value) -> None:
    """A store that missed the TLB; where it crosses pages, both are checked before either byte."""
    with b.if_(_crosses(linear, size)):
        _refuse_border(b, linear, size)
        last = page_of(_wrapped(b, linear + size - 1))
        for at in (linear, last):
            physical = b.call("fill", set_, at, b.const("i64", WRITE))
            with b.if_(physical.eq(NOWHERE)):
                b.return_()
        done = b.variable("i64")
        with b.loop():
            at = _wrapped(b, linear + done.get())
            byte = (value >> (done.get() * 8)) & 0xFF
            b.call("slow_store", set_, at, b.const("i64", 1), byte)
            done.set(done.get() + 1)
            b.break_if(done.get().eq(size))
        b.return_()
    physical = b.call("fill", set_, linear, b.const("i64", WRITE))
    with b.if_(physical.ne(NOWHERE)):
        with b.if_(b.get("watching").ne(0), unlikely=True):
            b.call("note_access", linear, size, b.const("i64", WRITE))
        b.call("physical_store", physical, size, value)
    b.return_()


@routine("i64", "i64", "i64", "i64")
def writable_address(b: Builder, set_: Value, linear: Value, size: Value) -> None:
    """``check_write``, and the host address if the TLB has all of the access now; 0 if not."""
    b.call("check_write", set_, linear, size)
    entry = tlb_place(set_, WRITE_TLB, linear)
    hit = b.load_state(entry, "i64").eq(page_of(linear + size - 1))
    with b.if_(hit & b.get("pending").eq(0)):
        b.return_(linear + b.load_state(entry + 8, "i64"))
    b.return_(b.const("i64", 0))


@routine("i64", "i64", "i64", "i64")
def locked_address(b: Builder, set_: Value, linear: Value, size: Value) -> None:
    """The host address for an atomic operation that has no write tag, or 0.

    0: it has to be done piece by piece, in ROM, on the bus or across two pages (where no other
    processor's access is held back).  ``check_write`` has found no fault.
    """
    with b.if_(_crosses(linear, size)):
        b.return_(b.const("i64", 0))
    physical = b.call("fill", set_, linear, b.const("i64", WRITE))
    with b.if_(physical.eq(NOWHERE) | ~is_ram(b, physical)):
        b.return_(b.const("i64", 0))
    with b.if_(b.get("watching").ne(0), unlikely=True):
        b.call("note_access", linear, size, b.const("i64", WRITE))
    b.return_(physical + b.get("memory"))


@routine("void", "i64", "i64", "i64")
def check_write(b: Builder, set_: Value, linear: Value, size: Value) -> None:
    """Fault now if a store of ``size`` bytes would."""
    with b.if_(_crosses(linear, size)):
        _refuse_border(b, linear, size)
    physical = b.call("fill", set_, linear, b.const("i64", WRITE))
    with b.if_(physical.ne(NOWHERE) & _crosses(linear, size)):
        b.call("fill", set_, page_of(_wrapped(b, linear + size - 1)), b.const("i64", WRITE))
    b.return_()
