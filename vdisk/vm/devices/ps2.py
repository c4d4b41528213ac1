"""The 8042 keyboard controller (IBM PS/2 technical reference, "Keyboard/Auxiliary Controller").

::

    60h  read: output buffer     write: data to the keyboard, or of a command
    64h  read: status            write: command

    status    parity(7) time-out(6) AUX data(5) not inhibited(4) command(3) SYS(2) IBF(1) OBF(0)
    config    - | translate(6) | AUX off(5) | kbd off(4) | - | SYS(2) | IRQ 12(1) | IRQ 1(0)
    output    - | - | OBF AUX | OBF kbd | - | - | A20(1) | /RESET(0)

A byte from a device takes its time on the wire; an answer of the controller itself is there at
once.  Handlers that read port 60h twice therefore see the same byte twice, as they expect.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device
from vdisk.vm.devices.keycodes import SET_2_TO_1

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import Clock
    from vdisk.vm.irq import IrqLine

DATA_PORT, COMMAND_PORT = 0x60, 0x64
STATUS_OBF, STATUS_SYS, STATUS_COMMAND, STATUS_ENABLED, STATUS_AUX = 0x01, 0x04, 0x08, 0x10, 0x20
CONFIG_IRQ1, CONFIG_IRQ12, CONFIG_SYS = 0x01, 0x02, 0x04
CONFIG_KBD_OFF, CONFIG_AUX_OFF, CONFIG_TRANSLATE = 0x10, 0x20, 0x40
OUTPUT_NOT_RESET, OUTPUT_A20, OUTPUT_OBF, OUTPUT_AUX_OBF = 0x01, 0x02, 0x10, 0x20

READ_RAM, WRITE_RAM = 0x20, 0x60  # and the 31 after each
AUX_DISABLE, AUX_ENABLE, AUX_TEST = 0xA7, 0xA8, 0xA9
SELF_TEST, KBD_TEST, KBD_DISABLE, KBD_ENABLE = 0xAA, 0xAB, 0xAD, 0xAE
TEST_PASSWORD, READ_INPUT, READ_OUTPUT, WRITE_OUTPUT = 0xA4, 0xC0, 0xD0, 0xD1
WRITE_KBD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX = 0xD2, 0xD3, 0xD4
A20_OFF, A20_ON, READ_TEST, PULSE_OUTPUT = 0xDD, 0xDF, 0xE0, 0xF0
SELF_TEST_PASSED, NO_PASSWORD, INPUT_NOT_LOCKED = 0x55, 0xF1, 0x80

RELEASE_PREFIX = 0xF0
BUFFER = 16
"""Bytes that a keyboard or mouse remembers."""
BYTE_TIME = 659_000
"""ns: eleven bits at the fastest clock of a PS/2 device, 16.7 kHz."""


class Ps2Device(Device):
    """A keyboard or a mouse at its wire.

    ``queue``: what it has to report, 16 bytes at most; ``answers`` to commands go first.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("queue", "answers", "_last_sent", "_command")

    def __init__(self) -> None:
        self.queue: deque[int] = deque(maxlen=BUFFER)
        self.answers: deque[int] = deque(maxlen=BUFFER)
        self._last_sent = 0
        self._command = 0
        self._queued: Callable[[], None] = lambda: None

    def on_queued(self, callback: Callable[[], None]) -> None:
        """Call back when there is something to fetch."""
        self._queued = callback

    def room(self) -> int:
        """How many bytes of reports can be taken now."""
        return BUFFER - len(self.queue)

    def report(self, data: bytes) -> None:
        """Queue a report."""
        self.queue.extend(data)
        self._queued()

    def say(self, *answer: int) -> None:
        """Answer a command."""
        self._last_sent = answer[-1]
        self.answers.extend(answer)
        self._queued()

    def waiting(self) -> bool:
        """True while there is a byte for the controller."""
        return bool(self.answers or self.queue)

    def take(self) -> int:
        """The next byte."""
        return self.answers.popleft() if self.answers else self.queue.popleft()

    def receive(self, byte: int) -> None:
        """A command, or the argument of the one before."""
        raise NotImplementedError

    def restored(self) -> None:
        values = (*self.queue, *self.answers, self._last_sent, self._command)
        self.require(all(0 <= byte <= 0xFF for byte in values), "a byte")


