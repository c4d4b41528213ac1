"""Where a disk's partitions are: MBR, with logical ones, and GPT.

MBR, in sector 0::

    446  four entries of 16 bytes: …, type at 4, first sector:32 at 8, sectors:32 at 12
    510  55 AA

An extended partition (type 5, F or 85) begins with a sector like this, whose first entry is
logical partition 5 (relative to that sector) and whose second points to the next such sector
(relative to the extended partition), and so on.

GPT, in sector 1 where the MBR has an entry of type EE: "EFI PART", entries' first sector:64 at
72, number:32 at 80, bytes of each:32 at 84; an entry has its type's GUID at 0 (zero: unused),
first and last sector:64 at 32 and 40.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from vdisk.errors import FormatError, NotFoundError

if TYPE_CHECKING:
    from vdisk.block import BlockDevice

SECTOR: Final = 512
MAX_LOGICAL: Final = 128
"""Logical partitions that are looked for: a chain of them could be a loop."""
MAX_GPT_ENTRIES: Final = 1024
"""Entries of a GPT; every tool makes 128."""
MAX_GPT_ENTRY: Final = 4096
"""Bytes of an entry; every tool makes 128."""

_MBR_ENTRY: Final = Struct("<4xB3xII")
_GPT_HEADER: Final = Struct("<8s64xQII")
_GPT_ENTRY: Final = Struct("<16s16xQQ")
_EXTENDED: Final = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE: Final = 0xEE


def find_partition(device: BlockDevice, number: int) -> tuple[int, int]:
    """(offset, size) in bytes of partition ``number``, as Linux counts them: from 1.

    Raises :class:`FormatError`, :class:`NotFoundError`.
    """
    entries = _mbr_entries(device, 0)
    if any(kind == _PROTECTIVE for kind, _first, _count in entries):
        found = _gpt_partition(device, number)
    elif number <= 4:
        kind, first, count = entries[number - 1] if number >= 1 else (0, 0, 0)
        found = (first, count) if kind else None
    else:
        found = _logical_partition(device, entries, number)
    if found is None:
        raise NotFoundError(f"there is no partition {number}", path=device.name)
    offset, size = found[0] * SECTOR, found[1] * SECTOR
    if not size or offset + size > device.size:
        raise FormatError(f"partition {number} reaches past the end", path=device.name)
    return offset, size


def _mbr_entries(device: BlockDevice, sector: int) -> list[tuple[int, int, int]]:
    """(type, first sector, sectors) of the four entries."""
    if (sector + 1) * SECTOR > device.size:
        raise FormatError("the partition table lies past the end", path=device.name)
    data = device.read(sector * SECTOR, SECTOR)
    if data[510:] != b"\x55\xaa":
        raise FormatError("there is no partition table", path=device.name, offset=sector * SECTOR)
    return list(_MBR_ENTRY.iter_unpack(data[446:510]))


def _logical_partition(
    device: BlockDevice, entries: list[tuple[int, int, int]], number: int
) -> tuple[int, int] | None:
    base = next((first for kind, first, _count in entries if kind in _EXTENDED), None)
    if base is None or not 5 <= number < 5 + MAX_LOGICAL:
        return None
    sector = base
    for _ in range(5, number):
        kind, first, _count = _mbr_entries(device, sector)[1]
        if kind not in _EXTENDED:
            return None
        sector = base + first
    kind, first, count = _mbr_entries(device, sector)[0]
    return (sector + first, count) if kind else None


def _gpt_partition(device: BlockDevice, number: int) -> tuple[int, int] | None:
    if device.size < 2 * SECTOR:
        raise FormatError("too small for a GPT", path=device.name)
    signature, table, count, each = _GPT_HEADER.unpack(device.read(SECTOR, _GPT_HEADER.size))
    if signature != b"EFI PART" or count > MAX_GPT_ENTRIES or not 128 <= each <= MAX_GPT_ENTRY:
        raise FormatError("the GPT is damaged", path=device.name, offset=SECTOR)
    if not 1 <= number <= count:
        return None
    place = table * SECTOR + (number - 1) * each
    if place + _GPT_ENTRY.size > device.size:
        raise FormatError("the GPT's entries lie past the end", path=device.name)
    kind, first, last = _GPT_ENTRY.unpack(device.read(place, _GPT_ENTRY.size))
    return (first, last - first + 1) if any(kind) and last >= first else None
