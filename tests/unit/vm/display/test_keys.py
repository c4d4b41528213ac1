"""The table of keys, and keysyms that find the right key and level."""

from __future__ import annotations

from vdisk.vm.devices.keycodes import KEYS as NUMBERS
from vdisk.vm.display.keys import (
    BY_BROWSER_CODE,
    BY_NUMBER,
    KEYS,
    KeysymKeyboard,
    find_qcode,
)

SHIFT = 0xFFE1
CAPS = 4


def test_no_two_keys_share_a_name() -> None:
    for names in zip(*((key.qcode, key.code) for key in KEYS), strict=True):
        assert len(set(names)) == len(names)
    keysyms = [keysym for key in KEYS for keysym in key.keysyms]
    assert len(set(keysyms)) == len(keysyms)


def test_the_keyboard_has_every_key() -> None:
    assert {key.qcode for key in KEYS} <= NUMBERS.keys()


def test_known_names() -> None:
    known = {"esc": 1, "a": 0x1E, "spc": 0x39, "f12": 0x58, "up": 0xC8, "ctrl_r": 0x9D}
    assert {BY_NUMBER[number] for number in known.values()} == known.keys()
    assert BY_BROWSER_CODE["ArrowLeft"] == "left"
    assert [find_qcode(name) for name in ("sysrq", "0x1e", "0xzz", "nope")] == [
        *("sysrq", "a"),
        *(None, None),
    ]


def test_shift_is_held_where_the_client_did_not() -> None:
    keyboard = KeysymKeyboard()
    assert keyboard.key(ord("!"), True) == [("shift", True), ("1", True), ("shift", False)]
    assert keyboard.key(ord("!"), False) == [("1", False)]
    assert keyboard.key(ord("a"), True) == [("a", True)]


def test_shift_that_the_client_holds_is_enough() -> None:
    keyboard = KeysymKeyboard()
    assert keyboard.key(SHIFT, True) == [("shift", True)]
    assert keyboard.key(ord("A"), True) == [("A".lower(), True)]
    # On a German keyboard "/" is Shift with 7; here it is a key without Shift.
    assert keyboard.key(ord("/"), True) == [("shift", False), ("slash", True), ("shift", True)]
    assert keyboard.key(SHIFT, False) == [("shift", False)]
    assert keyboard.key(ord("/"), False) == [("slash", False)]


def test_caps_lock_is_not_made_up_for() -> None:
    keyboard = KeysymKeyboard()
    assert keyboard.key(ord("A"), True, CAPS) == [("a", True)]
    assert keyboard.key(ord("!"), True, CAPS) == [("shift", True), ("1", True), ("shift", False)]


def test_a_keysym_is_released_on_the_key_it_pressed() -> None:
    keyboard = KeysymKeyboard()
    assert keyboard.key(0xFF0D, True) == [("ret", True)]
    assert keyboard.key(0xFF0D, False) == [("ret", False)]
    assert keyboard.key(0xFF0D, False) == []
    assert keyboard.key(0x20AC, True) == []  # nobody types that here
    assert keyboard.key(0x1000041, True)[1] == ("a", True)
