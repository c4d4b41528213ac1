"""The I/O APIC (Intel 82093AA data sheet; "MultiProcessor Specification" 1.4, section 3.6.2).

::

    FEC00000  IOREGSEL   index
    FEC00010  IOWIN      00 IOAPICID (27-24)   01 IOAPICVER   02 IOAPICARB
                         10 + 2n, 11 + 2n  redirection table entry n:
    63-56 destination   16 mask   15 trigger mode (1 level)   14 remote IRR   13 polarity (1 low)
    12 delivery status  11 destination mode (1 logical)  10-8 delivery mode   7-0 vector
    FEC00040  EOI        vector (version 20h)

An entry that is due is sent as the message that a PCI device would write (SDM volume 3, section
11.11), so there is one way into the local APICs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus

BASE, WINDOW = 0xFEC0_0000, 0x1000
PINS = 24
VERSION = 0x20
IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40
IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x00, 0x01, 0x02, 0x10

MASKED, LEVEL, REMOTE_IRR, ACTIVE_LOW, DELIVERY_STATUS = 1 << 16, 1 << 15, 1 << 14, 1 << 13, 1 << 12
READ_ONLY = REMOTE_IRR | DELIVERY_STATUS
WRITABLE = 0xFF << 56 | 0x1_FFFF
EXTINT = 7
TIMER_PIN = 2
"""IRQ 0 arrives here; pin 0 is the 8259 pair's."""
MSI_ADDRESS = 0xFEE0_0000
MSI_LEVEL, MSI_ASSERT = 1 << 15, 1 << 14


class IoApic(Device):
    """The I/O APIC.

    ``send_msi(address, data)`` reaches the local APICs, which call :meth:`end_of_interrupt`.
    The delivery mode is passed on as it is (7, ExtINT: the local APIC asks the 8259 pair).
    """

    SAVED: ClassVar[tuple[str, ...]] = ("_select", "_id", "_levels", "_table")
    name = "ioapic"
    load_order = 1

    def __init__(self, bus: Bus, send_msi: Callable[[int, int], None]) -> None:
        self.send_msi = send_msi
        self._table = [MASKED] * PINS
        self._levels = 0
        bus.mmio.map(BASE, WINDOW, self._read, self._write, "I/O APIC")
        self.reset()

    def reset(self) -> None:
        self._select = self._id = 0
        self._table[:] = [MASKED] * PINS

    # -- pins --------------------------------------------------------------------------------

    def set_irq(self, number: int, level: bool) -> None:
        """Drive an ISA interrupt: IRQ 0 is on pin 2, the others on their own number's pin."""
        if number != TIMER_PIN:
            self.set_pin(TIMER_PIN if number == 0 else number, level)

    def set_pin(self, pin: int, level: bool) -> None:
        """Drive pin 0-23: ``level`` says whether it is asserted, whatever the polarity bit says.

        An edge at a masked pin is lost (data sheet, section 3.2.4, interrupt mask).
        """
        bit = 1 << pin
        before = self._levels
        self._levels = before | bit if level else before & ~bit
        entry = self._table[pin]
        if entry & LEVEL:
            self._service(pin)
        elif level and not before & bit and not entry & MASKED:
            self._send(entry)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC has ended a level-triggered interrupt of this vector."""
        for pin, entry in enumerate(self._table):
            if entry & LEVEL and entry & 0xFF == vector and entry & REMOTE_IRR:
                self._table[pin] = entry & ~REMOTE_IRR
                self._service(pin)

    def _service(self, pin: int) -> None:
        """Send the message of a level-triggered pin that is asserted and not being served."""
        entry = self._table[pin]
        if entry & LEVEL and self._levels >> pin & 1 and not entry & (MASKED | REMOTE_IRR):
            self._table[pin] = entry | REMOTE_IRR
            self._send(entry)

    def _send(self, entry: int) -> None:
        address = MSI_ADDRESS | (entry >> 56) << 12 | (entry >> 11 & 1) << 2
        trigger = MSI_LEVEL | MSI_ASSERT if entry & LEVEL else 0
        self.send_msi(address, entry & 0x7FF | trigger)

    # -- registers ---------------------------------------------------------------------------

    def _read(self, offset: int, size: int) -> int:
        if offset & ~3 == IOREGSEL:
            value = self._select
        elif offset & ~3 == IOWIN:
            value = self._read_register(self._select)
        else:
            value = 0
        return value >> 8 * (offset & 3)

    def _read_register(self, index: int) -> int:
        if index in {IOAPICID, IOAPICARB}:
            return self._id << 24
        if index == IOAPICVER:
            return VERSION | PINS - 1 << 16
        pin = index - IOREDTBL >> 1
        if 0 <= pin < PINS:
            return self._table[pin] >> 32 * (index & 1) & 0xFFFF_FFFF
        return 0

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN and size >= 4:  # the data sheet allows dwords only
            self._write_register(self._select, value & 0xFFFF_FFFF)
        elif offset == EOI:
            self.end_of_interrupt(value & 0xFF)

    def _write_register(self, index: int, value: int) -> None:
        if index == IOAPICID:
            self._id = value >> 24 & 0xF
        pin = index - IOREDTBL >> 1
        if not 0 <= pin < PINS:
            return
        shift = 32 * (index & 1)
        mask = 0xFFFF_FFFF << shift & WRITABLE & ~READ_ONLY
        entry = self._table[pin] & ~mask | value << shift & mask
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR
        self._table[pin] = entry
        self._service(pin)

    def restored(self) -> None:
        allowed = WRITABLE | READ_ONLY
        self.require(all(0 <= entry <= allowed for entry in self._table), "a table entry")
        self.require(0 <= self._select <= 0xFF and 0 <= self._id <= 0xF, "a register")
