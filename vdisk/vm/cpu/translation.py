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

Whoever calls these routines has the arena's lock.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from vdisk.vm.cpu import arena, flags, known
from vdisk.vm.cpu.arena_access import counter, mode_place, set_counter, wide
from vdisk.vm.cpu.known import Bit, Parameter
from vdisk.vm.cpu.records import LINK_OFFSET, PARAMS, RECORD_SIZE
from vdisk.vm.cpu.routines import routine
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value, Variable

BLOCK_LIMIT = 64
"""Instructions; a record counts them in one byte, and an interrupt waits for the end of a block."""
LINKED = 0x100
"""Added to the variant of a jump that follows its record's link."""
KEEPS = -2
"""``leaves`` of what leaves the flags as they were."""

NOTES = arena.NOTES
"""For each instruction its entry and which flags are looked at after it."""
NOTE_SIZE = 8
WAITS = 1 << 31
ASKING = 1 << 63


class Question(enum.IntEnum):
    """What is asked, in the low byte of an answer with ``ASKING``."""

    HALF = 1
    """The block would begin with an instruction that is not all in the page."""
    INSTRUCTION = 2
    """Bits 8-23: the offset in the page of an instruction that is not known."""
    VARIANTS = 3
    """Bits 8-15: how many variants are listed (:data:`~vdisk.vm.cpu.arena.ASKED`) that are not
    known."""
    ROOM = 4
    """The arena is full."""
    PROTECTION = 5
    """The other processors must not write to the page unnoticed any more."""


def entry_place(number: Value) -> Value:
    """Where an entry of what is known is in the mapping."""
    return number * known.ENTRY_SIZE + (arena.KNOWN + known.ENTRIES)


def has_bit(bits: Value, bit: int) -> Value:
    """True if an entry has a :class:`~vdisk.vm.cpu.known.Bit`."""
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
        number.set(wide(b, (place.get() << 2) + (arena.KNOWN + known.HASH), "i32"))
        b.break_if(number.get().eq(0))
        entry = entry_place(number.get())
        same = b.arena_load(entry + known.LOW, "i64").eq(low)
        same &= b.arena_load(entry + known.HIGH, "i64").eq(high)
        b.break_if(same & wide(b, entry + known.LENGTH, "i8").eq(length))
        place.set((place.get() + 1) & ((1 << known.HASH_BITS) - 1))
    b.return_(number.get())


@routine("i64", "i64", "i64", "i64")
def find_instruction(b: Builder, at: Value, left: Value, mode: Value) -> None:
    """The entry of the instruction at a place of the window with ``left`` bytes more, or 0."""
    low, high = b.arena_load(at, "i64"), b.arena_load(at + 8, "i64")
    beginnings = (mode << 17) + ((low & 0xFFFF) << 1) + (arena.KNOWN + known.LENGTHS)
    lengths, found = b.variable("i64", wide(b, beginnings, "i16")), b.variable("i64")
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
    limit = counter(b, "block_limit")
    with b.loop():
        b.break_if((ends.get() | count.get().eq(limit).zext("i64")).ne(0))
        rest = left - at.get()
        b.break_if(rest.eq(0))
        number = b.call("find_instruction", at.get() + arena.WINDOW, rest, mode)
        with b.if_(number.eq(0), unlikely=True):
            b.return_(question(b, Question.INSTRUCTION, offset + at.get()))
        entry = entry_place(number)
        bits = wide(b, entry + known.BITS, "i16")
        b.break_if(has_bit(bits, Bit.INCOMPLETE))
        b.arena_store(count.get() * NOTE_SIZE + NOTES, number.trunc("i32"))
        at.set(at.get() + wide(b, entry + known.LENGTH, "i8"))
        count.set(count.get() + 1)
        ends.set((bits & Bit.ENDS) | shadow.get())
        shadow.set(bits & Bit.SHADOW)
    with b.if_(count.get().eq(0)):
        b.return_(question(b, Question.HALF))
    return count, at


def question(b: Builder, kind: Question, first: Value | int = 0) -> Value:
    return (b.value("i64", first) << 8) | (ASKING | int(kind))


# -- pass 2: which flags ------------------------------------------------------------------------


def _note_live_flags(b: Builder, count: Value) -> None:
    """For each instruction, which flags that it leaves may be looked at later."""
    live, left = b.variable("i64", flags.ARITHMETIC), b.variable("i64", count)
    with b.loop():
        left.set(left.get() - 1)
        note = left.get() * NOTE_SIZE + NOTES
        b.arena_store(note + 4, live.get().trunc("i32"))
        entry = entry_place(wide(b, note, "i32"))
        kept = live.get() & ~wide(b, entry + known.KILLS, "i16")
        live.set(kept | wide(b, entry + known.READS, "i16"))
        b.break_if(left.get().eq(0))


# -- pass 3: records ----------------------------------------------------------------------------


