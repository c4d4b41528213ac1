"""The Bochs display interface: modes of any size with a linear framebuffer (Bochs, vbe_spec).

::

    1CEh index, 1CFh (and 1D0h) data, 16 bits
    0 ID    1 XRES  2 YRES  3 BPP   4 ENABLE  5 BANK (64 KiB)
    6 VIRT_WIDTH    7 VIRT_HEIGHT   8 X_OFFSET   9 Y_OFFSET   A memory in units of 64 KiB
    ENABLE: 0 enabled   1 GETCAPS (1-3 read the largest)   5 8-bit DAC   6 LFB   7 do not clear
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY = range(11)
ID_LOWEST, ID_NEWEST = 0xB0C0, 0xB0C5
ENABLED, GETCAPS, DAC_8_BIT, LINEAR, NO_CLEAR = 0x01, 0x02, 0x20, 0x40, 0x80
DEPTHS = {4: 4, 8: 8, 15: 16, 16: 16, 24: 24, 32: 32}
"""Bits that a pixel takes in memory, by its depth."""
LARGEST_WIDTH, LARGEST_HEIGHT = 2560, 1600
BANK_SIZE = 1 << 16


class Dispi(Device):
    """The registers.  ``changed(started)``: after a write; True where a mode begins with it."""

    SAVED: ClassVar[tuple[str, ...]] = ("_index", "_values")
    name = "vga dispi"

    def __init__(self, memory_size: int, changed: Callable[[bool], None]) -> None:
        self._memory_size = memory_size
        self._changed = changed
        self._values = [0] * (MEMORY + 1)
        self.reset()

    def reset(self) -> None:
        self._index = 0
        self._values[:] = [ID_NEWEST] + [0] * MEMORY
        self._values[MEMORY] = self._memory_size // BANK_SIZE

    @property
    def enabled(self) -> bool:
        """True while these registers, not the VGA's, say what is shown."""
        return bool(self._values[ENABLE] & ENABLED)

    @property
    def linear(self) -> bool:
        """True while the guest has asked for the linear framebuffer."""
        return bool(self._values[ENABLE] & LINEAR)

    @property
    def clears(self) -> bool:
        """True where memory is cleared when a mode begins."""
        return not self._values[ENABLE] & NO_CLEAR

    @property
    def dac_8_bit(self) -> bool:
        return bool(self._values[ENABLE] & DAC_8_BIT)

    @property
    def bank(self) -> int:
        """Bytes."""
        return self._values[BANK] * BANK_SIZE

    def geometry(self) -> tuple[int, int, int, int, int]:
        """(width, height, depth, bytes from row to row, offset of the first) that memory has."""
        width, height, depth = self._values[XRES], self._values[YRES], self._values[BPP]
        stride = self._values[VIRT_WIDTH] * DEPTHS[depth] // 8
        start = self._values[Y_OFFSET] * stride + self._values[X_OFFSET] * DEPTHS[depth] // 8
        if stride == 0 or start >= self._memory_size:
            return width, 0, depth, stride, 0
        return width, min(height, (self._memory_size - start) // stride), depth, stride, start

    # -- registers ---------------------------------------------------------------------------

    def read_port(self, offset: int, size: int) -> int:
        """Ports 1CEh to 1D1h."""
        if offset == 0:
            return self._index
        return self.read(self._index) if offset < 3 and size >= 2 else 0xFF

    def write_port(self, offset: int, size: int, value: int) -> None:
        """Ports 1CEh to 1D1h."""
        if offset == 0:
            self._index = value & 0xFFFF
        elif offset < 3 and size >= 2:
            self.write(self._index, value & 0xFFFF)

    def read(self, index: int) -> int:
        """A register; zero where there is none."""
        if index > MEMORY:
            return 0
        if self._values[ENABLE] & GETCAPS and index in _CAPABILITIES:
            return _CAPABILITIES[index]
        return self._values[index]

    def write(self, index: int, value: int) -> None:
        """A register; what a mode cannot have is not taken."""
        if index == ID:
            if ID_LOWEST <= value <= ID_NEWEST:
                self._values[ID] = value
        elif index == ENABLE:
            self._enable(value)
        elif index in {XRES, YRES, BPP}:
            if not self.enabled:
                self._values[index] = _possible(index, value)
        elif index == BANK:
            if value * BANK_SIZE < self._memory_size:
                self._values[BANK] = value
                self._changed(False)
        elif index in {VIRT_WIDTH, X_OFFSET, Y_OFFSET}:
            width = self._values[XRES]
            self._values[index] = max(value, width) if index == VIRT_WIDTH else value
            self._fit()
            self._changed(False)

    def _enable(self, value: int) -> None:
        starting = bool(value & ENABLED) and not self.enabled
        self._values[ENABLE] = value & (ENABLED | GETCAPS | DAC_8_BIT | LINEAR | NO_CLEAR)
        if starting:
            self._start()
        if not self.enabled:
            self._values[BANK] = 0
        self._changed(starting and self.enabled)

    def _start(self) -> None:
        """A mode begins: its virtual screen is as wide as it, and as high as memory allows."""
        values = self._values
        if values[BPP] not in DEPTHS or not values[XRES] or not values[YRES]:
            values[ENABLE] &= ~ENABLED
            return
        values[VIRT_WIDTH], values[X_OFFSET], values[Y_OFFSET], values[BANK] = values[XRES], 0, 0, 0
        self._fit()

    def _fit(self) -> None:
        """VIRT_HEIGHT follows from the width; offsets stay within."""
        values = self._values
        if values[BPP] in DEPTHS and values[VIRT_WIDTH]:
            stride = values[VIRT_WIDTH] * DEPTHS[values[BPP]] // 8
            values[VIRT_HEIGHT] = min(self._memory_size // max(stride, 1), 0xFFFF)
            values[X_OFFSET] = min(values[X_OFFSET], values[VIRT_WIDTH] - 1)
            values[Y_OFFSET] = min(values[Y_OFFSET], max(values[VIRT_HEIGHT] - 1, 0))

    def restored(self) -> None:
        values = self._values
        self.require(all(0 <= value <= 0xFFFF for value in values), "a register of 17 bits")
        sizes = (values[XRES] <= LARGEST_WIDTH, values[YRES] <= LARGEST_HEIGHT)
        self.require(all(sizes) and (not self.enabled or values[BPP] in DEPTHS), "a mode")
        self.require(self.bank < self._memory_size and 0 <= self._index <= 0xFFFF, "a register")


_CAPABILITIES = {XRES: LARGEST_WIDTH, YRES: LARGEST_HEIGHT, BPP: 32}


def _possible(index: int, value: int) -> int:
    """The nearest to a size that there can be; an unknown depth is none."""
    if index == BPP:
        return value if value in DEPTHS else 0
    nearest = min(value, _CAPABILITIES[index])
    return nearest & ~7 if index == XRES else nearest
