"""Mending what a check found, in an order that leaves the image no worse at any cut.

::

    1 counts up       every cluster in use is counted: nothing of it is handed out again.
                      Where the refcount structures cannot be used, or clusters must be taken,
                      new structures are written behind the end of the file; one write of the
                      header makes them valid
    2 tables          entries that break a rule are replaced (see ``entries``)
    3 counts exact    clusters that nothing refers to any more are freed
    4 COPIED flags    by the counts, which are right now

A table that shares its cluster with something else is not written where it is: whichever of the
two owns the cluster rightly, its bytes stay.  Such a table gets a new cluster in step 1, as do
all tables that QEMU and this library write in place: refcount structures and the active L1 table.
What can only be guessed at is left as it is, and stays reported.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.errors import DeviceError
from vdisk.formats._qcow2 import layout, snapshots, trees
from vdisk.formats._qcow2.census import join_digits
from vdisk.formats._qcow2.check import examine
from vdisk.formats._qcow2.refcounts import TYPECODES, pack_counts
from vdisk.formats._qcow2.tables import words_from_bytes, words_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vdisk.formats._qcow2.check import Comparison
    from vdisk.formats._qcow2.survey import L1Table, Survey
    from vdisk.formats.qcow2 import Qcow2Image


class Repair:
    """Mends one image; the caller holds it alone and has saved all of it.

    ``repair``: "leaks" alone frees what is not used, "errors" mends everything.
    """

    def __init__(self, image: Qcow2Image, comparison: Comparison, repair: Collection[str]) -> None:
        self._image = image
        self._core = image._core
        self._file = image.file
        self._comparison = comparison
        self._everything = "errors" in repair
        self._moved: dict[int, int] = {}
        """L2 table's cluster -> the cluster it gets."""

    @property
    def _survey(self) -> Survey:
        return self._comparison.survey

    def run(self) -> None:
        """Do all that can be done; nothing where a part of the image could not even be read."""
        if self._survey.report.errors:
            return
        if not self._everything:
            if self._survey.certain and self._survey.refcounts_usable:
                self._free_leaks()
        else:
            if not self._survey.bitmaps_readable:
                self._image._bitmaps.forget()
                self._look_again()
            self._raise_counts()
            self._mend_tables()
            self._look_again()
            self._replace_tables()
            self._store_counts(self._exact)
            if self._comparison.copied_wrong or self._comparison.wrong_blocks:
                self._core.reload()
                self._set_copied()
        self._core.reload()

    def _free_leaks(self) -> None:
        """Lower counts, and set the flag of what is then referred to once.

        Without the flag an image that was sound would be corrupt; a mark sees to it that a cut
        between the two does not leave it so.
        """
        sound = not self._survey.report.corruptions
        if sound:
            self._core.mark_dirty()
        self._store_counts(min)
        if sound:
            self._look_again()
            if self._comparison.copied_wrong:
                self._set_copied()

    def _look_again(self) -> None:
        """After a step of the repair; raises where something cannot be read any more."""
        self._core.reload()
        self._comparison = examine(self._image)
        if self._survey.report.errors:
            raise self._unreadable()

    def _unreadable(self) -> DeviceError:
        return DeviceError(
            "a part of the image cannot be read, so the repair stops here: repair it again",
            path=self._file.name,
        )

    def _exact(self, stored: int, found: int) -> int:
        return found if self._survey.certain else max(stored, found)

    # -- counts ------------------------------------------------------------------------------------

    def _raise_counts(self) -> None:
        blocks = self._survey.refcount_blocks
        missing = any(
            index >= len(blocks) or not blocks[index] for index in self._comparison.wrong_blocks
        )
        self._plan_moves()
        if missing or self._moved or not self._survey.refcounts_usable or self._shared_l1():
            self._rebuild()
        else:
            self._store_counts(max)

    def _store_counts(self, choose: Callable[[int, int], int]) -> None:
        """Rewrite wrong refcount blocks; ``choose(stored, found)`` gives each count."""
        comparison, blocks = self._comparison, self._survey.refcount_blocks
        for index in comparison.wrong_blocks:
            if index < len(blocks) and blocks[index]:
                counts = self._chosen(index * comparison.block_entries, choose)
                content = pack_counts(counts, comparison.bits)
                self._core.write(blocks[index], content)
        self._core.barrier()

    def _chosen(self, first: int, choose: Callable[[int, int], int]) -> array[int]:
        """The counts of the refcount block whose first cluster is given."""
        comparison, blocks = self._comparison, self._survey.refcount_blocks
        index, length = first // comparison.block_entries, comparison.block_entries
        found = self._survey.census.counts(first, length)
        offset = blocks[index] if index < len(blocks) else 0
        digits = comparison.stored(offset)
        if offset and not digits:  # not zeroes: the next attempt may well succeed
            raise self._unreadable()
        stored = join_digits(digits) if digits else array("Q", bytes(8 * length))
        most = (1 << comparison.bits) - 1
        chosen = (min(choose(*pair), most) for pair in zip(stored, found, strict=True))
        return array(TYPECODES[max(comparison.bits, 8)], chosen)

    # -- new structures ----------------------------------------------------------------------------

    def _shared_l1(self) -> L1Table | None:
        """The active L1 table, if something else stands in its clusters."""
        for table in self._survey.l1_tables.values():
            if table.active and self._survey.shared_clusters(table):
                return table
        return None

    def _plan_moves(self) -> None:
        """New clusters for L2 tables that stand where something else stands, too."""
        survey = self._survey
        self._next = survey.clusters if self._file.growable else survey.census.end()
        for cluster in survey.l2_clusters():
            if survey.census.count(cluster) != survey.l2_references(cluster):
                self._moved[cluster] = self._take(1)

    def _take(self, count: int) -> int:
        """Clusters behind everything that is in the file."""
        first, self._next = self._next, self._next + count
        return first

    def _rebuild(self) -> None:
        """Write the tables to be moved and all refcounts anew, then switch to them at once."""
        core, bits = self._core, self._core.cluster_bits
        for old, new in self._moved.items():
            self._core.write(new << bits, self._mended_l2(old << bits))
        old_end = self._survey.clusters if self._file.growable else self._survey.census.end()
        active = self._shared_l1()
        with core.header_file.restoring() as header:
            if active is not None:
                first = self._take(-(-active.entries * 8 // core.cluster_size))
                self._write_l1(active, first << bits)
                header.l1_table_offset = first << bits

            def counts(first: int, length: int) -> array[int]:
                return self._all_counts(first, length, old_end)

            core.rewrite_refcounts(self._next, header.refcount_order, counts)

    def _all_counts(self, first: int, length: int, old_end: int) -> array[int]:
        """Counts for the new structures: of old clusters, then of those taken since."""
        keep = (lambda _stored, found: found) if self._survey.certain else max
        most = (1 << self._comparison.bits) - 1
        counts = array("Q", self._chosen(first, keep))[:length]
        for cluster in range(max(first, old_end), first + length):
            counts[cluster - first] = 1
        for old, new in self._moved.items():
            if first <= new < first + length:
                counts[new - first] = min(self._survey.l2_references(old), most)
        return counts

    # -- tables ------------------------------------------------------------------------------------

    def _mend_tables(self) -> None:
        """Replace what breaks a rule in the L1 and L2 tables, where they stand."""
        survey = self._survey
        for offset in survey.scanner.mendable:
            if offset >> self._core.cluster_bits not in self._moved:
                self._core.write(offset, self._mended_l2(offset))
        if survey.l1_mendable or self._moved:
            for table in survey.l1_tables.values():
                if survey.stands_alone(table):
                    self._write_l1(table, table.offset)
        self._core.barrier()

    def _mended_l2(self, offset: int) -> bytes:
        """The content of an L2 table with every entry replaced that has a replacement."""
        core, rules = self._core, self._survey.rules
        width = core.entry_words
        index = self._survey.l1_index.get(offset >> core.cluster_bits, 0)
        guest = index << core.l2_bits
        words = words_from_bytes(self._file.read(offset, core.cluster_size))
        for at in range(0, len(words), width):
            bitmap = words[at + 1] if width == 2 else 0
            mended = rules.mended_l2(words[at], bitmap, guest + at // width)
            words[at : at + width] = array("Q", mended[:width])
        return words_to_bytes(words)

    def _write_l1(self, table: L1Table, offset: int) -> None:
        """Write an L1 table with its mendable entries mended and its moved tables found."""
        words = self._survey.read_l1(table)
        if words is None:
            raise self._unreadable()
        rules, bits = self._survey.rules, self._core.cluster_bits
        for index, entry in enumerate(words):
            mended = rules.mended_l1(entry)
            host = mended & layout.OFFSET_MASK
            if host >> bits in self._moved and not host & rules.within:
                mended = mended & ~layout.OFFSET_MASK | self._moved[host >> bits] << bits
            words[index] = mended
        self._core.write(offset, words_to_bytes(words))

    # -- what is written anew as a whole -----------------------------------------------------------

    def _replace_tables(self) -> None:
        """Bitmaps that cannot be read are removed, an outdated snapshot table is rewritten."""
        survey = self._survey
        if not survey.broken_bitmaps and not survey.snapshot_table_outdated:
            return
        self._store_counts(max)
        self._core.reload()
        for name in survey.broken_bitmaps:
            self._image._bitmaps.remove(name)
        if survey.snapshot_table_outdated:
            with self._core.structural():
                snapshots.replace_table(self._core, snapshots.read_table(self._core))
        self._core.settle()
        self._look_again()

    def _set_copied(self) -> None:
        for index, entry in enumerate(self._core.l1.words):
            if entry and self._survey.rules.l1_defect(entry) is None:
                trees.update_entry(self._core, index, entry & layout.OFFSET_MASK)
        self._core.settle()
