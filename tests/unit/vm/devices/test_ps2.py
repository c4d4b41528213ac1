"""The 8042 with a keyboard and a mouse, driven through ports 60h and 64h."""

from __future__ import annotations

import random
import string

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.devices import ps2_mouse
from vdisk.vm.devices.keycodes import KEYS, SET_1_TO_2, SET_2_TO_1, keys_for
from vdisk.vm.devices.ps2 import BYTE_TIME, KeyboardController
from vdisk.vm.devices.ps2_keyboard import Keyboard
from vdisk.vm.devices.ps2_mouse import Mouse
from vdisk.vm.irq import IrqLine


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.log: list[object] = []
        self.keyboard, self.mouse = Keyboard(), Mouse()
        self.irq1, self.irq12 = IrqLine(), IrqLine()
        self.controller = KeyboardController(
            self.bus,
            self.clock,
            self.keyboard,
            self.mouse,
            irq1=self.irq1,
            irq12=self.irq12,
            set_a20=self.log.append,
            reset_processor=lambda: self.log.append("reset"),
        )

    def command(self, value: int, *arguments: int) -> None:
        self.bus.ports.write(0x64, 1, value)
        for argument in arguments:
            self.bus.ports.write(0x60, 1, argument)

    def write(self, value: int) -> None:
        self.bus.ports.write(0x60, 1, value)

    def status(self) -> int:
        return self.bus.ports.read(0x64, 1)

    def read(self) -> int:
        return self.bus.ports.read(0x60, 1)

    def receive(self) -> list[int]:
        """Everything that comes, waiting for each byte as a driver does."""
        received = []
        while True:
            if not self.status() & 1:
                self.clock.advance(self.clock.now() + BYTE_TIME)
            if not self.status() & 1:
                return received
            received.append(self.read())

    def ask(self, *values: int) -> list[int]:
        """Commands to the keyboard, and all that it answers."""
        for value in values:
            self.write(value)
        return self.receive()

    def ask_mouse(self, *values: int) -> list[int]:
        for value in values:
            self.command(0xD4, value)
        return self.receive()


@pytest.fixture
def board() -> Board:
    return Board()


