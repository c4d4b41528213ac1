"""Pages that code was translated from: finding their translations, making and dropping them.

A page has a code array for each mode that it is executed in, and a chain of spans: which bytes
each of its blocks was made from.  Its mask has a bit for each 64 bytes that were translated, so
that most stores near code cost no more than others.

Routines here take the arena's lock, and call nothing that waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import arena, known, paging
from vdisk.vm.cpu.arena_access import counter, mode_place, page_place, set_counter, wide
from vdisk.vm.cpu.records import RECORD_SIZE
from vdisk.vm.cpu.routines import page_of, routine
from vdisk.vm.cpu.state import TLB_USER
from vdisk.vm.cpu.translation import BLOCK_LIMIT, Question, question
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value

PIECES = (1 << 64) - 1


@routine("i64", "i64", "i64")
def code_array(b: Builder, page: Value, mode: Value) -> None:
    """The page's code array for a mode, made if there is none; 0 if there is no room for one."""
    place = b.arena_load(mode_place(mode) + arena.MODE_TABLE, "i64") + (page << 3)
    found = b.arena_load(place, "i64")
    with b.if_(found.ne(0)):
        b.return_(found - b.get("arena"))
    number = counter(b, "next_array")
    with b.if_(number.uge(counter(b, "array_limit")), unlikely=True):
        b.return_(b.const("i64", 0))
    set_counter(b, "next_array", number + 1)
    where = number * arena.ARRAY_SIZE + arena.ARRAYS
    b.arena_store(place, where + b.get("arena"))
    b.return_(where)


@routine("void", "i64", "i64", "i64", "i64", "i64")
def add_span(
    b: Builder, page: Value, start: Value, end: Value, first: Value, element: Value
) -> None:
    """Note which bytes of a page the block that was just written was made from."""
    number = counter(b, "next_span")
    set_counter(b, "next_span", number + 1)
    span, head = number * arena.SPAN_SIZE + arena.SPANS, page_place(b, page) + arena.PAGE_SPANS
    b.arena_store(span + arena.SPAN_NEXT, b.arena_load(head, "i32"))
    b.arena_store(span + arena.SPAN_FIRST, first.trunc("i32"))
    b.arena_store(span + arena.SPAN_COUNT, counter(b, "block_records").trunc("i32"))
    b.arena_store(span + arena.SPAN_ENTRY, (element >> 2).trunc("i32"))
    b.arena_store(span + arena.SPAN_START, start.trunc("i16"))
    b.arena_store(span + arena.SPAN_END, end.trunc("i16"))
    b.arena_store(head, number.trunc("i32"))
    b.return_()


def _pieces(b: Builder, start: Value, end: Value) -> Value:
    """The bits of a mask for bytes [start, end) of a page."""
    up_to_last = (b.const("i64", 2) << ((end - 1) >> 6)) - 1
    return up_to_last & (b.const("i64", PIECES) << (start >> 6))


def _answer(b: Builder, result: Value) -> None:
    b.release()
    b.return_(result)


@routine("i64", "i64", "i64")
def translate_page(b: Builder, physical: Value, mode: Value) -> None:
    """The number of the record for an address in RAM or ROM, or a question.

    The page is marked first, then nobody can write to it unnoticed, and only then it is read.
    """
    page, offset = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
    b.acquire()
    codes = b.call("code_array", page, mode)
    spans = counter(b, "next_span")
    with b.if_(codes.eq(0) | spans.uge(arena.MOST_SPANS - 1), unlikely=True):
        _answer(b, question(b, Question.ROOM))
    element = codes + (offset << 2)
    present = b.arena_load(element, "i32")
    with b.if_(present.sgt(0)):
        _answer(b, present.zext("i64"))
    mask = counter(b, "masks") + (page << 3)
    before = b.arena_load(mask, "i64")
    with b.if_(before.eq(0)):
        with b.if_(counter(b, "processors").ugt(1), unlikely=True):
            _answer(b, question(b, Question.PROTECTION))
    b.arena_store(mask, b.const("i64", PIECES))
    b.fence()  # another processor's store is seen here, or it sees the mark (``stored``)
    with b.if_(before.eq(0)):
        b.call("drop_write_entries", b.get("memory") + page_of(physical))
    left = b.variable("i64", b.const("i64", PAGE_SIZE) - offset)
    with b.if_(left.get().ugt(known.LONGEST * BLOCK_LIMIT + known.LONGEST)):
        left.set(known.LONGEST * BLOCK_LIMIT + known.LONGEST)
    b.copy_code(arena.WINDOW, physical, left.get())
    set_counter(b, "block_limit", b.arena_load(mode_place(mode) + arena.MODE_LIMIT, "i64"))
    first = b.call("write_block", offset, left.get(), mode, codes, b.const("i64", 0))
    with b.if_(first.slt(0)):
        b.arena_store(mask, before)
        _answer(b, first)
    end = offset + counter(b, "block_bytes")
    b.call("add_span", page, offset, end, first, element)
    b.arena_store(mask, before | _pieces(b, offset, end))
    b.call("install", element, first)
    _answer(b, first)


