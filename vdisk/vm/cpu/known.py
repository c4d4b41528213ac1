"""What is known of instructions, by their bytes: enough to translate them by copying.

::

    HASH        numbers of entries, by the hash of their bytes and mode (open addressing)
    ENTRIES     one for each instruction: its bytes, flags that it reads and changes, its variants
    VARIANTS    by (flags wanted, known ``cc_op``): its records, chained by entry
    TEMPLATES   records at offset 0, count 0, with the number of a handler in place of its address
    LENGTHS     by mode and the first two bytes: lengths (bits) of instructions that begin so
    HANDLERS    addresses of handlers by their numbers

Native code reads all this (:mod:`vdisk.vm.cpu.translation`); Python fills it in, once for every
instruction that a guest has.  No encoding is the beginning of another one, so an entry with the
bytes that are there *is* the instruction, however its length was guessed.

What most instructions differ in is a displacement, an immediate or a branch's offset of 32 bits at
their end.  Where only one parameter of one record depends on it, one entry serves for all of
them: its last four bytes are zeroes, its tag has ``FIELD_TAG``, and ``FIELD`` says which parameter
is the number that stands there plus ``JUMP``.

An entry may also say that the last bytes of a page are only the beginning of an instruction.
"""

from __future__ import annotations

import enum
import os
from struct import Struct
from typing import TYPE_CHECKING

from vdisk.vm.cpu.records import RECORD_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.decode import Form

LONGEST = 15
"""Bytes of an instruction."""
MOST_ENTRIES = 1 << 18
"""Instructions that are remembered: guests may make up any number of them."""
MOST_VARIANTS = MOST_TEMPLATES = 1 << 19
MOST_HANDLERS = 1 << 17
AT_ONCE = 32
"""Instructions that are learned by one answer, at most."""
HASH_BITS = 19
MODES = 64
INCOMPLETE_TAG = 0x80
"""Added to the mode's number where an entry is of the last bytes of a page."""

FIELD_TAG = 0x40
FIELD_LIMIT = (1 << 31) - (1 << 16)
"""Larger numbers (either way) have entries of their own: addresses are added to them."""

ENTRY = Struct("<QQBBHHHHhiHHI")
ENTRY_SIZE = ENTRY.size
LOW, HIGH, LENGTH, OPS, BITS, READS, WRITES, KILLS, LEAVES, JUMP, PLACED, FIELD = (
    *(0, 8, 16, 17, 18, 20, 22, 24, 26, 28, 32),
    34,
)
VARIANT_HEAD = 36
VARIANT = Struct("<IIII")
VARIANT_SIZE = VARIANT.size
VARIANT_KEY, VARIANT_NEXT, VARIANT_TEMPLATE, VARIANT_LINKED = 0, 4, 8, 12

_LENGTHS_SIZE = 1 << 17


class Bit:
    """What ``BITS`` of an entry says."""

    ENDS = 1
    FALLS_THROUGH = 2
    SHADOW = 4
    LINKABLE = 8
    NEEDS_KNOWN = 16
    IS_CONDITION = 32
    INCOMPLETE = 64


class Parameter(enum.IntEnum):
    """Which parameter of a record it is; ``WIDE`` is where a jump leads to."""

    IMM = 1
    DISP = 2
    WIDE = 3


Key = tuple[int, int, int]
"""What an entry is found by: its ``LOW``, ``HIGH`` and ``LENGTH``."""
KEY = Struct("<QQB")


def key_of(code: bytes, tag: int, length: int) -> Key:
    """``code``: all bytes but a number that is left open; ``length``: of the whole instruction."""
    low, high = int.from_bytes(code[:8], "little"), int.from_bytes(code[8:], "little")
    return low, high | tag << 56, length


HASH = 0
ENTRIES = HASH + (4 << HASH_BITS)
VARIANTS = ENTRIES + MOST_ENTRIES * ENTRY_SIZE
TEMPLATES = VARIANTS + MOST_VARIANTS * VARIANT_SIZE
LENGTHS = TEMPLATES + MOST_TEMPLATES * RECORD_SIZE
HANDLERS = LENGTHS + MODES * _LENGTHS_SIZE
MULTIPLIER = HANDLERS + MOST_HANDLERS * 8
SIZE = MULTIPLIER + 4096

HIGH_FACTOR = 0x9E37_79B9_7F4A_7C15
_MASK_64 = (1 << 64) - 1


def has_field(code: bytes) -> bool:
    """True if an instruction's last four bytes may be what an entry leaves open."""
    if len(code) < 5:
        return False
    return -FIELD_LIMIT <= int.from_bytes(code[-4:], "little", signed=True) < FIELD_LIMIT


