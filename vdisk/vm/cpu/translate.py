"""From guest code to blocks of records.

A block is straight-line code of one page: it ends with a jump, an instruction that may change
what follows, the end of the page, or after :data:`BLOCK_LIMIT` instructions.  Two passes over it
decide what its handlers are: backwards, which results of arithmetic flags anybody can see (a
fault shows them all); forwards, which operation the flags of each reader come from.

An instruction's records depend on those two, on its bytes and on nothing else but its place, so
they are kept with the decoded instruction as bytes (:attr:`Decoded.records`); translating known
code is copying them and filling in offsets and counts.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.arena import Arena, Block, Span
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decode import Decoded, Decoder, Mode, Op
from vdisk.vm.cpu.records import PARAMS, RECORD, RECORD_SIZE, WIDE_RECORD
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Handlers = Callable[[Iterable[Shape]], dict[Shape, int]]
    Variant = tuple[bool, int]

BLOCK_LIMIT = 64
"""Instructions; a record counts them in one byte, and an interrupt waits for the end of a block."""

LINKED = 0x100
"""Added to the variant of a jump that follows its record's link."""

_OFF, _COUNT, _DISP = PARAMS["off"].offset, PARAMS["count"].offset, PARAMS["disp"].offset
_DISPLACEMENT = Struct("<i")


def block_end_shape(mode: Mode) -> Shape:
    """What goes on at an offset of the page (or just behind it)."""
    return Shape("block_end", address=str(mode.code), code=mode.code, flags=False)


