"""The 82077AA: phases, results and interrupts, with a driver that does as the data sheet says."""

from __future__ import annotations

import random

import pytest

from tests.unit.vm.devices.test_dma import FROM_MEMORY, Board
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.errors import CorruptImageError
from vdisk.stores.memory import MemoryStore
from vdisk.vm.devices.fdc import Fdc
from vdisk.vm.irq import IrqLine

SIZE = 1440 << 10
CONTENT = random.Random(82077).randbytes(SIZE)
BUFFER = 0x1_0000
DOR, MSR, FIFO, DIR = 0x3F2, 0x3F4, 0x3F5, 0x3F7
RQM, DIO, NON_DMA, BUSY = 0x80, 0x40, 0x20, 0x10


def offset(cylinder: int, head: int, sector: int) -> int:
    return ((cylinder * 2 + head) * 18 + sector - 1) * 512


class Driver(Board):
    """``disk`` None: the drive is empty."""

    def __init__(self, content: bytes | None = CONTENT, *, readonly: bool = False) -> None:
        super().__init__()
        store = None if content is None else MemoryStore(content)
        self.disk = EmuBlockDevice(store, removable=True, readonly=readonly, threads=0)
        self.irq = IrqLine()
        self.fdc = Fdc(self.bus, self.dma, self.irq, [self.disk])

    def start(self) -> None:
        """Out of reset, the first drive's motor on."""
        self.out(DOR, 0x1C)
        for unit in range(4):
            assert self.sense() == [0xC0 | unit, 0]
        self.command(0x03, 0xDF, 0x02)

    def command(self, *words: int) -> None:
        for word in words:
            assert self.status() & (RQM | DIO) == RQM
            self.out(FIFO, word)

    def status(self) -> int:
        return self.bus.ports.read(MSR, 1)

    def results(self) -> list[int]:
        found = []
        while self.status() & (RQM | DIO | BUSY) == RQM | DIO | BUSY:
            found.append(self.bus.ports.read(FIFO, 1))
        return found

    def sense(self) -> list[int]:
        self.command(0x08)
        return self.results()

    def seek(self, cylinder: int, unit: int = 0) -> None:
        self.command(0x0F, unit, cylinder)
        assert self.irq.level
        assert self.sense() == [0x20 | unit, cylinder] and not self.irq.level

    def move(self, command: int, *ids: int, last: int = 18, unit: int = 0) -> list[int]:
        self.command(command, unit | ids[1] << 2, *ids, 2, last, 0x1B, 0xFF)
        assert self.irq.level
        found = self.results()
        assert not self.irq.level
        return found


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.start()
    return made


def test_a_reset_is_told_drive_by_drive() -> None:
    driver = Driver()
    assert driver.status() == 0  # in reset
    driver.out(DOR, 0x0C)
    assert driver.irq.level
    assert [driver.sense() for _ in range(5)] == [
        [0xC0, 0],
        [0xC1, 0],
        [0xC2, 0],
        [0xC3, 0],
        [0x80],
    ]
    driver.out(MSR, 0x80)  # the DSR's reset ends by itself
    assert driver.irq.level and driver.sense() == [0xC0, 0]
    driver.out(DOR, 0x04)
    driver.out(DOR, 0x00)
    driver.out(DOR, 0x04)
    assert not driver.irq.level  # the gate is closed


def test_a_head_that_moved_is_told_in_place_of_the_reset() -> None:
    driver = Driver()
    driver.out(DOR, 0x1C)
    driver.command(0x07, 0)  # as systems do that look for drives
    assert driver.sense() == [0x20, 0]
    driver.command(0x0F, 0, 5)
    driver.command(0x0F, 0, 7)
    assert [driver.sense() for _ in range(4)] == [[0xC1, 0], [0xC2, 0], [0xC3, 0], [0x20, 7]]
    assert driver.sense() == [0x80]


@pytest.mark.parametrize("sectors", [1, 5, 18])
def test_reading_by_dma(driver: Driver, sectors: int) -> None:
    driver.seek(7)
    driver.program(BUFFER, 512 * sectors)
    found = driver.move(0xE6, 7, 0, 1)
    head, sector = (1, 1) if sectors == 18 else (0, 1 + sectors)
    assert found == [head << 2, 0, 0, 7, head, sector, 2]
    begin = offset(7, 0, 1)
    assert driver.memory.read(BUFFER, 512 * sectors) == CONTENT[begin : begin + 512 * sectors]


