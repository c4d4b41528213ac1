"""A call of the BIOS: the registers and memory of the processor that trapped.

The interrupted program's flags lie on its stack, pushed by INT::

    SS:SP -> IP  CS  FLAGS

A service answers in registers and in that image of FLAGS (``carry``, ``zero``); the flags of the
running code (``wait``, ``spin``) tell the ROM what to do next.  RIP is never touched:
whether it already points behind the OUT is the accelerator's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vdisk.vm._bios.paging import Translation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm._bios.space import Space
    from vdisk.vm.accel.base import Registers, Segment, SystemRegisters

CARRY = 1 << 0
ZERO = 1 << 6
INTERRUPT = 1 << 9
BIG_STACK = 0x4000  # D/B in the attributes of a segment
PROTECTION = 1 << 0  # CR0.PE
VIRTUAL_8086 = 1 << 17
WORD = 0xFFFF
FRAME = 6
"""Bytes that INT pushes."""


class Processor(Protocol):
    """What the BIOS needs of a vCPU, in the middle of an OUT of it."""

    def get_registers(self) -> Registers: ...
    def set_registers(self, registers: Registers) -> None: ...
    def get_system_registers(self) -> SystemRegisters: ...
    def set_system_registers(self, registers: SystemRegisters) -> None: ...


class _Part:
    """Some bits of a general register, as an attribute of a call."""

    def __init__(self, register: int, bits: int, shift: int = 0) -> None:
        self.register, self.shift = register, shift
        self.mask = (1 << bits) - 1

    def __get__(self, call: Call, owner: type[Call]) -> int:
        return call.registers.gprs[self.register] >> self.shift & self.mask

    def __set__(self, call: Call, value: int) -> None:
        gprs = call.registers.gprs
        kept = gprs[self.register] & ~(self.mask << self.shift)
        gprs[self.register] = kept | (value & self.mask) << self.shift


class _Flag:
    """A bit of the FLAGS image on the stack (``pushed``), or of the running code's flags."""

    def __init__(self, bit: int, pushed: bool) -> None:
        self.bit, self.pushed = bit, pushed

    def __get__(self, call: Call, owner: type[Call]) -> bool:
        flags = call.pushed_flags if self.pushed else call.registers.rflags
        return bool(flags & self.bit)

    def __set__(self, call: Call, value: bool) -> None:
        wanted = self.bit if value else 0
        if self.pushed:
            call.pushed_flags = call.pushed_flags & ~self.bit | wanted
        else:
            call.registers.rflags = call.registers.rflags & ~self.bit | wanted


class Call:
    """One trap; :meth:`finish` gives the processor what was changed."""

    ax, cx, dx, bx, sp, bp, si, di = (_Part(number, 16) for number in range(8))
    eax, ecx, edx, ebx, esp, ebp, esi, edi = (_Part(number, 32) for number in range(8))
    al, cl, dl, bl = (_Part(number, 8) for number in range(4))
    ah, ch, dh, bh = (_Part(number, 8, 8) for number in range(4))
    carry = _Flag(CARRY, pushed=True)
    zero = _Flag(ZERO, pushed=True)
    enabled = _Flag(INTERRUPT, pushed=True)
    wait = _Flag(CARRY, pushed=False)
    spin = _Flag(ZERO, pushed=False)

    def __init__(self, processor: Processor, space: Space) -> None:
        self._processor = processor
        self.registers = processor.get_registers()
        self.system: SystemRegisters = processor.get_system_registers()
        self._segments_changed = False
        self._translation = Translation(self.system, space)
        self.wait = self.spin = False  # the flags of the caller are still in force

    @property
    def code_address(self) -> int | None:
        """Physical address of the code that trapped."""
        linear = self.system.cs.base + self.registers.rip
        return self._translation.physical(linear)

    def finish(self) -> None:
        """Hand the registers back."""
        self._processor.set_registers(self.registers)
        if self._segments_changed:
            self._processor.set_system_registers(self.system)

    # -- the frame ---------------------------------------------------------------------------

    def stack_address(self, offset: int = 0) -> int:
        """The linear address of SS:SP + offset."""
        stack = self.system.ss
        mask = 0xFFFFFFFF if stack.attributes & BIG_STACK else WORD
        return stack.base + (self.registers.gprs[4] + offset & mask)

    @property
    def pushed_flags(self) -> int:
        return int.from_bytes(self.read(self.stack_address(4), 2), "little")

    @pushed_flags.setter
    def pushed_flags(self, value: int) -> None:
        self.write(self.stack_address(4), (value & WORD).to_bytes(2, "little"))

    # -- segments ----------------------------------------------------------------------------

    @property
    def in_real_mode(self) -> bool:
        """True in real and virtual-8086 mode: a selector is a paragraph."""
        return not self.system.cr0 & PROTECTION or bool(self.registers.rflags & VIRTUAL_8086)

    @property
    def es(self) -> int:
        """The selector in ES; setting it loads the segment as real mode does."""
        return self.system.es.selector

    @es.setter
    def es(self, selector: int) -> None:
        self._load(self.system.es, selector)

    @property
    def ds(self) -> int:
        return self.system.ds.selector

    @ds.setter
    def ds(self, selector: int) -> None:
        self._load(self.system.ds, selector)

    @property
    def ss(self) -> int:
        return self.system.ss.selector

    @ss.setter
    def ss(self, selector: int) -> None:
        self._load(self.system.ss, selector)

    def _load(self, segment: Segment, selector: int) -> None:
        if self.in_real_mode:
            segment.selector, segment.base = selector, selector << 4
            self._segments_changed = True

    def at_es(self, offset: int) -> int:
        """The linear address of ES:offset."""
        return self.system.es.base + (offset & WORD)

    def at_ds(self, offset: int) -> int:
        """The linear address of DS:offset."""
        return self.system.ds.base + (offset & WORD)

    # -- memory, by linear address -----------------------------------------------------------

    def read(self, linear: int, length: int) -> bytes:
        """What the program would read at ``linear``."""
        return self._translation.read(linear, length)

    def write(self, linear: int, data: bytes | bytearray) -> None:
        """What the program would write at ``linear``."""
        self._translation.write(linear, data)

    def fill(self, linear: int, length: int, read_into: Callable[[int, memoryview], None]) -> None:
        """Let ``read_into(done, view)`` fill a range in place.

        The frame to return by stays what it is: there are boot sectors that read over their own
        stack, and know only BIOSes that have left it.
        """
        at = self.stack_address()
        frame = self.read(at, FRAME)
        try:
            self._translation.fill(linear, length, read_into)
        finally:
            if self.read(at, FRAME) != frame:
                self.write(at, frame)
