"""The ISA bridge: Intel 82371SB, PIIX3 (data sheet 290550, section 2.2, function 0).

::

    60-63  PIRQRC[A:D]  bit 7: not routed; 3-0 the ISA IRQ (3-7, 9-12, 14, 15)
    CF9h   reset control: bit 2 RCPU (a rising edge resets), bit 1 SRST (1: the whole machine)

PIRQA#-PIRQD# arrive from the PCI bus and leave on the ISA interrupts that they are routed to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.pci import INTX_PINS, Identity, PciDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.devices.isa_irqs import IsaIrqs
    from vdisk.vm.devices.pci import PciBus

VENDOR, DEVICE = 0x8086, 0x7000
ISA_BRIDGE_CLASS = 0x060100
SLOT = 1
PIRQRC, NOT_ROUTED = 0x60, 0x80
ROUTABLE = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})
RESET_CPU, RESET_SYSTEM = 0x04, 0x02
DEFAULTS = {0x4C: 0x4D, 0x4E: 0x03, 0x69: 0x02, 0x70: 0x80, 0x76: 0x0C, 0x77: 0x0C, 0x78: 0x02}
"""Registers that say how ISA timing and DMA are; firmware may write them, nobody asks."""


class Piix3(PciDevice):
    """Function 0 of slot 1.  ``reset_machine()``: RSTDRV, what CF9h asks for."""

    SAVED: ClassVar[tuple[str, ...]] = (*PciDevice.SAVED, "_reset_control", "_levels")

    def __init__(
        self, bus: Bus, pci_bus: PciBus, irqs: IsaIrqs, reset_machine: Callable[[], None]
    ) -> None:
        super().__init__("piix3", bus, Identity(VENDOR, DEVICE, ISA_BRIDGE_CLASS))
        self._reset_machine = reset_machine
        self._lines = {number: irqs.line(number) for number in ROUTABLE}
        self._levels = [False] * INTX_PINS
        self._reset_control = 0
        self.define(0x06, 2, 0x0200, clearable=0xF900)  # medium DEVSEL timing
        for register, value in DEFAULTS.items():
            self.define(register, 1, value, writable=0xFF)
        for pin in range(INTX_PINS):
            self.define(PIRQRC + pin, 1, NOT_ROUTED, writable=0x8F)
            pci_bus.pirq[pin].connect(self._follow(pin))
        pci_bus.reset_control = (lambda: self._reset_control, self._write_reset_control)

    def _follow(self, pin: int) -> Callable[[bool], None]:
        def changed(level: bool) -> None:
            self._levels[pin] = level
            self._route()

        return changed

    def _route(self) -> None:
        """Each ISA interrupt is high while any PIRQ that leads to it is."""
        routes = self.config[PIRQRC : PIRQRC + INTX_PINS]
        high = {route for route, level in zip(routes, self._levels, strict=True) if level}
        for number, line in self._lines.items():
            line.set(number in high)

    def config_written(self, offset: int, size: int) -> None:
        if offset < PIRQRC + INTX_PINS and offset + size > PIRQRC:
            self._route()

    def _write_reset_control(self, value: int) -> None:
        rising = value & ~self._reset_control & RESET_CPU
        self._reset_control = value & (RESET_CPU | RESET_SYSTEM)
        if rising:
            self._reset_machine()

    def reset(self) -> None:
        super().reset()
        self._reset_control = 0
        self._route()

    def restored(self) -> None:
        super().restored()
        self.require(0 <= self._reset_control <= 6, "the reset control register")
        self._route()
