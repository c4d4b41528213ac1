"""What an export holds, from NBD_CMD_BLOCK_STATUS.

The contexts that are understood:

``base:allocation``       NBD_STATE_ZERO: reads as zeroes.  A hole that does not is data, of unknown
                          content.
``qemu:allocation-depth`` which image of the server's chain holds a range, 1 for the top; 0: none.

Any other can be shown in the place of ``base:allocation``, for who wants to look at it (QEMU's
option ``x-dirty-bitmap``): a bit that is set then looks like a hole.  Nothing is read by that.

A server answers for as much of a range as it likes, the last extent perhaps beyond its end.  So a
short question is made longer, and what was answered is kept for :data:`MAX_AGE`: a format that
asks for one cluster after the other sends one request for thousands.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import BlockDevice, Extent, Kind
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH, AllocationState
from vdisk.stores._nbd.requests import BLOCK_STATUS, Request
from vdisk.units import round_down

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.stores._nbd.pool import Pool

AHEAD = 64 << 20
"""Bytes to ask for at least: a server finds its extents faster than a network asks for them."""

LONGEST = 1 << 30
"""Bytes to ask for at most: so that no answer takes long to find."""

_WHOLE_BLOCKS = 64 << 10
"""What the longest question is a multiple of: nbdkit 1.32 dies of one about 2**32 - 1 bytes."""

MAX_AGE = 1.0
"""Seconds that an answer is believed: others may write to the export too."""


class Run(NamedTuple):
    """What a range holds, and whether it is a hole: zeroes and data may be either."""

    kind: Kind
    depth: int
    hole: bool


class _Answer(NamedTuple):
    """What was learnt of [start, end): runs by their first byte, each up to the next."""

    start: int
    end: int
    starts: list[int]
    runs: list[Run]
    born: float


class StatusMap:
    """The extents of one store; thread-safe.

    ``context``: what is taken for base:allocation.
    """

    def __init__(self, pool: Pool, unit: int, context: str = BASE_ALLOCATION) -> None:
        self._pool = pool
        self._unit = unit
        self._context = context
        self._lock = threading.Lock()
        self._known: _Answer | None = None
        self._changes = 0

    @property
    def available(self) -> bool:
        return self._context in {each.name for each in self._pool.session.meta_contexts}

    def changed(self) -> None:
        """Something was written."""
        with self._lock:
            self._changes += 1
            self._known = None

    def extents(self, device: BlockDevice, start: int, length: int) -> Iterator[Extent]:
        """The extents of a range, as those of ``device``."""
        for at, size, run in self.runs(device.size, start, length):
            if run.kind is Kind.HOLE:
                yield Extent(at, size, run.kind)
            else:
                yield Extent(at, size, run.kind, device, at, run.depth)

    def runs(self, size: int, start: int, length: int) -> Iterator[tuple[int, int, Run]]:
        """Start, length and content of the runs of a range; ``size``: of the export."""
        end = start + length
        while start < end:
            answer = self._find(start, end, size)
            index = bisect_right(answer.starts, start) - 1
            while start < min(end, answer.end):
                stop = answer.starts[index + 1] if index + 1 < len(answer.starts) else answer.end
                stop = min(stop, end)
                yield start, stop - start, answer.runs[index]
                start, index = stop, index + 1

    def _find(self, start: int, end: int, size: int) -> _Answer:
        with self._lock:
            known, changes = self._known, self._changes
        if (
            known is not None
            and known.start <= start < known.end
            and time.monotonic() - known.born < MAX_AGE
        ):
            return known
        answer = self._ask(start, min(max(end - start, AHEAD), LONGEST), size)
        with self._lock:
            if changes == self._changes:
                self._known = answer
        return answer

    def _ask(self, start: int, length: int, size: int) -> _Answer:
        first = round_down(start, self._unit)
        last = min(round_down(start + length + self._unit - 1, self._unit), size)
        born = time.monotonic()
        request = self._pool.call(Request(BLOCK_STATUS, first, last - first))
        allocation: tuple[tuple[int, int], ...] = ()
        depths: tuple[tuple[int, int], ...] = ((last - first, 1),)
        for event in request.status:
            if event.context.name == self._context:
                allocation = tuple((each, self._shown(status)) for each, status in event.extents)
            elif event.context.name == QEMU_ALLOCATION_DEPTH:
                depths = event.extents
        starts: list[int] = []
        runs: list[Run] = []
        position = first
        for each, flags, depth in _together(allocation, depths):
            starts.append(position)
            hole = bool(flags & AllocationState.NBD_STATE_HOLE)
            runs.append(Run(_kind(flags, depth), max(depth - 1, 0), hole))
            position += each
        return _Answer(first, min(position, size), starts, runs, born)

    def _shown(self, status: int) -> int:
        """QEMU tells two depths apart: the export's own (1), and from below (2)."""
        return min(status, 2) if self._context == QEMU_ALLOCATION_DEPTH else status


def _kind(flags: int, depth: int) -> Kind:
    if not flags & AllocationState.NBD_STATE_ZERO:
        return Kind.DATA
    return Kind.HOLE if depth == 0 else Kind.ZERO


def _together(
    first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]
) -> Iterator[tuple[int, int, int]]:
    """(length, status of both) of two runs from the same byte on, as far as both go."""
    ones, others = iter(first), iter(second)
    left, one = next(ones, (0, 0))
    right, other = next(others, (0, 0))
    while left and right:
        step = min(left, right)
        yield step, one, other
        left, right = left - step, right - step
        if not left:
            left, one = next(ones, (0, 0))
        if not right:
            right, other = next(others, (0, 0))


def context_extents(
    pool: Pool, context: str, start: int, end: int, unit: int
) -> Iterator[tuple[int, int, int]]:
    """(start, length, status) of one meta context, as the server tells it, neighbours joined."""
    pending: tuple[int, int, int] | None = None
    for at, length, status in _context_runs(pool, context, start, end, unit):
        if pending is not None and pending[2] == status:
            pending = (pending[0], pending[1] + length, status)
            continue
        if pending is not None:
            yield pending
        pending = at, length, status
    if pending is not None:
        yield pending


def _context_runs(
    pool: Pool, context: str, start: int, end: int, unit: int
) -> Iterator[tuple[int, int, int]]:
    extended = pool.session.headers is HeaderStyle.EXTENDED
    longest = round_down(2**63 if extended else 2**32 - 1, max(unit, _WHOLE_BLOCKS))
    while start < end:
        request = pool.call(Request(BLOCK_STATUS, start, min(end - start, longest)))
        for event in request.status:
            if event.context.name == context:
                for length, status in event.extents:
                    if start < end:
                        yield start, min(length, end - start), status
                    start += length