class TestController:
    def test_self_test_and_port_tests(self, board: Board) -> None:
        for command, answer in ((0xAA, 0x55), (0xAB, 0), (0xA9, 0), (0xA4, 0xF1)):
            board.command(command)
            assert board.status() & 0x21 == 1
            assert board.read() == answer
        assert board.status() & 4

    def test_the_configuration_byte(self, board: Board) -> None:
        board.command(0x60, 0x65)
        board.command(0x20)
        assert board.read() == 0x65
        board.command(0xAD)
        board.command(0xA7)
        board.command(0x20)
        assert board.read() == 0x75
        board.command(0xAE)
        board.command(0xA8)
        board.command(0x20)
        assert board.read() == 0x45

    def test_its_memory(self, board: Board) -> None:
        board.command(0x7F, 0xA5)
        board.command(0x3F)
        assert board.read() == 0xA5

    def test_a20_and_reset_are_pins_of_the_output_port(self, board: Board) -> None:
        board.command(0xD1, 0xDD)
        board.command(0xD1, 0xDF)
        board.command(0xDD)
        board.command(0xDF)
        assert board.log == [False, True, False, True]
        board.command(0xD0)
        assert board.read() == 0x03
        board.command(0xFE)
        board.command(0xFF)
        board.command(0xD1, 0x02)
        assert board.log[4:] == ["reset", "reset"]

    def test_written_buffers_look_as_if_the_devices_had_spoken(self, board: Board) -> None:
        board.command(0x60, 0x03)
        board.command(0xD2, 0x1C)
        assert board.irq1.level and not board.irq12.level
        assert board.read() == 0x1C
        board.command(0xD3, 0x2D)
        assert board.status() & 0x21 == 0x21
        assert board.irq12.level and not board.irq1.level
        assert board.read() == 0x2D
        assert not board.irq12.level

    def test_interrupts_follow_the_configuration(self, board: Board) -> None:
        board.command(0x60, 0x00)
        board.keyboard.press("a")
        board.clock.advance(SECOND)
        assert board.status() & 1
        assert not board.irq1.level
        board.command(0x60, 0x01)
        assert board.irq1.level

    def test_a_byte_takes_its_time_and_is_read_twice(self, board: Board) -> None:
        board.keyboard.press("a", "b")
        assert not board.status() & 1
        board.clock.advance(BYTE_TIME)
        assert board.read() == 0x1C
        assert board.read() == 0x1C
        assert not board.status() & 1
        board.clock.advance(2 * BYTE_TIME)
        assert board.read() == 0x32

    def test_a_disabled_port_keeps_its_bytes(self, board: Board) -> None:
        board.command(0xAD)
        board.keyboard.press("a")
        assert board.receive() == []
        board.command(0xAE)
        assert board.receive() == [0x1C, 0xF0, 0x1C]

    def test_speaking_to_a_device_enables_its_port(self, board: Board) -> None:
        board.command(0xAD)
        assert board.ask(0xEE) == [0xEE]
        board.command(0xA7)
        assert board.ask_mouse(0xF4) == [0xFA]

    def test_state_survives(self, board: Board) -> None:
        board.command(0x60, 0x43)
        board.ask_mouse(0xF4)
        board.keyboard.press("ret")
        board.mouse.move(5, 5)
        board.clock.advance(board.clock.now() + BYTE_TIME)
        saved = [device.save_state() for device in self.parts(board)]
        other = Board()
        other.clock.advance(board.clock.now())
        for device, state in zip(self.parts(other), saved, strict=True):
            device.load_state(state)
        assert other.irq1.level
        assert other.receive() == board.receive() == [0x1C, 0x9C, 0x28, 5, 0xFB]

    @staticmethod
    def parts(board: Board) -> tuple[Keyboard, Mouse, KeyboardController]:
        return board.keyboard, board.mouse, board.controller

    @pytest.mark.parametrize(("field", "value"), [("argument_of", 0xFF), ("output", 256)])
    def test_impossible_states_are_refused(self, board: Board, field: str, value: int) -> None:
        saved = board.controller.save_state() | {field: value}
        with pytest.raises(CorruptImageError):
            board.controller.load_state(saved)

    def test_any_sequence_of_accesses_has_an_answer(self, board: Board) -> None:
        source = random.Random(8042)
        for _ in range(20_000):
            action = source.randrange(6)
            if action < 2:
                port = source.choice((0x60, 0x64))
                board.bus.ports.write(port, 1, source.randrange(256))
            elif action == 2:
                assert 0 <= board.read() <= 0xFF
            elif action == 3:
                board.keyboard.key(source.randrange(256), source.random() < 0.5)
            elif action == 4:
                board.mouse.move(source.randrange(-600, 600), source.randrange(-600, 600), 1)
                board.mouse.buttons(source.randrange(32))
            else:
                board.clock.advance(board.clock.now() + BYTE_TIME)