class Instructions:
    """The tables, as Python fills them in."""

    def __init__(self, view: memoryview) -> None:
        self._bytes = view
        self._halves, self._words = view.cast("I"), view.cast("Q")
        self._numbers = view[HASH:ENTRIES].cast("I")
        self._lengths = view[LENGTHS:HANDLERS].cast("H")
        # Nobody can make up instructions that all have one hash.
        self._words[MULTIPLIER // 8] = self.multiplier = int.from_bytes(os.urandom(8), "little") | 1
        self._begin()

    def _begin(self) -> None:
        self._handlers = 0
        self._next_entry = self._next_variant = self._next_template = 1

    @property
    def count(self) -> int:
        """Instructions that are known."""
        return self._next_entry - 1

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many entries, variants and templates there are, with the unused first ones."""
        return self._next_entry, self._next_variant, self._next_template

    def tables(self, counts: tuple[int, int, int], modes: int) -> list[memoryview]:
        """What is used of the hash, of entries, variants, templates and lengths."""
        entries, variants, templates = counts
        used = (
            (HASH, ENTRIES - HASH),
            (ENTRIES, entries * ENTRY_SIZE),
            (VARIANTS, variants * VARIANT_SIZE),
            (TEMPLATES, templates * RECORD_SIZE),
            (LENGTHS, modes * _LENGTHS_SIZE),
        )
        return [self._bytes[start : start + size] for start, size in used]

    def restore(
        self, counts: tuple[int, int, int], multiplier: int, modes: int, data: memoryview
    ) -> None:
        """Know what :meth:`tables` has given before, and nothing else."""
        at = 0
        for part in self.tables(counts, modes):
            part[:] = data[at : at + len(part)]
            at += len(part)
        self._words[MULTIPLIER // 8] = self.multiplier = multiplier
        self._next_entry, self._next_variant, self._next_template = counts

    def clear(self) -> None:
        """Forget all instructions and handlers (native code must not be looking)."""
        self._bytes[HASH:ENTRIES] = bytes(ENTRIES - HASH)
        self._bytes[LENGTHS:HANDLERS] = bytes(HANDLERS - LENGTHS)
        self._begin()

    @property
    def full(self) -> bool:
        """True if there may be no room for :data:`AT_ONCE` instructions more."""
        return (
            self._next_entry >= MOST_ENTRIES - AT_ONCE
            or self._next_variant >= MOST_VARIANTS - AT_ONCE
            or self._next_template >= MOST_TEMPLATES - 8 * AT_ONCE
            or self._handlers >= MOST_HANDLERS - 8 * AT_ONCE
        )

    def add_handler(self, address: int) -> int:
        """The number that templates have for a handler from now on."""
        number = self._handlers
        self._words[HANDLERS // 8 + number] = address
        self._handlers += 1
        return number

    def place_of(self, key: Key) -> int:
        """Where among the hashes an entry is, or may be added."""
        low, high, _ = key
        mixed = low ^ (high * HIGH_FACTOR & _MASK_64)
        mixed ^= mixed >> 32
        place = (mixed * self.multiplier & _MASK_64) >> (64 - HASH_BITS)
        while number := self._numbers[place]:
            if KEY.unpack_from(self._bytes, ENTRIES + number * ENTRY_SIZE) == key:
                break
            place = (place + 1) & ((1 << HASH_BITS) - 1)
        return place

    def entry_at(self, place: int) -> int:
        """The number of the entry there, or 0."""
        return self._numbers[place]

    def add(self, place: int, key: Key, form: Form, jump: int, field: int) -> int:
        """One more instruction; its variants follow when they are asked for.  Gives its entry.

        ``jump`` and ``field``: what ``JUMP`` and ``FIELD`` of the entry hold.
        """
        return self._add(place, key, (*form.entry, jump, form.placed, field, 0))

    def add_incomplete(self, code: bytes, mode: int) -> None:
        """The last bytes of a page, which are no whole instruction."""
        key = key_of(code, mode | INCOMPLETE_TAG, len(code))
        self._add(self.place_of(key), key, (0, Bit.INCOMPLETE, 0, 0, 0, 0, 0, 0, 0, 0))

    def _add(self, place: int, key: Key, rest: tuple[int, ...]) -> int:
        number = self._next_entry
        self._next_entry += 1
        ENTRY.pack_into(self._bytes, ENTRIES + number * ENTRY_SIZE, *key, *rest)
        self._numbers[place] = number  # from now on it is found
        return number

    def add_length(self, code: bytes, mode: int, kept: int) -> None:
        """Let instructions be looked for that begin like this one.

        ``kept``: how many of its bytes an entry has.
        """
        lengths, bit = self._lengths, 1 << len(code)
        start = mode * (_LENGTHS_SIZE // 2)
        if kept > 1:
            lengths[start + int.from_bytes(code[:2], "little")] |= bit
        else:  # whatever follows it
            for place in range(start + code[0], start + 0x10000, 0x100):
                lengths[place] |= bit

    def instruction(self, entry: int) -> tuple[bytes, int]:
        """(bytes, number of the mode) of an entry; zeroes stand for a number that is left open."""
        low, high, length, *_ = ENTRY.unpack_from(self._bytes, ENTRIES + entry * ENTRY_SIZE)
        code = (low | high << 64).to_bytes(16, "little")
        return code[:length], code[15] & (MODES - 1)

    def variants(self, entry: int) -> Iterator[tuple[int, int]]:
        """Number and key of each variant of an entry; numbers are given out in order."""
        number = self._halves[(ENTRIES + entry * ENTRY_SIZE + VARIANT_HEAD) // 4]
        while number:
            at = VARIANTS + number * VARIANT_SIZE
            key, following, *_ = VARIANT.unpack_from(self._bytes, at)
            yield number, key
            number = following

    def add_variant(self, entry: int, key: int, records: list[bytes], linked: int) -> None:
        """One more variant of an entry.

        ``records``: templates; ``linked``: number of the handler for a jump that follows its
        link, where it is one.
        """
        first = self._next_template
        self._next_template += len(records)
        at = TEMPLATES + first * RECORD_SIZE
        self._bytes[at : at + len(records) * RECORD_SIZE] = b"".join(records)
        number = self._next_variant
        self._next_variant += 1
        head = (ENTRIES + entry * ENTRY_SIZE + VARIANT_HEAD) // 4
        at = VARIANTS + number * VARIANT_SIZE
        VARIANT.pack_into(self._bytes, at, key, self._halves[head], first, linked)
        self._halves[head] = number
