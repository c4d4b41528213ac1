"""A PS/2 mouse with wheel and five buttons (IBM PS/2 technical reference, "Mouse"; IntelliMouse).

::

    byte 0   Y overflow, X overflow, Y sign, X sign, 1, middle, right, left
    byte 1   X movement        byte 2   Y movement (up is positive)
    byte 3   wheel (identity 3); button 5, button 4, wheel in four bits (identity 4)

    E6 scaling 1:1   E7 2:1   E8 n resolution   E9 status   EA stream   EB read   EC, EE wrap mode
    F0 remote   F2 identify   F3 n sample rate   F4 enable   F5 disable   F6 defaults   FF reset

The identity becomes 3 after the sample rates 200, 100, 80, and 4 after 200, 200, 80.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.ps2 import Ps2Device

if TYPE_CHECKING:
    from collections.abc import Callable

SCALING_1, SCALING_2, RESOLUTION, STATUS, STREAM, READ = range(0xE6, 0xEC)
RESET_WRAP, WRAP, REMOTE, IDENTIFY, SAMPLE_RATE = 0xEC, 0xEE, 0xF0, 0xF2, 0xF3
ENABLE, DISABLE, DEFAULTS, RESEND, RESET = 0xF4, 0xF5, 0xF6, 0xFE, 0xFF
ACK, TEST_PASSED = 0xFA, 0xAA
PLAIN, WHEEL, FIVE_BUTTONS = 0, 3, 4
KNOCKS: dict[tuple[int, ...], int] = {(200, 100, 80): WHEEL, (200, 200, 80): FIVE_BUTTONS}
LEFT, RIGHT, MIDDLE, FOURTH, FIFTH = 1, 2, 4, 8, 16
SCALED = (0, 1, 1, 3, 6, 9)
"""Movement under 2:1 scaling; beyond five it is doubled."""
LONGEST_PACKET = 4
FARTHEST = 1 << 16  # movement that is remembered for a guest that does not look


class Mouse(Ps2Device):
    """The mouse."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *Ps2Device.SAVED,
        *("_identity", "_reporting", "_remote", "_wrap", "_scaling", "_resolution"),
        *("_rate", "_rates", "_dx", "_dy", "_dz", "_buttons", "_told"),
    )
    name = "ps2 mouse"

    def __init__(self) -> None:
        super().__init__()
        self._rates: deque[int] = deque(maxlen=3)
        self._buttons = 0
        self.reset()

    def reset(self) -> None:
        self.queue.clear()
        self.answers.clear()
        self._last_sent = 0
        self._rates.clear()
        self._identity = PLAIN
        self._command = 0
        self._wrap = False
        self._defaults()

    def _defaults(self) -> None:
        self._reporting = self._remote = self._scaling = False
        self._resolution, self._rate = 2, 100
        self._forget()

    def _forget(self) -> None:
        self._dx = self._dy = self._dz = 0
        self._told = self._buttons

    # -- the hand ----------------------------------------------------------------------------

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """Move right and down (as a screen counts), and turn the wheel towards the user."""
        self._dx = max(-FARTHEST, min(self._dx + dx, FARTHEST))
        self._dy = max(-FARTHEST, min(self._dy - dy, FARTHEST))
        self._dz = max(-FARTHEST, min(self._dz + dz, FARTHEST))
        self._report()

    def buttons(self, held: int) -> None:
        """Which buttons are held: LEFT | RIGHT | MIDDLE | FOURTH | FIFTH."""
        self._buttons = held & 0x1F
        self._report()

    def _report(self) -> None:
        """Send what has not been told yet, as far as there is room."""
        if self._remote or not self._reporting:
            return
        while self.room() >= LONGEST_PACKET and self._news():
            self.report(self._packet(scaled=True))

    def _news(self) -> bool:
        wheel = self._dz if self._identity else 0
        return bool(self._dx or self._dy or wheel or self._told != self._buttons)

    def _packet(self, scaled: bool) -> bytes:
        dx, dy = max(-255, min(self._dx, 255)), max(-255, min(self._dy, 255))
        dz = max(-8, min(self._dz, 7))
        self._dx, self._dy, self._dz = self._dx - dx, self._dy - dy, self._dz - dz
        self._told = self._buttons
        if scaled and self._scaling:
            dx, dy = _scale(dx), _scale(dy)
        signs = (0x10 if dx < 0 else 0) | (0x20 if dy < 0 else 0)
        packet = bytes([0x08 | self._buttons & 7 | signs, dx & 0xFF, dy & 0xFF])
        if self._identity == WHEEL:
            packet += bytes([dz & 0xFF])
        elif self._identity == FIVE_BUTTONS:
            packet += bytes([dz & 0x0F | (self._buttons & (FOURTH | FIFTH)) << 1])
        return packet

    # -- the wire ----------------------------------------------------------------------------

    def take(self) -> int:
        byte = super().take()
        if not self.waiting():  # room for what happened meanwhile
            self._report()
        return byte

    def receive(self, byte: int) -> None:
        """A command, or the argument of the one before."""
        command, self._command = self._command, 0
        self.queue.clear()  # a packet that is being sent is given up
        if self._wrap and byte not in {RESET, RESET_WRAP}:
            self.say(byte)
        elif command:
            self._argument(command, byte)
        elif byte in _COMMANDS:
            _COMMANDS[byte](self)
        else:
            self.say(RESEND)

    def _argument(self, command: int, value: int) -> None:
        if command == RESOLUTION:
            self._resolution = value & 3
        else:
            self._rate = value
            self._rates.append(value)
            self._identity = KNOCKS.get(tuple(self._rates), self._identity)
        self.say(ACK)

    def _expect(self, command: int) -> None:
        self._command = command
        self.say(ACK)

    def _set(self, **values: bool) -> None:
        for field, value in values.items():
            setattr(self, f"_{field}", value)
        self.say(ACK)

    def _status_request(self) -> None:
        held = self._buttons
        status = (held & LEFT) << 2 | (held & MIDDLE) >> 1 | (held & RIGHT) >> 1
        flags = self._remote << 6 | self._reporting << 5 | self._scaling << 4
        self.say(ACK, status | flags, self._resolution, self._rate)

    def _mode(self, remote: bool) -> None:
        self._forget()
        self._set(remote=remote)

    def _enable(self, reporting: bool) -> None:
        self._forget()
        self._set(reporting=reporting)

    def _set_defaults(self) -> None:
        self._defaults()
        self.say(ACK)

    def _full_reset(self) -> None:
        self.reset()
        self.say(ACK, TEST_PASSED, self._identity)

    def restored(self) -> None:
        self.require(self._identity in {PLAIN, WHEEL, FIVE_BUTTONS}, "an identity")
        self.require(self._command in {0, RESOLUTION, SAMPLE_RATE}, "a command")
        super().restored()
        bytes_ = (self._rate, self._resolution, self._buttons, *self._rates)
        self.require(all(0 <= value <= 0xFF for value in bytes_), "a register")
        moved = (self._dx, self._dy, self._dz)
        self.require(all(abs(value) <= FARTHEST for value in moved), "a movement")


