"""The Python side of translation: what native code does not know yet, it asks here.

Blocks are written by :mod:`vdisk.vm.cpu.translation` from tables; this fills the tables in
(:mod:`vdisk.vm.cpu.known`), for each instruction once: it is decoded and lowered, and for every
variant of it (are its flags wanted, where do those come from that it reads) its records are made,
with handlers compiled for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import iced_x86 as iced

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.arena import Arena, ArenaFullError
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decode import WIDE, Form, Mode, Pattern
from vdisk.vm.cpu.decoder import PLACES, Decoder
from vdisk.vm.cpu.known import AT_ONCE, FIELD_TAG, has_field, key_of
from vdisk.vm.cpu.translation import ASKING, BLOCK_LIMIT, KEEPS, LINKED, Question
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    Handlers = Callable[[Iterable[Shape]], dict[Shape, int]]

    class Asker(Protocol):
        """A vCPU, or whatever else can call routines."""

        index: int

        def routine(self, name: str, *arguments: int) -> int: ...


NOTHING = iced.Instruction()
AHEAD = 96
"""Bytes that are decoded for an answer."""


def block_end_shape(mode: Mode) -> Shape:
    """What goes on at an offset of the page (or just behind it)."""
    return Shape("block_end", address=str(mode.code), code=mode.code, flags=False)


def mode_shapes(mode: Mode) -> tuple[Shape, Shape]:
    """What every mode needs: the ends of blocks, and instructions that are on two pages."""
    return block_end_shape(mode), Shape("crossing", flags=False)


class Learned(NamedTuple):
    """What an entry was made from."""

    form: Form
    values: list[list[int]]
    """Of the parameters of each micro-op."""
    length: int


class Translator:
    """Makes blocks for one machine.

    ``handlers`` makes sure that handlers exist, and says what a record holds for each shape;
    ``code_bytes`` reads guest memory; ``protect`` has writes to a page noticed from now on.
    """

    def __init__(
        self,
        arena: Arena,
        handlers: Handlers,
        code_bytes: Callable[[int, int], bytes],
        protect: Callable[[int], None],
    ) -> None:
        self.arena = arena
        self._handlers, self._code_bytes, self._protect = handlers, code_bytes, protect
        self._decoders: dict[Mode, Decoder] = {}
        self._numbers: dict[Shape, int] = {}
        self._mode_numbers: dict[Mode, int] = {}
        self._lately: dict[int, Learned] = {}
        """What the last answer learned, by entries: the variants that are asked for next."""
        self.shapes: list[Shape] = []
        """By the numbers that templates have for their handlers."""
        self.modes: list[Mode] = []
        """By their numbers."""

    def decoder(self, mode: Mode) -> Decoder:
        """The decoder for a mode."""
        found = self._decoders.get(mode)
        if found is None:
            found = self._decoders[mode] = Decoder(mode)
        return found

    def mode_number(self, mode: Mode) -> int:
        """The arena's number for a mode, which is ready to be translated for then."""
        number = self._mode_numbers.get(mode)
        if number is None:
            number = self._mode_numbers[mode] = self.arena.mode_number(mode)
            self.modes.append(mode)
            self._set_mode(mode)
        return number

    def _set_mode(self, mode: Mode) -> None:
        end, crossing = mode_shapes(mode)
        self.arena.set_mode(
            mode,
            self._template(Pattern(end), self._number(end)),
            self._template(Pattern(crossing, wide=0), self._number(crossing)),
            1 if mode.step else BLOCK_LIMIT,
        )

    def expect(self, mode: Mode, offset: int, mark: int) -> None:
        """Be asked for blocks at this place of a page that have this mark."""
        self.arena.expect(self.mode_number(mode), offset, mark)

    def know_shapes(self, shapes: list[Shape]) -> None:
        """Give shapes their numbers, in order."""
        addresses = self._handlers(shapes)
        for shape in shapes:
            if shape not in self._numbers:
                self._add_number(shape, addresses[shape])

    def _number(self, shape: Shape) -> int:
        number = self._numbers.get(shape)
        return self._add_number(shape, self._handlers([shape])[shape]) if number is None else number

    def _add_number(self, shape: Shape, address: int) -> int:
        number = self._numbers[shape] = self.arena.known.add_handler(address)
        self.shapes.append(shape)
        return number

    # -- blocks --------------------------------------------------------------------------------

    def translate(self, asker: Asker, physical: int, mode: Mode) -> int:
        """The record of the block at a physical address; 0 if it begins with half an instruction.

        Raises :class:`ArenaFullError`.
        """
        number = self.mode_number(mode)
        start = physical & -PAGE_SIZE
        while True:
            answer = asker.routine("translate_page", physical, number)
            if not answer & ASKING:
                return answer
            kind = answer & 0xFF
            if kind == Question.HALF:
                return 0
            if kind == Question.PROTECTION:
                self._protect(physical >> PAGE_SHIFT)
            elif kind == Question.INSTRUCTION:
                offset = answer >> 8 & 0xFFFF
                length = min(PAGE_SIZE - offset, AHEAD)
                code = self._code_bytes(start + offset, length)
                self._answer(asker, answer, code, mode)
            else:
                self._answer(asker, answer, b"", mode)

    def translate_once(self, asker: Asker, code: bytes, physical: int, mode: Mode) -> int:
        """One instruction from its bytes; nothing leads to it, and nothing drops it.

        0 if the bytes are not all of it.
        """
        return self._from_bytes(asker, code, physical, mode, 0, 0)

    def translate_crossing(
        self, asker: Asker, code: bytes, pages: tuple[int, int], mode: Mode, guard: int
    ) -> int:
        """One instruction at the end of a page, whose last bytes are the second page's.

        ``pages``: its physical address, and the number of the second page; ``guard``: address of
        the second page's code array.
        """
        return self._from_bytes(asker, code, pages[0], mode, pages[1] + 1, guard)

    def _from_bytes(
        self, asker: Asker, code: bytes, physical: int, mode: Mode, second: int, guard: int
    ) -> int:
        low, high = (int.from_bytes(part, "little") for part in (code[:8], code[8:]))
        how = self.mode_number(mode) | len(code) << 8
        while True:
            answer = asker.routine("translate_bytes", low, high, physical, how, second, guard)
            if not answer & ASKING:
                return answer
            if answer & 0xFF == Question.HALF:
                return 0
            self._answer(asker, answer, code, mode)

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, asker: Asker, answer: int, code: bytes, mode: Mode) -> None:
        kind = answer & 0xFF
        if kind == Question.ROOM:
            raise ArenaFullError
        if self.arena.known.full:
            self._forget(asker)
        elif kind == Question.INSTRUCTION:
            self._learn(code, mode)
        else:
            assert kind == Question.VARIANTS
            self._learn_variants(self.arena.asked(asker.index, answer >> 8 & 0xFF))

    def _forget(self, asker: Asker) -> None:
        """Begin anew with nothing known.  What was translated stays: records have addresses."""
        asker.routine("lock_arena")
        self.arena.known.clear()
        for numbers in (self._lately, self._numbers, self.shapes, self._decoders):
            numbers.clear()
        for mode in self.modes:
            self._set_mode(mode)
        asker.routine("unlock_arena")

    def _learn(self, code: bytes, mode: Mode) -> None:
        """Put the instruction that these bytes begin with into the tables, and what is new of its
        block."""
        number, decoder = self.mode_number(mode), self.decoder(mode)
        self._lately.clear()
        forms: list[Form] = []
        entries = []
        for each, instruction in decoder.instructions(code):
            forms.append(decoder.form(each, instruction))
            entries.append(self._learn_instruction(each, instruction, forms[-1], number))
            if forms[-1].ends or len(forms) == AT_ONCE:
                break
        keys = likely_variants(forms)
        self._learn_variants(
            [
                (entry, key)
                for entry, key in zip(entries, keys, strict=True)
                if entry and key is not None
            ]
        )
        if not forms:
            self.arena.known.add_incomplete(code, number)

    def learn(self, code: bytes, mode: Mode, keys: Iterable[int]) -> None:
        """Put instructions, one behind the other, into the tables, each with these variants."""
        number, decoder = self.mode_number(mode), self.decoder(mode)
        self._lately.clear()
        for each, instruction in decoder.instructions(code):
            self._learn_instruction(each, instruction, decoder.form(each, instruction), number)
        self._learn_variants([(entry, key) for entry in self._lately for key in keys])
        self._lately.clear()

    def _learn_instruction(
        self, code: bytes, instruction: iced.Instruction, form: Form, mode: int
    ) -> int:
        """Make an entry for an instruction; 0 if there is one already."""
        known, length = self.arena.known, len(code)
        kept, tag, left_open = code, mode, None
        if has_field(code):
            left_open = self.decoder(self.modes[mode]).field(code, instruction, form)
            if left_open is not None:
                kept, tag = code[:-4], mode | FIELD_TAG
        key = key_of(kept, tag, length)
        place = known.place_of(key)
        if known.entry_at(place):
            return 0
        values = [each.values(instruction) for each in form.patterns]
        jump, field = values[-1][WIDE] if form.jumps else 0, 0
        if left_open is not None:
            parameter, op = left_open
            number = int.from_bytes(code[-4:], "little", signed=True)
            jump, field = values[op][PLACES[parameter]] - number, parameter | op << 8
        entry = known.add(place, key, form, jump, field)
        known.add_length(code, mode, len(kept))
        self._lately[entry] = Learned(form, values, length)
        return entry

    def _learn_variants(self, asked: list[tuple[int, int]]) -> None:
        """Put variants into the tables: their entries, and their keys."""
        found = [(self._lately.get(entry) or self._remember(entry), key) for entry, key in asked]
        new = [(each.form, key) for each, key in found if key not in each.form.handlers]
        if new:
            self._make_handlers(new)
        add_variant = self.arena.known.add_variant
        for (entry, key), ((form, values, length), _) in zip(asked, found, strict=True):
            numbers = form.handlers[key]
            records = [
                pattern.record(number, each, length)
                for number, pattern, each in zip(numbers, form.patterns, values, strict=False)
            ]
            add_variant(entry, key, records, numbers[-1] if form.links else 0)

    def _make_handlers(self, variants: list[tuple[Form, int]]) -> None:
        """Have the handlers of variants, all of them at once, where they are not there yet."""
        wanted = [variant_shapes(form, key) for form, key in variants]
        self._handlers(shape for shapes in wanted for shape in shapes)
        for (form, key), shapes in zip(variants, wanted, strict=True):
            form.handlers[key] = [self._number(shape) for shape in shapes]

    def _remember(self, entry: int) -> Learned:
        """What an entry was made from, where another answer made it."""
        code, number = self.arena.known.instruction(entry)
        decoder = self.decoder(self.modes[number])
        ((_, instruction),) = decoder.instructions(code)
        form = decoder.form(code, instruction)
        return Learned(form, [each.values(instruction) for each in form.patterns], len(code))

    def _template(self, pattern: Pattern, handler: int) -> bytes:
        """A record of what is no instruction, with the number of a handler."""
        pattern.settle()
        return pattern.record(handler, pattern.values(NOTHING), 0)


