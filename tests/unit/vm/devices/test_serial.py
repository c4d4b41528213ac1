"""The 16550A: FIFOs, trigger levels, time-outs, priorities of causes, loopback, modem lines."""

from __future__ import annotations

import random

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.devices.serial import BACKLOG, COM_PORTS, Uart
from vdisk.vm.irq import IrqLine

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = (COM_PORTS[0] + register for register in range(8))


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class Board:
    def __init__(self, plugged: bool = True) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.irq = IrqLine()
        self.sink = Sink()
        stream = self.sink if plugged else None
        self.uart = Uart(self.bus, self.clock, self.irq, COM_PORTS[0], stream)

    def out(self, port: int, value: int) -> None:
        self.bus.ports.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.bus.ports.read(port, 1)

    def start(self, ier: int, fcr: int = 0x01) -> None:
        """8N1 at 115200, interrupts on."""
        self.out(LCR, 0x83)
        self.bus.ports.write(RBR, 2, 1)
        self.out(LCR, 0x03)
        self.out(IIR, fcr)
        self.out(MCR, 0x0B)
        self.out(IER, ier)
        self.read(MSR)
        self.read(IIR)


@pytest.fixture
def board() -> Board:
    return Board()


def test_bytes_written_reach_the_stream(board: Board) -> None:
    for byte in b"hello":
        assert board.read(LSR) & 0x60 == 0x60
        board.out(RBR, byte)
    assert board.sink.data == b"hello"


def test_the_divisor_hides_behind_dlab(board: Board) -> None:
    board.out(LCR, 0x83)
    board.bus.ports.write(RBR, 2, 0x0480)
    assert board.bus.ports.read(RBR, 2) == 0x0480
    assert board.sink.data == b""
    board.out(LCR, 0x03)
    assert board.read(IER) == 0


def test_bytes_arrive_in_order_whatever_the_fifo_holds(board: Board) -> None:
    data = bytes(range(200))
    board.start(0)
    board.uart.feed(data)
    received = b""
    while board.read(LSR) & 1:
        received += bytes([board.read(RBR)])
    assert received == data
    assert board.read(RBR) == 0


def test_without_fifos_one_byte_is_held(board: Board) -> None:
    board.start(1, fcr=0)
    board.uart.feed(b"ab")
    assert board.read(IIR) == 0x04
    assert (board.read(RBR), board.read(RBR)) == (ord("a"), ord("b"))
    assert board.read(IIR) == 0x01


def test_the_trigger_level_decides_when_to_interrupt(board: Board) -> None:
    board.start(1, fcr=0x81)  # eight bytes
    board.uart.feed(b"1234567")
    assert not board.irq.level
    board.uart.feed(b"8")
    assert board.irq.level
    assert board.read(IIR) == 0xC4
    board.read(RBR)
    assert not board.irq.level


