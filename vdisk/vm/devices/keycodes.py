"""Names and numbers of keys.

Names are QMP's ("QKeyCode"), so that ``send-key`` and a display mean the same.  Numbers are the
make codes of scan code set 1, with bit 7 for those that follow E0h (QEMU's "qnum", what VNC's
extended key event carries).
"""

from __future__ import annotations

_ROWS = {
    0x01: "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace",
    0x0F: "tab q w e r t y u i o p bracket_left bracket_right ret",
    0x1D: "ctrl a s d f g h j k l semicolon apostrophe grave_accent",
    0x2A: "shift backslash z x c v b n m comma dot slash shift_r",
    0x37: "kp_multiply alt spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock",
    0x47: "kp_7 kp_8 kp_9 kp_subtract kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal sysrq",
    0x56: "less f11 f12 kp_equals",
}
_OTHERS = """
    hiragana=70 ro=73 henkan=79 muhenkan=7b yen=7d kp_comma=7e katakanahiragana=70
    asterisk=37 audioprev=90 audionext=99 kp_enter=9c ctrl_r=9d audiomute=a0 calculator=a1
    audioplay=a2 audiostop=a4 volumedown=ae volumeup=b0 ac_home=b2 kp_divide=b5 print=b7
    alt_r=b8 pause=c6 home=c7 up=c8 pgup=c9 left=cb right=cd end=cf down=d0 pgdn=d1 insert=d2
    delete=d3 meta_l=db meta_r=dc compose=dd menu=dd power=de sleep=df wake=e3
    ac_bookmarks=e6 ac_refresh=e7 ac_forward=e9 ac_back=ea computer=eb mail=ec
"""
KEYS: dict[str, int] = {
    name: first + place
    for first, names in _ROWS.items()
    for place, name in enumerate(names.split())
} | {name: int(number, 16) for name, number in (item.split("=") for item in _OTHERS.split())}
"""The number of each key by its name."""

PRINT, PAUSE, SYSRQ, SCROLL_LOCK = KEYS["print"], KEYS["pause"], KEYS["sysrq"], KEYS["scroll_lock"]
ALT_KEYS = frozenset({KEYS["alt"], KEYS["alt_r"]})
CTRL_KEYS = frozenset({KEYS["ctrl"], KEYS["ctrl_r"]})

SET_2_TO_1 = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
) + bytes([0x80, 0x81, 0x82, 0x41, 0x54, *range(0x85, 0x100)])
"""What the 8042 makes of a byte of set 2 while it translates (IBM PS/2 technical reference)."""

SET_1_TO_2 = {code: number for number, code in enumerate(SET_2_TO_1[:0x80])} | {
    0x41: 0x83,  # F7
    0x54: 0x84,  # SysRq
}
"""The make code of set 2 for one of set 1."""

_PLAIN_KEYS = """
    minus equal bracket_left bracket_right backslash semicolon apostrophe grave_accent
    comma dot slash spc ret tab backspace esc
"""
_SHIFTED_KEYS = """
    1 2 3 4 5 6 7 8 9 0 minus equal bracket_left bracket_right backslash semicolon
    apostrophe grave_accent comma dot slash
"""
_PLAIN = dict(zip("-=[]\\;'`,./ \n\t\b\x1b", _PLAIN_KEYS.split(), strict=True))
_SHIFTED = dict(zip('!@#$%^&*()_+{}|:"~<>?', _SHIFTED_KEYS.split(), strict=True))


def keys_for(character: str) -> tuple[str, ...]:
    """The keys, held together, that type an ASCII character on a US keyboard.

    Raises :class:`KeyError` for a character that this keyboard cannot type.
    """
    if character.isascii() and character.isalnum():
        lower = character.lower()
        return (lower,) if lower == character else ("shift", lower)
    if character in _PLAIN:
        return (_PLAIN[character],)
    return ("shift", _SHIFTED[character])
