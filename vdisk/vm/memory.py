"""The guest's physical address space.

One host mapping holds it all, so that a guest physical address (gpa) is a host address after one
addition, for devices, for KVM and for translated code alike::

    gpa 0          640K  768K     1M              low_end      4 GiB - BIOS  4 GiB   high_end
    +-------------+-----+--------+---------------+------------+-----+--------+-----+
    | RAM         |MMIO |ROM/RAM | RAM           | MMIO (PCI) | LFB | ROM    | RAM |
    +-------------+-----+--------+---------------+------------+-----+--------+-----+
    host_address + gpa, reserved without being committed; untouched pages cost nothing

Each 4 KiB page has a :class:`PageKind`.  RAM is read and written in place; ROM is read in place
and ignores writes; what is neither goes to the bus (``bus.mmio``).  The bytes under a ROM page
are also its shadow: making the page RAM leaves what the ROM held.

Whoever keeps something derived from memory (translated code, KVM's slots) listens: to changes
of the kinds, and to writes that did not come from a vCPU (DMA: :meth:`GuestMemory.dirtied`).
"""

from __future__ import annotations

import ctypes
import enum
import mmap
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import InvalidRequestError, OutOfRangeError
from vdisk.vm.ranges import Ranges, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

    from vdisk.vm.ranges import Range

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
FOUR_GIB = 1 << 32
LOW_RAM_LIMIT = 0xC000_0000
"""RAM below 4 GiB ends here at the latest; PCI has the rest (i440FX with 1 GiB of PCI)."""
EXTENDED = 1 << 20
"""Where the memory of PCs begins that has no holes for cards and firmware."""
LARGEST_RAM = 1 << 38  # 256 GiB: what a host could meaningfully lend; a kind is a byte a page


class PageKind(enum.IntEnum):
    """What answers an access to a page of guest physical memory."""

    MMIO = 0
    RAM = 1
    ROM = 2


_RAM = int(PageKind.RAM)  # compared on every access of a device: an enum costs twice as much
_RAM_BYTE = bytes([PageKind.RAM])


class Gathered(NamedTuple):
    """A descriptor table all of which is in order: what the device reads, what it writes, all in
    RAM; ``total``: bytes of both."""

    readable: Ranges
    writable: Ranges
    total: int


