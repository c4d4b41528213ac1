"""The Python side of translation: what native code does not know yet, it asks here.

Blocks are written by :mod:`vdisk.vm.cpu.translation` from tables; this fills the tables in
(:mod:`vdisk.vm.cpu.known`), for each instruction once: it is decoded and lowered, and for every
variant of it (are its flags wanted, where do those come from that it reads) its records are made,
with handlers compiled for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.arena import Arena, ArenaFullError
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decode import Decoded, Mode, Op
from vdisk.vm.cpu.decoder import Decoder
from vdisk.vm.cpu.known import AT_ONCE, has_field
from vdisk.vm.cpu.records import RECORD, WIDE_RECORD
from vdisk.vm.cpu.translation import ASKING, BLOCK_LIMIT, LINKED, Question
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    Handlers = Callable[[Iterable[Shape]], dict[Shape, int]]

    class Asker(Protocol):
        """A vCPU, or whatever else can call routines."""

        def routine(self, name: str, *arguments: int) -> int: ...


AHEAD = 96
"""Bytes that are decoded for an answer."""


def block_end_shape(mode: Mode) -> Shape:
    """What goes on at an offset of the page (or just behind it)."""
    return Shape("block_end", address=str(mode.code), code=mode.code, flags=False)


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
        self._variants: dict[tuple[tuple[Shape, ...], int, bool], list[int]] = {}
        """Numbers of handlers by lowered shapes, the variant's key, and whether there is one more
        for a jump that follows its link."""
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
        number = self.arena.mode_number(mode)
        if number == len(self.modes):
            self.modes.append(mode)
            end, crossing = block_end_shape(mode), Shape("crossing", flags=False)
            self.arena.set_mode(
                mode,
                self._template(Op(end), self._number(end), 0),
                self._template(Op(crossing, wide=0), self._number(crossing), 0),
                1 if mode.step else BLOCK_LIMIT,
            )
        return number

    def expect(self, mode: Mode, offset: int, first: int) -> None:
        """Be asked for blocks at this place of a page that begin with this byte."""
        self.arena.expect(self.mode_number(mode), offset, first)

    def know_shapes(self, shapes: list[Shape]) -> None:
        """Give shapes their numbers, in order."""
        self._handlers(shapes)
        for shape in shapes:
            self._number(shape)

    def _number(self, shape: Shape) -> int:
        number = self._numbers.get(shape)
        if number is None:
            address = self._handlers([shape])[shape]
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
            asker.routine("lock_arena")
            self.arena.known.clear()
            asker.routine("unlock_arena")
        elif kind == Question.INSTRUCTION:
            self._learn(code, mode)
        else:
            assert kind == Question.VARIANT
            self._learn_variant(answer >> 8 & 0xFF_FFFF, answer >> 32 & 0xFFFF)

    def _learn(self, code: bytes, mode: Mode) -> None:
        """Put the instruction that these bytes begin with into the tables, and those behind it:
        where one is new, the next ones mostly are."""
        known, number, decoder = self.arena.known, self.mode_number(mode), self.decoder(mode)
        learned = 0
        for each in decoder.instructions(code):
            if learned and (learned == AT_ONCE or known.has(each, number)):
                break
            decoded = decoder.lowered(each)
            self._learn_instruction(each, number, decoded, mode)
            learned += 1
            if decoded.ends:
                break
        if not learned:
            known.add_incomplete(code, number)

    def _learn_instruction(self, code: bytes, number: int, decoded: Decoded, mode: Mode) -> None:
        linkable = decoded.jump is not None and may_link(decoded, mode)
        field = self.decoder(mode).field(code) if has_field(code) else None
        entry = self.arena.known.add(code, number, decoded, linkable=linkable, field=field)
        if not decoded.writes and not decoded.needs_known:  # there is but one way to execute it
            self._add_variant(entry, 0, decoded, mode)

    def _learn_variant(self, entry: int, key: int) -> None:
        known = self.arena.known
        code, number = known.instruction(entry)
        mode = self.modes[number]
        self._add_variant(entry, key, self.decoder(mode).lowered(code), mode)

    def _add_variant(self, entry: int, key: int, decoded: Decoded, mode: Mode) -> None:
        linkable = decoded.jump is not None and may_link(decoded, mode)
        wanted, before = bool(key & 1), (key >> 1) - 1
        shapes = tuple(op.shape for op in decoded.ops)
        numbers = self._variants.get((shapes, key, linkable))
        if numbers is None:
            made = [shape._replace(flags=wanted, known=before) for shape in shapes]
            if linkable:
                made.append(made[-1]._replace(variant=made[-1].variant | LINKED))
            self._handlers(made)
            numbers = self._variants[shapes, key, linkable] = [self._number(each) for each in made]
        records = [
            self._template(op, number, decoded.length)
            for op, number in zip(decoded.ops, numbers, strict=False)
        ]
        self.arena.known.add_variant(entry, key, records, numbers[-1] if linkable else 0)

    def _template(self, op: Op, handler: int, length: int) -> bytes:
        """The bytes of one record at offset 0, count 0, with the number of a handler."""
        tail = (0, length, op.scale, op.segment, 0, op.r2)
        if op.wide is not None:
            return WIDE_RECORD.pack(handler, op.r0, op.r1, op.base, op.index, op.wide, *tail)
        return RECORD.pack(handler, op.r0, op.r1, op.base, op.index, op.disp, op.imm, *tail)


def may_link(decoded: Decoded, mode: Mode) -> bool:
    """True for a jump that may follow a link within its page: where neither limits nor a narrower
    instruction pointer need a look."""
    return not mode.checked and not mode.step and decoded.ops[-1].shape.size == mode.code