class TestKeyboard:
    def test_set_2_is_what_it_speaks(self, board: Board) -> None:
        board.keyboard.press("shift", "a")
        assert board.receive() == [0x12, 0x1C, 0xF0, 0x1C, 0xF0, 0x12]
        board.keyboard.press("up")
        assert board.receive() == [0xE0, 0x75, 0xE0, 0xF0, 0x75]

    def test_the_controller_translates_to_set_1(self, board: Board) -> None:
        board.command(0x60, 0x41)
        for name, number in KEYS.items():
            if name in {"pause", "print", "sysrq"}:
                continue
            board.keyboard.press(name)
            prefix = [0xE0] if number & 0x80 else []
            code = number & 0x7F
            assert board.receive() == [*prefix, code, *prefix, code | 0x80], name

    def test_set_1_itself(self, board: Board) -> None:
        assert board.ask(0xF0) == [0xFA]
        assert board.ask(0x01) == [0xFA]
        board.keyboard.press("delete")
        assert board.receive() == [0xE0, 0x53, 0xE0, 0xD3]
        assert board.ask(0xF0, 0x00) == [0xFA, 0xFA, 0x01]
        assert board.ask(0xF0, 0x03) == [0xFA, 0xFE]

    def test_pause_and_print_have_their_own_sequences(self, board: Board) -> None:
        board.command(0x60, 0x41)
        board.keyboard.press("pause")
        assert board.receive() == [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]
        board.keyboard.press("print")
        assert board.receive() == [0xE0, 0x2A, 0xE0, 0x37, 0xE0, 0xB7, 0xE0, 0xAA]
        board.keyboard.press("alt", "print")
        assert board.receive() == [0x38, 0x54, 0xD4, 0xB8]
        board.keyboard.press("ctrl", "pause")
        assert board.receive() == [0x1D, 0xE0, 0x46, 0xE0, 0xC6, 0x9D]

    def test_commands(self, board: Board) -> None:
        assert board.ask(0xFF) == [0xFA, 0xAA]
        assert board.ask(0xF2) == [0xFA, 0xAB, 0x83]
        assert board.ask(0xEE) == [0xEE]
        assert board.ask(0xED, 0x07) == [0xFA, 0xFA]
        assert board.keyboard.leds == 7
        assert board.ask(0xF3, 0x20) == [0xFA, 0xFA]
        assert board.ask(0xFE) == [0xFA]
        assert board.ask(0xFD, 0x1C) == [0xFA, 0xFA]
        assert board.ask(0xF1) == [0xFE]

    def test_identity_is_translated_too(self, board: Board) -> None:
        board.command(0x60, 0x41)
        assert board.ask(0xF2) == [0xFA, 0xAB, 0x41]

    def test_a_command_in_place_of_an_argument_is_a_command(self, board: Board) -> None:
        assert board.ask(0xED, 0xF2) == [0xFA, 0xFA, 0xAB, 0x83]

    def test_scanning_can_be_disabled(self, board: Board) -> None:
        assert board.ask(0xF5) == [0xFA]
        board.keyboard.press("a")
        assert board.receive() == []
        assert board.ask(0xF4) == [0xFA]
        board.keyboard.press("a")
        assert board.receive() == [0x1C, 0xF0, 0x1C]

    def test_answers_come_before_keys(self, board: Board) -> None:
        board.keyboard.press("a")
        board.write(0xED)
        assert board.receive() == [0xFA, 0x1C, 0xF0, 0x1C]

    def test_a_full_buffer_says_so_and_loses_the_key(self, board: Board) -> None:
        taken = [board.keyboard.key(KEYS["a"], True) for _ in range(20)]
        assert taken == [True] * 15 + [False] * 5
        assert board.receive() == [0x1C] * 15 + [0x00]
        assert board.keyboard.room() == 16

    def test_every_printable_character_can_be_typed(self) -> None:
        for character in string.printable.replace("\r", "").replace("\x0b", "").replace("\f", ""):
            assert all(key in KEYS for key in keys_for(character)), character
        assert keys_for("A") == ("shift", "a")
        assert keys_for("?") == ("shift", "slash")
        with pytest.raises(KeyError):
            keys_for("é")

    def test_the_translation_is_onto_set_1(self) -> None:
        for code in range(1, 0x59):
            assert SET_2_TO_1[SET_1_TO_2[code]] == code
        assert SET_1_TO_2[KEYS["f7"]] == 0x83


