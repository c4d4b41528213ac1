"""Translation: from guest bytes to a block of records, copied from what is known.

A block is straight-line code of one page: it ends with a jump, an instruction that may change
what follows, the end of the page, or after the mode's limit of instructions.  Three passes:

1. forwards over the bytes: which instructions these are (:mod:`vdisk.vm.cpu.known`);
2. backwards: which results of arithmetic flags anybody can see (a fault shows them all);
3. forwards: records are copied, each reader of flags told which operation they come from.

What is not known is a *question* (:class:`Question`): the routine gives it instead of a record,
Python answers by filling in the tables, and the block is begun anew.

A direct jump within the page follows a link.  Where its target is not translated yet, it is linked
to a *stub*, a record that goes on at the target's address; the target's element of the code array
leads to that stub, which names the jump and the next stub that waits for the same target::

    code array[target] = 1 << 31 | stub        stub.wide = jump << 32 | next stub

Routines here take the arena's lock, and call nothing that waits.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from vdisk.vm.cpu import arena, flags, known, mmu
from vdisk.vm.cpu.known import Bit, Parameter
from vdisk.vm.cpu.records import LINK_OFFSET, PARAMS, RECORD_SIZE
from vdisk.vm.cpu.routines import page_of, routine
from vdisk.vm.cpu.state import TLB_USER
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value, Variable

BLOCK_LIMIT = 64
"""Instructions; a record counts them in one byte, and an interrupt waits for the end of a block."""
LINKED = 0x100
"""Added to the variant of a jump that follows its record's link."""
KEEPS = -2
"""``leaves`` of what leaves the flags as they were."""

NOTES = arena.WINDOW + PAGE_SIZE
"""Behind the bytes: for each instruction its entry and which flags are looked at after it."""
NOTE_SIZE = 8
WAITS = 1 << 31
ASKING = 1 << 63
PIECES = (1 << 64) - 1


class Question(enum.IntEnum):
    """What is asked, in the low byte of an answer with ``ASKING``."""

    HALF = 1
    """The block would begin with an instruction that is not all in the page."""
    INSTRUCTION = 2
    """Bits 8-23: the offset in the page of an instruction that is not known."""
    VARIANT = 3
    """Bits 8-31: an entry; bits 32-47: the key of a variant that it does not have."""
    ROOM = 4
    """The arena is full."""
    PROTECTION = 5
    """The other processors must not write to the page unnoticed any more."""


# -- the mapping's parts -------------------------------------------------------------------------


def _counter(b: Builder, name: str) -> Value:
    return b.arena_load(arena.HEADER_FIELDS[name], "i64")


def _set_counter(b: Builder, name: str, value: Value) -> None:
    b.arena_store(arena.HEADER_FIELDS[name], value)


def _wide(b: Builder, where: Value | int, kind: str) -> Value:
    """A field that is narrower than what is computed with it."""
    return b.arena_load(where, kind).zext("i64")


def _mode(mode: Value) -> Value:
    return mode * arena.MODE_SIZE + arena.MODES


def _page(b: Builder, number: Value) -> Value:
    return _counter(b, "pages") + number * arena.PAGE_ENTRY


def _entry(number: Value) -> Value:
    return number * known.ENTRY_SIZE + (arena.KNOWN + known.ENTRIES)


def _has(bits: Value, bit: int) -> Value:
    return (bits & bit).ne(0)


# -- pass 1: which instructions -----------------------------------------------------------------


