"""Any accesses and rings of a driver: virtio-net writes only what it was given; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings (legacy registers, larger answers), then accesses to the registers of the
PCI function and to the memory that holds rings and buffers.  What the guest sends comes back.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from fuzz import accesses
from fuzz.virtio import VirtioRig, play, record
from vdisk.vm.devices.virtio_net import MAX_PENDING, VirtioNet

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.tools.virtio_pci_driver import Board, PciDriver

LONGEST = 64 << 10
LEGACY, LARGE = 1, 2
RECEIVE, TRANSMIT = 0, 1


class Echo:
    """A network that sends every frame back, ``times`` as long."""

    offloads = True

    def __init__(self, times: int) -> None:
        self._times = times

    def attach(self, adapter: VirtioNet) -> None:
        self.adapter = adapter

    def start(self) -> None:
        """It needs nothing."""

    def transmit(self, _header: bytes | memoryview, parts: Sequence[memoryview]) -> bool:
        frame = b"".join(parts)
        large = len(frame) > 1514
        if self.adapter.room:
            self.adapter.deliver(frame * self._times, partial=large, segment=1460 * large)
        return True

    def room_again(self) -> None:
        """It keeps nothing."""

    def reset(self) -> None:
        """It keeps nothing."""


class Rig(VirtioRig):
    """For each setting."""

    longest = 2  # the rings are large

    def __init__(self, settings: int) -> None:
        self._echo = Echo(3 if settings & LARGE else 1)
        super().__init__(legacy=bool(settings & LEGACY))

    def make(self, board: Board) -> VirtioNet:
        return VirtioNet(self._echo, board.memory, board.clock)

    def check(self) -> None:
        """No more waits than may."""
        assert self._echo.adapter._pending_bytes <= MAX_PENDING
        super().check()
        assert not self._echo.adapter._pending_bytes


_rigs: dict[int, Rig] = {settings: Rig(settings) for settings in range(4)}


def _frames(driver: PciDriver) -> None:
    header = bytes(10 if driver.legacy else 12)
    for length, rooms in ((60, [1600]), (1514, [900, 900]), (4000, [1600] * 8), (300, [40])):
        for room in rooms:
            driver.add([], [len(header), room], queue=RECEIVE)
        driver.kick(RECEIVE)
        driver.add([header, struct.pack("<I", length) * (length // 4)], [], queue=TRANSMIT)
        driver.kick(TRANSMIT, always=True)
        for queue in driver.queues:
            queue.used()
        driver.isr()


def seeds() -> dict[str, bytes]:
    return {
        str(settings): bytes([settings]) + record(Rig(settings), _frames) for settings in range(4)
    }


_SEEDS: list[bytes] = []


def mutate(data: bytes, rng: random.Random) -> bytes:
    if not _SEEDS:
        _SEEDS.extend(seeds().values())
    return accesses.change_with_settings(data, _SEEDS, rng)


def run(data: bytes) -> None:
    play(_rigs[(data[0] if data else 0) % 4], data[1:])
