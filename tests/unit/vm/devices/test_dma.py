"""The 8237A pair: addresses, counts, masks, modes, and where the bytes go."""

from __future__ import annotations

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.devices.dma import Dma
from vdisk.vm.memory import GuestMemory

MIB = 1 << 20
TO_MEMORY, FROM_MEMORY, VERIFY = 0x44, 0x48, 0x40


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.memory = GuestMemory(4 * MIB)
        self.dma = Dma(self.bus, self.memory)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.ports.write(port, 1, value)

    def word(self, port: int) -> int:
        return self.bus.ports.read(port, 1) | self.bus.ports.read(port, 1) << 8

    def program(self, place: int, length: int, mode: int = TO_MEMORY, channel: int = 2) -> None:
        """As a driver does: channel 2 or 3, or a word channel."""
        words = channel >= 4
        base, step = (0xC0, 2) if words else (0x00, 1)
        number, count = channel & 3, (length // 2 if words else length) - 1
        self.out(base + 0x0A * step, 4 | number)
        self.out(base + 0x0C * step, 0)
        self.out(base + 0x0B * step, mode | number)
        address = place >> 1 if words else place
        self.out(base + 2 * number * step, address & 0xFF, address >> 8 & 0xFF)
        self.out(base + (2 * number + 1) * step, count & 0xFF, count >> 8)
        self.out({2: 0x81, 3: 0x82, 5: 0x8B}[channel], place >> 16)
        self.out(base + 0x0A * step, number)


@pytest.fixture
def board() -> Board:
    return Board()


def test_data_of_a_device_arrive_until_terminal_count(board: Board) -> None:
    board.program(0x12_3400, 600)
    assert not board.dma.to_memory(2, b"a" * 512)
    assert board.dma.to_memory(2, b"b" * 512)
    assert board.memory.read(0x12_3400, 601) == b"a" * 512 + b"b" * 88 + b"\0"
    assert board.bus.ports.read(0x08, 1) == 0x04
    assert board.bus.ports.read(0x08, 1) == 0  # told once
    assert board.bus.ports.read(0x0F, 1) & 0x0F == 0x0F  # masked until it is programmed again


def test_data_for_a_device(board: Board) -> None:
    board.memory.write(0x5000, bytes(range(100)))
    board.program(0x5000, 100, FROM_MEMORY)
    assert board.dma.from_memory(2, 64) == (bytes(range(64)), False)
    assert board.dma.from_memory(2, 64) == (bytes(range(64, 100)), True)


def test_words(board: Board) -> None:
    board.program(0x2_1000, 64, channel=5)
    assert board.dma.to_memory(5, bytes(range(64)))
    assert board.memory.read(0x2_1000, 64) == bytes(range(64))


def test_an_address_wraps_within_its_page(board: Board) -> None:
    board.program(0x3_FFF0, 32)
    assert board.dma.to_memory(2, b"x" * 16 + b"y" * 16)
    assert board.memory.read(0x3_FFF0, 16) == b"x" * 16
    assert board.memory.read(0x3_0000, 16) == b"y" * 16


def test_downwards_and_for_nothing(board: Board) -> None:
    board.program(0x6010, 4, TO_MEMORY | 0x20)
    assert board.dma.to_memory(2, b"1234")
    assert board.memory.read(0x600D, 4) == b"4321"
    board.program(0x7000, 4, VERIFY)
    assert board.dma.to_memory(2, b"1234")
    assert board.memory.read(0x7000, 4) == bytes(4)


def test_autoinitialize_begins_again(board: Board) -> None:
    board.program(0x8000, 8, TO_MEMORY | 0x10)
    for _ in range(2):
        assert board.dma.to_memory(2, b"12345678")
    assert board.bus.ports.read(0x0F, 1) & 4 == 0


def test_a_masked_channel_lets_a_device_wait(board: Board) -> None:
    served: list[int] = []
    board.program(0x9000, 8)
    board.out(0x0A, 6)
    board.dma.request(2, lambda: served.append(1))
    assert not served
    board.out(0x08, 4)  # the whole controller is off
    board.out(0x0A, 2)
    assert not served
    board.out(0x08, 0)
    assert served == [1]
    board.dma.request(2, lambda: served.append(2))
    board.dma.request(3, lambda: served.append(3))
    board.dma.withdraw(3)
    board.out(0x0E, 0)
    assert served == [1, 2]


def test_registers_are_read_back_half_by_half(board: Board) -> None:
    board.program(0xA123, 0x4567)
    board.out(0x0C, 0)
    assert board.word(0x04) == 0xA123 and board.word(0x05) == 0x4566
    board.out(0x0D, 0)
    assert board.bus.ports.read(0x0F, 1) == 0xFF
    board.out(0x84, 0x5A)
    assert board.bus.ports.read(0x84, 1) == 0x5A


def test_memory_that_is_not_there(board: Board) -> None:
    board.program(0xB0_0000, 8)
    assert board.dma.to_memory(2, bytes(8))
    board.program(0xB0_0000, 8, FROM_MEMORY)
    assert board.dma.from_memory(2, 8) == (b"\xff" * 8, True)


def test_a_saved_state(board: Board) -> None:
    board.program(0x1_2000, 16)
    other = Board()
    other.dma.load_state(board.dma.save_state())
    assert other.dma.to_memory(2, b"z" * 16)
    assert other.memory.read(0x1_2000, 16) == b"z" * 16
    state = board.dma.save_state()
    state["controllers"]["first"]["counts"][0] = 1 << 16
    with pytest.raises(CorruptImageError):
        other.dma.load_state(state)