@routine("i64", "i64", "i64", "i64")
def find_entry(b: Builder, low: Value, high: Value, length: Value) -> None:
    """The number of the entry with these bytes (and the mode on top), or 0."""
    mixed = low ^ (high * known.HIGH_FACTOR)
    multiplier = b.arena_load(arena.KNOWN + known.MULTIPLIER, "i64")
    start = ((mixed ^ (mixed >> 32)) * multiplier) >> (64 - known.HASH_BITS)
    place, number = b.variable("i64", start), b.variable("i64")
    with b.loop():
        number.set(_wide(b, (place.get() << 2) + (arena.KNOWN + known.HASH), "i32"))
        b.break_if(number.get().eq(0))
        entry = _entry(number.get())
        same = b.arena_load(entry + known.LOW, "i64").eq(low)
        same &= b.arena_load(entry + known.HIGH, "i64").eq(high)
        b.break_if(same & _wide(b, entry + known.LENGTH, "i8").eq(length))
        place.set((place.get() + 1) & ((1 << known.HASH_BITS) - 1))
    b.return_(number.get())


@routine("i64", "i64", "i64", "i64")
def find_instruction(b: Builder, at: Value, left: Value, mode: Value) -> None:
    """The entry of the instruction at a place of the window with ``left`` bytes more, or 0."""
    low, high = b.arena_load(at, "i64"), b.arena_load(at + 8, "i64")
    beginnings = (mode << 17) + ((low & 0xFFFF) << 1) + (arena.KNOWN + known.LENGTHS)
    lengths, found = b.variable("i64", _wide(b, beginnings, "i16")), b.variable("i64")
    with b.loop():
        b.break_if(lengths.get().eq(0))
        length = b.unary("cttz", lengths.get())
        lengths.set(lengths.get() & (lengths.get() - 1))
        with b.if_(length.ule(left)):
            found.set(b.call("find_entry", *_key(b, low, high, length, mode), length))
            with b.if_(found.get().eq(0) & length.ugt(4)):
                number = _field(b, at + length)
                small = (number + known.FIELD_LIMIT).ult(2 * known.FIELD_LIMIT)
                with b.if_(small):
                    tag = mode | known.FIELD_TAG
                    key = _key(b, low, high, length - 4, tag)
                    found.set(b.call("find_entry", *key, length))
        b.break_if(found.get().ne(0))
    with b.if_(found.get().eq(0) & left.ult(known.LONGEST)):
        tag = mode | known.INCOMPLETE_TAG
        found.set(b.call("find_entry", *_key(b, low, high, left, tag), left))
    b.return_(found.get())


def _field(b: Builder, end: Value) -> Value:
    """The number that the last four bytes of an instruction are, by where it ends."""
    return b.arena_load(end - 4, "i32").sext("i64")


def _key(b: Builder, low: Value, high: Value, length: Value, tag: Value) -> tuple[Value, Value]:
    """The first bytes alone, and the tag on top."""
    bits = (length & 7) << 3
    part = (b.const("i64", 1) << bits) - 1
    short = length.ult(8)
    kept = b.select(short, low & part, low)
    return kept, b.select(short, 0, high & part) | (tag << 56)


def _find_all(b: Builder, offset: Value, left: Value, mode: Value) -> tuple[Variable, Variable]:
    """Note the block's entries; (how many, where its bytes end in the window)."""
    count, at = b.variable("i64"), b.variable("i64")
    shadow, ends = b.variable("i64"), b.variable("i64")
    limit = _counter(b, "block_limit")
    with b.loop():
        b.break_if((ends.get() | count.get().eq(limit).zext("i64")).ne(0))
        rest = left - at.get()
        b.break_if(rest.eq(0))
        number = b.call("find_instruction", at.get() + arena.WINDOW, rest, mode)
        with b.if_(number.eq(0), unlikely=True):
            b.return_(_question(b, Question.INSTRUCTION, offset + at.get()))
        entry = _entry(number)
        bits = _wide(b, entry + known.BITS, "i16")
        b.break_if(_has(bits, Bit.INCOMPLETE))
        b.arena_store(count.get() * NOTE_SIZE + NOTES, number.trunc("i32"))
        at.set(at.get() + _wide(b, entry + known.LENGTH, "i8"))
        count.set(count.get() + 1)
        ends.set((bits & Bit.ENDS) | shadow.get())
        shadow.set(bits & Bit.SHADOW)
    with b.if_(count.get().eq(0)):
        b.return_(_question(b, Question.HALF))
    return count, at


