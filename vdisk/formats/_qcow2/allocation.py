"""Writing guest data: in place where a cluster is the disk's own, else into new clusters.

A write is cut into steps; each is planned under the lock and carried out outside it::

    plan     in place:   entry has COPIED -> (host offset, length)
             allocation: clusters that are unallocated, shared, compressed or zero
                         -> new host clusters, guest clusters marked as in flight
    execute  write the data; for an allocation also what the clusters held around it (COW)
    link     L2 entries point at the new clusters; what they pointed at is freed later

Writers that meet a guest cluster in flight wait for it.  Readers do not: until the link they
see what was there before.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import execute_read
from vdisk.errors import NoSpaceError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.mapping import run_length
from vdisk.formats._qcow2.overlap import check_guest_data
from vdisk.formats.raw import preallocate as preallocate_file
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.core import Core
    from vdisk.formats._qcow2.mapping import Mapping
    from vdisk.formats._qcow2.tables import Table

_LONGEST_RUN = 64 << 20
"""Bytes allocated in one step: bounds what a failed write has to give back."""


class _Allocation(NamedTuple):
    """Guest clusters [cluster, cluster + clusters) being written to host clusters in a row.

    ``own``: the host clusters belonged to them already (a preallocated zero cluster, missing
    subclusters, an external data file); else they are newly allocated, ``fresh`` if the file
    reads as zeroes there.
    """

    cluster: int
    clusters: int
    host: int
    own: bool
    fresh: bool


class Cursor:
    """Hands out the bytes of several buffers piece by piece, without copying."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = list(reversed(views))

    def take(self, length: int) -> list[memoryview]:
        """The next ``length`` bytes."""
        taken = []
        while length:
            view = self._views.pop()
            if len(view) > length:
                self._views.append(view[length:])
                view = view[:length]
            taken.append(view)
            length -= len(view)
        return taken


