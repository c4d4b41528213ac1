"""From guest code to blocks of records.

A block is straight-line code of one page: it ends with a jump, an instruction that may change
what follows, the end of the page, or after :data:`BLOCK_LIMIT` instructions.  Two passes over it
decide what its handlers are: backwards, which results of arithmetic flags anybody can see (a
fault shows them all); forwards, which operation the flags of each reader come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.arena import Arena, Block
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decode import Decoded, Decoder, Mode, Op
from vdisk.vm.cpu.records import RECORD, WIDE_RECORD
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_LIMIT = 64
"""Instructions; a record counts them in one byte, and an interrupt waits for the end of a block."""


class Placed(NamedTuple):
    """A micro-op at its place: what its record will be made of."""

    op: Op
    shape: Shape
    offset: int
    length: int
    ending: int
    """How many instructions of the block end with it."""
    target: int | None


def block_end(mode: Mode, offset: int, count: int) -> Placed:
    """A record that goes on at an offset of the page (or just behind it)."""
    shape = Shape("block_end", address=str(mode.code), code=mode.code, flags=False)
    return Placed(Op(shape), shape, offset, 0, count, None)


class Translator:
    """Makes blocks for one machine."""

    def __init__(self, arena: Arena, handler: Callable[[list[Shape]], dict[Shape, int]]) -> None:
        self.arena = arena
        self._handlers = handler
        self._decoders: dict[Mode, Decoder] = {}
        self.translated = 0
        self.last_end = 0

    def decoder(self, mode: Mode) -> Decoder:
        """The decoder for a mode."""
        found = self._decoders.get(mode)
        if found is None:
            found = self._decoders[mode] = Decoder(mode)
        return found

    def decode_block(self, code: bytes, offset: int, mode: Mode) -> list[tuple[int, Decoded]]:
        """Instructions from ``offset`` to the end of their block, with their offsets.

        Empty where the first one reaches past the end of ``code``.
        """
        decoder = self.decoder(mode)
        block: list[tuple[int, Decoded]] = []
        limit = 1 if mode.step else BLOCK_LIMIT
        shadow = False
        while len(block) < limit and offset < PAGE_SIZE:
            decoded = decoder.decode(code, offset)
            if decoded is None:
                break
            block.append((offset, decoded))
            offset += decoded.length
            if decoded.ends or shadow:
                break
            shadow = decoded.shadow
        return block

    def place(self, block: list[tuple[int, Decoded]], mode: Mode) -> list[Placed]:
        """Decide on the shapes, and add the record that ends the block."""
        wanted = _live_flags(block)
        placed: list[Placed] = []
        known = -1
        for count, ((offset, decoded), live) in enumerate(zip(block, wanted, strict=True), 1):
            for op in decoded.ops:
                shape = op.shape._replace(
                    flags=bool(live & decoded.writes),
                    known=known if decoded.reads or _keeps_some(decoded) else -1,
                )
                target = None if op.jump is None else offset + decoded.length + op.jump
                placed.append(Placed(op, shape, offset, decoded.length, count, target))
            known = _known_after(decoded, known)
        offset, decoded = block[-1]
        if not decoded.ends or decoded.falls_through:
            placed.append(block_end(mode, offset + decoded.length, len(block)))
        return placed

    def emit(
        self, placed: list[Placed], mode: Mode, codes: int, page_number: int
    ) -> tuple[int, int]:
        """Write records; links that cannot be made yet lead to stubs.  (First, how many.)"""
        linked: list[tuple[int, int]] = []  # (place in the block, target offset)
        for place, item in enumerate(placed):
            if item.target is not None and _may_link(item, mode):
                linked.append((place, item.target))
                shape = item.shape._replace(variant=item.shape.variant | 0x100)
                placed[place] = item._replace(shape=shape)
        stubs = [
            block_end(mode, target, 0)
            for _, target in linked
            if not self.arena.entry(codes, target)
        ]
        every = [*placed, *stubs]
        handlers = self._handlers([item.shape for item in every])
        first = self.arena.append(b"".join(_pack(item, handlers[item.shape]) for item in every))
        stub = first + len(placed)
        waiting = self.arena.pages[page_number].waiting
        for place, target in linked:
            known = self.arena.entry(codes, target)
            if known:
                self.arena.set_link(first + place, known)
            else:
                self.arena.set_link(first + place, stub)
                waiting.setdefault((codes, target), []).append(first + place)
                stub += 1
        return first, len(every)

    def translate_once(self, code: bytes, offset: int, mode: Mode) -> int:
        """One instruction at ``offset`` of a page, from its bytes; the number of its first record.

        Nothing leads to it, and nothing drops it.
        """
        padded = bytes(offset) + code
        decoded = self.decoder(mode).decode(padded, offset)
        assert decoded is not None, "the bytes of a whole instruction"
        placed = self.place([(offset, decoded)], mode)
        handlers = self._handlers([item.shape for item in placed])
        return self.arena.append(b"".join(_pack(item, handlers[item.shape]) for item in placed))

    def translate_crossing(
        self, code: bytes, pages: tuple[int, int], offset: int, mode: Mode, guard: int
    ) -> int:
        """One instruction at the end of a page, whose last bytes are the second page's.

        ``guard``: address of the second page's code array.  Gives the offset of its end.
        """
        decoded = self.decoder(mode).decode(bytes(offset) + code, offset)
        assert decoded is not None, "the bytes of a whole instruction"
        shape = Shape("crossing", flags=False)
        check = Placed(Op(shape, wide=guard), shape, offset, decoded.length, 1, None)
        placed = [check, *self.place([(offset, decoded)], mode)]
        codes = self.arena.codes(pages[0], mode)
        first, count = self.emit(placed, mode, codes, pages[0])
        block = Block(first, count, codes, offset)
        self.install(block, pages[0])
        self.arena.pages[pages[1]].blocks.append(block)
        return offset + decoded.length

    def translate(self, code: bytes, page_number: int, offset: int, mode: Mode) -> bool:
        """Translate the block at ``offset`` of a page; False if it begins with half a one."""
        block = self.decode_block(code, offset, mode)
        if not block:
            return False
        codes = self.arena.codes(page_number, mode)
        first, count = self.emit(self.place(block, mode), mode, codes, page_number)
        self.install(Block(first, count, codes, offset), page_number)
        self.translated += len(block)
        self.last_end = block[-1][0] + block[-1][1].length
        return True

    def install(self, block: Block, page_number: int) -> None:
        """Let a block be found, by those too who wait for it."""
        page = self.arena.pages[page_number]
        page.blocks.append(block)
        self.arena.enter(block)
        for record in page.waiting.pop((block.codes, block.offset), ()):
            self.arena.set_link(record, block.first)


def _may_link(item: Placed, mode: Mode) -> bool:
    """In the page, and where neither limits nor a narrower instruction pointer need a look."""
    if item.target is None or mode.checked or mode.step:
        return False
    return 0 <= item.target < PAGE_SIZE and item.shape.size == mode.code


def _can_fault(decoded: Decoded) -> bool:
    """True if a fault could show the flags as they are before this instruction."""
    return any("m" in op.shape.operands for op in decoded.ops) or decoded.name in _FAULTING


_FAULTING = {
    *("push", "pop", "push_selector", "pusha", "popa", "leave", "enter", "call", "ret", "pushf"),
    *("movs", "stos", "lods", "scas", "cmps", "call_indirect", "div", "idiv", "aam", "xlat"),
    *("cli", "sti", "swapgs", "bound", "popf", "jmp_indirect"),
}


def _live_flags(block: list[tuple[int, Decoded]]) -> list[int]:
    """For each instruction, which flags that it leaves may be looked at later."""
    live = flags.ARITHMETIC
    result = []
    for _, decoded in reversed(block):
        result.append(live)
        live = (live & ~decoded.kills) | decoded.reads
        if _can_fault(decoded):
            live = flags.ARITHMETIC
    result.reverse()
    return result


def _keeps_some(decoded: Decoded) -> bool:
    """True for what changes some flags and keeps others."""
    return decoded.writes not in (0, flags.ARITHMETIC)


def _known_after(decoded: Decoded, known: int) -> int:
    if decoded.leaves >= 0:
        return decoded.leaves
    if decoded.leaves == -2:  # conditions leave what they worked out
        return 0 if known < 0 and decoded.name in {"jcc", "setcc", "cmovcc"} else known
    return -1


def _pack(item: Placed, handler: int) -> bytes:
    """The bytes of one record; links are set later."""
    op = item.op
    tail = (item.offset, item.length, op.scale, op.segment, item.ending, op.r2)
    if op.wide is not None:
        return WIDE_RECORD.pack(handler, op.r0, op.r1, op.base, op.index, op.wide, *tail)
    disp = op.disp
    if op.rip_relative:  # relative to this instruction; now to the page
        disp += item.offset
    return RECORD.pack(handler, op.r0, op.r1, op.base, op.index, disp, op.imm, *tail)
