"""The gate for a header's offsets and sizes: what is checked before any table is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError, UnsupportedFeatureError
from vdisk.formats._qcow2 import layout

if TYPE_CHECKING:
    from vdisk.formats._qcow2.header import Header

_LARGEST_SIZE = (1 << 63) - 1


def check_header(header: Header, file_size: int, *, path: str) -> None:
    """Refuse tables that are misplaced, oversized, past the end of the file or overlapping.

    Raises :class:`CorruptImageError` or :class:`UnsupportedFeatureError`, naming the rule.
    """
    if header.size > _LARGEST_SIZE:
        raise UnsupportedFeatureError(
            f"a virtual size of {header.size} bytes is larger than 8 EiB - 1", path=path, offset=24
        )
    l1_bytes = header.l1_size * 8
    refcount_bytes = header.refcount_table_clusters << header.cluster_bits
    tables = {
        "L1 table": (header.l1_table_offset, l1_bytes, layout.MAX_L1_BYTES),
        "refcount table": (
            header.refcount_table_offset,
            refcount_bytes,
            layout.MAX_REFCOUNT_TABLE_BYTES,
        ),
    }
    for name, (offset, length, limit) in tables.items():
        _check_table(header, name, offset, length, limit, file_size, path)
    if header.l1_size < header.l1_entries_for(header.size):
        raise CorruptImageError(
            f"the L1 table ({header.l1_size} entries) is too small for {header.size} bytes",
            path=path,
            offset=36,
        )
    if not refcount_bytes:
        raise CorruptImageError("the image has no refcount table", path=path, offset=56)
    if header.nb_snapshots > layout.MAX_SNAPSHOTS:
        raise CorruptImageError(
            f"{header.nb_snapshots} snapshots (at most {layout.MAX_SNAPSHOTS})",
            path=path,
            offset=60,
        )
    if header.nb_snapshots:
        _check_table(header, "snapshot table", header.snapshots_offset, 1, 1, file_size, path)
    if header.external_data and header.nb_snapshots:
        raise CorruptImageError(
            "internal snapshots and an external data file exclude each other", path=path
        )
    if header.data_file_raw and not header.external_data:
        raise CorruptImageError("data-file-raw is set without an external data file", path=path)


def _check_table(
    header: Header, name: str, offset: int, length: int, limit: int, file_size: int, path: str
) -> None:
    if length > limit:
        raise CorruptImageError(
            f"the {name} is {length} bytes long (at most {limit})", path=path, offset=offset
        )
    if offset & (header.cluster_size - 1) or (length and not offset):
        raise CorruptImageError(
            f"the {name} does not begin at a cluster boundary behind the header",
            path=path,
            offset=offset,
        )
    if length and offset + length > file_size and offset + length > _LARGEST_SIZE - 1:
        raise CorruptImageError(f"the {name} does not fit in the file", path=path, offset=offset)
    if length and offset >= file_size:
        raise CorruptImageError(
            f"the {name} begins past the end of the file ({file_size} bytes): truncated?",
            path=path,
            offset=offset,
        )
