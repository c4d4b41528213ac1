"""The human monitor on a terminal: ``--monitor stdio``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from vdisk import __version__
from vdisk.vm.monitor import hmp
from vdisk.vm.monitor.control import RunState

if TYPE_CHECKING:
    from vdisk.vm.monitor.control import MachineControl

PROMPT = "(vdisk) "
_ENDED = ("quit", "q")


class Prompt:
    """Asks for lines and carries them out, with line editing where it is a terminal."""

    def __init__(
        self, machine: MachineControl, source: TextIO | None = None, target: TextIO | None = None
    ) -> None:
        self._machine = machine
        self._source = source or sys.stdin
        self._target = target or sys.stdout
        self._editing = self._source is sys.stdin and self._source.isatty()

    def run(self) -> None:
        """Go on until the input ends or the person ends the machine; for a thread of its own."""
        self._say(f"vdisk {__version__} monitor - type 'help' for more information\n")
        if self._editing:
            _edit_lines()
        while (line := self._line()) is not None:
            self._say(hmp.execute(self._machine, line))
            if line.split()[:1] and line.split()[0] in _ENDED:
                return
            if self._machine.status() is RunState.INTERNAL_ERROR:
                self._say("the machine cannot go on: see its messages\n")

    def _line(self) -> str | None:
        """A line, None at the end."""
        if self._editing:
            try:
                return input(PROMPT)
            except EOFError:
                return None
        self._say(PROMPT)
        line = self._source.readline()
        return line if line else None

    def _say(self, text: str) -> None:
        self._target.write(text)
        self._target.flush()


def _edit_lines() -> None:
    """History and completion, where Python has readline."""
    try:
        import readline
    except ImportError:
        return

    def complete(_text: str, state: int) -> str | None:
        found = hmp.completions(readline.get_line_buffer()[: readline.get_endidx()])
        return found[state] + " " if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
