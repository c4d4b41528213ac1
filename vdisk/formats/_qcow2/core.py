"""The metadata of an open image: L1 and L2 tables, refcounts, and the order they are saved in.

Nothing of the metadata is written when it changes; it is saved by :meth:`Core.flush`, in an
order that leaves the image consistent whatever part of it reached the disk
(docs/qcow2-ordering.md states the rules)::

    1 refcount blocks ............ barrier: guest data and new counts are stable
    2 refcount table (+ header) .. barrier, only when blocks were added
    3 L2 tables .................. barrier, only when new tables were added
    4 L1 table ................... barrier: what was acknowledged is reachable
    5 counts of clusters whose references are now gone go down (saved by a later flush)

Locks, from the outside in: ``gate`` (writers share it, structural changes hold it alone),
``flush_lock`` (one flush at a time), ``lock`` (the tables in memory; held for short, never
while guest data moves).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError, DeviceError, VdiskError
from vdisk.formats._gate import Gate
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.at_work import AtWork, Work
from vdisk.formats._qcow2.header_file import HeaderFile
from vdisk.formats._qcow2.overlap import check_unused
from vdisk.formats._qcow2.refcounts import Refcounts, write_structures
from vdisk.formats._qcow2.saving import Saving
from vdisk.formats._qcow2.tables import Table, TableCache, words_from_bytes, words_to_bytes

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.crypto import Encryption
    from vdisk.formats._qcow2.header import Header


class Core:
    """Everything that the reader, the writer and the keepers of one image share.

    ``file``: where the metadata is.  ``data``: where guest clusters are (the same device, or an
    external data file).  ``encryption``: how they are encrypted; bytes of guest clusters are
    read and written where :meth:`place` says.
    """

    def __init__(
        self,
        file: BlockDevice,
        header: Header,
        *,
        readonly: bool,
        l2_cache: int = layout.DEFAULT_L2_CACHE,
        refcount_cache: int = layout.DEFAULT_REFCOUNT_CACHE,
    ) -> None:
        self.file = file
        self.data = file
        self.encryption: Encryption | None = None
        self.header = header
        self.header_file = HeaderFile(self)
        self.readonly = readonly
        self.lock = threading.RLock()
        self.flush_lock = threading.RLock()
        self.gate = Gate()
        self.cluster_bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.entry_words = header.l2_entry_size // 8
        self.l2_bits = self.cluster_bits - (4 if header.extended_l2 else 3)
        self.slice_bytes = min(self.cluster_size, layout.TABLE_SLICE)
        self.slice_bits = (self.slice_bytes // header.l2_entry_size).bit_length() - 1
        self.l1 = self._load_l1()
        self.l2 = TableCache(l2_cache, self.slice_bytes, self._make_room)
        self._refcount_cache = refcount_cache
        self.refcounts = self._load_refcounts()
        self.lazy_refcounts = header.lazy_refcounts
        """Counts may be left behind: as the image says, or whoever opened it."""
        self.stale_counts = bool(header.incompatible_features & layout.DIRTY)
        """The image was dirty when it was opened: its counts are not to be trusted."""
        self.discard_freed = False
        """Punch holes where clusters were freed (the option pass-discard-request)."""
        self.on_release: Callable[[], None] = lambda: None
        """Called when clusters were freed for good: caches of what they held must go."""
        self._frees: list[tuple[int, int, int]] = []
        """Clusters whose reference is gone in memory: (first, count, ticket)."""
        self._stable_frees: list[tuple[int, int, int]] = []
        """The same, once the removal is on the disk."""
        self.at_work = AtWork()
        self.moves = 0
        """Counts changes of what is mapped, after each: before what it leaves free is freed."""
        self.failure: VdiskError | None = None
        """Why nothing is written through this handle any more; see :meth:`fail`."""

    def _load_l1(self) -> Table:
        header = self.header
        data = self.file.read(header.l1_table_offset, header.l1_size * 8)
        return Table(header.l1_table_offset, words_from_bytes(data))

    def corrupt(self, message: str, offset: int | None = None) -> CorruptImageError:
        """The error for a broken rule; a writable image is marked corrupt on the way."""
        error = CorruptImageError(message, path=self.file.name, offset=offset)
        if not self.readonly and self.failure is None and self.header.version >= 3:
            self.header.incompatible_features |= layout.CORRUPT
            try:
                self.header_file.save()
            finally:
                self.fail(error)
        return error

    # -- giving up -----------------------------------------------------------------------------

    def fail(self, error: VdiskError) -> None:
        """Write nothing more through this handle: what the disk holds now is uncertain.

        The file then stays as it is, which is consistent; whoever opens it anew sees what it is.
        """
        if self.failure is None:
            self.failure = error

    def check_usable(self) -> None:
        """Raise :class:`DeviceError` if nothing may be written any more."""
        if self.failure is not None:
            raise DeviceError(
                f"nothing is written any more since an error left it uncertain what the disk "
                f"holds; open the image anew ({self.failure})",
                path=self.file.name,
                errno=self.failure.errno,
            ) from self.failure

    def write(self, offset: int, data: bytes) -> None:
        """Write metadata."""
        self.check_usable()
        self.file.write(offset, data)

    def barrier(self) -> None:
        """Return when everything written before is stable.

        A flush that fails may have lost any write before it, guest data included, and the
        system, asked again, would report success: so there is no second try.
        """
        self.check_usable()
        try:
            self._flush_devices()
        except VdiskError as error:
            self.fail(error)
            raise

    def _flush_devices(self) -> None:
        if self.data is not self.file:
            self.data.flush()
        self.file.flush()

    def place(self, host: int, guest: int) -> tuple[BlockDevice, int]:
        """The device and offset of the plain bytes of guest data that stands at ``host``.

        Holds for the rest of a run in which guest and host offsets grow together.
        """
        if self.encryption is None:
            return self.data, host
        return self.encryption.place(self.data, host, guest)

    def working(self) -> Work:
        """While inside, no cluster that could be seen at the start is handed out again."""
        return Work(self.at_work)

    # -- L2 tables -----------------------------------------------------------------------------

    def l2_offset(self, l1_index: int) -> int:
        """Host offset of the L2 table, 0 if there is none; checked."""
        entry = self.l1.words[l1_index] if l1_index < len(self.l1.words) else 0
        return self.checked_l2_offset(entry, l1_index)

    def checked_l2_offset(self, entry: int, l1_index: int) -> int:
        """The offset in an L1 entry, 0 for none; raises :class:`CorruptImageError`."""
        offset = entry & layout.OFFSET_MASK
        if offset & (self.cluster_size - 1):
            raise self.corrupt(
                f"L1 entry {l1_index} ({entry:#x}): the L2 table is not cluster-aligned", offset
            )
        if offset >= self.file.size and offset:
            raise self.corrupt(
                f"L1 entry {l1_index} ({entry:#x}): the L2 table is past the end of the file",
                offset,
            )
        return offset

    def l2_slice(self, table_offset: int, cluster: int) -> tuple[Table, int]:
        """The cached slice of an L2 table that describes guest ``cluster``, and the entry in it."""
        index = cluster & ((1 << self.l2_bits) - 1)
        offset = table_offset + (index >> self.slice_bits) * self.slice_bytes
        table = self.l2.get(offset)
        if table is None:
            self.file.note("l2_load")
            data = self.file.read(offset, self.slice_bytes)
            table = self.l2.add(Table(offset, words_from_bytes(data)))
        return table, index & ((1 << self.slice_bits) - 1)

    def l2_slice_for_write(self, cluster: int) -> tuple[Table, int]:
        """The same for the active mapping, in a table that only the active L1 refers to."""
        l1_index = cluster >> self.l2_bits
        entry = self.l1.words[l1_index]
        table_offset = self.l2_offset(l1_index)
        if not entry & layout.COPIED:
            table_offset = self._own_l2_table(l1_index, table_offset)
        return self.l2_slice(table_offset, cluster)

    def _own_l2_table(self, l1_index: int, old: int) -> int:
        """Give the L1 entry a table of its own: empty, or a copy of the ``old`` shared one."""
        if old and self.refcounts.count(old >> self.cluster_bits) == 1:  # COPIED was just unset
            self.set_l1(l1_index, old | layout.COPIED)
            return old
        cluster, fresh = self.allocate(1)
        new = cluster << self.cluster_bits
        self.l2.drop(new, new + self.cluster_size)
        try:
            self.file.note("l2_alloc_write")
            if old:
                self.write(new, self._l2_table_bytes(old))
            else:  # also where it is zero anyway: the file has to reach as far as its tables
                self.file.write_zeroes(new, self.cluster_size, unmap=fresh)
        except BaseException:
            self.free_unused(cluster, 1)
            raise
        self.set_l1(l1_index, new | layout.COPIED)
        if old:
            self.free_later(old >> self.cluster_bits, 1)
        return new

    def _l2_table_bytes(self, offset: int) -> bytes:
        """A whole L2 table as it is now, unsaved entries included."""
        slices = []
        for start in range(offset, offset + self.cluster_size, self.slice_bytes):
            cached = self.l2.get(start)
            if cached is None:
                slices.append(self.file.read(start, self.slice_bytes))
            else:
                slices.append(words_to_bytes(cached.words))
        return b"".join(slices)

    def set_l1(self, index: int, entry: int) -> None:
        """Change an entry of the active L1 table."""
        self.l2.generation += 1
        self.l1.words[index] = entry
        self.l1.touch(index, index + 1)

    # -- clusters ------------------------------------------------------------------------------

    def allocate(self, count: int) -> tuple[int, bool]:
        """``count`` clusters in a row, their counts now 1: (first, fresh); see Refcounts.

        Where reference counts are lazy, the image is marked dirty first.
        """
        if self.lazy_refcounts and not self.header.incompatible_features & layout.DIRTY:
            self.mark_dirty()
        self.check_usable()
        self.file.note("cluster_alloc")
        return self.refcounts.allocate(count)

    def free_later(self, cluster: int, count: int) -> None:
        """A reference to each cluster was removed in memory; see the module about when."""
        frees, ticket = self._frees, self.at_work.now()
        if frees and sum(frees[-1][:2]) == cluster:
            frees[-1] = (frees[-1][0], frees[-1][1] + count, ticket)
        else:
            frees.append((cluster, count, ticket))

    def free_saved(self, cluster: int, count: int) -> None:
        """The last reference to each cluster is gone from the disk, too."""
        self._stable_frees.append((cluster, count, self.at_work.now()))

    def free_unused(self, cluster: int, count: int) -> None:
        """Give back clusters that nothing ever referred to."""
        with self.lock:
            self.refcounts.decrease(cluster, count)

    # -- saving --------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """A cache is full of unsaved tables. Called with ``lock`` held, so never waits."""
        if self.readonly or self.failure or self.refcounts.growing:
            return  # nothing can be saved just now: the cache stretches meanwhile
        if not self.flush_lock.acquire(blocking=False):
            return  # somebody is saving already
        try:
            self._save(counts=True)
        finally:
            self.flush_lock.release()

    def flush(self) -> None:
        """Save everything, in order; then release what is certainly unused."""
        with self.flush_lock:
            self.file.note("flush_to_os")
            self._save(counts=not self.lazy)
            self._release()

    def settle(self) -> None:
        """Flush until the released clusters' counts are saved too, and unset the dirty bit."""
        with self.flush_lock:
            self._save(counts=True)
            self._release()
            if self.refcounts.blocks.dirty():
                self._save(counts=True)
            dirty = self.header.incompatible_features & layout.DIRTY and not self.stale_counts
            if dirty and not self.readonly:
                with self.header_file.changing() as header:
                    header.incompatible_features &= ~layout.DIRTY

    def save(self) -> None:
        """Save all metadata, counts included, without releasing anything."""
        with self.flush_lock:
            self._save(counts=True)

    # -- structural changes ----------------------------------------------------------------------

    @contextmanager
    def structural(self) -> Iterator[None]:
        """Hold the image alone, all of it saved, for a change of its structure.

        Where the version allows it the image is marked dirty meanwhile.  A change that fails
        must leave no count too low; COPIED flags are then made to agree with the counts, and the
        mark goes when the image is closed.  Where that fails too, so does the handle.
        """
        with self.gate.alone:
            self.settle()
            self.mark_dirty()
            try:
                yield
            except BaseException:
                self._recover()
                raise
            self.settle()

    def _recover(self) -> None:
        """A change of structure failed: make the tables agree with the counts as they are."""
        from vdisk.formats._qcow2.trees import update_copied

        try:
            self.save()
            update_copied(self)
        except VdiskError as error:
            self.fail(error)

    def mark_dirty(self) -> None:
        """Set the dirty bit on the disk: whoever opens the image for writing repairs it first."""
        if self.header.version >= 3:
            with self.header_file.changing() as header:
                header.incompatible_features |= layout.DIRTY

    def switch_l1(self, words: array[int], disk_size: int) -> tuple[int, int]:
        """Make ``words`` the active L1 table, of a disk of ``disk_size`` bytes, in one step.

        Where the old table stands: (offset, clusters); its clusters are the caller's to free.
        """
        old = self.l1.offset, self.header.l1_clusters(self.header.l1_size)
        clusters = self.header.l1_clusters(len(words))
        first = self.allocate(clusters)[0] if clusters else 0
        offset = first << self.cluster_bits
        try:
            self.file.note("l1_grow_write_table")
            self.write(offset, words_to_bytes(words))
            self.save()
            self.file.note("l1_grow_activate_table")
            with self.lock:
                with self.header_file.changing() as header:
                    header.l1_table_offset, header.l1_size = offset, len(words)
                    header.size = disk_size
                self.l1.words, self.l1.offset = words[:], offset
                self.l2.generation += 1
                self.moves += 1
        except BaseException:
            self.free_unused(first, clusters)
            raise
        return old

    def rewrite_refcounts(
        self, end: int, order: int, counts: Callable[[int, int], array[int]]
    ) -> None:
        """Write all counts anew, in 2**order bits each, behind cluster ``end``; then they hold.

        ``counts(first, n)``: those of clusters below ``end``.
        """
        try:
            offset, clusters = write_structures(
                self.file, self.cluster_size, 1 << order, end, counts
            )
            self.barrier()
        except BaseException:
            self.refcounts.beyond_is_written()
            raise
        with self.lock:
            with self.header_file.changing() as header:
                header.refcount_table_offset = offset
                header.refcount_table_clusters = clusters
                header.refcount_order = order
                refcounts = self._load_refcounts()
            self.refcounts = refcounts

    def _load_refcounts(self) -> Refcounts:
        counts = Refcounts(self.file, self.header, self._refcount_cache, self._make_room)
        counts.check_free = lambda offset, length: check_unused(self, offset, length)
        return counts

    def reload(self) -> None:
        """Forget what is cached and read the tables anew: the file was changed underneath."""
        with self.lock:
            self.header_file.forget()
            l1, refcounts = self._load_l1(), self._load_refcounts()
            self.l1.offset, self.l1.words = l1.offset, l1.words
            self.l1.take_dirty()
            self.l2.clear()
            self.moves += 1
            self.refcounts = refcounts
            self.on_release()

    def release(self, cluster: int, count: int) -> None:
        """Drop a reference at once: its removal is on the disk and nobody plans by it."""
        with self.lock:
            self._forget(self.refcounts.decrease(cluster, count))

    def _forget(self, freed: list[tuple[int, int]]) -> None:
        """Clusters are free now: no cache may remember them; punch holes where asked to."""
        self.file.note("cluster_free")
        for first, count in freed:
            start = first << self.cluster_bits
            self.l2.drop(start, start + (count << self.cluster_bits))
        if freed:
            self.on_release()
        if self.discard_freed and self.failure is None:
            for first, count in freed:
                self.file.discard(first << self.cluster_bits, count << self.cluster_bits)

    # -- saving, continued -----------------------------------------------------------------------

    @property
    def lazy(self) -> bool:
        """Counts on the disk may be stale now: lazy refcounts, and the dirty bit says so."""
        return self.lazy_refcounts and bool(self.header.incompatible_features & layout.DIRTY)

    def _save(self, *, counts: bool) -> None:
        """Write all unsaved metadata (reference counts if ``counts``); holds ``flush_lock``."""
        if self.readonly:
            return
        if isinstance(self.failure, CorruptImageError) and not self._unsaved():
            self.file.note("flush_to_disk")
            self._flush_devices()  # nothing is lost: what was written in place only has to last
            return
        self.check_usable()
        with self.lock:
            frees, self._frees = self._frees, []
            saving = Saving(self, counts=counts)
        try:
            saving.write()
        except BaseException:
            with self.lock:
                saving.restore()
                self._frees = frees + self._frees
            raise
        with self.lock:
            saving.end()
            self._stable_frees += frees

    def _unsaved(self) -> bool:
        """Whether anything in memory is not on the disk yet."""
        with self.lock:
            tables, counts = self.l2.dirty(), self.refcounts
            return bool(
                tables or counts.blocks.dirty() or self.l1.dirty_end or counts.table.dirty_end
            )

    def _release(self) -> None:
        """Lower the counts of clusters that nothing on the disk, and nobody at work, refers to."""
        with self.lock:
            oldest = self.at_work.oldest()
            ready = [free for free in self._stable_frees if free[2] < oldest]
            self._stable_frees = [free for free in self._stable_frees if free[2] >= oldest]
            for first, count, _ticket in ready:
                self._forget(self.refcounts.decrease(first, count))
