"""Physical memory as firmware sees it: RAM, ROM, and what devices map, by one address.

Reads of what is not there give ones and writes are lost, as on the bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.memory import PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.vm.bus import IoSpace
    from vdisk.vm.memory import GuestMemory

A20 = 1 << 20
MMIO_STEP = 4  # the widest access that every VGA mode takes as its bytes one after another


class Space:
    """Guest memory and memory-mapped I/O behind the A20 gate."""

    def __init__(
        self, memory: GuestMemory, mmio: IoSpace, a20: Callable[[], bool] = lambda: True
    ) -> None:
        self.memory = memory
        self._mmio = mmio
        self._a20 = a20

    def ungated(self) -> Space:
        """The same memory with the A20 gate open."""
        return Space(self.memory, self._mmio)

    def read(self, gpa: int, length: int) -> bytes:
        """``length`` bytes from ``gpa``."""
        parts = [
            self.memory.read(start, size) if is_memory else self._read_mmio(start, size)
            for start, size, is_memory in self.pieces(gpa, length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``gpa``; ROM keeps what it has."""
        view, done = memoryview(data), 0
        for start, size, _ in self.pieces(gpa, len(data)):
            part = view[done : done + size]
            if self.memory.is_ram(start, size):
                self.memory.write(start, part)
            elif self.memory.kind(start) is PageKind.MMIO:
                self._write_mmio(start, part)
            done += size

    def fill(self, gpa: int, length: int, read_into: Callable[[int, memoryview], None]) -> None:
        """Let ``read_into(done, view)`` fill the range, in place where it is RAM."""
        done = 0
        for start, size, _ in self.pieces(gpa, length):
            if self.memory.is_ram(start, size):
                read_into(done, self.memory.view(start, size))
                self.memory.dirtied(start, size)
            else:
                buffer = bytearray(size)
                read_into(done, memoryview(buffer))
                self.write(start, buffer)
            done += size

    def pieces(self, gpa: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The range as (start, length, is memory), after the A20 gate."""
        if length and self._a20() and self.memory.is_ram(gpa, length):
            yield gpa, length, True
            return
        end = gpa + length
        while gpa < end:
            start = gpa if self._a20() else gpa & ~A20
            size = min(PAGE_SIZE - start % PAGE_SIZE, end - gpa)
            yield start, size, self.memory.kind(start) is not PageKind.MMIO
            gpa += size

    def _read_mmio(self, gpa: int, length: int) -> bytes:
        steps = _steps(gpa, length)
        return b"".join(self._mmio.read(at, size).to_bytes(size, "little") for at, size in steps)

    def _write_mmio(self, gpa: int, data: memoryview) -> None:
        for at, size in _steps(gpa, len(data)):
            part = data[at - gpa : at - gpa + size]
            self._mmio.write(at, size, int.from_bytes(part, "little"))


def _steps(gpa: int, length: int) -> Iterator[tuple[int, int]]:
    """Aligned accesses of up to :data:`MMIO_STEP` bytes that make up a range."""
    end = gpa + length
    while gpa < end:
        aligned = gpa % MMIO_STEP == 0 and end - gpa >= MMIO_STEP
        size = MMIO_STEP if aligned else 1
        yield gpa, size
        gpa += size
