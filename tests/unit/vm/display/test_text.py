"""The text display, seen through a terminal emulator (pyte), and on a terminal of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from typing import TYPE_CHECKING

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.fake_machine import FakeMachine, pattern
from tests.tools.patience import PATIENCE, eventually
from vdisk.errors import InvalidRequestError
from vdisk.vm.display.ansi import CP437, TerminalPainter, message_frame
from vdisk.vm.display.base import Cursor, TextFrame
from vdisk.vm.display.terminal import Terminal
from vdisk.vm.display.terminal_keys import Chord, TerminalKeys
from vdisk.vm.display.text import TextDisplay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def text_frame(
    lines: list[str], columns: int = 20, attribute: int = 7, cursor: Cursor | None = None
) -> TextFrame:
    cells = bytearray()
    for line in lines:
        for character in line.ljust(columns):
            cells += bytes([CP437.index(character), attribute])
    return TextFrame(columns, len(lines), bytes(cells), cursor)


class Emulator:
    """A terminal that is painted on."""

    def __init__(self, columns: int = 20, rows: int = 4) -> None:
        self.view = (columns, rows)
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self.screen)
        self._painter = TerminalPainter()

    def paint(self, frame: TextFrame) -> str:
        sent = self._painter.paint(frame, self.view)
        self._stream.feed(sent)
        return sent


def test_all_of_code_page_437() -> None:
    assert len(CP437) == 256
    assert CP437[:4] == " ☺☻♥"
    assert CP437[0x41] == "A"
    assert (CP437[0xDB], CP437[0xC9]) == ("█", "╔")


def test_text_and_cursor() -> None:
    terminal = Emulator()
    frame = text_frame(["hello", "", "wörld ╔", ""], cursor=Cursor(3, 2))
    terminal.paint(frame)
    assert [line.rstrip() for line in terminal.screen.display] == ["hello", "", "wörld ╔", ""]
    assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (3, 2)
    assert not terminal.screen.cursor.hidden
    assert terminal.paint(frame) == ""
    terminal.paint(frame._replace(cursor=Cursor(3, 2, 1, 0)))  # start below end: it is off
    assert terminal.screen.cursor.hidden


def test_colours() -> None:
    terminal = Emulator()
    terminal.paint(text_frame(["x"], attribute=0x1E))
    cell = terminal.screen.buffer[0][0]
    assert (cell.fg, cell.bg) == ("brightbrown", "blue")
    terminal.paint(text_frame(["x"], attribute=0x9E))
    assert terminal.screen.buffer[0][0].blink
    terminal.paint(text_frame(["x"], attribute=0x9E)._replace(blinking=False))
    assert terminal.screen.buffer[0][0].bg == "brightblue"
    palette = [0x123456] * 16
    terminal.paint(text_frame(["x"])._replace(palette=palette))
    assert terminal.screen.buffer[0][0].fg == "123456"


CELLS = st.lists(st.sampled_from(" aZ█"), min_size=24, max_size=24)


@given(st.lists(st.tuples(CELLS, st.integers(0, 255), st.integers(0, 11)), max_size=4))
def test_only_changes_are_sent_and_they_are_enough(
    pictures: list[tuple[list[str], int, int]],
) -> None:
    terminal = Emulator(12, 2)
    for characters, attribute, column in pictures:
        lines = ["".join(characters[:12]), "".join(characters[12:])]
        frame = text_frame(lines, 12, attribute, Cursor(column, 1))
        terminal.paint(frame)
        fresh = Emulator(12, 2)
        fresh.paint(frame)
        assert terminal.screen.display == fresh.screen.display == lines
        assert terminal.screen.buffer == fresh.screen.buffer
        assert terminal.screen.cursor.x == column


def test_one_changed_cell_is_few_bytes() -> None:
    terminal = Emulator(80, 25)
    terminal.paint(text_frame(["x" * 80] * 25, 80))
    assert len(terminal.paint(text_frame(["x" * 80] * 24 + ["y" + "x" * 79], 80))) < 50


def test_a_small_terminal_shows_where_the_cursor_is() -> None:
    terminal = Emulator(5, 2)
    lines = [f"{row}23456789" for row in range(4)]
    terminal.paint(text_frame(lines, 9, cursor=Cursor(7, 3)))
    assert terminal.screen.display == ["45678", "45678"]
    terminal.paint(text_frame(lines, 9, cursor=Cursor(0, 0)))
    assert terminal.screen.display == ["02345", "12345"]


def test_a_message_stands_in_the_middle() -> None:
    terminal = Emulator(20, 3)
    terminal.paint(message_frame(["640 x 480"], (20, 3)))
    assert terminal.screen.display[1] == "     640 x 480      "


@pytest.mark.parametrize(
    ("typed", "chords"),
    [
        (b"aZ!", [("a",), ("shift", "z"), ("shift", "1")]),
        (b"\r\t\x7f", [("ret",), ("tab",), ("backspace",)]),
        (b"\x01\x03\x1a\x00", [("ctrl", "a"), ("ctrl", "c"), ("ctrl", "z"), ("ctrl", "spc")]),
        (b"\x1bx\x1b2\x1bX", [("alt", "x"), ("alt", "2"), ("alt", "shift", "x")]),
        (b"\x1b[A\x1bOB\x1b[5~\x1b[24~", [("up",), ("down",), ("pgup",), ("f12",)]),
        (b"\x1b[1;5C\x1b[3;2~\x1b[Z", [("ctrl", "right"), ("shift", "delete"), ("shift", "tab")]),
        (b"\x1bOP\x1b[11~", [("f1",), ("f1",)]),
        ("ö€a".encode(), [("a",)]),
        (b"\x1b[99x\x1b[M", [("kp_enter",)]),
        (b"\x1d", [("ctrl", "bracket_right")]),
    ],
)
def test_keys(typed: bytes, chords: list[tuple[str, ...]]) -> None:
    wanted = [Chord(keys) for keys in chords]
    assert TerminalKeys().receive(typed) == wanted
    machine = TerminalKeys()
    found = [chord for byte in typed for chord in machine.receive(bytes([byte]))]
    assert found == wanted


def test_escape_is_a_key_when_nothing_follows() -> None:
    machine = TerminalKeys()
    assert machine.receive(b"\x1b") == []
    assert machine.waiting
    assert machine.flush() == [Chord(("esc",))]
    assert not machine.waiting


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    machine = TerminalKeys()
    machine.receive(data)
    assert len(machine._buffer) <= 32
    machine.flush()
    assert not machine.waiting


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: that of the emulator, that of the program."""
    outer, inner = pty.openpty()
    yield outer, inner
    os.close(outer)
    os.close(inner)