@routine("i64", "i64", "i64", "i64", "i64", "i64", "i64")
def translate_bytes(
    b: Builder, low: Value, high: Value, physical: Value, how: Value, second: Value, guard: Value
) -> None:
    """One instruction from its bytes: the number of its record, or a question.

    ``how``: the mode, and the number of bytes from bit 8 on.  ``second``: 0, and nothing leads to
    the record nor drops it; or one more than the number of the page in which the instruction
    goes on, whose code array is ``guard``.  Both pages are marked and nobody can write to them
    unnoticed.
    """
    page, offset = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
    mode, left = how & 0xFF, how >> 8
    b.acquire()
    codes = b.variable("i64")
    with b.if_(second.ne(0)):
        codes.set(b.call("code_array", page, mode))
    full = second.ne(0) & codes.get().eq(0)
    with b.if_(full | counter(b, "next_span").uge(arena.MOST_SPANS - 2), unlikely=True):
        _answer(b, question(b, Question.ROOM))
    b.arena_store(arena.WINDOW, low)
    b.arena_store(arena.WINDOW + 8, high)
    set_counter(b, "block_limit", b.const("i64", 1))
    first = b.call("write_block", offset, left, mode, codes.get(), guard)
    with b.if_(first.sge(0) & second.ne(0)):
        element = codes.get() + (offset << 2)
        end = offset + counter(b, "block_bytes")
        b.call("add_span", page, offset, b.const("i64", PAGE_SIZE), first, element)
        zero = b.const("i64", 0)
        b.call("add_span", second - 1, zero, end - PAGE_SIZE, first, element)
        b.call("install", element, first)
    _answer(b, first)


def _is_expected(b: Builder, physical: Value) -> Value:
    """True if Python asked for such a block (:meth:`~vdisk.vm.cpu.arena.Arena.expect`)."""
    host, offset = physical + b.get("memory"), physical & (PAGE_SIZE - 1)
    place = ((b.get("mode_number") << PAGE_SHIFT) | offset) << arena.MARK_BITS
    expected = b.variable("i1", _is_marked(b, place, b.load_host(host, "i8").zext("i64")))
    with b.if_(offset.ult(PAGE_SIZE - arena.MARKED)):  # there are four bytes
        word = b.load_host(host, "i32").zext("i64") & ((1 << 8 * arena.MARKED) - 1)
        mark = ((word * arena.MARK_FACTOR) >> 24) & 0xFF
        expected.set(expected.get() | _is_marked(b, place, mark + 256))
    times = wide(b, page_place(b, physical >> PAGE_SHIFT) + arena.PAGE_DROPPED, "i32")
    return expected.get() & times.ule(arena.MOST_DROPS)


def _is_marked(b: Builder, place: Value, mark: Value) -> Value:
    bit = place | mark
    return ((wide(b, (bit >> 3) + arena.EXPECTED, "i8") >> (bit & 7)) & 1).ne(0)


@routine("i64", "i64", "i64")
def translate_here(b: Builder, set_: Value, linear: Value) -> None:
    """Translate what a TLB set's user is about to execute: the record's address.

    0 where Python has to look at it: a question, a fault, code outside memory, or an engine that
    wants to be asked.
    """
    nothing = b.const("i64", 0)
    with b.if_(counter(b, "direct").eq(0)):
        b.return_(nothing)
    user = set_.eq(TLB_USER).zext("i64")
    physical = b.call("walk", linear, b.const("i64", paging.EXECUTE), user)
    with b.if_(physical.eq(paging.NOWHERE), unlikely=True):
        b.set("pending", 0)
        b.return_(nothing)
    with b.if_(physical.uge(b.get("memory_top")), unlikely=True):
        b.return_(nothing)
    kind = b.load_table("kinds", physical >> PAGE_SHIFT, "i8")
    with b.if_(kind.eq(PageKind.MMIO), unlikely=True):
        b.return_(nothing)
    with b.if_(_is_expected(b, physical), unlikely=True):
        b.return_(nothing)
    first = b.call("translate_page", physical, b.get("mode_number"))
    with b.if_(first.slt(0), unlikely=True):
        b.return_(nothing)
    b.return_(b.get("arena") + first * RECORD_SIZE)


