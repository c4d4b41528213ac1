"""Any accesses and rings of a driver: virtio-blk writes only what it was given; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings (packed ring, legacy registers, several queues, read-only), then accesses
to the registers of the PCI function and to the memory that holds rings and buffers.
"""

from __future__ import annotations

import random
import struct
from functools import partial
from typing import TYPE_CHECKING

from fuzz import accesses
from fuzz.virtio import VirtioRig, play, record
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.stores.memory import MemoryStore
from vdisk.vm.devices.virtio_blk import VirtioBlk

if TYPE_CHECKING:
    from tests.tools.virtio_pci_driver import Board, PciDriver

LONGEST = 64 << 10
SIZE = 256 << 10

_CONTENT = random.Random(4).randbytes(SIZE)
PACKED, LEGACY, QUEUES, READONLY = 1, 2, 4, 8


class Rig(VirtioRig):
    """For each setting."""

    def __init__(self, settings: int) -> None:
        self._settings = settings
        super().__init__(legacy=bool(settings & LEGACY))

    def make(self, board: Board) -> VirtioBlk:
        self.disk = EmuBlockDevice(
            MemoryStore(_CONTENT, growable=False),
            threads=0,
            lock=board.bus.lock,
            readonly=bool(self._settings & READONLY),
        )
        return VirtioBlk(
            self.disk,
            board.memory,
            board.clock,
            queues=2 if self._settings & QUEUES else 1,
            packed=bool(self._settings & PACKED),
            queue_size=16,
        )

    def fresh(self) -> None:
        self.disk._use(MemoryStore(_CONTENT, growable=False))
        super().fresh()

    def check(self) -> None:
        """Nothing is in work, either."""
        assert not self.disk.in_flight
        assert not any(slot.held for slot in self.driver.device.slots)
        super().check()
        assert self.disk.size == SIZE


_rigs: dict[int, Rig] = {settings: Rig(settings) for settings in range(16)}


def _requests(driver: PciDriver, *, indirect: bool) -> None:
    for kind, readable, writable in (
        (0, [], [512, 1024]),
        (1, [bytes(512)], []),
        (4, [], []),
        (8, [], [20]),
        (11, [struct.pack("<QII", 8, 8, 0)], []),
        (13, [struct.pack("<QII", 16, 8, 1)], []),
        (0, [], [512] * 12),
    ):
        driver.add([struct.pack("<IIQ", kind, 0, 1), *readable], [*writable, 1], indirect=indirect)
        driver.kick(always=True)
        driver.queues[0].used()
        driver.isr()


def seeds() -> dict[str, bytes]:
    found = {}
    for settings in (0, PACKED, LEGACY, QUEUES, READONLY | PACKED):
        for indirect in (False, True):
            requests = record(Rig(settings), partial(_requests, indirect=indirect))
            found[f"{settings}{' indirect' if indirect else ''}"] = bytes([settings]) + requests
    return found


_SEEDS: list[bytes] = []


def mutate(data: bytes, rng: random.Random) -> bytes:
    if not _SEEDS:
        _SEEDS.extend(seeds().values())
    return accesses.change_with_settings(data, _SEEDS, rng)


def run(data: bytes) -> None:
    play(_rigs[(data[0] if data else 0) % 16], data[1:])
