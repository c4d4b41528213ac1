"""Internal snapshots: the snapshot table, and taking, applying and deleting one.

Every change ends in one write of the header, which makes it true at once; what surrounds that
write (reference counts, COPIED flags) is repairable, and the image is marked dirty meanwhile,
so that whoever opens it after a cut repairs it first::

    create   references up; L1 copy ............ header names the new snapshot table
    apply    references up; L1 copy ............ header names the new L1; references down
    delete   new snapshot table ................ header names it; references down
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, NamedTuple

from construct import Int16ub, Int32ub, Int64ub, Struct

from vdisk.block import BlockDevice, execute_read
from vdisk.errors import (
    CorruptImageError,
    InvalidRequestError,
    NotFoundError,
    OutOfRangeError,
)
from vdisk.formats._qcow2 import layout, trees
from vdisk.formats._qcow2.compression import CompressedClusters
from vdisk.formats._qcow2.mapping import Mapping
from vdisk.formats._qcow2.tables import Table, words_from_bytes, words_to_bytes
from vdisk.formats._qcow2.text import decoded, encoded
from vdisk.formats._qcow2.zeroing import Writer
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import Extent
    from vdisk.formats._qcow2.core import Core

ENTRY = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_size" / Int16ub,
    "name_size" / Int16ub,
    "date_sec" / Int32ub,
    "date_nsec" / Int32ub,
    "vm_clock_nsec" / Int64ub,
    "vm_state_size" / Int32ub,
    "extra_data_size" / Int32ub,
)
"""The fixed part of a snapshot table entry; extra data, id and name follow."""

EXTRA = Struct("vm_state_size" / Int64ub, "disk_size" / Int64ub, "icount" / Int64ub)
"""Extra data as far as it is defined; an entry may have only its beginning."""

_ENTRY_SIZE = ENTRY.sizeof()
_EXTRA_SIZE = EXTRA.sizeof()
_NO_ICOUNT = (1 << 64) - 1


class SnapshotInfo(NamedTuple):
    """One internal snapshot, by the names of the specification and of qemu-img's JSON.

    ``disk_size``: bytes of the disk then; None in entries too old to say.  ``icount``: None
    unless the machine counted instructions.  ``extra``: unknown extra data, kept.
    """

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    icount: int | None
    disk_size: int | None
    l1_table_offset: int
    l1_size: int
    extra: bytes = b""


# -- the table -------------------------------------------------------------------------------------


def read_table(core: Core) -> list[SnapshotInfo]:
    """All snapshots, in table order.  Raises :class:`CorruptImageError`."""
    return [snapshot for snapshot, _end in _read_entries(core)]


def table_length(core: Core) -> int:
    """Bytes of the snapshot table as it stands in the file.  Raises :class:`CorruptImageError`."""
    ends = [end for _snapshot, end in _read_entries(core)]
    return ends[-1] - core.header.snapshots_offset if ends else 0


def _read_entries(core: Core) -> Iterator[tuple[SnapshotInfo, int]]:
    """Each snapshot and the file offset where its entry ends."""
    offset = core.header.snapshots_offset
    end = offset + layout.MAX_SNAPSHOT_TABLE_BYTES
    for number in range(core.header.nb_snapshots):
        if offset + _ENTRY_SIZE > min(core.file.size, end):
            raise CorruptImageError(
                f"the snapshot table ends before entry {number}", path=core.file.name, offset=offset
            )
        snapshot, length = _read_entry(core, offset)
        offset += round_up(length, 8)
        yield snapshot, offset


def _read_entry(core: Core, offset: int) -> tuple[SnapshotInfo, int]:
    """The entry at a file offset and its unpadded length."""
    fixed = ENTRY.parse(core.file.read(offset, _ENTRY_SIZE))
    if fixed.extra_data_size > layout.MAX_SNAPSHOT_EXTRA:
        raise CorruptImageError(
            f"a snapshot has {fixed.extra_data_size} bytes of extra data "
            f"(at most {layout.MAX_SNAPSHOT_EXTRA})",
            path=core.file.name,
            offset=offset,
        )
    sizes = [fixed.extra_data_size, fixed.id_size, fixed.name_size]
    tail = core.file.read(offset + _ENTRY_SIZE, sum(sizes))
    extra, rest = tail[: sizes[0]], tail[sizes[0] :]
    known = EXTRA.parse(extra[:_EXTRA_SIZE].ljust(_EXTRA_SIZE, b"\0"))
    snapshot = SnapshotInfo(
        id=decoded(rest[: sizes[1]]),
        name=decoded(rest[sizes[1] :]),
        vm_state_size=known.vm_state_size if len(extra) >= 8 else fixed.vm_state_size,
        date_sec=fixed.date_sec,
        date_nsec=fixed.date_nsec,
        vm_clock_nsec=fixed.vm_clock_nsec,
        icount=known.icount if len(extra) >= 24 and known.icount != _NO_ICOUNT else None,
        disk_size=known.disk_size if len(extra) >= 16 else None,
        l1_table_offset=fixed.l1_table_offset,
        l1_size=fixed.l1_size,
        extra=extra[_EXTRA_SIZE:],
    )
    return snapshot, _ENTRY_SIZE + len(tail)


def entry_bytes(snapshot: SnapshotInfo, disk_size: int) -> bytes:
    """A snapshot table entry, padded; ``disk_size`` where the snapshot does not say."""
    name, identity = encoded(snapshot.name), encoded(snapshot.id)
    extra = EXTRA.build(
        {
            "vm_state_size": snapshot.vm_state_size,
            "disk_size": disk_size if snapshot.disk_size is None else snapshot.disk_size,
            "icount": _NO_ICOUNT if snapshot.icount is None else snapshot.icount,
        }
    )
    extra += snapshot.extra
    fixed = ENTRY.build(
        {
            "l1_table_offset": snapshot.l1_table_offset,
            "l1_size": snapshot.l1_size,
            "id_size": len(identity),
            "name_size": len(name),
            "date_sec": snapshot.date_sec,
            "date_nsec": snapshot.date_nsec,
            "vm_clock_nsec": snapshot.vm_clock_nsec,
            "vm_state_size": min(snapshot.vm_state_size, 0xFFFF_FFFF),
            "extra_data_size": len(extra),
        }
    )
    entry: bytes = fixed + extra + identity + name
    return entry.ljust(round_up(len(entry), 8), b"\0")


def table_bytes(snapshots: list[SnapshotInfo], disk_size: int) -> bytes:
    """The whole snapshot table."""
    return b"".join(entry_bytes(snapshot, disk_size) for snapshot in snapshots)


def replace_table(core: Core, new: list[SnapshotInfo]) -> None:
    """Replace the snapshot table, and free what the old one stood in."""
    core.release(*write_table(core, new))


def write_table(core: Core, new: list[SnapshotInfo]) -> tuple[int, int]:
    """Write the new table elsewhere, then point the header at it: all of it or nothing.

    The old one's clusters, which are the caller's to free: (first, count).
    """
    header = core.header
    old_offset = header.snapshots_offset
    old_clusters = -(-table_length(core) // core.cluster_size)
    content = table_bytes(new, header.size)
    if len(new) > layout.MAX_SNAPSHOTS or len(content) > layout.MAX_SNAPSHOT_TABLE_BYTES:
        raise InvalidRequestError("too many snapshots", path=core.file.name)
    clusters = -(-len(content) // core.cluster_size)
    first = core.allocate(clusters)[0] if new else 0
    try:
        if new:
            core.write(first << core.cluster_bits, content)
        core.save()
        with core.header_file.changing():
            header.snapshots_offset, header.nb_snapshots = first << core.cluster_bits, len(new)
    except BaseException:
        core.free_unused(first, clusters)
        raise
    return old_offset >> core.cluster_bits, old_clusters


def find(core: Core, snapshots: list[SnapshotInfo], tag: str) -> SnapshotInfo:
    """The snapshot whose id, or else whose name, is ``tag``."""
    for field in ("id", "name"):
        for snapshot in snapshots:
            if getattr(snapshot, field) == tag:
                return snapshot
    raise NotFoundError(f"no snapshot with the id or name {tag!r}", path=core.file.name)


def load_l1(core: Core, snapshot: SnapshotInfo) -> array[int]:
    """The snapshot's L1 table, checked."""
    offset, length = snapshot.l1_table_offset, snapshot.l1_size * 8
    size = core.header.size if snapshot.disk_size is None else snapshot.disk_size
    problem = None
    if length > layout.MAX_L1_BYTES:
        problem = f"is {length} bytes long (at most {layout.MAX_L1_BYTES})"
    elif offset % core.cluster_size or (length and not offset):
        problem = "does not begin at a cluster boundary"
    elif offset + length > round_up(core.file.size, core.cluster_size):
        problem = "reaches past the end of the file"
    elif snapshot.l1_size < core.header.l1_entries_for(size):
        problem = f"is too small for a disk of {size} bytes"
    if problem is not None:
        raise CorruptImageError(
            f"the L1 table of snapshot {snapshot.id} {problem}", path=core.file.name, offset=offset
        )
    return words_from_bytes(core.file.read(offset, length))


