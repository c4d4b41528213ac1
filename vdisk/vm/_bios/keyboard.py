"""The keyboard: scan codes into the buffer (int 09h), and words out of it (int 16h).

The buffer is a ring of words in the BDA; it is empty when head and tail are equal, so it holds
one word less than it has room for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.scancodes import GREY, KEYPAD_DIGITS, KEYS, Key

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

# byte 40:17
RIGHT_SHIFT, LEFT_SHIFT, CTRL, ALT, SCROLL, NUM, CAPS, INSERT = (1 << bit for bit in range(8))
SHIFTS = LEFT_SHIFT | RIGHT_SHIFT
# byte 40:18
LEFT_CTRL, LEFT_ALT, SYSTEM_REQUEST, PAUSED = 1, 2, 4, 8
# byte 40:96
LAST_E1, LAST_E0, RIGHT_ALT, RIGHT_CTRL, ENHANCED = 1, 2, 4, 8, 16

# what int 09h has still to do: :mod:`vdisk.vm._bios.rom` reads it in AL
DONE, PRINT_SCREEN, PAUSE, BREAK, REQUEST = 0, 0x05, 0x13, 0x1B, 0x85

LOCKS = {0x3A: CAPS, 0x45: NUM, 0x46: SCROLL}
BREAK_CODE = 0x80
HIGHEST_PLAIN_SCAN = 0x84  # what an 83-key keyboard could give; AH=00h and 01h know no more
CONTROLLER, RESET_PULSE = 0x64, 0xFE
DATA_PORT, STATUS_PORT = 0x60, 0x64
WARM_BOOT = 0x1234
MF2_KEYBOARD = 0x41AB
MOST_WORDS = 128  # of a buffer: the BDA is not larger


class KeyboardService:
    """int 16h, and the work of int 09h."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.bda = hardware.bda
        self._functions = {
            0x00: self._read,
            0x01: self._peek,
            0x02: self._flags,
            0x03: self._typematic,
            0x05: self._store,
            0x09: self._functionality,
            0x0A: self._identity,
            0x10: self._read,
            0x11: self._peek,
            0x12: self._flags,
            0x20: self._read,
            0x21: self._peek,
            0x22: self._flags,
            0x92: self._capability,
        }

    def initialize(self) -> None:
        """POST: an empty buffer, and an enhanced keyboard."""
        bda = self.bda
        for offset in (layout.BUFFER_HEAD, layout.BUFFER_TAIL, layout.BUFFER_START):
            bda.set_word(offset, layout.KEY_BUFFER)
        bda.set_word(layout.BUFFER_END, layout.KEY_BUFFER + 32)
        bda.set_byte(layout.KEYBOARD_MODE, ENHANCED)
        bda.set_byte(layout.SHIFT_FLAGS, 0)

    # -- int 16h -----------------------------------------------------------------------------

    def service(self, call: Call) -> None:
        function = self._functions.get(call.ah)
        if function is not None:
            function(call)

    def _next(self, plain: bool) -> int | None:
        """The word at the head; ``plain``: as an 83-key keyboard would have given it.

        Words that such a keyboard does not have are dropped, as AH=00h and 01h do.
        """
        for _ in range(MOST_WORDS):  # head and tail may be anything
            head = self.bda.word(layout.BUFFER_HEAD)
            if head == self.bda.word(layout.BUFFER_TAIL):
                return None
            word = self.bda.word(head)
            if not plain:
                if word & 0xFF == 0xF0 and word >> 8:
                    word &= 0xFF00
                return word
            translated = plain_word(word)
            if translated is not None:
                return translated
            self.bda.set_word(layout.BUFFER_HEAD, self._after(head))
        return None

    def _after(self, place: int) -> int:
        following = place + 2
        start, end = self.bda.word(layout.BUFFER_START), self.bda.word(layout.BUFFER_END)
        return following if start <= following < end else start

    def _read(self, call: Call) -> None:
        word = self._next(plain=call.ah == 0)
        call.wait = word is None
        if word is not None:
            self.bda.set_word(layout.BUFFER_HEAD, self._after(self.bda.word(layout.BUFFER_HEAD)))
            call.ax = word

    def _peek(self, call: Call) -> None:
        word = self._next(plain=call.ah == 1)
        call.zero = word is None
        if word is not None:
            call.ax = word

    def _flags(self, call: Call) -> None:
        if call.ah != 0x02:
            held = self.bda.byte(layout.SHIFT_FLAGS_2)
            right = self.bda.byte(layout.KEYBOARD_MODE) & (RIGHT_ALT | RIGHT_CTRL)
            ctrl_alt = held & (LEFT_CTRL | LEFT_ALT) | (right & RIGHT_CTRL) >> 1
            ctrl_alt |= (right & RIGHT_ALT) << 1
            call.ah = ctrl_alt | held & 0x70 | (held & SYSTEM_REQUEST) << 5
        call.al = self.bda.byte(layout.SHIFT_FLAGS)

    def _typematic(self, call: Call) -> None:
        """AL=5: rate BL and delay BH, sent to the keyboard."""
        if call.al == 5:
            self.hw.outb(DATA_PORT, 0xF3)
            self.hw.outb(DATA_PORT, (call.bh & 3) << 5 | call.bl & 0x1F)

    def _store(self, call: Call) -> None:
        call.al = int(not self.put(call.cx))

    def _functionality(self, call: Call) -> None:
        call.al = 0x34  # AX=0305h, AH=0Ah, AH=10h-12h

    def _identity(self, call: Call) -> None:
        call.bx = MF2_KEYBOARD

    def _capability(self, call: Call) -> None:
        call.ah = 0x80  # AH=10h-12h are there

    # -- the buffer --------------------------------------------------------------------------

    def put(self, word: int) -> bool:
        """Append a word; False if the buffer is full."""
        tail = self.bda.word(layout.BUFFER_TAIL)
        following = self._after(tail)
        if following == self.bda.word(layout.BUFFER_HEAD):
            return False
        self.bda.set_word(tail, word)
        self.bda.set_word(layout.BUFFER_TAIL, following)
        return True

    def take(self, plain: bool = True) -> int | None:
        """The next word, taken out of the buffer; None if there is none."""
        word = self._next(plain)
        if word is not None:
            head = self.bda.word(layout.BUFFER_HEAD)
            self.bda.set_word(layout.BUFFER_HEAD, self._after(head))
        return word

    # -- int 09h -----------------------------------------------------------------------------

    def scan_code(self, call: Call) -> None:
        """Deal with the scan code in AL; AL says what the ROM does then."""
        code = call.al
        call.al, call.ah = self._scan(code), code >> 7

    def _scan(self, code: int) -> int:
        mode = self.bda.byte(layout.KEYBOARD_MODE)
        if code in {0xE0, 0xE1}:
            prefix = LAST_E0 if code == 0xE0 else LAST_E1
            self.bda.set_byte(layout.KEYBOARD_MODE, mode & ~(LAST_E0 | LAST_E1) | prefix)
            return DONE
        extended = bool(mode & LAST_E0)
        if mode & LAST_E1:  # Pause: E1 1D 45, then the same released
            if code & ~BREAK_CODE == 0x1D:
                return DONE
            self.bda.set_byte(layout.KEYBOARD_MODE, mode & ~LAST_E1)
            return self._pause() if code == 0x45 else DONE
        self.bda.set_byte(layout.KEYBOARD_MODE, mode & ~LAST_E0)
        if code in {0xFA, 0xFE, 0x00, 0xFF}:  # answers and errors of the keyboard
            return DONE
        pressed, scan = not code & BREAK_CODE, code & ~BREAK_CODE
        if self._modifier(scan, extended, pressed):
            return DONE
        return self._key(scan, extended, pressed)

    def _modifier(self, scan: int, extended: bool, pressed: bool) -> bool:
        """Track Shift, Ctrl and Alt; True if the key is one of them."""
        if scan in {0x2A, 0x36}:
            if not extended:  # E0 2A comes with grey keys and means nothing
                bit = LEFT_SHIFT if scan == 0x2A else RIGHT_SHIFT
                self._hold(layout.SHIFT_FLAGS, bit, pressed)
            return True
        if scan not in {0x1D, 0x38}:
            return False
        left, right = (LEFT_CTRL, RIGHT_CTRL) if scan == 0x1D else (LEFT_ALT, RIGHT_ALT)
        if extended:
            self._hold(layout.KEYBOARD_MODE, right, pressed)
        else:
            self._hold(layout.SHIFT_FLAGS_2, left, pressed)
        held = self.bda.byte(layout.SHIFT_FLAGS_2) & left
        held |= self.bda.byte(layout.KEYBOARD_MODE) & right
        self._hold(layout.SHIFT_FLAGS, CTRL if scan == 0x1D else ALT, bool(held))
        if scan == 0x38 and not held:
            self._composed()
        return True

    def _composed(self) -> None:
        """Alt was let go: the number typed on the keypad is a character."""
        character = self.bda.byte(layout.ALT_KEYPAD)
        if character:
            self.bda.set_byte(layout.ALT_KEYPAD, 0)
            self.put(character)

    def _key(self, scan: int, extended: bool, pressed: bool) -> int:
        """Any key but the shifts."""
        flags = self.bda.byte(layout.SHIFT_FLAGS)
        if scan in LOCKS and not (extended or (flags & CTRL and scan != 0x3A)):
            self._lock(LOCKS[scan], pressed)
            return DONE
        if scan == 0x54 or (scan == 0x37 and extended and flags & ALT):
            self._hold(layout.SHIFT_FLAGS_2, SYSTEM_REQUEST, pressed)
            return REQUEST
        if not pressed:
            return DONE
        if self.bda.byte(layout.SHIFT_FLAGS_2) & PAUSED:  # any key ends the pause, and is lost
            self._hold(layout.SHIFT_FLAGS_2, PAUSED, False)
            return DONE
        special = self._special(scan, extended, flags)
        if special is None:
            self._type(scan, extended, flags)
        return special or DONE

    def _special(self, scan: int, extended: bool, flags: int) -> int | None:
        """Keys that do something instead of giving a word; None for the others."""
        result: int | None = None
        if scan == 0x53 and flags & CTRL and flags & ALT:
            self._restart()
            result = DONE
        elif scan == 0x46 and flags & CTRL:
            result = self._break()
        elif scan == 0x45 and flags & CTRL:
            result = self._pause()
        elif scan == 0x37 and (extended or flags & SHIFTS) and not flags & CTRL:
            result = PRINT_SCREEN
        elif flags & ALT and not extended and scan in KEYPAD_DIGITS:
            digits = self.bda.byte(layout.ALT_KEYPAD) * 10 + KEYPAD_DIGITS[scan]
            self.bda.set_byte(layout.ALT_KEYPAD, digits)
            result = DONE
        return result

    def _type(self, scan: int, extended: bool, flags: int) -> None:
        """Put what the key gives into the buffer."""
        if scan == 0x52 and not flags & (CTRL | ALT):
            self.bda.set_byte(layout.SHIFT_FLAGS, flags ^ INSERT)
        key = GREY.get(scan) if extended else KEYS.get(scan)
        word = translate(key, flags) if key is not None else 0
        if word:
            self.put(word)

    def _hold(self, offset: int, bit: int, pressed: bool) -> None:
        self.bda.set_bits(offset, bit, bit if pressed else 0)

    def _lock(self, bit: int, pressed: bool) -> None:
        """A lock toggles when it goes down, not while it repeats."""
        held = self.bda.byte(layout.SHIFT_FLAGS_2)
        if pressed and not held & bit:
            flags = self.bda.byte(layout.SHIFT_FLAGS) ^ bit
            self.bda.set_byte(layout.SHIFT_FLAGS, flags)
            self.bda.set_bits(layout.KEYBOARD_LEDS, 0x07, flags >> 4 & 0x07)
        self._hold(layout.SHIFT_FLAGS_2, bit, pressed)

    def _pause(self) -> int:
        self._hold(layout.SHIFT_FLAGS_2, PAUSED, True)
        return PAUSE

    def _break(self) -> int:
        start = self.bda.word(layout.BUFFER_START)
        self.bda.set_word(layout.BUFFER_HEAD, start)
        self.bda.set_word(layout.BUFFER_TAIL, start)
        self.bda.set_byte(layout.BREAK_FLAG, 0x80)
        self.put(0)
        return BREAK

    def _restart(self) -> None:
        """Ctrl-Alt-Del."""
        self.bda.set_word(layout.RESET_FLAG, WARM_BOOT)
        self.hw.outb(CONTROLLER, RESET_PULSE)


def translate(key: Key, flags: int) -> int:
    """The word that a key gives with these shift flags; 0 for none."""
    if flags & ALT:
        return key.alt
    if flags & CTRL:
        return key.control
    shifted = bool(flags & SHIFTS)
    if (key.alphabetic and flags & CAPS) or (key.keypad and flags & NUM):
        shifted = not shifted
    return key.shift if shifted else key.plain


def plain_word(word: int) -> int | None:
    """The word as AH=00h gives it; None if an 83-key keyboard has no such key."""
    scan, character = word >> 8, word & 0xFF
    if scan == 0xE0:
        return (0x3500 if character == 0x2F else 0x1C00) | character
    if character in {0xE0, 0xF0} and scan:
        return word & 0xFF00 if scan <= HIGHEST_PLAIN_SCAN else None
    if character == 0 and scan > HIGHEST_PLAIN_SCAN:
        return None
    return word
