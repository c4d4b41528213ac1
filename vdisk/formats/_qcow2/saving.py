"""One saving of an image's metadata: everything unsaved at one moment, written in four stages.

The order is that of :mod:`vdisk.formats._qcow2.core`; what may be used again when it is over, and
what follows from a failure, is decided there.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from vdisk.formats._qcow2.refcounts import pack_counts
from vdisk.formats._qcow2.tables import words_to_bytes

if TYPE_CHECKING:
    from vdisk.formats._qcow2.core import Core
    from vdisk.formats._qcow2.tables import Table


class _Write:
    """The unsaved entries of a table, on their way to the disk."""

    __slots__ = ("data", "offset", "span", "table")

    def __init__(self, table: Table, bits: int = 64) -> None:
        self.table = table
        self.span = start, end = table.take_dirty()
        table.saving += 1
        if bits >= 8:
            self.offset = table.offset + start * table.words.itemsize
            self.data = words_to_bytes(table.words[start:end])
        else:
            self.offset = table.offset
            self.data = pack_counts(table.words, bits)


class Saving:
    """Takes what is unsaved (reference counts if ``counts``), then writes it.

    Made, ended and restored under the core's lock; written outside it.
    """

    def __init__(self, core: Core, *, counts: bool) -> None:
        self._core = core
        refcounts = core.refcounts
        self._moved = refcounts.table_moved_from if counts else None
        self._blocks: list[_Write] = []
        self._table: list[_Write] = []
        if counts:
            self._blocks = [_Write(block, refcounts.bits) for block in refcounts.blocks.dirty()]
            self._table = [_Write(refcounts.table)] if refcounts.table.dirty_end else []
        self._l2 = [_Write(slice_) for slice_ in core.l2.dirty()]
        self._l1 = [_Write(core.l1)] if core.l1.dirty_end else []

    def write(self) -> None:
        """All of it, with barriers between the stages that need one."""
        core = self._core
        for block in self._blocks:
            core.file.note("refblock_update_part")
            core.write(block.offset, block.data)
        if self._l2 or self._l1 or self._table:
            core.barrier()
        if self._table:
            self._write_refcount_table(self._table[0])
        for slice_ in self._l2:
            core.file.note("l2_update")
            core.write(slice_.offset, slice_.data)
        if self._l1:
            core.barrier()
            core.file.note("l1_update")
            core.write(self._l1[0].offset, self._l1[0].data)
        core.file.note("flush_to_disk")
        core.barrier()

    def _write_refcount_table(self, write: _Write) -> None:
        core, moved = self._core, self._moved
        core.file.note("reftable_update" if moved is None else "refblock_alloc_write_table")
        core.write(write.offset, write.data)
        core.barrier()
        if moved is None:
            return
        core.file.note("refblock_alloc_switch_table")
        with core.lock:
            with core.header_file.changing() as header:
                header.refcount_table_offset = write.table.offset
                header.refcount_table_clusters = len(write.table.words) * 8 // core.cluster_size
            core.refcounts.table_moved_from = None
            core.free_saved(moved[0] >> core.cluster_bits, moved[1])

    def end(self) -> None:
        """It is all on the disk."""
        for write in itertools.chain(self._blocks, self._table, self._l2, self._l1):
            write.table.saving -= 1

    def restore(self) -> None:
        """Something did not get there: all entries are unsaved again."""
        self.end()
        for write in itertools.chain(self._blocks, self._table, self._l2, self._l1):
            write.table.touch(*write.span)