def _scale(movement: int) -> int:
    size = abs(movement)
    scaled = min(SCALED[size] if size < len(SCALED) else 2 * size, 255)
    return scaled if movement >= 0 else -scaled


_COMMANDS: dict[int, Callable[[Mouse], None]] = {
    SCALING_1: lambda mouse: mouse._set(scaling=False),
    SCALING_2: lambda mouse: mouse._set(scaling=True),
    RESOLUTION: lambda mouse: mouse._expect(RESOLUTION),
    SAMPLE_RATE: lambda mouse: mouse._expect(SAMPLE_RATE),
    STATUS: Mouse._status_request,
    STREAM: lambda mouse: mouse._mode(remote=False),
    REMOTE: lambda mouse: mouse._mode(remote=True),
    READ: lambda mouse: mouse.say(ACK, *mouse._packet(scaled=False)),
    RESET_WRAP: lambda mouse: mouse._set(wrap=False),
    WRAP: lambda mouse: mouse._set(wrap=True),
    IDENTIFY: lambda mouse: mouse.say(ACK, mouse._identity),
    ENABLE: lambda mouse: mouse._enable(reporting=True),
    DISABLE: lambda mouse: mouse._enable(reporting=False),
    DEFAULTS: Mouse._set_defaults,
    RESEND: lambda mouse: mouse.say(mouse._last_sent),
    RESET: Mouse._full_reset,
}
