"""Any accesses and rings of a driver: virtio-blk writes only what it was given; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings (packed ring, legacy registers, several queues, read-only), then accesses
to the registers of the PCI function and to the memory that holds rings and buffers.
"""

from __future__ import annotations

import random
import struct

from fuzz import accesses
from fuzz.accesses import MEMORY, MMIO_READ, MMIO_WRITE, PORT_READ, PORT_WRITE, TIME, Recorder
from tests.tools.virtio_pci_driver import IO_BASE, MODERN_BASE, Board, PciDriver
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.stores.memory import MemoryStore
from vdisk.vm.devices.virtio_blk import VirtioBlk
from vdisk.vm.devices.virtqueue import Chain

LONGEST = 64 << 10
SIZE = 256 << 10
LOW = 1 << 20  # a driver's memory begins here
MEMORY_SIZE = LOW + (256 << 10)

_NOTHING = bytes(LOW)
_CONTENT = random.Random(4).randbytes(SIZE)
PACKED, LEGACY, QUEUES, READONLY = 1, 2, 4, 8


class Rig:
    """A board that inputs are tried on, for each kind of device."""

    def __init__(self, settings: int) -> None:
        def make(board: Board) -> VirtioBlk:
            self.disk = EmuBlockDevice(
                MemoryStore(_CONTENT, growable=False),
                threads=0,
                lock=board.bus.lock,
                readonly=bool(settings & READONLY),
            )
            return VirtioBlk(
                self.disk,
                board.memory,
                board.clock,
                queues=2 if settings & QUEUES else 1,
                packed=bool(settings & PACKED),
                queue_size=16,
            )

        self.driver = PciDriver(
            make, legacy=bool(settings & LEGACY), messages=False, board=Board(MEMORY_SIZE)
        )
        self.memory = self.driver.memory

    def fresh(self) -> None:
        """As after power-on."""
        self.disk._use(MemoryStore(_CONTENT, growable=False))
        self.memory.view(0, MEMORY_SIZE)[:] = bytes(MEMORY_SIZE)
        self.driver.function.reset()
        self.driver.map_bars()


_rigs: dict[int, Rig] = {settings: Rig(settings) for settings in range(16)}


def _recorded(settings: int, *, indirect: bool) -> bytes:
    """What a driver does, as an input."""
    rig = Rig(settings)
    rig.fresh()
    recorder = Recorder(rig.driver.board.bus, rig.memory, MODERN_BASE)
    driver = rig.driver
    driver.wake()
    for kind, readable, writable in (
        (0, [], [512, 1024]),
        (1, [bytes(512)], []),
        (4, [], []),
        (8, [], [20]),
        (11, [struct.pack("<QII", 8, 8, 0)], []),
        (13, [struct.pack("<QII", 16, 8, 1)], []),
    ):
        driver.add([struct.pack("<IIQ", kind, 0, 1), *readable], [*writable, 1], indirect=indirect)
        driver.kick(always=True)
        driver.queues[0].used()
        driver.isr()
    return bytes([settings]) + accesses.encode(recorder.accesses)


def seeds() -> dict[str, bytes]:
    return {
        f"{settings}{' indirect' if indirect else ''}": _recorded(settings, indirect=indirect)
        for settings in (0, PACKED, LEGACY, QUEUES, READONLY | PACKED)
        for indirect in (False, True)
    }


_SEEDS: list[bytes] = []


def mutate(data: bytes, rng: random.Random) -> bytes:
    if not _SEEDS:
        _SEEDS.extend(seed[1:] for seed in seeds().values())
    settings = rng.randrange(256) if rng.random() < 0.05 else data[0] if data else 0
    return bytes([settings]) + accesses.change(data[1:], _SEEDS, rng)


def run(data: bytes) -> None:
    rig = _rigs[(data[0] if data else 0) % 16]
    rig.fresh()
    watch = _Watch(rig)
    bus = rig.driver.board.bus
    for access in accesses.decode(data[1:]):
        value = access.value & (1 << 8 * access.size) - 1
        if access.kind == MEMORY:
            if rig.memory.is_ram(access.value, len(access.data)):
                rig.memory.write(access.value, access.data)
                watch.given()
        elif access.kind in (MMIO_READ, MMIO_WRITE):
            address = MODERN_BASE + (access.address & 0x3FFF)
            if access.kind == MMIO_WRITE:
                bus.mmio.write(address, access.size, value)
            else:
                assert 0 <= bus.mmio.read(address, access.size) < 1 << 8 * access.size
        elif access.kind in (PORT_READ, PORT_WRITE):
            port, size = IO_BASE | access.address & 0x7F, min(access.size, 4)
            if access.kind == PORT_WRITE:
                bus.ports.write(port, size, value & (1 << 8 * size) - 1)
            else:
                assert 0 <= bus.ports.read(port, size) < 1 << 8 * size
        elif access.kind == TIME:
            rig.driver.board.clock.advance(rig.driver.board.clock.now() + 1)
        if access.kind not in (MEMORY, MMIO_READ, PORT_READ):
            watch.check()
    watch.check_all()
    _check_state(rig)


class _Watch:
    """Holds memory to what the device may have written: rings, and parts of chains it was given.

    Where drivers keep their memory is looked at after each access, what lies below at the end.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._dirtied: list[tuple[int, int]] = []
        self._ever: set[tuple[int, int]] = set()
        rig.memory._on_dirtied[:] = [lambda gpa, length: self._dirtied.append((gpa, length))]
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


def _check_state(rig: Rig) -> None:
    """Nothing is in work, the state can be saved and loaded, and a driver can begin anew."""
    assert not rig.disk.in_flight
    for slot in rig.driver.device.slots:
        assert not slot.held
        assert all(isinstance(chain, Chain) for chain in slot.held.values())
    function = rig.driver.function
    state = function.save_state()
    function.load_state(state)
    assert function.save_state()["device"]["status"] == state["device"]["status"]
    assert rig.disk.size == SIZE
    rig.driver.map_bars()
    rig.driver.status = 0
    assert rig.driver.status == 0
