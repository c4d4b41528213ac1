"""The 8259 pair: initialisation, priorities, every way of ending an interrupt, polling, ELCR."""

from __future__ import annotations

import random

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.devices.pic import PicPair


class Board:
    """A pair initialised as a BIOS does: vectors 08h and 70h, nothing masked."""

    def __init__(self, icw4: int = 0x01, icw1: int = 0x11) -> None:
        self.bus = Bus()
        self.pic = PicPair(self.bus)
        for port, base, cascade in ((0x20, 0x08, 0x04), (0xA0, 0x70, 0x02)):
            self.out(port, icw1)
            for value in (base, cascade, icw4):
                self.out(port + 1, value)

    def out(self, port: int, value: int) -> None:
        self.bus.ports.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.bus.ports.read(port, 1)

    def isr(self, port: int = 0x20) -> int:
        self.out(port, 0x0B)
        return self.read(port)

    def irr(self, port: int = 0x20) -> int:
        self.out(port, 0x0A)
        return self.read(port)

    def pulse(self, *numbers: int) -> None:
        for number in numbers:
            self.pic.set_irq(number, True)
            self.pic.set_irq(number, False)


@pytest.fixture
def board() -> Board:
    return Board()


def test_everything_is_masked_until_initialised() -> None:
    bus = Bus()
    pic = PicPair(bus)
    pic.set_irq(1, True)
    assert not pic.pending()
    assert bus.ports.read(0x21, 1) == 0xFF


def test_vectors_come_from_icw2(board: Board) -> None:
    board.pulse(1)
    assert board.pic.pending()
    assert board.pic.acknowledge() == 0x09
    assert not board.pic.pending()
    board.out(0x20, 0x20)
    board.pulse(12)
    assert board.pic.acknowledge() == 0x74


def test_the_lowest_number_is_served_first(board: Board) -> None:
    board.pulse(5, 3, 9)
    assert board.pic.acknowledge() == 0x71
    assert board.isr() == 0x04
    assert board.isr(0xA0) == 0x02
    assert board.irr() == 0x28


def test_a_lower_priority_waits_for_the_end_of_a_higher(board: Board) -> None:
    board.pulse(3)
    board.pic.acknowledge()
    board.pulse(5)
    assert not board.pic.pending()
    board.pulse(1)
    assert board.pic.acknowledge() == 0x09
    board.out(0x20, 0x20)
    assert board.isr() == 0x08
    assert not board.pic.pending()
    board.out(0x20, 0x20)
    assert board.pic.acknowledge() == 0x0D


def test_a_specific_end_of_interrupt_ends_that_one(board: Board) -> None:
    for number in (3, 1):
        board.pulse(number)
        board.pic.acknowledge()
    board.out(0x20, 0x63)
    assert board.isr() == 0x02


def test_a_mask_hides_a_request_without_losing_it(board: Board) -> None:
    board.out(0x21, 0x10)
    board.pulse(4)
    assert not board.pic.pending()
    assert board.irr() == 0x10
    board.out(0x21, 0)
    assert board.pic.acknowledge() == 0x0C


def test_an_edge_is_needed_again_after_service(board: Board) -> None:
    board.pic.set_irq(4, True)
    board.pic.acknowledge()
    board.out(0x20, 0x20)
    board.pic.set_irq(4, True)
    assert not board.pic.pending()


def test_a_level_triggered_input_asks_again_until_released(board: Board) -> None:
    board.out(0x4D1, 0x08)  # IRQ 11
    board.pic.set_irq(11, True)
    for _ in range(2):
        assert board.pic.acknowledge() == 0x73
        board.out(0xA0, 0x20)
        board.out(0x20, 0x20)
    board.pic.set_irq(11, False)
    assert not board.pic.pending()


def test_elcr_keeps_edges_where_the_board_has_them(board: Board) -> None:
    board.bus.ports.write(0x4D0, 2, 0xFFFF)
    assert board.bus.ports.read(0x4D0, 2) == 0xDEF8


def test_no_cause_at_acknowledge_is_irq_7_or_15(board: Board) -> None:
    assert board.pic.acknowledge() == 0x0F
    assert board.isr() == 0
    board.out(0x4D1, 0x04)
    board.pic.set_irq(10, True)
    board.out(0xA1, 0xFF)
    board.pulse(1)
    board.out(0xA1, 0)
    board.pic.master.set_input(2, True)
    board.pic.acknowledge()
    assert board.isr() == 0x02


def test_a_slave_without_cause_gives_irq_15(board: Board) -> None:
    board.pic.slave.output.connect(lambda _level: None)
    board.pic.master.set_input(2, True)
    assert board.pic.acknowledge() == 0x77
    assert board.isr() == 0x04
    assert board.isr(0xA0) == 0