# -- the three changes ---------------------------------------------------------------------------


def create(
    core: Core,
    name: str,
    *,
    vm_state_size: int = 0,
    vm_clock_nsec: int = 0,
    date: float | None = None,
) -> SnapshotInfo:
    """Take a snapshot of the disk as it is now."""
    if not name or len(encoded(name)) > 0xFFFF:
        raise InvalidRequestError("a snapshot name has 1 to 65535 bytes", path=core.file.name)
    now = time.time_ns() if date is None else int(date * 1_000_000_000)
    with core.structural():
        old = read_table(core)
        words = array("Q", [entry & ~layout.COPIED for entry in core.l1.words])
        clusters = core.header.l1_clusters(len(words))
        trees.add_references(core, words)
        try:
            first = core.allocate(clusters)[0] if clusters else 0
        except BaseException:
            trees.drop_references(core, words)
            raise
        try:
            snapshot = SnapshotInfo(
                id=_next_id(old),
                name=name,
                vm_state_size=vm_state_size,
                date_sec=now // 1_000_000_000,
                date_nsec=now % 1_000_000_000,
                vm_clock_nsec=vm_clock_nsec,
                icount=None,
                disk_size=core.header.size,
                l1_table_offset=first << core.cluster_bits,
                l1_size=len(words),
            )
            core.write(snapshot.l1_table_offset, words_to_bytes(words))
            trees.update_copied(core)
            former = write_table(core, [*old, snapshot])
        except BaseException:
            core.free_unused(first, clusters)
            trees.drop_references(core, words)
            raise
        core.release(*former)
    return snapshot