def _question(b: Builder, kind: Question, first: Value | int = 0) -> Value:
    return (b.value("i64", first) << 8) | (ASKING | int(kind))


# -- pass 2: which flags ------------------------------------------------------------------------


def _note_live_flags(b: Builder, count: Value) -> None:
    """For each instruction, which flags that it leaves may be looked at later."""
    live, left = b.variable("i64", flags.ARITHMETIC), b.variable("i64", count)
    with b.loop():
        left.set(left.get() - 1)
        note = left.get() * NOTE_SIZE + NOTES
        b.arena_store(note + 4, live.get().trunc("i32"))
        entry = _entry(_wide(b, note, "i32"))
        kept = live.get() & ~_wide(b, entry + known.KILLS, "i16")
        live.set(kept | _wide(b, entry + known.READS, "i16"))
        b.break_if(left.get().eq(0))


# -- pass 3: records ----------------------------------------------------------------------------


class _Writer:
    """Puts records behind the last one, which do not count yet."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.first = _counter(b, "next_record")
        self.place = b.variable("i64", self.first * RECORD_SIZE)

    def check_room(self, count: int) -> None:
        """Ask for room unless there is some for ``count`` records more."""
        b = self.b
        end = (self.place.get() >> 5) + count
        with b.if_(end.ugt(_counter(b, "record_limit")), unlikely=True):
            b.return_(_question(b, Question.ROOM))

    def copy(self, template: Value, offset: Value, count: Value) -> Value:
        """A record from a template; its place."""
        b, at = self.b, self.place.get()
        number = b.arena_load(template, "i64")
        b.arena_store(at, self.handler(number))
        for word in (8, 16, 24):
            b.arena_store(at + word, b.arena_load(template + word, "i64"))
        b.arena_store(at + PARAMS["off"].offset, offset.trunc("i16"))
        b.arena_store(at + PARAMS["count"].offset, count.trunc("i8"))
        self.place.set(at + RECORD_SIZE)
        return at

    def handler(self, number: Value) -> Value:
        """The address of a handler."""
        return self.b.arena_load((number << 3) + (arena.KNOWN + known.HANDLERS), "i64")

    @property
    def count(self) -> Value:
        """Records so far."""
        return (self.place.get() >> 5) - self.first


@routine("i64", "i64", "i64")
def find_variant(b: Builder, entry: Value, key: Value) -> None:
    """Where the variant of an entry is, or 0."""
    number = b.variable("i64", _wide(b, entry + known.VARIANT_HEAD, "i32"))
    with b.loop():
        b.break_if(number.get().eq(0))
        place = number.get() * known.VARIANT_SIZE + (arena.KNOWN + known.VARIANTS)
        with b.if_(_wide(b, place + known.VARIANT_KEY, "i32").eq(key)):
            b.return_(place)
        number.set(_wide(b, place + known.VARIANT_NEXT, "i32"))
    b.return_(b.const("i64", 0))


def _known_after(b: Builder, before: Variable, entry: Value, bits: Value) -> None:
    """Which operation the flags come from behind an instruction."""
    leaves = b.arena_load(entry + known.LEAVES, "i16").sext("i64")
    with b.if_(leaves.sge(0)):
        before.set(leaves)
    with b.else_():
        with b.if_(leaves.ne(KEEPS)):
            before.set(-1)
        with b.else_(), b.if_(before.get().slt(0) & _has(bits, Bit.IS_CONDITION)):
            before.set(0)  # it leaves what it worked out


def _write_instructions(
    b: Builder, writer: _Writer, offset: Value, count: Value
) -> tuple[Variable, Value]:
    """The records of all instructions; (the last entry, where the last variant is)."""
    before, done, at = b.variable("i64", -1), b.variable("i64"), b.variable("i64", offset)
    window = b.const("i64", arena.WINDOW) - offset
    entry, variant = b.variable("i64"), b.variable("i64")
    with b.loop():
        note = done.get() * NOTE_SIZE + NOTES
        done.set(done.get() + 1)
        number = _wide(b, note, "i32")
        entry.set(_entry(number))
        bits = _wide(b, entry.get() + known.BITS, "i16")
        wanted = (_wide(b, note + 4, "i32") & _wide(b, entry.get() + known.WRITES, "i16")).ne(0)
        told = b.select(_has(bits, Bit.NEEDS_KNOWN), before.get() + 1, b.const("i64", 0))
        key = (told << 1) | wanted.zext("i64")
        variant.set(b.call("find_variant", entry.get(), key))
        with b.if_(variant.get().eq(0), unlikely=True):
            b.return_(_question(b, Question.VARIANT, number | (key << 24)))
        writer.check_room(64)
        length = _wide(b, entry.get() + known.LENGTH, "i8")
        start = writer.place.get()
        _write_instruction(b, writer, entry.get(), variant.get(), at.get(), done.get())
        _write_field(b, entry.get(), start, at.get(), window + at.get() + length)
        _known_after(b, before, entry.get(), bits)
        at.set(at.get() + length)
        b.break_if(done.get().eq(count))
    return entry, variant.get()


def _write_instruction(
    b: Builder, writer: _Writer, entry: Value, variant: Value, offset: Value, count: Value
) -> None:
    first = _wide(b, variant + known.VARIANT_TEMPLATE, "i32")
    template = b.variable("i64", first * RECORD_SIZE + (arena.KNOWN + known.TEMPLATES))
    left = b.variable("i64", _wide(b, entry + known.OPS, "i8"))
    placed = b.variable("i64", _wide(b, entry + known.PLACED, "i16"))
    with b.loop():
        at = writer.copy(template.get(), offset, count)
        with b.if_((placed.get() & 1).ne(0)):  # from the instruction's address to the page's
            place = at + PARAMS["disp"].offset
            b.arena_store(place, b.arena_load(place, "i32") + offset.trunc("i32"))
        template.set(template.get() + RECORD_SIZE)
        placed.set(placed.get() >> 1)
        left.set(left.get() - 1)
        b.break_if(left.get().eq(0))


def _write_field(b: Builder, entry: Value, records: Value, offset: Value, end: Value) -> None:
    """Put the number at an instruction's end (in the window) into the record that it is for."""
    field = _wide(b, entry + known.FIELD, "i16")
    with b.if_(field.ne(0)):
        number = _field(b, end) + b.arena_load(entry + known.JUMP, "i32").sext("i64")
        op = field >> 8
        record, parameter = records + op * RECORD_SIZE, field & 0xFF
        with b.if_(parameter.eq(Parameter.IMM)):
            b.arena_store(record + PARAMS["imm"].offset, number.trunc("i32"))
        with b.if_(parameter.eq(Parameter.WIDE)):
            b.arena_store(record + PARAMS["wide"].offset, number)
        with b.if_(parameter.eq(Parameter.DISP)):
            placed = (_wide(b, entry + known.PLACED, "i16") >> op) & 1
            there = number + b.select(placed.ne(0), offset, b.const("i64", 0))
            b.arena_store(record + PARAMS["disp"].offset, there.trunc("i32"))


