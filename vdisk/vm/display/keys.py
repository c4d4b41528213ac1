"""The keys of a PC keyboard, by all the names that displays and monitors know them by.

One table: the name that QEMU gives a key (``QKeyCode`` in qapi/ui.json); its number, which is the
make code of scan code set 1 (for keys whose code has an E0 prefix with bit 7 set: what RFB's
extended key event carries); its ``KeyboardEvent.code`` in a browser (W3C UI Events); the X11
keysyms that RFB sends; and the characters it types on the US layout, alone and with Shift.

A keysym says what was typed, not on which key: :class:`KeysymKeyboard` finds the key, and holds or
releases Shift around it where the client's keyboard has the character on another level.
"""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """A row of the table; ``keysyms`` besides those of its characters."""

    qcode: str
    number: int
    code: str
    keysyms: tuple[int, ...] = ()
    characters: str = ""


def _letters() -> list[Key]:
    rows = ((0x10, "qwertyuiop"), (0x1E, "asdfghjkl"), (0x2C, "zxcvbnm"))
    return [
        Key(letter, first + index, f"Key{letter.upper()}", (), letter + letter.upper())
        for first, row in rows
        for index, letter in enumerate(row)
    ]


def _digits() -> list[Key]:
    shifted = zip("1234567890", "!@#$%^&*()", strict=True)
    return [
        Key(digit, 2 + index, f"Digit{digit}", (), digit + above)
        for index, (digit, above) in enumerate(shifted)
    ]


def _functions() -> list[Key]:
    numbers = [*range(0x3B, 0x45), 0x57, 0x58]
    return [Key(f"f{n}", code, f"F{n}", (0xFFBD + n,)) for n, code in enumerate(numbers, 1)]


def _keypad() -> list[Key]:
    """The digits, each with the keysym it gives while num lock is off."""
    digits = [
        *((7, 0x47, 0xFF95), (8, 0x48, 0xFF97), (9, 0x49, 0xFF9A)),
        *((4, 0x4B, 0xFF96), (5, 0x4C, 0xFF9D), (6, 0x4D, 0xFF98)),
        *((1, 0x4F, 0xFF9C), (2, 0x50, 0xFF99), (3, 0x51, 0xFF9B), (0, 0x52, 0xFF9E)),
    ]
    return [Key(f"kp_{n}", code, f"Numpad{n}", (0xFFB0 + n, sym)) for n, code, sym in digits]


