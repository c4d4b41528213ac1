"""The PS/2 mouse: int 15h AH=C2h and IRQ 12 (IBM PS/2 BIOS technical reference, pointing device).

A program gives a far handler; each packet that the mouse sends whole is passed to it on the stack
by the ROM: status, X, Y, and a zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.controller import Controller, Talk

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

OK, INVALID_FUNCTION, INVALID_INPUT, INTERFACE_ERROR, NO_HANDLER = 0, 1, 2, 3, 5
HANDLER_SET = 0x80
INDEX = 0x07
RESET, SAMPLE_RATE, RESOLUTION, STATUS = 0xFF, 0xF3, 0xE8, 0xE9
ENABLE, DISABLE, IDENTIFY, SCALING_1, SCALING_2 = 0xF4, 0xF5, 0xF2, 0xE6, 0xE7
RATES = (10, 20, 40, 60, 80, 100, 200)
DEFAULT_PACKET = 3


class MouseService:
    """Eight functions by AL; most of them talk to the mouse, and finish when it has answered."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.controller = Controller(hardware)
        self._functions: dict[int, Callable[[Call], int | tuple[bytes, int]]] = {
            0x00: self._enable,
            0x01: self._reset,
            0x02: self._set_rate,
            0x03: self._set_resolution,
            0x04: self._identify,
            0x05: self._initialize,
            0x06: self._extended,
            0x07: self._set_handler,
        }

    def service(self, call: Call) -> None:
        """Begin: the status at once, or a conversation that the ROM waits for."""
        function = self._functions.get(call.al)
        result = INVALID_FUNCTION if function is None else function(call)
        if isinstance(result, int):
            _finish(call, result)
            return
        self.controller.begin(*result)
        self.go_on(call)

    def go_on(self, call: Call) -> None:
        """The next step; at the end the answer into the registers."""
        state = self.controller.step()
        call.wait = call.spin = state in {Talk.STARTING, Talk.GOING_ON}
        if call.wait:
            return
        answer = self.controller.answer()
        if state is not Talk.DONE:
            _finish(call, INTERFACE_ERROR)
            return
        if call.al == 0x00:
            self.controller.let_mouse_interrupt(bool(call.bh))
        elif call.al in {0x01, 0x05}:
            self._restart_packet()
            self.controller.let_mouse_interrupt(False)
            call.bl, call.bh = answer
        elif call.al == 0x04:
            call.bh = answer[0]
        elif call.al == 0x06 and call.bh == 0:
            call.bl, call.cl, call.dl = answer
        _finish(call, OK)

    def talking(self) -> bool:
        """True while a conversation is going on."""
        return self.hw.ebda.byte(layout.TALK) in {Talk.STARTING, Talk.GOING_ON}

    def _restart_packet(self) -> None:
        self.hw.ebda.set_bits(layout.MOUSE_FLAGS, INDEX, 0)

    def _enable(self, call: Call) -> int | tuple[bytes, int]:
        """BH: 1 the mouse reports, 0 it does not."""
        if call.bh > 1:
            return INVALID_INPUT
        if call.bh and not self.hw.ebda.byte(layout.MOUSE_FLAGS_2) & HANDLER_SET:
            return NO_HANDLER
        self._restart_packet()
        return bytes([ENABLE if call.bh else DISABLE]), 0

    def _reset(self, call: Call) -> int | tuple[bytes, int]:
        return bytes([RESET]), 2

    def _set_rate(self, call: Call) -> int | tuple[bytes, int]:
        if call.bh >= len(RATES):
            return INVALID_INPUT
        return bytes([SAMPLE_RATE, RATES[call.bh]]), 0

    def _set_resolution(self, call: Call) -> int | tuple[bytes, int]:
        return INVALID_INPUT if call.bh > 3 else (bytes([RESOLUTION, call.bh]), 0)

    def _identify(self, call: Call) -> int | tuple[bytes, int]:
        return bytes([IDENTIFY]), 1

    def _initialize(self, call: Call) -> int | tuple[bytes, int]:
        """BH bytes make a packet."""
        if not 1 <= call.bh <= 8:
            return INVALID_INPUT
        self.hw.ebda.set_bits(layout.MOUSE_FLAGS_2, INDEX, call.bh - 1)
        return bytes([RESET]), 2

    def _extended(self, call: Call) -> int | tuple[bytes, int]:
        """BH: 0 the mouse's status, 1 and 2 its scaling."""
        if call.bh > 2:
            return INVALID_INPUT
        return bytes([(STATUS, SCALING_1, SCALING_2)[call.bh]]), 0 if call.bh else 3

    def _set_handler(self, call: Call) -> int:
        """ES:BX; 0000:0000 takes it away."""
        pointer = call.es << 16 | call.bx
        self.hw.ebda.set_dword(layout.MOUSE_HANDLER, pointer)
        self.hw.ebda.set_bits(layout.MOUSE_FLAGS_2, HANDLER_SET, HANDLER_SET if pointer else 0)
        if not pointer:
            self.controller.let_mouse_interrupt(False)
        return OK

    def initialize(self) -> None:
        """POST: packets of three bytes, and nobody to take them."""
        self.hw.ebda.set_byte(layout.MOUSE_FLAGS, 0)
        self.hw.ebda.set_byte(layout.MOUSE_FLAGS_2, DEFAULT_PACKET - 1)

    def interrupt(self, call: Call) -> None:
        """IRQ 12: one more byte; with the last of a packet the ROM calls the handler."""
        ebda = self.hw.ebda
        byte = self.controller.mouse_byte()
        call.wait = False
        if byte is None:
            return
        index = ebda.byte(layout.MOUSE_FLAGS) & INDEX
        wanted = (ebda.byte(layout.MOUSE_FLAGS_2) & INDEX) + 1
        ebda.set_byte(layout.MOUSE_PACKET + index, byte)
        if index + 1 < wanted:
            ebda.set_bits(layout.MOUSE_FLAGS, INDEX, index + 1)
            return
        self._restart_packet()
        if ebda.byte(layout.MOUSE_FLAGS_2) & HANDLER_SET:
            for place in range(3):
                value = ebda.byte(layout.MOUSE_PACKET + place) if place < wanted else 0
                ebda.set_word(layout.MOUSE_ARGUMENTS + 2 * place, value)
            call.ds = self.hw.bda.word(layout.EBDA_SEGMENT)
            call.wait = True


def _finish(call: Call, status: int) -> None:
    call.ah = status
    call.carry = status != OK
