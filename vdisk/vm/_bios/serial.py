"""int 14h: the serial ports (16550A; the first four words of the BDA have their addresses)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

CANDIDATES = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
DATA, INTERRUPT_ENABLE, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS = 0, 1, 3, 4, 5, 6
SCRATCH = 7
DIVISOR_ACCESS = 0x80
READY, HOLDING_EMPTY, TIMED_OUT = 0x01, 0x20, 0x80
ERRORS = 0x1E
TERMINAL_READY, REQUEST_TO_SEND = 0x01, 0x02
SECOND = 1_000_000_000
NOT_WAITING = 0


class SerialService:
    """int 14h: AH 0 sets, 1 sends, 2 receives, 3 asks for the status; DX is the port."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware

    def initialize(self) -> int:
        """POST: find the UARTs; how many there are."""
        found = [port for port in CANDIDATES if self._there(port)]
        for index in range(4):
            port = found[index] if index < len(found) else 0
            self.hw.bda.set_word(layout.SERIAL_PORTS + 2 * index, port)
            self.hw.bda.set_byte(layout.SERIAL_TIMEOUTS + index, 1)
        return len(found)

    def _there(self, port: int) -> bool:
        """Only a UART keeps what is written into its scratch register."""
        for pattern in (0x5A, 0xA5):
            self.hw.outb(port + SCRATCH, pattern)
            if self.hw.inb(port + SCRATCH) != pattern:
                return False
        self.hw.outb(port + INTERRUPT_ENABLE, 0)
        return True

    def service(self, call: Call) -> None:
        call.wait = False
        port = self.hw.bda.word(layout.SERIAL_PORTS + 2 * call.dx) if call.dx < 4 else 0
        if not port or call.ah > 3:
            return
        if call.ah == 0:
            self._set(call, port)
        elif call.ah == 1:
            self._send(call, port)
        elif call.ah == 2:
            self._receive(call, port)
        if not call.wait:
            self.hw.ebda.put(layout.SERIAL_DEADLINE, 8, NOT_WAITING)
            if call.ah in {0, 3}:
                call.ah = self.hw.inb(port + LINE_STATUS)
                call.al = self.hw.inb(port + MODEM_STATUS)

    def _set(self, call: Call, port: int) -> None:
        """AL: bits 5-7 the rate, 3-4 parity, 2 stop bits, 0-1 word length."""
        table = self.hw.rom.labels["baud_rates"] + (call.al >> 5) * 2
        divisor = int.from_bytes(self.hw.rom.image[table : table + 2], "little")
        self.hw.outb(port + LINE_CONTROL, DIVISOR_ACCESS)
        self.hw.outb(port + DATA, divisor & 0xFF)
        self.hw.outb(port + INTERRUPT_ENABLE, divisor >> 8)
        self.hw.outb(port + LINE_CONTROL, call.al & 0x1F)
        self.hw.outb(port + INTERRUPT_ENABLE, 0)

    def _send(self, call: Call, port: int) -> None:
        self.hw.outb(port + MODEM_CONTROL, TERMINAL_READY | REQUEST_TO_SEND)
        status = self.hw.inb(port + LINE_STATUS)
        if status & HOLDING_EMPTY:
            self.hw.outb(port + DATA, call.al)
            call.ah = self.hw.inb(port + LINE_STATUS) & ~TIMED_OUT
        else:
            self._wait(call, status)

    def _receive(self, call: Call, port: int) -> None:
        self.hw.outb(port + MODEM_CONTROL, TERMINAL_READY)
        status = self.hw.inb(port + LINE_STATUS)
        if status & READY:
            call.al, call.ah = self.hw.inb(port + DATA), status & ERRORS
        else:
            self._wait(call, status)

    def _wait(self, call: Call, status: int) -> None:
        """Come again, until the timeout in the BDA is over."""
        now = self.hw.clock.now()
        deadline = self.hw.ebda.get(layout.SERIAL_DEADLINE, 8)
        if deadline == NOT_WAITING:
            seconds = self.hw.bda.byte(layout.SERIAL_TIMEOUTS + call.dx)
            deadline = now + seconds * SECOND
            self.hw.ebda.put(layout.SERIAL_DEADLINE, 8, deadline)
        call.wait = now < deadline
        if not call.wait:
            call.ah = status | TIMED_OUT