def test_a_few_bytes_time_out_after_four_characters(board: Board) -> None:
    board.start(1, fcr=0xC1)
    board.uart.feed(b"ab")
    board.clock.advance(4 * 10 * SECOND // 115200 - 1000)
    assert not board.irq.level
    board.clock.advance(4 * 10 * SECOND // 115200)
    assert board.irq.level
    assert board.read(IIR) == 0xCC
    board.read(RBR)
    assert not board.irq.level
    board.clock.advance(SECOND)
    assert board.read(IIR) == 0xCC
    board.read(RBR)
    board.clock.advance(2 * SECOND)
    assert not board.irq.level


def test_the_transmitter_interrupts_when_it_is_empty(board: Board) -> None:
    board.start(0)
    board.out(IER, 2)
    assert board.irq.level
    assert board.read(IIR) == 0xC2
    assert not board.irq.level  # reading IIR was the acknowledgement
    board.out(RBR, 0x41)
    assert board.irq.level
    board.out(IER, 0)
    assert not board.irq.level


def test_line_errors_come_first(board: Board) -> None:
    board.start(0x0F)
    board.uart.feed(b"x")
    board.out(RBR, 0)
    board.uart.feed_break()
    assert board.read(IIR) == 0xC6
    assert board.read(LSR) & 0x10
    assert board.read(IIR) == 0xC4
    assert (board.read(RBR), board.read(RBR)) == (ord("x"), 0)
    assert board.read(IIR) == 0xC2
    assert board.read(IIR) == 0xC1


@pytest.mark.parametrize("out2", [0, 8])
def test_interrupts_need_no_out2_but_reach_nobody_in_loopback(board: Board, out2: int) -> None:
    board.start(0)
    board.out(MCR, 0x03 | out2)
    board.out(IER, 2)
    assert board.irq.level
    board.out(MCR, 0x13 | out2)
    assert not board.irq.level
    board.out(MCR, 0x03 | out2)
    assert board.irq.level


def test_modem_lines_say_whether_something_is_plugged_in() -> None:
    assert Board().read(MSR) & 0xF0 == 0xB0
    board = Board(plugged=False)
    assert board.read(MSR) == 0
    board.start(8)
    board.uart.plug(Sink())
    assert board.read(IIR) == 0xC0
    assert board.read(MSR) == 0xBB
    assert board.read(MSR) == 0xB0
    assert not board.irq.level


def test_loopback_returns_bytes_and_lines(board: Board) -> None:
    board.start(0)
    board.out(MCR, 0x10)
    board.read(MSR)
    board.out(MCR, 0x1A)  # RTS, OUT2
    assert board.read(MSR) & 0xF0 == 0x90
    board.out(RBR, 0x5A)
    assert board.sink.data == b""
    assert board.read(RBR) == 0x5A
    board.out(MCR, 0x14)
    board.read(MSR)
    board.out(MCR, 0x10)
    assert board.read(MSR) == 0x04  # the end of RI


def test_what_arrives_during_loopback_waits(board: Board) -> None:
    board.start(0)
    board.out(MCR, 0x10)
    board.uart.feed(b"later")
    assert not board.read(LSR) & 1
    board.out(MCR, 0)
    assert board.read(RBR) == ord("l")


def test_a_full_fifo_overruns_in_loopback(board: Board) -> None:
    board.start(0)
    board.out(MCR, 0x10)
    for byte in range(17):
        board.out(RBR, byte)
    assert board.read(LSR) & 2
    assert [board.read(RBR) for _ in range(16)] == list(range(16))


def test_a_backlog_beyond_its_bound_is_lost_and_said_so(board: Board) -> None:
    board.start(0)
    board.uart.feed(bytes(BACKLOG))
    board.uart.feed(bytes(100))
    assert board.read(LSR) & 2
    assert board.uart.space() < 100


def test_clearing_the_fifo(board: Board) -> None:
    board.start(1)
    board.uart.feed(b"abc")
    board.out(IIR, 0x03)
    assert not board.read(LSR) & 1
    assert not board.irq.level


def test_fifo_bits_of_iir_and_scratch(board: Board) -> None:
    assert board.read(IIR) == 0x01
    board.out(IIR, 0x01)
    assert board.read(IIR) == 0xC1
    board.out(SCR, 0xA5)
    assert board.read(SCR) == 0xA5


def test_state_survives(board: Board) -> None:
    board.start(1, fcr=0xC1)
    board.uart.feed(bytes(range(40)))
    saved = board.uart.save_state()
    other = Board()
    other.uart.load_state(saved)
    assert other.irq.level
    assert [other.read(RBR) for _ in range(40)] == list(range(40))


@pytest.mark.parametrize(
    ("field", "value"), [("fifo", [256]), ("divisor", -1), ("lcr", 256), ("backlog", [0] * 70000)]
)
def test_impossible_states_are_refused(board: Board, field: str, value: object) -> None:
    saved = board.uart.save_state() | {field: value}
    with pytest.raises(CorruptImageError):
        board.uart.load_state(saved)


def test_any_sequence_of_accesses_has_an_answer(board: Board) -> None:
    source = random.Random(16550)
    for _ in range(20_000):
        port = source.randrange(RBR, SCR + 1)
        action = source.randrange(4)
        if action == 0:
            board.out(port, source.randrange(256))
        elif action == 1:
            assert 0 <= board.read(port) <= 0xFF
        elif action == 2:
            board.uart.feed(bytes(source.randrange(20)))
        else:
            board.clock.advance(board.clock.now() + source.randrange(SECOND // 1000))
