"""Where the numbers of a qcow2 image are, found leniently: the image may be broken already."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from fuzz.mutate import Field, Means, change_bytes, change_fields
from vdisk.formats._qcow2 import layout

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

_HEADER = [
    *[(4, 4, Means.COUNT), (8, 8, Means.OFFSET), (16, 4, Means.COUNT), (20, 4, Means.COUNT)],
    *[(24, 8, Means.COUNT), (32, 4, Means.COUNT), (36, 4, Means.COUNT), (40, 8, Means.OFFSET)],
    *[(48, 8, Means.OFFSET), (56, 4, Means.COUNT), (60, 4, Means.COUNT), (64, 8, Means.OFFSET)],
    *[(72, 8, Means.FLAGS), (80, 8, Means.FLAGS), (88, 8, Means.FLAGS), (96, 4, Means.COUNT)],
    *[(100, 4, Means.COUNT), (104, 1, Means.COUNT)],
]
_SNAPSHOT = [
    *[(0, 8, Means.OFFSET), (8, 4, Means.COUNT), (12, 2, Means.COUNT), (14, 2, Means.COUNT)],
    *[(32, 4, Means.COUNT), (36, 4, Means.COUNT), (40, 8, Means.COUNT), (48, 8, Means.COUNT)],
]
_BITMAP = [
    *[(0, 8, Means.OFFSET), (8, 4, Means.COUNT), (12, 4, Means.FLAGS), (16, 1, Means.COUNT)],
    *[(17, 1, Means.COUNT), (18, 2, Means.COUNT), (20, 4, Means.COUNT)],
]
MOST_TABLES = 64
MOST_ENTRIES = 512
UNUSED = 8
"""Entries that are 0 and are fields all the same, of each table: most say nothing."""


class Finder:
    """Follows an image's own offsets as far as they lead anywhere."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.groups: dict[str, list[Field]] = {}
        bits = self._number(20, 4)
        self.unit = 1 << bits if layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS else 512
        self.tables: set[int] = set()

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "big")

    def run(self) -> Finder:
        self._add("header", 0, _HEADER)
        self._extensions()
        self._l1_table(self._number(40, 8), self._number(36, 4))
        self._refcounts()
        self._snapshots()
        return self

    def _add(self, group: str, base: int, fields: list[tuple[int, int, Means]]) -> None:
        found = (Field(base + offset, size, means) for offset, size, means in fields)
        inside = [field for field in found if base >= 0 and field.offset < len(self.data)]
        self.groups.setdefault(group, []).extend(inside)

    def _entries(self, group: str, offset: int, count: int) -> Iterator[int]:
        """The entries of a table of offsets, which become fields."""
        inside = max(min(count, (len(self.data) - offset) // 8, MOST_ENTRIES), 0)
        entries = [self._number(offset + 8 * index, 8) for index in range(inside)]
        used = _mostly_used(entries)
        self._add(group, offset, [(8 * index, 8, Means.OFFSET) for index in used])
        yield from entries

    def _l1_table(self, offset: int, count: int) -> None:
        for entry in self._entries("L1 table", offset, count):
            place = entry & layout.OFFSET_MASK
            if place and place not in self.tables and len(self.tables) < MOST_TABLES:
                self.tables.add(place)
                for _ in self._entries("L2 tables", place, self.unit // 8):
                    pass

    def _refcounts(self) -> None:
        order = min(self._number(96, 4), 6) if self._number(4, 4) == 3 else 4
        size = max((1 << order) // 8, 1)
        count = self._number(56, 4) * self.unit // 8
        for entry in self._entries("refcount table", self._number(48, 8), count):
            if entry:
                cells = range(0, min(self.unit, MOST_ENTRIES), size)
                used = _mostly_used([self._number(entry + cell, size) for cell in cells])
                counts = [(index * size, size, Means.COUNT) for index in used]
                self._add("refcount blocks", entry, counts)

    def _snapshots(self) -> None:
        offset = self._number(64, 8)
        for _ in range(min(self._number(60, 4), MOST_TABLES)):
            if offset + 40 > len(self.data):
                return
            self._add("snapshots", offset, _SNAPSHOT)
            self._l1_table(self._number(offset, 8), self._number(offset + 8, 4))
            sizes = self._number(offset + 12, 2) + self._number(offset + 14, 2)
            offset += (40 + self._number(offset + 36, 4) + sizes + 7) // 8 * 8

    def _extensions(self) -> None:
        position = self._number(100, 4) if self._number(4, 4) == 3 else layout.V2_HEADER_LENGTH
        while position + 8 <= min(len(self.data), self.unit):
            kind, length = struct.unpack_from(">II", self.data, position)
            header = [(0, 4, Means.COUNT), (4, 4, Means.COUNT)]
            self._add("extensions", position, header)
            if kind == layout.EXT_END:
                return
            if kind in (layout.EXT_BITMAPS, layout.EXT_CRYPTO):
                numbers = [(8, 4, Means.COUNT), (16, 8, Means.COUNT), (24, 8, Means.OFFSET)]
                self._add("extensions", position, numbers)
            if kind == layout.EXT_BITMAPS:
                self._bitmaps(self._number(position + 24, 8), self._number(position + 8, 4))
            position += 8 + (length + 7) // 8 * 8

    def _bitmaps(self, offset: int, count: int) -> None:
        for _ in range(min(count, MOST_TABLES)):
            if offset + 24 > len(self.data):
                return
            self._add("bitmaps", offset, _BITMAP)
            table, entries = self._number(offset, 8), self._number(offset + 8, 4)
            for _entry in self._entries("bitmap tables", table, entries):
                pass
            sizes = self._number(offset + 18, 2) + self._number(offset + 20, 4)
            offset += (24 + sizes + 7) // 8 * 8


def _mostly_used(entries: list[int]) -> list[int]:
    """Where entries are not 0, and the first few of the others."""
    unused = [index for index, entry in enumerate(entries) if not entry]
    return [index for index, entry in enumerate(entries) if entry] + unused[:UNUSED]


def change_image(data: bytes, rng: random.Random) -> bytes:
    """The image with a few numbers changed, now and then a few bytes."""
    image = bytearray(data)
    finder = Finder(image).run()
    if rng.random() < 0.85:
        change_fields(image, finder.groups, rng, finder.unit)
    else:
        change_bytes(image, rng, finder.unit)
    return bytes(image)
