"""The 8042 keyboard controller, as the BIOS drives it (IBM PS/2 technical reference).

The controller itself answers at once, but a byte of the mouse takes its time, which does not pass
while a service runs.  A conversation with the mouse therefore is kept in the EBDA and goes on one
step each time the ROM comes back::

    begin() -> step() -> step() … -> DONE or FAILED
               send a byte, wait for FA, send the next …, then collect the answer

Meanwhile the interrupts of the controller are off; afterwards they are as they were.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from vdisk.vm._bios import layout

if TYPE_CHECKING:
    from vdisk.vm._bios.hardware import Hardware

DATA, STATUS = 0x60, 0x64
OUTPUT_FULL, INPUT_FULL, FROM_MOUSE = 0x01, 0x02, 0x20
READ_COMMAND_BYTE, WRITE_COMMAND_BYTE, SELF_TEST, TO_MOUSE = 0x20, 0x60, 0xAA, 0xD4
KEYBOARD_IRQ, MOUSE_IRQ, SYSTEM_FLAG, NO_KEYBOARD, NO_MOUSE, TRANSLATE = 1, 2, 4, 16, 32, 64
DEFAULT_COMMAND_BYTE = KEYBOARD_IRQ | SYSTEM_FLAG | NO_MOUSE | TRANSLATE
ACKNOWLEDGED, ENABLE_SCANNING = 0xFA, 0xF4
MOUSE_LINE = 12
PATIENCE = 100
"""Reads of the status register; a controller that is there has answered before."""
LONGEST_ANSWER = 1_000_000_000  # ns: a reset of a real mouse takes half of that
ROOM = 4
"""Commands, and answers, of one conversation."""


class Talk(enum.IntEnum):
    """How a conversation stands."""

    NONE = 0
    STARTING = 1
    GOING_ON = 2
    DONE = 3
    FAILED = 4


class Controller:
    """Its command byte, and conversations with the mouse."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.ebda = hardware.ebda

    def _until_accepted(self) -> None:
        for _ in range(PATIENCE):
            if not self.hw.inb(STATUS) & INPUT_FULL:
                return

    def _command(self, command: int) -> None:
        self._until_accepted()
        self.hw.outb(STATUS, command)

    def _write(self, value: int) -> None:
        self._until_accepted()
        self.hw.outb(DATA, value)

    def _read(self) -> int | None:
        """What the controller itself answers."""
        for _ in range(PATIENCE):
            if self.hw.inb(STATUS) & OUTPUT_FULL:
                return self.hw.inb(DATA)
        return None

    def command_byte(self) -> int:
        self._command(READ_COMMAND_BYTE)
        value = self._read()
        return DEFAULT_COMMAND_BYTE if value is None else value

    def set_command_byte(self, value: int) -> None:
        self._command(WRITE_COMMAND_BYTE)
        self._write(value)

    def let_mouse_interrupt(self, allowed: bool) -> None:
        """Open or close the way of IRQ 12."""
        value = self.command_byte() & ~(MOUSE_IRQ | NO_MOUSE)
        self.set_command_byte(value | (MOUSE_IRQ if allowed else NO_MOUSE))
        if allowed:
            self.hw.enable_irq(MOUSE_LINE)

    def mouse_byte(self) -> int | None:
        """The byte for which IRQ 12 came."""
        wanted = OUTPUT_FULL | FROM_MOUSE
        if self.hw.inb(STATUS) & wanted != wanted:
            return None
        return self.hw.inb(DATA)

    def initialize(self) -> None:
        """POST: the keyboard interrupts, with scan codes of set 1; the mouse is silent.

        Answers of the keyboard come as interrupts, which drop them.
        """
        for _ in range(16):  # what is left from before
            if not self.hw.inb(STATUS) & OUTPUT_FULL:
                break
            self.hw.inb(DATA)
        self._command(SELF_TEST)
        self._read()
        self.set_command_byte(DEFAULT_COMMAND_BYTE)
        self._write(ENABLE_SCANNING)
        self.ebda.set_byte(layout.TALK, Talk.NONE)

    # -- conversations -----------------------------------------------------------------------

    def begin(self, commands: bytes, answers: int) -> None:
        """Say ``commands`` to the mouse, and expect so many bytes after the last."""
        ebda = self.ebda
        ebda.put(layout.DEADLINE, 8, self.hw.clock.now() + LONGEST_ANSWER)
        for offset, value in (
            *((layout.TALK, Talk.STARTING), (layout.TALK_COMMANDS, len(commands))),
            *((layout.TALK_ANSWERS, answers), (layout.TALK_PLACE, 0)),
        ):
            ebda.set_byte(offset, value)
        self.hw.space.write(ebda.base + layout.TALK_BYTES, commands.ljust(ROOM, b"\0"))

    def step(self) -> Talk:
        """Do what can be done now; the state afterwards."""
        ebda = self.ebda
        state = ebda.byte(layout.TALK)
        if state == Talk.STARTING:
            self._start()
        elif state == Talk.GOING_ON:
            self._listen()
        state = ebda.byte(layout.TALK)
        late = self.hw.clock.now() > ebda.get(layout.DEADLINE, 8)
        if late and state in {Talk.STARTING, Talk.GOING_ON}:
            self._end(Talk.FAILED, restore=state == Talk.GOING_ON)
            return Talk.FAILED
        return Talk(state) if state <= Talk.FAILED else Talk.NONE

    def answer(self) -> bytes:
        """What the mouse has said, and the end of the conversation."""
        count = min(self.ebda.byte(layout.TALK_ANSWERS), ROOM)
        self.ebda.set_byte(layout.TALK, Talk.NONE)
        return self.hw.space.read(self.ebda.base + layout.TALK_BYTES + ROOM, count)

    def _start(self) -> None:
        """Begin once the byte of an earlier interrupt has been taken."""
        if self.hw.inb(STATUS) & OUTPUT_FULL:
            return
        before = self.command_byte()
        self.ebda.set_byte(layout.TALK_COMMAND_BYTE, before)
        self.set_command_byte(before & ~(KEYBOARD_IRQ | MOUSE_IRQ | NO_MOUSE) | NO_KEYBOARD)
        self.ebda.set_byte(layout.TALK, Talk.GOING_ON)
        self._say(0)

    def _say(self, place: int) -> None:
        self._command(TO_MOUSE)
        self._write(self.ebda.byte(layout.TALK_BYTES + place % ROOM))

    def _listen(self) -> None:
        byte = self.mouse_byte()
        if byte is None:
            return
        ebda = self.ebda
        place, commands = ebda.byte(layout.TALK_PLACE), ebda.byte(layout.TALK_COMMANDS)
        if place < commands:
            if byte != ACKNOWLEDGED:
                self._end(Talk.FAILED)
                return
            if place + 1 < commands:
                self._say(place + 1)
        else:
            ebda.set_byte(layout.TALK_BYTES + ROOM + (place - commands) % ROOM, byte)
        ebda.set_byte(layout.TALK_PLACE, place + 1)
        if place + 1 >= commands + ebda.byte(layout.TALK_ANSWERS):
            self._end(Talk.DONE)

    def _end(self, state: Talk, restore: bool = True) -> None:
        if restore:
            self.set_command_byte(self.ebda.byte(layout.TALK_COMMAND_BYTE))
        self.ebda.set_byte(layout.TALK, state)
