"""A text screen as escape sequences of a terminal (ECMA-48), only what has changed.

Colours are the terminal's own 16 while the guest's palette is the usual one, so that they fit its
theme; other palettes are sent as 24-bit colours.  A terminal smaller than the screen shows the
part with the cursor; a larger one has the screen in its upper left corner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.display.base import VGA_PALETTE, Cursor, TextFrame

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTROL = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CP437 = (
    _CONTROL + bytes(range(0x20, 0x7F)).decode() + "⌂" + bytes(range(0x80, 0xFF)).decode("cp437")
) + " "
"""What each byte of a text screen looks like (code page 437, its control characters too)."""

_ANSI_ORDER = (0, 4, 2, 6, 1, 5, 3, 7)
"""VGA counts blue, green, red; ECMA-48 red, green, blue."""
_HOME_AND_CLEAR = "\x1b[0m\x1b[H\x1b[2J"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"

View = tuple[int, int]
"""(columns, rows) of a terminal."""


def rendition(attribute: int, palette: Sequence[int], blinking: bool) -> str:
    """The SGR sequence of a VGA attribute."""
    foreground, background = attribute & 15, attribute >> 4
    blink = ""
    if blinking:
        blink = ";5" if background & 8 else ""
        background &= 7
    if tuple(palette) == VGA_PALETTE:
        front = (90 if foreground & 8 else 30) + _ANSI_ORDER[foreground & 7]
        back = (100 if background & 8 else 40) + _ANSI_ORDER[background & 7]
        return f"\x1b[0;{front};{back}{blink}m"
    front_colour, back_colour = _rgb(palette[foreground]), _rgb(palette[background])
    return f"\x1b[0;38;2;{front_colour};48;2;{back_colour}{blink}m"


def _rgb(colour: int) -> str:
    return f"{colour >> 16 & 0xFF};{colour >> 8 & 0xFF};{colour & 0xFF}"


def message_frame(lines: Sequence[str], view: View) -> TextFrame:
    """A text screen that shows lines in the middle of a terminal."""
    columns, rows = view
    cells = bytearray(b" \x07" * (columns * rows))
    top = max((rows - len(lines)) // 2, 0)
    for row, line in enumerate(lines[: rows - top], top):
        text = line[:columns].encode("cp437", "replace")
        start = row * columns + (columns - len(text)) // 2
        for index, character in enumerate(text):
            cells[2 * (start + index)] = character
    return TextFrame(columns, rows, bytes(cells))


class TerminalPainter:
    """Knows what a terminal shows, and what to send so that it shows something else."""

    def __init__(self) -> None:
        self._last: TextFrame | None = None
        self._view: View = (0, 0)
        self._offset = (0, 0)

    def forget(self) -> None:
        """The terminal shows something else now: paint everything next time."""
        self._last = None

    def paint(self, frame: TextFrame, view: View) -> str:
        """What makes the terminal show ``frame``; "" if it does."""
        offset = _offset(frame, view)
        last = self._last
        anew = (
            last is None
            or (view, offset) != (self._view, self._offset)
            or last._replace(cells=b"", cursor=None) != frame._replace(cells=b"", cursor=None)
        )
        cells = self._cells(frame, view, offset, None if anew or last is None else last.cells)
        moved = anew or last is None or last.cursor != frame.cursor
        self._last, self._view, self._offset = frame, view, offset
        if not (cells or moved):
            return ""
        start = _HIDE + (_HOME_AND_CLEAR if anew else "")
        return start + cells + _cursor(frame.cursor, view, offset)

    def _cells(self, frame: TextFrame, view: View, offset: View, old: bytes | None) -> str:
        parts: list[str] = []
        attribute = -1
        stride = frame.columns * 2
        left, top = offset
        width = min(view[0], frame.columns - left) * 2
        for row in range(min(view[1], frame.rows - top)):
            start = (row + top) * stride + left * 2
            line = frame.cells[start : start + width]
            before = None if old is None else old[start : start + width]
            if line == before:
                continue
            position = -1
            for at in range(0, len(line), 2):
                if before is not None and line[at : at + 2] == before[at : at + 2]:
                    continue
                if position != at:
                    parts.append(f"\x1b[{row + 1};{at // 2 + 1}H")
                if line[at + 1] != attribute:
                    attribute = line[at + 1]
                    parts.append(rendition(attribute, frame.palette, frame.blinking))
                parts.append(CP437[line[at]])
                position = at + 2
        return "".join(parts)


def _offset(frame: TextFrame, view: View) -> View:
    """The column and row of the screen that stand in the terminal's corner."""
    cursor = frame.cursor
    column, row = (cursor.column, cursor.row) if cursor else (0, 0)
    left = min(max(column - view[0] + 1, 0), max(frame.columns - view[0], 0))
    top = min(max(row - view[1] + 1, 0), max(frame.rows - view[1], 0))
    return left, top


def _cursor(cursor: Cursor | None, view: View, offset: View) -> str:
    if cursor is None or cursor.start > cursor.end:
        return _HIDE
    column, row = cursor.column - offset[0], cursor.row - offset[1]
    if not (0 <= column < view[0] and 0 <= row < view[1]):
        return _HIDE
    return f"\x1b[{row + 1};{column + 1}H{_SHOW}"
