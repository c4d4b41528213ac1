"""A PS/2 keyboard ("IBM Personal System/2 Hardware Interface Technical Reference", Keyboards).

It speaks scan code set 2 (and set 1, if told to): a make code, with E0h before it for the keys
that came after the 83 of the first AT keyboard; F0h before the make code is the release (set 1:
bit 7 of the code).  Pause and Print Screen have sequences of their own.

::

    ED n LEDs   EE echo   F0 n scan code set   F2 identify   F3 n typematic rate   F4 enable
    F5 disable  F6 defaults   F7-FD kinds of keys   FE resend   FF reset     answers FA, FE (again)

There is no typematic here: whoever presses keys repeats them.
"""

from __future__ import annotations

from typing import ClassVar

from vdisk.vm.devices.keycodes import ALT_KEYS, CTRL_KEYS, KEYS, PAUSE, PRINT, SET_1_TO_2, SYSRQ
from vdisk.vm.devices.ps2 import BUFFER, Ps2Device

SET_LEDS, ECHO, SCAN_CODE_SET, IDENTIFY, TYPEMATIC = 0xED, 0xEE, 0xF0, 0xF2, 0xF3
ENABLE, DISABLE, DEFAULTS, RESEND, RESET = 0xF4, 0xF5, 0xF6, 0xFE, 0xFF
KEY_TYPES_ALL, KEY_TYPE_OF = range(0xF7, 0xFB), range(0xFB, 0xFE)
ACK, TEST_PASSED, IDENTITY = 0xFA, 0xAA, (0xAB, 0x83)
EXTENDED, RELEASED, OVERRUN = 0xE0, 0xF0, {1: 0xFF, 2: 0x00}
LED_SCROLL, LED_NUM, LED_CAPS = 1, 2, 4

_PAUSE = {
    1: b"\xe1\x1d\x45\xe1\x9d\xc5",
    2: b"\xe1\x14\x77\xe1\xf0\x14\xf0\x77",
}
_PRINT = {
    (1, True): b"\xe0\x2a\xe0\x37",
    (1, False): b"\xe0\xb7\xe0\xaa",
    (2, True): b"\xe0\x12\xe0\x7c",
    (2, False): b"\xe0\xf0\x7c\xe0\xf0\x12",
}


class Keyboard(Ps2Device):
    """The keyboard.  ``leds``: LED_* bits that are lit."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *Ps2Device.SAVED,
        *("leds", "scan_code_set", "_scanning", "_held"),
    )
    name = "ps2 keyboard"

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray(256)
        self.reset()

    def reset(self) -> None:
        """Power-on; the basic assurance test has passed before anybody looked."""
        self.queue.clear()
        self.answers.clear()
        self._last_sent = 0
        self._held[:] = bytes(256)
        self._defaults()
        self._scanning = True
        self._command = 0

    def _defaults(self) -> None:
        self.scan_code_set = 2
        self.leds = 0

    # -- keys --------------------------------------------------------------------------------

    def press(self, *names: str) -> None:
        """Press keys in this order (names of QMP: ``ret``, ``shift``, ``a``…), then release."""
        for name in names:
            self.key(KEYS[name], True)
        for name in reversed(names):
            self.key(KEYS[name], False)

    def key(self, number: int, pressed: bool) -> bool:
        """A key goes down or up (see :mod:`keycodes`); False: the guest does not keep up.

        Then the key was lost, as on a keyboard whose buffer overruns.
        """
        number &= 0xFF
        self._held[number] = pressed
        if not self._scanning:
            return True
        sequence = self._sequence(number, pressed)
        if len(sequence) >= self.room():
            if len(self.queue) < BUFFER:
                self.report(bytes([OVERRUN[self.scan_code_set]] * self.room()))
            return False
        self.report(sequence)
        return True

    def _sequence(self, number: int, pressed: bool) -> bytes:
        if number == PAUSE:
            if any(self._held[key] for key in CTRL_KEYS):  # Ctrl+Pause is Break
                return self._code(0x46, True, pressed)
            return _PAUSE[self.scan_code_set] if pressed else b""
        if number == PRINT:
            if any(self._held[key] for key in ALT_KEYS):
                return self._code(SYSRQ, False, pressed)
            return _PRINT[self.scan_code_set, pressed]
        return self._code(number & 0x7F, bool(number & 0x80), pressed)

    def _code(self, code: int, extended: bool, pressed: bool) -> bytes:
        prefix = bytes([EXTENDED]) if extended else b""
        if self.scan_code_set == 1:
            return prefix + bytes([code if pressed else code | 0x80])
        made = SET_1_TO_2.get(code)
        if made is None:
            return b""
        return prefix + (b"" if pressed else bytes([RELEASED])) + bytes([made])

    # -- the wire ----------------------------------------------------------------------------

    def receive(self, byte: int) -> None:
        """A command, or the argument of the one before."""
        command, self._command = self._command, 0
        if command and byte < SET_LEDS:
            self._argument(command, byte)
            return
        if byte == ECHO:
            self.say(ECHO)
        elif byte == RESEND:
            self.say(self._last_sent)
        elif byte in {SET_LEDS, SCAN_CODE_SET, TYPEMATIC} or byte in KEY_TYPE_OF:
            self._command = byte
            self.say(ACK)
        elif byte == IDENTIFY:
            self.say(ACK, *IDENTITY)
        elif byte in {ENABLE, DISABLE, DEFAULTS} or byte in KEY_TYPES_ALL:
            self.queue.clear()
            if byte in {DISABLE, DEFAULTS}:
                self._defaults()
            self._scanning = byte != DISABLE
            self.say(ACK)
        elif byte == RESET:
            self.reset()
            self.say(ACK, TEST_PASSED)
        else:
            self.say(RESEND)

    def _argument(self, command: int, value: int) -> None:
        if command == SET_LEDS:
            self.leds = value & 7
        elif command == SCAN_CODE_SET:
            if value == 0:
                self.say(ACK, self.scan_code_set)
                return
            if value not in {1, 2}:
                self.say(RESEND)
                return
            self.scan_code_set = value
        self.say(ACK)

    def restored(self) -> None:
        self.require(self.scan_code_set in {1, 2}, "a scan code set")
        super().restored()
