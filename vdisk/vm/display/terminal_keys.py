"""What a terminal sends when keys are pressed, and which keys those were.

A terminal sends characters, not keys: control characters for Ctrl with a letter, ESC before what
Alt was held with, and sequences of ECMA-48 (as xterm has them) for the rest::

    CSI [1;M] A            an arrow (A-D), Home (H), End (F), F1-F4 (P-S); SS3 for CSI: the same
    CSI N [;M] ~           2 insert, 3 delete, 5 page up, 6 page down, 15-24 F5-F12
    CSI Z                  Shift with Tab                M - 1: 1 Shift, 2 Alt, 4 Ctrl

ESC alone is the Escape key if nothing follows at once: the caller says so by :meth:`flush`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vdisk.vm.devices.keycodes import keys_for

ESCAPE = 0x1B
LONGEST_SEQUENCE = 32
"""Bytes of a sequence that is waited for: the longest known has 8."""

_SEQUENCE = re.compile(rb"\x1b(?:\[([0-9;]*)([A-Za-z~])|O([A-Za-z]))")
_BEGINNING = re.compile(rb"\x1b(?:\[[0-9;?]*|O)?\Z")
_LETTER_KEYS = "up down right left home end f1 f2 f3 f4 kp_enter"
_LETTERS = dict(zip("ABCDHFPQRSM", _LETTER_KEYS.split(), strict=True))
_NUMBER_KEYS = """
    home insert delete end pgup pgdn home end . . f1 f2 f3 f4 f5 . f6 f7 f8 f9 f10 . f11 f12
"""
_NUMBERS = {n: name for n, name in enumerate(_NUMBER_KEYS.split(), 1) if name != "."}
_CONTROLS = {0x0D: "ret", 0x0A: "ret", 0x09: "tab", 0x7F: "backspace", 0x08: "backspace"}
_CONTROL_CHARACTERS = {0: " ", 0x1C: "\\", 0x1D: "]", 0x1E: "6", 0x1F: "-"}
_MODIFIERS = ((1, "shift"), (2, "alt"), (4, "ctrl"))


class Chord(NamedTuple):
    """Keys held together, modifiers first: QEMU's names."""

    keys: tuple[str, ...]


class TerminalKeys:
    """Bytes in, chords out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether a sequence has begun, or Escape was pressed."""
        return bool(self._buffer)

    def receive(self, data: bytes) -> list[Chord]:
        """What was pressed."""
        self._buffer += data
        return self._take(final=False)

    def flush(self) -> list[Chord]:
        """Nothing has followed for a while: what is there is all."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> list[Chord]:
        chords: list[Chord] = []
        while self._buffer:
            waits = not final and len(self._buffer) < LONGEST_SEQUENCE
            if waits and (_BEGINNING.match(self._buffer) or self._is_cut_character()):
                break
            chord, length = self._next()
            del self._buffer[:length]
            if chord:
                chords.append(Chord(chord))
        return chords

    def _is_cut_character(self) -> bool:
        """Whether the buffer is the beginning of a character of UTF-8."""
        first = self._buffer[0]
        needed = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        return len(self._buffer) < needed

    def _next(self) -> tuple[tuple[str, ...], int]:
        """Keys, and how many bytes they took."""
        found = _SEQUENCE.match(self._buffer)
        if found is not None:
            return _sequence(found), found.end()
        if self._buffer[0] == ESCAPE:
            if len(self._buffer) == 1:
                return ("esc",), 1
            keys, length = _character(bytes(self._buffer[1:]))
            return (("alt", *keys) if keys else ()), 1 + length
        return _character(bytes(self._buffer))


def _sequence(found: re.Match[bytes]) -> tuple[str, ...]:
    parameters, final, single = found.groups()
    if single is not None:
        key = _LETTERS.get(single.decode())
        return (key,) if key else ()
    numbers = [int(part[:4]) if part else 1 for part in parameters.split(b";")]
    letter = final.decode()
    if letter == "Z":
        return ("shift", "tab")
    key = _NUMBERS.get(numbers[0]) if letter == "~" else _LETTERS.get(letter)
    if key is None:
        return ()
    held = numbers[1] - 1 if len(numbers) > 1 else 0
    return (*(name for bit, name in _MODIFIERS if held & bit), key)


def _character(data: bytes) -> tuple[tuple[str, ...], int]:
    first = data[0]
    if first in _CONTROLS:
        return (_CONTROLS[first],), 1
    if first == ESCAPE:
        return ("esc",), 1
    if first < 0x20:
        character = _CONTROL_CHARACTERS.get(first, chr(first + 0x60))
        return ("ctrl", *keys_for(character)), 1
    if first < 0x7F:
        return keys_for(chr(first)), 1
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    return (), min(length if first >= 0xC0 else 1, len(data))  # not on this keyboard
