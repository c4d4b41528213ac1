"""The 8254: the output of every mode clock by clock, latches, read-back, BCD, gates, IRQ 0."""

from __future__ import annotations

import random

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.devices.pit import FREQUENCY, Counter, Pit, nanoseconds
from vdisk.vm.devices.speaker import Speaker, Tone
from vdisk.vm.irq import IrqLine


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.edges: list[int] = []
        self.irq = IrqLine(lambda level: self.edges.append(self.clock.now()) if level else None)
        self.pit = Pit(self.bus, self.clock, self.irq)
        self.speaker = Speaker(self.bus, self.clock, self.pit)
        self.pit.reset()
        self.edges.clear()

    def out(self, port: int, value: int) -> None:
        self.bus.ports.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.bus.ports.read(port, 1)

    def to(self, clocks: int) -> None:
        self.clock.advance(nanoseconds(clocks))

    def program(self, number: int, mode: int, count: int, bcd: int = 0) -> None:
        self.out(0x43, number << 6 | 0x30 | mode << 1 | bcd)
        self.out(0x40 + number, count & 0xFF)
        self.out(0x40 + number, count >> 8)

    def count(self, number: int) -> int:
        self.out(0x43, number << 6)
        return self.read(0x40 + number) | self.read(0x40 + number) << 8

    def status(self, number: int) -> int:
        self.out(0x43, 0xE0 | 2 << number)
        return self.read(0x40 + number)


@pytest.fixture
def board() -> Board:
    return Board()


def wave(board: Board, counter: Counter, clocks: int) -> str:
    """OUT at each of the next clocks, beginning with the one at which the count is loaded."""
    first = counter.now() + 1
    shape = ""
    for clock in range(first, first + clocks):
        board.to(clock)
        shape += "-" if counter.output(counter.now()) else "_"
    return shape


@pytest.mark.parametrize(
    ("mode", "count", "shape"),
    [
        (0, 4, "____------"),
        (2, 4, "---_---_---_"),
        (2, 3, "--_--_--_"),
        (6, 3, "--_--_--_"),  # M2 is a don't-care
        (3, 4, "--__--__--__"),
        (3, 5, "---__---__"),
        (7, 5, "---__---__"),
        (4, 3, "---_------"),
    ],
)
def test_the_wave_of_each_mode(board: Board, mode: int, count: int, shape: str) -> None:
    board.program(1, mode, count)
    assert wave(board, board.pit.counters[1], len(shape)) == shape


@pytest.mark.parametrize(("mode", "shape"), [(1, "___-----"), (5, "---_----")])
def test_gate_triggered_modes_begin_with_the_gate(board: Board, mode: int, shape: str) -> None:
    board.program(2, mode, 3)
    counter = board.pit.counters[2]
    assert wave(board, counter, 6) == "------"
    board.out(0x61, 1)
    assert wave(board, counter, len(shape)) == shape
    board.out(0x61, 0)
    board.out(0x61, 1)
    assert wave(board, counter, len(shape)) == shape


def test_a_one_shot_that_is_triggered_again_begins_again(board: Board) -> None:
    board.program(2, 1, 5)
    board.out(0x61, 1)
    counter = board.pit.counters[2]
    assert wave(board, counter, 3) == "___"
    board.out(0x61, 0)
    board.out(0x61, 1)
    assert wave(board, counter, 7) == "_____--"


def test_mode_0_pauses_while_its_gate_is_low(board: Board) -> None:
    board.out(0x61, 1)
    board.program(2, 0, 5)
    counter = board.pit.counters[2]
    assert wave(board, counter, 3) == "___"
    board.out(0x61, 0)
    before = board.count(2)
    assert wave(board, counter, 20) == "_" * 20
    assert board.count(2) == before == 3
    board.out(0x61, 1)
    assert wave(board, counter, 5) == "__---"


def test_a_low_gate_holds_the_square_wave_high(board: Board) -> None:
    board.out(0x61, 1)
    board.program(2, 3, 4)
    counter = board.pit.counters[2]
    wave(board, counter, 3)
    board.out(0x61, 0)
    assert wave(board, counter, 6) == "------"
    board.out(0x61, 1)
    assert wave(board, counter, 6) == "--__--"


def test_a_new_count_of_mode_2_waits_for_the_period(board: Board) -> None:
    board.program(1, 2, 5)
    counter = board.pit.counters[1]
    assert wave(board, counter, 2) == "--"
    board.out(0x41, 3)
    board.out(0x41, 0)
    assert board.status(1) & 0x40  # null count
    assert wave(board, counter, 9) == "--_--_--_"
    assert not board.status(1) & 0x40


def test_a_new_count_of_mode_3_waits_for_the_half_period(board: Board) -> None:
    board.program(1, 3, 8)
    counter = board.pit.counters[1]
    assert wave(board, counter, 2) == "--"
    board.out(0x41, 4)
    board.out(0x41, 0)
    assert wave(board, counter, 8) == "--__--__"


def test_the_first_byte_of_mode_0_stops_the_count(board: Board) -> None:
    board.program(1, 0, 2)
    counter = board.pit.counters[1]
    assert wave(board, counter, 4) == "__--"
    board.out(0x41, 3)
    assert wave(board, counter, 3) == "___"
    board.out(0x41, 0)
    assert wave(board, counter, 5) == "___--"


def test_counts_go_down(board: Board) -> None:
    board.program(1, 2, 1000)
    board.to(board.pit.counters[1].now() + 1 + 10)
    assert board.count(1) == 990
    board.program(1, 3, 1000)
    board.to(board.pit.counters[1].now() + 1 + 10)
    assert board.count(1) == 980
    board.program(1, 0, 3)
    board.to(board.pit.counters[1].now() + 1 + 5)
    assert board.count(1) == 0xFFFE


