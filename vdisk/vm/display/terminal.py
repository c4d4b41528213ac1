"""A terminal that is borrowed: raw, without an echo, and given back whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from typing import Self

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
_FALLBACK = os.terminal_size((80, 25))


class Terminal:
    """The terminal at two descriptors, borrowed inside its ``with`` block.

    Everything typed reaches the program as it is, Ctrl-C included.
    """

    def __init__(self, source: int = 0, target: int = 1) -> None:
        if not (os.isatty(source) and os.isatty(target)):
            raise InvalidRequestError("the text display needs a terminal")
        self._source = source
        self._target = target
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        import termios
        import tty

        self._saved = termios.tcgetattr(self._source)
        atexit.register(self.give_back)
        tty.setraw(self._source, termios.TCSANOW)
        self.write(_ENTER)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """As it was; may be called again."""
        import termios

        saved, self._saved = self._saved, None
        if saved is None:
            return
        atexit.unregister(self.give_back)
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.write(_LEAVE)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._source, termios.TCSANOW, saved)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            size = os.get_terminal_size(self._target)
        except OSError:
            size = _FALLBACK
        return size.columns or _FALLBACK.columns, size.lines or _FALLBACK.lines

    def write(self, text: str) -> None:
        """Send all of it."""
        data = memoryview(text.encode("utf-8"))
        while data:
            try:
                data = data[os.write(self._target, data) :]
            except BlockingIOError:  # somebody else has made it non-blocking
                select.select([], [self._target], [])

    def read(self, seconds: float, wake: int) -> bytes | None:
        """What was typed; b"" after so long or when ``wake`` can be read; None at the end."""
        readable, _, _ = select.select([self._source, wake], [], [], seconds)
        if self._source not in readable:
            return b""
        try:
            return os.read(self._source, 4096) or None
        except BlockingIOError:
            return b""
        except OSError:  # EIO: the terminal was closed
            return None