def _write_link(
    b: Builder, writer: _Writer, codes: Value, target: Value, ends: tuple[Value, Value]
) -> None:
    """Let the last record (a jump's) lead to its target, or to a stub that waits for it.

    ``ends``: where the jump is, and the template of a block's end.
    """
    jump, template = ends
    element = codes + (target << 2)
    present = b.arena_load(element, "i32")
    with b.if_(present.sgt(0)):
        b.arena_store(jump + LINK_OFFSET, b.get("arena") + present.zext("i64") * RECORD_SIZE)
    with b.else_():
        stub = writer.copy(template, target, b.const("i64", 0))
        b.arena_store(jump + LINK_OFFSET, b.get("arena") + stub)
        following = present.zext("i64") & (WAITS - 1)
        b.arena_store(stub + LINK_OFFSET, (jump >> 5 << 32) | following)
        b.fence()
        b.arena_store(element, ((stub >> 5) | WAITS).trunc("i32"))


@routine("i64", "i64", "i64", "i64", "i64", "i64")
def write_block(
    b: Builder, offset: Value, left: Value, mode: Value, codes: Value, guard: Value
) -> None:
    """Translate what is in the window: the number of the first record, or a question.

    ``offset``: of its first byte in its page; ``codes``: the page's code array, or 0 if nothing
    may lead to the block; ``guard``: the code array of the page that the instruction goes on in,
    or 0.  It has at most ``block_limit`` instructions.  What the block is like stands in
    ``block_records`` and ``block_bytes`` then.
    """
    count, size = _find_all(b, offset, left, mode)
    _note_live_flags(b, count.get())
    writer = _Writer(b)
    writer.check_room(64)
    with b.if_(guard.ne(0)):
        check = writer.copy(_mode(mode) + arena.MODE_CROSSING, offset, b.const("i64", 1))
        b.arena_store(check + PARAMS["wide"].offset, guard)
    entry, variant = _write_instructions(b, writer, offset, count.get())
    jump = writer.place.get() - RECORD_SIZE
    bits = _wide(b, entry.get() + known.BITS, "i16")
    end, template = offset + size.get(), _mode(mode) + arena.MODE_END
    goes_on = (bits & Bit.ENDS).eq(0) | _has(bits, Bit.FALLS_THROUGH)
    with b.if_(goes_on):
        writer.copy(template, end, count.get())
    jumps = b.variable("i64", b.arena_load(entry.get() + known.JUMP, "i32").sext("i64"))
    with b.if_(b.arena_load(entry.get() + known.FIELD, "i16").ne(0)):
        jumps.set(jumps.get() + _field(b, size.get() + arena.WINDOW))
    target = end + jumps.get()
    links = _has(bits, Bit.LINKABLE) & codes.ne(0) & target.ult(PAGE_SIZE)
    with b.if_(links):
        linked = _wide(b, variant + known.VARIANT_LINKED, "i32")
        b.arena_store(jump, writer.handler(linked))
        _write_link(b, writer, codes, target, (jump, template))
    _set_counter(b, "translated", _counter(b, "translated") + count.get())
    _set_counter(b, "block_records", writer.count)
    _set_counter(b, "block_bytes", size.get())
    _set_counter(b, "next_record", writer.place.get() >> 5)
    b.return_(writer.first)


