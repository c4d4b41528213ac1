"""The bitmap directory: one entry of variable length for each bitmap ("Bitmap directory").

::

    0         8         12      16     17            18        20           24
    +---------+---------+-------+------+-------------+---------+------------+------------+------+--
    | table   | table   | flags | type | granularity | name    | extra data | extra data | name | …
    | offset  | entries |       |      | bits        | size    | size       |            |      |
    +---------+---------+-------+------+-------------+---------+------------+------------+------+--
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from construct import (
    Aligned,
    Array,
    Bytes,
    ConstructError,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Rebuild,
    Struct,
    len_,
    this,
)

from vdisk.errors import CorruptImageError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.text import decoded, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.formats._qcow2.core import Core

ENTRY = Aligned(
    8,
    Struct(
        "table_offset" / Int64ub,
        "table_size" / Int32ub,
        "flags" / Int32ub,
        "type" / Int8ub,
        "granularity_bits" / Int8ub,
        "name_size" / Rebuild(Int16ub, len_(this.name)),
        "extra_data_size" / Rebuild(Int32ub, len_(this.extra_data)),
        "extra_data" / Bytes(this.extra_data_size),
        "name" / Bytes(this.name_size),
    ),
)


class Entry(NamedTuple):
    """A bitmap as the directory describes it; fields by their names in the specification.

    ``table_size``: entries of the bitmap table.  What this library does not know (``extra_data``,
    reserved ``flags``, another ``type``) is kept as it is.
    """

    name: str
    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    type: int = layout.DIRTY_TRACKING_BITMAP
    extra_data: bytes = b""

    @property
    def granularity(self) -> int:
        """Bytes of the disk that one bit stands for."""
        return 1 << self.granularity_bits

    def bits_for(self, size: int) -> int:
        """Bits that a disk of ``size`` bytes needs."""
        return -(-size >> self.granularity_bits)

    def bytes_for(self, size: int) -> int:
        """Bytes of bitmap data that a disk of ``size`` bytes needs."""
        return -(-self.bits_for(size) // 8)


def read(core: Core) -> dict[str, Entry]:
    """All bitmaps of the image by name, in file order; empty if it has none.

    Raises :class:`CorruptImageError` where the directory or one of its entries breaks a rule.
    """
    header = core.header
    if header.bitmaps is None:
        return {}
    count, size, offset = header.bitmaps
    if not 0 < count <= layout.MAX_BITMAPS:
        _corrupt(core, f"{count} bitmaps (1 to {layout.MAX_BITMAPS} are possible)")
    if size > layout.MAX_BITMAP_DIRECTORY_BYTES:
        _corrupt(
            core,
            f"a bitmap directory of {size} bytes (at most {layout.MAX_BITMAP_DIRECTORY_BYTES})",
        )
    _check_place(core, "the bitmap directory", offset, size)
    found: dict[str, Entry] = {}
    for entry in parse(core.file.read(offset, size), count, path=core.file.name, offset=offset):
        if entry.name in found:
            _corrupt(core, f"two bitmaps are called {entry.name!r}")
        _check_entry(core, entry)
        found[entry.name] = entry
    return found


def parse(data: bytes, count: int, *, path: str, offset: int) -> list[Entry]:
    """``count`` entries that fill ``data``; raises :class:`CorruptImageError` if they do not."""
    try:
        records = Array(count, ENTRY).parse(data)
    except ConstructError as error:
        raise CorruptImageError(
            "the bitmap directory ends inside an entry", path=path, offset=offset
        ) from error
    entries = [
        Entry(
            decoded(record.name),
            record.table_offset,
            record.table_size,
            record.flags,
            record.granularity_bits,
            record.type,
            record.extra_data,
        )
        for record in records
    ]
    if len(data) != sum(_entry_size(entry) for entry in entries):
        raise CorruptImageError(
            f"the bitmap directory is longer than its {count} entries", path=path, offset=offset
        )
    return entries


def build(entries: Iterable[Entry]) -> bytes:
    """The bytes of a directory."""
    return b"".join(
        ENTRY.build({**entry._asdict(), "name": encoded(entry.name)}) for entry in entries
    )


def _entry_size(entry: Entry) -> int:
    length = 24 + len(entry.extra_data) + len(encoded(entry.name))
    return -(-length // 8) * 8


def _check_entry(core: Core, entry: Entry) -> None:
    title = f"bitmap {entry.name!r}"
    name_size = len(encoded(entry.name))
    if not 0 < name_size <= layout.MAX_BITMAP_NAME:
        _corrupt(core, f"a bitmap name of {name_size} bytes (1 to {layout.MAX_BITMAP_NAME})")
    if entry.granularity_bits > layout.LARGEST_GRANULARITY_BITS:
        _corrupt(core, f"{title}: granularity_bits is {entry.granularity_bits} (at most 63)")
    data_bytes = entry.table_size * core.cluster_size
    if data_bytes > layout.MAX_BITMAP_DATA_BYTES:
        _corrupt(
            core,
            f"{title}: its table has {entry.table_size} entries, for {data_bytes} bytes of "
            f"bitmap data (at most {layout.MAX_BITMAP_DATA_BYTES})",
        )
    _check_place(core, f"{title}: its table", entry.table_offset, entry.table_size * 8)
    if not entry.flags & layout.BITMAP_IN_USE and data_bytes < entry.bytes_for(core.header.size):
        _corrupt(core, f"{title}: its table is too small for the disk")


def _check_place(core: Core, what: str, offset: int, length: int) -> None:
    if offset % core.cluster_size or offset < core.cluster_size:
        _corrupt(core, f"{what} does not begin at a cluster boundary behind the header", offset)
    if offset + length > core.file.size:
        _corrupt(core, f"{what} ({length} bytes) reaches past the end of the file", offset)


def _corrupt(core: Core, message: str, offset: int | None = None) -> NoReturn:
    raise CorruptImageError(message, path=core.file.name, offset=offset, operation="read bitmaps")
