"""The parallel port in compatibility mode (IEEE 1284-1994, annex; PC technical reference).

::

    +0  data
    +1  status   /BUSY(7) /ACK(6) PAPER OUT(5) SELECT(4) /ERROR(3)
    +2  control  IRQ enable(4) SELECT IN(3) /INIT(2) AUTO FEED(1) STROBE(0)

A printer that is always ready takes a byte when STROBE is asserted, and acknowledges at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device, bytewise_read, bytewise_write

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus
    from vdisk.vm.devices.serial import Stream
    from vdisk.vm.irq import IrqLine

LPT1_PORT, LPT1_IRQ = 0x378, 7
DATA, STATUS, CONTROL = 0, 1, 2
STATUS_READY = 0xD8  # not busy, no acknowledge pulse, selected, no error
STATUS_UNPLUGGED = 0x78
CONTROL_STROBE, CONTROL_IRQ, CONTROL_INPUT = 0x01, 0x10, 0x20
CONTROL_RESET = 0x0C


class ParallelPort(Device):
    """``stream``: what the printer prints; None: no printer."""

    SAVED: ClassVar[tuple[str, ...]] = ("_data", "_control", "irq")
    name = "parallel"

    def __init__(
        self, bus: Bus, irq: IrqLine, stream: Stream | None = None, port: int = LPT1_PORT
    ) -> None:
        self.irq = irq
        self.stream = stream
        self.reset()
        read, write = bytewise_read(self._read), bytewise_write(self._write)
        bus.ports.map(port, 3, read, write, self.name)

    def reset(self) -> None:
        self._data, self._control = 0, CONTROL_RESET

    def _read(self, offset: int) -> int:
        if offset == DATA:
            return 0xFF if self._control & CONTROL_INPUT else self._data
        if offset == CONTROL:
            return self._control | 0xC0
        return STATUS_READY if self.stream is not None else STATUS_UNPLUGGED

    def _write(self, offset: int, value: int) -> None:
        if offset == DATA:
            self._data = value
        elif offset == CONTROL:
            strobe = value & ~self._control & CONTROL_STROBE
            self._control = value & 0x3F
            if strobe and self.stream is not None:
                self.stream.write(bytes([self._data]))
                if value & CONTROL_IRQ:
                    self.irq.pulse()

    def restored(self) -> None:
        self.require(0 <= self._data <= 0xFF and 0 <= self._control <= 0x3F, "a register")
