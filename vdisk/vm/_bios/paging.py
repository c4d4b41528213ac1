"""Linear to physical: programs in virtual-8086 mode call the BIOS too (SDM volume 3, chapter 4).

Without paging they are the same.  The walk looks at presence alone: what a program may not
touch its own processor tells it, and what is not present reads as ones.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.vm._bios.space import Space
    from vdisk.vm.accel.base import SystemRegisters

PAGING = 1 << 31  # CR0.PG
PSE, PAE = 1 << 4, 1 << 5  # CR4
LONG_MODE_ACTIVE = 1 << 10  # EFER.LMA
PRESENT, LARGE = 1 << 0, 1 << 7
FRAME = 0x000F_FFFF_FFFF_F000
PAGE = 4096


class Translation:
    """The linear address space of a processor at one moment."""

    def __init__(self, system: SystemRegisters, space: Space) -> None:
        self._space = space
        self._system = system
        self._paging = bool(system.cr0 & PAGING)

    def physical(self, linear: int) -> int | None:
        """The physical address of ``linear``; None where no page is present."""
        if not self._paging:
            return linear & 0xFFFFFFFF
        system = self._system
        if system.efer & LONG_MODE_ACTIVE:
            return self._walk(system.cr3 & FRAME, linear, 8, (39, 30, 21, 12))
        if system.cr4 & PAE:
            table = system.cr3 & 0xFFFFFFE0
            return self._walk(table, linear & 0xFFFFFFFF, 8, (30, 21, 12))
        return self._walk(system.cr3 & 0xFFFFF000, linear & 0xFFFFFFFF, 4, (22, 12))

    def _walk(self, table: int, linear: int, size: int, shifts: tuple[int, ...]) -> int | None:
        count = 4 if shifts[0] == 30 else PAGE // size  # PAE has four directory pointers
        large = size == 8 or bool(self._system.cr4 & PSE)
        for shift in shifts:
            at = table + (linear >> shift) % count * size
            entry = int.from_bytes(self._space.read(at, size), "little")
            if not entry & PRESENT:
                return None
            offset = (1 << shift) - 1
            if shift == 12 or (entry & LARGE and large and shift < 39 and count > 4):
                return entry & FRAME & ~offset | linear & offset
            table, count = entry & FRAME, PAGE // size
        return None

    def pieces(self, linear: int, length: int) -> Iterator[tuple[int | None, int]]:
        """A range as (physical address, length), page by page where there is paging."""
        if not self._paging:
            yield linear & 0xFFFFFFFF, length
            return
        end = linear + length
        while linear < end:
            size = min(PAGE - linear % PAGE, end - linear)
            yield self.physical(linear), size
            linear += size

    def read(self, linear: int, length: int) -> bytes:
        return b"".join(
            b"\xff" * size if at is None else self._space.read(at, size)
            for at, size in self.pieces(linear, length)
        )

    def write(self, linear: int, data: bytes | bytearray) -> None:
        view, done = memoryview(data), 0
        for at, size in self.pieces(linear, len(data)):
            if at is not None:
                self._space.write(at, view[done : done + size])
            done += size

    def fill(self, linear: int, length: int, read_into: Callable[[int, memoryview], None]) -> None:
        """As :meth:`Space.fill`, by linear address."""
        done = 0
        for at, size in self.pieces(linear, length):
            if at is None:
                read_into(done, memoryview(bytearray(size)))
            else:
                self._space.fill(at, size, partial(_shifted, read_into, done))
            done += size


def _shifted(
    read_into: Callable[[int, memoryview], None], start: int, done: int, view: memoryview
) -> None:
    read_into(start + done, view)
