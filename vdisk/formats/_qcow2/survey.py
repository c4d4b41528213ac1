"""One look at everything in an image that refers to host clusters.

Each L1, L2 and refcount table is read once, however many others refer to it, and what it refers
to is counted that many times at once: an image with a hundred snapshots of one disk costs little
more than the disk alone, and tables that refer to themselves or in circles cost nothing more.
"""

from __future__ import annotations

import heapq
from array import array
from itertools import groupby
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError, DeviceError
from vdisk.formats._qcow2 import layout, snapshots
from vdisk.formats._qcow2.census import Census
from vdisk.formats._qcow2.entries import EntryRules
from vdisk.formats._qcow2.findings import Report
from vdisk.formats._qcow2.scan import L2Table, TableScanner
from vdisk.formats._qcow2.tables import words_from_bytes
from vdisk.formats._qcow2.validate import check_refcount_table, check_snapshot_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vdisk.errors import VdiskError
    from vdisk.formats._qcow2.core import Core

_BATCH = 1 << 20
"""Bytes of neighbouring tables that are read at once."""

MAX_ALL_L1_BYTES = 4 << 30
"""Bytes of all L1 tables together: thousands of snapshots of the largest disks."""


class L1Table:
    """Where an L1 table stands, and how many ask for it: the header (``active``), snapshots."""

    def __init__(self, what: str, offset: int, entries: int, *, active: bool) -> None:
        self.what = what
        self.offset = offset
        self.entries = entries
        self.active = active
        self.references = 1


