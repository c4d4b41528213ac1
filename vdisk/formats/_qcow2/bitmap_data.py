"""What one bitmap consists of: its table and its clusters of bits, read and written anew.

A bitmap is never changed in place.  A :class:`Change` collects new clusters beside the valid
ones; :meth:`BitmapData.merged` and its kin store new versions of a bitmap in it, and
:meth:`Change.switch` makes a directory of them valid with one write of the header::

    new data, tables, directory, counts | header | old clusters' counts go down

A cut before the header's write leaks the new clusters, one behind it the old ones.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.bitmap_bits import combine, is_zero, trim
from vdisk.formats._qcow2.tables import words_from_bytes, words_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.formats._qcow2.bitmap_bits import Marks
    from vdisk.formats._qcow2.bitmap_directory import Entry
    from vdisk.formats._qcow2.core import Core

    Entries = dict[str, Entry]
    Extension = tuple[int, int, int] | None


class BitmapData:
    """Reads the bitmaps of one image, and builds new versions of them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- reading ---------------------------------------------------------------------------------

    def content(self, entry: Entry, first: int, end: int) -> bytes:
        """Bytes [first, end) of the bitmap as it is stored."""
        size = self._core.cluster_size
        index = first // size
        parts = []
        for word in self._table(entry, index, -(-end // size)):
            low, high = max(first, index * size), min(end, (index + 1) * size)
            parts.append(self._stored(word, low - index * size, high - low))
            index += 1
        return b"".join(parts)

    def clusters(self, entry: Entry) -> Iterator[int]:
        """Host offsets of the bitmap's clusters of bits.

        Raises :class:`CorruptImageError` at the first table entry that breaks a rule.
        """
        for word in self._table(entry):
            if host := self._host_offset(word):
                yield host

    def _table(self, entry: Entry, first: int = 0, end: int | None = None) -> array[int]:
        """Entries [first, end) of a bitmap table."""
        end = entry.table_size if end is None else end
        return words_from_bytes(
            self._core.file.read(entry.table_offset + first * 8, (end - first) * 8)
        )

    def _stored(self, word: int, start: int, length: int) -> bytes:
        """Bytes of the cluster of bitmap data that a table entry stands for."""
        host = self._host_offset(word)
        if host:
            return self._core.file.read(host + start, length)
        return (b"\xff" if word else b"\0") * length

    def _host_offset(self, word: int) -> int:
        """Where a table entry's cluster is, 0 if it has none."""
        host = self._valid_host(word)
        if host is None:
            raise CorruptImageError(
                f"the bitmap table entry {word:#x} is not valid", path=self._core.file.name
            )
        return host

    def _valid_host(self, word: int) -> int | None:
        """The same; None where the entry breaks a rule."""
        host = word & layout.OFFSET_MASK
        reserved = layout.BITMAP_TABLE_RESERVED | (layout.BITMAP_ALL_ONES if host else 0)
        if word & reserved or host % self._core.cluster_size or host >= self._core.file.size:
            return None
        return host

    # -- new versions of one bitmap ----------------------------------------------------------------

    def empty(self, change: Change, entry: Entry) -> Entry:
        """The bitmap with no bit set, the clusters it had not looked at."""
        clusters = -(-entry.bytes_for(self._core.header.size) // self._core.cluster_size)
        return change.write_table(entry, array("Q", bytes(clusters * 8)))

    def release(self, change: Change, entry: Entry) -> None:
        """Give up the bitmap's clusters; of a broken table, those that are certainly its own."""
        for word in self._table(entry):
            if host := self._valid_host(word):
                change.release(host, self._core.cluster_size)
        change.release(entry.table_offset, entry.table_size * 8)

    def merged(self, change: Change, entry: Entry, marks: Marks) -> Entry:
        """The bitmap with the bits of ``marks`` set, too."""
        size, bits = self._core.cluster_size, entry.bits_for(self._core.header.size)
        total = -(-bits // 8)
        words = self._table(entry)
        changed = False
        for index, first in enumerate(range(0, total, size)):
            end = min(first + size, total)
            added = marks.coarse(first, end, entry.granularity_bits)
            if is_zero(added):
                continue
            old = self._stored(words[index], 0, end - first)
            new = trim(combine(old, added), bits - first * 8)
            if new != old:
                words[index] = self._rewritten(change, words[index], new)
                changed = True
        return self._with_table(change, entry, words) if changed else entry

    def filled(self, change: Change, entry: Entry) -> Entry:
        """The bitmap with every bit set."""
        size = self._core.cluster_size
        whole, rest = divmod(entry.bits_for(self._core.header.size), 8 * size)
        for host in self.clusters(entry):
            change.release(host, size)
        words = array("Q", [layout.BITMAP_ALL_ONES]) * whole
        if rest:
            words.append(change.write(trim(b"\xff" * -(-rest // 8), rest)))
        return self._with_table(change, entry, words)

    def resized(self, change: Change, entry: Entry, old_size: int) -> Entry:
        """The bitmap of a disk that had ``old_size`` bytes, for the disk as it is now."""
        size = self._core.cluster_size
        needed = entry.bytes_for(self._core.header.size)
        bits = min(entry.bits_for(old_size), entry.bits_for(self._core.header.size))
        kept = -(-bits // (8 * size))
        words = self._table(entry)
        for word in words[kept:]:
            if host := self._host_offset(word):
                change.release(host, size)
        del words[kept:]
        if kept:
            within = bits - (kept - 1) * 8 * size
            last = trim(self._stored(words[-1], 0, -(-within // 8)), within)
            words[-1] = self._rewritten(change, words[-1], last)
        words.extend([0] * (-(-needed // size) - kept))
        return self._with_table(change, entry, words)

    def _rewritten(self, change: Change, word: int, content: bytes) -> int:
        """The table entry for new content of a cluster in the place of an old one."""
        if host := self._host_offset(word):
            change.release(host, self._core.cluster_size)
        if is_zero(content):
            return 0
        if len(content) == self._core.cluster_size and content.count(0xFF) == len(content):
            return layout.BITMAP_ALL_ONES
        return change.write(content)

    def _with_table(self, change: Change, entry: Entry, words: array[int]) -> Entry:
        change.release(entry.table_offset, entry.table_size * 8)
        return change.write_table(entry, words)


class Change:
    """A new state of the bitmaps, built beside the valid one and made valid by :meth:`switch`.

    A context: left by an error before the switch, it gives back what was allocated.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._new: list[tuple[int, int]] = []
        self._old: list[tuple[int, int]] = []

    def __enter__(self) -> Change:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is not None:
            for first, count in self._new:
                self._core.free_unused(first, count)

    def write(self, content: bytes) -> int:
        """Store ``content`` in new clusters in a row; where they begin."""
        core = self._core
        clusters = -(-len(content) // core.cluster_size)
        with core.lock:
            first, _fresh = core.allocate(clusters)
        self._new.append((first, clusters))
        offset = first << core.cluster_bits
        core.write(offset, content.ljust(clusters * core.cluster_size, b"\0"))
        return offset

    def write_table(self, entry: Entry, words: array[int]) -> Entry:
        """The bitmap with another table."""
        return entry._replace(table_offset=self.write(words_to_bytes(words)), table_size=len(words))

    def release(self, offset: int, length: int) -> None:
        """The valid state's clusters at a host range are not part of the new one."""
        core = self._core
        self._old.append((offset >> core.cluster_bits, -(-length // core.cluster_size)))

    def switch(self, entries: Entries) -> None:
        """Make ``entries`` the directory."""
        core, header = self._core, self._core.header
        if header.bitmaps is not None:
            _count, size, offset = header.bitmaps
            self.release(offset, size)
        extension = self._write_directory(entries) if entries else None
        core.save()  # the clusters and their counts are stable before the header names them
        with core.header_file.changing():
            header.bitmaps = extension
            header.autoclear_features &= ~layout.BITMAPS
            if extension is not None:
                header.autoclear_features |= layout.BITMAPS

    def _write_directory(self, entries: Entries) -> tuple[int, int, int]:
        from vdisk.formats._qcow2 import bitmap_directory

        data = bitmap_directory.build(entries.values())
        return len(entries), len(data), self.write(data)

    def release_old(self) -> None:
        """Free what only the former state needed."""
        for first, count in self._old:
            self._core.release(first, count)
