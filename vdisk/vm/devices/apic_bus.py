"""How interrupt messages reach the local APICs (SDM volume 3, sections 11.6, 11.11).

Everybody sends the same message: a local APIC by its ICR (an IPI), a PCI device or the I/O APIC by
writing to FEExxxxx (MSI)::

    address  31       20 19          12 11    4 3  2 1 0
            +-----------+--------------+-------+--+-+---+    RH: redirection hint (lowest priority)
            | FEE       | destination  |       |RH|DM   |    DM: 1 logical, 0 physical
            +-----------+--------------+-------+--+-+---+
    data     15 trigger (1 level)   14 assert   10-8 delivery mode   7-0 vector

Fixed messages reach every APIC of the destination, lowest-priority ones the APIC whose processor
has the least to do (lowest PPR; of equals the one of the lowest ID, so that runs repeat).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.devices.lapic import Lapic

MSI_ADDRESS, MSI_ADDRESS_MASK = 0xFEE0_0000, 0xFFF0_0000
MSI_REDIRECTION_HINT, MSI_LOGICAL = 1 << 3, 1 << 2
MSI_LEVEL_TRIGGERED = 1 << 15
BROADCAST = 0xFF


class DeliveryMode(enum.IntEnum):
    """Bits 8-10 of ICR, LVT entries, MSI data, redirection entries (figure 11-12)."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    RESERVED = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


FIXED, LOWEST_PRIORITY = int(DeliveryMode.FIXED), int(DeliveryMode.LOWEST_PRIORITY)
"""Those of nearly all messages: looking a number up in an enumeration costs more than the rest."""


class ApicBus:
    """The local APICs of a machine, and who wants to hear of an end of interrupt."""

    def __init__(self) -> None:
        self.apics: list[Lapic] = []
        self._on_eoi: list[Callable[[int], None]] = []

    def attach(self, apic: Lapic) -> None:
        """Called by each local APIC."""
        self.apics.append(apic)

    def on_eoi(self, callback: Callable[[int], None]) -> None:
        """Call ``callback(vector)`` when a level-triggered interrupt is ended (the I/O APIC)."""
        self._on_eoi.append(callback)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC broadcasts an EOI."""
        for callback in self._on_eoi:
            callback(vector)

    def send_msi(self, address: int, data: int) -> None:
        """A write of a device to FEExxxxx; anywhere else it is lost, as DMA to nowhere is."""
        if address & ~0xF_FFFF != MSI_ADDRESS:
            return
        mode = data >> 8 & 7
        if address & MSI_REDIRECTION_HINT and mode == FIXED:
            mode = LOWEST_PRIORITY
        logical = bool(address & MSI_LOGICAL)
        targets = self.destination(address >> 12 & 0xFF, logical=logical)
        self.deliver(targets, mode, data & 0xFF, level=bool(data & MSI_LEVEL_TRIGGERED))

    def destination(self, destination: int, *, logical: bool) -> list[Lapic]:
        """The APICs that a destination field names."""
        return [apic for apic in self.apics if apic.matches(destination, logical=logical)]

    def deliver(self, targets: Sequence[Lapic], mode: int, vector: int, *, level: bool) -> None:
        """Hand a message to its targets; ``mode``: a :class:`DeliveryMode`, as a number."""
        if mode == LOWEST_PRIORITY and len(targets) > 1:
            listening = [apic for apic in targets if apic.enabled]
            targets = sorted(listening, key=lambda apic: apic.processor_priority)[:1]
        for apic in targets:
            apic.accept(mode, vector, level=level)

    def set_lint0(self, level: bool) -> None:
        """The INTR output of the 8259 pair, which is wired to LINT0 of every local APIC."""
        for apic in self.apics:
            apic.set_lint(0, level)

    def set_lint1(self, level: bool) -> None:
        """The NMI line of the board."""
        for apic in self.apics:
            apic.set_lint(1, level)