class _Writer:
    """Puts records behind the last one, which do not count yet."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.first = counter(b, "next_record")
        self.place = b.variable("i64", self.first * RECORD_SIZE)

    def check_room(self, count: int) -> None:
        """Ask for room unless there is some for ``count`` records more."""
        b = self.b
        end = (self.place.get() >> 5) + count
        with b.if_(end.ugt(counter(b, "record_limit")), unlikely=True):
            b.return_(question(b, Question.ROOM))

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
    number = b.variable("i64", wide(b, entry + known.VARIANT_HEAD, "i32"))
    with b.loop():
        b.break_if(number.get().eq(0))
        place = number.get() * known.VARIANT_SIZE + (arena.KNOWN + known.VARIANTS)
        with b.if_(wide(b, place + known.VARIANT_KEY, "i32").eq(key)):
            b.return_(place)
        number.set(wide(b, place + known.VARIANT_NEXT, "i32"))
    b.return_(b.const("i64", 0))


def _known_after(b: Builder, before: Variable, entry: Value, bits: Value) -> None:
    """Which operation the flags come from behind an instruction."""
    leaves = b.arena_load(entry + known.LEAVES, "i16").sext("i64")
    with b.if_(leaves.sge(0)):
        before.set(leaves)
    with b.else_():
        with b.if_(leaves.ne(KEEPS)):
            before.set(-1)
        with b.else_(), b.if_(before.get().slt(0) & has_bit(bits, Bit.IS_CONDITION)):
            before.set(0)  # it leaves what it worked out


def _write_instructions(
    b: Builder, writer: _Writer, offset: Value, count: Value
) -> tuple[Variable, Value]:
    """The records of all instructions; (the last entry, where the last variant is)."""
    before, done, at = b.variable("i64", -1), b.variable("i64"), b.variable("i64", offset)
    window = b.const("i64", arena.WINDOW) - offset
    entry, variant, missing = b.variable("i64"), b.variable("i64"), b.variable("i64")
    with b.loop():
        note = done.get() * NOTE_SIZE + NOTES
        done.set(done.get() + 1)
        number = wide(b, note, "i32")
        entry.set(entry_place(number))
        bits = wide(b, entry.get() + known.BITS, "i16")
        wanted = (wide(b, note + 4, "i32") & wide(b, entry.get() + known.WRITES, "i16")).ne(0)
        told = b.select(has_bit(bits, Bit.NEEDS_KNOWN), before.get() + 1, b.const("i64", 0))
        key = (told << 1) | wanted.zext("i64")
        variant.set(b.call("find_variant", entry.get(), key))
        length = wide(b, entry.get() + known.LENGTH, "i8")
        with b.if_(variant.get().eq(0), unlikely=True):
            _ask_for(b, missing, number, key)
        with b.else_():
            writer.check_room(64)
            start = writer.place.get()
            _write_instruction(b, writer, entry.get(), variant.get(), at.get(), done.get())
            _write_field(b, entry.get(), start, at.get(), window + at.get() + length)
        _known_after(b, before, entry.get(), bits)
        at.set(at.get() + length)
        b.break_if(done.get().eq(count))
    with b.if_(missing.get().ne(0), unlikely=True):
        b.return_(question(b, Question.VARIANTS, missing.get()))
    return entry, variant.get()


def _ask_for(b: Builder, missing: Variable, entry: Value, key: Value) -> None:
    """List one more variant that is not known."""
    mine = b.get("vcpu") * arena.ASKED_LIST + arena.ASKED
    place = mine + missing.get() * arena.ASKED_SIZE
    b.arena_store(place, entry.trunc("i32"))
    b.arena_store(place + 4, key.trunc("i32"))
    missing.set(missing.get() + 1)


def _write_instruction(
    b: Builder, writer: _Writer, entry: Value, variant: Value, offset: Value, count: Value
) -> None:
    first = wide(b, variant + known.VARIANT_TEMPLATE, "i32")
    template = b.variable("i64", first * RECORD_SIZE + (arena.KNOWN + known.TEMPLATES))
    left = b.variable("i64", wide(b, entry + known.OPS, "i8"))
    placed = b.variable("i64", wide(b, entry + known.PLACED, "i16"))
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
    field = wide(b, entry + known.FIELD, "i16")
    with b.if_(field.ne(0)):
        number = _field(b, end) + b.arena_load(entry + known.JUMP, "i32").sext("i64")
        op = field >> 8
        record, parameter = records + op * RECORD_SIZE, field & 0xFF
        with b.if_(parameter.eq(Parameter.IMM)):
            b.arena_store(record + PARAMS["imm"].offset, number.trunc("i32"))
        with b.if_(parameter.eq(Parameter.WIDE)):
            b.arena_store(record + PARAMS["wide"].offset, number)
        with b.if_(parameter.eq(Parameter.DISP)):
            placed = (wide(b, entry + known.PLACED, "i16") >> op) & 1
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
        check = writer.copy(mode_place(mode) + arena.MODE_CROSSING, offset, b.const("i64", 1))
        b.arena_store(check + PARAMS["wide"].offset, guard)
    entry, variant = _write_instructions(b, writer, offset, count.get())
    jump = writer.place.get() - RECORD_SIZE
    bits = wide(b, entry.get() + known.BITS, "i16")
    end, template = offset + size.get(), mode_place(mode) + arena.MODE_END
    goes_on = (bits & Bit.ENDS).eq(0) | has_bit(bits, Bit.FALLS_THROUGH)
    with b.if_(goes_on):
        writer.copy(template, end, count.get())
    jumps = b.variable("i64", b.arena_load(entry.get() + known.JUMP, "i32").sext("i64"))
    with b.if_(b.arena_load(entry.get() + known.FIELD, "i16").ne(0)):
        jumps.set(jumps.get() + _field(b, size.get() + arena.WINDOW))
    target = end + jumps.get()
    links = has_bit(bits, Bit.LINKABLE) & codes.ne(0) & target.ult(PAGE_SIZE)
    with b.if_(links):
        linked = wide(b, variant + known.VARIANT_LINKED, "i32")
        b.arena_store(jump, writer.handler(linked))
        _write_link(b, writer, codes, target, (jump, template))
    set_counter(b, "translated", counter(b, "translated") + count.get())
    set_counter(b, "block_records", writer.count)
    set_counter(b, "block_bytes", size.get())
    set_counter(b, "next_record", writer.place.get() >> 5)
    b.return_(writer.first)


@routine("void", "i64", "i64")
def install(b: Builder, element: Value, first: Value) -> None:
    """Let a block be found, by those too who wait for it."""
    waiting = b.variable("i64", wide(b, element, "i32"))
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
