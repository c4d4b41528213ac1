"""What the format forbids in an L1 or L2 entry, and what such an entry can be replaced by.

The check reports these defects and the repair removes them, so both ask here.  A replacement
never changes what a reader of the image sees, with one exception: a guest cluster whose host
cluster lies past the end of the file reads as zeroes afterwards (its bytes are lost already).
Where only guessing would help there is no replacement, and the defect stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.allocation import compressed_range

if TYPE_CHECKING:
    from vdisk.formats._qcow2.header import Header

_BITMAP_HALF = layout.ALL_ALLOCATED


class Defect(NamedTuple):
    """A broken rule, in words, and the entry to put in its place (None: there is none).

    An L2 entry's replacement is (entry, subcluster bitmap), an L1 entry's (entry, 0).
    """

    message: str
    replacement: tuple[int, int] | None = None


class EntryRules:
    """The rules for the entries of one image whose file is ``file_size`` bytes long."""

    def __init__(self, header: Header, file_size: int) -> None:
        self.cluster_bits = header.cluster_bits
        self.within = header.cluster_size - 1
        self.file_size = file_size
        self.version = header.version
        self.extended = header.extended_l2
        self.external = header.external_data
        self.raw_data = header.data_file_raw
        self.has_backing = header.backing_file is not None

    def host_offset(self, entry: int) -> int:
        """The host offset in a standard entry, aligned or not."""
        return entry & layout.OFFSET_MASK

    # -- L1 ------------------------------------------------------------------------------------

    def l1_defect(self, entry: int) -> Defect | None:
        """What is wrong with an L1 entry that is not 0."""
        offset = self.host_offset(entry)
        if offset & self.within:
            return Defect(f"the L2 table's offset {offset:#x} is not cluster-aligned")
        if offset >= self.file_size:
            return Defect(f"the L2 table at {offset:#x} is past the end of the file", (0, 0))
        if entry & layout.L1_RESERVED:
            return Defect("reserved bits are set", (entry & ~layout.L1_RESERVED, 0))
        if not offset:
            return Defect("the COPIED flag is set without an L2 table", (0, 0))
        return None

    def mended_l1(self, entry: int) -> int:
        """The entry with everything replaced that has a replacement."""
        while entry:
            defect = self.l1_defect(entry)
            if defect is None or defect.replacement is None:
                break
            entry, _ = defect.replacement
        return entry

    # -- L2 ------------------------------------------------------------------------------------

    def l2_defect(self, entry: int, bitmap: int, guest_cluster: int) -> Defect | None:
        """What is wrong with an L2 entry (``bitmap``: 0 where there are no subclusters)."""
        if entry & layout.COMPRESSED:
            return self._compressed_defect(entry, bitmap)
        return (
            self._reserved_defect(entry, bitmap)
            or self._bitmap_defect(entry, bitmap)
            or self._offset_defect(entry, bitmap, guest_cluster)
            or self._flag_defect(entry, bitmap)
        )

    def mended_l2(self, entry: int, bitmap: int, guest_cluster: int) -> tuple[int, int]:
        """Entry and bitmap with everything replaced that has a replacement."""
        while entry or bitmap:
            defect = self.l2_defect(entry, bitmap, guest_cluster)
            if defect is None or defect.replacement is None:
                break
            entry, bitmap = defect.replacement
        return entry, bitmap

    def _compressed_defect(self, entry: int, bitmap: int) -> Defect | None:
        offset, size = compressed_range(entry, self.cluster_bits)
        if self.external:
            return Defect("a compressed cluster in an image with an external data file")
        if entry & ((1 << 62 - (self.cluster_bits - 8)) - 1) != offset:
            return Defect("the compressed cluster's offset has more than 56 bits")
        if offset >= self.file_size or offset + size > self.file_size + self.within:
            return Defect(f"the compressed cluster at {offset:#x} is past the end of the file")
        if entry & layout.COPIED:
            return Defect(
                "the COPIED flag is set on a compressed cluster", (entry & ~layout.COPIED, 0)
            )
        if bitmap:
            return Defect("a compressed cluster has a subcluster bitmap", (entry, 0))
        return None

    def _reserved_defect(self, entry: int, bitmap: int) -> Defect | None:
        reserved = layout.L2_STANDARD_RESERVED | (layout.ZERO if self.extended else 0)
        if entry & reserved:
            return Defect("reserved bits are set", (entry & ~reserved, bitmap))
        if self.version < 3 and entry & layout.ZERO:
            return Defect("a zero cluster in a version 2 image")
        return None

    def _bitmap_defect(self, entry: int, bitmap: int) -> Defect | None:
        if bitmap & bitmap >> 32 & _BITMAP_HALF:
            return Defect(f"subclusters are both allocated and zero (bitmap {bitmap:#018x})")
        if bitmap & _BITMAP_HALF and not entry & (layout.OFFSET_MASK | layout.COPIED):
            return Defect(f"subclusters are allocated in no cluster (bitmap {bitmap:#018x})")
        return None

    def _offset_defect(self, entry: int, bitmap: int, guest_cluster: int) -> Defect | None:
        offset = self.host_offset(entry)
        if offset & self.within:
            lost = None if self._holds_data(entry, bitmap) else self._emptied(entry, bitmap)
            return Defect(f"the host offset {offset:#x} is not cluster-aligned", lost)
        if self.external:
            return self._external_defect(entry, bitmap, guest_cluster)
        if offset >= self.file_size:
            emptied = self._emptied(entry, bitmap)
            return Defect(f"the host cluster at {offset:#x} is past the end of the file", emptied)
        return None

    def _external_defect(self, entry: int, bitmap: int, guest_cluster: int) -> Defect | None:
        offset, wanted = self.host_offset(entry), guest_cluster << self.cluster_bits
        if offset == wanted or (not offset and not entry & layout.COPIED):
            return None
        moved = (entry & ~layout.OFFSET_MASK | wanted, bitmap) if self.raw_data else None
        return Defect(
            f"offset {offset:#x} in the external data file is not the guest offset {wanted:#x}",
            moved,
        )

    def _flag_defect(self, entry: int, bitmap: int) -> Defect | None:
        offset, copied = self.host_offset(entry), entry & layout.COPIED
        if copied and not offset and not self.external:
            return Defect(
                "the COPIED flag is set without a host cluster",
                (entry & ~layout.COPIED, bitmap & ~_BITMAP_HALF),
            )
        if self.external and offset and not copied:
            return Defect(
                "the COPIED flag is missing, though nothing shares an external data file",
                (entry | layout.COPIED, bitmap),
            )
        return None

    def _holds_data(self, entry: int, bitmap: int) -> bool:
        """Some of the guest's bytes are read from the host cluster."""
        return bool(bitmap & _BITMAP_HALF) if self.extended else not entry & layout.ZERO

    def _emptied(self, _entry: int, bitmap: int) -> tuple[int, int] | None:
        """The same guest cluster without a host cluster: what it read from there reads as zero."""
        if self.extended:
            return 0, bitmap & ~_BITMAP_HALF | (bitmap & _BITMAP_HALF) << 32
        if self.version >= 3:
            return layout.ZERO, 0
        return None if self.has_backing else (0, 0)
