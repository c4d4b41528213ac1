"""What the services work on: the machine's ports, memory, clock and drives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from vdisk.vm._bios.drives import Drives
from vdisk.vm._bios.layout import BDA, Area

if TYPE_CHECKING:
    from vdisk.vm._bios.rom import Rom
    from vdisk.vm._bios.space import Space

CMOS_INDEX, CMOS_DATA = 0x70, 0x71
NMI_OFF = 0x80
PIC1, PIC2 = 0x20, 0xA0
EOI = 0x20


class Ports(Protocol):
    """The I/O ports; :class:`vdisk.vm.bus.IoSpace` is this."""

    def read(self, address: int, size: int) -> int: ...
    def write(self, address: int, size: int, value: int) -> None: ...


class Time(Protocol):
    """A :class:`vdisk.vm.clock.Clock`: nanoseconds since power-on."""

    def now(self) -> int: ...


@dataclass
class Hardware:
    """``low_end``/``high_end``: where RAM below and above 4 GiB ends."""

    ports: Ports
    space: Space
    clock: Time
    rom: Rom
    low_end: int
    high_end: int
    drives: Drives = field(default_factory=Drives)

    def __post_init__(self) -> None:
        self.bda = Area(self.space, BDA)
        self.ebda = Area(self.space)

    def inb(self, port: int) -> int:
        return self.ports.read(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.ports.write(port, 1, value & 0xFF)

    def out_indexed(self, port: int, index: int, value: int) -> None:
        """Write register ``index`` of a chip with an index port and, behind it, a data port."""
        self.outb(port, index)
        self.outb(port + 1, value)

    def in_indexed(self, port: int, index: int) -> int:
        self.outb(port, index)
        return self.inb(port + 1)

    def cmos(self, index: int) -> int:
        """A byte of the MC146818's RAM."""
        self.outb(CMOS_INDEX, index | NMI_OFF)
        value = self.inb(CMOS_DATA)
        self.outb(CMOS_INDEX, 0x0D)
        return value

    def set_cmos(self, index: int, value: int) -> None:
        self.outb(CMOS_INDEX, index | NMI_OFF)
        self.outb(CMOS_DATA, value)
        self.outb(CMOS_INDEX, 0x0D)

    def end_of_interrupt(self, irq: int) -> None:
        """Tell the 8259 pair that an interrupt has been served."""
        if irq >= 8:
            self.outb(PIC2, EOI)
        self.outb(PIC1, EOI)

    def enable_irq(self, irq: int) -> None:
        """Let a line of the 8259 pair through."""
        port = PIC1 + 1 if irq < 8 else PIC2 + 1
        self.outb(port, self.inb(port) & ~(1 << irq % 8))
