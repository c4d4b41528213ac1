"""Any accesses and rings of a driver, on a virtio device: what the targets of each device share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fuzz import accesses
from fuzz.accesses import MEMORY, MMIO_READ, MMIO_WRITE, PORT_READ, PORT_WRITE, TIME, Recorder
from tests.tools.virtio_pci_driver import IO_BASE, MODERN_BASE, Board, PciDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.accesses import Access
    from vdisk.vm.devices.virtio import VirtioDevice

LOW = 1 << 20  # a driver's memory begins here
MEMORY_SIZE = LOW + (256 << 10)
_NOTHING = bytes(LOW)


class VirtioRig(ABC):
    """A board with one device, that inputs are tried on."""

    longest = 16
    """Descriptors of the recorded driver's indirect tables."""

    def __init__(self, *, legacy: bool) -> None:
        self.driver = PciDriver(
            self.make,
            legacy=legacy,
            messages=False,
            longest=self.longest,
            board=Board(MEMORY_SIZE),
        )
        self.memory = self.driver.memory

    @abstractmethod
    def make(self, board: Board) -> VirtioDevice:
        """The device."""

    def fresh(self) -> None:
        """As after power-on."""
        self.memory.view(0, MEMORY_SIZE)[:] = bytes(MEMORY_SIZE)
        self.driver.function.reset()
        self.driver.map_bars()

    def check(self) -> None:
        """At the end: the state can be saved and loaded, and a driver can begin anew."""
        function = self.driver.function
        state = function.save_state()
        function.load_state(state)
        assert function.save_state()["device"]["status"] == state["device"]["status"]
        self.driver.map_bars()
        self.driver.status = 0
        assert self.driver.status == 0


def record(rig: VirtioRig, work: Callable[[PciDriver], None]) -> bytes:
    """What a driver does, as an input."""
    rig.fresh()
    recorder = Recorder(rig.driver.board.bus, rig.memory, MODERN_BASE)
    rig.driver.wake()
    work(rig.driver)
    return accesses.encode(recorder.accesses)


def play(rig: VirtioRig, data: bytes) -> None:
    """Do all accesses of an input."""
    rig.fresh()
    watch = Watch(rig)
    for access in accesses.decode(data):
        if access.kind == MEMORY:
            if rig.memory.is_ram(access.value, len(access.data)):
                rig.memory.write(access.value, access.data)
                watch.given()
            continue
        _carry_out(rig, access)
        if access.kind not in (MMIO_READ, PORT_READ):
            watch.check()
    watch.check_all()
    rig.check()


def _carry_out(rig: VirtioRig, access: Access) -> None:
    board, value = rig.driver.board, access.value & (1 << 8 * access.size) - 1
    address = MODERN_BASE + (access.address & 0x3FFF)
    port, size = IO_BASE | access.address & 0x7F, min(access.size, 4)
    if access.kind == MMIO_WRITE:
        board.bus.mmio.write(address, access.size, value)
    elif access.kind == MMIO_READ:
        assert 0 <= board.bus.mmio.read(address, access.size) < 1 << 8 * access.size
    elif access.kind == PORT_WRITE:
        board.bus.ports.write(port, size, value & (1 << 8 * size) - 1)
    elif access.kind == PORT_READ:
        assert 0 <= board.bus.ports.read(port, size) < 1 << 8 * size
    elif access.kind == TIME:
        board.clock.advance(board.clock.now() + 1)


class Watch:
    """Holds memory to what the device may have written: rings, and parts of chains it was given.

    Where drivers keep their memory is looked at after each access, what lies below at the end.
    """

    def __init__(self, rig: VirtioRig) -> None:
        self._rig = rig
        self._dirtied: list[tuple[int, int]] = []
        self._ever: set[tuple[int, int]] = set()
        rig.memory._on_dirtied[:] = [self._dirtied.extend]
        self._before = self._driver_memory()

    def _driver_memory(self) -> bytes:  # views compare a hundred times slower
        return bytes(self._rig.memory.view(LOW, MEMORY_SIZE - LOW))

    def given(self) -> None:
        """The driver has written: memory is what it is now."""
        self._ever.update(self._dirtied)
        self._dirtied.clear()
        self._before = self._driver_memory()

    def check(self) -> None:
        """What has changed was announced, or is a flag of a ring."""
        self._dirtied += self._rings()
        now = self._driver_memory()
        if now != self._before:
            after = bytearray(now)
            for gpa, length in self._dirtied:
                start, end = max(gpa - LOW, 0), max(gpa + length - LOW, 0)
                after[start:end] = self._before[start:end]
            assert after == self._before
        self._ever.update(self._dirtied)
        self._dirtied.clear()
        self._before = now

    def check_all(self) -> None:
        """At the end: memory that no driver uses has changed where that was announced."""
        low = bytearray(self._rig.memory.view(0, LOW))
        for gpa, length in self._ever:
            end = min(gpa + length, LOW)
            low[gpa:end] = bytes(max(end - gpa, 0))
        assert low == _NOTHING

    def _rings(self) -> list[tuple[int, int]]:
        slots = self._rig.driver.device.slots
        return [(slot.device, 6 + 8 * slot.size) for slot in slots if slot.ring is not None]
