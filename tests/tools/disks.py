"""A guest's side of an emulated disk: requests that are submitted, awaited and checked."""

from __future__ import annotations

import random
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.tools.patience import PATIENCE
from vdisk.emu_blockdev import Operation, Request
from vdisk.filters.passing import Passing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.block import BlockDevice
    from vdisk.emu_blockdev import EmuBlockDevice


class Pending:
    """A request on its way, with the memory it uses."""

    def __init__(self, request: Request, buffer: bytearray | None = None) -> None:
        self.request = request
        self.buffer = buffer or bytearray()
        self.finished = False

    @property
    def data(self) -> bytes:
        """What the memory holds."""
        return bytes(self.buffer)


class Submitter:
    """Submits requests and remembers what the disk must hold."""

    def __init__(self, disk: EmuBlockDevice) -> None:
        self.disk = disk
        self.done = threading.Condition(disk.lock)
        self.expected = bytearray(disk.device.read(0, disk.size) if disk.device else b"")

    def submit(self, request: Request, buffer: bytearray | None = None) -> Pending:
        pending = Pending(request, buffer)
        request.context, request.done = pending, self._on_done
        with self.done:
            if self.disk.submit(request):
                self._on_done(request)
        return pending

    def _on_done(self, request: Request) -> None:
        pending = request.context
        assert isinstance(pending, Pending)
        assert not pending.finished
        pending.finished = True
        with self.done:
            self.done.notify_all()

    def wait(self, *pending: Pending, seconds: float = PATIENCE) -> None:
        with self.done:
            assert self.done.wait_for(lambda: all(one.finished for one in pending), seconds)

    def read(self, offset: int, length: int, cuts: Sequence[int] = ()) -> Pending:
        buffer = bytearray(length)
        return self.submit(Request(Operation.READ, offset, length, _cut(buffer, cuts)), buffer)

    def write(self, offset: int, data: bytes, cuts: Sequence[int] = ()) -> Pending:
        self.expected[offset : offset + len(data)] = data
        return self.submit(Request(Operation.WRITE, offset, len(data), _cut(data, cuts)))

    def zero(self, offset: int, length: int, *, unmap: bool) -> Pending:
        self.expected[offset : offset + length] = bytes(length)
        return self.submit(Request(Operation.WRITE_ZEROES, offset, length, unmap=unmap))

    def flush(self) -> Pending:
        return self.submit(Request(Operation.FLUSH))

    def live(self, *, steps: int, seed: int) -> None:
        """Write, zero, flush and read back by chance, several requests at a time."""
        rng = random.Random(seed)
        for _ in range(steps):
            sectors = self.disk.size // self.disk.sector_size
            first = rng.randrange(sectors)
            count = min(rng.choice([1, 2, 8, 100, 300, 1000]), sectors - first)
            offset, length = first * self.disk.sector_size, count * self.disk.sector_size
            cuts = sorted(rng.randrange(length) for _ in range(rng.choice([0, 1, 5])))
            kind = rng.randrange(8)
            if kind < 3:
                asked = [self.write(offset, rng.randbytes(length), cuts)]
            elif kind == 3:
                asked = [self.zero(offset, length, unmap=rng.random() < 0.5)]
            elif kind == 4:
                asked = [self.flush(), self.read(offset, length, cuts)]
            else:
                asked = [self.read(offset, length, cuts) for _ in range(3)]
            self.wait(*asked)
            for one in asked:
                assert one.request.error is None
                if one.request.operation is Operation.READ:
                    assert one.buffer == self.expected[offset : offset + length]


def _cut(buffer: bytes | bytearray, cuts: Sequence[int]) -> list[memoryview]:
    view, edges = memoryview(buffer), [0, *cuts, len(buffer)]
    return [view[start:end] for start, end in pairwise(edges) if end > start]


class Gated(Passing):
    """A device whose writes wait until they are let through, by number; notes what happened."""

    def __init__(self, inner: BlockDevice, *, gated: bool = True) -> None:
        super().__init__(inner)
        self.verbatim = False  # so that nothing is done at once
        self.events: list[str] = []
        self.entered = threading.Event()
        self._gated = gated
        self._gates = [threading.Event() for _ in range(16)]
        self._count = 0
        self._lock = threading.Lock()

    def open(self, number: int) -> None:
        self._gates[number].set()

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self, offset

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        with self._lock:
            number, self._count = self._count, self._count + 1
        self.entered.set()
        if self._gated:
            assert self._gates[number].wait(PATIENCE)
        self.inner.writev(offset, views)
        self.events.append(f"written {number}")

    def _flush(self) -> None:
        self.inner.flush()
        self.events.append("flush")


class Slow(Passing):
    """A device whose writes take a moment, each another one, so that they finish in any order."""

    def __init__(self, inner: BlockDevice, seed: int) -> None:
        super().__init__(inner)
        self.verbatim = False  # so that nothing is done at once
        self._rng = random.Random(seed)

    def _write(self, offset: int, view: memoryview) -> None:
        self._writev(offset, [view])

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        time.sleep(self._rng.choice([0, 0.0005, 0.002]))
        self.inner.writev(offset, views)
