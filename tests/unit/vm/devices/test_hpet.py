"""The HPET: its counter, one-shot and periodic comparators, levels, legacy replacement."""

from __future__ import annotations

import random

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.hpet import BASE, Hpet, IrqGate
from vdisk.vm.irq import IrqLine

MICROSECOND = 1000


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.edges: list[tuple[str, int]] = []
        self.levels: dict[str, bool] = {}
        self.irq0, self.irq8 = IrqLine(self._sink("irq0")), IrqLine(self._sink("irq8"))
        self.gates = (IrqGate(IrqLine(self._sink("pit"))), IrqGate(IrqLine(self._sink("rtc"))))
        self.hpet = Hpet(
            self.bus, self.clock, lambda pin, level: self._sink(f"pin{pin}")(level),
            (self.irq0, self.irq8), self.gates,
        )  # fmt: skip
        self.hpet.reset()

    def _sink(self, name: str):
        def changed(level: bool) -> None:
            self.levels[name] = level
            if level:
                self.edges.append((name, self.clock.now()))

        return changed

    def read(self, offset: int, size: int = 8) -> int:
        return self.bus.mmio.read(BASE + offset, size)

    def write(self, offset: int, value: int, size: int = 8) -> None:
        self.bus.mmio.write(BASE + offset, size, value)


@pytest.fixture
def board() -> Board:
    return Board()


def test_capabilities(board: Board) -> None:
    value = board.read(0)
    assert value >> 32 == 10_000_000  # fs: 100 MHz
    assert value & 0xFFFF_FFFF == 0x8086_A201
    assert board.read(0x100, 4) == 0x30
    assert board.read(0x104, 4) == 0x00FF_0000


def test_the_counter_runs_while_enabled(board: Board) -> None:
    board.write(0xF0, 1000)
    board.clock.advance(5 * MICROSECOND)
    assert board.read(0xF0) == 1000
    board.write(0x10, 1)
    board.clock.advance(15 * MICROSECOND)
    assert board.read(0xF0) == 2000
    board.write(0xF0, 0)  # not while it runs
    assert board.read(0xF0, 4) == 2000
    board.write(0x10, 0)
    board.clock.advance(50 * MICROSECOND)
    assert board.read(0xF0) == 2000


def test_a_one_shot_fires_once(board: Board) -> None:
    board.write(0x10, 1)
    board.write(0x140, 16 << 9 | 4)
    board.write(0x148, 500)
    board.clock.advance(1000 * MICROSECOND)
    assert board.edges == [("pin16", 5 * MICROSECOND)]
    board.write(0x148, 50)  # passed already
    board.clock.advance(2000 * MICROSECOND)
    assert len(board.edges) == 1


def test_32_bits_wrap(board: Board) -> None:
    board.write(0xF0, 0xFFFF_FFF0)
    board.write(0x10, 1)
    board.write(0x120, 17 << 9 | 4 | 0x100)
    board.write(0x128, 0x10)
    board.clock.advance(MICROSECOND)
    assert board.edges == [("pin17", 32 * 10)]


def test_a_periodic_timer_as_linux_starts_it(board: Board) -> None:
    board.write(0x10, 3)
    board.write(0x100, 0x4C | 0x100, 4)  # enabled, periodic, value set
    board.write(0x108, 100_000, 4)
    board.write(0x108, 50_000, 4)
    board.clock.advance(2_600 * MICROSECOND)
    assert board.edges == [("irq0", 1_000 * MICROSECOND + n * 500 * MICROSECOND) for n in range(4)]


@pytest.mark.parametrize("late", [0, 10, 399, 410, 449, 500, 800, 4321])
def test_a_host_that_comes_late_misses_ticks_but_not_the_next(board: Board, late: int) -> None:
    board.write(0x10, 3)
    board.write(0x100, 0x4C | 0x100, 4)
    board.write(0x108, 40_000, 4)
    board.clock.restore((400 + late) * MICROSECOND)
    board.clock.fire()
    board.edges.clear()
    deadline = board.clock.next_deadline()
    assert deadline is not None
    board.clock.advance(deadline)
    ((_name, time),) = board.edges
    assert time % (400 * MICROSECOND) == 0
    assert 0 < time - (400 + late) * MICROSECOND <= 450 * MICROSECOND


def test_periods_have_a_shortest(board: Board) -> None:
    board.write(0x10, 3)
    board.write(0x100, 0x4C)
    board.write(0x108, 1)
    board.clock.advance(1000 * MICROSECOND)
    assert 0 < len(board.edges) <= 22


def test_legacy_replacement_cuts_off_timer_and_clock(board: Board) -> None:
    board.gates[0].input.raise_()
    assert board.levels["pit"]
    board.write(0x10, 2)
    assert not board.levels["pit"]
    board.gates[1].input.raise_()
    assert "rtc" not in board.levels
    board.write(0x10, 0)
    assert board.levels["pit"] and board.levels["rtc"]


def test_a_level_stays_until_its_status_is_cleared(board: Board) -> None:
    board.write(0x10, 1)
    board.write(0x100, 20 << 9 | 6)
    board.write(0x108, 100)
    board.clock.advance(10 * MICROSECOND)
    assert board.levels["pin20"] and board.read(0x20) == 1
    board.write(0x20, 1)
    assert not board.levels["pin20"] and board.read(0x20) == 0


def test_a_route_that_cannot_be_goes_nowhere(board: Board) -> None:
    board.write(0x10, 1)
    board.write(0x100, 4 << 9 | 4)
    board.write(0x108, 100)
    board.clock.advance(10 * MICROSECOND)
    assert board.edges == []


def test_state_survives(board: Board) -> None:
    board.write(0x10, 3)
    board.write(0x100, 0x4C)
    board.write(0x108, 100_000)
    board.write(0x140, 20 << 9 | 6)
    board.write(0x148, 100)
    board.clock.advance(1_200 * MICROSECOND)
    other = Board()
    other.clock.advance(board.clock.now())
    other.hpet.load_state(board.hpet.save_state())
    assert other.hpet.save_state() == board.hpet.save_state()
    assert other.levels["pin20"]
    for each in (board, other):
        each.edges.clear()
        each.clock.advance(5_000 * MICROSECOND)
    assert other.edges == board.edges != []
    with pytest.raises(CorruptImageError):
        other.hpet.load_state(board.hpet.save_state() | {"config": 9})


def test_any_sequence_of_accesses_has_an_answer(board: Board) -> None:
    source = random.Random(1_0)
    offsets = [0, 0x10, 0x20, 0xF0, *range(0x100, 0x170, 4), 0x3FC]
    for _ in range(5000):
        offset, size = (
            source.choice(offsets) + source.choice((0, 0, 0, 1)),
            source.choice((1, 2, 4, 8)),
        )
        if source.random() < 0.6:
            board.write(
                offset,
                source.choice((source.randrange(1 << 16), source.randrange(1 << 8 * size))),
                size,
            )
        else:
            assert 0 <= board.read(offset, size) < 1 << 8 * size
        board.clock.advance(board.clock.now() + source.randrange(20 * MICROSECOND))
