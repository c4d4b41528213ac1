"""A user's hands: keys and mouse of the machine, from names, characters and movements."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.vm.devices.keycodes import KEYS, keys_for
from vdisk.vm.display.keys import find_qcode

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from vdisk.vm.devices.ps2_keyboard import Keyboard
    from vdisk.vm.devices.ps2_mouse import Mouse

KEY_PAUSE = 0.01
"""Seconds between two keys: firmware and boot loaders poll, and remember 15 keys."""
PATIENCE = 10.0
"""Seconds for a guest to take a key before typing on is given up."""
NEEDED_ROOM = 8
"""Bytes of the longest sequence of one key (Pause in scan code set 2)."""
BIOS_HEAD, BIOS_TAIL = 0x41A, 0x41C
"""Of a PC BIOS's key buffer: words that name places of a ring of 16 words, of which 15 are used."""
BIOS_RING = 32
BIOS_CROWDED = 8
"""Keys in it from which on typing waits until a program has taken some."""


class Hands:
    """An :class:`~vdisk.vm.display.base.InputSink`.  ``lock``: of the bus.

    ``wake()``: a key or button wakes a machine that sleeps, and is lost; False: none does.
    ``read(address, length)``: of guest memory.
    ``stimulate(kind, …)``: lets one of :attr:`handlers` happen when the machine is ready for it.
    """

    def __init__(
        self,
        keyboard: Keyboard,
        mouse: Mouse,
        lock: threading.RLock,
        stimulate: Callable[..., None],
        wake: Callable[[], bool],
        read: Callable[[int, int], bytes],
    ) -> None:
        self._keyboard, self._mouse, self._wake = keyboard, mouse, wake
        self._read = read
        self._lock = lock
        self._stimulate = stimulate
        self.handlers: dict[str, Callable[..., object]] = {
            "key": self._take_key,
            "move": lambda dx, dy, wheel: mouse.move(int(dx), int(dy), int(wheel)),
            "buttons": self._take_buttons,
        }

    def _take_key(self, number: int, down: bool) -> None:
        if not self._wake():
            self._keyboard.key(int(number), bool(down))

    def _take_buttons(self, buttons: int) -> None:
        if not self._wake():
            self._mouse.buttons(int(buttons))

    def key(self, qcode: str, down: bool) -> None:
        """Press or release a key; raises :class:`NotFoundError` for a name that is none."""
        name = find_qcode(qcode)
        if name is None:
            raise NotFoundError(f"there is no key {qcode!r}")
        self._stimulate("key", KEYS[name], down)

    def ready(self) -> bool:
        with self._lock:
            return self._keyboard.room() > NEEDED_ROOM

    def move_pointer(self, dx: int, dy: int, wheel: int = 0) -> None:
        self._stimulate("move", dx, dy, wheel)

    def set_buttons(self, buttons: int) -> None:
        self._stimulate("buttons", buttons)

    def leds(self) -> int:
        with self._lock:
            return self._keyboard.leds

    # -- typing ------------------------------------------------------------------------------------

    def type(self, text: str, stopped: Callable[[], bool]) -> None:
        """Type characters on the US layout, as fast as the guest takes them: from the keyboard,
        and where a BIOS does that, from its buffer, which would beep and lose what is too much.

        Raises :class:`InvalidRequestError` for a character without a key, before any is typed,
        and where the guest takes no keys.
        """
        try:
            strokes = [keys_for(character) for character in text]
        except KeyError as error:
            raise InvalidRequestError(f"a US keyboard cannot type {error}") from error
        before, filled = self._bios_tail(), False
        for stroke in strokes:
            self._wait_until(self._is_idle, stopped)
            filled = filled or self._bios_tail() != before
            if filled:  # by what was typed
                self._wait_until(self._has_bios_room, stopped)
            self.press(stroke, stopped)

    def press(self, qcodes: Iterable[str], stopped: Callable[[], bool]) -> None:
        """Press keys together, ``("ctrl", "alt", "delete")``, and release them."""
        names = tuple(qcodes)
        for name in names:
            self._wait_until(self.ready, stopped)
            self.key(name, True)
        for name in reversed(names):
            self._wait_until(self.ready, stopped)
            self.key(name, False)
        time.sleep(KEY_PAUSE)

    def _is_idle(self) -> bool:
        """Whether the guest has taken all that was typed from the keyboard."""
        with self._lock:
            return not self._keyboard.waiting()

    def _bios_tail(self) -> int:
        return int.from_bytes(self._read(BIOS_TAIL, 2), "little")

    def _has_bios_room(self) -> bool:
        head = int.from_bytes(self._read(BIOS_HEAD, 2), "little")
        return (self._bios_tail() - head) % BIOS_RING // 2 < BIOS_CROWDED

    def _wait_until(self, there: Callable[[], bool], stopped: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            if there():
                return
            if stopped() or time.monotonic() > deadline:
                raise InvalidRequestError("the guest takes no keys")
            time.sleep(KEY_PAUSE)
