"""System control port A, 92h (82371SB data sheet, section 4.6; PS/2 technical reference).

::

    bit 1  A20 gate        bit 0  0 -> 1: fast reset of the processor
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus

PORT = 0x92
A20, FAST_RESET = 2, 1


class Port92(Device):
    """``set_a20(enabled)`` and ``reset_processor()`` are what the port's two bits do.

    The keyboard controller gates A20 as well; whoever writes last decides.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("_value",)
    name = "port92"

    def __init__(
        self, bus: Bus, set_a20: Callable[[bool], None], reset_processor: Callable[[], None]
    ) -> None:
        self._set_a20 = set_a20
        self._reset_processor = reset_processor
        self._value = 0
        bus.ports.map(PORT, 1, lambda _offset, _size: self._value, self._write, "port 92h")

    def reset(self) -> None:
        self._value = 0

    def _write(self, _offset: int, _size: int, value: int) -> None:
        before, self._value = self._value, value & (A20 | FAST_RESET)
        if (before ^ value) & A20:
            self._set_a20(bool(value & A20))
        if value & ~before & FAST_RESET:
            self._reset_processor()
