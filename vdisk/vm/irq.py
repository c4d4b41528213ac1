"""Interrupt lines: a device's wire to an interrupt controller.

Lines carry levels.  A chip that signals by edges calls :meth:`IrqLine.pulse`; a controller that
is triggered by edges keeps the last level itself.  Several devices on one pin (PCI INTx) each
have a line of a :class:`SharedLine`, which is high while any of them is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class IrqLine:
    """One wire.  ``sink(level)`` is called when the level changes; the bus lock is held."""

    def __init__(self, sink: Callable[[bool], None] | None = None) -> None:
        self._sink = sink
        self.level = False

    def connect(self, sink: Callable[[bool], None]) -> None:
        """Lead the wire to a pin."""
        self._sink = sink
        if self.level:
            sink(True)

    def set(self, level: bool) -> None:
        """Drive the wire high or low."""
        if level != self.level:
            self.level = level
            if self._sink is not None:
                self._sink(level)

    def raise_(self) -> None:
        """Drive it high."""
        self.set(True)

    def lower(self) -> None:
        """Drive it low."""
        self.set(False)

    def pulse(self) -> None:
        """An edge: high, then low."""
        self.set(True)
        self.set(False)


class SharedLine:
    """A pin that several wires drive: high while any of them is."""

    def __init__(self, sink: Callable[[bool], None]) -> None:
        self._sink = sink
        self._high = 0

    def line(self) -> IrqLine:
        """A new wire to this pin."""
        return IrqLine(self._changed)

    def _changed(self, level: bool) -> None:
        before = self._high
        self._high += 1 if level else -1
        if (before > 0) != (self._high > 0):
            self._sink(self._high > 0)


class InterruptSource(Protocol):
    """What a vCPU asks for external interrupts: its local APIC, or the 8259 pair directly.

    Called with ``bus.lock`` held.
    """

    def pending(self) -> bool:
        """True while an interrupt waits that the vCPU may take."""

    def acknowledge(self) -> int:
        """Take it: the vector (0-255)."""
