"""What must not be overwritten: where the image's own metadata stands in the file.

An image whose tables place a guest cluster on other tables, or whose reference counts call a table
free, is damaged, or made so that a guest which writes to its disk rewrites the image's map.  So
each range is looked at before it is written, as far as that needs no reading::

    header | L1 table | refcount table | refcount blocks | L2 tables that are in memory
                        stored, and the one that is growing in its place
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.formats._qcow2.core import Core


def check_guest_data(core: Core, offset: int, length: int) -> None:
    """Refuse to write guest data over metadata: such an image is corrupt or hostile."""
    check_unused(core, offset, length)
    end = offset + length
    if end > core.file.size and not core.refcounts.count((end - 1) >> core.cluster_bits):
        raise core.corrupt("a guest cluster lies past everything that is allocated", offset)


def check_unused(core: Core, offset: int, length: int) -> None:
    """Refuse to use clusters for anything new that hold metadata: their counts are wrong."""
    size, tables, blocks = core.cluster_size, core.l2.tables, core.refcounts.places
    start, end = offset & -size, offset + length
    if start + size >= end:
        hit = start in tables or start in blocks
    else:
        clusters = range(start, end, size)
        hit = not (tables.keys().isdisjoint(clusters) and blocks.isdisjoint(clusters))
    if hit or not start or _is_fixed(core, offset, end):
        raise core.corrupt("a cluster to be written overlaps the image's own metadata", offset)


def _is_fixed(core: Core, offset: int, end: int) -> bool:
    """Whether the range touches the L1 table or a refcount table."""
    header, l1, counts = core.header, core.l1, core.refcounts
    table, stored = counts.table, header.refcount_table_offset
    return (
        (l1.offset < end and offset < l1.offset + header.l1_size * 8)
        or (stored < end and offset < stored + header.refcount_table_clusters * core.cluster_size)
        or (
            not counts.growing
            and table.offset < end
            and offset < table.offset + len(table.words) * 8
        )
    )
