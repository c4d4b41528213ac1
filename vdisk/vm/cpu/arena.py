"""Where translations live: one mapping that native code and Python share.

::

    RECORDS   blocks of records, one after another (:mod:`vdisk.vm.cpu.records`); 0 is never used
    ARRAYS    code arrays: for a page and a mode, what is translated at each of its bytes
    SPANS     which bytes of a page each block was made from, chained by page
    ...       what is known of instructions (:mod:`vdisk.vm.cpu.known`)
    HEADER    counters and limits, and the lock
    WINDOW    the guest bytes that are being translated, and notes about them
    ASKED     for each processor: which variants of instructions it did not find
    MODES     what is fixed for a mode
    EXPECTED  a bit for each mode, place in a page and mark of blocks that Python asked for
    (pages)   for each physical page: its mask, its PAGE entry, and a table for each mode

An element of a *code array* (32 bits) is the number of the record where the translation of that
address begins, or 0; or, with the highest bit set, the number of a stub: jumps wait for a
translation there (:mod:`vdisk.vm.cpu.translation`).  The TLB's code entries point to code arrays,
so native code finds the target of any jump by itself.

A store into bytes that were translated (a mask has a bit for each 64 bytes of a page) drops the
blocks that were made from them: their entries are emptied and all their records become ``stale``,
which looks its address up again; so whoever is executing them stops at an instruction.  A region
of the second tier that such a block is part of gives way to the first tier again.
"""

from __future__ import annotations

import ctypes
import mmap
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu import known
from vdisk.vm.cpu.records import RECORD_SIZE
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.memory import GuestMemory
    from vdisk.vm.ranges import Range

# -- layout ------------------------------------------------------------------------------------

ARENA_RECORDS = 8 << 20
"""256 MiB of address space: more than ten times what booting a distribution translates."""
CODE_ARRAYS = 16384
"""Pages times modes."""
ARRAY_SIZE = PAGE_SIZE * 4
MOST_SPANS = 4 << 20
SPAN_SIZE = 32
SPAN_NEXT, SPAN_FIRST, SPAN_COUNT, SPAN_ENTRY, SPAN_START, SPAN_END = 0, 4, 8, 12, 16, 18
"""Number of the page's next span, first record, how many, the place of the block's entry in the
mapping divided by 4, and the bytes [start, end) of the page."""
MOST_MODES = 64
MODE_SIZE = 128
MODE_END, MODE_CROSSING, MODE_TABLE, MODE_LIMIT = 0, 32, 64, 72
"""Two templates of records, where the mode's table is, how many instructions a block may have."""
PAGE_ENTRY = 16
PAGE_SPANS, PAGE_DROPPED, PAGE_WATCHED = 0, 4, 8
"""Number of the first span, how often something was dropped, and whether Python wants to be told
of drops."""

RECORDS = 0
ARRAYS = RECORDS + (ARENA_RECORDS * RECORD_SIZE)
SPANS = ARRAYS + CODE_ARRAYS * ARRAY_SIZE
KNOWN = SPANS + MOST_SPANS * SPAN_SIZE
HEADER = KNOWN + known.SIZE
WINDOW = HEADER + PAGE_SIZE
NOTES = WINDOW + PAGE_SIZE
WINDOW_SIZE = 2 * PAGE_SIZE
ASKED = WINDOW + WINDOW_SIZE
ASKED_SIZE = 8
"""A variant that is not known: its entry and its key."""
ASKED_LIST = 64 * ASKED_SIZE
MOST_ASKERS = 64
"""Processors."""
MODES = ASKED + MOST_ASKERS * ASKED_LIST
EXPECTED = MODES + MOST_MODES * MODE_SIZE
MARK_BITS = 9
MARKED = 3
"""Bytes: what stands behind them may be an address, which differs from run to run."""
MARK_FACTOR = 0x9E37_79B1
PAGES = EXPECTED + (MOST_MODES << PAGE_SHIFT + MARK_BITS >> 3)
MOST_DROPS = 32
"""A page whose code was changed more often has no second tier, until it has been left alone for a
while."""

COUNTERS = (
    *("lock", "stale", "direct", "processors", "generation", "translated"),
    *("next_record", "record_limit", "next_array", "array_limit", "next_span", "masks", "pages"),
    *("block_limit", "block_records", "block_bytes"),
)
HEADER_FIELDS = {name: HEADER + 8 * number for number, name in enumerate(COUNTERS)}

WHOLE_PAGE = (1 << 64) - 1
NO_MASKS = bytes(8 << 20 >> PAGE_SHIFT)
"""Of pages without code, as many as are written at once, mostly: 1 MiB.  Other masks are larger,
and so are those of more pages."""
_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)


Spans = tuple[tuple[int, int], ...]
"""Bytes [start, end) of blocks in a page."""