@routine("void", "i64", "i64")
def install(b: Builder, element: Value, first: Value) -> None:
    """Let a block be found, by those too who wait for it."""
    waiting = b.variable("i64", _wide(b, element, "i32"))
    b.fence()
    b.arena_store(element, first.trunc("i32"))
    with b.if_(waiting.get().ult(WAITS)):
        b.return_()
    waiting.set(waiting.get() & (WAITS - 1))
    with b.loop():
        word = b.arena_load(waiting.get() * RECORD_SIZE + LINK_OFFSET, "i64")
        link = (word >> 32) * RECORD_SIZE + LINK_OFFSET
        b.arena_store(link, b.get("arena") + first * RECORD_SIZE)
        waiting.set(word & 0xFFFF_FFFF)
        b.break_if(waiting.get().eq(0))
    b.return_()


# -- pages --------------------------------------------------------------------------------------


@routine("i64", "i64", "i64")
def code_array(b: Builder, page: Value, mode: Value) -> None:
    """The page's code array for a mode, made if there is none; 0 if there is no room for one."""
    place = b.arena_load(_mode(mode) + arena.MODE_TABLE, "i64") + (page << 3)
    found = b.arena_load(place, "i64")
    with b.if_(found.ne(0)):
        b.return_(found - b.get("arena"))
    number = _counter(b, "next_array")
    with b.if_(number.uge(_counter(b, "array_limit")), unlikely=True):
        b.return_(b.const("i64", 0))
    _set_counter(b, "next_array", number + 1)
    where = number * arena.ARRAY_SIZE + arena.ARRAYS
    b.arena_store(place, where + b.get("arena"))
    b.return_(where)


