"""Reference counts of host clusters, and the allocation of clusters by them.

::

    refcount table        refcount blocks (one cluster each)
    +-----------+         +---+---+---+---+-----
    | offset    | ------> | 1 | 1 | 2 | 0 | …       counts of refcount_bits each
    | offset    | ---.    +---+---+---+---+-----
    | 0         |    '--> …
    +-----------+         0: block not there, all its counts are 0

Counts wider than a byte are kept as native arrays; narrower ones as one byte a count in memory
and packed, least significant bits first, in the file.

Freeing is deferred.  A cluster whose reference was removed in memory keeps its count until that
removal is on the disk and nobody who planned I/O before it is still at work (``Core.flush``);
only then can it be handed out again.  So no cut and no race ever lets one owner see another's
bytes.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError, NoSpaceError, UnsupportedFeatureError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.tables import Table, TableCache, words_from_bytes, words_to_bytes
from vdisk.formats._qcow2.validate import check_refcount_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.header import Header

TYPECODES = {8: "B", 16: "H", 32: "I", 64: "Q"}
_DIGITS = bytes(b"0123456789abcdef"[value & 15] for value in range(256))


def _unpacking_table(bits: int) -> list[bytes]:
    mask = (1 << bits) - 1
    return [bytes(byte >> shift & mask for shift in range(0, 8, bits)) for byte in range(256)]


def unpack_counts(data: bytes, bits: int) -> array[int]:
    """The counts in a refcount block of ``bits`` a count."""
    if bits >= 8:
        return words_from_bytes(data, TYPECODES[bits])
    return array("B", b"".join(map(_unpacking_table(bits).__getitem__, data)))


def pack_counts(counts: array[int], bits: int) -> bytes:
    """The bytes of a refcount block; below 8 bits ``len(counts) * bits`` fills whole bytes.

    A packed block is one little-endian number whose digits, in base 2**bits, are the counts.
    """
    if bits >= 8:
        return words_to_bytes(counts)
    digits = counts.tobytes()[::-1].translate(_DIGITS)
    return int(digits, 1 << bits).to_bytes(len(counts) * bits // 8, "little")


class Refcounts:
    """The refcount table and blocks of one image, and its allocator."""

    def __init__(
        self, file: BlockDevice, header: Header, budget: int, make_room: Callable[[], None]
    ) -> None:
        self._file = file
        self._header = header
        self.bits = header.refcount_bits
        self._cluster_bits = header.cluster_bits
        self._cluster_size = header.cluster_size
        self.block_entries = self._cluster_size * 8 // self.bits
        self.max_count = (1 << self.bits) - 1
        in_memory = self.block_entries * max(self.bits, 8) // 8
        self.blocks = TableCache(budget, in_memory, make_room)
        self.table = self._load_table()
        self._places: set[int] | None = None
        self.table_moved_from: tuple[int, int] | None = None
        """(offset, clusters) of the table that the header on disk still names, after growth."""
        self.growing = False
        """The table in memory is between two places: nothing may be saved just now."""
        self.packed_tail = 0
        """Host offset behind the last compressed cluster written, where the next may go; or 0."""
        self.check_free: Callable[[int, int], None] = lambda _offset, _length: None
        """Called for a range about to be used that was used before: raises if its counts are
        wrong, because it is the image's own."""
        self._hint = 0
        self._fresh = -(-file.size // self._cluster_size)

    def _load_table(self) -> Table:
        offset = self._header.refcount_table_offset
        length = self._header.refcount_table_clusters * self._cluster_size
        try:
            check_refcount_table(self._header, self._file.size, path=self._file.name)
        except CorruptImageError:  # only a check opens such an image: nothing is counted in it
            length = 0
        self._file.note("reftable_load")
        return Table(offset, words_from_bytes(self._file.read(offset, length)))

    # -- counts --------------------------------------------------------------------------------

    def _block_offset(self, index: int) -> int:
        entry = self.table.words[index] if index < len(self.table.words) else 0
        if entry & (self._cluster_size - 1):
            raise CorruptImageError(
                f"refcount table entry {index} ({entry:#x}) is not a cluster's offset",
                path=self._file.name,
                offset=self.table.offset + index * 8,
            )
        return entry

    @property
    def places(self) -> set[int]:
        """The offsets of all refcount blocks in the file, read or not."""
        if self._places is None:
            aligned = -self._cluster_size
            self._places = {word for word in self.table.words if word and word & aligned == word}
        return self._places

    def block(self, index: int) -> Table | None:
        """The refcount block of that index; None if it does not exist (all counts 0)."""
        offset = self._block_offset(index)
        if not offset:
            return None
        found = self.blocks.get(offset)
        if found is None:
            if offset >= self._file.size:
                raise CorruptImageError(
                    f"refcount block {index} is past the end of the file",
                    path=self._file.name,
                    offset=offset,
                )
            self._file.note("refblock_load")
            data = self._file.read(offset, self._cluster_size)
            found = self.blocks.add(Table(offset, unpack_counts(data, self.bits)))
        return found

    def count(self, cluster: int) -> int:
        """The reference count of a host cluster."""
        block = self.block(cluster // self.block_entries)
        return 0 if block is None else block.words[cluster % self.block_entries]

    def counts(self, cluster: int, count: int) -> array[int]:
        """The reference counts of ``count`` clusters in a row."""
        found = array("Q")
        while count:
            index, start = divmod(cluster, self.block_entries)
            end = min(start + count, self.block_entries)
            block = self.block(index)
            if block is None:
                found.extend(array("Q", bytes(8 * (end - start))))
            else:
                found.extend(array("Q", block.words[start:end]))
            cluster += end - start
            count -= end - start
        return found

    def increase(self, cluster: int, count: int = 1) -> None:
        """One more reference to each of ``count`` clusters.

        Raises :class:`UnsupportedFeatureError`, with nothing changed, where a count would not
        fit in its bits.
        """
        for block, start, end in self._pieces(cluster, count):
            if max(block.words[start:end]) >= self.max_count:
                raise UnsupportedFeatureError(
                    f"a cluster would be referenced more than {self.max_count} times, which "
                    f"{self.bits}-bit reference counts cannot hold (amend refcount_bits)",
                    path=self._file.name,
                )
        for block, start, end in self._pieces(cluster, count):
            words = block.words
            if end - start == 1:
                words[start] += 1
            else:
                words[start:end] = array(words.typecode, [w + 1 for w in words[start:end]])
            block.touch(start, end)

    def decrease(self, cluster: int, count: int = 1) -> list[tuple[int, int]]:
        """One reference less to each cluster; the runs (cluster, count) that became free.

        Raises :class:`CorruptImageError`, with nothing changed, where a count is 0 already.
        """
        position = cluster
        for block, start, end in self._pieces(cluster, count):
            if not all(block.words[start:end]):
                raise CorruptImageError(
                    "a cluster in use has reference count 0; run check with repair",
                    path=self._file.name,
                    offset=(position + block.words.index(0, start) - start) * self._cluster_size,
                )
            position += end - start
        freed: list[tuple[int, int]] = []
        for block, start, end in self._pieces(cluster, count):
            first = cluster - start
            for index in range(start, end):
                value = block.words[index]
                block.words[index] = value - 1
                if value == 1:
                    _extend_runs(freed, first + index)
            block.touch(start, end)
            cluster += end - start
        if freed:
            self._hint = min(self._hint, freed[0][0])
            tail = self.packed_tail >> self._cluster_bits
            if any(first <= tail < first + length for first, length in freed):
                self.packed_tail = 0
        return freed

    def _pieces(self, cluster: int, count: int) -> Iterator[tuple[Table, int, int]]:
        """(block, first index, end index) for each block that counts the clusters.

        One at a time: fetching the next may drop this one from a small cache, unless it was
        touched before.
        """
        while count:
            index, start = divmod(cluster, self.block_entries)
            end = min(start + count, self.block_entries)
            block = self.block(index)
            if block is None:
                raise CorruptImageError(
                    "a cluster in use has no refcount block; run check with repair",
                    path=self._file.name,
                    offset=cluster * self._cluster_size,
                )
            yield block, start, end
            cluster += end - start
            count -= end - start

    def own_clusters(self) -> Iterator[int]:
        """The host clusters that the refcount table and blocks themselves occupy."""
        first = self.table.offset >> self._cluster_bits
        yield from range(first, first + len(self.table.words) * 8 // self._cluster_size)
        for index in range(len(self.table.words)):
            offset = self._block_offset(index)
            if offset:
                yield offset >> self._cluster_bits

    def last_used(self) -> int:
        """The highest host cluster whose count is not 0."""
        for index in range(len(self.table.words) - 1, -1, -1):
            block = self.block(index)
            if block is not None and any(block.words):
                last = max(i for i, count in enumerate(block.words) if count)
                return index * self.block_entries + last
        return 0

    def used(self, enough: int) -> int:
        """Clusters whose count is not 0, counted until they are ``enough``."""
        used = 0
        for index in range(len(self.table.words)):
            block = self.block(index)
            if block is not None:
                used += len(block.words) - block.words.count(0)
            if used >= enough:
                break
        return used

    # -- allocation ----------------------------------------------------------------------------

    def allocate(self, count: int) -> tuple[int, bool]:
        """``count`` free clusters in a row, now referenced once: (first, fresh).

        ``fresh``: no byte of them was ever written, so the file reads as zeroes there.
        Raises :class:`NoSpaceError` where the file cannot grow, or offsets would not fit.
        """
        self._hint = self._next_free(self._hint)
        start = self._hint
        while True:
            length, blocked = self._free_run(start, count)
            if length >= count:
                if self._ensure_blocks(start, count):
                    break
                continue  # a new block took a cluster of the run: look again
            start = self._next_free(blocked)
        fresh = self._check_place(start, count)
        self._set_ones(start, count)
        if start == self._hint:
            self._hint = start + count
        self._fresh = max(self._fresh, start + count)
        return start, fresh

    def _check_place(self, start: int, count: int) -> bool:
        """See that clusters can be used; whether no byte of them was ever written."""
        self._check_limits(start + count)
        fresh = self._file.growable and start >= self._fresh
        if not fresh:
            self.check_free(start << self._cluster_bits, count << self._cluster_bits)
        return fresh

    def beyond_is_written(self) -> None:
        """Something was written behind the last cluster in use: what is there is not fresh."""
        self._fresh = max(self._fresh, -(-self._file.size // self._cluster_size))

    def free_run(self, count: int) -> int:
        """How many of ``count`` clusters the next free place has room for, in a row."""
        self._hint = self._next_free(self._hint)
        return self._free_run(self._hint, count)[0]

    def _check_limits(self, end: int) -> None:
        offset = end << self._cluster_bits
        if offset - 1 > layout.OFFSET_MASK:
            raise NoSpaceError("host offsets are limited to 56 bits", path=self._file.name)
        if not self._file.growable and offset > self._file.size:
            raise NoSpaceError(
                f"the device under the image ({self._file.size} bytes) is full",
                path=self._file.name,
            )

    def _next_free(self, cluster: int) -> int:
        """The first cluster at or after ``cluster`` whose count is 0."""
        while True:
            index, start = divmod(cluster, self.block_entries)
            block = self.block(index)
            if block is None:
                return cluster
            try:
                return cluster - start + block.words.index(0, start)
            except ValueError:
                cluster += self.block_entries - start

    def _free_run(self, cluster: int, wanted: int) -> tuple[int, int]:
        """How many clusters from a free one on are free (up to ``wanted``), and where it ends."""
        length = 0
        while length < wanted:
            index, start = divmod(cluster + length, self.block_entries)
            end = min(start + wanted - length, self.block_entries)
            block = self.block(index)
            if block is not None:
                words = block.words[start:end]
                if any(words):
                    used = next(i for i, word in enumerate(words) if word)
                    return length + used, cluster + length + used
            length += end - start
        return wanted, cluster + wanted

    def _set_ones(self, cluster: int, count: int) -> None:
        for block, start, end in self._pieces(cluster, count):
            words = block.words
            words[start:end] = array(words.typecode, [1]) * (end - start)
            block.touch(start, end)

    def _ensure_blocks(self, cluster: int, count: int) -> bool:
        """See that every cluster of the run has a refcount block; False if one had to be made.

        A new block is placed at the start of the run: either an older block counts that
        cluster, or the new block counts itself.
        """
        first = cluster // self.block_entries
        last = (cluster + count - 1) // self.block_entries
        for index in range(first, last + 1):
            if not self._block_offset(index):
                if index >= len(self.table.words):
                    self._grow_table(last + 1)
                else:
                    self._new_block(index, cluster)
                return False
        return True

    def _new_block(self, index: int, cluster: int) -> None:
        self._file.note("refblock_alloc")
        self._check_place(cluster, 1)
        bits = max(self.bits, 8)
        words = array(TYPECODES[bits], bytes(self.block_entries * bits // 8))
        block = Table(cluster << self._cluster_bits, words)
        block.touch(0, len(words))
        self._count_block(index, cluster, block)
        self.table.words[index] = block.offset
        self.places.add(block.offset)
        self.table.touch(index, index + 1)
        self._fresh = max(self._fresh, cluster + 1)

    def _count_block(self, index: int, cluster: int, block: Table) -> None:
        """Count the new block's cluster, in itself or an older block, and keep the block.

        Where the older block cannot be read, or no room be made, nothing has changed.
        """
        counting, within = divmod(cluster, self.block_entries)
        if counting == index:
            block.words[within] = 1
            self.blocks.add(block)
            return
        self._set_ones(cluster, 1)
        try:
            self.blocks.add(block)
        except BaseException:
            self.decrease(cluster)
            raise

    def _grow_table(self, entries: int) -> None:
        """Make room for ``entries`` blocks: a larger table elsewhere, at first in memory only.

        ``Core.flush`` writes it, then points the header at it, then frees the old one.
        """
        per_cluster = self._cluster_size // 8
        clusters = -(-max(entries, len(self.table.words) * 3 // 2) // per_cluster)
        if clusters * self._cluster_size > layout.MAX_REFCOUNT_TABLE_BYTES:
            clusters = layout.MAX_REFCOUNT_TABLE_BYTES // self._cluster_size
            if entries > clusters * per_cluster:
                raise NoSpaceError("the refcount table is at its largest", path=self._file.name)
        self._file.note("reftable_grow")
        old = self.table
        old_clusters = len(old.words) // per_cluster
        words = old.words + array("Q", bytes(clusters * self._cluster_size - len(old.words) * 8))
        nested, self.growing = self.growing, True
        self.table = Table(old.offset, words)
        try:
            new, _fresh = self.allocate(clusters)
        except BaseException:
            self._shrink_table(old)
            raise
        finally:
            self.growing = nested
        self.table.offset = new << self._cluster_bits
        self.table.touch(0, len(self.table.words))
        if self.table_moved_from is None:
            self.table_moved_from = (old.offset, old_clusters)
        else:  # never reached the disk: free at once
            self.decrease(old.offset >> self._cluster_bits, old_clusters)

    def _shrink_table(self, old: Table) -> None:
        """A larger table found no place: the ``old`` one stays, with what changed meanwhile."""
        grown, length = self.table, len(old.words)
        for block in filter(None, grown.words[length:]):
            self.blocks.drop(block, block + self._cluster_size)
            self.places.discard(block)
        old.words[:] = grown.words[:length]
        if grown.dirty_start < min(grown.dirty_end, length):
            old.touch(grown.dirty_start, min(grown.dirty_end, length))
        self.table = old


def write_structures(
    file: BlockDevice,
    cluster_size: int,
    bits: int,
    end: int,
    counts: Callable[[int, int], array[int]],
) -> tuple[int, int]:
    """Write refcount blocks and a refcount table anew, behind cluster ``end`` of the file.

    ``counts(first, n)``: the counts of clusters below ``end``.  Nothing refers to the new
    structures until the header does.  Where the table is: (offset, clusters).
    """
    entries = cluster_size * 8 // bits
    blocks = table_clusters = 0
    while blocks * entries < end + blocks + table_clusters or not table_clusters:
        blocks += 1
        table_clusters = -(-blocks * 8 // cluster_size)
    if table_clusters * cluster_size > layout.MAX_REFCOUNT_TABLE_BYTES:
        raise UnsupportedFeatureError("the refcount table would be too large", path=file.name)
    used = end + blocks + table_clusters
    offsets = array("Q")
    for first in range(0, used, entries):
        content = array(TYPECODES[max(bits, 8)])
        if first < end:
            content.extend(array(content.typecode, counts(first, min(entries, end - first))))
        content.extend(
            array(content.typecode, [1]) * (min(first + entries, used) - first - len(content))
        )
        content.extend(array(content.typecode, [0]) * (entries - len(content)))
        offsets.append((end + len(offsets)) * cluster_size)
        file.write(offsets[-1], pack_counts(content, bits))
    table_offset = (end + blocks) * cluster_size
    file.write(table_offset, words_to_bytes(offsets).ljust(table_clusters * cluster_size, b"\0"))
    return table_offset, table_clusters


def _extend_runs(runs: list[tuple[int, int]], cluster: int) -> None:
    """Append ``cluster`` to sorted runs of (first, count)."""
    if runs and sum(runs[-1]) == cluster:
        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
    else:
        runs.append((cluster, 1))
