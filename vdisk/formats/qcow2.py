"""qcow2: a disk that grows, remembers and refers (QEMU docs/interop/qcow2).

This is the face; the parts are in ``_qcow2``: ``layout`` and ``header`` (the bytes), ``core``
(tables in memory and the order they are saved in), ``mapping`` (reading), ``allocation`` and
``zeroing`` (writing), ``snapshots``, ``bitmaps``, ``check``, ``amend``, ``create``.

::

    guest offset --L1, L2--> kind + host offset ----> the file, the data file,
                                |                     a decompressor
                                '- unallocated -----> the backing file, or zeroes
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from vdisk.block import BlockDevice, Extent, Kind, close_all, execute_read, execute_readv
from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.at_work import Writing
from vdisk.formats._qcow2.bitmaps import Bitmaps
from vdisk.formats._qcow2.compression import CompressedClusters, compress
from vdisk.formats._qcow2.core import Core
from vdisk.formats._qcow2.driver import Qcow2Driver
from vdisk.formats._qcow2.mapping import Mapping
from vdisk.formats._qcow2.opening import read_header
from vdisk.formats._qcow2.zeroing import Writer

__all__ = ["DRIVER", "Qcow2Image", "read_header"]

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from collections.abc import Mapping as Options
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from vdisk.formats._qcow2.bitmaps import BitmapInfo
    from vdisk.formats._qcow2.crypto import Encryption
    from vdisk.formats._qcow2.findings import CheckResult
    from vdisk.formats._qcow2.header import Header
    from vdisk.formats._qcow2.snapshots import SnapshotInfo, SnapshotView
    from vdisk.formats._qcow2.vm_state import VmStateArea


class Qcow2Image(BlockDevice):
    """An open qcow2 image.

    ``file``: the file with the metadata; ``data_file``: the external data file, if any;
    ``backing``: the opened backing file, if any.  The image owns and closes all three.
    """

    format_name = "qcow2"
    zeroes_fast = True

    def __init__(
        self,
        file: BlockDevice,
        header: Header,
        *,
        readonly: bool = True,
        backing: BlockDevice | None = None,
        data_file: BlockDevice | None = None,
        encryption: Encryption | None = None,
        options: Options[str, Any] | None = None,
    ) -> None:
        self.file = file
        self.name = file.name
        self.header = header
        self.readonly = readonly
        self.backing = backing
        self.data_file = data_file
        self._options = dict(options or {})
        self._core = Core(
            file,
            header,
            readonly=readonly,
            l2_cache=self._options.get("l2-cache-size", layout.DEFAULT_L2_CACHE),
            refcount_cache=self._options.get("refcount-cache-size", layout.DEFAULT_REFCOUNT_CACHE),
        )
        if data_file is not None:
            self._core.data = data_file
        self._core.encryption = encryption
        self._core.discard_freed = bool(self._options.get("pass-discard-request", True))
        self._core.lazy_refcounts = self._options.get("lazy-refcounts", header.lazy_refcounts)
        below = backing._mapping if isinstance(backing, Qcow2Image) else None
        self._mapping: Mapping = Mapping(self._core, self._core.l1, backing, below)
        self._compressed = CompressedClusters(self._mapping)
        self._mapping.compressed_source = self._compressed
        self._core.on_release = self._compressed.forget
        self._views: WeakSet[SnapshotView] = WeakSet()
        self._writer = Writer(self._core, self._mapping, lambda: self.header.size)
        self._bitmaps = Bitmaps(self._core)
        self.locate_unit = self._mapping.locate_unit

    # -- the device ------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return self.header.size

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster, the unit of allocation."""
        return self._core.cluster_size

    @property
    def encryption(self) -> Encryption | None:
        """How the guest data is encrypted; None if it is not."""
        return self._core.encryption

    @property
    def subcluster_size(self) -> int:
        """Bytes of a subcluster; a cluster where there are none."""
        return self.cluster_size // (layout.SUBCLUSTERS if self.header.extended_l2 else 1)

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self._mapping.locate(offset, length)

    def _read_into(self, offset: int, view: memoryview) -> None:
        ticket = self._core.at_work.begin()
        try:
            found = self._mapping.locate(offset, len(view))
            self._core.file.note("read_aio")
            if found is not None:
                found[0].read_into(found[1], view)
            else:
                execute_read(self._mapping.extents(offset, len(view)), offset, view)
        finally:
            self._core.at_work.end(ticket)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        length = sum(map(len, views))
        ticket = self._core.at_work.begin()
        try:
            found = self._mapping.locate(offset, length)
            self._core.file.note("read_aio")
            if found is not None:
                found[0].readv(found[1], views)
            else:
                execute_readv(self._mapping.extents(offset, length), offset, views)
        finally:
            self._core.at_work.end(ticket)

    def moves(self) -> int | None:
        return self._mapping.moves()

    def hold(self) -> AbstractContextManager[None]:
        """While inside, host offsets found by ``map`` and ``locate`` stay this disk's own."""
        return nullcontext() if self.readonly else self._core.working()

    def locate_to_write(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        if (record := self._bitmaps.record) is not None:
            record(offset, length)
        return self._writer.locate(offset, length)

    def hold_to_write(self) -> Writing:
        """While inside, nobody changes the structure, and a place that was found stays one."""
        return Writing(self._core.gate, self._core.at_work)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        return self._mapping.extents(start, length)

    def _write(self, offset: int, view: memoryview) -> None:
        self._writev(offset, [view])

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        with self.hold_to_write():
            if (record := self._bitmaps.record) is not None:
                record(offset, sum(map(len, views)))
            self._writer.write(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._core.gate.shared, self._core.working():
            if (record := self._bitmaps.record) is not None:
                record(offset, length)
            self._writer.write_zeroes(offset, length, unmap)

    def _discard(self, offset: int, length: int) -> None:
        with self._core.gate.shared, self._core.working():
            if (record := self._bitmaps.record) is not None:
                record(offset, length)
            self._writer.discard(offset, length)

    def unallocate(self) -> None:
        """Give up every cluster of the disk, so that the backing file shows through again."""
        self._check_write("empty", 0, self.size)
        with self._core.gate.shared, self._core.working():
            self._writer.unallocate(0, self.size)

    def _flush(self) -> None:
        self._core.flush()

    def _truncate(self, size: int) -> None:
        self.resize(size)

    def resize(self, size: int, preallocation: str = "off") -> None:
        """Change the disk's size; new bytes read as zeroes.

        ``preallocation``: what new clusters get now: "off", "metadata", "falloc" or "full".
        """
        from vdisk.formats._qcow2.resize import resize

        self._check_write("resize", 0, 0)
        with self._bitmaps.resizing(size):
            resize(self._core, self._mapping, size, preallocation)

    def close(self) -> None:
        """Save everything and release the files; a second call does nothing."""
        if self.closed:
            return
        try:
            if not self.readonly:
                self._settle()
        finally:
            self.closed = True
            self._close()

    def _settle(self) -> None:
        try:
            self._bitmaps.save()
        finally:
            self._core.settle()

    def _close(self) -> None:
        close_all(self.file, self.data_file, self.backing)

    # -- compression -----------------------------------------------------------------------------

    def compress_cluster(self, data: Buffer) -> bytes | None:
        """The stored form of one cluster of guest data, or None if it would not be smaller.

        Needs no lock and drops the GIL: call it from as many threads as there are cores.
        """
        return compress(self.header.compression_type, memoryview(data))

    def write_compressed(self, offset: int, compressed: bytes) -> None:
        """Store the guest cluster at ``offset`` in the form :meth:`compress_cluster` gave."""
        self._check_write("write compressed", offset, 1)
        if offset % self.cluster_size:
            raise InvalidRequestError("compressed writes are whole clusters", path=self.name)
        if self.header.external_data or self.header.crypt_method:
            raise UnsupportedFeatureError(
                "images with an external data file or encryption hold no compressed clusters",
                path=self.name,
            )
        with self._core.gate.shared, self._core.working():
            if (record := self._bitmaps.record) is not None:
                record(offset, min(self.cluster_size, self.size - offset))
            self._writer.write_compressed(offset, compressed)

    # -- snapshots -------------------------------------------------------------------------------

    def snapshots(self) -> list[SnapshotInfo]:
        """The internal snapshots, in the order they were taken."""
        if not self.header.nb_snapshots:
            return []
        from vdisk.formats._qcow2 import snapshots

        return snapshots.read_table(self._core)

    def create_snapshot(
        self,
        name: str,
        *,
        date: float | None = None,
        vm_state: Buffer = b"",
        vm_state_size: int = 0,
        vm_clock_nsec: int = 0,
    ) -> SnapshotInfo:
        """Keep the disk as it is now under ``name``; its id is chosen.

        ``date``: seconds since the Epoch (default: now).  ``vm_state``: machine state to keep
        with it, or ``vm_state_size``: so much of it stands in :meth:`vm_state` already;
        ``vm_clock_nsec``: how long that machine had been running.
        Raises :class:`UnsupportedFeatureError` where another reference does not fit in the
        image's reference counts, or the image has an external data file.
        """
        from vdisk.formats._qcow2 import snapshots

        self._check_snapshot_change("create")
        state = memoryview(vm_state).cast("B")
        size = len(state) or vm_state_size
        with self._core.gate.alone:
            snapshots.write_vm_state(self._core, self._mapping, state)
            taken = snapshots.create(
                self._core,
                name,
                vm_state_size=size,
                vm_clock_nsec=vm_clock_nsec,
                date=date,
            )
            snapshots.drop_vm_state(self._core, self._mapping, size)
        return taken

    def apply_snapshot(self, tag: str) -> None:
        """Make the disk, and its size, what the snapshot of that id or name holds."""
        from vdisk.formats._qcow2 import snapshots

        self._check_snapshot_change("apply")
        wanted = snapshots.find(self._core, self.snapshots(), tag)
        size = self.size if wanted.disk_size is None else wanted.disk_size
        with self._bitmaps.resizing(size, replaced=True):
            snapshots.apply(self._core, tag)

    def delete_snapshot(self, tag: str) -> None:
        """Delete the snapshot of that id or name; refused while a view of it is open."""
        from vdisk.formats._qcow2 import snapshots

        self._check_snapshot_change("delete")
        wanted = snapshots.find(self._core, self.snapshots(), tag)
        if any(not view.closed and view.snapshot.id == wanted.id for view in self._views):
            raise InvalidRequestError(f"snapshot {tag!r} is open for reading", path=self.name)
        snapshots.delete(self._core, tag)

    def _check_snapshot_change(self, operation: str) -> None:
        self._check_write(f"{operation} snapshot", 0, 0)
        if self.header.external_data:
            raise UnsupportedFeatureError(
                "images with an external data file have no internal snapshots", path=self.name
            )

    def open_snapshot(self, tag: str) -> SnapshotView:
        """The disk as the snapshot of that id or name holds it, read-only.

        The view reads through this image, which must stay open.
        """
        from vdisk.formats._qcow2 import snapshots

        found = snapshots.find(self._core, self.snapshots(), tag)
        view = snapshots.SnapshotView(self._core, found, self.backing, self)
        self._views.add(view)
        return view

    def vm_state(self) -> VmStateArea:
        """The room behind the disk for a machine's state; it goes through this image."""
        from vdisk.formats._qcow2.vm_state import VmStateArea

        return VmStateArea(self._core, self._mapping, readonly=self.readonly)

    # -- dirty bitmaps ---------------------------------------------------------------------------

    def bitmaps(self) -> list[BitmapInfo]:
        """The persistent dirty bitmaps; raises :class:`CorruptImageError` if they are broken."""
        return self._bitmaps.infos()

    def add_bitmap(
        self, name: str, granularity: int | None = None, *, enabled: bool = True
    ) -> None:
        """Add a bitmap that records what is written from now on, if it is ``enabled``.

        ``granularity``: bytes of the disk a bit stands for, a power of two from 512 to 2 GiB;
        by default a cluster, but 4 KiB at least and 64 KiB at most.
        """
        self._check_write("add bitmap", 0, 0)
        self._bitmaps.add(name, granularity, enabled)

    def remove_bitmap(self, name: str) -> None:
        """Remove a bitmap; the only thing that can be done with an inconsistent one."""
        self._check_write("remove bitmap", 0, 0)
        self._bitmaps.remove(name)

    def clear_bitmap(self, name: str) -> None:
        """Unset every bit of a bitmap."""
        self._check_write("clear bitmap", 0, 0)
        self._bitmaps.clear(name)

    def enable_bitmap(self, name: str) -> None:
        """Let a bitmap record what is written from now on."""
        self._check_write("enable bitmap", 0, 0)
        self._bitmaps.enable(name)

    def disable_bitmap(self, name: str) -> None:
        """Let a bitmap stay as it is from now on."""
        self._check_write("disable bitmap", 0, 0)
        self._bitmaps.disable(name)

    def merge_bitmap(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Add (start, length) ranges, such as :meth:`dirty_ranges` of any bitmap, to a bitmap."""
        self._check_write("merge bitmap", 0, 0)
        self._bitmaps.merge(name, ranges)

    def dirty_ranges(
        self, name: str, start: int = 0, length: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """(start, length) of what a bitmap says was written, inside a range of the disk.

        In order, adjoining ranges joined; what was written a moment ago is included.
        """
        self._check("read bitmap", start, length or 0)
        return self._bitmaps.dirty_ranges(name, start, length)

    def save_bitmaps(self) -> None:
        """Store what enabled bitmaps recorded; otherwise that is done by :meth:`close`."""
        self._check_write("save bitmaps", 0, 0)
        self._bitmaps.save()

    # -- what the image is -----------------------------------------------------------------------

    def format_info(self) -> dict[str, Any]:
        """The format's own facts, in the shape of QEMU's ImageInfoSpecificQCow2."""
        from vdisk.formats._qcow2.facts import facts

        return facts(self)

    @property
    def dirty(self) -> bool:
        """Marked dirty: its reference counts may be stale (it was not closed cleanly)."""
        return bool(self.header.incompatible_features & layout.DIRTY)

    def used_clusters(self, enough: int) -> int:
        """Host clusters whose reference count is not 0, counted until they are ``enough``."""
        with self._core.lock:
            return self._core.refcounts.used(enough)

    def check(
        self,
        *,
        repair: Collection[str] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> CheckResult:
        """Look for corruption and leaked clusters.

        ``repair``: "leaks" frees what nothing refers to, "errors" mends all that can be mended
        without guessing; open the image with ``repairing`` for that.  ``progress(done, total)``
        counts tables.  The image must not be written to meanwhile.
        """
        from vdisk.formats._qcow2.check import check

        if repair:
            self._check_write("repair", 0, 0)
        return check(self, repair, progress)

    def amend(
        self,
        options: Options[str, Any],
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Change creation options: compat, refcount_bits, lazy_refcounts, backing_file and so on.

        ``force``: erase even the last passphrase of an encrypted image, and with it all data.
        Raises :class:`InvalidRequestError` for what cannot be changed, before changing anything.
        """
        from vdisk.formats._qcow2.amend import amend

        self._check_write("amend", 0, 0)
        amend(self, options, force=force, progress=progress)

    @contextmanager
    def backing_about_to_change(self) -> Iterator[None]:
        """While inside, zeroes written hide what any other backing file may hold there.

        Otherwise a range is left unallocated where the present backing file has nothing.
        """
        self._writer.backing_changes = True
        try:
            yield
        finally:
            self._writer.backing_changes = False

    def change_backing(self, name: str | None, format: str | None) -> None:
        """Rewrite the name and format of the backing file in the header, and nothing else.

        The disk's content is then what its clusters and the new backing file make it.
        """
        self._check_write("change backing file", 0, 0)
        if name is not None and self.header.data_file_raw:
            raise InvalidRequestError(
                "an image whose external data file is raw cannot have a backing file",
                path=self.name,
            )
        with self._core.gate.alone:
            self._core.settle()
            with self._core.header_file.changing() as header:
                header.backing_file, header.backing_format = name, format

    def expand_zero_clusters(self, progress: Callable[[int, int], None]) -> None:
        """Write out every zero cluster of disk and snapshots, so that none is left (version 2)."""
        with self._core.gate.alone:
            for run in self._mapping.runs(0, self.size):
                if run.kind is Kind.ZERO:
                    self._writer.expand_zeroes(run.start, run.length)
                progress(run.start, self.size)
            if self.header.nb_snapshots:
                from vdisk.formats._qcow2.expansion import expand_snapshots

                expand_snapshots(self._core, 0 if self.backing is None else self.backing.size)


DRIVER = Qcow2Driver(Qcow2Image)