KEYS = (
    *_letters(),
    *_digits(),
    *_functions(),
    *_keypad(),
    Key("minus", 0x0C, "Minus", (), "-_"),
    Key("equal", 0x0D, "Equal", (), "=+"),
    Key("bracket_left", 0x1A, "BracketLeft", (), "[{"),
    Key("bracket_right", 0x1B, "BracketRight", (), "]}"),
    Key("semicolon", 0x27, "Semicolon", (), ";:"),
    Key("apostrophe", 0x28, "Quote", (), "'\""),
    Key("grave_accent", 0x29, "Backquote", (), "`~"),
    Key("backslash", 0x2B, "Backslash", (), "\\|"),
    Key("comma", 0x33, "Comma", (), ",<"),
    Key("dot", 0x34, "Period", (), ".>"),
    Key("slash", 0x35, "Slash", (), "/?"),
    Key("spc", 0x39, "Space", (), " "),
    Key("esc", 0x01, "Escape", (0xFF1B,), "\x1b"),
    Key("backspace", 0x0E, "Backspace", (0xFF08,), "\b"),
    Key("tab", 0x0F, "Tab", (0xFF09, 0xFE20), "\t"),
    Key("ret", 0x1C, "Enter", (0xFF0D, 0xFF0A), "\n"),
    Key("ctrl", 0x1D, "ControlLeft", (0xFFE3,)),
    Key("shift", 0x2A, "ShiftLeft", (0xFFE1,)),
    Key("shift_r", 0x36, "ShiftRight", (0xFFE2,)),
    Key("alt", 0x38, "AltLeft", (0xFFE9, 0xFFE7)),
    Key("caps_lock", 0x3A, "CapsLock", (0xFFE5,)),
    Key("num_lock", 0x45, "NumLock", (0xFF7F,)),
    Key("scroll_lock", 0x46, "ScrollLock", (0xFF14,)),
    Key("kp_multiply", 0x37, "NumpadMultiply", (0xFFAA,)),
    Key("kp_subtract", 0x4A, "NumpadSubtract", (0xFFAD,)),
    Key("kp_add", 0x4E, "NumpadAdd", (0xFFAB,)),
    Key("kp_decimal", 0x53, "NumpadDecimal", (0xFFAE, 0xFF9F, 0xFFAC)),
    Key("kp_enter", 0x9C, "NumpadEnter", (0xFF8D,)),
    Key("kp_divide", 0xB5, "NumpadDivide", (0xFFAF,)),
    Key("kp_equals", 0x59, "NumpadEqual", (0xFFBD,)),
    Key("kp_comma", 0x7E, "NumpadComma"),
    Key("less", 0x56, "IntlBackslash"),
    Key("ro", 0x73, "IntlRo"),
    Key("yen", 0x7D, "IntlYen", (0xA5,)),
    Key("henkan", 0x79, "Convert", (0xFF23,)),
    Key("muhenkan", 0x7B, "NonConvert", (0xFF22,)),
    Key("katakanahiragana", 0x70, "KanaMode", (0xFF27,)),
    Key("ctrl_r", 0x9D, "ControlRight", (0xFFE4,)),
    Key("alt_r", 0xB8, "AltRight", (0xFFEA, 0xFFE8, 0xFE03, 0xFF7E)),
    Key("print", 0xB7, "PrintScreen", (0xFF61, 0xFF15)),
    Key("pause", 0xC6, "Pause", (0xFF13, 0xFF6B)),
    Key("home", 0xC7, "Home", (0xFF50,)),
    Key("up", 0xC8, "ArrowUp", (0xFF52,)),
    Key("pgup", 0xC9, "PageUp", (0xFF55,)),
    Key("left", 0xCB, "ArrowLeft", (0xFF51,)),
    Key("right", 0xCD, "ArrowRight", (0xFF53,)),
    Key("end", 0xCF, "End", (0xFF57,)),
    Key("down", 0xD0, "ArrowDown", (0xFF54,)),
    Key("pgdn", 0xD1, "PageDown", (0xFF56,)),
    Key("insert", 0xD2, "Insert", (0xFF63,)),
    Key("delete", 0xD3, "Delete", (0xFFFF,), "\x7f"),
    Key("meta_l", 0xDB, "MetaLeft", (0xFFEB,)),
    Key("meta_r", 0xDC, "MetaRight", (0xFFEC,)),
    Key("menu", 0xDD, "ContextMenu", (0xFF67,)),
    Key("power", 0xDE, "Power"),
    Key("sleep", 0xDF, "Sleep"),
    Key("wake", 0xE3, "WakeUp"),
    Key("audiomute", 0xA0, "AudioVolumeMute"),
    Key("volumedown", 0xAE, "AudioVolumeDown"),
    Key("volumeup", 0xB0, "AudioVolumeUp"),
)

SYNONYMS = {"asterisk": "kp_multiply", "sysrq": "print", "compose": "menu", "enter": "ret"}
"""Other names that QEMU's ``sendkey`` and ``send-key`` take."""

NUMBERS = {key.qcode: key.number for key in KEYS}
"""Scan code set 1: the make code, with bit 7 set where an E0 goes before it."""
BY_NUMBER = {key.number: key.qcode for key in KEYS} | {0x54: "print"}
BY_BROWSER_CODE = {key.code: key.qcode for key in KEYS}

BY_CHARACTER = {
    character: (key.qcode, level == 1)
    for key in KEYS
    for level, character in enumerate(key.characters)
}
"""Who types a character on the US layout: a key, and whether Shift is held."""

_BY_KEYSYM = {keysym: key.qcode for key in KEYS for keysym in key.keysyms}
_SHIFTS = ("shift", "shift_r")
_UNICODE = 0x0100_0000
"""Keysyms from here on are Unicode characters; those below 256 are Latin-1."""
_CAPS_LOCK = 4


def find_qcode(name: str) -> str | None:
    """The key called ``name``, its synonyms included; None if there is no such key."""
    name = SYNONYMS.get(name, name)
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
        typed = BY_CHARACTER.get(character) if character else None
        qcode = typed[0] if typed else _BY_KEYSYM.get(keysym)
        if qcode is None:
            return []
        self._down[keysym] = qcode
        if typed is None or not character:
            if qcode in _SHIFTS:
                self._shifts.add(qcode)
            return [(qcode, True)]
        return self._with_shift(
            qcode, typed[1] != (character.isalpha() and bool(leds & _CAPS_LOCK))
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