def test_a_whole_cylinder_in_one_command(driver: Driver) -> None:
    driver.seek(3)
    driver.program(BUFFER, 512 * 36)
    assert driver.move(0xE6, 3, 0, 1) == [0, 0, 0, 4, 0, 1, 2]
    assert driver.memory.read(BUFFER, 512 * 36) == CONTENT[offset(3, 0, 1) :][: 512 * 36]


def test_the_end_of_a_cylinder_comes_before_terminal_count(driver: Driver) -> None:
    driver.program(BUFFER, 512 * 10)
    assert driver.move(0x46, 0, 0, 17) == [0x40, 0x80, 0, 1, 0, 1, 2]
    assert driver.memory.read(BUFFER, 1024) == CONTENT[16 * 512 : 18 * 512]


def test_writing_by_dma(driver: Driver) -> None:
    driver.seek(79)
    data = random.Random(1).randbytes(1300)
    driver.memory.write(BUFFER, data)
    driver.program(BUFFER, 1300, FROM_MEMORY)
    assert driver.move(0xC5, 79, 1, 2) == [0x04, 0, 0, 79, 1, 5, 2]
    assert driver.disk.device is not None
    written = driver.disk.device.read(offset(79, 1, 2), 1536)
    assert written == data.ljust(1536, b"\0")


def test_through_the_fifo(driver: Driver) -> None:
    driver.command(0x03, 0xDF, 0x03)
    driver.command(0x46, 0, 0, 0, 1, 2, 2, 0x1B, 0xFF)
    data = bytearray()
    while driver.status() & NON_DMA:
        assert driver.status() == RQM | DIO | NON_DMA | BUSY
        data.append(driver.bus.ports.read(FIFO, 1))
    assert data == CONTENT[:1024] and driver.irq.level
    assert driver.results() == [0x40, 0x80, 0, 1, 0, 1, 2]
    driver.command(0x45, 0, 0, 0, 1, 2, 1, 0x1B, 0xFF)
    for value in CONTENT[512:1024]:
        assert driver.status() == RQM | NON_DMA | BUSY
        driver.out(FIFO, value)
    assert driver.results() == [0x40, 0x80, 0, 1, 0, 1, 2]
    assert driver.disk.device is not None
    assert driver.disk.device.read(0, 512) == CONTENT[512:1024]


def test_formatting_a_track(driver: Driver) -> None:
    driver.seek(5)
    ids = b"".join(bytes([5, 1, number, 2]) for number in range(1, 19))
    driver.memory.write(BUFFER, ids)
    driver.program(BUFFER, len(ids), FROM_MEMORY)
    driver.command(0x4D, 0x04, 2, 18, 0x54, 0xF6)
    assert driver.results()[:3] == [0x04, 0, 0]
    assert driver.disk.device is not None
    assert driver.disk.device.read(offset(5, 1, 1), 18 * 512) == b"\xf6" * 18 * 512


def test_an_id_to_be_formatted_may_name_any_head(driver: Driver) -> None:
    driver.memory.write(BUFFER, bytes([0, 18, 1, 2]))
    driver.program(BUFFER, 4, FROM_MEMORY)
    driver.command(0x4D, 0, 2, 1, 0x54, 0xF6)
    Driver().fdc.load_state(driver.fdc.save_state())
    assert driver.results() == [0x40, 0x04, 0, 0, 18, 1, 2]


def test_sectors_that_are_not_there(driver: Driver) -> None:
    driver.program(BUFFER, 512)
    assert driver.move(0x46, 0, 0, 19)[:3] == [0x40, 0x04, 0]
    assert driver.move(0x46, 1, 0, 1)[:3] == [0x40, 0x04, 0x10]  # the head is elsewhere
    driver.command(0x13, 0, 0x40, 0)  # implied seeks
    assert driver.move(0x46, 1, 0, 1)[:3] == [0, 0, 0]