@routine("void", "i64", "i64", "i64", "i64", "i64")
def add_span(
    b: Builder, page: Value, start: Value, end: Value, first: Value, element: Value
) -> None:
    """Note which bytes of a page the block that was just written was made from."""
    number = _counter(b, "next_span")
    _set_counter(b, "next_span", number + 1)
    span, head = number * arena.SPAN_SIZE + arena.SPANS, _page(b, page) + arena.PAGE_SPANS
    b.arena_store(span + arena.SPAN_NEXT, b.arena_load(head, "i32"))
    b.arena_store(span + arena.SPAN_FIRST, first.trunc("i32"))
    b.arena_store(span + arena.SPAN_COUNT, _counter(b, "block_records").trunc("i32"))
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
    spans = _counter(b, "next_span")
    with b.if_(codes.eq(0) | spans.uge(arena.MOST_SPANS - 1), unlikely=True):
        _answer(b, _question(b, Question.ROOM))
    element = codes + (offset << 2)
    present = b.arena_load(element, "i32")
    with b.if_(present.sgt(0)):
        _answer(b, present.zext("i64"))
    mask = _counter(b, "masks") + (page << 3)
    before = b.arena_load(mask, "i64")
    with b.if_(before.eq(0)):
        with b.if_(_counter(b, "processors").ugt(1), unlikely=True):
            _answer(b, _question(b, Question.PROTECTION))
        b.arena_store(mask, b.const("i64", PIECES))
        b.call("drop_write_entries", b.get("memory") + page_of(physical))
    left = b.variable("i64", b.const("i64", PAGE_SIZE) - offset)
    with b.if_(left.get().ugt(known.LONGEST * BLOCK_LIMIT + known.LONGEST)):
        left.set(known.LONGEST * BLOCK_LIMIT + known.LONGEST)
    b.copy_code(arena.WINDOW, physical, left.get())
    _set_counter(b, "block_limit", b.arena_load(_mode(mode) + arena.MODE_LIMIT, "i64"))
    first = b.call("write_block", offset, left.get(), mode, codes, b.const("i64", 0))
    with b.if_(first.slt(0)):
        b.arena_store(mask, before)
        _answer(b, first)
    end = offset + _counter(b, "block_bytes")
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
    with b.if_(full | _counter(b, "next_span").uge(arena.MOST_SPANS - 2), unlikely=True):
        _answer(b, _question(b, Question.ROOM))
    b.arena_store(arena.WINDOW, low)
    b.arena_store(arena.WINDOW + 8, high)
    _set_counter(b, "block_limit", b.const("i64", 1))
    first = b.call("write_block", offset, left, mode, codes.get(), guard)
    with b.if_(first.sge(0) & second.ne(0)):
        element = codes.get() + (offset << 2)
        end = offset + _counter(b, "block_bytes")
        b.call("add_span", page, offset, b.const("i64", PAGE_SIZE), first, element)
        zero = b.const("i64", 0)
        b.call("add_span", second - 1, zero, end - PAGE_SIZE, first, element)
        b.call("install", element, first)
    _answer(b, first)


def _is_expected(b: Builder, physical: Value) -> Value:
    """True if Python asked for such a block (:meth:`~vdisk.vm.cpu.arena.Arena.expect`)."""
    first = b.load_host(physical + b.get("memory"), "i8").zext("i64")
    bit = (b.get("mode_number") << 20) | ((physical & (PAGE_SIZE - 1)) << 8) | first
    expected = _wide(b, (bit >> 3) + arena.EXPECTED, "i8") >> (bit & 7)
    times = _wide(b, _page(b, physical >> PAGE_SHIFT) + arena.PAGE_DROPPED, "i32")
    return (expected & 1).ne(0) & times.ule(arena.MOST_DROPS)