@routine("void")
def lock_arena(b: Builder) -> None:
    """Keep native code from looking at the tables, for what Python does to them."""
    b.acquire()
    b.return_()


@routine("void")
def unlock_arena(b: Builder) -> None:
    """The counterpart of ``lock_arena``."""
    b.release()
    b.return_()


# -- dropping -----------------------------------------------------------------------------------


@routine("void", "i64", "i64")
def change_code(b: Builder, physical: Value, size: Value) -> None:
    """A store of this vCPU may have hit translated code: drop it, or tell whoever wants to know."""
    page, start = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
    watched = wide(b, page_place(b, page) + arena.PAGE_WATCHED, "i32").ne(0)
    with b.if_(watched | counter(b, "processors").ugt(1)):
        b.callback("code_written", "void", b.get("vcpu"), physical, size)
        b.return_()
    with b.if_(b.call("drop_code", page, start, start + size).ne(0)):
        b.set("code_dropped", 1)
    b.return_()


@routine("i64", "i64", "i64", "i64")
def drop_code(b: Builder, page: Value, start: Value, end: Value) -> None:
    """Drop what was made from bytes [start, end) of a page; 1 if there was anything."""
    b.acquire()
    entry = page_place(b, page)
    link, number = b.variable("i64", entry + arena.PAGE_SPANS), b.variable("i64")
    mask, dropped = b.variable("i64"), b.variable("i64")
    with b.loop():
        number.set(wide(b, link.get(), "i32"))
        b.break_if(number.get().eq(0))
        span = number.get() * arena.SPAN_SIZE + arena.SPANS
        first = wide(b, span + arena.SPAN_START, "i16")
        last = wide(b, span + arena.SPAN_END, "i16")
        with b.if_(first.ult(end) & start.ult(last)):
            b.call("kill_block", span)
            b.arena_store(link.get(), b.arena_load(span + arena.SPAN_NEXT, "i32"))
            dropped.set(1)
        with b.else_():
            mask.set(mask.get() | _pieces(b, first, last))
            link.set(span + arena.SPAN_NEXT)
    b.arena_store(counter(b, "masks") + (page << 3), mask.get())
    with b.if_(dropped.get().ne(0)):
        times = entry + arena.PAGE_DROPPED
        b.arena_store(times, b.arena_load(times, "i32") + 1)
    _answer(b, dropped.get())


@routine("i64", "i64", "i64")
def touches_code(b: Builder, place: Value, count: Value) -> None:
    """Not 0 if one of many ranges has translated code in its pages.

    ``place``: where on the host (gpa, bytes) of each are, as two numbers of 64 bits.
    """
    at, mask, page = b.variable("i64", place), b.variable("i64"), b.variable("i64")
    masks, pages = counter(b, "masks"), b.get("memory_top") >> PAGE_SHIFT
    with b.loop():
        b.break_if(at.get().eq(place + (count << 4)))
        start = b.load_host(at.get(), "i64")
        last = (start + b.load_host(at.get() + 8, "i64") - 1) >> PAGE_SHIFT
        page.set(start >> PAGE_SHIFT)
        with b.loop():
            b.break_if(page.get().ugt(last) | page.get().uge(pages))
            mask.set(mask.get() | b.arena_load(masks + (page.get() << 3), "i64"))
            page.set(page.get() + 1)
        at.set(at.get() + 16)
    b.return_(mask.get())


@routine("void", "i64")
def kill_block(b: Builder, span: Value) -> None:
    """Make a block's records stale, and let it not be found any more."""
    first = wide(b, span + arena.SPAN_FIRST, "i32")
    stale = counter(b, "stale")
    place = b.variable("i64", first * RECORD_SIZE)
    end = place.get() + wide(b, span + arena.SPAN_COUNT, "i32") * RECORD_SIZE
    with b.loop():
        b.arena_store(place.get(), stale)
        place.set(place.get() + RECORD_SIZE)
        b.break_if(place.get().eq(end))
    element = wide(b, span + arena.SPAN_ENTRY, "i32") << 2
    with b.if_(wide(b, element, "i32").eq(first)):  # a crossing one may have been made anew
        b.arena_store(element, b.const("i32", 0))
    b.return_()
