"""How much processor a request of a guest costs, in the disk and in virtio-blk above it.

    python bench/emu_blockdev.py [--seconds 1] [--only WORD]

Each line is one way: what is asked for (4 KiB or 1 MiB, read or written, how many at once), of what
image (raw or qcow2, in the page cache), through what::

    device      BlockDevice.readv/writev into the same memory: what the storage itself costs
    disk        EmuBlockDevice.submit
    virtio-blk  a virtqueue as drivers lay it, notified through the PCI function, parsed, served,
                given back, an MSI-X message sent; the driver's own share (a test tool, in
                Python) is measured by itself and taken off

The buffers of a request are pages that follow each other downwards, 256 for 1 MiB: so Linux's page
allocator hands them out to a process that reads past the cache.

Printed: thousand requests, or MiB, for each second of processor time of this process, workers
included, and the cost beside the bare device.  Ways take turns; the median of five rounds counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vdisk
from tests.tools.virtio_pci_driver import Board, PciDriver
from vdisk.emu_blockdev import EmuBlockDevice, Operation, Request
from vdisk.vm.devices.virtio_blk import VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VirtioBlk

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
SIZE = 256 * MIB
PAGE = 4096
DEPTH = 32
ROUNDS = 5


class Load(NamedTuple):
    """What is asked for: ``length`` bytes a request, ``depth`` requests at once."""

    name: str
    length: int
    write: bool
    depth: int


LOADS = [
    Load("read 4 KiB, 1 at once", PAGE, False, 1),
    Load("read 4 KiB, 32 at once", PAGE, False, DEPTH),
    Load("write 4 KiB, 1 at once", PAGE, True, 1),
    Load("write 4 KiB, 32 at once", PAGE, True, DEPTH),
    Load("read 1 MiB, 1 at once", MIB, False, 1),
    Load("write 1 MiB, 1 at once", MIB, True, 1),
]


class Rig:
    """An image behind a virtio-blk, and a driver that has laid its buffers once."""

    def __init__(self, path: Path, *, format: str) -> None:
        def make(board: Board) -> VirtioBlk:
            disk = EmuBlockDevice(vdisk.open(path, "r+", format=format), lock=board.bus.lock)
            return VirtioBlk(disk, board.memory, board.clock)

        self.driver = PciDriver(make, longest=MIB // PAGE + 2, board=Board(64 * MIB))
        self.driver.wake()
        assert isinstance(self.driver.device, VirtioBlk)
        self.disk = self.driver.device.disk
        self.memory = self.driver.memory
        take = self.driver.board.allocator.take
        self.headers = [take(16) for _ in range(DEPTH)]
        self.status = [take(16) for _ in range(DEPTH)]
        self.data = take(2 * MIB, PAGE)
        self.position = 0

    def next_offset(self, length: int) -> int:
        """Scattered, and the same for every way."""
        self.position = (self.position + 37 * MIB + length) % (SIZE - MIB)
        return self.position // length * length

    def parts(self, load: Load, number: int) -> list[tuple[int, int]]:
        """The pages of a request, downwards."""
        count = load.length // PAGE
        first = self.data + number * 2 * PAGE
        return [(first + place * PAGE, PAGE) for place in reversed(range(count))]


def through_device(rig: Rig, load: Load) -> Callable[[], None]:
    device = rig.disk.device
    assert device is not None
    call = device.writev if load.write else device.readv
    views = [rig.memory.view(*part) for part in rig.parts(load, 0)]

    def batch() -> None:
        for _ in range(load.depth):
            call(rig.next_offset(load.length), views)

    return batch


def through_disk(rig: Rig, load: Load) -> Callable[[], None]:
    operation = Operation.WRITE if load.write else Operation.READ
    views = [rig.memory.view(*part) for part in rig.parts(load, 0)]
    left: list[Request] = []

    def batch() -> None:
        with rig.disk.lock:
            for _ in range(load.depth):
                offset = rig.next_offset(load.length)
                rig.disk.submit(Request(operation, offset, load.length, views, left.append))
            rig.disk.drain()

    return batch


def through_virtio(rig: Rig, load: Load) -> Callable[[], None]:
    kind = VIRTIO_BLK_T_OUT if load.write else VIRTIO_BLK_T_IN
    queue, driver = rig.driver.queues[0], rig.driver
    room = [rig.parts(load, number) for number in range(load.depth)]

    def batch() -> None:
        for number in range(load.depth):
            sector = rig.next_offset(load.length) // 512
            rig.memory.write(rig.headers[number], struct.pack("<IIQ", kind, 0, sector))
            header, status = (rig.headers[number], 16), (rig.status[number], 1)
            if load.write:
                queue.add([header, *room[number]], [status], indirect=True)
            else:
                queue.add([header], [*room[number], status], indirect=True)
        with driver.board.bus.lock:
            driver.kick(always=True)
            rig.disk.drain()
        assert len(queue.used()) == load.depth

    return batch


def driver_alone(rig: Rig, load: Load) -> float:
    """Seconds of processor that the driver's part of a request takes."""
    rig.driver.device.notify = lambda _index: None  # type: ignore[method-assign]
    try:
        batch = _driver_batch(rig, load)
        begin, count = time.process_time(), 0
        while time.process_time() - begin < 0.1:
            batch()
            count += load.depth
        return (time.process_time() - begin) / count
    finally:
        del rig.driver.device.notify


