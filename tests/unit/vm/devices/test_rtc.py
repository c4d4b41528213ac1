"""The MC146818: formats, setting, UIP, all three interrupts, what firmware reads."""

from __future__ import annotations

import calendar
import itertools
import random
import time

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.devices.rtc import Rtc, civil, days
from vdisk.vm.irq import IrqLine

EPOCH = calendar.timegm((2024, 2, 28, 23, 59, 58))  # a Wednesday before a leap day
MILLISECOND = SECOND // 1000


class Board:
    def __init__(self, epoch: int = EPOCH) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.edges: list[int] = []
        self.irq = IrqLine(lambda level: self.edges.append(self.clock.now()) if level else None)
        self.rtc = Rtc(self.bus, self.clock, self.irq, epoch)

    def read(self, index: int) -> int:
        self.bus.ports.write(0x70, 1, index)
        return self.bus.ports.read(0x71, 1)

    def write(self, index: int, value: int) -> None:
        self.bus.ports.write(0x70, 1, index)
        self.bus.ports.write(0x71, 1, value)

    def time(self) -> tuple[int, ...]:
        return tuple(self.read(index) for index in (0x32, 9, 8, 7, 4, 2, 0))


@pytest.fixture
def board() -> Board:
    return Board()


def test_time_is_read_in_bcd(board: Board) -> None:
    assert board.time() == (0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58)
    assert board.read(6) == 4
    board.clock.advance(3 * SECOND)
    assert board.time() == (0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x01)
    assert board.read(6) == 5


def test_time_is_read_in_binary(board: Board) -> None:
    board.write(0x0B, 0x06)
    assert board.time() == (20, 24, 2, 28, 23, 59, 58)


@pytest.mark.parametrize(
    ("hour", "shown"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)]
)
def test_twelve_hours(hour: int, shown: int) -> None:
    board = Board(calendar.timegm((2024, 1, 1, hour, 0, 0)))
    board.write(0x0B, 0x00)
    assert board.read(4) == shown
    board.write(4, shown)
    board.write(0x0B, 0x02)
    assert board.read(4) == hour // 10 << 4 | hour % 10


def test_the_time_is_set_while_set_is_one(board: Board) -> None:
    board.write(0x0B, 0x82)
    for index, value in ((0, 0x30), (2, 0x15), (4, 0x07), (7, 0x31), (8, 0x12), (9, 0x99)):
        board.write(index, value)
    board.write(0x32, 0x19)
    board.clock.advance(5 * SECOND)
    assert board.time() == (0x19, 0x99, 0x12, 0x31, 0x07, 0x15, 0x30)
    board.write(0x0B, 0x02)
    board.clock.advance(7 * SECOND)
    assert board.time() == (0x19, 0x99, 0x12, 0x31, 0x07, 0x15, 0x32)


def test_one_register_can_be_set_while_the_clock_runs(board: Board) -> None:
    board.write(4, 0x10)
    assert board.time() == (0x20, 0x24, 0x02, 0x28, 0x10, 0x59, 0x58)


def test_the_divider_in_reset_stops_the_clock(board: Board) -> None:
    board.write(0x0A, 0x66)
    board.clock.advance(10 * SECOND)
    assert board.read(0) == 0x58
    board.write(0x0A, 0x26)
    board.clock.advance(11 * SECOND)
    assert board.read(0) == 0x59


def test_update_in_progress_precedes_the_second(board: Board) -> None:
    board.clock.advance(SECOND - 3 * MILLISECOND)
    assert board.read(0x0A) == 0x26
    board.clock.advance(SECOND - MILLISECOND)
    assert board.read(0x0A) == 0xA6
    assert board.read(0) == 0x58
    board.clock.advance(SECOND)
    assert board.read(0x0A) == 0x26
    assert board.read(0) == 0x59


def test_no_update_while_set(board: Board) -> None:
    board.write(0x0B, 0x82)
    board.clock.advance(SECOND - MILLISECOND)
    assert board.read(0x0A) == 0x26


def test_the_update_ended_interrupt(board: Board) -> None:
    board.write(0x0B, 0x12)
    board.clock.advance(SECOND // 2)
    assert board.edges == []
    board.clock.advance(5 * SECOND)
    assert board.edges == [SECOND]  # register C was not read: the line stays
    assert board.read(0x0C) & 0x90 == 0x90
    assert not board.irq.level
    board.clock.advance(6 * SECOND)
    assert board.edges == [SECOND, 6 * SECOND]


def test_setting_set_clears_uie(board: Board) -> None:
    board.write(0x0B, 0x92)
    assert board.read(0x0B) == 0x82


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x00, 0x00, 0x00), 2),
        ((0x05, 0xFF, 0xFF), 7),
        ((0xC0, 0x01, 0x00), 62),
        ((0x58, 0x59, 0x23), 86400),
    ],
)
def test_the_alarm(board: Board, alarm: tuple[int, int, int], after: int) -> None:
    for index, value in zip((1, 3, 5), alarm, strict=True):
        board.write(index, value)
    board.write(0x0B, 0x22)
    board.clock.advance((after + 3) * SECOND)
    assert board.edges == [after * SECOND]
    assert board.read(0x0C) & 0x20


