"""Regions of the second tier, kept between runs and found by what they were made from.

A region's code depends on the mode, on the bytes of its blocks and on where in their page those
stand.  That is its label in the cache::

    code (1) | stack (1) | checked, step, aligned (1) | level (1)
    how many blocks (2) | entries (2) | fields (2)
    start and end of each block (2 + 2) | place of each entry (2) | place of each field (2)
    the blocks' bytes

*Fields* are 32 bits of an instruction that look like an address of the kernel.  Where all of them
are larger or smaller by the same number, the region is right as well: they are filled in when its
code is put in place.

A block that is translated is looked up among the entries of all, by its place in its page and its
first bytes; all bytes are compared before the region is used.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from struct import Struct, error
from typing import TYPE_CHECKING

from vdisk.vm.cpu.arena import mark
from vdisk.vm.cpu.cache import CodeCache
from vdisk.vm.cpu.compiler import Level
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.linker import CodeFullError, LinkError, Piece
from vdisk.vm.cpu.region_builder import BASE, SYMBOL
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.cpu.linker import CodeMemory
    from vdisk.vm.cpu.orders import CompiledRegion, RegionOrder

MOST_ALIKE = 32
"""Regions that begin alike at the same place: comparing them all would take long."""
MOST_COPIES = 4
"""Of one region, with different numbers in its fields."""
RESERVED = 64 << 20
"""Code memory that regions leave for handlers."""
FIELD_SIZE = 4

_HEAD = Struct("<BBBBHHH")
_SPAN = Struct("<HH")
_PLACE = Struct("<H")
_NUMBER = Struct("<i")


@dataclass(slots=True, eq=False)
class KeptRegion:
    """One region."""

    mode: Mode
    spans: tuple[tuple[int, int], ...]
    """Bytes [start, end) of each block."""
    entries: tuple[int, ...]
    """Where in the page it is entered."""
    fields: tuple[int, ...]
    """Where in the page numbers stand that may be others."""
    blocks: tuple[bytes, ...]
    """What stands there."""
    code: Callable[[], bytes | None]
    """Its packed code; None if that is damaged."""
    level: Level = Level.BEST
    addresses: dict[int, int] = field(default_factory=dict)
    """Where it was put in this process, by the number in the first field (0: without fields)."""
    _differences: tuple[int, ...] = field(init=False)
    _masked: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._differences, self._masked = (), self.blocks
        if not self.fields:
            return
        content = bytearray(PAGE_SIZE)
        for (start, end), block in zip(self.spans, self.blocks, strict=True):
            content[start:end] = block
        numbers = self._numbers(bytes(content))
        self._differences = tuple(number - numbers[0] for number in numbers)
        self._masked = self._blocks_of(bytes(content))

    def _numbers(self, content: bytes) -> list[int]:
        return [_NUMBER.unpack_from(content, place)[0] for place in self.fields]

    def _blocks_of(self, content: bytes) -> tuple[bytes, ...]:
        """The blocks in a page, without what stands in fields."""
        if self.fields:
            masked = bytearray(content)
            for place in self.fields:
                masked[place : place + FIELD_SIZE] = bytes(FIELD_SIZE)
            content = bytes(masked)
        return tuple(content[start:end] for start, end in self.spans)

    @classmethod
    def of(cls, order: RegionOrder, compiled: CompiledRegion) -> KeptRegion:
        """What came of an order."""
        spans, entries, fields, code = compiled
        blocks = tuple(order.content[start:end] for start, end in spans)
        return cls(order.mode, spans, entries, fields, blocks, lambda: code, order.level)

    @classmethod
    def from_label(cls, label: bytes, code: Callable[[], bytes | None]) -> KeptRegion:
        """The region that a label describes; raises :class:`ValueError`."""
        try:
            bits, stack, flags, number, count, *more = _HEAD.unpack_from(label)
            level = Level(number)
            after = _HEAD.size + count * _SPAN.size
            at = after + sum(more) * _PLACE.size
            spans = tuple(_SPAN.iter_unpack(label[_HEAD.size : after]))
            places = tuple(place for (place,) in _PLACE.iter_unpack(label[after:at]))
            entries, fields = places[: more[0]], places[more[0] :]
        except error as problem:
            raise ValueError(str(problem)) from None
        blocks = []
        for start, end in spans:
            blocks.append(label[at : at + end - start])
            at += end - start
        mode = Mode(bits, stack, *(bool(flags >> bit & 1) for bit in range(3)))
        inside = all(place <= PAGE_SIZE - FIELD_SIZE for place in fields)
        right = all(start < end <= PAGE_SIZE for start, end in spans)
        right = right and {start for start, _ in spans}.issuperset(entries)
        if at != len(label) or not entries or not right or not inside:
            raise ValueError("not the label of a region")
        return cls(mode, spans, entries, fields, tuple(blocks), code, level)

    def label(self) -> bytes:
        """What :meth:`from_label` takes."""
        mode = self.mode
        flags = mode.checked | mode.step << 1 | mode.aligned << 2
        counts = len(self.spans), len(self.entries), len(self.fields)
        head = _HEAD.pack(mode.code, mode.stack, flags, self.level, *counts)
        spans = [_SPAN.pack(*span) for span in self.spans]
        places = [_PLACE.pack(place) for place in (*self.entries, *self.fields)]
        return b"".join([head, *spans, *places, *self.blocks])

    def places(self) -> list[tuple[Mode, int, int]]:
        """What it is looked up by: its entries, and the marks of the blocks there."""
        beginnings = zip(self.spans, self.blocks, strict=True)
        marks = {start: mark(block) for (start, _), block in beginnings}
        return [(self.mode, entry, marks[entry]) for entry in self.entries]

    def is_like(self, other: KeptRegion) -> bool:
        """True if it may be used wherever the other one may."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        return self.spans, self.entries, self.fields, self._differences, self._masked

    def base(self, content: bytes) -> int | None:
        """What stands in the first field of a page (0: there are none); None if it does not fit."""
        if self._blocks_of(content) != self._masked:
            return None
        numbers = self._numbers(content)
        first = numbers[0] if numbers else 0
        same = tuple(number - first for number in numbers) == self._differences
        return first if same else None


