"""The engine that carries a plan out: threads, buffers and the order of writes.

Threads read, look for zeroes and compress; the results are written by one thread in the order
of the plan, so that an image that allocates as it is written comes out in order::

    plan -> batches -> [ thread: read, scan, compress ] -> results in order -> target
                       [ thread: read, scan, compress ]

With ``out_of_order`` each thread writes its own results.  Every batch has a buffer of its own
while it is under way, and the buffers are used over and over.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import Kind, execute_read
from vdisk.jobs.plan import Action, batches
from vdisk.jobs.zeroes import is_zero, zero_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor
    from typing import Protocol

    from typing_extensions import Buffer

    from vdisk.block import BlockDevice, Extent
    from vdisk.jobs.plan import Step
    from vdisk.jobs.progress import Progress

    class CompressingDevice(Protocol):
        """An image that holds compressed clusters."""

        def compress_cluster(self, data: Buffer) -> bytes | None:
            """The payload for a cluster; None if it does not shrink. Any thread may call it."""

        def write_compressed(self, offset: int, compressed: Buffer) -> None:
            """Write the cluster at ``offset`` as this payload."""


BATCH_SIZE = 2 << 20
"""Bytes that one thread handles at a time: the largest cluster there is, and no less than it
takes for a hand-over between threads (50 µs) to vanish beside the copying (500 µs)."""


class CopySettings(NamedTuple):
    """How to copy.

    ``block``: bytes that must be zero, together, to be left out; 0: do not look for zeroes.
    ``target_is_zero``: what is not written reads as zeroes.  ``compressor``: the target, if it
    is to hold compressed clusters, of ``block`` bytes.  ``offload``: let the system copy between
    files where it can.  ``rate_limit``: bytes a second.  ``read``: what fills a buffer from a
    step's extents.
    """

    block: int
    target_is_zero: bool
    compressor: CompressingDevice | None = None
    offload: bool = False
    workers: int = 2
    out_of_order: bool = False
    rate_limit: int | None = None
    read: Callable[[Iterable[Extent], int, memoryview], None] = execute_read


class Totals(NamedTuple):
    """Bytes that were written as data, and as zeroes."""

    copied: int
    zeroed: int


class _Write(NamedTuple):
    """One request to the target.

    ``data``: the bytes; None for zeroes.  ``compressed``: ``data`` is the payload of a compressed
    cluster.  ``offload``: the extent that the system is to copy, instead of ``data``.
    """

    offset: int
    length: int
    data: memoryview | bytes | None = None
    compressed: bool = False
    offload: Extent | None = None

    @property
    def zeroes(self) -> bool:
        return self.data is None and self.offload is None


def run(
    steps: Iterable[Step], target: BlockDevice, settings: CopySettings, progress: Progress
) -> Totals:
    """Carry out ``steps`` on ``target``; stops at the first error, with all threads ended."""
    from concurrent.futures import ThreadPoolExecutor

    copier = _Copier(target, settings, progress)
    with ThreadPoolExecutor(settings.workers) as pool:
        try:
            copier.drive(pool, batches(steps, BATCH_SIZE))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Totals(copier.copied, copier.zeroed)


class _Copier:
    """One run of the engine."""

    def __init__(self, target: BlockDevice, settings: CopySettings, progress: Progress) -> None:
        self._target = target
        self._settings = settings
        self._progress = progress
        self._clock = _RateLimit(settings.rate_limit) if settings.rate_limit else None
        self.copied = 0
        self.zeroed = 0

    def drive(self, pool: ThreadPoolExecutor, work: Iterator[list[Step]]) -> None:
        """Keep every thread busy, and one batch more waiting for each than it works on."""
        buffers = [bytearray(BATCH_SIZE) for _ in range(2 * self._settings.workers)]
        running: deque[tuple[Future[list[_Write]], bytearray, int]] = deque()
        task = self._prepare_and_write if self._settings.out_of_order else self._prepare
        for batch in work:
            if not buffers:
                buffers.append(self._finish(*running.popleft()))
            buffer = buffers.pop()
            running.append((pool.submit(task, batch, buffer), buffer, batch[-1].end))
        while running:
            self._finish(*running.popleft())

    def _finish(self, future: Future[list[_Write]], buffer: bytearray, end: int) -> bytearray:
        """Wait for a batch, write its results unless they are written, and free its buffer."""
        writes = future.result()
        if not self._settings.out_of_order:
            for write in writes:
                self._write(write)
        copied = sum(write.length for write in writes if not write.zeroes)
        self.copied += copied
        self.zeroed += sum(write.length for write in writes) - copied
        self._progress.reach(end)
        if self._clock is not None:
            self._clock.wait(self.copied)
        return buffer

    # -- in the threads ------------------------------------------------------------------------

    def _prepare_and_write(self, batch: list[Step], buffer: bytearray) -> list[_Write]:
        writes = self._prepare(batch, buffer)
        for write in writes:
            self._write(write)
        return writes

    def _prepare(self, batch: list[Step], buffer: bytearray) -> list[_Write]:
        """Read the batch into ``buffer``: the writes that it takes, slices of it."""
        writes: list[_Write] = []
        position = 0
        view = memoryview(buffer)
        for step in batch:
            if step.action is Action.ZERO:
                writes.append(_Write(step.start, step.length))
            elif self._settings.offload and _is_data(step):
                writes.extend(_Write(e.start, e.length, offload=e) for e in step.extents)
            else:
                part = view[position : position + step.length]
                self._settings.read(step.extents, step.start, part)
                writes.extend(self._encode(buffer, position, step.start, step.length))
                position += step.length
        return writes

    def _encode(
        self, buffer: bytearray, position: int, offset: int, length: int
    ) -> Iterator[_Write]:
        """The writes for ``length`` bytes at ``position`` of the buffer, zeroes left out."""
        if self._settings.compressor is not None:
            yield from self._compress(self._settings.compressor, buffer, position, offset, length)
            return
        view = memoryview(buffer)
        if not self._settings.block:
            yield _Write(offset, length, view[position : position + length])
            return
        for start, size, zero in zero_runs(buffer, position, length, self._settings.block):
            where = offset + start - position
            if not zero:
                yield _Write(where, size, view[start : start + size])
            elif not self._settings.target_is_zero:
                yield _Write(where, size)

    def _compress(
        self,
        compressor: CompressingDevice,
        buffer: bytearray,
        position: int,
        offset: int,
        length: int,
    ) -> Iterator[_Write]:
        """One write a cluster: compressed, or plain where that is not smaller."""
        cluster = self._settings.block
        view = memoryview(buffer)
        for start in range(position, position + length, cluster):
            size = min(cluster, position + length - start)
            where = offset + start - position
            if is_zero(buffer, start, size):
                if not self._settings.target_is_zero:
                    yield _Write(where, size)
                continue
            data = view[start : start + size]
            payload = compressor.compress_cluster(data)
            if payload is None:
                yield _Write(where, size, data)
            else:
                yield _Write(where, size, payload, compressed=True)

    # -- to the target -------------------------------------------------------------------------

    def _write(self, write: _Write) -> None:
        if write.offload is not None:
            self._offload(write.offload)
        elif write.data is None:
            self._target.write_zeroes(write.offset, write.length)
        elif write.compressed and self._settings.compressor is not None:
            self._settings.compressor.write_compressed(write.offset, write.data)
        else:
            self._target.write(write.offset, write.data)

    def _offload(self, extent: Extent) -> None:
        """Let the system copy; what it does not copy is read and written."""
        assert extent.source is not None
        assert extent.source_offset is not None
        done = self._target.copy_from(
            extent.start, extent.source, extent.source_offset, extent.length
        )
        if done == extent.length:
            return
        buffer = memoryview(bytearray(extent.length - done))
        extent.source.read_into(extent.source_offset + done, buffer)
        self._target.write(extent.start + done, buffer)


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
