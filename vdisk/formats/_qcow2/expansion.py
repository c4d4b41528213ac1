"""Writing out the zero clusters of snapshots, for a version that has none (amend to compat=0.10).

A snapshot's disk is never written to, so its tables are changed where they stand.  One that
several snapshots share is changed once, for all of them::

    zero, no backing file shows      -> unallocated
    zero, a backing file would show  -> a new cluster of zeroes, referenced as often as the table

What a zero cluster had for a host cluster loses those references; it is not zeroed and used
instead, since another table may hold the same cluster for its data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.formats._qcow2 import layout, snapshots, trees
from vdisk.formats._qcow2.tables import words_from_bytes, words_to_bytes

if TYPE_CHECKING:
    from array import array

    from vdisk.formats._qcow2.core import Core


def expand_snapshots(core: Core, shown: int) -> None:
    """Leave no zero cluster in any snapshot; ``shown``: bytes of the backing file, 0 for none.

    The disk itself has none any more; its L2 entries are standard ones.
    """
    with core.structural():
        expansion = _Expansion(core, shown)
        for snapshot in snapshots.read_table(core):
            for index, entry in enumerate(snapshots.load_l1(core, snapshot)):
                offset = core.checked_l2_offset(entry, index)
                if offset:
                    expansion.expand_table(offset, index << (core.l2_bits + core.cluster_bits))
        trees.update_copied(core)


class _Expansion:
    def __init__(self, core: Core, shown: int) -> None:
        self._core = core
        self._shown = shown
        self._done: set[int] = set()

    def expand_table(self, offset: int, start: int) -> None:
        """Change the L2 table at ``offset``, which describes the disk from ``start`` on."""
        if offset in self._done:
            return
        self._done.add(offset)
        core = self._core
        old = words_from_bytes(core.file.read(offset, core.cluster_size))
        words, given_up = old[:], []
        references = core.refcounts.count(offset >> core.cluster_bits)
        for index, entry in enumerate(old):
            if entry & layout.ZERO and not entry & layout.COMPRESSED:
                shows = start + (index << core.cluster_bits) < self._shown
                words[index] = self._zeroes(references) if shows else 0
                if host := entry & layout.OFFSET_MASK:
                    given_up.append(host >> core.cluster_bits)
        if words != old:
            self._replace(offset, words)
        for cluster in given_up:
            for _ in range(references):
                core.release(cluster, 1)

    def _zeroes(self, references: int) -> int:
        """The entry of a new cluster of zeroes."""
        core = self._core
        with core.lock:
            cluster, fresh = core.allocate(1)
            for _ in range(references - 1):
                core.refcounts.increase(cluster)
        host = cluster << core.cluster_bits
        core.file.write_zeroes(host, core.cluster_size, unmap=fresh)
        return host | (layout.COPIED if references == 1 else 0)

    def _replace(self, offset: int, words: array[int]) -> None:
        """Write the table over; the counts and data that it refers to are stable before."""
        core = self._core
        core.save()
        with core.lock:
            core.l2.drop(offset, offset + core.cluster_size)
            core.write(offset, words_to_bytes(words))
        core.barrier()
