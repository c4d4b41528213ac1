"""int 17h: the parallel ports, and int 05h: the screen on the first of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware
    from vdisk.vm._bios.video import VideoService

CANDIDATES = (0x378, 0x278, 0x3BC)
DATA, STATUS, CONTROL = 0, 1, 2
STROBE, INITIALIZE, SELECT = 0x01, 0x04, 0x08
BUSY, TIMED_OUT, INVERTED = 0x80, 0x01, 0x48
IDLE = SELECT | INITIALIZE
PRINTING, FAILED = 1, 0xFF


class PrinterService:
    """int 17h: AH 0 prints AL, 1 initializes, 2 asks; DX is the port, AH the status."""

    def __init__(self, hardware: Hardware, video: VideoService) -> None:
        self.hw, self.video = hardware, video

    def initialize(self) -> int:
        """POST: find the ports; how many there are."""
        found = [port for port in CANDIDATES if self._there(port)]
        for index in range(3):
            port = found[index] if index < len(found) else 0
            self.hw.bda.set_word(layout.PRINTER_PORTS + 2 * index, port)
            self.hw.bda.set_byte(layout.PRINTER_TIMEOUTS + index, 0x14)
        return len(found)

    def _there(self, port: int) -> bool:
        for pattern in (0xAA, 0x55):
            self.hw.outb(port + DATA, pattern)
            if self.hw.inb(port + DATA) != pattern:
                return False
        return True

    def service(self, call: Call) -> None:
        port = self.hw.bda.word(layout.PRINTER_PORTS + 2 * call.dx) if call.dx < 3 else 0
        if not port or call.ah > 2:
            return
        if call.ah == 0:
            call.ah = self._print(port, call.al)
            return
        if call.ah == 1:
            self.hw.outb(port + CONTROL, SELECT)
            self.hw.outb(port + CONTROL, IDLE)
        call.ah = self._status(port)

    def _status(self, port: int) -> int:
        """Acknowledge and error are active low on the wire; busy is inverted there."""
        return (self.hw.inb(port + STATUS) ^ INVERTED) & 0xF8

    def _print(self, port: int, character: int) -> int:
        if not self.hw.inb(port + STATUS) & BUSY:
            return self._status(port) | TIMED_OUT
        self.hw.outb(port + DATA, character)
        self.hw.outb(port + CONTROL, IDLE | STROBE)
        self.hw.outb(port + CONTROL, IDLE)
        return self._status(port)

    def print_screen(self, call: Call) -> None:
        """int 05h: every row of the page shown, each a line; 50:00 says how it went."""
        bda, page = self.hw.bda, self.hw.bda.byte(layout.ACTIVE_PAGE)
        port = bda.word(layout.PRINTER_PORTS)
        if bda.byte(layout.PRINT_SCREEN_STATUS) == PRINTING or not port:
            return
        bda.set_byte(layout.PRINT_SCREEN_STATUS, PRINTING)
        cells, failed = self.video.cells(), 0
        for row in range(cells.rows):
            text = bytes(cells.get(page, row, column)[0] or 32 for column in range(cells.columns))
            for character in b"\r\n" + text:
                failed |= self._print(port, character) & TIMED_OUT
            if failed:
                break
        bda.set_byte(layout.PRINT_SCREEN_STATUS, FAILED if failed else 0)
