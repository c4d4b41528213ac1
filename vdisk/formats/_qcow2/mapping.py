"""From guest clusters to extents: what an L1 table and its L2 tables say (read-only).

Runs of entries that continue each other are found by comparing whole slices of a table with
what the run would look like, doubling the step while it fits: a fully allocated or an empty
table costs a few comparisons, not thousands of steps of Python.
"""

from __future__ import annotations

import functools
import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import BlockDevice, Extent, Kind
from vdisk.formats._qcow2 import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.formats._qcow2.core import Core
    from vdisk.formats._qcow2.tables import Table

_LONGEST_STEP = 4096
_NO_ENTRIES = array("Q", bytes(_LONGEST_STEP * 8))
_EMPTY = array("Q")


class Run(NamedTuple):
    """Guest bytes [start, start + length) of one layer; ``kind`` None: not allocated in it.

    ``host``: where the bytes begin in the data device; for COMPRESSED the L2 entry itself.
    """

    start: int
    length: int
    kind: Kind | None
    host: int | None = None


def gallop(matches: Callable[[int, int], bool], known: int, limit: int) -> int:
    """How many entries, ``known`` at least and ``limit`` at most, belong to a run.

    ``matches(at, step)``: do the ``step`` entries (a power of two) from number ``at`` on
    continue it?
    """
    step = 1
    while step <= limit - known and matches(known, step):
        known += step
        step = min(step * 2, _LONGEST_STEP)
    while step := step // 2:
        if step <= limit - known and matches(known, step):
            known += step
    return known