def test_automatic_end_of_interrupt() -> None:
    board = Board(icw4=0x03)
    board.pulse(3)
    assert board.pic.acknowledge() == 0x0B
    assert board.isr() == 0


def test_rotation_in_automatic_mode_serves_in_turn() -> None:
    board = Board(icw4=0x03)
    board.out(0x20, 0x80)
    board.pulse(3)
    board.pic.acknowledge()
    board.pulse(3, 4)
    assert board.pic.acknowledge() == 0x0C
    board.out(0x20, 0x00)
    board.pulse(5)
    assert board.pic.acknowledge() == 0x0D  # 4 was the last to rotate


def test_rotation_on_a_non_specific_end(board: Board) -> None:
    board.pulse(3)
    board.pic.acknowledge()
    board.out(0x20, 0xA0)
    board.pulse(3, 4)
    assert board.pic.acknowledge() == 0x0C


def test_rotation_on_a_specific_end(board: Board) -> None:
    board.pulse(5)
    board.pic.acknowledge()
    board.out(0x20, 0xE5)
    board.pulse(5, 7)
    assert board.pic.acknowledge() == 0x0F


def test_the_lowest_priority_can_be_set(board: Board) -> None:
    board.out(0x20, 0xC3)  # 4 is highest now
    board.pulse(0, 4, 3)
    order = []
    for _ in range(3):
        order.append(board.pic.acknowledge())
        board.out(0x20, 0x20)
    assert order == [0x0C, 0x08, 0x0B]


def test_special_mask_mode_lets_lower_priorities_through(board: Board) -> None:
    board.pulse(3)
    board.pic.acknowledge()
    board.out(0x21, 0x08)
    board.out(0x20, 0x68)
    board.pulse(6)
    assert board.pic.acknowledge() == 0x0E
    board.out(0x20, 0x20)
    assert board.isr() == 0x08  # a masked bit is not ended by a non-specific EOI
    board.out(0x20, 0x48)
    board.pulse(6)
    assert not board.pic.pending()


def test_special_fully_nested_mode_nests_within_the_slave() -> None:
    board = Board(icw4=0x11)
    board.pulse(12)
    assert board.pic.acknowledge() == 0x74
    board.pulse(9)
    assert board.pic.acknowledge() == 0x71


def test_without_it_the_slave_is_one_level(board: Board) -> None:
    board.pulse(12)
    board.pic.acknowledge()
    board.pulse(9)
    assert not board.pic.pending()


def test_polling_acknowledges(board: Board) -> None:
    board.out(0x20, 0x0C)
    assert board.read(0x20) == 0
    board.pulse(6)
    board.out(0x20, 0x0C)
    assert board.read(0x20) == 0x86
    assert board.isr() == 0x40
    assert board.read(0x20) == 0x40  # the poll was one read


def test_icw1_without_icw4_takes_two_more_words(board: Board) -> None:
    board.out(0x20, 0x10)
    for value in (0x40, 0x04, 0xAB):
        board.out(0x21, value)
    assert board.read(0x21) == 0xAB
    board.pulse(2, 6)


def test_a_single_controller_takes_no_icw3(board: Board) -> None:
    board.out(0x20, 0x13)
    for value in (0x40, 0x01, 0xFE):
        board.out(0x21, value)
    assert board.read(0x21) == 0xFE
    board.pulse(0)
    assert board.pic.acknowledge() == 0x40


def test_ltim_makes_every_input_level_triggered() -> None:
    board = Board(icw1=0x19)
    board.pulse(3)
    assert not board.pic.pending()
    board.pic.set_irq(3, True)
    board.pic.acknowledge()
    board.out(0x20, 0x20)
    assert board.pic.pending()


def test_nobody_drives_the_cascade(board: Board) -> None:
    board.pulse(2)
    assert not board.pic.pending()


def test_state_survives(board: Board) -> None:
    board.out(0x4D1, 0x08)
    board.pic.set_irq(11, True)
    board.pulse(5)
    saved = board.pic.save_state()
    other = PicPair(Bus())
    other.load_state(saved)
    assert other.save_state() == saved
    assert other.pending()
    assert other.acknowledge() == 0x73


def test_registers_beyond_eight_bits_are_refused(board: Board) -> None:
    saved = board.pic.save_state()
    saved["master"]["irr"] = 0x100
    with pytest.raises(CorruptImageError):
        board.pic.load_state(saved)


def test_any_sequence_of_accesses_has_an_answer() -> None:
    board, source = Board(), random.Random(8259)
    ports = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)
    for _ in range(20_000):
        port, action = source.choice(ports), source.randrange(4)
        if action == 0:
            board.out(port, source.randrange(256))
        elif action == 1:
            assert 0 <= board.read(port) <= 0xFF
        elif action == 2:
            board.pic.set_irq(source.randrange(16), source.random() < 0.5)
        elif board.pic.pending():
            assert 0 <= board.pic.acknowledge() <= 0xFF