def test_bcd_counts_in_tens(board: Board) -> None:
    board.program(1, 0, 0x0100, bcd=1)
    board.to(board.pit.counters[1].now() + 1 + 1)
    assert board.count(1) == 0x0099
    board.program(1, 2, 0, bcd=1)
    assert board.pit.counters[1].reload == 10000


def test_zero_is_65536(board: Board) -> None:
    board.program(1, 2, 0)
    assert board.pit.counters[1].reload == 0x10000


def test_a_latched_count_stays_until_read(board: Board) -> None:
    board.program(1, 2, 1000)
    board.to(11)
    board.out(0x43, 0x40)
    board.to(100)
    board.out(0x43, 0x40)  # a second latch changes nothing
    assert board.read(0x41) | board.read(0x41) << 8 == 990
    assert board.count(1) == 901


@pytest.mark.parametrize(("access", "first", "second"), [(1, 0x34, 0x34), (2, 0x12, 0x12)])
def test_single_byte_access(board: Board, access: int, first: int, second: int) -> None:
    board.out(0x43, 0x40 | access << 4 | 0x04)
    board.out(0x41, 0x50)
    counter = board.pit.counters[1]
    assert counter.reload == (0x50 if access == 1 else 0x5000)
    counter._latch, counter._latched = 0x1234, 1
    assert board.read(0x41) == first


def test_read_back_gives_the_status_first(board: Board) -> None:
    board.program(1, 2, 1000)
    board.to(11)
    board.out(0x43, 0xC4)
    assert board.read(0x41) == 0xB4  # OUT, low and high byte, mode 2
    assert board.read(0x41) | board.read(0x41) << 8 == 990


def test_status_shows_that_no_count_was_written(board: Board) -> None:
    board.out(0x43, 0x70)
    assert board.status(1) == 0x70
    board.out(0x41, 1)
    board.out(0x41, 0)
    assert board.status(1) == 0x30


def test_counter_0_interrupts_at_its_rate(board: Board) -> None:
    board.program(0, 2, 11932)
    board.clock.advance(SECOND)
    assert len(board.edges) == FREQUENCY // 11932
    assert board.edges[0] == nanoseconds(11933)
    gaps = {after - before for before, after in zip(board.edges, board.edges[1:], strict=False)}
    assert max(gaps) - min(gaps) < 1000


def test_mode_0_interrupts_once(board: Board) -> None:
    board.program(0, 0, 1193)
    board.clock.advance(SECOND)
    assert board.edges == [nanoseconds(1194)]
    assert board.irq.level
    board.out(0x43, 0x30)
    assert not board.irq.level


def test_a_count_that_is_changed_takes_effect_after_the_period(board: Board) -> None:
    board.program(0, 2, 10000)
    board.to(15000)
    board.out(0x40, 1000 & 0xFF)
    board.out(0x40, 1000 >> 8)
    board.to(22500)
    assert board.edges == [nanoseconds(1 + clocks) for clocks in (10000, 20000, 21000, 22000)]


def test_interrupts_have_a_shortest_period(board: Board) -> None:
    board.program(0, 2, 1)
    board.clock.advance(SECOND // 100)
    assert 0 < len(board.edges) <= 201


def test_the_control_port_reads_ones_and_wide_accesses_are_bytes(board: Board) -> None:
    assert board.read(0x43) == 0xFF
    board.bus.ports.write(0x42, 2, 0x3412)  # the counter, then the control word
    board.bus.ports.read(0x40, 4)


def test_state_survives(board: Board) -> None:
    board.program(0, 2, 10000)
    board.program(2, 3, 500)
    board.to(15000)
    board.out(0x40, 200)
    saved = board.pit.save_state()
    other = Board()
    other.clock.advance(board.clock.now())
    other.pit.load_state(saved)
    assert other.pit.save_state() == saved
    board.edges.clear()
    other.edges.clear()
    for each in (board, other):
        each.to(100_000)
    assert other.edges == board.edges


def test_an_impossible_count_is_refused(board: Board) -> None:
    saved = board.pit.save_state()
    saved["counters"][0]["reload"] = 0
    with pytest.raises(CorruptImageError):
        board.pit.load_state(saved)


def test_any_sequence_of_accesses_has_an_answer(board: Board) -> None:
    source = random.Random(8254)
    for _ in range(5000):
        board.clock.advance(board.clock.now() + source.randrange(200_000))
        port = source.choice((0x40, 0x41, 0x42, 0x43, 0x61))
        if source.random() < 0.6:
            board.out(port, source.randrange(256))
        else:
            assert 0 <= board.read(port) <= 0xFF


class TestSpeaker:
    def test_tones_are_recorded(self, board: Board) -> None:
        board.program(2, 3, 1193)
        board.out(0x61, 3)
        board.clock.advance(SECOND)
        board.out(0x61, 0)
        assert list(board.speaker.tones) == [Tone(0, 1000), Tone(SECOND, 0)]

    def test_a_new_pitch_is_a_new_tone(self, board: Board) -> None:
        board.program(2, 3, 1193)
        board.out(0x61, 3)
        board.program(2, 3, 2386)
        assert [tone.frequency for tone in board.speaker.tones][-1] == 500

    def test_port_61h_shows_gate_output_and_refresh(self, board: Board) -> None:
        board.program(2, 0, 100)
        board.out(0x61, 0xF1)
        assert board.read(0x61) & 0x2F == 0x01
        board.to(120)
        assert board.read(0x61) & 0x2F == 0x21
        seen = set()
        for step in range(4):
            board.clock.advance(SECOND + step * 15_085)
            seen.add(board.read(0x61) & 0x10)
        assert seen == {0, 0x10}