class DataWriter:
    """Writes the guest's data, and maps it.  ``size``: tells the disk's size in bytes."""

    def __init__(self, core: Core, mapping: Mapping, size: Callable[[], int]) -> None:
        self.core = core
        self.mapping = mapping
        self._size = size
        self._bits = core.cluster_bits
        self._cluster = core.cluster_size
        self._extended = core.header.extended_l2
        self._external = core.header.external_data
        self._unit = self._cluster // layout.SUBCLUSTERS if self._extended else self._cluster
        """Bytes that can be allocated or zeroed by metadata alone."""
        self.backing_changes = False
        """Another backing file is about to show through: zeroes must be written out as such."""
        self._landed = threading.Condition(core.lock)
        self._in_flight: list[tuple[int, int]] = []

    # -- plain writes ----------------------------------------------------------------------------

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the buffers at ``offset``; the range lies inside the disk."""
        cursor = Cursor(views)
        end = offset + sum(map(len, views))
        while offset < end:
            with self.core.lock:
                limit = self._wait_for_landing(offset, end)
                step = self._plan(offset, limit)
            if isinstance(step, _Allocation):
                stop = min(limit, (step.cluster + step.clusters) << self._bits)
                self._fill(step, offset, stop, cursor.take(stop - offset))
            else:
                host, length = step
                stop = offset + length
                device, at = self.core.place(host, offset)
                self.core.file.note("write_aio")
                device.writev(at, cursor.take(length))
            offset = stop

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """Where a range can be overwritten, if it lies in one piece in the disk's own clusters.

        The one lookup of a small write, without the lock: what :meth:`write` would plan if it
        were called now.
        """
        core = self.core
        host = self.mapping.locate_own(offset, length)
        if not host or self._in_flight or core.failure is not None:
            return None
        if core.data is core.file:
            check_guest_data(core, host, length)
        core.file.note("write_aio")
        return core.place(host, offset)

    def _wait_for_landing(self, offset: int, end: int) -> int:
        """Wait until the first cluster is not in flight; how far the request may go then."""
        self.core.check_usable()
        cluster = offset >> self._bits
        while any(first <= cluster < last for first, last in self._in_flight):
            self._landed.wait()
        for first, _last in self._in_flight:
            if first > cluster:
                end = min(end, first << self._bits)
        return end

    def _plan(self, offset: int, end: int) -> tuple[int, int] | _Allocation:
        cluster = offset >> self._bits
        count = -(-end // self._cluster) - cluster
        table, index = self.core.l2_slice_for_write(cluster)
        entries = len(table.words) // self.core.entry_words
        count = min(count, entries - index, max(_LONGEST_RUN >> self._bits, 1))
        in_place = self._in_place_clusters(table, index, count, offset, end)
        if in_place:
            host = table.words[index * self.core.entry_words] & layout.OFFSET_MASK
            within = offset & (self._cluster - 1)
            length = min(end, (cluster + in_place) << self._bits) - offset
            if self.core.data is self.core.file:
                check_guest_data(self.core, host, within + length)
            return host + within, length
        return self._plan_allocation(table, index, cluster, count)

    def _in_place_clusters(
        self, table: Table, index: int, count: int, offset: int, end: int
    ) -> int:
        """How many clusters from ``index`` on can be overwritten where they are, in a row."""
        if self._extended:
            return self._in_place_subclusters(table, index, count, offset, end)
        entry = table.words[index]
        flags = layout.COPIED | layout.COMPRESSED | layout.ZERO
        if entry & flags != layout.COPIED:
            return 0
        self.mapping.classify(entry, offset >> self._bits)
        return run_length(table.words, index, count, self._cluster) if count > 1 else 1

    def _in_place_subclusters(
        self, table: Table, index: int, count: int, offset: int, end: int
    ) -> int:
        words = table.words
        entry = words[2 * index]
        if entry & (layout.COPIED | layout.COMPRESSED) != layout.COPIED:
            return 0
        self.mapping.classify(entry, offset >> self._bits)
        for done in range(count):
            base = (offset & -self._cluster) + done * self._cluster
            wanted = self._subcluster_mask(max(offset - base, 0), min(end - base, self._cluster))
            same_run = words[2 * (index + done)] == entry + done * self._cluster
            if not same_run or words[2 * (index + done) + 1] & wanted != wanted:
                return done
        return count

    def _subcluster_mask(self, start: int, stop: int) -> int:
        """Allocation bits of the subclusters that bytes [start, stop) of a cluster touch."""
        if start >= stop:
            return 0
        first, last = start // self._unit, -(-stop // self._unit)
        return (1 << last) - (1 << first)

    def _plan_allocation(self, table: Table, index: int, cluster: int, count: int) -> _Allocation:
        words, width = table.words, self.core.entry_words
        entry = words[index * width]
        if self._has_own_host(entry):
            self.mapping.classify(entry, cluster)
            host = entry & layout.OFFSET_MASK
            allocation = _Allocation(cluster, 1, host, True, False)
        else:
            wanted = 1
            while wanted < count and not self._has_own_host(words[(index + wanted) * width]):
                if self._extended and (entry or words[(index + wanted) * width]):
                    break  # what such a cluster holds is copied one cluster at a time
                wanted += 1
            if self._external:
                allocation = _Allocation(cluster, wanted, cluster << self._bits, True, False)
            else:
                wanted = self.core.refcounts.free_run(wanted)
                first, fresh = self.core.allocate(wanted)
                allocation = _Allocation(cluster, wanted, first << self._bits, False, fresh)
        self._in_flight.append((cluster, cluster + allocation.clusters))
        return allocation

    @staticmethod
    def _has_own_host(entry: int) -> bool:
        return entry & (layout.COPIED | layout.COMPRESSED) == layout.COPIED

    # -- carrying out an allocation ----------------------------------------------------------------

    def _fill(self, step: _Allocation, start: int, stop: int, data: list[memoryview]) -> None:
        try:
            span = self._write_span(step, start, stop, data)
            with self.core.lock:
                self._link(step, *span)
        except BaseException:
            if not step.own:
                self.core.free_unused(step.host >> self._bits, step.clusters)
            raise
        finally:
            self._land(step.cluster, step.cluster + step.clusters)

    def _land(self, first: int, last: int) -> None:
        with self.core.lock:
            self._in_flight.remove((first, last))
            self._landed.notify_all()

    def _write_span(
        self, step: _Allocation, start: int, stop: int, data: list[memoryview]
    ) -> tuple[int, int]:
        """Write the data with what surrounds it; the guest range that is then in place."""
        first, last = self._span_to_fill(step, start, stop)
        device, at = self.core.place(step.host + first - (step.cluster << self._bits), first)
        sparse = step.fresh and device is self.core.file
        head, tail = self._old_bytes(first, start, sparse), self._old_bytes(stop, last, sparse)
        self.core.file.note("write_aio")
        if head is None and tail is None:
            device.writev(at + start - first, data)
        else:
            self.core.file.note("cow_write")  # the same request, as QEMU counts it
            before = [memoryview(head or bytes(start - first))]
            after = [memoryview(tail or bytes(last - stop))]
            device.writev(at, [*before, *data, *after])
        return first, last

    def _span_to_fill(self, step: _Allocation, start: int, stop: int) -> tuple[int, int]:
        """The guest range that must be in place when the entries are linked."""
        base, end = step.cluster << self._bits, (step.cluster + step.clusters) << self._bits
        if not self._extended:
            return base, end
        first, last = round_down(start, self._unit), round_up(stop, self._unit)
        entry, bitmap = self._entry(step.cluster)
        if entry & layout.COMPRESSED:
            return base, end
        held = bitmap & layout.ALL_ALLOCATED
        if step.own:  # what is in place already stays untouched: others may be writing it
            if held >> ((start - base) // self._unit) & 1:
                first = start
            if held >> ((stop - 1 - base) // self._unit) & 1:
                last = stop
        elif held:
            first = min(first, base + ((held & -held).bit_length() - 1) * self._unit)
            last = max(last, base + held.bit_length() * self._unit)
        return first, last

    def _entry(self, cluster: int) -> tuple[int, int]:
        """The active L2 entry of a guest cluster and its subcluster bitmap."""
        with self.core.lock:
            table, index = self.core.l2_slice_for_write(cluster)
            if self._extended:
                return table.words[2 * index], table.words[2 * index + 1]
            return table.words[index], 0

    def _old_bytes(self, start: int, stop: int, sparse: bool) -> bytearray | None:
        """What the guest range holds now; None if it is empty, or zero and need not be written."""
        if start >= stop:
            return None
        inside = min(stop, self._size()) - start
        found = self.mapping.locate(start, inside) if inside > 0 else None
        if found is not None:  # in one piece, as mostly: it needs no plan
            content = bytearray(stop - start)
            self.core.file.note("cow_read")
            found[0].read_into(found[1], memoryview(content)[:inside])
            return content
        extents = list(self.mapping.extents(start, inside)) if inside > 0 else []
        if sparse and all(extent.reads_zero for extent in extents):
            return None
        content = bytearray(stop - start)
        self.core.file.note("cow_read")
        if inside > 0:
            execute_read(extents, start, memoryview(content)[:inside])
        return content

    def _link(self, step: _Allocation, first: int, last: int) -> None:
        """Point the guest clusters at their host clusters, and free what they had."""
        table, index = self.core.l2_slice_for_write(step.cluster)
        words, width = table.words, self.core.entry_words
        replaced = []
        for done in range(step.clusters):
            at = (index + done) * width
            old = words[at]
            words[at] = (step.host + done * self._cluster) | layout.COPIED
            if self._extended:
                base = (step.cluster + done) << self._bits
                filled = self._subcluster_mask(
                    max(first - base, 0), min(last - base, self._cluster)
                )
                words[at + 1] = self._filled_bitmap(old, words[at + 1], filled, step.own)
            if old and not step.own:
                replaced.append(old)
        self._changed(table, index, step.clusters, replaced)

    def _changed(self, table: Table, index: int, count: int, replaced: Sequence[int]) -> None:
        """``count`` entries from ``index`` on were changed; what ``replaced`` held is free now.

        In this order: a reader that still trusts the old places has drawn its ticket before.
        """
        width = self.core.entry_words
        table.touch(index * width, (index + count) * width)
        self.core.moves += 1
        for entry in replaced:
            self.free_entry(entry)

    @staticmethod
    def _filled_bitmap(old_entry: int, bitmap: int, filled: int, own: bool) -> int:
        if old_entry & layout.COMPRESSED:
            return layout.ALL_ALLOCATED
        if not own:  # a copy: only what was filled is in the new cluster
            bitmap &= ~layout.ALL_ALLOCATED
        return (bitmap | filled) & ~(filled << 32)

    def free_entry(self, entry: int) -> None:
        """The L2 entry's reference to its host cluster(s) is gone from the active mapping."""
        if entry & layout.COMPRESSED:
            offset, size = compressed_range(entry, self._bits)
            first, last = offset >> self._bits, (offset + size - 1) >> self._bits
            self.core.free_later(first, last - first + 1)
        elif entry & layout.OFFSET_MASK and not self._external:
            self.core.free_later((entry & layout.OFFSET_MASK) >> self._bits, 1)

    def preallocate(self, offset: int, length: int, mode: str) -> None:
        """Map whole unallocated clusters to host clusters that read as zeroes.

        With subclusters they stay unallocated inside, so that a backing file still shows.
        """
        cluster, end = offset >> self._bits, -(-(offset + length) // self._cluster)
        while cluster < end:
            with self.core.lock:
                table, index = self.core.l2_slice_for_write(cluster)
                room = (1 << self.core.slice_bits) - index
                step = self._plan_allocation(table, index, cluster, min(end - cluster, room))
            try:
                if not step.own or self.core.encryption is not None:
                    self._reserve(step, mode)
                with self.core.lock:
                    base = cluster << self._bits
                    filled = base if self._extended else base + step.clusters * self._cluster
                    self._link(step, base, filled)
            except BaseException:
                if not step.own:
                    self.core.free_unused(step.host >> self._bits, step.clusters)
                raise
            finally:
                self._land(step.cluster, step.cluster + step.clusters)
            cluster += step.clusters

    def _reserve(self, step: _Allocation, mode: str) -> None:
        file, length = self.core.file, step.clusters << self._bits
        if self.core.encryption is not None:  # zeroes in the file would read as noise
            device, at = self.core.place(step.host, step.cluster << self._bits)
            device.write_zeroes(at, length)
            return
        if mode != "metadata":
            preallocate_file(file, step.host, step.host + length, mode)
        if not step.fresh and mode != "full":
            file.write_zeroes(step.host, length, unmap=False)

    # -- compressed clusters -----------------------------------------------------------------------

    def write_compressed(self, offset: int, payload: bytes) -> None:
        """Store one guest cluster in its compressed form (shorter than a cluster)."""
        cluster = offset >> self._bits
        with self.core.lock:
            self._wait_for_landing(offset, offset + 1)
            self.core.l2_slice_for_write(cluster)
            host = self._allocate_bytes(len(payload))
            entry = compressed_entry(host, len(payload), self._bits)
            self._in_flight.append((cluster, cluster + 1))
        try:
            self.core.file.note("write_compressed")
            self.core.file.write(host, payload)
            with self.core.lock:
                self._replace(cluster, entry)
        except BaseException:
            first = host >> self._bits
            last = (host + len(payload) - 1) >> self._bits
            self.core.free_unused(first, last - first + 1)
            raise
        finally:
            self._land(cluster, cluster + 1)

    def _replace(self, cluster: int, entry: int) -> None:
        table, index = self.core.l2_slice_for_write(cluster)
        at = index * self.core.entry_words
        old = table.words[at]
        table.words[at] = entry
        if self._extended:
            table.words[at + 1] = 0
        self._changed(table, index, 1, [old] if old else [])

    def _allocate_bytes(self, size: int) -> int:
        """Host offset for ``size`` bytes, packed behind the last compressed cluster's if it fits.

        Every host cluster the bytes touch counts one reference for them.
        """
        self.core.file.note("cluster_alloc_bytes")
        refcounts, mask = self.core.refcounts, self._cluster - 1
        tail = refcounts.packed_tail
        room = -tail & mask
        if tail and refcounts.count(tail >> self._bits) >= refcounts.max_count:
            tail = room = 0
        if size <= room:
            refcounts.increase(tail >> self._bits)
            host = tail
        else:
            first, _fresh = self.core.allocate(1)
            host = first << self._bits
            if room and host == tail + room:
                refcounts.increase(tail >> self._bits)
                host = tail
        end = host + size
        refcounts.packed_tail = end if end & mask else 0
        if end > 1 << min(62 - (self._bits - 8), 56):
            raise NoSpaceError(
                "compressed clusters cannot lie this far into the file", path=self.core.file.name
            )
        return host


def compressed_range(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(host offset, bytes at most) of a compressed cluster, from its L2 entry."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1) & ((1 << 56) - 1)
    sectors = (entry >> shift & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * layout.SECTOR - (offset & (layout.SECTOR - 1))


def compressed_entry(offset: int, size: int, cluster_bits: int) -> int:
    """The L2 entry of a compressed cluster of ``size`` bytes at host ``offset``."""
    shift = 62 - (cluster_bits - 8)
    additional = ((offset + size - 1) >> 9) - (offset >> 9)
    return layout.COMPRESSED | additional << shift | offset
