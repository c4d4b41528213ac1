"""The keys of a PC keyboard, by the names that displays and monitors know them by.

:mod:`vdisk.vm.devices.keycodes` has their QMP names and numbers.  Here are the rest: the
``KeyboardEvent.code`` of a browser (W3C UI Events), and the X11 keysyms that RFB sends.

A keysym says what was typed, not on which key: :class:`KeysymKeyboard` finds the key, and holds or
releases Shift around it where the client's keyboard has the character on another level.
"""

from __future__ import annotations

import contextlib
import string
from typing import NamedTuple

from vdisk.vm.devices.keycodes import KEYS as NUMBERS
from vdisk.vm.devices.keycodes import keys_for


class Key(NamedTuple):
    """A row of the table; ``keysyms`` besides those of the characters it types."""

    qcode: str
    code: str
    keysyms: tuple[int, ...] = ()


def _keypad() -> list[Key]:
    """The digits, each with the keysym it gives while num lock is off."""
    off = (0xFF9E, 0xFF9C, 0xFF99, 0xFF9B, 0xFF96, 0xFF9D, 0xFF98, 0xFF95, 0xFF97, 0xFF9A)
    return [Key(f"kp_{n}", f"Numpad{n}", (0xFFB0 + n, sym)) for n, sym in enumerate(off)]


KEYS = (
    *(Key(letter, f"Key{letter.upper()}") for letter in string.ascii_lowercase),
    *(Key(digit, f"Digit{digit}") for digit in string.digits),
    *(Key(f"f{n}", f"F{n}", (0xFFBD + n,)) for n in range(1, 13)),
    *_keypad(),
    Key("minus", "Minus"),
    Key("equal", "Equal"),
    Key("bracket_left", "BracketLeft"),
    Key("bracket_right", "BracketRight"),
    Key("semicolon", "Semicolon"),
    Key("apostrophe", "Quote"),
    Key("grave_accent", "Backquote"),
    Key("backslash", "Backslash"),
    Key("comma", "Comma"),
    Key("dot", "Period"),
    Key("slash", "Slash"),
    Key("spc", "Space"),
    Key("esc", "Escape", (0xFF1B,)),
    Key("backspace", "Backspace", (0xFF08,)),
    Key("tab", "Tab", (0xFF09, 0xFE20)),
    Key("ret", "Enter", (0xFF0D, 0xFF0A)),
    Key("ctrl", "ControlLeft", (0xFFE3,)),
    Key("shift", "ShiftLeft", (0xFFE1,)),
    Key("shift_r", "ShiftRight", (0xFFE2,)),
    Key("alt", "AltLeft", (0xFFE9, 0xFFE7)),
    Key("caps_lock", "CapsLock", (0xFFE5,)),
    Key("num_lock", "NumLock", (0xFF7F,)),
    Key("scroll_lock", "ScrollLock", (0xFF14,)),
    Key("kp_multiply", "NumpadMultiply", (0xFFAA,)),
    Key("kp_subtract", "NumpadSubtract", (0xFFAD,)),
    Key("kp_add", "NumpadAdd", (0xFFAB,)),
    Key("kp_decimal", "NumpadDecimal", (0xFFAE, 0xFF9F, 0xFFAC)),
    Key("kp_enter", "NumpadEnter", (0xFF8D,)),
    Key("kp_divide", "NumpadDivide", (0xFFAF,)),
    Key("kp_equals", "NumpadEqual", (0xFFBD,)),
    Key("kp_comma", "NumpadComma"),
    Key("less", "IntlBackslash"),
    Key("ro", "IntlRo"),
    Key("yen", "IntlYen", (0xA5,)),
    Key("henkan", "Convert", (0xFF23,)),
    Key("muhenkan", "NonConvert", (0xFF22,)),
    Key("katakanahiragana", "KanaMode", (0xFF27,)),
    Key("ctrl_r", "ControlRight", (0xFFE4,)),
    Key("alt_r", "AltRight", (0xFFEA, 0xFFE8, 0xFE03, 0xFF7E)),
    Key("print", "PrintScreen", (0xFF61, 0xFF15)),
    Key("pause", "Pause", (0xFF13, 0xFF6B)),
    Key("home", "Home", (0xFF50,)),
    Key("up", "ArrowUp", (0xFF52,)),
    Key("pgup", "PageUp", (0xFF55,)),
    Key("left", "ArrowLeft", (0xFF51,)),
    Key("right", "ArrowRight", (0xFF53,)),
    Key("end", "End", (0xFF57,)),
    Key("down", "ArrowDown", (0xFF54,)),
    Key("pgdn", "PageDown", (0xFF56,)),
    Key("insert", "Insert", (0xFF63,)),
    Key("delete", "Delete", (0xFFFF,)),
    Key("meta_l", "MetaLeft", (0xFFEB,)),
    Key("meta_r", "MetaRight", (0xFFEC,)),
    Key("menu", "ContextMenu", (0xFF67,)),
    Key("power", "Power"),
    Key("sleep", "Sleep"),
    Key("wake", "WakeUp"),
    Key("audiomute", "AudioVolumeMute"),
    Key("volumedown", "AudioVolumeDown"),
    Key("volumeup", "AudioVolumeUp"),
)