def _driver_batch(rig: Rig, load: Load) -> Callable[[], None]:
    """The same as :func:`through_virtio`, with a device that only gives buffers back."""
    queue = rig.driver.queues[0]
    room = [rig.parts(load, number) for number in range(load.depth)]
    ring = rig.driver.device.slots[0].ring
    assert ring is not None
    chain_cost = _Emptied(ring)

    def batch() -> None:
        for number in range(load.depth):
            sector = rig.next_offset(load.length) // 512
            rig.memory.write(rig.headers[number], struct.pack("<IIQ", 0, 0, sector))
            header, status = (rig.headers[number], 16), (rig.status[number], 1)
            queue.add([header], [*room[number], status], indirect=True)
        with rig.driver.board.bus.lock:
            rig.driver.kick(always=True)
            chain_cost.empty()
        queue.used()

    return batch


class _Emptied:
    """Gives every buffer of a ring back by its head alone."""

    def __init__(self, ring: object) -> None:
        from vdisk.vm.devices.virtqueue import Chain, SplitQueue

        assert isinstance(ring, SplitQueue)
        self._ring = ring
        self._chain = Chain
        self._read = SplitQueue._read_chain

    def empty(self) -> None:
        ring = self._ring
        ring._read_chain = lambda key: self._chain(key, key, 1)  # type: ignore[method-assign]
        try:
            while (chain := ring.pop()) is not None:
                ring.push(chain, 1)
            ring.publish()
            ring.await_notification()
        finally:
            del ring._read_chain


WAYS = {"device": through_device, "disk": through_disk, "virtio-blk": through_virtio}


def seconds_each(batch: Callable[[], None], depth: int, seconds: float) -> float:
    """Processor time of one request."""
    count, begin, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        batch()
        count += depth
    return (time.process_time() - begin) / count


def compare(rig: Rig, load: Load, seconds: float) -> dict[str, float]:
    costs: dict[str, list[float]] = {name: [] for name in WAYS}
    batches = {name: way(rig, load) for name, way in WAYS.items()}
    for batch in batches.values():
        batch()
    overhead = driver_alone(rig, load)
    for _ in range(ROUNDS):
        for name, batch in batches.items():
            cost = seconds_each(batch, load.depth, seconds / ROUNDS)
            costs[name].append(cost - overhead if name == "virtio-blk" else cost)
    return {name: statistics.median(each) for name, each in costs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each way of each line")
    parser.add_argument("--only", default="", help="lines that contain this word")
    parser.add_argument("--folder", default=None, help="where the images are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for format in ("raw", "qcow2"):
            path = Path(folder, format)
            vdisk.create(path, SIZE, format=format)
            with vdisk.open(path, "r+", format=format) as image:
                for offset in range(0, SIZE, MIB):
                    image.write(offset, os.urandom(MIB))
            rig = Rig(path, format=format)
            for load in LOADS:
                line = f"{format}, {load.name}"
                if options.only in line:
                    print_line(line, load, compare(rig, load, options.seconds))
            rig.disk.close()
            path.unlink()


def print_line(line: str, load: Load, costs: dict[str, float]) -> None:
    shown = []
    for name, cost in costs.items():
        rate = f"{1e-3 / cost:7.1f} k/s" if load.length < MIB else f"{1 / cost:7.0f} MiB/s"
        ratio = "" if name == "device" else f" ({cost / costs['device']:.2f}x)"
        shown.append(f"{name} {rate}{ratio}")
    print(f"{line:32} {'   '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
