"""IRQ 0-15 of the ISA bus: each a pin of the 8259 pair and of the I/O APIC at once.

Several wires may drive one IRQ (PCI devices behind the PIRQ router, the SCI).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.irq import IrqLine, SharedLine

if TYPE_CHECKING:
    from collections.abc import Callable

IRQS = 16


class IsaIrqs:
    """``sinks``: callables ``set_irq(number, level)`` of the interrupt controllers."""

    def __init__(self, *sinks: Callable[[int, bool], None]) -> None:
        self._sinks = sinks
        self._shared = [SharedLine(self._sink(number)) for number in range(IRQS)]

    def line(self, number: int) -> IrqLine:
        """A new wire to IRQ ``number``."""
        return self._shared[number].line()

    def _sink(self, number: int) -> Callable[[bool], None]:
        def changed(level: bool) -> None:
            for sink in self._sinks:
                sink(number, level)

        return changed
