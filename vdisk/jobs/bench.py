"""bench: how fast an image answers, many requests under way at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import BlockDevice

MAX_BUFFER_SIZE = (1 << 31) - 1  # qemu-img's
MAX_DEPTH = 1024
"""Requests under way; each is a thread, and no disk queues more."""


class Workload(NamedTuple):
    """So many ``requests`` of ``buffer_size`` bytes, ``depth`` at a time.

    The first is at ``offset``, each other ``step`` bytes (None: ``buffer_size``) behind the one
    before, starting again at the end of the disk.  ``pattern``: None reads; a byte is written.
    ``flush_interval``: flush after so many writes, when all of them are done; or, with ``drain``
    False, while others are under way.
    """

    requests: int = 75000
    depth: int = 64
    buffer_size: int = 4096
    step: int | None = None
    offset: int = 0
    pattern: int | None = None
    flush_interval: int = 0
    drain: bool = True


class BenchResult(NamedTuple):
    """``requests`` that took ``seconds`` in all."""

    requests: int
    seconds: float


def bench(image: BlockDevice, workload: Workload) -> BenchResult:
    """Send the requests of ``workload`` to ``image``, which must be writable if they write.

    Each of ``depth`` threads takes the next request when it has finished one.
    """
    _check(image, workload)
    drained = workload.flush_interval if workload.drain else 0
    begin = time.perf_counter()
    with ThreadPoolExecutor(workload.depth) as pool:
        for first in range(0, workload.requests, drained or max(workload.requests, 1)):
            if first:
                image.flush()
            numbers = iter(
                range(first, min(first + (drained or workload.requests), workload.requests))
            )
            workers = [pool.submit(_work, image, workload, numbers) for _ in range(workload.depth)]
            for worker in workers:
                worker.result()
    return BenchResult(workload.requests, time.perf_counter() - begin)


def _work(image: BlockDevice, workload: Workload, numbers: Iterator[int]) -> None:
    """Do requests as long as there are any; ``numbers`` is shared by all threads."""
    size, length = image.size, workload.buffer_size
    step = length if workload.step is None else workload.step
    flush_interval = 0 if workload.drain else workload.flush_interval
    buffer = memoryview(bytearray([workload.pattern or 0]) * length)
    for number in numbers:
        if flush_interval and number and number % flush_interval == 0:
            image.flush()
        offset = (workload.offset + number * step) % size
        part = buffer[: size - offset]
        if workload.pattern is None:
            image.read_into(offset, part)
        else:
            image.write(offset, part)


def _check(image: BlockDevice, workload: Workload) -> None:
    if workload.requests < 0 or workload.offset < 0 or (workload.step or 0) < 0:
        raise InvalidRequestError("the count, the offset and the step are not negative")
    if not 1 <= workload.depth <= MAX_DEPTH:
        raise InvalidRequestError(f"the depth (-d) is between 1 and {MAX_DEPTH}")
    if not 1 <= workload.buffer_size <= MAX_BUFFER_SIZE:
        raise InvalidRequestError(f"the buffer size (-s) is between 1 and {MAX_BUFFER_SIZE}")
    if workload.flush_interval and workload.pattern is None:
        raise InvalidRequestError("a flush interval is for write tests (-w) only")
    if 0 < workload.flush_interval < workload.depth:
        raise InvalidRequestError("the flush interval is not smaller than the depth (-d)")
    if workload.requests and not image.size:
        raise InvalidRequestError("the disk is empty", path=image.name)