@routine("i64", "i64", "i64")
def translate_here(b: Builder, set_: Value, linear: Value) -> None:
    """Translate what a TLB set's user is about to execute: the record's address.

    0 where Python has to look at it: a question, a fault, code outside memory, or an engine that
    wants to be asked.
    """
    nothing = b.const("i64", 0)
    with b.if_(_counter(b, "direct").eq(0)):
        b.return_(nothing)
    user = set_.eq(TLB_USER).zext("i64")
    physical = b.call("walk", linear, b.const("i64", mmu.EXECUTE), user)
    with b.if_(physical.eq(mmu.NOWHERE), unlikely=True):
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
    watched = _wide(b, _page(b, page) + arena.PAGE_WATCHED, "i32").ne(0)
    with b.if_(watched | _counter(b, "processors").ugt(1)):
        b.callback("code_written", "void", b.get("vcpu"), physical, size)
        b.return_()
    with b.if_(b.call("drop_code", page, start, start + size).ne(0)):
        b.set("code_dropped", 1)
    b.return_()


@routine("i64", "i64", "i64", "i64")
def drop_code(b: Builder, page: Value, start: Value, end: Value) -> None:
    """Drop what was made from bytes [start, end) of a page; 1 if there was anything."""
    b.acquire()
    entry = _page(b, page)
    link, number = b.variable("i64", entry + arena.PAGE_SPANS), b.variable("i64")
    mask, dropped = b.variable("i64"), b.variable("i64")
    with b.loop():
        number.set(_wide(b, link.get(), "i32"))
        b.break_if(number.get().eq(0))
        span = number.get() * arena.SPAN_SIZE + arena.SPANS
        first = _wide(b, span + arena.SPAN_START, "i16")
        last = _wide(b, span + arena.SPAN_END, "i16")
        with b.if_(first.ult(end) & start.ult(last)):
            b.call("kill_block", span)
            b.arena_store(link.get(), b.arena_load(span + arena.SPAN_NEXT, "i32"))
            dropped.set(1)
        with b.else_():
            mask.set(mask.get() | _pieces(b, first, last))
            link.set(span + arena.SPAN_NEXT)
    b.arena_store(_counter(b, "masks") + (page << 3), mask.get())
    with b.if_(dropped.get().ne(0)):
        times = entry + arena.PAGE_DROPPED
        b.arena_store(times, b.arena_load(times, "i32") + 1)
    _answer(b, dropped.get())


@routine("void", "i64")
def kill_block(b: Builder, span: Value) -> None:
    """Make a block's records stale, and let it not be found any more."""
    first = _wide(b, span + arena.SPAN_FIRST, "i32")
    stale = _counter(b, "stale")
    place = b.variable("i64", first * RECORD_SIZE)
    end = place.get() + _wide(b, span + arena.SPAN_COUNT, "i32") * RECORD_SIZE
    with b.loop():
        b.arena_store(place.get(), stale)
        place.set(place.get() + RECORD_SIZE)
        b.break_if(place.get().eq(end))
    element = _wide(b, span + arena.SPAN_ENTRY, "i32") << 2
    with b.if_(_wide(b, element, "i32").eq(first)):  # a crossing one may have been made anew
        b.arena_store(element, b.const("i32", 0))
    b.return_()


@routine("i64", "i64", "i64", "i64", "i64", "i64")
def replace_handler(
    b: Builder, page: Value, times: Value, element: Value, record: Value, handler: Value
) -> None:
    """Give a block's first record another handler, unless it was dropped meanwhile; 1 if so.

    ``times``: how often something in the page had been dropped.
    """
    b.acquire()
    same = _wide(b, _page(b, page) + arena.PAGE_DROPPED, "i32").eq(times)
    done = same & _wide(b, element, "i32").eq(record)
    with b.if_(done):
        b.arena_store(record * RECORD_SIZE, handler)
    _answer(b, done.zext("i64"))