class TestMouse:
    def test_reset_and_identity(self, board: Board) -> None:
        assert board.ask_mouse(0xFF) == [0xFA, 0xAA, 0x00]
        assert board.ask_mouse(0xF2) == [0xFA, 0x00]
        assert board.ask_mouse(0xE9) == [0xFA, 0x00, 2, 100]

    def test_nothing_is_reported_until_enabled(self, board: Board) -> None:
        board.mouse.move(3, 4)
        assert board.receive() == []
        assert board.ask_mouse(0xF4) == [0xFA]
        board.mouse.move(3, -4)
        assert board.receive() == [0x08, 3, 4]
        assert board.irq12.level is False

    def test_signs_and_buttons(self, board: Board) -> None:
        board.ask_mouse(0xF4)
        board.mouse.move(-1, 1)
        assert board.receive() == [0x38, 0xFF, 0xFF]
        board.mouse.buttons(ps2_mouse.LEFT | ps2_mouse.MIDDLE)
        assert board.receive() == [0x0D, 0, 0]
        assert board.ask_mouse(0xE9) == [0xFA, 0x26, 2, 100]

    def test_long_movements_are_several_packets(self, board: Board) -> None:
        board.ask_mouse(0xF4)
        board.mouse.move(600, 0)
        assert board.receive() == [0x08, 255, 0, 0x08, 255, 0, 0x08, 90, 0]

    def test_movements_add_up_while_nobody_reads(self, board: Board) -> None:
        board.ask_mouse(0xF4)
        for _ in range(100):
            board.mouse.move(1, 0)
        packets = board.receive()
        assert sum(packets[1::3]) == 100
        assert len(packets) < 30

    def knock(self, board: Board, *rates: int) -> int:
        for rate in rates:
            board.ask_mouse(0xF3, rate)
        return board.ask_mouse(0xF2)[1]

    def test_the_wheel(self, board: Board) -> None:
        assert self.knock(board, 200, 100, 80) == 3
        board.ask_mouse(0xF4)
        board.mouse.move(0, 0, -1)
        assert board.receive() == [0x08, 0, 0, 0xFF]
        board.mouse.move(0, 0, 10)
        assert board.receive() == [0x08, 0, 0, 7, 0x08, 0, 0, 3]

    def test_five_buttons(self, board: Board) -> None:
        assert self.knock(board, 200, 200, 80) == 4
        board.ask_mouse(0xF4)
        board.mouse.buttons(ps2_mouse.FIFTH)
        assert board.receive() == [0x08, 0, 0, 0x20]
        board.mouse.move(0, 0, -1)
        assert board.receive() == [0x08, 0, 0, 0x2F]

    def test_a_wheel_that_was_not_asked_for_is_not_told(self, board: Board) -> None:
        board.ask_mouse(0xF4)
        board.mouse.move(0, 0, 1)
        assert board.receive() == []

    def test_remote_mode_is_read_on_request(self, board: Board) -> None:
        assert board.ask_mouse(0xF0, 0xF4) == [0xFA, 0xFA]
        board.mouse.move(7, 0)
        assert board.receive() == []
        assert board.ask_mouse(0xEB) == [0xFA, 0x08, 7, 0]

    def test_wrap_mode_echoes(self, board: Board) -> None:
        assert board.ask_mouse(0xEE, 0xF4, 0x55, 0xEC) == [0xFA, 0xF4, 0x55, 0xFA]
        assert board.ask_mouse(0x55) == [0xFE]

    def test_scaling(self, board: Board) -> None:
        board.ask_mouse(0xF4, 0xE7)
        for moved, told in ((1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12)):
            board.mouse.move(moved, 0)
            assert board.receive() == [0x08, told, 0]
        board.ask_mouse(0xE6)
        board.mouse.move(4, 0)
        assert board.receive() == [0x08, 4, 0]

    def test_a_command_ends_the_packet_being_sent(self, board: Board) -> None:
        board.ask_mouse(0xF4)
        board.mouse.move(1, 1)
        board.clock.advance(board.clock.now() + BYTE_TIME)
        board.read()
        assert board.ask_mouse(0xF5) == [0xFA]

    def test_resolution_and_rate_are_kept(self, board: Board) -> None:
        board.ask_mouse(0xE8, 3, 0xF3, 40)
        assert board.ask_mouse(0xE9) == [0xFA, 0, 3, 40]
        board.ask_mouse(0xF6)
        assert board.ask_mouse(0xE9) == [0xFA, 0, 2, 100]

    def test_an_impossible_identity_is_refused(self, board: Board) -> None:
        with pytest.raises(CorruptImageError):
            board.mouse.load_state(board.mouse.save_state() | {"identity": 7})