def likely_variants(forms: list[Form]) -> list[int | None]:
    """The keys of the variants that the last instructions of a block will be asked for; None where
    that depends on those before them.

    It only saves questions: :mod:`vdisk.vm.cpu.translation` works out what is needed.
    """
    wanted, live = [], flags.ARITHMETIC
    for form in reversed(forms):
        wanted.append(live & form.writes != 0)
        live = (live & ~form.kills) | form.reads
    keys: list[int | None] = []
    before: int | None = None
    for form, is_wanted in zip(forms, reversed(wanted), strict=True):
        told = 0 if not form.needs_known else None if before is None else before + 1
        keys.append(None if told is None else told << 1 | is_wanted)
        if form.leaves != KEEPS:
            before = max(form.leaves, -1)
        elif form.is_condition and before == -1:
            before = 0
    return keys


def variant_shapes(form: Form, key: int) -> list[Shape]:
    """What the handlers of a variant are made for, and behind them, where instructions of the form
    are linked, the last one's with a link.

    ``key``: whether its flags are wanted (bit 0), and one more than the ``cc_op`` that is known
    before it.
    """
    wanted, before = bool(key & 1), (key >> 1) - 1
    shapes = [each.shape._replace(flags=wanted, known=before) for each in form.patterns]
    if form.links:
        shapes.append(shapes[-1]._replace(variant=shapes[-1].variant | LINKED))
    return shapes
