"""What one L2 table refers to, counted by runs of entries instead of one by one.

A table is looked at in pieces.  A piece whose entries are all the same, or each one cluster
further than the one before, is recognised by one comparison; any other is halved::

    8192 entries ........ not alike
    4096 | 4096 ......... alike: 4096 clusters counted in one step | halved again
                                                                    ... 512: one by one
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.allocation import compressed_range
from vdisk.formats._qcow2.tables import words_from_bytes

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from vdisk.formats._qcow2.census import Census
    from vdisk.formats._qcow2.entries import Defect, EntryRules
    from vdisk.formats._qcow2.findings import Report

_SMALLEST_PIECE = 512
"""Entries that are looked at one by one."""

_NONE_YET, _BETWEEN = -1, -3
"""No host cluster before this one; a place between two, where nothing continues."""


class L2Table(NamedTuple):
    """A table to be scanned: its content, where it is, and which guest cluster comes first.

    ``active``, ``other``: how many entries of the active L1 table and of snapshots' refer to it.
    """

    data: bytes
    offset: int
    guest_cluster: int
    active: int
    other: int

    @property
    def references(self) -> int:
        """From all L1 tables together."""
        return self.active + self.other


class _Ramp:
    """Recognises entries that each lie ``step`` above the one before, as big-endian numbers."""

    def __init__(self, width: int, step: int) -> None:
        self._width = width
        self._step = step
        self._by_length: dict[int, tuple[int, int]] = {}

    def fits(self, data: bytes, first: int, count: int) -> bool:
        """Are the ``count`` entries in ``data`` first, first + step, first + 2 * step …?"""
        ones, slope = self._by_length.get(count) or self._prepare(count)
        return int.from_bytes(data, "big") == first * ones + slope

    def _prepare(self, count: int) -> tuple[int, int]:
        one = (1).to_bytes(self._width, "big")
        steps = (n * self._step for n in range(count))
        slope = b"".join(number.to_bytes(self._width, "big") for number in steps)
        pattern = int.from_bytes(one * count, "big"), int.from_bytes(slope, "big")
        self._by_length[count] = pattern
        return pattern


class TableScanner:
    """Counts what L2 tables refer to and reports entries that break a rule.

    ``allocated``, ``fragmented``, ``compressed``: guest clusters of the active disk, as QEMU
    counts them.  ``mendable``: offsets of tables with a defect that has a replacement.
    ``certain``: False once an entry was met that may have referred to something else once.
    """

    def __init__(self, census: Census, rules: EntryRules, report: Report) -> None:
        self._census = census
        self._rules = rules
        self._report = report
        self._cluster_bits = rules.cluster_bits
        self._cluster_size = 1 << rules.cluster_bits
        self._width = 16 if rules.extended else 8
        self._shift = 64 if rules.extended else 0
        self._ramp = _Ramp(self._width, self._cluster_size << self._shift)
        self._host_mask = layout.OFFSET_MASK & ~rules.within
        self.allocated = self.fragmented = self.compressed = 0
        self.mendable: set[int] = set()
        self.certain = True
        self._next_host = _NONE_YET
        """The host cluster that would continue the table's last one."""

    def scan(self, table: L2Table) -> None:
        """Look at one table."""
        self._next_host = _NONE_YET
        self._piece(table, 0, len(table.data) // self._width)

    def _piece(self, table: L2Table, index: int, count: int) -> None:
        width, data = self._width, table.data
        start, end = index * width, (index + count) * width
        first = int.from_bytes(data[start : start + width], "big")
        rise = int.from_bytes(data[end - width : end], "big") - first
        step = self._cluster_size << self._shift
        if not rise and data[start:end] == data[start : start + width] * count:
            if not self._is_bare(first):
                self._entries(table, index, count)
        elif (
            rise == (count - 1) * step
            and self._is_plain(first, table.guest_cluster + index)
            and self._is_plain(first + rise, table.guest_cluster + index + count - 1)
            and self._ramp.fits(data[start:end], first, count)
        ):
            self._count_run(table, first >> self._shift, count)
        elif count <= _SMALLEST_PIECE:
            self._entries(table, index, count)
        else:
            self._piece(table, index, count // 2)
            self._piece(table, index + count // 2, count // 2)

    def _split(self, whole: int) -> tuple[int, int]:
        """An entry as one number, as (entry, subcluster bitmap)."""
        return (whole >> 64, whole & (1 << 64) - 1) if self._shift else (whole, 0)

    def _is_bare(self, whole: int) -> bool:
        """The entry is right and refers to nothing."""
        entry, bitmap = self._split(whole)
        without_host = not entry & (layout.COMPRESSED | layout.COPIED | layout.OFFSET_MASK)
        return without_host and self._rules.l2_defect(entry, bitmap, 0) is None

    def _is_plain(self, whole: int, guest_cluster: int) -> bool:
        """The entry is right and refers to one host cluster."""
        entry, bitmap = self._split(whole)
        return (
            not entry & layout.COMPRESSED
            and bool(entry & layout.OFFSET_MASK)
            and self._rules.l2_defect(entry, bitmap, guest_cluster) is None
        )

    def _count_run(self, table: L2Table, entry: int, count: int) -> None:
        """``count`` guest clusters in a row stand in host clusters in a row."""
        first = (entry & layout.OFFSET_MASK) >> self._cluster_bits
        if not self._rules.external:
            self._census.add(first, first + count, table.references)
        if table.active:
            if not self._rules.external:
                self._census.mark(
                    first, first + count, table.active, copied=bool(entry & layout.COPIED)
                )
            self._count_active(table, first, count)

    def _count_active(self, table: L2Table, host_cluster: int, count: int) -> None:
        self.allocated += count * table.active
        if self._next_host not in (_NONE_YET, host_cluster):
            self.fragmented += table.active
        self._next_host = host_cluster + count

    # -- one by one ------------------------------------------------------------------------------

    def _entries(self, table: L2Table, index: int, count: int) -> None:
        words = words_from_bytes(table.data[index * self._width : (index + count) * self._width])
        entries = words[::2] if self._shift else words
        bitmaps: Iterable[int] = words[1::2] if self._shift else repeat(0)
        runs = None if self._shift or self._rules.external else self._ordinary_runs(entries)
        if runs is not None:
            self._count_runs(table, runs)
        elif entries[0] & layout.COMPRESSED:
            self._compressed_entries(table, index, entries, bitmaps)
        else:
            self._short_runs(table, index, entries, bitmaps)

    def _ordinary_runs(self, entries: array[int]) -> list[tuple[int, int]] | None:
        """Runs (first entry, end) of entries with COPIED alone; None if there are any others."""
        host_mask, size = self._host_mask, self._cluster_size
        limit = self._census.clusters << self._cluster_bits | layout.COPIED
        runs: list[tuple[int, int]] = []
        first = expected = -1
        step = 0
        for entry in entries:
            if entry == expected:
                expected += step
                continue
            if step:
                runs.append((first, expected))
            if not entry:
                expected = step = 0
            elif entry & ~host_mask == layout.COPIED and layout.COPIED < entry < limit:
                first, expected, step = entry, entry + size, size
            else:
                return None
        if step:
            runs.append((first, expected))
        return runs if all(end <= limit for _first, end in runs) else None

    def _count_runs(self, table: L2Table, runs: list[tuple[int, int]]) -> None:
        """Count runs that lie inside the file; single clusters, the most, without a call."""
        bits, host_mask, references = self._cluster_bits, self._host_mask, table.references
        counts, owned, active = self._census.planes[0], self._census.owned, table.active
        single = self._cluster_size
        next_host, breaks, allocated = self._next_host, 0, 0
        for first, end in runs:
            cluster, length = (first & host_mask) >> bits, (end - first) >> bits
            breaks += cluster != next_host
            next_host = cluster + length
            allocated += length
            if end - first == single:
                count, mark = counts[cluster] + references, owned[cluster] + active
                if count < 256 and mark < 256:
                    counts[cluster], owned[cluster] = count, mark
                    continue
            self._census.add(cluster, next_host, references)
            self._census.mark(cluster, next_host, active, copied=True)
        breaks -= bool(runs) and self._next_host == _NONE_YET
        self._next_host = next_host
        self.allocated += allocated * active
        self.fragmented += breaks * active

    def _short_runs(
        self, table: L2Table, index: int, entries: array[int], bitmaps: Iterable[int]
    ) -> None:
        """Entries of all kinds: one that continues a run costs a comparison."""
        host_mask, file_size = self._host_mask, self._rules.file_size
        ordinary = -1 if self._rules.external else layout.COPIED
        first = expected = -1
        held = step = 0
        for number, (entry, bitmap) in enumerate(zip(entries, bitmaps, strict=False), index):
            if entry == expected and bitmap == held:
                expected += step
                continue
            if step:
                self._end_run(table, number, first, expected)
            held, step = bitmap, 0
            if (
                entry & ~host_mask == ordinary
                and 0 < entry & host_mask < file_size
                and not bitmap & bitmap >> 32 & layout.ALL_ALLOCATED
            ):
                first, step, expected = entry, self._cluster_size, entry + self._cluster_size
            elif entry or bitmap:
                expected = -1
                self._entry(table, number, entry, bitmap)
            else:
                expected = 0
        if step:
            self._end_run(table, index + len(entries), first, expected)

    def _compressed_entries(
        self, table: L2Table, index: int, entries: array[int], bitmaps: Iterable[int]
    ) -> None:
        """Entries most of which are compressed clusters, packed: several to a host cluster."""
        bits, limit = self._cluster_bits, self._rules.file_size >> 9
        shift = 62 - (bits - 8)
        offset_mask, sectors_mask = (1 << shift) - 1, (1 << (bits - 8)) - 1
        ordinary = -1 if self._rules.external else layout.COMPRESSED >> 62
        add, references = self._census.add, table.references
        compressed = held = inside = 0
        for number, (entry, bitmap) in enumerate(zip(entries, bitmaps, strict=False), index):
            sector = (entry & offset_mask) >> 9
            end = sector + (entry >> shift & sectors_mask) + 1
            if entry >> 62 == ordinary and end <= limit and not bitmap:
                compressed += 1
                first, last = sector >> bits - 9, end - 1 >> bits - 9
                if first != held:
                    if inside:
                        add(held, held + 1, inside * references)
                    held, inside = first, 0
                inside += 1
                if last > first:
                    add(first + 1, last + 1, references)
            elif entry or bitmap:
                self._entry(table, number, entry, bitmap)
        if inside:
            add(held, held + 1, inside * references)
        self._count_active_compressed(table, compressed)

    def _end_run(self, table: L2Table, index: int, first: int, end: int) -> None:
        """Count ordinary entries ``first`` … ``end``, the last of them before entry ``index``."""
        cluster = (first & self._host_mask) >> self._cluster_bits
        count = (end - first) >> self._cluster_bits
        if cluster + count <= self._census.clusters:
            self._count_run(table, first, count)
        else:
            for entry in range(first, end, self._cluster_size):
                self._entry(table, index - (end - entry >> self._cluster_bits), entry, 0)

    def _entry(self, table: L2Table, index: int, entry: int, bitmap: int) -> None:
        """Any entry at all."""
        defect = self._rules.l2_defect(entry, bitmap, table.guest_cluster + index)
        if defect is not None:
            self._tell(table, index, entry, defect)
        if entry & layout.COMPRESSED:
            self._count_compressed(table, entry)
        elif self._rules.external:
            if table.active and entry & layout.OFFSET_MASK | entry & layout.COPIED:
                self._count_active(table, (entry & layout.OFFSET_MASK) >> self._cluster_bits, 1)
        elif entry & layout.OFFSET_MASK:
            self._count_standard(table, entry)

    def _tell(self, table: L2Table, index: int, entry: int, defect: Defect) -> None:
        if self._report.full:
            self._report.corruptions += 1
        else:
            guest = (table.guest_cluster + index) << self._cluster_bits
            whose = f"guest offset {guest:#x}" if table.active else "a snapshot"
            self._report.corruption(
                f"L2 entry {index} ({entry:#x}) of {whose}: {defect.message}",
                table.offset + index * self._width,
            )
        if defect.replacement is not None:
            self.mendable.add(table.offset)
        else:
            self.certain = False

    def _count_compressed(self, table: L2Table, entry: int) -> None:
        offset, size = compressed_range(entry, self._cluster_bits)
        first = offset >> self._cluster_bits
        end = min(((offset + size - 1) >> self._cluster_bits) + 1, self._census.clusters)
        if first < end and not self._rules.external:
            self._census.add(first, end, table.references)
        self._count_active_compressed(table, 1)

    def _count_active_compressed(self, table: L2Table, count: int) -> None:
        self.allocated += count * table.active
        self.compressed += count * table.active
        self.fragmented += count * table.active  # as QEMU says: by nature

    def _count_standard(self, table: L2Table, entry: int) -> None:
        offset = entry & layout.OFFSET_MASK
        first = offset >> self._cluster_bits
        end = ((offset + self._cluster_size - 1) >> self._cluster_bits) + 1
        end = min(end, self._census.clusters)
        if first < end:
            self._census.add(first, end, table.references)
            if table.active:
                copied = bool(entry & layout.COPIED)
                self._census.mark(first, first + 1, table.active, copied=copied)
        if table.active:
            self._count_active(table, first if not offset & self._rules.within else _BETWEEN, 1)
