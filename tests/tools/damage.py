"""Damaged qcow2 images: an image as bytes whose metadata can be poked, and named damages.

Every damage takes a :class:`Metadata` and breaks one rule of the format in it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from tests.tools import images
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

COPIED = 1 << 63
COMPRESSED = 1 << 62
FAR = 1 << 40
"""A cluster-aligned offset past the end of every image here."""


def sample(*, snapshot: bool = False, compressed: bool = True, **options: Any) -> bytes:
    """An image with data, zero and (if wanted) compressed clusters, and a snapshot of them."""
    store = MemoryStore()
    unit = options.setdefault("cluster_size", 4096)
    size = 64 * max(unit, 64 << 10)
    images.create(store, size, **options)
    image = images.open_image(store)
    image.write(0, b"\x11" * (12 * unit))
    if compressed:
        for number in (20, 21, 22):
            packed = image.compress_cluster(bytes([number]) * unit)
            assert packed is not None
            image.write_compressed(number * unit, packed)
    image.write_zeroes(14 * unit, 2 * unit)
    image.write(size - 6 * unit, b"\x22" * (5 * unit))
    if snapshot:
        image.create_snapshot("before")
        image.write(2 * unit, b"\x33" * (2 * unit))
    image.close()
    return store.content()


class Metadata:
    """The bytes of an image, with its tables found by the header."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def word(self, offset: int) -> int:
        number: int = struct.unpack_from(">Q", self.content, offset)[0]
        return number

    def set_word(self, offset: int, number: int) -> None:
        struct.pack_into(">Q", self.content, offset, number)

    @property
    def cluster_size(self) -> int:
        return 1 << int.from_bytes(self.content[20:24], "big")

    @property
    def refcount_bits(self) -> int:
        return 16 if self.version == 2 else 1 << int.from_bytes(self.content[96:100], "big")

    @property
    def version(self) -> int:
        return int.from_bytes(self.content[4:8], "big")

    @property
    def clusters(self) -> int:
        return -(-len(self.content) // self.cluster_size)

    @property
    def l1(self) -> int:
        """Where the active L1 table is."""
        return self.word(40)

    @property
    def l2(self) -> int:
        """Where the first L2 table is."""
        return self.word(self.l1) & 0x00FF_FFFF_FFFF_FE00

    def entry(self, index: int) -> int:
        """Where entry ``index`` of the first L2 table is."""
        extended = self.version >= 3 and self.word(72) & 16
        return self.l2 + index * (16 if extended else 8)

    @property
    def refcount_table(self) -> int:
        return self.word(48)

    @property
    def refcount_block(self) -> int:
        return self.word(self.refcount_table)

    @property
    def snapshot_table(self) -> int:
        return self.word(64)

    def host(self, index: int) -> int:
        """Where the data of guest cluster ``index`` is."""
        return self.word(self.entry(index)) & 0x00FF_FFFF_FFFF_FE00

    def set_refcount(self, cluster: int, count: int) -> None:
        """Store a count; it must be in the first refcount block."""
        bits = self.refcount_bits
        if bits >= 8:
            width = bits // 8
            at = self.refcount_block + cluster * width
            self.content[at : at + width] = count.to_bytes(width, "big")
        else:
            byte, shift = divmod(cluster * bits, 8)
            mask = (1 << bits) - 1
            at = self.refcount_block + byte
            self.content[at] = self.content[at] & ~(mask << shift) | (count & mask) << shift

    def cluster_of(self, offset: int) -> int:
        return offset // self.cluster_size

    # -- whole changes -----------------------------------------------------------------------------

    def change_entry(self, index: int, change: Callable[[int], int]) -> None:
        self.set_word(self.entry(index), change(self.word(self.entry(index))))

    def change_l1(self, change: Callable[[int], int], index: int = 0) -> None:
        self.set_word(self.l1 + index * 8, change(self.word(self.l1 + index * 8)))

    def change_block(self, change: Callable[[int], int], index: int = 0) -> None:
        at = self.refcount_table + index * 8
        self.set_word(at, change(self.word(at)))


def _truncate(image: Metadata) -> None:
    del image.content[-3 * image.cluster_size :]


DAMAGES: dict[str, Callable[[Metadata], None]] = {
    # reference counts
    "refcount too high": lambda m: m.set_refcount(m.cluster_of(m.host(2)), 2),
    "refcount zero": lambda m: m.set_refcount(m.cluster_of(m.host(2)), 0),
    "refcount of the L1 table zero": lambda m: m.set_refcount(m.cluster_of(m.l1), 0),
    "refcount of an L2 table zero": lambda m: m.set_refcount(m.cluster_of(m.l2), 0),
    "refcount of the header zero": lambda m: m.set_refcount(0, 0),
    "a leaked cluster": lambda m: m.change_entry(0, lambda _old: 0),
    # COPIED flags
    "COPIED unset in L2": lambda m: m.change_entry(2, lambda old: old & ~COPIED),
    "COPIED unset in L1": lambda m: m.change_l1(lambda old: old & ~COPIED),
    "COPIED without a cluster": lambda m: m.change_entry(30, lambda _old: COPIED),
    # L1 entries
    "L1 entry not aligned": lambda m: m.change_l1(lambda old: old + 512),
    "L1 entry past the end": lambda m: m.change_l1(lambda _old: COPIED | FAR),
    "L1 entry with reserved bits": lambda m: m.change_l1(lambda old: old | 1 << 58 | 2),
    "two L1 entries, one L2 table": lambda m: m.change_l1(lambda _old: m.word(m.l1), 1),
    "L1 table as L2 table": lambda m: m.change_l1(lambda _old: COPIED | m.l1),
    "refcount table as L2 table": lambda m: m.change_l1(lambda _old: COPIED | m.refcount_table),
    "refcount block as L2 table": lambda m: m.change_l1(lambda _old: COPIED | m.refcount_block),
    "data as L2 table": lambda m: m.change_l1(lambda _old: COPIED | m.host(2), 1),
    # L2 entries
    "L2 entry not aligned": lambda m: m.change_entry(2, lambda old: old + 512),
    "L2 entry past the end": lambda m: m.change_entry(2, lambda _old: COPIED | FAR),
    "L2 entry with reserved bits": lambda m: m.change_entry(2, lambda old: old | 1 << 57 | 2),
    "zero cluster not aligned": lambda m: m.change_entry(2, lambda old: old + 512 | 1),
    "zero cluster past the end": lambda m: m.change_entry(2, lambda _old: COPIED | FAR | 1),
    "two L2 entries, one cluster": lambda m: m.change_entry(2, lambda _old: m.word(m.entry(3))),
    "L2 table as its own data": lambda m: m.change_entry(2, lambda _old: COPIED | m.l2),
    "L1 table as data": lambda m: m.change_entry(2, lambda _old: COPIED | m.l1),
    "refcount table as data": lambda m: m.change_entry(2, lambda _old: COPIED | m.refcount_table),
    "refcount block as data": lambda m: m.change_entry(2, lambda _old: COPIED | m.refcount_block),
    "compressed and COPIED": lambda m: m.change_entry(20, lambda old: old | COPIED),
    "compressed past the end": lambda m: m.change_entry(20, lambda _old: COMPRESSED | FAR),
    # the refcount structures
    "refcount block not aligned": lambda m: m.change_block(lambda old: old + 512),
    "refcount block past the end": lambda m: m.change_block(lambda _old: FAR),
    "second refcount block past the end": lambda m: m.change_block(lambda _old: FAR, 1),
    "two blocks in one cluster": lambda m: m.change_block(lambda _old: m.refcount_block, 1),
    "refcount block missing": lambda m: m.change_block(lambda _old: 0),
    "refcount block with reserved bits": lambda m: m.change_block(lambda old: old | 3),
    "refcount table past the end": lambda m: m.set_word(48, FAR),
    "refcount table not aligned": lambda m: m.set_word(48, m.refcount_table + 512),
    "refcount table on the L1 table": lambda m: m.set_word(48, m.l1),
    "no refcount table": lambda m: m.content.__setitem__(slice(56, 60), bytes(4)),
    # the file
    "truncated": _truncate,
}

SNAPSHOT_DAMAGES: dict[str, Callable[[Metadata], None]] = {
    "snapshot table past the end": lambda m: m.set_word(64, FAR),
    "snapshot table not aligned": lambda m: m.set_word(64, m.snapshot_table + 8),
    "a snapshot too many": lambda m: m.content.__setitem__(slice(60, 64), b"\0\0\0\2"),
    "snapshot's L1 table not aligned": lambda m: m.set_word(
        m.snapshot_table, m.word(m.snapshot_table) + 512
    ),
    "snapshot's L1 table past the end": lambda m: m.set_word(m.snapshot_table, FAR),
    "snapshot's L1 table too long": lambda m: m.content.__setitem__(
        slice(m.snapshot_table + 8, m.snapshot_table + 12), b"\xff\xff\xff\xff"
    ),
    "snapshot's L1 table is the active one": lambda m: m.set_word(m.snapshot_table, m.l1),
    "snapshot with too much extra data": lambda m: m.content.__setitem__(
        slice(m.snapshot_table + 36, m.snapshot_table + 40), b"\0\1\0\0"
    ),
    "snapshot's L2 table past the end": lambda m: m.set_word(m.word(m.snapshot_table), FAR),
    "COPIED set on a shared cluster": lambda m: m.change_entry(1, lambda old: old | COPIED),
}


def damaged(content: bytes, name: str) -> bytes:
    """The image with the damage of that name."""
    metadata = Metadata(content)
    (DAMAGES.get(name) or SNAPSHOT_DAMAGES[name])(metadata)
    return bytes(metadata.content)
