"""Tables in memory: big-endian words of the file as native arrays, cached and written back.

A :class:`Table` is one cached piece of metadata (a slice of an L2 table, a refcount block, the
whole L1 table); it remembers which of its entries changed.  A :class:`TableCache` holds as many
as its byte budget allows and never drops one that is dirty or being written.
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SWAP = sys.byteorder == "little"


def words_from_bytes(data: bytes | bytearray | memoryview, typecode: str = "Q") -> array[int]:
    """Big-endian words as a native array."""
    words = array(typecode)
    words.frombytes(data)
    if _SWAP:
        words.byteswap()
    return words


def words_to_bytes(words: array[int]) -> bytes:
    """A native array as big-endian words."""
    if not _SWAP:
        return words.tobytes()
    swapped = words[:]
    swapped.byteswap()
    return swapped.tobytes()


class Table:
    """``words`` of the table at host ``offset``; entries [dirty_start, dirty_end) are unsaved."""

    __slots__ = ("dirty_end", "dirty_start", "offset", "saving", "words")

    def __init__(self, offset: int, words: array[int]) -> None:
        self.offset = offset
        self.words = words
        self.dirty_start = self.dirty_end = 0
        self.saving = 0

    def touch(self, start: int, end: int) -> None:
        """Entries [start, end) were changed."""
        if self.dirty_end:
            self.dirty_start = min(self.dirty_start, start)
            self.dirty_end = max(self.dirty_end, end)
        else:
            self.dirty_start, self.dirty_end = start, end

    def take_dirty(self) -> tuple[int, int]:
        """The dirty range, which becomes clean."""
        span = self.dirty_start, self.dirty_end
        self.dirty_start = self.dirty_end = 0
        return span

    @property
    def busy(self) -> bool:
        """Must stay in memory: changed, or on its way to the disk."""
        return bool(self.dirty_end or self.saving)


class TableCache:
    """Tables by host offset, least recently used first, within a budget of bytes.

    ``make_room`` is called when the budget is full of busy tables: it must clean some.
    """

    def __init__(self, budget: int, table_bytes: int, make_room: Callable[[], None]) -> None:
        self.tables: OrderedDict[int, Table] = OrderedDict()
        self.generation = 0
        """Changes whenever a table leaves, so that whoever kept it outside forgets it."""
        self._table_bytes = table_bytes
        self._capacity = max(budget // table_bytes, 2)
        self._make_room = make_room

    def __iter__(self) -> Iterator[Table]:
        return iter(self.tables.values())

    def get(self, offset: int) -> Table | None:
        """The cached table, marked as used just now."""
        table = self.tables.get(offset)
        if table is not None:
            self.tables.move_to_end(offset)
        return table

    def add(self, table: Table) -> Table:
        """Keep a table, dropping the least recently used ones that are not busy."""
        if len(self.tables) >= self._capacity and not self._evict():
            self._make_room()
            self._evict()  # where all is still busy the budget stretches, until the next flush
        self.tables[table.offset] = table
        return table

    def _evict(self) -> bool:
        for offset, table in self.tables.items():
            if not table.busy:
                del self.tables[offset]
                self.generation += 1
                return True
        return False

    def drop(self, start: int, end: int) -> None:
        """Forget tables inside host range [start, end): their clusters hold something else now."""
        if (end - start) // self._table_bytes < len(self.tables):
            inside = [o for o in range(start, end, self._table_bytes) if o in self.tables]
        else:
            inside = [o for o in self.tables if start <= o < end]
        for offset in inside:
            del self.tables[offset]
            self.generation += 1

    def clear(self) -> None:
        """Forget everything, changes included."""
        self.tables.clear()
        self.generation += 1

    def dirty(self) -> list[Table]:
        """The tables with unsaved entries, by host offset."""
        found = [table for table in self.tables.values() if table.dirty_end]
        found.sort(key=lambda table: table.offset)
        return found
