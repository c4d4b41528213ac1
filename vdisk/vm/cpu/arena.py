"""Where translations live: the arena of records, and for each page of code what is in it.

For each physical page and :class:`~vdisk.vm.cpu.decode.Mode` there is a *code array* with an
element for each byte of the page: the number of the record where a translation of that address
begins, or 0.  The TLB's code entries point to code arrays, so native code finds the target of any
jump by itself.

A store into bytes that were translated (``code_masks`` has a bit for each 64 bytes of a page)
drops the blocks that were made from them: their entries are emptied and all their records become
``stale``, which looks its address up again; so whoever is executing them stops at an instruction.
A region of the second tier that such a block is part of gives way to the first tier again.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu.records import RECORD_SIZE
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.memory import GuestMemory

ARENA_RECORDS = 8 << 20
"""256 MiB of address space: more than ten times what booting a distribution translates."""
CODE_ARRAYS = 16384
"""Pages times modes; each array is 16 KiB of address space."""
WHOLE_PAGE = (1 << 64) - 1
ARRAY_SIZE = PAGE_SIZE * 4

_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


class Mapping:
    """Zeroed memory that costs nothing until it is touched."""

    def __init__(self, size: int) -> None:
        self.mapping = mmap.mmap(-1, size, flags=_RESERVE)
        self.view = memoryview(self.mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))

    def clear(self) -> None:
        """All zeroes again; the host has its memory back."""
        self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(slots=True)
class Block:
    """One translation: its records, and the entry that leads to it."""

    first: int
    count: int
    codes: int
    """Number of the code array that has its entry."""
    offset: int


class Span(NamedTuple):
    """The bytes [start, end) of a page that a block was made from."""

    start: int
    end: int
    block: Block


class HotRegion(NamedTuple):
    """A region whose function is the handler of ``record``, in place of ``handler``."""

    record: int
    handler: int
    spans: tuple[tuple[int, int], ...]

    def touches(self, start: int, end: int) -> bool:
        """True if the region was made from any of these bytes."""
        return any(first < end and start < last for first, last in self.spans)


@dataclass(slots=True)
class CodePage:
    """What was made from one physical page."""

    arrays: dict[Mode, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    regions: list[HotRegion] = field(default_factory=list)
    dropped: int = 0
    """How often something in it was dropped."""
    waiting: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """By (code array, offset): records whose link awaits a translation there."""


class ArenaFullError(Exception):
    """No room: everything has to be dropped (by whoever knows that nobody is executing it)."""


class Arena:
    """Records, code arrays and the tables that native code reads."""

    def __init__(self, memory: GuestMemory) -> None:
        pages = memory.top >> PAGE_SHIFT
        self._records = Mapping(ARENA_RECORDS * RECORD_SIZE)
        self._arrays = Mapping(CODE_ARRAYS * ARRAY_SIZE)
        self._masks = Mapping(pages * 8)
        self.address, self.masks_address = self._records.address, self._masks.address
        self.bytes = self._records.view
        self._words = self._records.view.cast("Q")
        self._codes = self._arrays.view.cast("I")
        self._mask_words = self._masks.view.cast("Q")
        self._pages_size = pages * 8
        self._tables: dict[Mode, Mapping] = {}
        self.pages: dict[int, CodePage] = {}
        self.next_record = 1  # 0 means "none" in a code array
        self._next_array = 0
        self.generation = 0
        """How often everything was dropped."""

    def clear(self) -> None:
        """Drop everything.  Nobody executes records, or knows the number of one, any more."""
        for page in self.pages.values():
            page.dropped += 1  # for whoever compiles a region of it now
        self.pages.clear()
        for mapping in (self._records, self._arrays, self._masks, *self._tables.values()):
            mapping.clear()
        self.next_record, self._next_array = 1, 0
        self.generation += 1

    def table_address(self, mode: Mode) -> int:
        """The table of code arrays for a mode: an address for each physical page, or 0."""
        table = self._tables.get(mode)
        if table is None:
            table = self._tables[mode] = Mapping(self._pages_size)
        return table.address

    def codes(self, page_number: int, mode: Mode) -> int:
        """The number of the page's code array for ``mode``; made if there is none."""
        page = self.pages.setdefault(page_number, CodePage())
        number = page.arrays.get(mode)
        if number is None:
            if self._next_array >= CODE_ARRAYS:
                raise ArenaFullError
            number = page.arrays[mode] = self._next_array
            self._next_array += 1
            self.table_address(mode)
            where = self._arrays.address + number * ARRAY_SIZE
            self._tables[mode].view[page_number * 8 : page_number * 8 + 8] = where.to_bytes(
                8, "little"
            )
        return number

    def codes_address(self, number: int) -> int:
        """Where native code finds a code array."""
        return self._arrays.address + number * ARRAY_SIZE

    def number_of(self, address: int) -> int:
        """The code array that begins at an address."""
        return (address - self._arrays.address) // ARRAY_SIZE

    def mask(self, page_number: int) -> int:
        """Which 64-byte pieces of a page are translated."""
        return self._mask_words[page_number]

    def entry(self, codes: int, offset: int) -> int:
        """The record that a code array names for an offset, or 0."""
        return self._codes[codes * PAGE_SIZE + offset]

    def enter(self, block: Block) -> None:
        """Let a block be found."""
        self._codes[block.codes * PAGE_SIZE + block.offset] = block.first

    def append(self, records: bytes) -> int:
        """Put records at the end; the number of the first."""
        first, count = self.next_record, len(records) // RECORD_SIZE
        if first + count > ARENA_RECORDS:
            raise ArenaFullError
        self.bytes[first * RECORD_SIZE : (first + count) * RECORD_SIZE] = records
        self.next_record = first + count
        return first

    def record_address(self, number: int) -> int:
        """Where a record is."""
        return self.address + number * RECORD_SIZE

    def wide(self, record: int) -> int:
        """The 64-bit parameter of a record."""
        return self._words[record * 4 + 2]

    def handler(self, record: int) -> int:
        """What a record's handler is."""
        return self._words[record * 4]

    def set_handler(self, record: int, handler: int) -> None:
        """Give a record another handler, at once for everybody."""
        self._words[record * 4] = handler

    def set_link(self, record: int, target: int) -> None:
        """Let a jump's record lead to another record."""
        self._words[record * 4 + 2] = self.record_address(target)

    def mark_page(self, page_number: int) -> int:
        """Take all of a page for translated, until :meth:`mark_code` says what is; gives its mask.

        So a store that happens while the code is read is noticed in any case.
        """
        before = self._mask_words[page_number]
        self._mask_words[page_number] = WHOLE_PAGE
        return before

    def mark_code(self, page_number: int, before: int, start: int, end: int) -> None:
        """Note that bytes [start, end) of a page are translated, beside what its mask was."""
        self._mask_words[page_number] = before | _pieces(start, end)

    def touches_code(self, gpa: int, length: int) -> list[tuple[int, int, int]]:
        """Where a write may have changed translated code: (page, start, end) in each page."""
        first, last = gpa >> PAGE_SHIFT, (gpa + length - 1) >> PAGE_SHIFT
        if last - first > len(self.pages):
            pages = [page for page in self.pages if first <= page <= last]
        else:
            pages = [page for page in range(first, last + 1) if page in self.pages]
        return [
            (
                page,
                max(gpa - (page << PAGE_SHIFT), 0),
                min(gpa + length - (page << PAGE_SHIFT), PAGE_SIZE),
            )
            for page in pages
        ]

    def drop(self, page_number: int, stale: int, start: int = 0, end: int = PAGE_SIZE) -> bool:
        """Forget what was made from bytes [start, end) of a page; True if there was anything.

        ``stale`` is the handler of dead records.
        """
        page = self.pages[page_number]
        dead = [span for span in page.spans if span.start < end and start < span.end]
        if not dead:
            return False
        for region in page.regions:
            if region.touches(start, end):
                self.set_handler(region.record, region.handler)
        page.regions = [each for each in page.regions if not each.touches(start, end)]
        for span in dead:
            self._kill(span.block, stale)
        page.spans = [span for span in page.spans if span.end <= start or end <= span.start]
        page.dropped += 1
        mask = 0
        for span in page.spans:
            mask |= _pieces(span.start, span.end)
        self._mask_words[page_number] = mask
        return True

    def _kill(self, block: Block, stale: int) -> None:
        """Make a block's records stale, and let it not be found any more."""
        start = block.first * 4
        self._words[start : start + block.count * 4 : 4] = memoryview(
            array("Q", [stale]) * block.count
        )
        entry = block.codes * PAGE_SIZE + block.offset
        if self._codes[entry] == block.first:  # a crossing one may have been made anew
            self._codes[entry] = 0


def _pieces(start: int, end: int) -> int:
    """The bits of a mask for bytes [start, end)."""
    return (2 << (min(end - 1, PAGE_SIZE - 1) >> 6)) - (1 << (start >> 6)) if end > start else 0
