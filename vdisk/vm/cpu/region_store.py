"""Regions of the second tier, kept between runs and found by what they were made from.

A region's code depends on the mode, on the bytes of its blocks and on where in their page those
stand.  That is its label in the cache::

    code (1) | stack (1) | checked, step, aligned (1) | 0 (1) | head (2) | blocks (2)
    first bytes (8) | start and end of each block (2 + 2) | the blocks' bytes

A block that is translated is looked up by its place in its page and the bytes that stand there; all
bytes are compared before the region is used.  A kernel may be somewhere else in memory each time.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from struct import Struct, error
from typing import TYPE_CHECKING

from vdisk.vm.cpu.cache import CodeCache
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.hot import SYMBOL
from vdisk.vm.cpu.linker import CodeFullError, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.cpu.linker import CodeMemory
    from vdisk.vm.cpu.orders import CompiledRegion, RegionOrder

KEY_BYTES = 8
"""From a region's beginning on; most regions are told apart by them."""
MOST_ALIKE = 16
"""Regions that begin with the same bytes at the same place: comparing them all would take long."""
RESERVED = 64 << 20
"""Code memory that regions leave for handlers."""

_HEAD = Struct("<BBBBHH")
_SPAN = Struct("<HH")


def key_bytes(content: bytes, offset: int) -> bytes:
    """What a block at an offset of a page is looked up by."""
    return content[offset : offset + KEY_BYTES].ljust(KEY_BYTES, b"\0")


@dataclass(slots=True, eq=False)
class KeptRegion:
    """One region."""

    mode: Mode
    head: int
    """Where in the page it is entered."""
    first: bytes
    """What it is looked up by."""
    spans: tuple[tuple[int, int], ...]
    """Bytes [start, end) of each block, the first block's first."""
    blocks: tuple[bytes, ...]
    """What stands there."""
    code: Callable[[], bytes | None]
    """Its packed code; None if that is damaged."""
    address: int = field(default=0)
    """Where it was put in this process."""

    @classmethod
    def of(cls, order: RegionOrder, compiled: CompiledRegion) -> KeptRegion:
        """What came of an order."""
        blocks = tuple(order.content[start:end] for start, end in compiled.spans)
        first = key_bytes(order.content, order.head)
        return cls(order.mode, order.head, first, compiled.spans, blocks, lambda: compiled.code)

    @classmethod
    def from_label(cls, label: bytes, code: Callable[[], bytes | None]) -> KeptRegion:
        """The region that a label describes; raises :class:`ValueError`."""
        try:
            bits, stack, flags, _, head, count = _HEAD.unpack_from(label)
            first = label[_HEAD.size : _HEAD.size + KEY_BYTES]
            at = _HEAD.size + KEY_BYTES + count * _SPAN.size
            spans = tuple(_SPAN.iter_unpack(label[_HEAD.size + KEY_BYTES : at]))
        except error as problem:
            raise ValueError(str(problem)) from None
        blocks = []
        for start, end in spans:
            blocks.append(label[at : at + end - start])
            at += end - start
        mode = Mode(bits, stack, *(bool(flags >> bit & 1) for bit in range(3)))
        if at != len(label) or not spans or spans[0][0] != head:
            raise ValueError("not the label of a region")
        return cls(mode, head, first, spans, tuple(blocks), code)

    def label(self) -> bytes:
        """What :meth:`from_label` takes."""
        mode = self.mode
        flags = mode.checked | mode.step << 1 | mode.aligned << 2
        head = _HEAD.pack(mode.code, mode.stack, flags, 0, self.head, len(self.spans))
        spans = [_SPAN.pack(*span) for span in self.spans]
        return b"".join([head, self.first, *spans, *self.blocks])

    def matches(self, content: bytes) -> bool:
        """True if it may be used in a page of this content."""
        return all(
            content[start:end] == block
            for (start, end), block in zip(self.spans, self.blocks, strict=True)
        )


class RegionStore:
    """The regions that this process knows; used by several machines and threads."""

    def __init__(self, memory: CodeMemory, directory: str | None, digest: str) -> None:
        self._memory = memory
        self._cache = CodeCache(directory, f"regions-{digest}")
        self.known: dict[tuple[Mode, int, bytes], list[KeptRegion]] = {}
        """By mode, place of the head, and first bytes."""
        for entry in self._cache.load():
            with suppress(ValueError):
                self._remember(KeptRegion.from_label(entry.label, entry.code))

    def _remember(self, kept: KeptRegion) -> KeptRegion:
        """Let a region be found; of those made from the same bytes the last."""
        alike = self.known.setdefault((kept.mode, kept.head, kept.first), [])
        others = [each for each in alike if (each.spans, each.blocks) != (kept.spans, kept.blocks)]
        alike[:] = [kept, *others[: MOST_ALIKE - 1]]
        return kept

    def keep(self, kept: KeptRegion) -> KeptRegion:
        """Add a region that was compiled, for this run and later ones."""
        self._cache.append(kept.label(), kept.code() or b"")
        return self._remember(kept)

    def candidates(self, mode: Mode, offset: int, first: bytes) -> Sequence[KeptRegion]:
        """What may be known for a block at ``offset`` of its page; see :func:`key_bytes`."""
        return self.known.get((mode, offset, first), ())

    def address(self, kept: KeptRegion) -> int:
        """Where a region's code is, put there now if need be; 0 if that is not possible."""
        if not kept.address:
            code = kept.code()
            if code is None:
                return 0
            added = Piece.unpack(code)
            try:
                kept.address = self._memory.add(added, RESERVED) + added.symbols[SYMBOL]
            except CodeFullError:
                return 0
        return kept.address
