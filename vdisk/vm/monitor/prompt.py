"""The human monitor on a terminal: ``--monitor stdio``."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from vdisk import __version__
from vdisk.vm.monitor import hmp
from vdisk.vm.monitor.control import RunState

if TYPE_CHECKING:
    from vdisk.vm.monitor.control import MachineControl

PROMPT = "(vdisk) "
GREETING = f"vdisk {__version__} monitor - type 'help' for more information\n"


class Prompt:
    """Asks for lines and carries them out, with line editing where it is a terminal.

    ``escape``: Ctrl-A C ends it and Ctrl-A X the machine, as they do on a serial line.
    """

    def __init__(
        self,
        machine: MachineControl,
        source: TextIO | None = None,
        target: TextIO | None = None,
        *,
        escape: bool = False,
    ) -> None:
        self._machine = machine
        self._source = source or sys.stdin
        self._target = target or sys.stdout
        self._editing = self._source is sys.stdin and self._source.isatty()
        self._escape = escape
        self._session = hmp.Session(machine)
        self._lock = threading.Lock()
        self._stopped = False
        self._asking: int | None = None

    def run(self) -> None:
        """Go on until the input ends, the person ends the machine, or somebody calls :meth:`stop`;
        in the main thread if stopping has to interrupt it."""
        with self._lock:
            if self._stopped:
                return
            self._asking = threading.get_ident()
        try:
            try:
                self._converse()
            finally:
                with self._lock:
                    self._asking = None
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt or not self._stopped:
                raise

    def stop(self) -> None:
        """From another thread: let :meth:`run` return, though a person may be asked for a line."""
        with self._lock:
            self._stopped = True
            if self._asking is not None:
                signal.pthread_kill(self._asking, signal.SIGINT)

    def _converse(self) -> None:
        self._say(GREETING)
        if self._editing:
            _edit_lines(escape=self._escape)
        while (line := self._line()) is not None:
            self._say(self._session.execute(line))
            if is_end(line):
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


def is_end(line: str) -> bool:
    """Whether a line ends the machine, and with it the prompt."""
    return line.split()[:1] in (["quit"], ["q"])


def _edit_lines(*, escape: bool) -> None:
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
    for key, keys in (("c", r"\C-d"), ("x", r"quit\C-m")) if escape else ():
        for letter in (key, key.upper()):
            readline.parse_and_bind(rf'"\C-a{letter}": "\C-a\C-k{keys}"')
