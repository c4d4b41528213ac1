"""Any accesses of a driver to IDE leave a drive that obeys, and memory in bounds; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings, then accesses to the ports of a channel with a disk and a CD-ROM drive,
and to memory that holds PRD tables.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

from fuzz import accesses
from fuzz.accesses import MEMORY, PORT_READ, PORT_WRITE, TIME, Recorder
from tests.tools.ide_driver import DATA, DMA_BASE, IdeBoard, IdeDriver, IdeError
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.devices.ide_drive import IdeDrive

LONGEST = 64 << 10
SIZE = 256 << 10
PORTS = (*range(0x1F0, 0x1F8), 0x3F6, *range(DMA_BASE, DMA_BASE + 8))

_CONTENT = random.Random(3).randbytes(SIZE)


class Rig:
    """A board that inputs are tried on; made once, as its memory is larger than the limit."""

    def __init__(self) -> None:
        self.board = IdeBoard(4 << 20)
        self.disk = EmuBlockDevice(MemoryStore(), threads=0, lock=self.board.bus.lock)
        self.cd = EmuBlockDevice(None, removable=True, threads=0, lock=self.board.bus.lock)
        self.drivers = [self.board.plug(self.disk), self.board.plug(self.cd, 0, 1, cdrom=True)]
        self.board.enable()

    def fresh(self, settings: int) -> None:
        """As after power-on, with media of known content."""
        if self.cd.device is not None:
            self.cd.eject(force=True)
        self.disk._use(MemoryStore(_CONTENT, growable=False))
        self.disk.write_cache = True
        if settings & 1:
            self.cd.insert(MemoryStore(_CONTENT, growable=False))
        self.board.memory.view(0, self.board.memory.size)[: DATA + 0x10000] = bytes(DATA + 0x10000)
        self.board.ide.reset()
        for register, value in ((0x20, DMA_BASE), (0x04, 5)):
            self.board.bus.ports.write(0xCF8, 4, 1 << 31 | 1 << 11 | register)
            self.board.bus.ports.write(0xCFC, 4, value)

    @property
    def drives(self) -> list[IdeDrive]:
        return [drive for drive in self.board.ide.channels[0].drives if drive is not None]


_rig: list[Rig] = []


def rig() -> Rig:
    if not _rig:
        _rig.append(Rig())
    return _rig[0]


def _recorded(act: Callable[[IdeDriver, IdeDriver], None], settings: int) -> bytes:
    """What a driver does, as an input."""
    one = Rig()
    one.fresh(settings)
    recorder = Recorder(one.board.bus, one.board.memory)
    with contextlib.suppress(IdeError):
        act(*one.drivers)
    return bytes([settings]) + accesses.encode(recorder.accesses)


def _disk(disk: IdeDriver, _cd: IdeDriver) -> None:
    disk.identify()
    disk.pio_read(0xC4, 3, 20, block=16)
    disk.pio_write(0x30, 5, bytes(1024))
    disk.chs_read(0, 0, 1, 1)
    disk.command(0xC6, 0, 8)
    disk.command(0xEF, 3, 0x22)
    disk.command(0xB0, 0xDA, 0, 0, 0x4F, 0xC2)


def _dma(disk: IdeDriver, _cd: IdeDriver) -> None:
    disk.table([(DATA, 1024), (DATA + 4096, 512)])
    disk.dma_command(0xC8, 1, 3, reading=True)
    disk.dma_command(0x35, 9, 3, reading=False, start_first=True)
    disk.board.memory.write(DATA, bytes([4, 0, 0, 0, 0, 0, 8, 0]).ljust(512, b"\0"))
    disk.table([(DATA, 512)])
    disk.dma_command(0x06, 0, 1, reading=False, features=1)


def _cdrom(_disk: IdeDriver, cd: IdeDriver) -> None:
    cd.identify(0xA1)
    cd.packet(bytes([0x12, 0, 0, 0, 36]))
    cd.packet(bytes([3, 0, 0, 0, 18]))
    cd.packet(bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 20]))
    cd.packet(bytes([0x28, 0, 0, 0, 0, 1, 0, 0, 2]), limit=2048)
    cd.packet(bytes([0x28, 0, 0, 0, 0, 1, 0, 0, 2]), 4096, dma=True)
    cd.packet(bytes([0x1B, 0, 0, 0, 2]))


def seeds() -> dict[str, bytes]:
    return {
        "disk": _recorded(_disk, 1),
        "dma": _recorded(_dma, 1),
        "cdrom": _recorded(_cdrom, 1),
        "no medium": _recorded(_cdrom, 0),
    }


_SEEDS: list[bytes] = []


def mutate(data: bytes, rng: random.Random) -> bytes:
    if not _SEEDS:
        _SEEDS.extend(seeds().values())
    return accesses.change_with_settings(data, _SEEDS, rng)


rig()


def run(data: bytes) -> None:
    one = rig()
    one.fresh(data[0] if data else 0)
    ports, memory = one.board.bus.ports, one.board.memory
    for access in accesses.decode(data[1:]):
        port = access.address if access.address in PORTS else PORTS[access.address % len(PORTS)]
        size = min(access.size, 4)
        if access.kind == PORT_READ:
            assert 0 <= ports.read(port, size) < 1 << 8 * size
        elif access.kind == PORT_WRITE:
            ports.write(port, size, access.value & (1 << 8 * size) - 1)
        elif access.kind == MEMORY and memory.is_ram(access.value, len(access.data)):
            memory.write(access.value, access.data)
        elif access.kind == TIME:
            one.board.clock.advance(one.board.clock.now() + 1)
    _check(one)


def _check(one: Rig) -> None:
    """The state is one that can be saved and loaded, and a reset brings the drives back."""
    assert one.disk.size == SIZE
    for drive in one.drives:
        assert len(drive.buffer) == 128 << 10
    state = one.board.ide.save_state()
    one.board.ide.load_state(state)
    assert one.board.ide.save_state() == state
    ports, disk = one.board.bus.ports, one.drivers[0]
    ports.write(disk.control, 1, 4)
    ports.write(disk.control, 1, 0)
    assert disk.identify()[0] == 0x40
    assert not one.disk.in_flight and not one.cd.in_flight
