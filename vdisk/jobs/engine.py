"""The engine that carries a plan out: threads, buffers and the order of writes.

Threads read, look for zeroes and compress; the results are written by one thread in the order
of the plan, so that an image that allocates as it is written comes out in order::

    plan -> batches -> [ thread: read, encode ] -> writes in order -> target
                       [ thread: read, encode ]

With ``out_of_order`` each thread writes its own results.  Every batch has a buffer of its own
while it is under way, and the buffers are used over and over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import Kind
from vdisk.jobs.encoding import Write, verbatim
from vdisk.jobs.parallel import in_order
from vdisk.jobs.plan import Action, batches
from vdisk.jobs.sources import read_planned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vdisk.block import BlockDevice, Extent
    from vdisk.jobs.encoding import CompressingDevice, Encoder
    from vdisk.jobs.plan import Step
    from vdisk.jobs.progress import Progress

BATCH_SIZE = 2 << 20
"""Bytes that one thread handles at a time: the largest cluster there is, and no less than it
takes for a hand-over between threads (50 µs) to vanish beside the copying (500 µs)."""


class CopySettings(NamedTuple):
    """How to copy.

    ``encode``: what to write for the bytes read.  ``compressor``: the target, if ``encode``
    compresses.  ``offload``: let the system copy between files where it can.  ``unmap``: what is
    zeroed may give its room back.  ``rate_limit``: bytes a second.  ``batch_size``: bytes that one
    thread handles at a time.  ``read``: what fills a buffer from a step's extents.
    ``count_copied``: progress is made by bytes copied, not by how far into the disk they are.
    """

    encode: Encoder = verbatim
    compressor: CompressingDevice | None = None
    offload: bool = False
    unmap: bool = True
    workers: int = 2
    out_of_order: bool = False
    rate_limit: int | None = None
    batch_size: int = BATCH_SIZE
    read: Callable[[Iterable[Extent], int, memoryview], None] = read_planned
    count_copied: bool = False


class Totals(NamedTuple):
    """Bytes that were written as data, and as zeroes."""

    copied: int
    zeroed: int


class _Prepared(NamedTuple):
    """What a thread made of a batch: writes whose data lies in ``buffer``."""

    writes: list[Write]
    buffer: bytearray
    batch: list[Step]


def run(
    steps: Iterable[Step], target: BlockDevice, settings: CopySettings, progress: Progress
) -> Totals:
    """Carry out ``steps`` on ``target``; stops at the first error, with all threads ended."""
    return _Copier(target, settings).drive(steps, progress)


class _Copier:
    """One run of the engine."""

    def __init__(self, target: BlockDevice, settings: CopySettings) -> None:
        self._target = target
        self._settings = settings
        self._ahead = 2 * settings.workers
        # One more than can be under way: the one whose writes are being carried out.
        self._buffers = [bytearray(settings.batch_size) for _ in range(self._ahead + 1)]

    def drive(self, steps: Iterable[Step], progress: Progress) -> Totals:
        workers, ordered = self._settings.workers, not self._settings.out_of_order
        rate_limit = self._settings.rate_limit
        clock = _RateLimit(rate_limit) if rate_limit else None
        copied = zeroed = 0
        work = batches(steps, self._settings.batch_size)
        for done in in_order(self._work, work, workers, self._ahead):
            if ordered:
                self._carry_out(done.writes)
            for write in done.writes:
                if write.zeroes:
                    zeroed += write.length
                else:
                    copied += write.length
            self._buffers.append(done.buffer)
            self._tell(progress, done.batch)
            if clock is not None:
                clock.wait(copied)
        return Totals(copied, zeroed)

    def _tell(self, progress: Progress, batch: list[Step]) -> None:
        """The batch is done."""
        if not self._settings.count_copied:
            progress.reach(batch[-1].end)
            return
        for step in batch:
            if step.action is Action.COPY:
                progress.advance(step.length)

    def _work(self, batch: list[Step]) -> _Prepared:
        """What a thread does with a batch."""
        buffer = self._buffers.pop()
        writes = self._prepare(batch, buffer)
        if self._settings.out_of_order:
            self._carry_out(writes)
        return _Prepared(writes, buffer, batch)

    def _prepare(self, batch: list[Step], buffer: bytearray) -> list[Write]:
        """Read the batch into ``buffer``: the writes that it takes, slices of it."""
        writes: list[Write] = []
        view = memoryview(buffer)
        position = 0
        for step in batch:
            if step.action is Action.ZERO:
                writes.append(Write(step.start, step.length))
            elif self._settings.offload and _is_data(step):
                writes.extend(Write(e.start, e.length, offload=e) for e in step.extents)
            else:
                part = view[position : position + step.length]
                self._settings.read(step.extents, step.start, part)
                writes.extend(self._settings.encode(buffer, position, step.start, step.length))
                position += step.length
        return writes

    def _carry_out(self, writes: Iterable[Write]) -> None:
        for write in writes:
            if write.offload is not None:
                self._offload(write.offload)
            elif write.data is None:
                self._target.write_zeroes(write.offset, write.length, unmap=self._settings.unmap)
            elif write.compressed and self._settings.compressor is not None:
                self._settings.compressor.write_compressed(write.offset, write.data)
            else:
                self._target.write(write.offset, write.data)

    def _offload(self, extent: Extent) -> None:
        """Let the system copy; what it does not copy is read and written."""
        source, offset = extent.source, extent.source_offset
        assert source is not None
        assert offset is not None
        done = self._target.copy_from(extent.start, source, offset, extent.length)
        if done < extent.length:
            rest = source.read(offset + done, extent.length - done)
            self._target.write(extent.start + done, rest)


def _is_data(step: Step) -> bool:
    """True if all of the step stands verbatim in files."""
    return all(extent.kind is Kind.DATA for extent in step.extents)


class _RateLimit:
    """Sleeps so that no more than ``rate`` bytes a second go by."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._start = time.monotonic()

    def wait(self, done: int) -> None:
        """``done`` bytes have gone by since the start: sleep until that is no more than due."""
        ahead = done / self._rate - (time.monotonic() - self._start)
        if ahead > 0:
            time.sleep(ahead)