class Survey:
    """What refers to what in an image, as it stands in the file.

    ``census``: references to each host cluster.  ``report``: the broken rules met on the way.
    ``tables_active``, ``tables_other``: how many entries of the active L1 table and of those of
    snapshots say that a cluster is an L2 table.
    """

    def __init__(self, core: Core, progress: Callable[[int, int], None] | None = None) -> None:
        self.core = core
        self.header = core.header
        self.file = core.file
        self.file_size = core.file.size
        self.cluster_bits = core.header.cluster_bits
        self.cluster_size = core.header.cluster_size
        self.rules = EntryRules(core.header, self.file_size)
        self.clusters = -(-self.file_size // self.cluster_size)
        self.census = Census(self.clusters)
        self.report = Report()
        self.scanner = TableScanner(self.census, self.rules, self.report)
        self.l1_tables: dict[tuple[int, int], L1Table] = {}
        self.tables_active = Census(self.clusters)
        self.tables_other = Census(self.clusters)
        self.l1_index: dict[int, int] = {}
        """Cluster of an active L2 table -> the first entry of the active L1 that names it."""
        self.l1_mendable = False
        self.snapshot_table_outdated = False
        """An entry of the snapshot table lacks what version 3 wants in it."""
        self.bitmaps_readable = True
        self.broken_bitmaps: list[str] = []
        self.refcount_blocks: array[int] = array("Q")
        """The offset of each refcount block; 0 where there is none that can be used."""
        self.refcounts_usable = True
        self._certain = True
        self._progress = progress
        self._done = self._total = 0

    @property
    def certain(self) -> bool:
        """Everything that refers to clusters was read and understood.

        Otherwise a cluster that nothing seems to use may be in use.
        """
        return (
            self._certain
            and self.scanner.certain
            and self.bitmaps_readable
            and not self.broken_bitmaps
            and not self.report.errors
        )

    def run(self) -> Survey:
        """Look at everything."""
        header = self.header
        self._region("header", 0, self.cluster_size)
        self._add_l1_table("L1 table", header.l1_table_offset, header.l1_size, active=True)
        self._snapshots()
        for table in self._affordable(self.l1_tables.values()):
            self._scan_l1(table)
        if header.crypto is not None:
            self._region("encryption header", *header.crypto)
        self._bitmaps()
        entries = self._refcount_table()
        tables = self.l2_clusters()
        blocks = -(-self.clusters * header.refcount_bits // (8 * self.cluster_size))
        self._total = len(tables) + min(len(entries), blocks)
        self._scan_l2_tables(tables)
        self._scan_refcount_table(entries)
        return self

    def step(self, count: int = 1) -> None:
        """Tell the caller how far the check is; it may stop the check by raising."""
        self._done = min(self._done + count, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, what: str, offset: int, length: int) -> bytes | None:
        """Bytes of the file, zeroes behind its end; None, and reported, if it cannot be read."""
        inside = max(min(length, self.file_size - offset), 0)
        try:
            return self.file.read(offset, inside).ljust(length, b"\0")
        except DeviceError as error:
            self._report_failure(what, offset, error)
            return None

    def _report_failure(self, what: str, offset: int, error: VdiskError) -> None:
        """A structure is broken, or could not be read: then it may be sound for all we know."""
        if isinstance(error, DeviceError):
            self.report.error(f"the {what} cannot be read ({error.message})", offset)
        else:
            self.report.corruption(f"the {what}: {error.message}", offset)

    def _region(self, what: str, offset: int, length: int, references: int = 1) -> bool:
        """Count references to each cluster of a contiguous structure; False if it is misplaced.

        Of a structure that is not inside the file nothing is counted: its length means nothing.
        """
        end = -(-(offset + length) // self.cluster_size)
        problem = None
        if end > self.clusters:
            problem = f"({length} bytes) reaches past the end of the file ({self.file_size} bytes)"
            self._certain = False
        else:
            self.census.add(offset >> self.cluster_bits, end, references)
            if offset & (self.cluster_size - 1):
                problem = "does not begin at a cluster boundary"
        if problem is not None:
            self.report.corruption(f"the {what} {problem}", offset)
        return problem is None

    # -- L1 tables and snapshots -----------------------------------------------------------------

    def _add_l1_table(self, what: str, offset: int, entries: int, *, active: bool = False) -> None:
        known = self.l1_tables.get((offset, entries))
        if known is not None:
            known.references += 1
        elif entries * 8 > layout.MAX_L1_BYTES or (entries and not offset):
            self.report.corruption(f"the {what} ({entries} entries) cannot be where it is", offset)
            self._certain = False
        elif entries:
            self.l1_tables[offset, entries] = L1Table(what, offset, entries, active=active)

    def _snapshots(self) -> None:
        if not self.header.nb_snapshots:
            return
        offset = self.header.snapshots_offset
        try:
            check_snapshot_table(self.header, self.file_size, path=self.file.name)
            found = snapshots.read_table(self.core)
        except (CorruptImageError, DeviceError) as error:
            self._report_failure("snapshot table", offset, error)
            self._certain = False
            return
        self._region("snapshot table", offset, snapshots.table_length(self.core))
        for snapshot in found:
            if snapshot.disk_size is None and self.header.version >= 3:
                self.report.corruption(
                    f"the entry of snapshot {snapshot.id} lacks the size of its disk", offset
                )
                self.snapshot_table_outdated = True
            what = f"L1 table of snapshot {snapshot.id}"
            self._add_l1_table(what, snapshot.l1_table_offset, snapshot.l1_size)

    def _affordable(self, tables: Iterable[L1Table]) -> Iterator[L1Table]:
        """The tables, as long as their sizes add up to something sensible."""
        total = 0
        for table in tables:
            total += table.entries * 8
            if total > MAX_ALL_L1_BYTES:
                self.report.error(
                    f"the snapshots' L1 tables are larger than {MAX_ALL_L1_BYTES} bytes together"
                )
                return
            yield table

    def read_l1(self, table: L1Table) -> array[int] | None:
        """The entries of an L1 table."""
        data = self.read(table.what, table.offset, table.entries * 8)
        return None if data is None else words_from_bytes(data)

    def _scan_l1(self, table: L1Table) -> None:
        length = table.entries * 8
        inside = self.clusters * self.cluster_size - table.offset
        if length > inside > 0:  # truncated: what is left of it counts
            self.report.corruption(f"the {table.what} reaches past the end of the file")
            self._certain, length = False, inside
        if not self._region(table.what, table.offset, length, table.references):
            return
        words = self.read_l1(table)
        if words is None:
            return
        for index, entry in enumerate(words):
            if entry:
                self._scan_l1_entry(table, index, entry)

    def _scan_l1_entry(self, table: L1Table, index: int, entry: int) -> None:
        defect = self.rules.l1_defect(entry)
        if defect is not None:
            self.report.corruption(
                f"entry {index} ({entry:#x}) of the {table.what}: {defect.message}",
                table.offset + index * 8,
            )
            if defect.replacement is None:
                self._certain = False
            self.l1_mendable |= defect.replacement is not None
        offset = entry & layout.OFFSET_MASK
        if not offset or offset & (self.cluster_size - 1) or offset >= self.file_size:
            return
        cluster = offset >> self.cluster_bits
        self.census.add(cluster, cluster + 1, table.references)
        if table.active:
            self.census.mark(cluster, cluster + 1, 1, copied=bool(entry & layout.COPIED))
            self.tables_active.add(cluster, cluster + 1)
            self.l1_index.setdefault(cluster, index)
        if table.references > table.active:
            self.tables_other.add(cluster, cluster + 1, table.references - table.active)

    def shared_clusters(self, table: L1Table) -> list[int]:
        """The clusters of an L1 table that something else uses, too, another L1 table included."""
        first = table.offset >> self.cluster_bits
        end = -(-(table.offset + table.entries * 8) // self.cluster_size)
        end = min(end, self.clusters)
        return [cluster for cluster in range(first, end) if self.census.count(cluster) > 1]

    def stands_alone(self, table: L1Table) -> bool:
        """Nothing but L1 tables stands in the clusters, so that they can be written in place.

        The active L1 table shares not even with those of snapshots.  A table that begins past the
        end of the file is not there to be written.
        """
        if table.offset >= self.file_size:
            return False
        alone = 1 if table.active else table.references
        return all(self.census.count(c) == alone for c in self.shared_clusters(table))

    # -- bitmaps ---------------------------------------------------------------------------------

    def _bitmaps(self) -> None:
        """Count the bitmap directory, tables and data; what is broken is known by name then."""
        if self.header.bitmaps is None:
            return
        from vdisk.formats._qcow2 import bitmap_directory
        from vdisk.formats._qcow2.bitmap_data import BitmapData

        _count, size, offset = self.header.bitmaps
        try:
            entries = bitmap_directory.read(self.core)
        except (CorruptImageError, DeviceError) as error:
            self._report_failure("bitmap directory", offset, error)
            self.bitmaps_readable = False
            return
        self._region("bitmap directory", offset, size)
        data = BitmapData(self.core)
        for entry in entries.values():
            what = f"table of bitmap {entry.name!r}"
            self._region(what, entry.table_offset, entry.table_size * 8)
            try:
                for host in data.clusters(entry):
                    self.census.add(host >> self.cluster_bits, (host >> self.cluster_bits) + 1)
            except (CorruptImageError, DeviceError) as error:
                self._report_failure(what, entry.table_offset, error)
                self.broken_bitmaps.append(entry.name)

    # -- L2 tables -------------------------------------------------------------------------------

    def l2_clusters(self) -> array[int]:
        """The clusters that are L2 tables, in order."""
        both = heapq.merge(self.tables_active.used(), self.tables_other.used())
        return array("Q", (cluster for cluster, _ in groupby(both)))

    def l2_references(self, cluster: int) -> int:
        """How many L1 entries say that the cluster is an L2 table."""
        return self.tables_active.count(cluster) + self.tables_other.count(cluster)

    def _scan_l2_tables(self, clusters: array[int]) -> None:
        most = max(_BATCH // self.cluster_size, 1)
        start = 0
        for index in range(1, len(clusters) + 1):
            count = index - start
            if (
                index == len(clusters)
                or count == most
                or (clusters[index] != clusters[start] + count)
            ):
                self._scan_batch(clusters[start], count)
                self.step(count)
                start = index

    def _scan_batch(self, first: int, count: int) -> None:
        """Scan neighbouring L2 tables; those in holes of the file are empty."""
        offset, size = first << self.cluster_bits, self.cluster_size
        inside = min(count * size, self.file_size - offset)
        if all(extent.reads_zero for extent in self.file.map(offset, inside)):
            return
        data = self.read("L2 table", offset, count * size)
        if data is None:
            return
        for number in range(count):
            cluster = first + number
            index = self.l1_index.get(cluster, 0)
            self.scanner.scan(
                L2Table(
                    data[number * size : (number + 1) * size],
                    cluster << self.cluster_bits,
                    index * (size // self.header.l2_entry_size),
                    self.tables_active.count(cluster),
                    self.tables_other.count(cluster),
                )
            )

    # -- the refcount structures -----------------------------------------------------------------

    def _refcount_table(self) -> array[int]:
        """The entries of the refcount table; none, and reported, where it is misplaced."""
        header = self.header
        offset, clusters = header.refcount_table_offset, header.refcount_table_clusters
        try:
            check_refcount_table(header, self.file_size, path=self.file.name)
        except CorruptImageError as error:
            self.report.corruption(error.message, offset)
        else:
            data = None
            if self._region("refcount table", offset, clusters * self.cluster_size):
                data = self.read("refcount table", offset, clusters * self.cluster_size)
            if data is not None:
                return words_from_bytes(data)
        self.refcounts_usable = False
        return array("Q")

    def _scan_refcount_table(self, entries: array[int]) -> None:
        self.refcount_blocks = entries
        for index, entry in enumerate(entries):
            if entry:
                entries[index], problem = self._refcount_block(entry)
                if problem:
                    self.report.corruption(
                        f"entry {index} ({entry:#x}) of the refcount table {problem}",
                        self.header.refcount_table_offset + index * 8,
                    )
                    self.refcounts_usable = False

    def _refcount_block(self, entry: int) -> tuple[int, str]:
        """Where the block can be read (0: nowhere) and what is wrong; counts its cluster."""
        offset = entry & ~layout.REFCOUNT_TABLE_RESERVED
        cluster = offset >> self.cluster_bits
        if offset & (self.cluster_size - 1):
            return 0, "is not cluster-aligned"
        if cluster >= self.clusters:
            return 0, "is past the end of the file"
        self.census.add(cluster, cluster + 1)
        references = self.census.count(cluster)
        if references > 1:
            return offset, f"names a cluster that has {references - 1} other uses"
        return offset, "has reserved bits set" if entry != offset else ""