def mark(code: bytes) -> int:
    """What blocks are told apart by at a glance: their first three bytes, mixed, or (256 less) the
    first one, where a block has no more or a page ends behind it."""
    if len(code) < MARKED + 1:
        return code[0]
    mixed = int.from_bytes(code[:MARKED], "little") * MARK_FACTOR & 0xFFFF_FFFF
    return 256 + (mixed >> 24)


def entries_of(code_array: bytes) -> frozenset[int]:
    """The offsets for which a copy of a code array names a record."""
    numbers = memoryview(code_array).cast("i").tolist()  # those of stubs are negative
    return frozenset([at for at in compress(range(len(numbers)), numbers) if numbers[at] > 0])


class HotRegion(NamedTuple):
    """A region whose function is the handler of ``record``, in place of ``handler``.

    ``bytes``: a bit for each byte of the page that it was made from.
    """

    record: int
    handler: int
    bytes: int

    def touches(self, start: int, end: int) -> bool:
        """True if the region was made from any of these bytes."""
        return bool(self.bytes >> start & (1 << end - start) - 1)


class ArenaFullError(Exception):
    """No room: everything has to be dropped (by whoever knows that nobody is executing it)."""


class Arena:
    """The mapping, as Python sees it.  What changes it is mostly native.

    ``pages``: how many pages of guest memory there are.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.pages = memory.top >> PAGE_SHIFT
        masks = PAGES
        entries = masks + self.pages * 8
        self._tables = entries + self.pages * PAGE_ENTRY
        size = self._tables + MOST_MODES * self.pages * 8
        # Zeroed memory that costs nothing until it is touched.
        self._mapping = mmap.mmap(-1, size, flags=_RESERVE)
        self.bytes = memoryview(self._mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.masks_address = self.address + masks
        self.base = self.address
        """What generated code adds to a place in the mapping."""
        whole = self.bytes[: size & ~7]
        self._words, self._halves = whole.cast("Q"), whole.cast("I")
        self._masks = self._words[masks // 8 : entries // 8]
        self._modes: dict[Mode, int] = {}
        self.regions: dict[int, list[HotRegion]] = {}
        """By page."""
        self.known = known.Instructions(self.bytes[KNOWN : KNOWN + known.SIZE])
        self._set("record_limit", ARENA_RECORDS)
        self._set("array_limit", CODE_ARRAYS)
        self._set("masks", masks)
        self._set("pages", entries)
        self._set("direct", 1)
        self._begin()

    def _begin(self) -> None:
        self._set("next_record", 1)  # 0 means "none" in a code array
        self._set("next_array", 0)
        self._set("next_span", 1)

    def _get(self, name: str) -> int:
        return self._words[HEADER_FIELDS[name] // 8]

    def _set(self, name: str, value: int) -> None:
        self._words[HEADER_FIELDS[name] // 8] = value

    def clear(self) -> None:
        """Drop everything.  Nobody executes records, or knows the number of one, any more."""
        for start, end in ((RECORDS, KNOWN), (PAGES, len(self.bytes))):  # whole pages
            self._mapping.madvise(mmap.MADV_DONTNEED, start, end - start)
        self.regions.clear()
        self._begin()
        self._set("generation", self.generation + 1)

    @property
    def generation(self) -> int:
        """How often everything was dropped."""
        return self._get("generation")

    @property
    def translated(self) -> int:
        """Instructions that were translated so far."""
        return self._get("translated")

    def configure(self, *, stale: int, processors: int, direct: bool) -> None:
        """``stale``: the handler of dead records; ``direct``: native code may translate."""
        self._set("stale", stale)
        self._set("processors", processors)
        self._set("direct", int(direct))

    def asked(self, processor: int, count: int) -> list[tuple[int, int]]:
        """The variants that a processor's question is about: (entry, key) of each."""
        start = (ASKED + processor * ASKED_LIST) // 4
        numbers = self._halves[start : start + count * ASKED_SIZE // 4].tolist()
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    # -- modes -----------------------------------------------------------------------------------

    def mode_number(self, mode: Mode) -> int:
        """A small number for a mode."""
        number = self._modes.get(mode)
        if number is None:
            number = len(self._modes)
            assert number < MOST_MODES
            self._modes[mode] = number
            at = MODES + number * MODE_SIZE
            self._words[(at + MODE_TABLE) // 8] = self._tables + number * self.pages * 8
        return number

    def set_mode(self, mode: Mode, end: bytes, crossing: bytes, limit: int) -> None:
        """Say what is fixed for a mode (see ``MODE_END`` and what follows it)."""
        at = MODES + self.mode_number(mode) * MODE_SIZE
        self.bytes[at + MODE_END : at + MODE_END + RECORD_SIZE] = end
        self.bytes[at + MODE_CROSSING : at + MODE_CROSSING + RECORD_SIZE] = crossing
        self._words[(at + MODE_LIMIT) // 8] = limit

    def table(self, mode: Mode) -> int:
        """Where the mode's table is in the mapping: a code array's address for each page, or 0."""
        return self._tables + self.mode_number(mode) * self.pages * 8

    def expect(self, mode_number: int, offset: int, mark: int) -> None:
        """Have a vCPU leave before it translates a block at this place of a page that has this
        mark: something more than records may be known for it."""
        bit = (mode_number << PAGE_SHIFT | offset) << MARK_BITS | mark
        self.bytes[EXPECTED + (bit >> 3)] |= 1 << (bit & 7)

    # -- code arrays and records -------------------------------------------------------------------

    def codes(self, page_number: int, mode: Mode) -> int:
        """Where the page's code array for ``mode`` is in the mapping, or 0."""
        found = self._words[self.table(mode) // 8 + page_number]
        return found - self.base if found else 0

    def entry(self, codes: int, offset: int) -> int:
        """The record that a code array names for an offset, or 0."""
        number = self._halves[codes // 4 + offset]
        return 0 if number >> 31 else number

    def code_array(self, codes: int) -> bytes:
        """A copy of a code array, which costs next to nothing; ``codes``: where it is, or 0."""
        return self.bytes[codes : codes + ARRAY_SIZE].tobytes() if codes else b""

    def entries(self, codes: int) -> frozenset[int]:
        """The offsets for which a code array names a record."""
        return entries_of(self.code_array(codes))

    def record_address(self, number: int) -> int:
        """What generated code calls a record."""
        return self.base + number * RECORD_SIZE

    def wide(self, record: int) -> int:
        """The 64-bit parameter of a record."""
        return self._words[record * 4 + 2]

    def handler(self, record: int) -> int:
        """What a record's handler is."""
        return self._words[record * 4]

    def set_handler(self, record: int, handler: int) -> None:
        """Give a record another handler, at once for everybody."""
        self._words[record * 4] = handler

    # -- pages -------------------------------------------------------------------------------------

    def mask(self, page_number: int) -> int:
        """Which 64-byte pieces of a page are translated."""
        return self._masks[page_number]

    def mark_page(self, page_number: int) -> None:
        """Take all of a page for translated.

        So a store that happens while the code is read is noticed in any case.
        """
        self._masks[page_number] = WHOLE_PAGE

    def _page_field(self, page_number: int, field: int) -> int:
        return (PAGES + self.pages * 8 + page_number * PAGE_ENTRY + field) // 4

    def dropped(self, page_number: int) -> int:
        """How often something in a page was dropped."""
        return self._halves[self._page_field(page_number, PAGE_DROPPED)]

    def forget_drops(self, page_number: int) -> None:
        """Count anew; native code waits for it (it holds the arena's lock when it counts)."""
        self._halves[self._page_field(page_number, PAGE_DROPPED)] = 0

    def watch(self, page_number: int, wanted: bool = True) -> None:
        """Have Python told when something in a page is dropped, or no longer."""
        self._halves[self._page_field(page_number, PAGE_WATCHED)] = int(wanted)

    def touches_code(self, ranges: Iterable[Range]) -> list[tuple[int, int, int]]:
        """Where a write may have changed translated code: (page, start, end) in each page."""
        mapping, masks, pages = self._mapping, self._masks, self.pages
        found: list[tuple[int, int, int]] = []
        for gpa, length in ranges:
            first, last = gpa >> PAGE_SHIFT, gpa + length - 1 >> PAGE_SHIFT
            if first == last:  # most of what a guest scatters, and there is nothing to be made
                touched = first < pages and masks[first] != 0
            else:
                several = mapping[PAGES + first * 8 : PAGES + 8 + last * 8]
                touched = several > NO_MASKS and bool(several.lstrip(b"\0"))
            if touched:
                found += self._masked(gpa, length, range(first, min(last + 1, pages)))
        return found

    def _masked(self, gpa: int, length: int, pages: range) -> Iterator[tuple[int, int, int]]:
        for page in pages:
            if self.mask(page):
                start = page << PAGE_SHIFT
                yield page, max(gpa - start, 0), min(gpa + length - start, PAGE_SIZE)

    def use_region(
        self, page_number: int, records: Iterable[int], spans: Spans, handler: int
    ) -> None:
        """Let a region that was made from these bytes of a page be the handler of records."""
        present = {region.record: region for region in self.regions.get(page_number, ())}
        made_from = 0
        for first, last in spans:
            made_from |= (1 << last) - (1 << first)
        for record in records:
            before = present.get(record)
            kept = self.handler(record) if before is None else before.handler
            present[record] = HotRegion(record, kept, made_from)
            self.set_handler(record, handler)
        self.regions[page_number] = list(present.values())

    def give_back(self, page_number: int, start: int, end: int) -> None:
        """Take the regions that were made from bytes [start, end) of a page out of use."""
        regions = self.regions.get(page_number)
        if regions is None:
            return
        gone = [region for region in regions if region.touches(start, end)]
        if not gone:
            return
        for region in gone:
            self.set_handler(region.record, region.handler)
        left = [region for region in regions if region not in gone]
        if left:
            self.regions[page_number] = left
        else:
            del self.regions[page_number]
