"""The gate for a header's offsets and sizes: what is checked before any table is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError, UnsupportedFeatureError
from vdisk.formats._qcow2 import layout

if TYPE_CHECKING:
    from vdisk.formats._qcow2.header import Header

_LARGEST_SIZE = (1 << 63) - 1


def check_header(header: Header, file_size: int, *, path: str, checking: bool = False) -> None:
    """Refuse tables that are misplaced, oversized, past the end of the file or overlapping.

    ``checking``: let those pass that a check reports and a repair can replace.
    Raises :class:`CorruptImageError` or :class:`UnsupportedFeatureError`, naming the rule.
    """
    if header.size > _LARGEST_SIZE:
        raise UnsupportedFeatureError(
            f"a virtual size of {header.size} bytes is larger than 8 EiB - 1", path=path, offset=24
        )
    _check_table(
        header,
        "L1 table",
        header.l1_table_offset,
        header.l1_size * 8,
        layout.MAX_L1_BYTES,
        file_size,
        path,
    )
    if header.l1_size < header.l1_entries_for(header.size):
        raise CorruptImageError(
            f"the L1 table ({header.l1_size} entries) is too small for {header.size} bytes",
            path=path,
            offset=36,
        )
    if not checking:
        check_refcount_table(header, file_size, path=path)
        check_snapshot_table(header, file_size, path=path)
    if header.external_data and header.nb_snapshots:
        raise CorruptImageError(
            "internal snapshots and an external data file exclude each other", path=path
        )
    if header.data_file_raw and not header.external_data:
        raise CorruptImageError("data-file-raw is set without an external data file", path=path)


def check_refcount_table(header: Header, file_size: int, *, path: str) -> None:
    """Refuse a refcount table that is missing or misplaced."""
    length = header.refcount_table_clusters << header.cluster_bits
    _check_table(
        header,
        "refcount table",
        header.refcount_table_offset,
        length,
        layout.MAX_REFCOUNT_TABLE_BYTES,
        file_size,
        path,
    )
    if not length:
        raise CorruptImageError("the image has no refcount table", path=path, offset=56)


def check_snapshot_table(header: Header, file_size: int, *, path: str) -> None:
    """Refuse a snapshot table that is misplaced or has too many entries."""
    if header.nb_snapshots > layout.MAX_SNAPSHOTS:
        raise CorruptImageError(
            f"{header.nb_snapshots} snapshots (at most {layout.MAX_SNAPSHOTS})",
            path=path,
            offset=60,
        )
    if header.nb_snapshots:
        _check_table(header, "snapshot table", header.snapshots_offset, 1, 1, file_size, path)


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