def test_verify_moves_nothing(driver: Driver) -> None:
    driver.program(BUFFER, 512)
    assert driver.move(0x56, 0, 0, 1)[:3] == [0, 0, 0]
    assert driver.memory.read(BUFFER, 512) == bytes(512)


def test_a_protected_diskette() -> None:
    driver = Driver(readonly=True)
    driver.start()
    driver.program(BUFFER, 512, FROM_MEMORY)
    assert driver.move(0x45, 0, 0, 1)[:3] == [0x40, 0x02, 0]
    driver.command(0x04, 0)
    assert driver.results() == [0x78]  # protected, ready, track 0, two sides


def test_a_diskette_is_changed() -> None:
    driver = Driver(None)
    driver.start()
    assert driver.bus.ports.read(DIR, 1) == 0x80
    driver.seek(1)
    assert driver.bus.ports.read(DIR, 1) == 0x80  # still nothing there
    assert driver.move(0x46, 1, 0, 1)[:2] == [0x40, 0x01]
    driver.disk.insert(MemoryStore(CONTENT[: 720 << 10]))
    assert driver.bus.ports.read(DIR, 1) == 0x80
    driver.seek(0)
    assert driver.bus.ports.read(DIR, 1) == 0
    driver.program(BUFFER, 512)
    assert driver.move(0x46, 0, 1, 9, last=9)[:3] == [0x04, 0, 0]
    assert driver.memory.read(BUFFER, 512) == CONTENT[17 * 512 : 18 * 512]  # nine to a track


def test_drives_that_are_not_there(driver: Driver) -> None:
    driver.command(0x07, 1)
    assert driver.status() & 0x0F == 2
    assert driver.sense() == [0x71, 0] and driver.status() & 0x0F == 0
    driver.command(0x4A, 1)
    assert driver.results()[:2] == [0x41, 0x01]


def test_what_the_chip_is(driver: Driver) -> None:
    driver.command(0x10)
    assert driver.results() == [0x90]
    driver.command(0x94)
    assert driver.results() == [0x10]
    driver.command(0x13, 0, 0x1F, 9)
    driver.out(MSR, 0x80)
    for _ in range(4):
        driver.sense()
    driver.command(0x0E)
    assert driver.results() == [0, 0, 0, 0, 0xDF, 2, 0, 0x80, 0x1F, 9]
    driver.command(0x0F, 0, 12)
    driver.sense()
    driver.command(0x8F, 0, 2)  # relative, outwards
    assert driver.sense() == [0x20, 10]
    driver.command(0x4A, 0)
    assert driver.results() == [0, 0, 0, 10, 0, 1, 2]
    driver.command(0x1F)
    assert driver.results() == [0x80]


def test_a_transfer_waits_for_its_channel_and_is_saved_meanwhile(driver: Driver) -> None:
    driver.program(BUFFER, 1024)
    driver.out(0x0A, 6)
    driver.command(0xE6, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    assert driver.status() == BUSY and not driver.irq.level
    other = Driver()
    other.dma.load_state(driver.dma.save_state())
    other.fdc.load_state(driver.fdc.save_state())
    for each in (driver, other):
        each.out(0x0A, 2)
        assert each.irq.level and each.results() == [0, 0, 0, 0, 0, 3, 2]
        assert each.memory.read(BUFFER, 1024) == CONTENT[:1024]


def test_a_reset_ends_a_transfer(driver: Driver) -> None:
    driver.program(BUFFER, 512)
    driver.out(0x0A, 6)
    driver.command(0xE6, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    driver.out(DOR, 0x18)
    driver.out(DOR, 0x1C)
    driver.out(0x0A, 2)
    assert driver.sense() == [0xC0, 0]
    assert driver.memory.read(BUFFER, 512) == bytes(512)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": 2}, {"phase": 1}, {"phase": 9}, {"dor": 256}, {"unit": 4}, {"head": 256},
        {"told": [1]}, {"buffer": bytes(513)}, {"place": 600}, {"drives": []}, {"kind": 7},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_states_that_cannot_be(driver: Driver, change: dict[str, object]) -> None:
    with pytest.raises(CorruptImageError):
        Driver().fdc.load_state(driver.fdc.save_state() | change)