class RegionStore:
    """The regions that this process knows; used by several machines and threads."""

    def __init__(self, memory: CodeMemory, directory: str | None, digest: str) -> None:
        self._memory = memory
        self._cache = CodeCache(directory, f"regions-{digest}")
        self.known: dict[tuple[Mode, int, int], list[KeptRegion]] = {}
        """By mode, place of an entry, and mark of the block there."""
        self.quick: dict[int, KeptRegion] = {}
        """By the address of their code: those that may be made better."""
        for entry in self._cache.load():
            with suppress(ValueError):
                self._remember(KeptRegion.from_label(entry.label, entry.code))

    def _remember(self, kept: KeptRegion) -> KeptRegion:
        """Let a region be found; of those made from the same bytes the best, or the last.  It."""
        for key in kept.places():
            alike = self.known.setdefault(key, [])
            for each in alike:
                if each.level > kept.level and each.is_like(kept):
                    return each
            others = [each for each in alike if not each.is_like(kept)]
            alike[:] = [kept, *others[: MOST_ALIKE - 1]]
        return kept

    def keep(self, kept: KeptRegion) -> KeptRegion:
        """Add a region that was compiled, for this run and later ones."""
        self._cache.append(kept.label(), kept.code() or b"")
        return self._remember(kept)

    def candidates(self, mode: Mode, offset: int, code: bytes) -> Sequence[KeptRegion]:
        """What may be known for a block at ``offset`` of its page, where this code stands (as much
        as there is up to the page's end, or a few bytes)."""
        short = self.known.get((mode, offset, mark(code[:1])), [])
        return [*self.known.get((mode, offset, mark(code)), ()), *short] if len(code) > 1 else short

    def address(self, kept: KeptRegion, base: int) -> int:
        """Where a region's code is, put there now if need be; 0 if that is not possible.

        ``base``: what :meth:`KeptRegion.base` gave.
        """
        found = kept.addresses.get(base)
        if found is not None:
            return found
        code = kept.code()
        if code is None or len(kept.addresses) >= MOST_COPIES:
            return 0
        added = Piece.unpack(code)
        try:
            start = self._memory.add(added, RESERVED, {BASE: base})
        except (CodeFullError, LinkError):
            return 0
        address = kept.addresses[base] = start + added.symbols[SYMBOL]
        if kept.level is Level.QUICK:
            self.quick[address] = kept
        return address