class KeyboardController(Device):
    """The 8042 with the keyboard and the auxiliary (mouse) port.

    ``set_a20(enabled)``, ``reset_processor()``: two pins of its output port.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *("_config", "_ram", "_status", "_output", "_output_port", "_argument_of", "_answers"),
        *("_release", "irq1", "irq12", "_wire"),
    )
    name = "8042"

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        keyboard: Ps2Device,
        mouse: Ps2Device,
        *,
        irq1: IrqLine,
        irq12: IrqLine,
        set_a20: Callable[[bool], None],
        reset_processor: Callable[[], None],
    ) -> None:
        self.keyboard, self.mouse = keyboard, mouse
        self.irq1, self.irq12 = irq1, irq12
        self._set_a20, self._reset_processor = set_a20, reset_processor
        self._clock = clock
        self._wire = clock.timer(self._fetch)
        self._ram = bytearray(32)
        self._answers: deque[int] = deque(maxlen=4)
        keyboard.on_queued(self._listen)
        mouse.on_queued(self._listen)
        bus.ports.map(DATA_PORT, 1, self._read_data, self._write_data, "8042 data")
        bus.ports.map(COMMAND_PORT, 1, self._read_status, self._write_command, "8042 command")
        self.reset()

    def reset(self) -> None:
        self._config = CONFIG_IRQ1 | CONFIG_IRQ12
        self._ram[:] = bytes(32)
        self._status = STATUS_ENABLED | STATUS_COMMAND
        self._output = self._argument_of = 0
        self._output_port = OUTPUT_NOT_RESET | OUTPUT_A20
        self._release = False
        self._answers.clear()
        self._wire.cancel()
        self._update_irqs()

    # -- the wires to the devices --------------------------------------------------------------

    def _listen(self) -> None:
        """Something may be there to fetch: let a byte come over the wire."""
        if self._status & STATUS_OBF or self._wire.deadline is not None:
            return
        if self._talker() is not None:
            self._wire.arm(self._clock.now() + BYTE_TIME)

    def _talker(self) -> Ps2Device | None:
        """The device whose byte comes next: the keyboard before the mouse."""
        if self.keyboard.waiting() and not self._config & CONFIG_KBD_OFF:
            return self.keyboard
        if self.mouse.waiting() and not self._config & CONFIG_AUX_OFF:
            return self.mouse
        return None

    def _fetch(self) -> None:
        """A byte has arrived."""
        device = self._talker()
        if self._status & STATUS_OBF or device is None:
            return
        byte = device.take()
        if device is self.mouse:
            self._put(byte, STATUS_AUX)
        elif not self._config & CONFIG_TRANSLATE:
            self._put(byte, 0)
        elif byte == RELEASE_PREFIX:  # becomes bit 7 of the byte that follows
            self._release = True
            self._fetch()
        else:
            self._put(SET_2_TO_1[byte] | (0x80 if self._release else 0), 0)
            self._release = False

    def _put(self, byte: int, aux: int) -> None:
        self._output = byte
        self._status = self._status & ~STATUS_AUX | STATUS_OBF | aux
        self._update_irqs()

    def _update_irqs(self) -> None:
        full = bool(self._status & STATUS_OBF)
        aux = bool(self._status & STATUS_AUX)
        self.irq1.set(full and not aux and bool(self._config & CONFIG_IRQ1))
        self.irq12.set(full and aux and bool(self._config & CONFIG_IRQ12))

    # -- ports -------------------------------------------------------------------------------

    def _read_data(self, _offset: int, _size: int) -> int:
        value = self._output
        if self._status & STATUS_OBF:
            self._status &= ~(STATUS_OBF | STATUS_AUX)
            self._update_irqs()
            if self._answers:
                self._put(self._answers.popleft(), 0)
            else:
                self._listen()
        return value

    def _read_status(self, _offset: int, _size: int) -> int:
        return self._status

    def _answer(self, byte: int) -> None:
        """A byte from the controller itself: at once, before what the devices have to say."""
        if self._status & STATUS_OBF:
            self._answers.append(byte)
        else:
            self._put(byte, 0)

    def _write_command(self, _offset: int, _size: int, command: int) -> None:
        self._status |= STATUS_COMMAND
        self._argument_of = 0
        if command & 0xE0 == READ_RAM:
            self._answer(self._config if command == READ_RAM else self._ram[command & 31])
        elif command & 0xE0 == WRITE_RAM or command in _TAKES_ARGUMENT:
            self._argument_of = command
        elif command in _CONFIG_CHANGES:
            clear, set_ = _CONFIG_CHANGES[command]
            self._config = self._config & ~clear | set_
            self._listen()
        elif command == SELF_TEST:
            self._status |= STATUS_SYS
            self._config |= CONFIG_SYS
            self._answer(SELF_TEST_PASSED)
        elif command == READ_OUTPUT:
            self._answer(self._output_port | self._output_bits())
        elif command in _ANSWERS:
            self._answer(_ANSWERS[command])
        elif command in {A20_OFF, A20_ON}:
            self._write_output(self._output_port & ~OUTPUT_A20 | command & OUTPUT_A20)
        elif command >= PULSE_OUTPUT and not command & OUTPUT_NOT_RESET:
            self._reset_processor()

    def _output_bits(self) -> int:
        if not self._status & STATUS_OBF:
            return 0
        return OUTPUT_AUX_OBF if self._status & STATUS_AUX else OUTPUT_OBF

    def _write_data(self, _offset: int, _size: int, value: int) -> None:
        self._status &= ~STATUS_COMMAND
        command, self._argument_of = self._argument_of, 0
        if command == 0:
            self._config &= ~CONFIG_KBD_OFF
            self.keyboard.receive(value)
            self._listen()
        elif command == WRITE_RAM:
            self._config = value
            self._status = self._status & ~STATUS_SYS | value & CONFIG_SYS
            self._update_irqs()
            self._listen()
        elif command & 0xE0 == WRITE_RAM:
            self._ram[command & 31] = value
        elif command == WRITE_OUTPUT:
            self._write_output(value)
        elif command == WRITE_KBD_BUFFER:
            self._put(value, 0)
        elif command == WRITE_AUX_BUFFER:
            self._put(value, STATUS_AUX)
        else:
            self._config &= ~CONFIG_AUX_OFF
            self.mouse.receive(value)
            self._listen()

    def _write_output(self, value: int) -> None:
        changed = self._output_port ^ value
        self._output_port = value & (OUTPUT_A20 | OUTPUT_NOT_RESET)
        if changed & OUTPUT_A20:
            self._set_a20(bool(value & OUTPUT_A20))
        if not value & OUTPUT_NOT_RESET:
            self._reset_processor()

    def restored(self) -> None:
        registers = (self._config, self._status, self._output, self._output_port)
        self.require(all(0 <= value <= 0xFF for value in registers), "a register of 9 bits")
        known = self._argument_of & 0xE0 == WRITE_RAM or self._argument_of in _TAKES_ARGUMENT
        self.require(known or self._argument_of == 0, "a command")
        self.require(all(0 <= byte <= 0xFF for byte in self._answers), "a byte")


_TAKES_ARGUMENT = frozenset({WRITE_OUTPUT, WRITE_KBD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX})
_CONFIG_CHANGES = {
    AUX_DISABLE: (0, CONFIG_AUX_OFF),
    AUX_ENABLE: (CONFIG_AUX_OFF, 0),
    KBD_DISABLE: (0, CONFIG_KBD_OFF),
    KBD_ENABLE: (CONFIG_KBD_OFF, 0),
}
_ANSWERS = {
    TEST_PASSWORD: NO_PASSWORD,
    AUX_TEST: 0,
    KBD_TEST: 0,
    READ_INPUT: INPUT_NOT_LOCKED,
    READ_TEST: 0,
}
