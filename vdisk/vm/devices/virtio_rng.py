"""Randomness for the guest (VIRTIO 1.2, section 5.4): one queue of buffers to be filled."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.vm.devices.virtio import VirtioDevice
from vdisk.vm.devices.virtqueue import BrokenQueueError, Chain

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.virtio import Slot
    from vdisk.vm.memory import GuestMemory

MAX_BYTES: Final = 4096
"""Of one buffer: a device may fill less than there is room for, and no guest needs more at once."""

QUEUE_SIZE: Final = 64


class VirtioRng(VirtioDevice):
    """``source(length)``: where the bytes come from; one of its own makes a run repeatable."""

    device_type: ClassVar[int] = 4
    class_code: ClassVar[int] = 0x00FF00

    def __init__(
        self,
        memory: GuestMemory,
        clock: Clock,
        *,
        source: Callable[[int], bytes] = os.urandom,
        name: str = "virtio-rng",
    ) -> None:
        super().__init__(name, memory, clock, queues=1, queue_size=QUEUE_SIZE, features=0)
        self._source = source

    def use(self, _slot: Slot, chain: Chain) -> int:
        if chain.readable or not chain.writable:
            raise BrokenQueueError("a buffer for random bytes has only room for them")
        written = 0
        for view in chain.writable:
            part = view[: MAX_BYTES - written]
            part[:] = self._source(len(part))
            written += len(part)
        chain.dirtied(self.memory)
        return written
