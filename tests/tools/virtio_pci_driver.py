"""A driver of virtio-pci: finds its function on the bus, wakes the device, moves buffers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from tests.tools.virtio_driver import (
    LONGEST,
    Allocator,
    DriverQueue,
    PackedDriver,
    SplitDriver,
)
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.devices.virtio import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VirtioDevice,
)
from vdisk.vm.devices.virtio_pci import (
    CAP_COMMON_CFG,
    CAP_DEVICE_CFG,
    CAP_ISR_CFG,
    CAP_NOTIFY_CFG,
    MODERN_BAR,
    VENDOR_CAPABILITY,
    VirtioPci,
)
from vdisk.vm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tools.virtio_driver import Part

MIB = 1 << 20
SLOT = 3
IO_BASE, MSIX_BASE, MODERN_BASE = 0xC000, 0xFE00_0000, 0xFE01_0000
MSI_ADDRESS = 0xFEE0_0000
BAD_FEATURE = 1 << 30
"""QEMU offers it to legacy drivers, to tell those that take whatever there is."""


class Board:
    """Memory, a bus with PCI, a clock, and the interrupts that were sent."""

    def __init__(self, size: int = 16 * MIB) -> None:
        self.bus = Bus()
        self.memory = GuestMemory(size)
        self.clock = VirtualClock()
        self.pci = PciBus(self.bus)
        self.messages: list[int] = []
        """Data of the interrupt messages."""
        self.pci.send_msi = lambda _address, data: self.messages.append(data)
        self.allocator = Allocator(1 * MIB)

    def read_config(self, register: int, size: int = 4) -> int:
        self.bus.ports.write(0xCF8, 4, 1 << 31 | SLOT << 11 | register & 0xFC)
        return self.bus.ports.read(0xCFC + (register & 3), size)

    def write_config(self, register: int, value: int, size: int = 4) -> None:
        self.bus.ports.write(0xCF8, 4, 1 << 31 | SLOT << 11 | register & 0xFC)
        self.bus.ports.write(0xCFC + (register & 3), size, value)

    @property
    def intx(self) -> bool:
        """The level of the pin that the function's INTA# leads to."""
        return self.pci.pirq[(SLOT - 1) % 4].level


