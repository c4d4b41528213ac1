"""Cylinders, heads, sectors: what disks pretend to have, and what a BIOS makes of it.

Two geometries belong to a disk.  The *physical* one is what ATA's IDENTIFY tells (at most 16383
cylinders, 16 heads, 63 sectors); the *logical* one is what int 13h functions 02h to 08h speak of
(at most 1024 cylinders, 256 heads, 63 sectors).  A *translation* leads from one to the other
(Phoenix, "BIOS Enhanced Disk Drive Specification" 3.0, section 5; ATA/ATAPI-6 annex on CHS)::

    NONE       logical = physical
    LARGE      halve the cylinders and double the heads until 1024 cylinders are enough
    LBA        63 sectors, and 16, 32, 64, 128 or 255 heads by the size (LBA-assist)

A disk that was partitioned on another machine keeps that machine's logical geometry in its
partition table, and its boot code counts on it; so the table is looked at first.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError, VdiskError

if TYPE_CHECKING:
    from vdisk.block import BlockDevice

MAX_CYLINDERS = 16383  # ATA/ATAPI-6, 6.2.1: what a disk of more than 8.4 GB tells
MAX_LOGICAL_CYLINDERS = 1024  # int 13h has ten bits
DEFAULT_HEADS = 16
MAX_SECTORS = 63
_SECTOR = 512
_LBA_HEADS = (16, 32, 64, 128, 255)
_LARGE_LIMIT = 131072  # cylinders times heads that LARGE can bring below 1024 cylinders


class Translation(enum.Enum):
    """How a BIOS makes logical cylinders of physical ones."""

    NONE = "none"
    LARGE = "large"
    LBA = "lba"


class Geometry(NamedTuple):
    """Counts; sectors are numbered from 1 on a track."""

    cylinders: int
    heads: int
    sectors: int

    @property
    def total(self) -> int:
        """Sectors that can be reached."""
        return self.cylinders * self.heads * self.sectors

    def lba(self, cylinder: int, head: int, sector: int) -> int | None:
        """The number of a sector; None if this disk has no such sector."""
        if not 1 <= sector <= self.sectors or head >= self.heads or cylinder >= self.cylinders:
            return None
        return (cylinder * self.heads + head) * self.sectors + sector - 1

    def checked(self) -> Geometry:
        """Itself, if a disk may have it; else :class:`InvalidRequestError`."""
        ranges = ((self.cylinders, 65535), (self.heads, 255), (self.sectors, 255))
        if not all(1 <= value <= largest for value, largest in ranges):
            raise InvalidRequestError(
                f"a disk of {self.cylinders} cylinders, {self.heads} heads and {self.sectors} "
                f"sectors: at least 1 of each, at most 65535, 255 and 255"
            )
        return self


class DiskGeometry(NamedTuple):
    """Both geometries, and the translation between them."""

    physical: Geometry
    logical: Geometry
    translation: Translation


def for_size(sectors: int) -> Geometry:
    """The physical geometry of a disk of ``sectors`` 512-byte sectors, as disks tell it."""
    cylinders = sectors // (DEFAULT_HEADS * MAX_SECTORS)
    return Geometry(min(max(cylinders, 2), MAX_CYLINDERS), DEFAULT_HEADS, MAX_SECTORS)


def translate(physical: Geometry, translation: Translation, sectors: int) -> Geometry:
    """The logical geometry that a BIOS shows."""
    if translation is Translation.NONE:
        cylinders, heads, track = physical
    elif translation is Translation.LARGE:
        cylinders, heads, track = physical
        while cylinders > MAX_LOGICAL_CYLINDERS and heads < 128:
            cylinders, heads = cylinders >> 1, heads << 1
    else:
        track = MAX_SECTORS
        needed = sectors / track / MAX_LOGICAL_CYLINDERS
        heads = next((count for count in _LBA_HEADS if needed <= count), _LBA_HEADS[-1])
        cylinders = sectors // (heads * track)
    return Geometry(min(max(cylinders, 1), MAX_LOGICAL_CYLINDERS), heads, track)


def usual_translation(physical: Geometry) -> Translation:
    """What a BIOS chooses by itself."""
    if physical.cylinders <= MAX_LOGICAL_CYLINDERS:
        return Translation.NONE
    if physical.cylinders * physical.heads <= _LARGE_LIMIT:
        return Translation.LARGE
    return Translation.LBA


def of_partition_table(sector: bytes, sectors: int) -> Geometry | None:
    """The logical geometry that a partition table was written with, if it shows one.

    An entry ends at the last head and sector of a cylinder: head in byte 5, sector in the low
    six bits of byte 6.
    """
    if len(sector) < _SECTOR or sector[510:512] != b"\x55\xaa":
        return None
    for start in range(446, 510, 16):
        entry = sector[start : start + 16]
        heads, track = entry[5] + 1, entry[6] & 63
        if not int.from_bytes(entry[12:16], "little") or heads == 1 or not track:
            continue
        cylinders = sectors // (heads * track)
        if 1 <= cylinders <= MAX_CYLINDERS:
            return Geometry(cylinders, heads, track)
    return None


def guess(device: BlockDevice | None, given: Geometry | None = None) -> DiskGeometry:
    """The geometry of a disk; ``given``: its physical one, where the user has said it."""
    sectors = 0 if device is None else device.size // _SECTOR
    if given is not None:
        given.checked()
        translation = usual_translation(given)
        return DiskGeometry(given, translate(given, translation, sectors), translation)
    physical = for_size(sectors)
    found = of_partition_table(_first_sector(device), sectors)
    if found is None:
        translation = usual_translation(physical)
        return DiskGeometry(physical, translate(physical, translation, sectors), translation)
    if found.heads <= DEFAULT_HEADS:  # what the table shows is not translated
        logical = found._replace(cylinders=min(found.cylinders, MAX_LOGICAL_CYLINDERS))
        return DiskGeometry(found, logical, usual_translation(found))
    logical = found._replace(cylinders=min(found.cylinders, MAX_LOGICAL_CYLINDERS))
    return DiskGeometry(physical, logical, Translation.LBA)


def _first_sector(device: BlockDevice | None) -> bytes:
    if device is None or device.size < _SECTOR:
        return b""
    try:
        return device.read(0, _SECTOR)
    except VdiskError:  # the disk still has a geometry where its first sector cannot be read
        return b""