def _next_id(snapshots: list[SnapshotInfo]) -> str:
    numbers = [int(s.id) for s in snapshots if s.id.isascii() and s.id.isdigit()]
    return str(max(numbers, default=0) + 1)


def delete(core: Core, tag: str) -> None:
    """Delete a snapshot and free what only it referred to."""
    with core.structural():
        old = read_table(core)
        snapshot = find(core, old, tag)
        words = load_l1(core, snapshot)
        replace_table(core, [other for other in old if other is not snapshot])
        trees.drop_references(core, words)
        first = snapshot.l1_table_offset >> core.cluster_bits
        core.release(first, core.header.l1_clusters(len(words)))
        trees.update_copied(core)


def apply(core: Core, tag: str) -> int:
    """Make the disk what it was when the snapshot was taken; its size in bytes, then as now."""
    with core.structural():
        snapshot = find(core, read_table(core), tag)
        words = load_l1(core, snapshot)
        old_words = core.l1.words
        size = core.header.size if snapshot.disk_size is None else snapshot.disk_size
        trees.add_references(core, words)
        try:
            old_offset, old_clusters = core.switch_l1(words, size)
        except BaseException:
            trees.drop_references(core, words)
            raise
        core.at_work.wait()
        trees.drop_references(core, old_words)
        core.release(old_offset >> core.cluster_bits, old_clusters)
        trees.update_copied(core)
    return size


