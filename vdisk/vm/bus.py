"""Port and memory-mapped I/O: who answers an access of the processor.

A device maps ranges with two callables::

    read(offset, size) -> value          size is 1, 2, 4 (ports, MMIO) or 8 (MMIO)
    write(offset, size, value)           offset counts from the start of the range

A port through which much passes may be mapped with two more, for string instructions::

    read_many(offset, size, count) -> bytes       as so many reads of ``size`` bytes would give
    write_many(offset, size, data)                as so many writes

Values are unsigned integers of ``size`` bytes, little-endian as on the wire.  An access that
reaches past the range it begins in is split into bytes, as a bus does; where nobody answers,
reads give ones and writes are lost.  A vCPU holds :attr:`Bus.lock` around every access, the one
lock of all devices: timers, workers and displays take it too before they touch a device.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], int]
    Write = Callable[[int, int, int], None]
    ReadMany = Callable[[int, int, int], bytes]
    WriteMany = Callable[[int, int, bytes], None]

PORTS = 1 << 16
LARGEST_ADDRESS = 1 << 52


class Range(NamedTuple):
    """One mapped range: [start, end)."""

    start: int
    end: int
    read: Read
    write: Write
    name: str
    read_many: ReadMany | None = None
    write_many: WriteMany | None = None


class IoSpace:
    """One address space of registers: the I/O ports, or memory-mapped I/O.

    Later ranges must not overlap earlier ones.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._starts: list[int] = []
        self._ranges: list[Range] = []

    def map(
        self,
        start: int,
        length: int,
        read: Read,
        write: Write,
        name: str,
        *,
        read_many: ReadMany | None = None,
        write_many: WriteMany | None = None,
    ) -> Range:
        """Let a device answer [start, start + length); gives what :meth:`unmap` takes."""
        if start < 0 or length <= 0 or start + length > self.size:
            raise InvalidRequestError(f"{name}: {start:#x}+{length:#x} is outside {self.name}")
        wanted = Range(start, start + length, read, write, name, read_many, write_many)
        place = bisect_right(self._starts, start)
        for other in self._ranges[max(place - 1, 0) : place + 1]:
            if other.start < wanted.end and wanted.start < other.end:
                raise InvalidRequestError(f"{name} at {start:#x} overlaps {other.name}")
        self._starts.insert(place, start)
        self._ranges.insert(place, wanted)
        return wanted

    def unmap(self, mapped: Range) -> None:
        """Take a range away again."""
        place = self._ranges.index(mapped)
        del self._starts[place], self._ranges[place]

    def find(self, address: int) -> Range | None:
        """Who answers at ``address``."""
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address < self._ranges[place].end:
            return self._ranges[place]
        return None

    def ranges(self) -> list[Range]:
        """All that is mapped, in order of address."""
        return list(self._ranges)

    def read(self, address: int, size: int) -> int:
        """The value that a read of ``size`` bytes gives."""
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address + size <= (found := self._ranges[place]).end:
            return found.read(address - found.start, size) & ((1 << 8 * size) - 1)
        if size == 1:
            return 0xFF
        return sum(self.read(address + i, 1) << 8 * i for i in range(size))

    def write(self, address: int, size: int, value: int) -> None:
        """Carry out a write of the low ``size`` bytes of ``value``."""
        place = bisect_right(self._starts, address) - 1
        if place >= 0 and address + size <= (found := self._ranges[place]).end:
            found.write(address - found.start, size, value & ((1 << 8 * size) - 1))
        elif size > 1:
            for i in range(size):
                self.write(address + i, 1, value >> 8 * i & 0xFF)

    def read_many(self, address: int, size: int, count: int) -> bytes:
        """``count`` reads of ``size`` bytes at one address, as INS does them."""
        found = self.find(address)
        if found is not None and found.read_many is not None and address + size <= found.end:
            return found.read_many(address - found.start, size, count)
        return b"".join(self.read(address, size).to_bytes(size, "little") for _ in range(count))

    def write_many(self, address: int, size: int, data: bytes) -> None:
        """Writes of ``size`` bytes each at one address, as OUTS does them."""
        found = self.find(address)
        if found is not None and found.write_many is not None and address + size <= found.end:
            found.write_many(address - found.start, size, data)
            return
        for start in range(0, len(data), size):
            self.write(address, size, int.from_bytes(data[start : start + size], "little"))


class Bus:
    """What the processors see of the machine beside RAM."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ports = IoSpace("I/O ports", PORTS)
        self.mmio = IoSpace("memory-mapped I/O", LARGEST_ADDRESS)