class GuestMemory:
    """Guest physical memory: ``size`` bytes of RAM, low and (above 3 GiB) high.

    ``host_address``: where gpa 0 is mapped.  ``kinds_address``: where native code finds the
    table of kinds, one byte a page, ``top >> 12`` of them.  ``top``: end of the address space;
    whatever lies behind it is MMIO.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE or size > LARGEST_RAM:
            raise InvalidRequestError(f"guest memory of {size} bytes: not whole 4 KiB pages")
        self.size = size
        self.low_end = min(size, LOW_RAM_LIMIT)
        self.high_end = FOUR_GIB + size - self.low_end
        self.top = self.high_end
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._mapping = mmap.mmap(-1, self.top, flags=flags)
        self._kinds = mmap.mmap(-1, self.top >> PAGE_SHIFT, flags=flags)
        self._bytes = memoryview(self._mapping)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.kinds_address = ctypes.addressof(ctypes.c_char.from_buffer(self._kinds))
        self._on_change: list[Callable[[int, int], None]] = []
        self._on_dirtied: list[Callable[[Sequence[Range]], None]] = []
        self.whole_to = EXTENDED
        """From :data:`EXTENDED` to here all is RAM."""
        self.gather: Callable[[int, int], Gathered | None] | None = None
        """Set by an engine that reads long descriptor tables faster than devices could: from the
        gpa of one and how many it has; None for a table that has to be looked at more closely.
        The bus is held."""
        self.set_kind(0, self.low_end, PageKind.RAM)
        if self.high_end > FOUR_GIB:
            self.set_kind(FOUR_GIB, self.high_end - FOUR_GIB, PageKind.RAM)

    # -- the map -----------------------------------------------------------------------------

    def set_kind(self, start: int, length: int, kind: PageKind) -> None:
        """Let whole pages of [start, start + length) be RAM, ROM or MMIO from now on."""
        if (start | length) % PAGE_SIZE or start < 0 or start + length > self.top:
            raise InvalidRequestError(f"pages {start:#x}+{length:#x} are not of this memory")
        first, count = start >> PAGE_SHIFT, length >> PAGE_SHIFT
        wanted = bytes([kind]) * count
        if self._kinds[first : first + count] == wanted:
            return
        self._kinds[first : first + count] = wanted
        if start < self.low_end and start + length > EXTENDED:
            whole = not self._kinds[EXTENDED >> PAGE_SHIFT : self.low_end >> PAGE_SHIFT].strip(
                _RAM_BYTE
            )
            self.whole_to = self.low_end if whole else EXTENDED
        for callback in self._on_change:
            callback(start, length)

    def kind(self, gpa: int) -> PageKind:
        """What answers at ``gpa``."""
        return PageKind(self._kinds[gpa >> PAGE_SHIFT]) if 0 <= gpa < self.top else PageKind.MMIO

    def regions(self) -> Iterator[tuple[int, int, PageKind]]:
        """Runs of RAM and of ROM as (start, length, kind), in order."""
        page, end = 0, self.top >> PAGE_SHIFT
        while page < end:
            kind = self._kinds[page]
            run = _run_length(self._kinds, page, end)
            if kind != PageKind.MMIO:
                yield page << PAGE_SHIFT, run << PAGE_SHIFT, PageKind(kind)
            page += run

    def on_change(self, callback: Callable[[int, int], None]) -> None:
        """Call ``callback(start, length)`` after the kinds of these pages have changed."""
        self._on_change.append(callback)

    def on_dirtied(self, callback: Callable[[Sequence[Range]], None]) -> None:
        """Call ``callback(ranges)`` after anything but a vCPU has written memory."""
        self._on_dirtied.append(callback)

    # -- access ------------------------------------------------------------------------------

    def is_ram(self, gpa: int, length: int) -> bool:
        """True if the whole range is RAM; what a device checks before it touches memory."""
        if EXTENDED <= gpa <= gpa + length <= self.whole_to:
            return True
        last = gpa + length - 1
        if gpa < 0 or last >= self.top:
            return False
        if length <= 1:
            return length >= 0 and gpa < self.top and self._kinds[gpa >> PAGE_SHIFT] == _RAM
        kinds, first, last = self._kinds, gpa >> PAGE_SHIFT, last >> PAGE_SHIFT
        if first == last:
            return kinds[first] == _RAM
        return kinds[first : last + 1].count(_RAM_BYTE) == last - first + 1

    def view(self, gpa: int, length: int) -> memoryview:
        """The RAM itself, for scatter-gather without a copy.

        After writing through it call :meth:`dirtied`.  Raises :class:`OutOfRangeError` where
        the range is not all RAM.
        """
        if not self.is_ram(gpa, length):
            raise OutOfRangeError(f"guest memory {gpa:#x}+{length:#x} is not all RAM")
        return self._bytes[gpa : gpa + length]

    def views(self, ranges: Sequence[Range]) -> Sequence[memoryview]:
        """As :meth:`view`, of several ranges: a guest's buffer may be some hundred pages."""
        everything, whole_to, found = self._bytes, self.whole_to, []
        if type(ranges) is Ranges:
            iovec = ranges.iovec or ranges.placed(EXTENDED, whole_to, self.host_address)
            if iovec is not None:
                return Views(iovec, everything, self.host_address, ranges.total)
        for gpa, length in ranges:
            end = gpa + length
            if not EXTENDED <= gpa <= end <= whole_to and not self.is_ram(gpa, length):
                raise OutOfRangeError(f"guest memory {gpa:#x}+{length:#x} is not all RAM")
            found.append(everything[gpa:end])
        return found

    def raw(self, gpa: int, length: int) -> memoryview:
        """The bytes behind these pages, whatever they are: for the device that owns them.

        A video card keeps its memory there, shown to the guest or not.
        """
        if gpa < 0 or length < 0 or gpa + length > self.top:
            raise OutOfRangeError(f"{gpa:#x}+{length:#x} is not of this memory")
        return self._bytes[gpa : gpa + length]

    def everything(self) -> memoryview:
        """All of the address space, RAM or not: for an interpreter that checks kinds itself."""
        return self._bytes

    def dirtied(self, gpa: int, length: int) -> None:
        """Say that a device has written this range (translations of it are dropped)."""
        self.all_dirtied(((gpa, length),))

    def all_dirtied(self, ranges: Sequence[Range]) -> None:
        """As :meth:`dirtied`, of several ranges."""
        for callback in self._on_dirtied:
            callback(ranges)

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of RAM or ROM bytes; raises :class:`OutOfRangeError` elsewhere."""
        if self.is_ram(gpa, length):
            return bytes(self._bytes[gpa : gpa + length])
        if any(self.kind(page) is PageKind.MMIO for page in range(gpa, gpa + length, PAGE_SIZE)):
            raise OutOfRangeError(f"guest memory {gpa:#x}+{length:#x} is neither RAM nor ROM")
        if self.kind(gpa + length - 1) is PageKind.MMIO:
            raise OutOfRangeError(f"guest memory {gpa:#x}+{length:#x} is neither RAM nor ROM")
        return bytes(self._bytes[gpa : gpa + length])

    def write(self, gpa: int, data: Buffer) -> None:
        """Write RAM as a device does; raises :class:`OutOfRangeError` where it is not RAM."""
        source = memoryview(data).cast("B")
        self.view(gpa, len(source))[:] = source
        self.dirtied(gpa, len(source))

    def load_rom(self, gpa: int, data: Buffer) -> None:
        """Put an image into the pages at ``gpa`` and make them ROM (whole pages)."""
        source = memoryview(data).cast("B")
        length = -(-len(source) // PAGE_SIZE) * PAGE_SIZE
        if gpa % PAGE_SIZE or gpa < 0 or gpa + length > self.top:
            raise InvalidRequestError(f"a ROM of {len(source)} bytes does not fit at {gpa:#x}")
        self._bytes[gpa : gpa + len(source)] = source
        self.set_kind(gpa, length, PageKind.ROM)
        self.dirtied(gpa, length)


def _run_length(kinds: mmap.mmap, page: int, end: int) -> int:
    """How many pages from ``page`` on are of the same kind."""
    kind, start = kinds[page], page
    for step in (1 << 16, 1 << 8, 1):  # long runs are compared as one
        while page + step <= end and kinds[page : page + step] == bytes([kind]) * step:
            page += step
    return page - start
