"""The tree under an L1 table: which host clusters it refers to, and the COPIED flags in it.

Snapshots share trees by counting references: taking one adds a reference to every L2 table and
data cluster of the active tree, deleting one takes its tree's references away.  Afterwards the
active tree's COPIED flags (refcount is exactly one: may be written in place) are set anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.allocation import compressed_range
from vdisk.formats._qcow2.mapping import run_length
from vdisk.formats._qcow2.tables import words_from_bytes, words_to_bytes

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from vdisk.formats._qcow2.core import Core


def references(core: Core, l1: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs (first host cluster, count) that the tree refers to, once for each reference.

    Everything must have been saved: L2 tables are read from the file.
    """
    for index, entry in enumerate(l1):
        offset = core.checked_l2_offset(entry, index)
        if offset:
            yield offset >> core.cluster_bits, 1
            for _, length, cluster in _data_runs(core, _read_table(core, offset)):
                yield cluster, length


def _read_table(core: Core, offset: int) -> array[int]:
    return words_from_bytes(core.file.read(offset, core.cluster_size))


def _data_runs(core: Core, words: array[int]) -> Iterator[tuple[int, int, int]]:
    """(entry index, entries, first host cluster) for runs of entries with host clusters.

    A compressed cluster comes as a run of the host clusters that it touches, its entry index
    alone being of use; an external data file's clusters are not counted and do not come.
    """
    external = core.header.external_data
    entries = words if core.entry_words == 1 else words[::2]
    index, count = 0, len(entries)
    while index < count:
        entry = entries[index]
        step = core.cluster_size if entry & layout.OFFSET_MASK else 0
        if entry & layout.COMPRESSED:
            offset, size = compressed_range(entry, core.cluster_bits)
            first = offset >> core.cluster_bits
            yield index, ((offset + size - 1) >> core.cluster_bits) - first + 1, first
            index += 1
            continue
        length = run_length(entries, index, count - index, step) if index + 1 < count else 1
        if step and not external:
            yield index, length, (entry & layout.OFFSET_MASK) >> core.cluster_bits
        index += length


def add_references(core: Core, l1: array[int]) -> None:
    """One reference more to everything the tree refers to; all of them or, on an error, none."""
    done: list[tuple[int, int]] = []
    try:
        for cluster, count in references(core, l1):
            core.refcounts.increase(cluster, count)
            done.append((cluster, count))
    except BaseException:
        for cluster, count in done:
            core.refcounts.decrease(cluster, count)
        raise


def drop_references(core: Core, l1: array[int]) -> None:
    """One reference less to everything the tree refers to; what is then free is free at once."""
    for cluster, count in list(references(core, l1)):
        core.release(cluster, count)


def update_copied(core: Core) -> None:
    """Make the COPIED flags of the active tree say what the reference counts say."""
    for index, entry in enumerate(core.l1.words):
        offset = core.checked_l2_offset(entry, index)
        if offset:
            update_entry(core, index, offset)


def update_entry(core: Core, index: int, offset: int) -> None:
    """The same for one entry of the active L1 table, and the L2 table at ``offset`` under it."""
    copied = core.refcounts.count(offset >> core.cluster_bits) == 1
    flagged = offset | (layout.COPIED if copied else 0)
    with core.lock:
        if flagged != core.l1.words[index]:
            core.set_l1(index, flagged)
        _update_table(core, offset)


def _update_table(core: Core, offset: int) -> None:
    words = _read_table(core, offset)
    updated = words[:]
    for index, length, cluster in _data_runs(core, words):
        if not words[index * core.entry_words] & layout.COMPRESSED:
            _flag_run(core, updated, index, length, cluster)
    if updated != words:
        core.l2.drop(offset, offset + core.cluster_size)  # first: a failed write may arrive
        core.write(offset, words_to_bytes(updated))


def _flag_run(core: Core, words: array[int], index: int, length: int, cluster: int) -> None:
    counts = core.refcounts.counts(cluster, length)
    width = core.entry_words
    for done, count in enumerate(counts):
        at = (index + done) * width
        if count == 1:
            words[at] |= layout.COPIED
        else:
            words[at] &= ~layout.COPIED