def read_until(outer: int, condition: Callable[[bytes], bool]) -> bytes:
    seen = b""
    while not condition(seen):
        assert select.select([outer], [], [], PATIENCE)[0], seen
        seen += os.read(outer, 65536)
    return seen


def test_a_display_on_a_terminal(terminal: tuple[int, int]) -> None:
    outer, inner = terminal
    before = termios.tcgetattr(inner)
    machine = FakeMachine()
    machine.screen.write(text_frame(["login:"], cursor=Cursor(7, 0)))
    display = TextDisplay(machine, inner, inner)
    thread = threading.Thread(target=display.run)
    thread.start()
    try:
        read_until(outer, lambda seen: b"login:" in seen)
        assert termios.tcgetattr(inner) != before
        os.write(outer, b"ab\x03\x1b[A\x1b")
        eventually(lambda: "esc" in machine.input.typed())
        assert machine.input.typed() == ["a", "b", "ctrl", "c", "up", "esc"]
        machine.screen.show(pattern(64, 48))
        machine.screen.characters = None
        machine.screen.show(pattern(64, 48))
        read_until(outer, lambda seen: b"64 x 48 Graphic mode" in seen)
    finally:
        display.close()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert termios.tcgetattr(inner) == before
    assert read_until(outer, lambda seen: b"\x1b[?1049l" in seen)


def test_without_a_terminal() -> None:
    with open(os.devnull) as file, pytest.raises(InvalidRequestError, match="terminal"):
        Terminal(file.fileno(), file.fileno())


PROGRAM = """
import signal, sys, threading
from tests.tools.fake_machine import FakeMachine
from tests.unit.vm.display.test_text import text_frame
from vdisk.vm.display.text import TextDisplay

machine = FakeMachine()
machine.screen.write(text_frame(["guest"]))
display = TextDisplay(machine)
machine.quit = display.close
how = sys.argv[1]
if how == "error":
    machine.screen.generation = lambda: 1 / 0
elif how == "exit":
    signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=display.close).start())
display.run()
print("calls", machine.calls, flush=True)
"""


@pytest.mark.parametrize("how", ["exit", "error", "SIGINT", "monitor"])
def test_the_terminal_is_given_back(terminal: tuple[int, int], how: str) -> None:
    outer, inner = terminal
    before = termios.tcgetattr(inner)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], stdin=inner, stdout=inner, stderr=inner
    ) as process:
        if how != "error":
            read_until(outer, lambda seen: b"guest" in seen)
        if how == "SIGINT":
            process.send_signal(signal.SIGINT)
        elif how == "exit":
            process.send_signal(signal.SIGUSR1)
        elif how == "monitor":
            os.write(outer, b"\x1b2")
            seen = read_until(outer, lambda seen: b"(vdisk) " in seen)
            assert b"\x1b[?1049l" in seen
            os.write(outer, b"info status\n\x04")
            seen = read_until(outer, lambda seen: b"guest" in seen)
            assert b"VM status: running" in seen
            os.write(outer, b"\x1d")
            read_until(outer, lambda seen: b"(vdisk) " in seen)
            os.write(outer, b"quit\n")
            read_until(outer, lambda seen: b"calls" in seen)
        else:
            read_until(outer, lambda seen: b"\x1b[?1049l" in seen)
        assert process.wait(PATIENCE) == {"exit": 0, "monitor": 0}.get(how, process.returncode)
    assert termios.tcgetattr(inner) == before