class PciDriver:
    """Of one device on a board of its own.

    ``legacy``: through the I/O registers, as before virtio 1.0.  ``messages``: use MSI-X.
    ``longest``: descriptors of an indirect table.
    """

    longest = LONGEST

    def __init__(
        self,
        make: Callable[[Board], VirtioDevice],
        *,
        legacy: bool = False,
        messages: bool = True,
        longest: int = LONGEST,
        board: Board | None = None,
    ) -> None:
        self.board = board or Board()
        self.memory = self.board.memory
        self.legacy = legacy
        self.messages = messages
        self.longest = longest
        self.device = make(self.board)
        self.function = VirtioPci(self.board.bus, self.device)
        self.board.pci.add(self.function, SLOT)
        self.queues: list[DriverQueue] = []
        self.structures: dict[int, tuple[int, int]] = {}
        self.multiplier = 0
        self.map_bars()
        self.find_structures()

    # -- the function ------------------------------------------------------------------------

    def map_bars(self) -> None:
        board = self.board
        board.write_config(0x10, IO_BASE)
        board.write_config(0x14, MSIX_BASE)
        board.write_config(0x10 + 4 * MODERN_BAR, MODERN_BASE)
        board.write_config(0x04, 7, 2)

    def find_structures(self) -> None:
        place = self.board.read_config(0x34, 1)
        while place:
            kind = self.board.read_config(place, 1)
            if kind == VENDOR_CAPABILITY:
                number = self.board.read_config(place + 3, 1)
                bar = self.board.read_config(place + 4, 1)
                if bar == MODERN_BAR:
                    offset = self.board.read_config(place + 8)
                    self.structures[number] = (
                        MODERN_BASE + offset,
                        self.board.read_config(place + 12),
                    )
                if number == CAP_NOTIFY_CFG:
                    self.multiplier = self.board.read_config(place + 16)
            elif kind == 0x11 and self.messages:
                self.board.write_config(place + 2, 0x8000, 2)
                for vector in range(len(self.device.slots) + 1):
                    entry = struct.pack("<QII", MSI_ADDRESS, 0x40 + vector, 0)
                    for offset in range(0, 16, 4):
                        (value,) = struct.unpack_from("<I", entry, offset)
                        self.board.bus.mmio.write(MSIX_BASE + 16 * vector + offset, 4, value)
            place = self.board.read_config(place + 1, 1)

    def common(self, offset: int, size: int) -> int:
        return self.board.bus.mmio.read(self.structures[CAP_COMMON_CFG][0] + offset, size)

    def set_common(self, offset: int, size: int, value: int) -> None:
        self.board.bus.mmio.write(self.structures[CAP_COMMON_CFG][0] + offset, size, value)

    def port(self, offset: int, size: int) -> int:
        return self.board.bus.ports.read(IO_BASE + offset, size)

    def set_port(self, offset: int, size: int, value: int) -> None:
        self.board.bus.ports.write(IO_BASE + offset, size, value)

    # -- waking ------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return self.port(0x12, 1) if self.legacy else self.common(0x14, 1)

    @status.setter
    def status(self, value: int) -> None:
        if self.legacy:
            self.set_port(0x12, 1, value)
        else:
            self.set_common(0x14, 1, value)

    def offered(self) -> int:
        if self.legacy:
            return self.port(0, 4)
        found = 0
        for word in range(2):
            self.set_common(0, 4, word)
            found |= self.common(4, 4) << 32 * word
        return found

    def take(self, features: int) -> None:
        if self.legacy:
            self.set_port(4, 4, features)
            return
        for word in range(2):
            self.set_common(8, 4, word)
            self.set_common(0xC, 4, features >> 32 * word & 0xFFFF_FFFF)

    def wake(self, *, without: int = 0, size: int | None = None) -> int:
        """Go through all steps; the features that were taken."""
        self.status = 0
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        features = self.offered() & ~without & ~BAD_FEATURE
        self.take(features)
        if not self.legacy:
            assert features & VIRTIO_F_VERSION_1
            self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
            assert self.status & FEATURES_OK
        if self.messages:
            if self.legacy:
                self.set_port(0x14, 2, 0)
            else:
                self.set_common(0x10, 2, 0)
        self.queues = [
            self._queue(index, features, size) for index in range(len(self.device.slots))
        ]
        self.status = self.status | DRIVER_OK
        assert self.status & DRIVER_OK
        return features

    def _queue(self, index: int, features: int, size: int | None) -> DriverQueue:
        options: dict[str, Any] = {
            "longest": self.longest,
            "indirect": bool(features & VIRTIO_F_INDIRECT_DESC),
            "event_index": bool(features & VIRTIO_F_EVENT_IDX),
        }
        if self.legacy:
            return self._legacy_queue(index, options)
        self.set_common(0x16, 2, index)
        if size is not None:
            self.set_common(0x18, 2, size)
        kind = PackedDriver if features & VIRTIO_F_RING_PACKED else SplitDriver
        queue = kind(self.memory, self.board.allocator, self.common(0x18, 2), **options)
        layout = queue.layout()
        for offset, gpa in (
            (0x20, layout.descriptors),
            (0x28, layout.driver),
            (0x30, layout.device),
        ):
            self.set_common(offset, 4, gpa & 0xFFFF_FFFF)
            self.set_common(offset + 4, 4, gpa >> 32)
        if self.messages:
            self.set_common(0x1A, 2, index + 1)
            assert self.common(0x1A, 2) == index + 1
        self.set_common(0x1C, 2, 1)
        assert self.common(0x1C, 2) == 1
        return queue

    def _legacy_queue(self, index: int, options: dict[str, Any]) -> DriverQueue:
        self.set_port(0xE, 2, index)
        queue = SplitDriver(
            self.memory, self.board.allocator, self.port(0xC, 2), legacy=True, **options
        )
        if self.messages:
            self.set_port(0x16, 2, index + 1)
        self.set_port(8, 4, queue.table // 4096)
        assert self.port(8, 4) == queue.table // 4096
        return queue

    # -- working -----------------------------------------------------------------------------

    def config(self, offset: int, size: int) -> int:
        if self.legacy:
            return self.port((0x18 if self.messages else 0x14) + offset, size)
        return self.board.bus.mmio.read(self.structures[CAP_DEVICE_CFG][0] + offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        if self.legacy:
            self.set_port((0x18 if self.messages else 0x14) + offset, size, value)
        else:
            self.board.bus.mmio.write(self.structures[CAP_DEVICE_CFG][0] + offset, size, value)

    def kick(self, index: int = 0, *, always: bool = False) -> None:
        """Notify the device, if it asked for it."""
        if not self.queues[index].wants_kick() and not always:
            return
        if self.legacy:
            self.set_port(0x10, 2, index)
            return
        self.set_common(0x16, 2, index)
        offset = self.common(0x1E, 2) * self.multiplier
        self.board.bus.mmio.write(self.structures[CAP_NOTIFY_CFG][0] + offset, 2, index)

    def isr(self) -> int:
        if self.legacy:
            return self.port(0x13, 1)
        return self.board.bus.mmio.read(self.structures[CAP_ISR_CFG][0], 1)

    def add(
        self,
        readable: list[bytes],
        writable: list[int],
        *,
        queue: int = 0,
        indirect: bool = False,
    ) -> tuple[int, list[Part]]:
        """Make a buffer of these bytes and this room available; its key, and where the room is."""
        parts = []
        for data in readable:
            gpa = self.board.allocator.take(len(data) + 1)  # never a neighbour
            self.memory.write(gpa, data)
            parts.append((gpa, len(data)))
        room = [(self.board.allocator.take(length + 1), length) for length in writable]
        return self.queues[queue].add(parts, room, indirect=indirect), room