class SnapshotView(BlockDevice):
    """The disk as a snapshot holds it, read-only, beside the active one.

    A snapshot with an open view cannot be deleted.
    """

    readonly = True
    format_name = "qcow2"

    def __init__(
        self, core: Core, snapshot: SnapshotInfo, backing: BlockDevice | None, owner: BlockDevice
    ) -> None:
        self.name = f"{core.file.name} (snapshot {snapshot.name!r})"
        self.snapshot = snapshot
        self.backing = backing
        self.image = owner
        self._core = core
        self._size = core.header.size if snapshot.disk_size is None else snapshot.disk_size
        table = Table(snapshot.l1_table_offset, load_l1(core, snapshot))
        self._mapping = Mapping(core, table, backing)
        self._mapping.compressed_source = CompressedClusters(self._mapping)
        self.locate_unit = self._mapping.locate_unit
        self.owns_image = False
        """Closing the view closes the image too (it was opened for this view alone)."""

    @property
    def size(self) -> int:
        return self._size

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self._mapping.locate(offset, length)

    def moves(self) -> int | None:
        return self._mapping.moves()

    def _read_into(self, offset: int, view: memoryview) -> None:
        with self._core.working():
            execute_read(self._mapping.extents(offset, len(view)), offset, view)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        return self._mapping.extents(start, length)

    def read_vm_state(self, offset: int, length: int) -> bytes:
        """Part of the machine state saved with the snapshot, ``snapshot.vm_state_size`` bytes.

        It is stored behind the end of the snapshot's disk.
        """
        if offset < 0 or length < 0 or offset + length > self.snapshot.vm_state_size:
            raise OutOfRangeError(
                f"the VM state has {self.snapshot.vm_state_size} bytes", path=self.name
            )
        start = vm_state_offset(self._core, self._size) + offset
        content = bytearray(length)
        with self._core.working():
            execute_read(self._mapping.extents(start, length), start, memoryview(content))
        return bytes(content)

    def _close(self) -> None:
        if self.owns_image:
            self.image.close()


def vm_state_offset(core: Core, disk_size: int) -> int:
    """Guest offset where VM state begins: the first that no regular L1 entry describes."""
    return core.header.l1_entries_for(disk_size) * core.header.l2_coverage


def write_vm_state(core: Core, mapping: Mapping, state: memoryview, offset: int = 0) -> None:
    """Store machine state behind the disk's end, where the next snapshot will keep it.

    ``offset``: where in the area for such state.
    """
    if not len(state):
        return
    start = vm_state_offset(core, core.header.size) + offset
    entries = core.header.l1_entries_for(start + len(state))
    if entries * 8 > layout.MAX_L1_BYTES:
        raise InvalidRequestError("the VM state is too large", path=core.file.name)
    if entries > len(core.l1.words):
        core.settle()
        missing = array("Q", bytes((entries - len(core.l1.words)) * 8))
        offset, clusters = core.switch_l1(core.l1.words + missing, core.header.size)
        core.release(offset >> core.cluster_bits, clusters)
    Writer(core, mapping, lambda: start + len(state)).write(start, [state])


def drop_vm_state(core: Core, mapping: Mapping, length: int, keep: int = 0) -> None:
    """The active disk need not have this machine state any more: a snapshot has it, or nobody.

    ``length``: of the state; its first ``keep`` bytes stay.
    """
    keep = round_up(keep, core.header.cluster_size)
    if length > keep:
        start = vm_state_offset(core, core.header.size)
        Writer(core, mapping, lambda: start + length).unallocate(start + keep, length - keep)
