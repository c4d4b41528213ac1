"""A guest that writes a disk through its controller, and says what it did and was told.

    python -m tests.tools.guest virtio|ide IMAGE SEED

As a program it prints each event on a line: ``write OFFSET LENGTH SEED`` before it is begun, and
``acknowledged`` when a flush has returned.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from typing import TYPE_CHECKING

import vdisk
from tests.tools.ide_driver import DATA, IdeBoard
from tests.tools.virtio_pci_driver import Board, PciDriver
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.vm.devices.virtio_blk import VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VirtioBlk

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.block import BlockDevice

SECTOR = 512
BATCH = 6
"""Writes in flight at once, each in a part of the disk of its own."""


class VirtioGuest:
    """Makes its writes available at once, the flush behind them: the device has to order them."""

    def __init__(self, device: BlockDevice, *, threads: int = 3) -> None:
        def make(board: Board) -> VirtioBlk:
            self.disk = EmuBlockDevice(device, lock=board.bus.lock, threads=threads)
            return VirtioBlk(self.disk, board.memory, board.clock)

        self.driver = PciDriver(make)
        self.driver.wake()

    def write_and_flush(self, writes: list[tuple[int, bytes]], *, flush: bool) -> None:
        board = self.driver.board
        board.allocator = type(board.allocator)(2 << 20)
        with board.bus.lock:
            for offset, data in writes:
                header = struct.pack("<IIQ", VIRTIO_BLK_T_OUT, 0, offset // SECTOR)
                self.driver.add([header, data], [1], indirect=True)
            if flush:
                header = struct.pack("<IIQ", VIRTIO_BLK_T_FLUSH, 0, 0)
                self.driver.add([header], [1], indirect=True)
            self.driver.kick()
        left = len(writes) + flush
        while left:
            with board.bus.lock:
                left -= len(self.driver.queues[0].used())
            time.sleep(0.0001)


class IdeGuest:
    """One command after the other, by DMA and through the data register."""

    def __init__(self, device: BlockDevice, *, threads: int = 3) -> None:
        board = IdeBoard()
        self.disk = EmuBlockDevice(device, lock=board.bus.lock, threads=threads)
        self.driver = board.plug(self.disk)
        board.enable()

    def write_and_flush(self, writes: list[tuple[int, bytes]], *, flush: bool) -> None:
        for number, (offset, data) in enumerate(writes):
            if number % 2:
                self.driver.pio_write(0xC5, offset // SECTOR, data, block=16)
            else:
                self.driver.board.memory.write(DATA, data)
                self.driver.table([(DATA, len(data))])
                count = len(data) // SECTOR
                self.driver.dma_command(0x35, offset // SECTOR, count, reading=False)
        if flush:
            self.driver.command(0xEA)


GUESTS: dict[str, type[VirtioGuest | IdeGuest]] = {"virtio": VirtioGuest, "ide": IdeGuest}


def live(
    guest: VirtioGuest | IdeGuest,
    rng: random.Random,
    batches: int,
    tell: Callable[[str, int, int, int], None],
    acknowledged: Callable[[], None],
) -> None:
    """``tell("write", offset, length, seed)`` before each write; see :func:`data_of`."""
    part = guest.disk.size // BATCH // SECTOR
    for _ in range(batches):
        writes = []
        for number in range(BATCH):
            start = rng.randrange(part)
            count = min(rng.choice([1, 1, 2, 8, 30]), part - start)
            offset, seed = (number * part + start) * SECTOR, rng.randrange(1 << 30)
            tell("write", offset, count * SECTOR, seed)
            writes.append((offset, data_of(seed, count * SECTOR)))
        rng.shuffle(writes)
        flush = rng.random() < 0.6
        guest.write_and_flush(writes, flush=flush)
        if flush:
            acknowledged()


def data_of(seed: int, length: int) -> bytes:
    """What a write of that seed writes."""
    return random.Random(seed).randbytes(length)


def main(kind: str, path: str, seed: str) -> None:
    guest = GUESTS[kind](vdisk.open(path, "r+"))
    live(
        guest,
        random.Random(int(seed)),
        1 << 30,
        lambda *event: print(*event, flush=True),
        lambda: print("acknowledged", flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