class Mapping:
    """One guest-visible disk of an image: the active one, or a snapshot's.

    ``l1``: its L1 entries.  ``backing``: what shows through, or None; ``below``: the mapping of
    its active disk if it is a qcow2 image, too.
    """

    def __init__(
        self,
        core: Core,
        l1: Table,
        backing: BlockDevice | None,
        below: Mapping | None = None,
    ) -> None:
        self.core = core
        self.l1 = l1
        self.backing = backing
        self._below = below
        self.compressed_source: BlockDevice | None = None
        """The device through which COMPRESSED extents are read."""
        self._extended = core.header.extended_l2
        self._zero_flag = 0 if self._extended else layout.ZERO
        self._within = core.cluster_size - 1
        self._slice_mask = (1 << core.slice_bits) - 1
        self._not_plain = layout.COMPRESSED | layout.ZERO | (self._within & layout.OFFSET_MASK)
        self._slices: dict[int, array[int]] = {}
        self._generation = core.l2.generation

    # -- the map -------------------------------------------------------------------------------

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        """The plan for a guest range, backing files included."""
        for run in self.runs(start, length):
            if run.kind is None:
                yield from self._what_shows(run.start, run.length)
            elif run.kind is Kind.COMPRESSED:
                yield Extent(run.start, run.length, run.kind, self.compressed_source, run.start)
            elif run.host is None:
                yield Extent(run.start, run.length, run.kind)
            else:
                yield Extent(run.start, run.length, run.kind, *self.core.place(run.host, run.start))

    def _what_shows(self, start: int, length: int) -> Iterator[Extent]:
        """What shows through an unallocated range."""
        covered = 0
        if self.backing is not None:
            covered = min(length, max(self.backing.size - start, 0))
            if covered:
                for extent in self.backing.map(start, covered):
                    yield extent._replace(depth=extent.depth + 1)
        if covered < length:
            yield Extent(start + covered, length - covered, Kind.HOLE)

    def runs(self, start: int, length: int) -> Iterator[Run]:
        """What this layer alone says of a guest range, in order and without gaps."""
        end = start + length
        while start < end:
            with self.core.lock:
                runs, stop = self._slice_runs(start, end)
            yield from runs
            start = stop

    def _slice_runs(self, start: int, end: int) -> tuple[list[Run], int]:
        """The runs of the slice at ``start``, and where the next slice begins."""
        core = self.core
        cluster = start >> core.cluster_bits
        l1_index = cluster >> core.l2_bits
        entry = self.l1.words[l1_index] if l1_index < len(self.l1.words) else 0
        table_offset = core.checked_l2_offset(entry, l1_index)
        if not table_offset:
            stop = min(end, (l1_index + 1) << (core.l2_bits + core.cluster_bits))
            return [Run(start, stop - start, None)], stop
        table, index = core.l2_slice(table_offset, cluster)
        slice_entries = 1 << core.slice_bits
        last_cluster = cluster - index + slice_entries
        stop = min(end, last_cluster << core.cluster_bits)
        count = -(-stop // core.cluster_size) - cluster
        find = self._extended_runs if self._extended else self._standard_runs
        return list(find(table, index, cluster, count, start, stop)), stop

    def _standard_runs(
        self, table: Table, index: int, cluster: int, count: int, start: int, stop: int
    ) -> Iterator[Run]:
        words, size, bits = table.words, self.core.cluster_size, self.core.cluster_bits
        done = 0
        while done < count:
            entry = words[index + done]
            kind, host = self.classify(entry, cluster + done)
            step = size if kind is Kind.DATA or (kind is Kind.ZERO and host is not None) else 0
            length = 1
            if kind is not Kind.COMPRESSED and done + 1 < count:
                length = run_length(words, index + done, count - done, step)
            first = max(start, (cluster + done) << bits)
            last = min(stop, (cluster + done + length) << bits)
            if host is not None and kind is not Kind.COMPRESSED:
                host += first - ((cluster + done) << bits)
            yield Run(first, last - first, kind, host)
            done += length

    def classify(self, entry: int, cluster: int) -> tuple[Kind | None, int | None]:
        """Kind and host offset of a standard L2 entry (``cluster``: whose, for the error)."""
        if entry & layout.COMPRESSED:
            return Kind.COMPRESSED, entry
        core = self.core
        host: int | None = entry & layout.OFFSET_MASK
        if entry & self._zero_flag:
            if core.header.version < 3:
                raise core.corrupt("a version 2 image has a zero cluster", host)
            kind: Kind | None = Kind.ZERO
            if not host and not (entry & layout.COPIED and core.header.external_data):
                host = None
        elif host or (entry & layout.COPIED and core.header.external_data):
            kind = Kind.DATA
        else:
            return None, None
        if host is not None and host & (core.cluster_size - 1):
            raise core.corrupt(
                f"L2 entry {entry:#x} of guest cluster {cluster:#x} is not cluster-aligned", host
            )
        return kind, host

    def _extended_runs(
        self, table: Table, index: int, cluster: int, count: int, start: int, stop: int
    ) -> Iterator[Run]:
        """Extended L2 entries: 32 subclusters each, by the two halves of a bitmap."""
        words, bits = table.words, self.core.cluster_bits
        for done in range(count):
            entry, bitmap = words[2 * (index + done)], words[2 * (index + done) + 1]
            base = (cluster + done) << bits
            first, last = max(start, base), min(stop, base + self.core.cluster_size)
            kind, host = self.classify(entry, cluster + done)
            if kind is Kind.COMPRESSED:
                yield Run(first, last - first, kind, host)
            else:
                yield from self._subcluster_runs(base, host, bitmap, first, last)

    def _subcluster_runs(
        self, base: int, host: int | None, bitmap: int, first: int, last: int
    ) -> Iterator[Run]:
        if bitmap & (bitmap >> 32) & layout.ALL_ALLOCATED or (
            host is None and bitmap & layout.ALL_ALLOCATED
        ):
            raise self.core.corrupt(f"invalid subcluster bitmap {bitmap:#x}", host)
        size = self.core.cluster_size // layout.SUBCLUSTERS
        position = first
        while position < last:
            number = (position - base) // size
            state = _subcluster_state(bitmap, number)
            while number < layout.SUBCLUSTERS and _subcluster_state(bitmap, number) == state:
                number += 1
            stop = min(last, base + number * size)
            kind = (None, Kind.DATA, Kind.ZERO)[state]
            there = None if host is None or kind is None else host + position - base
            yield Run(position, stop - position, kind, there)
            position = stop

    # -- the fast path ---------------------------------------------------------------------------

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """Where a range that lies in one standard data cluster stands, else None.

        The one lookup that every small read makes: no lock, no plan.  Slices are remembered by
        number as long as none has left the cache; an entry read while another thread changes it
        is the old or the new one, both right for requests that overlap in time.
        """
        layer, core = self, self.core
        while True:
            within = offset & layer._within
            if within + length > core.cluster_size or layer._extended:
                return None
            cluster = offset >> core.cluster_bits
            if layer._generation != core.l2.generation:
                layer._forget_slices()
            words = layer._slices.get(cluster >> core.slice_bits)
            if words is None:
                words = layer._remember_slice(cluster)
            entry = words[cluster & layer._slice_mask] if words else 0
            if entry & layer._not_plain:
                return None
            host = entry & layout.OFFSET_MASK
            if host:
                plain = core.encryption is None
                return (core.data, host + within) if plain else core.place(host + within, offset)
            if entry or layer._below is None:
                return None if entry else layer._locate_below(offset, length)
            layer = layer._below
            core = layer.core
            if offset + length > core.header.size:
                return None

    def _locate_below(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """The same, in a backing file of another format."""
        if self.backing is None or offset + length > self.backing.size:
            return None
        return self.backing.locate(offset, length)

    @property
    def locate_unit(self) -> int:
        """As :class:`~vdisk.block.BlockDevice` has it: a cluster of the smallest kind."""
        own = self.core.cluster_size
        return own if self.backing is None else min(own, self.backing.locate_unit)

    def moves(self) -> int | None:
        """As :meth:`BlockDevice.moves <vdisk.block.BlockDevice.moves>`, backing files included."""
        below = 0 if self.backing is None else self.backing.moves()
        return None if below is None else self.core.moves + below

    def locate_own(self, offset: int, length: int) -> int:
        """The host offset of a range in standard clusters of the disk's own; 0 if it is in none.

        Several must lie one behind the other, and be described by one slice.
        """
        if self._extended:
            return 0
        core = self.core
        within = offset & self._within
        cluster = offset >> core.cluster_bits
        if self._generation != core.l2.generation:
            self._forget_slices()
        words = self._slices.get(cluster >> core.slice_bits)
        if words is None:
            words = self._remember_slice(cluster)
        entry = words[cluster & self._slice_mask] if words else 0
        if entry & self._not_plain or not entry & layout.COPIED:
            return 0
        end = within + length
        if end > core.cluster_size and not self._is_run(words, cluster, end):
            return 0
        host = entry & layout.OFFSET_MASK
        return host + within if host else 0

    def _is_run(self, words: array[int], cluster: int, length: int) -> bool:
        """Whether the clusters of ``length`` bytes from ``cluster`` on lie one behind the other."""
        index, size = cluster & self._slice_mask, self.core.cluster_size
        count = -(-length // size)
        return index + count <= len(words) and run_length(words, index, count, size) >= count

    def _forget_slices(self) -> None:
        with self.core.lock:
            self._slices.clear()
            self._generation = self.core.l2.generation

    def _remember_slice(self, cluster: int) -> array[int]:
        """The words of the slice that describes ``cluster``; empty where there is no L2 table."""
        core = self.core
        with core.lock:
            l1_index = cluster >> core.l2_bits
            entry = self.l1.words[l1_index] if l1_index < len(self.l1.words) else 0
            table_offset = core.checked_l2_offset(entry, l1_index)
            words = core.l2_slice(table_offset, cluster)[0].words if table_offset else _EMPTY
            if self._generation == core.l2.generation:
                self._slices[cluster >> core.slice_bits] = words
        return words


def _subcluster_state(bitmap: int, number: int) -> int:
    """0 unallocated, 1 allocated, 2 reads as zeroes."""
    if bitmap >> number & 1:
        return 1
    return 2 if bitmap >> (number + 32) & 1 else 0


def run_length(words: array[int], index: int, limit: int, step: int) -> int:
    """How many entries from ``index`` on continue it, each ``step`` more than the one before."""
    entry = words[index]
    if words[index + 1] != entry + step:
        return 1

    def matches(at: int, count: int) -> bool:
        found = words[index + at : index + at + count]
        if not entry and not step:
            return found == (_NO_ENTRIES if count == _LONGEST_STEP else _NO_ENTRIES[:count])
        ones, steps = _progression(count, step)
        return int.from_bytes(found, sys.byteorder) - steps == (entry + at * step) * ones

    return gallop(matches, 2, limit)


@functools.lru_cache(maxsize=64)
def _progression(count: int, step: int) -> tuple[int, int]:
    """Numbers whose 64-bit digits are 1, 1, 1, … and 0, step, 2 step, …

    Read as one number, a run of entries is ``entry * ones + steps``: two operations on long
    integers compare thousands of entries, eight times as fast as making them one by one.
    """
    ones = array("Q", [1]) * count
    steps = array("Q", range(0, count * step, step)) if step else array("Q", bytes(8 * count))
    if sys.byteorder == "big":  # the first entry is the highest digit there
        steps.reverse()
    return int.from_bytes(ones, sys.byteorder), int.from_bytes(steps, sys.byteorder)
