"""Zeroing and giving up guest ranges: by the mapping alone where they cover whole units.

::

    guest range    |   bytes  | subclusters | clusters …  | subclusters |  bytes  |
    zeroed by        writing     flags        L2 entries     flags        writing

What the clusters held is freed, or kept as room for what is written later (``unmap``).
"""

from __future__ import annotations

import enum
from array import array
from typing import TYPE_CHECKING

from vdisk.block import ZERO_CHUNK
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.allocation import DataWriter
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from vdisk.formats._qcow2.tables import Table


class Becomes(enum.Enum):
    """What guest clusters turn into, by metadata alone."""

    ZERO = "zero"
    """Zero clusters, whatever they were: they hide any backing file, present or future."""
    DISCARDED = "discarded"
    """Zero clusters where something was or there is a backing file; others stay unallocated."""
    UNALLOCATED = "unallocated"
    """Nothing: the backing file shows through."""


class Writer(DataWriter):
    """Changes the guest's data and its mapping, in every way."""

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Make a guest range read as zeroes, by metadata where whole (sub)clusters are covered."""
        end = offset + length
        first = min(round_up(offset, self._unit), end)
        last = end if end == self._size() else max(round_down(end, self._unit), first)
        if self.core.header.version < 3:
            unmap = True  # there is no zero flag to set on a cluster that is kept
            if self._shows_backing(first, last):
                first = last = end
        self._write_zero_bytes(offset, first)
        whole = min(round_up(first, self._cluster), last)
        whole_end = last if end == self._size() else max(round_down(last, self._cluster), whole)
        self._zero_units(first, whole, unmap)
        if whole < whole_end:
            self._zero_units(whole, round_up(whole_end, self._unit), unmap)
        self._zero_units(whole_end, last, unmap)
        self._write_zero_bytes(last, end)

    def _zero_units(self, start: int, end: int, unmap: bool) -> None:
        """Zero whole clusters, or subclusters inside one cluster."""
        if start >= end:
            return
        partial = self._extended and end - start < self._cluster
        if partial and self._entry(start >> self._bits)[0] & layout.COMPRESSED:
            self._write_zero_bytes(start, min(end, self._size()))
        else:
            self._change_clusters(start, end, Becomes.ZERO, unmap=unmap)

    def _write_zero_bytes(self, start: int, end: int) -> None:
        """Zero what is no whole unit; others may be writing the rest of it."""
        for position in range(start, end, ZERO_CHUNK):
            stop = min(position + ZERO_CHUNK, end)
            extents = self.mapping.extents(position, stop - position)
            if self.backing_changes or not all(extent.reads_zero for extent in extents):
                self.write(position, [memoryview(bytes(stop - position))])

    def _shows_backing(self, start: int, end: int) -> bool:
        """True if, were this layer empty in the range, some backing file's bytes might show."""
        backing = self.mapping.backing
        below = 0 if backing is None else backing.size
        return self.backing_changes or start < min(end, below)

    def discard(self, offset: int, length: int) -> None:
        """Give up whole clusters of a guest range; they read as zeroes afterwards."""
        end = offset + length
        first = round_up(offset, self._cluster)
        last = (
            round_up(end, self._cluster) if end == self._size() else round_down(end, self._cluster)
        )
        if first >= last:
            return
        if self.core.header.version >= 3 or not self._shows_backing(first, last):
            self._change_clusters(first, last, Becomes.DISCARDED, unmap=True)

    def unallocate(self, offset: int, length: int) -> None:
        """Empty whole clusters so that the backing file shows through again (commit)."""
        last = round_up(offset + length, self._cluster)
        self._change_clusters(offset, last, Becomes.UNALLOCATED, unmap=True)

    def expand_zeroes(self, offset: int, length: int) -> None:
        """Turn whole zero clusters into unallocated ones, or data where a backing file shows."""
        if self._shows_backing(offset, offset + length):
            for position in range(offset, offset + length, ZERO_CHUNK):
                step = min(ZERO_CHUNK, offset + length - position)
                self.write(position, [memoryview(bytes(step))])
        else:
            self.unallocate(offset, length)

    def _change_clusters(self, start: int, end: int, what: Becomes, *, unmap: bool) -> None:
        """Change [start, end), a multiple of the unit, slice by slice."""
        length = max(min(end, self._size()) - start, 0)
        raw = self._external and self.core.header.data_file_raw
        if raw and what is not Becomes.UNALLOCATED:
            device, at = self.core.place(start, start)
            device.write_zeroes(at, length, unmap=unmap)
        position = start
        while position < end:
            with self.core.lock:
                limit = self._wait_for_landing(position, end)
                position = self._change_slice(position, limit, what, unmap)
        if self._external and unmap and not raw:
            self.core.data.discard(start, length)

    def _change_slice(self, start: int, end: int, what: Becomes, unmap: bool) -> int:
        """Change the entries of one slice from ``start`` on; how far it went."""
        core = self.core
        cluster = start >> self._bits
        l1_index = cluster >> core.l2_bits
        table_end = (l1_index + 1) << (core.l2_bits + self._bits)
        if not core.l2_offset(l1_index) and not self._becomes_zero(0, what):
            return min(end, table_end)
        table, index = core.l2_slice_for_write(cluster)
        count = min(-(-end // self._cluster) - cluster, (1 << core.slice_bits) - index)
        if not self._extended and self._change_hollow(table, index, count, what):
            return min(end, (cluster + count) << self._bits)
        replaced = []
        for done in range(count):
            base = (cluster + done) << self._bits
            first, last = max(start - base, 0), min(end - base, self._cluster)
            if self._extended and last - first < self._cluster:
                mask = self._subcluster_mask(first, last)
                at = 2 * (index + done) + 1
                table.words[at] = (table.words[at] & ~mask) | mask << 32
            else:
                old = self._change_entry(table, index + done, what, unmap)
                if old:
                    replaced.append(old)
        self._changed(table, index, count, replaced)
        return min(end, (cluster + count) << self._bits)

    def _change_hollow(self, table: Table, index: int, count: int, what: Becomes) -> bool:
        """Change entries of a slice at once, if all are alike and none has a host cluster."""
        words, last = table.words, index + count
        old = words[index]
        if old & ~layout.ZERO or words[index:last].tobytes() != _alike(old, count).tobytes():
            return False
        new = layout.ZERO if self._becomes_zero(old, what) else 0
        if new != old:
            words[index:last] = _alike(new, count)
            self._changed(table, index, count, [])
        return True

    def _becomes_zero(self, old: int, what: Becomes) -> bool:
        """Whether an entry becomes a zero cluster's, rather than none."""
        if self.core.header.version < 3 or what is Becomes.UNALLOCATED:
            return False
        return what is Becomes.ZERO or old != 0 or self.mapping.backing is not None

    def _change_entry(self, table: Table, index: int, what: Becomes, unmap: bool) -> int:
        """Change one whole guest cluster; the entry whose host cluster is given up, or 0."""
        words, at = table.words, index * self.core.entry_words
        old = words[at]
        zero = self._becomes_zero(old, what)
        keep = zero and self._has_own_host(old) and (self._external or not unmap)
        entry = old & ~layout.ZERO if keep else 0
        if self._extended:
            words[at], words[at + 1] = entry, layout.ALL_ZERO if zero else 0
        else:
            words[at] = entry | (layout.ZERO if zero else 0)
        return 0 if keep else old


def _alike(entry: int, count: int) -> array[int]:
    return array("Q", [entry]) * count