BY_NUMBER = {number: name for name, number in reversed(NUMBERS.items())}
"""The name of a key by its number, which RFB's extended key event carries."""
BY_BROWSER_CODE = {key.code: key.qcode for key in KEYS}

_BY_KEYSYM = {keysym: key.qcode for key in KEYS for keysym in key.keysyms}
_SHIFTS = ("shift", "shift_r")
_UNICODE = 0x0100_0000
"""Keysyms from here on are Unicode characters; those below 256 are Latin-1."""
_CAPS_LOCK = 4


def find_qcode(name: str) -> str | None:
    """The key called ``name``, or with the number ``0x1c``; None if there is no such key."""
    if name.startswith("0x"):
        with contextlib.suppress(ValueError):
            return BY_NUMBER.get(int(name, 16))
        return None
    return name if name in NUMBERS else None


class KeysymKeyboard:
    """Turns the keysyms of one client into keys: a list of (qcode, down) for each."""

    def __init__(self) -> None:
        self._down: dict[int, str] = {}
        self._shifts: set[str] = set()

    def key(self, keysym: int, down: bool, leds: int = 0) -> list[tuple[str, bool]]:
        """What to press and release; nothing for keysyms that the keyboard cannot type."""
        if not down:
            qcode = self._down.pop(keysym, None)
            if qcode in _SHIFTS:
                self._shifts.discard(qcode)
            return [(qcode, False)] if qcode else []
        character = _character(keysym)
        typed = keys_for(character) if character else ()
        qcode = typed[-1] if typed else _BY_KEYSYM.get(keysym)
        if qcode is None:
            return []
        self._down[keysym] = qcode
        if not character:
            if qcode in _SHIFTS:
                self._shifts.add(qcode)
            return [(qcode, True)]
        return self._with_shift(
            qcode, (len(typed) > 1) != (character.isalpha() and bool(leds & _CAPS_LOCK))
        )

    def _with_shift(self, qcode: str, wanted: bool) -> list[tuple[str, bool]]:
        """Press a key on its level, whatever the client holds."""
        if wanted == bool(self._shifts) or qcode == "spc":
            return [(qcode, True)]
        shifts = ["shift"] if wanted else sorted(self._shifts)
        before = [(shift, wanted) for shift in shifts]
        return [*before, (qcode, True), *((shift, not wanted) for shift in shifts)]

    def release_all(self) -> list[tuple[str, bool]]:
        """Let go of everything: the client has left."""
        held = list(dict.fromkeys(self._down.values()))
        self._down.clear()
        self._shifts.clear()
        return [(qcode, False) for qcode in held]


def _character(keysym: int) -> str | None:
    if 0x20 <= keysym < 0x7F:
        return chr(keysym)
    if _UNICODE + 0x20 <= keysym < _UNICODE + 0x7F:
        return chr(keysym - _UNICODE)
    return None
