"""The bus master of an IDE channel ("Programming Interface for Bus Master IDE Controller" 1.0).

::

    +0 command   0 start   3 direction: 1 = the drive's data go to memory
    +2 status    0 active   1 error (write 1 to clear)   2 interrupt (write 1)   5, 6 drive can DMA
    +4 address of the table of physical region descriptors, 8 bytes each:
       +0 base address (even)     +4 bytes (even, 0 = 64 KiB)     +7 bit 7: end of table

A table lies in one 64 KiB piece, so it has 8192 entries at most; here it is read as far as the
transfer needs it, checked against RAM, and becomes slices of memory.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.errors import OutOfRangeError, VdiskError
from vdisk.vm.devices.base import Device
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.vm.memory import GuestMemory
    from vdisk.vm.ranges import Range

START, TO_MEMORY = 0x01, 0x08
ACTIVE, ERROR, INTERRUPT = 0x01, 0x02, 0x04
CAPABLE: Final = 0x60
END_OF_TABLE: Final = 0x8000_0000
MAX_ENTRIES: Final = (64 << 10) // 8

_ENTRY: Final = struct.Struct("<II")


class DmaError(VdiskError):
    """A table that does not lead to memory; ``short``: it ends before the transfer does."""

    kind = "dma"

    def __init__(self, message: str, *, short: bool = False) -> None:
        super().__init__(message)
        self.short = short


class Gathered:
    """The memory of a transfer.  ``exact``: the table ends where the transfer does."""

    __slots__ = ("_ranges", "exact", "views")

    def __init__(self, memory: GuestMemory, ranges: list[Range], exact: bool) -> None:
        self._ranges = ranges
        try:
            self.views = memory.views(ranges)
        except OutOfRangeError as error:
            raise DmaError(f"a region that is not RAM: {error}") from error
        self.exact = exact

    def dirtied(self, memory: GuestMemory) -> None:
        """Say that the drive wrote this memory."""
        memory.all_dirtied(self._ranges)


class BusMaster(Device):
    """Of one channel.  ``started()`` and ``stopped()`` are called when START changes.

    ``enabled()``: whether the PCI function may be a bus master.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("command", "status", "table")

    def __init__(self, name: str, memory: GuestMemory, enabled: Callable[[], bool]) -> None:
        self.name = name
        self.memory = memory
        self._enabled = enabled
        self.started: Callable[[], None] = lambda: None
        self.stopped: Callable[[], None] = lambda: None
        self.command = self.status = self.table = 0

    @property
    def active(self) -> bool:
        """Whether a transfer may run."""
        return bool(self.status & ACTIVE) and self._enabled()

    @property
    def to_memory(self) -> bool:
        """The direction that the driver has set."""
        return bool(self.command & TO_MEMORY)

    def read(self, offset: int, size: int) -> int:
        """A register, or several at once."""
        data = struct.pack("<BBBBI", self.command, 0, self.status, 0, self.table)
        return int.from_bytes(data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Registers are written byte by byte, the table's address in any pieces."""
        if (offset, size) == (4, 4):
            self.table = value & 0xFFFF_FFFC
            return
        for place in range(offset, min(offset + size, 8)):
            self._write_byte(place, value & 0xFF)
            value >>= 8

    def _write_byte(self, offset: int, value: int) -> None:
        if offset >= 4:
            shift = (offset - 4) * 8
            self.table = (self.table & ~(0xFF << shift) | value << shift) & 0xFFFF_FFFC
        elif offset == 2:
            cleared = value & (ERROR | INTERRUPT)
            self.status = (self.status & ~cleared & ~CAPABLE) | value & CAPABLE
        elif offset == 0:
            before, self.command = self.command, value & (START | TO_MEMORY)
            if value & ~before & START:
                self.status |= ACTIVE
                self.started()
            elif before & ~value & START:
                self.stopped()
                self.status &= ~ACTIVE

    def gather(self, skip: int, length: int) -> Gathered:
        """The memory for ``length`` bytes, after the first ``skip`` of the table.

        Raises :class:`DmaError`.
        """
        ranges: list[Range] = []
        left = skip + length
        start = end = -1  # of the range that the next region may go on
        for base, last in self._entries():
            gpa, count = base & ~1, last & 0xFFFE or 0x10000
            if left > length:
                skipped = min(left - length, count)
                left, gpa, count = left - skipped, gpa + skipped, count - skipped
            if gpa != end:
                if start < end:
                    ranges.append((start, end - start))
                start = end = gpa
            if count >= left <= length:
                if start < end + left:
                    ranges.append((start, end + left - start))
                return Gathered(self.memory, ranges, bool(last & END_OF_TABLE) and left == count)
            end += count
            left -= count
            if last & END_OF_TABLE:
                break
        raise DmaError("the table ends before the transfer", short=True)

    def _entries(self) -> Iterator[tuple[int, int]]:
        """Of the table, as far as somebody asks, read page by page; raises :class:`DmaError`."""
        place, end = self.table, self.table + MAX_ENTRIES * _ENTRY.size
        while place < end:
            page = min((PAGE_SIZE - place % PAGE_SIZE) // _ENTRY.size * _ENTRY.size, end - place)
            part = page or _ENTRY.size  # 4 bytes of an entry may be in the next page
            try:
                data = self.memory.read(place, part)
            except OutOfRangeError as error:
                raise DmaError(f"a table that is not in memory: {error}") from error
            yield from _ENTRY.iter_unpack(data)
            place += part

    def finish(self, *, exact: bool) -> None:
        """The transfer is over; ACTIVE stays set where the table has room left."""
        if exact:
            self.status &= ~ACTIVE

    def fail(self) -> None:
        """The transfer cannot be."""
        self.status = self.status & ~ACTIVE | ERROR

    def reset(self) -> None:
        self.command = self.status = self.table = 0

    def restored(self) -> None:
        self.require(0 <= self.command < 256 and 0 <= self.status < 256, "a register")
        self.require(0 <= self.table < 1 << 32 and not self.table & 3, "the table's address")
