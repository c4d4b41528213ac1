"""The screen in the terminal: ``--display text``, for text modes and without a window.

The keys go to the guest, Ctrl-C too.  Two are kept, as in QEMU's ``-display curses``:

=================  ==============================================================================
Alt-2, Ctrl-]      the monitor: commands as of :mod:`vdisk.vm.monitor.hmp`; Ctrl-D goes back
Alt-1              the screen (it is there already)
=================  ==============================================================================

A graphics mode cannot be shown as characters, and its size is shown instead.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from vdisk.vm.display.ansi import TerminalPainter, message_frame
from vdisk.vm.display.changes import REFRESH
from vdisk.vm.display.terminal import Terminal
from vdisk.vm.display.terminal_keys import Chord, TerminalKeys
from vdisk.vm.monitor.prompt import Prompt

if TYPE_CHECKING:
    from vdisk.vm.display.base import TextFrame
    from vdisk.vm.monitor.control import MachineControl

_MONITOR = (Chord(("alt", "2")), Chord(("ctrl", "bracket_right")))
_SCREEN = Chord(("alt", "1"))


class TextDisplay:
    """Shows a machine in the terminal until :meth:`close`, or until somebody ends the machine."""

    def __init__(self, machine: MachineControl, source: int = 0, target: int = 1) -> None:
        self._machine = machine
        self._terminal = Terminal(source, target)
        self._painter = TerminalPainter()
        self._keys = TerminalKeys()
        self._wake_read, self._wake_write = os.pipe()
        self._ended = threading.Event()
        self._closing = threading.Lock()
        self._prompt: Prompt | None = None
        self._generation: int | None = None
        self._view = (0, 0)

    def close(self) -> None:
        """From any thread: give the terminal back, and let :meth:`run` return."""
        self._ended.set()
        with self._closing:
            if self._wake_write >= 0:
                os.write(self._wake_write, b"\0")
            if self._prompt is not None:
                self._prompt.stop()

    def run(self) -> None:
        """Show and type until the end; in the thread that waits for the machine."""
        try:
            while not self._ended.is_set() and self._on_screen():
                self._at_monitor()
        finally:
            self._ended.set()
            self._terminal.give_back()
            with self._closing:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_read = self._wake_write = -1

    def _on_screen(self) -> bool:
        """Show the screen; True when the monitor was asked for."""
        self._painter.forget()
        self._generation = None
        with self._terminal as terminal:
            while not self._ended.is_set():
                self._paint()
                typed = terminal.read(REFRESH, self._wake_read)
                if typed is None:  # the terminal has gone: the machine goes on without
                    return False
                # Nothing came for the time of a picture: an Escape was no beginning of a sequence.
                chords = self._keys.receive(typed) if typed else self._keys.flush()
                if self._press(chords):
                    return True
        return False

    def _at_monitor(self) -> None:
        with self._closing:
            if self._ended.is_set():
                return
            self._prompt = Prompt(self._machine)
        try:
            self._prompt.run()
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM, for one
                raise
        finally:
            self._prompt = None

    def _press(self, chords: list[Chord]) -> bool:
        """Type for the guest; True if the monitor was asked for."""
        for chord in chords:
            if chord in _MONITOR:
                return True
            if chord == _SCREEN:
                continue
            for key in chord.keys:
                self._machine.input.key(key, True)
            for key in reversed(chord.keys):
                self._machine.input.key(key, False)
        return False

    def _paint(self) -> None:
        screen, view = self._machine.screen, self._terminal.size
        generation = screen.generation()
        if (generation, view) == (self._generation, self._view):
            return
        self._generation, self._view = generation, view
        painted = self._painter.paint(screen.text() or self._graphics(view), view)
        if painted:
            self._terminal.write(painted)

    def _graphics(self, view: tuple[int, int]) -> TextFrame:
        frame = self._machine.screen.frame()
        return message_frame([f"{frame.width} x {frame.height} Graphic mode"], view)
