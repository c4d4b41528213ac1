"""The I/O APIC: registers, edges, levels with remote IRR and EOI."""

from __future__ import annotations

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.devices.ioapic import BASE, IoApic


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.sent: list[tuple[int, int]] = []
        self.ioapic = IoApic(self.bus, lambda address, data: self.sent.append((address, data)))

    def write(self, index: int, value: int) -> None:
        self.bus.mmio.write(BASE, 4, index)
        self.bus.mmio.write(BASE + 0x10, 4, value)

    def read(self, index: int) -> int:
        self.bus.mmio.write(BASE, 4, index)
        return self.bus.mmio.read(BASE + 0x10, 4)

    def entry(self, pin: int, low: int, destination: int = 0) -> None:
        self.write(0x11 + 2 * pin, destination << 24)
        self.write(0x10 + 2 * pin, low)


@pytest.fixture
def board() -> Board:
    return Board()


def test_registers_after_reset(board: Board) -> None:
    assert board.read(0) == 0
    assert board.read(1) == 0x0017_0020
    assert board.read(0x10) == 0x1_0000
    assert board.read(0x3E) == 0x1_0000
    assert board.read(0x40) == 0


def test_only_writable_bits_change(board: Board) -> None:
    board.write(0, 0xFFFF_FFFF)
    board.write(1, 0xFFFF_FFFF)
    board.entry(5, 0xFFFF_FFFF, 0xFF)
    assert board.read(0) == 0x0F00_0000
    assert board.read(2) == 0x0F00_0000
    assert board.read(1) == 0x0017_0020
    assert board.read(0x1A) == 0x0001_AFFF
    assert board.read(0x1B) == 0xFF00_0000


def test_an_edge_sends_one_message(board: Board) -> None:
    board.entry(4, 0x0934, 3)  # logical destination, lowest priority
    board.ioapic.set_irq(4, True)
    board.ioapic.set_irq(4, True)
    assert board.sent == [(0xFEE0_3004, 0x134)]
    board.ioapic.set_irq(4, False)
    board.ioapic.set_irq(4, True)
    assert len(board.sent) == 2


def test_the_timer_is_on_pin_2(board: Board) -> None:
    board.entry(2, 0x30)
    board.entry(0, 0x40)
    board.ioapic.set_irq(0, True)
    board.ioapic.set_irq(2, True)  # the 8259's cascade: no device
    assert board.sent == [(0xFEE0_0000, 0x30)]


def test_an_edge_at_a_masked_pin_is_lost(board: Board) -> None:
    board.ioapic.set_irq(4, True)
    board.entry(4, 0x34)
    assert board.sent == []


def test_a_level_is_sent_again_after_eoi_while_asserted(board: Board) -> None:
    board.entry(11, 0x8051)
    board.ioapic.set_irq(11, True)
    assert board.sent == [(0xFEE0_0000, 0xC051)]
    assert board.read(0x26) & 0x4000
    board.ioapic.set_irq(11, False)
    board.ioapic.set_irq(11, True)
    assert len(board.sent) == 1  # in service: remote IRR
    board.ioapic.end_of_interrupt(0x51)
    assert len(board.sent) == 2
    board.ioapic.set_irq(11, False)
    board.ioapic.end_of_interrupt(0x51)
    assert len(board.sent) == 2
    assert not board.read(0x26) & 0x4000


def test_a_level_at_a_masked_pin_waits(board: Board) -> None:
    board.entry(11, 0x1_8051)
    board.ioapic.set_irq(11, True)
    assert board.sent == []
    board.entry(11, 0x8051)
    assert len(board.sent) == 1


def test_the_eoi_register_ends_by_vector(board: Board) -> None:
    board.entry(11, 0x8051)
    board.ioapic.set_irq(11, True)
    board.bus.mmio.write(BASE + 0x40, 4, 0x50)
    assert len(board.sent) == 1
    board.bus.mmio.write(BASE + 0x40, 4, 0x51)
    assert len(board.sent) == 2


def test_becoming_edge_triggered_clears_remote_irr(board: Board) -> None:
    board.entry(11, 0x8051)
    board.ioapic.set_irq(11, True)
    board.entry(11, 0x1_0051)
    assert board.read(0x26) == 0x1_0051


def test_odd_accesses_have_an_answer(board: Board) -> None:
    for offset in (*range(0x48), 0xFFF):
        for size in (1, 2, 4, 8):
            board.bus.mmio.write(BASE + offset, size, (1 << 8 * size) - 1)
            board.bus.mmio.read(BASE + offset, size)
    board.bus.mmio.write(BASE, 4, 1)
    assert board.bus.mmio.read(BASE + 0x12, 1) == 0x17


def test_state_survives_without_sending_again(board: Board) -> None:
    board.entry(11, 0x8051)
    board.ioapic.set_irq(11, True)
    other = Board()
    other.ioapic.load_state(board.ioapic.save_state())
    assert other.sent == []
    other.ioapic.end_of_interrupt(0x51)
    assert len(other.sent) == 1


def test_an_impossible_entry_is_refused(board: Board) -> None:
    saved = board.ioapic.save_state()
    saved["table"][0] = -1
    with pytest.raises(CorruptImageError):
        board.ioapic.load_state(saved)
