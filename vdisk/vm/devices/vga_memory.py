"""The VGA's memory as the processor sees it: planes, latches, read and write modes.

Video memory is kept as the planes lie side by side, so that an offset is one word of 32 bits::

    offset n:   | plane 0 | plane 1 | plane 2 | plane 3 |     byte 4n … 4n + 3

    planar      A0000 + n            offset n, the planes of the map mask
    odd/even    B8000 + n            offset n >> 1, planes 0 and 2, or 1 and 3 where n is odd
    chain-4     A0000 + n            offset n >> 2, plane n & 3: linear bytes

(FreeVGA, "Accessing the VGA Display Memory"; IBM PS/2 Display Adapter, graphics controller.)
Where accesses are plain, the processor has a window of RAM instead (see :mod:`vga`).

Bit 1 of the miscellaneous output register, which lets the processor reach this memory, is kept and
has no effect, as in QEMU 7.2 and Bochs: GRUB's build for QEMU leaves it 0.
"""

from __future__ import annotations

from typing import ClassVar

from vdisk.vm.devices.base import Device
from vdisk.vm.devices.vga_registers import (
    GC_BIT_MASK,
    GC_COMPARE,
    GC_DONT_CARE,
    GC_ENABLE,
    GC_MISC,
    GC_MODE,
    GC_READ_MAP,
    GC_ROTATE,
    GC_SET_RESET,
    MEMORY_CHAIN_4,
    SEQ_MAP_MASK,
    SEQ_MEMORY,
    VgaRegisters,
)

WINDOWS = ((0x00000, 0x20000), (0x00000, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000))
"""(start from A0000h, length) of what GC_MISC bits 3-2 let the processor see."""
ODD_EVEN, READ_COMPARE, WRITE_MODE = 0x10, 0x08, 0x03
PLANES = tuple(sum(0xFF << 8 * plane for plane in range(4) if n >> plane & 1) for n in range(16))
"""A mask of whole planes for each of their combinations."""
REPEAT = 0x0101_0101
WORD = 0xFFFF_FFFF


class VgaMemory(Device):
    """The planar side of video memory.  ``bank``: bytes, added to addresses (Bochs VBE)."""

    SAVED: ClassVar[tuple[str, ...]] = ("_latch", "bank")
    name = "vga memory"

    def __init__(self, registers: VgaRegisters, memory: memoryview) -> None:
        self._registers = registers
        self.attach(memory)
        self.reset()

    def attach(self, memory: memoryview) -> None:
        """Video memory lies here from now on."""
        self.memory = memory
        self._words = memory.cast("I")  # guests and hosts are little-endian

    def reset(self) -> None:
        self._latch = self.bank = 0

    def _locate(self, address: int) -> int | None:
        """The address within the window that is selected; ``address`` counts from A0000h."""
        start, length = WINDOWS[self._registers.graphics[GC_MISC] >> 2 & 3]
        place = address - start
        return place + self.bank if 0 <= place < length else None

    def read(self, address: int) -> int:
        """A byte that the processor reads; FFh where there is no memory."""
        place = self._locate(address)
        if place is None:
            return 0xFF
        graphics = self._registers.graphics
        offset, plane = self._decode(place)
        if offset >= len(self._words):
            return 0xFF
        self._latch = self._words[offset]
        if graphics[GC_MODE] & READ_COMPARE and plane is None:
            differs = (self._latch ^ PLANES[graphics[GC_COMPARE]]) & PLANES[graphics[GC_DONT_CARE]]
            differs |= differs >> 16
            return ~(differs | differs >> 8) & 0xFF
        if plane is None:
            plane = graphics[GC_READ_MAP]
        return self._latch >> 8 * plane & 0xFF

    def _decode(self, place: int) -> tuple[int, int | None]:
        """(offset, the plane that is read, None where the read map register decides)."""
        if self._registers.sequencer[SEQ_MEMORY] & MEMORY_CHAIN_4:
            return place >> 2, place & 3
        if self._registers.graphics[GC_MODE] & ODD_EVEN:
            return place >> 1, self._registers.graphics[GC_READ_MAP] & 2 | place & 1
        return place, None

    def write(self, address: int, value: int) -> None:
        """A byte that the processor writes."""
        place = self._locate(address)
        if place is None:
            return
        planes = self._registers.sequencer[SEQ_MAP_MASK]
        if self._registers.sequencer[SEQ_MEMORY] & MEMORY_CHAIN_4:
            planes &= 1 << (place & 3)
            place >>= 2
        elif self._registers.graphics[GC_MODE] & ODD_EVEN:
            planes &= 0b1010 if place & 1 else 0b0101
            place >>= 1
        if place < len(self._words) and planes:
            mask = PLANES[planes]
            self._words[place] = self._words[place] & ~mask | self._combine(value) & mask

    def _combine(self, value: int) -> int:
        """The four bytes that the graphics controller makes of the processor's one."""
        graphics, latch = self._registers.graphics, self._latch
        mode = graphics[GC_MODE] & WRITE_MODE
        if mode == 1:
            return latch
        bits = graphics[GC_BIT_MASK]
        if mode == 2:
            word = PLANES[value & 0xF]
        else:
            rotate = graphics[GC_ROTATE] & 7
            value = (value >> rotate | value << 8 - rotate) & 0xFF
            fixed = WORD if mode == 3 else PLANES[graphics[GC_ENABLE]]
            word = value * REPEAT & ~fixed | PLANES[graphics[GC_SET_RESET]] & fixed
            if mode == 3:
                bits &= value
        function = graphics[GC_ROTATE] >> 3
        if function == 1:
            word &= latch
        elif function == 2:
            word |= latch
        elif function == 3:
            word ^= latch
        mask = bits * REPEAT
        return word & mask | latch & ~mask & WORD

    def restored(self) -> None:
        self.require(0 <= self._latch <= WORD, "the latches")
        self.require(0 <= self.bank < len(self.memory), "the bank")