def test_an_alarm_in_twelve_hours() -> None:
    board = Board(calendar.timegm((2024, 1, 1, 12, 59, 59)))
    board.write(0x0B, 0x20)
    for index, value in ((1, 0x00), (3, 0x00), (5, 0x81)):
        board.write(index, value)
    board.clock.advance(2 * SECOND)
    assert board.edges == [SECOND]


@pytest.mark.parametrize(("rate", "hertz"), [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)])
def test_the_periodic_interrupt(board: Board, rate: int, hertz: int) -> None:
    board.write(0x0A, 0x20 | rate)
    board.write(0x0B, 0x42)
    seen = 0
    while board.clock.now() < SECOND:
        deadline = board.clock.next_deadline()
        assert deadline is not None
        board.clock.advance(deadline)
        seen += bool(board.read(0x0C) & 0x40)
    assert seen == hertz


def test_a_period_that_ends_while_register_c_is_read_is_another_edge(board: Board) -> None:
    """A 8259A sees nothing of a line that stays high."""
    board.write(0x0B, 0x42)
    board.clock.advance(MILLISECOND)
    assert len(board.edges) == 1
    times = itertools.count(board.clock.now(), MILLISECOND)
    board.clock.now = lambda: next(times)  # type: ignore[method-assign]
    assert board.read(0x0C) == 0xC0
    assert len(board.edges) == 2 and board.irq.level


def test_the_periodic_flag_is_set_without_an_interrupt(board: Board) -> None:
    board.read(0x0C)
    assert board.read(0x0C) == 0
    board.clock.advance(MILLISECOND)
    assert board.read(0x0C) == 0x40
    assert board.edges == []


def test_registers_c_and_d_are_read_only(board: Board) -> None:
    board.write(0x0C, 0xFF)
    board.write(0x0D, 0)
    assert board.read(0x0C) == 0
    assert board.read(0x0D) == 0x80


def test_memory_keeps_what_is_written(board: Board) -> None:
    board.write(0x8F, 0x0A)  # with NMI masked: index 0Fh
    assert board.read(0x0F) == 0x0A
    assert board.bus.ports.read(0x70, 1) == 0xFF
    board.bus.ports.write(0x70, 2, 0x5510)
    assert board.read(0x10) == 0x55
    board.rtc.reset()
    assert board.read(0x0F) == 0x0A


def test_reset_disables_interrupts(board: Board) -> None:
    board.write(0x0B, 0x72)
    board.clock.advance(3 * SECOND)
    board.rtc.reset()
    assert not board.irq.level
    assert board.read(0x0B) == 0x02
    assert board.time()[-1] == 1


def test_firmware_finds_memory_and_processors(board: Board) -> None:
    board.rtc.describe_memory(3 << 30, 5 << 30)
    board.rtc.describe_processors(4)
    board.rtc.describe_equipment((4, 0))
    board.rtc.describe_boot_order((3, 2, 1))
    word = [board.read(index) | board.read(index + 1) << 8 for index in (0x15, 0x17, 0x34)]
    assert word == [640, 0xFFFF, (3 << 30) - (16 << 20) >> 16]
    assert board.read(0x5B) | board.read(0x5C) << 8 | board.read(0x5D) << 16 == 5 << 30 >> 16
    assert board.read(0x5F) == 3
    assert (board.read(0x14), board.read(0x10)) == (0x07, 0x40)
    assert (board.read(0x3D), board.read(0x38)) == (0x23, 0x10)
    total = sum(board.read(index) for index in range(0x10, 0x2E))
    assert board.read(0x2E) << 8 | board.read(0x2F) == total


def test_days_agree_with_the_calendar() -> None:
    source = random.Random(146818)
    for _ in range(2000):
        day = source.randrange(200_000)
        at = time.gmtime(day * 86400)
        assert days(at.tm_year, at.tm_mon, at.tm_mday) == day
    assert civil(1 << 60).tm_year == 9999


def test_dates_that_do_not_exist_count_on(board: Board) -> None:
    board.write(0x0B, 0x82)
    for index, value in ((7, 0x00), (8, 0x13), (0, 0x75)):
        board.write(index, value)
    board.write(0x0B, 0x02)
    # day 0 of month 13 of 2024, 23:59:75
    assert board.time() == (0x20, 0x25, 0x01, 0x01, 0x00, 0x00, 0x15)


def test_any_bytes_in_the_registers_have_an_answer(board: Board) -> None:
    source = random.Random(70)
    for _ in range(800):
        board.write(source.randrange(0x34), source.randrange(256))
        board.clock.advance(board.clock.now() + source.randrange(2 * SECOND))
        assert 0 <= board.read(source.randrange(0x34)) <= 0xFF


def test_state_survives(board: Board) -> None:
    board.write(0x0B, 0x72)
    board.write(0x30, 9)
    board.clock.advance(5 * SECOND // 2)
    saved = board.rtc.save_state()
    other = Board(0)
    other.clock.advance(board.clock.now())
    other.rtc.load_state(saved)
    assert other.time() == board.time()
    assert other.irq.level
    other.read(0x0C)
    board.read(0x0C)
    for each in (board, other):
        each.edges.clear()
        each.clock.advance(4 * SECOND)
    assert other.edges == board.edges != []


def test_an_impossible_time_is_refused(board: Board) -> None:
    saved = board.rtc.save_state()
    saved["base"] = -1
    with pytest.raises(CorruptImageError):
        board.rtc.load_state(saved)
