"""QEMU's machine as the drivers of tests see one: ports, memory, configuration space.

What :mod:`tests.tools.ide_driver` and :mod:`tests.tools.virtio_pci_driver` do to our devices they
then do to QEMU's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.tools.ide_driver import DMA_BASE, IdeDriver
from tests.tools.virtio_driver import Allocator
from tests.tools.virtio_pci_driver import SLOT, Board, PciDriver
from vdisk.vm.devices.ide_dma import INTERRUPT

if TYPE_CHECKING:
    from tests.tools.qtest import Qtest


class Space:
    """An address space of :class:`~vdisk.vm.bus.Bus`, by qtest."""

    def __init__(self, qemu: Qtest, *, ports: bool) -> None:
        self._qemu = qemu
        self._ports = ports

    def read(self, address: int, size: int) -> int:
        if self._ports:
            self._qemu.read_port(address, size)
        else:
            self._qemu.read(address, size)
        return self._qemu.answers()[0]

    def write(self, address: int, size: int, value: int) -> None:
        if self._ports:
            self._qemu.out(address, value, size)
        else:
            self._qemu.write(address, value, size)
        self._qemu.answers()


class Memory:
    """What drivers use of :class:`~vdisk.vm.memory.GuestMemory`."""

    def __init__(self, qemu: Qtest) -> None:
        self._qemu = qemu

    def read(self, gpa: int, length: int) -> bytes:
        self._qemu.read_block(gpa, length)
        return self._qemu.answers()[0].to_bytes(length, "big")

    def write(self, gpa: int, data: bytes) -> None:
        if data:
            self._qemu.write_block(gpa, data)
            self._qemu.answers()


class Pin:
    """A channel's interrupt, as far as its bus master remembers it: there until it was seen."""

    def __init__(self, ports: Space, dma: int) -> None:
        self._ports = ports
        self._status = dma + 2

    @property
    def level(self) -> bool:
        seen = bool(self._ports.read(self._status, 1) & INTERRUPT)
        if seen:
            self._ports.write(self._status, 1, INTERRUPT)
        return seen


class QemuBus:
    """The bus of a stopped machine; its lock is nobody's."""

    def __init__(self, qemu: Qtest) -> None:
        self.ports, self.mmio = Space(qemu, ports=True), Space(qemu, ports=False)


class QemuIde:
    """A board with QEMU's PIIX3 IDE, whose drives were given as options."""

    def __init__(self, qemu: Qtest) -> None:
        self.bus: Any = QemuBus(qemu)
        self.memory: Any = Memory(qemu)
        self.irqs: Any = [Pin(self.bus.ports, DMA_BASE), Pin(self.bus.ports, DMA_BASE + 8)]
        for register, value in ((0x20, DMA_BASE), (0x04, 5)):
            self.bus.ports.write(0xCF8, 4, 1 << 31 | 1 << 11 | 1 << 8 | register)
            self.bus.ports.write(0xCFC, 4, value)

    def driver(self, channel: int, drive: int) -> IdeDriver:
        return IdeDriver(self, channel, drive)  # type: ignore[arg-type]


class _Slots:
    """What a driver looks at of its device."""

    def __init__(self, queues: int) -> None:
        self.slots = range(queues)


class QemuVirtio(PciDriver):
    """A driver of QEMU's virtio device in slot 3."""

    def __init__(self, qemu: Qtest, *, queues: int, legacy: bool) -> None:
        board = Board.__new__(Board)
        board.bus = QemuBus(qemu)  # type: ignore[assignment]
        board.memory = Memory(qemu)  # type: ignore[assignment]
        board.allocator = Allocator(1 << 20)
        self.board = board
        self.memory = board.memory
        self.legacy, self.messages = legacy, False
        self.device = _Slots(queues)  # type: ignore[assignment]
        self.queues = []
        self.structures = {}
        self.multiplier = 0
        self.map_bars()
        self.find_structures()


QEMU_SLOT = f"addr={SLOT}"