class Translator:
    """Makes blocks for one machine."""

    def __init__(self, arena: Arena, handlers: Handlers) -> None:
        self.arena = arena
        self._handlers = handlers
        self._decoders: dict[Mode, Decoder] = {}
        self._ends: dict[Mode, bytes] = {}
        self.translated = 0
        self.last_end = 0

    def decoder(self, mode: Mode) -> Decoder:
        """The decoder for a mode."""
        found = self._decoders.get(mode)
        if found is None:
            found = self._decoders[mode] = Decoder(mode)
        return found

    # -- blocks --------------------------------------------------------------------------------

    def translate(self, code: bytes, page_number: int, offset: int, mode: Mode) -> bool:
        """Translate the block at ``offset`` of a page; False if it begins with half a one."""
        block = self.decoder(mode).decode_block(code, offset, 1 if mode.step else BLOCK_LIMIT)
        if not block:
            return False
        codes = self.arena.codes(page_number, mode)
        first, count = self._emit(block, offset, mode, codes, page_number)
        self._install(Block(first, count, codes, offset), page_number)
        self.translated += len(block)
        return True

    def translate_once(self, code: bytes, offset: int, mode: Mode) -> int:
        """One instruction at ``offset`` of a page, from its bytes; the number of its first record.

        Nothing leads to it, and nothing drops it.
        """
        decoded = self._whole(code, mode)
        buffer = bytearray()
        self._write(buffer, [decoded], offset, mode, link=False)
        return self.arena.append(bytes(buffer))

    def translate_crossing(
        self, code: bytes, pages: tuple[int, int], offset: int, mode: Mode, guard: int
    ) -> int:
        """One instruction at the end of a page, whose last bytes are the second page's.

        ``guard``: address of the second page's code array.  Gives the offset of its end.
        """
        decoded = self._whole(code, mode)
        codes = self.arena.codes(pages[0], mode)
        shape = Shape("crossing", flags=False)
        check = self._template(Op(shape, wide=guard), shape, decoded.length)
        first, count = self._emit([decoded], offset, mode, codes, pages[0], check)
        block = Block(first, count, codes, offset)
        self._install(block, pages[0])
        end = offset + decoded.length
        self.arena.pages[pages[1]].spans.append(Span(0, end - PAGE_SIZE, block))
        return end

    def _whole(self, code: bytes, mode: Mode) -> Decoded:
        (decoded,) = self.decoder(mode).decode_block(code, 0, 1)
        return decoded

    # -- records -------------------------------------------------------------------------------

    def _emit(
        self,
        block: list[Decoded],
        offset: int,
        mode: Mode,
        codes: int,
        page_number: int,
        check: bytes = b"",
    ) -> tuple[int, int]:
        """Put a block's records into the arena; links that cannot be made yet lead to stubs."""
        buffer = bytearray(check)
        if check:
            buffer[_OFF : _OFF + 2] = offset.to_bytes(2, "little")
            buffer[_COUNT] = 1
        linked = self._write(buffer, block, offset, mode, link=True)
        self.last_end = offset + sum(decoded.length for decoded in block)
        stubs = []
        for _, target in linked:
            if not self.arena.entry(codes, target):
                stubs.append(len(buffer) // RECORD_SIZE)
                self._write_end(buffer, mode, target, 0)
        first = self.arena.append(bytes(buffer))
        waiting = self.arena.pages[page_number].waiting
        for place, target in linked:
            known = self.arena.entry(codes, target)
            if not known:
                known = first + stubs.pop(0)
                waiting.setdefault((codes, target), []).append(first + place)
            self.arena.set_link(first + place, known)
        return first, len(buffer) // RECORD_SIZE

    def _write(
        self, buffer: bytearray, block: list[Decoded], offset: int, mode: Mode, *, link: bool
    ) -> list[tuple[int, int]]:
        """Append a block's records; gives the places of linked jumps with their targets."""
        linked: list[tuple[int, int]] = []
        known = -1
        for number, (decoded, live) in enumerate(zip(block, _live_flags(block), strict=True), 1):
            variant = (live & decoded.writes != 0, known if decoded.needs_known else -1)
            records = decoded.records.get(variant)
            if records is None:
                records = decoded.records[variant] = self._records(decoded, variant)
            at = len(buffer)
            buffer += records
            for place in range(at, len(buffer), RECORD_SIZE):
                buffer[place + _OFF] = offset & 0xFF
                buffer[place + _OFF + 1] = offset >> 8
                buffer[place + _COUNT] = number
            if decoded.placed:
                self._place(buffer, at, decoded, variant, offset)
            if decoded.jump is not None and link:
                target = offset + decoded.length + decoded.jump
                if may_link(decoded, target, mode):
                    linked.append((len(buffer) // RECORD_SIZE - 1, target))
                    buffer[-RECORD_SIZE:-24] = self._linked_handler(decoded, variant)
            if decoded.leaves >= 0:
                known = decoded.leaves
            elif decoded.leaves != KEEPS:
                known = -1
            elif known < 0 and decoded.is_condition:  # it leaves what it worked out
                known = 0
            offset += decoded.length
        if not decoded.ends or decoded.falls_through:
            self._write_end(buffer, mode, offset, len(block))
        return linked

    def _write_end(self, buffer: bytearray, mode: Mode, offset: int, count: int) -> None:
        """Append a record that goes on at an offset of the page."""
        record = self._ends.get(mode)
        if record is None:
            shape = block_end_shape(mode)
            record = self._ends[mode] = self._template(Op(shape), shape, 0)
        at = len(buffer)
        buffer += record
        buffer[at + _OFF : at + _OFF + 2] = offset.to_bytes(2, "little")
        buffer[at + _COUNT] = count

    def _place(
        self, buffer: bytearray, at: int, decoded: Decoded, variant: Variant, offset: int
    ) -> None:
        """Make displacements from the instruction ones from its page."""
        for op in decoded.ops:
            if op.rip_relative:
                _DISPLACEMENT.pack_into(buffer, at + _DISP, op.disp + offset)
            at += RECORD_SIZE

    def _records(self, decoded: Decoded, variant: Variant) -> bytes:
        """The records of an instruction, without what depends on its place."""
        wanted, known = variant
        shapes = [op.shape._replace(flags=wanted, known=known) for op in decoded.ops]
        self._handlers(shapes)
        return b"".join(
            self._template(op, shape, decoded.length)
            for op, shape in zip(decoded.ops, shapes, strict=True)
        )

    def _linked_handler(self, decoded: Decoded, variant: Variant) -> bytes:
        """The handler of a jump that follows its link."""
        shape = decoded.ops[-1].shape
        linked = shape._replace(flags=variant[0], known=variant[1], variant=shape.variant | LINKED)
        return self._handlers([linked])[linked].to_bytes(8, "little")

    def _template(self, op: Op, shape: Shape, length: int) -> bytes:
        """The bytes of one record at offset 0, count 0."""
        handler = self._handlers([shape])[shape]
        tail = (0, length, op.scale, op.segment, 0, op.r2)
        if op.wide is not None:
            return WIDE_RECORD.pack(handler, op.r0, op.r1, op.base, op.index, op.wide, *tail)
        return RECORD.pack(handler, op.r0, op.r1, op.base, op.index, op.disp, op.imm, *tail)

    def _install(self, block: Block, page_number: int) -> None:
        """Let a block be found, by those too who wait for it."""
        page = self.arena.pages[page_number]
        page.spans.append(Span(block.offset, min(self.last_end, PAGE_SIZE), block))
        self.arena.enter(block)
        for record in page.waiting.pop((block.codes, block.offset), ()):
            self.arena.set_link(record, block.first)


KEEPS = -2
"""``Decoded.leaves`` of what leaves the flags as they were."""


def may_link(decoded: Decoded, target: int, mode: Mode) -> bool:
    """In the page, and where neither limits nor a narrower instruction pointer need a look."""
    if mode.checked or mode.step:
        return False
    return 0 <= target < PAGE_SIZE and decoded.ops[-1].shape.size == mode.code


def _live_flags(block: list[Decoded]) -> list[int]:
    """For each instruction, which flags that it leaves may be looked at later."""
    live = flags.ARITHMETIC
    result = []
    for decoded in reversed(block):
        result.append(live)
        live = decoded.reads | (live & ~decoded.kills)
    result.reverse()
    return result
