"""The driver's side of virtqueues, in the guest memory of a test (VIRTIO 1.2, 2.7 and 2.8)."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.vm.devices.virtqueue import (
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    Layout,
    need_event,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm.memory import GuestMemory

Part = tuple[int, int]
"""(gpa, bytes) of one part of a buffer."""

Described = tuple[int, int, int]
"""The same with the flags of its descriptor."""

LONGEST = 64
"""Descriptors of an indirect table, where a test does not need more."""


class Allocator:
    """Gives out guest memory, from an address on; never takes any back."""

    def __init__(self, start: int) -> None:
        self._next = start

    def take(self, length: int, alignment: int = 16) -> int:
        start = -(-self._next // alignment) * alignment
        self._next = start + length
        return start


class Used(NamedTuple):
    """A buffer that came back: the key :meth:`add` gave, and the bytes written."""

    key: int
    written: int


class DriverQueue(ABC):
    """What both layouts have in common.

    ``longest``: descriptors of an indirect table.  Subclasses say where the three areas of
    :class:`Layout` are.
    """

    packed = False
    areas: tuple[int, int, int]

    def __init__(
        self,
        memory: GuestMemory,
        allocator: Allocator,
        size: int,
        *,
        indirect: bool = True,
        event_index: bool = True,
        longest: int = LONGEST,
    ) -> None:
        self.memory = memory
        self.allocator = allocator
        self.size = size
        self.indirect = indirect
        self.event_index = event_index
        self._tables = [allocator.take(16 * longest) for _ in range(size)] if indirect else []

    def layout(self) -> Layout:
        return Layout(self.size, *self.areas, self.indirect, self.event_index)

    def add(
        self,
        readable: Sequence[Part] = (),
        writable: Sequence[Part] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Make a buffer available (the device sees it after this call); its key."""
        parts = [(*part, 0) for part in readable]
        parts += [(*part, VIRTQ_DESC_F_WRITE) for part in writable]
        return self._add_indirect(parts) if indirect else self._add_chain(parts)

    @abstractmethod
    def _add_chain(self, parts: list[Described]) -> int:
        """In descriptors of the ring."""

    @abstractmethod
    def _add_indirect(self, parts: list[Described]) -> int:
        """In a table that one descriptor of the ring leads to."""

    @abstractmethod
    def used(self) -> list[Used]:
        """What came back since the last call."""

    @abstractmethod
    def wants_kick(self) -> bool:
        """Whether the device asked to be notified of what was added since the last call."""

    @abstractmethod
    def suppress(self, *, interrupts: bool) -> None:
        """Ask for no interrupts, or for one at the next buffer."""

    @property
    @abstractmethod
    def room(self) -> int:
        """Descriptors that are free."""


class SplitDriver(DriverQueue):
    """A split virtqueue; ``legacy``: where the registers of before 1.0 want its parts."""

    def __init__(
        self,
        memory: GuestMemory,
        allocator: Allocator,
        size: int,
        *,
        legacy: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(memory, allocator, size, **options)
        self.table = allocator.take(16 * size, 4096)
        self.avail = allocator.take(6 + 2 * size, 2)
        self.used_ring = allocator.take(6 + 8 * size, 4096 if legacy else 4)
        self.areas = self.table, self.avail, self.used_ring
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self._avail_index = self._kicked = self._seen = 0

    @property
    def room(self) -> int:
        return len(self._free)

    def write_descriptor(self, index: int, gpa: int, length: int, flags: int, after: int) -> None:
        self.memory.write(self.table + 16 * index, struct.pack("<QIHH", gpa, length, flags, after))

    def _add_chain(self, parts: list[Described]) -> int:
        places = [self._free.pop() for _ in parts]
        data = _linked(parts, places)
        for number, place in enumerate(places):
            self.memory.write(self.table + 16 * place, data[16 * number : 16 * number + 16])
        return self._take(places)

    def _add_indirect(self, parts: list[Described]) -> int:
        head = self._free.pop()
        table = self._tables[head]
        self.memory.write(table, _linked(parts, range(len(parts))))
        self.write_descriptor(head, table, 16 * len(parts), VIRTQ_DESC_F_INDIRECT, 0)
        return self._take([head])

    def _take(self, places: list[int]) -> int:
        self._chains[places[0]] = places
        self.offer(places[0])
        return places[0]

    def offer(self, head: int) -> None:
        """Put a head into the available ring."""
        place = self.avail + 4 + 2 * (self._avail_index % self.size)
        self.memory.write(place, struct.pack("<H", head))
        self._avail_index = (self._avail_index + 1) & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self._avail_index))

    def wants_kick(self) -> bool:
        old, self._kicked = self._kicked, self._avail_index
        if self.event_index:
            event = self._u16(self.used_ring + 4 + 8 * self.size)
            return need_event(event, self._avail_index, old)
        return not self._u16(self.used_ring) & 1

    def suppress(self, *, interrupts: bool) -> None:
        if self.event_index:
            event = (self._seen + (0 if interrupts else 0x8000)) & 0xFFFF
            self.memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", event))
        else:
            flags = 0 if interrupts else VIRTQ_AVAIL_F_NO_INTERRUPT
            self.memory.write(self.avail, struct.pack("<H", flags))

    def used(self) -> list[Used]:
        found = []
        while self._seen != self._u16(self.used_ring + 2):
            place = self.used_ring + 4 + 8 * (self._seen % self.size)
            head, written = struct.unpack("<II", self.memory.read(place, 8))
            self._free += self._chains.pop(head)
            found.append(Used(head, written))
            self._seen = (self._seen + 1) & 0xFFFF
        if found:
            self.suppress(interrupts=True)
        return found

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")


def _linked(parts: list[Described], places: Sequence[int]) -> bytes:
    """Descriptors of the split layout, each naming the place of the next."""
    data = b""
    for number, (gpa, length, flags) in enumerate(parts):
        last = number == len(parts) - 1
        after = 0 if last else places[number + 1]
        more = 0 if last else VIRTQ_DESC_F_NEXT
        data += struct.pack("<QIHH", gpa, length, flags | more, after)
    return data


class PackedDriver(DriverQueue):
    """A packed virtqueue."""

    packed = True

    def __init__(
        self, memory: GuestMemory, allocator: Allocator, size: int, **options: Any
    ) -> None:
        super().__init__(memory, allocator, size, **options)
        self.ring = allocator.take(16 * size, 16)
        self.driver_event = allocator.take(4, 4)
        self.device_event = allocator.take(4, 4)
        self.areas = self.ring, self.driver_event, self.device_event
        self._next, self._wrap = 0, 1
        self._next_used, self._used_wrap = 0, 1
        self._counts: dict[int, int] = {}
        self._free_ids = list(range(size))
        self._room = size
        self._added = 0
        self.suppress(interrupts=True)

    @property
    def room(self) -> int:
        return min(self._room, len(self._free_ids))

    def _add_indirect(self, parts: list[Described]) -> int:
        table = self._tables[self._free_ids[-1]]
        self.memory.write(
            table, b"".join(struct.pack("<QIHH", *part[:2], 0, part[2]) for part in parts)
        )
        return self._add_chain([(table, 16 * len(parts), VIRTQ_DESC_F_INDIRECT)])

    def _add_chain(self, parts: list[Described]) -> int:
        """The first descriptor's flags are written last: the device sees all or none."""
        key = self._free_ids.pop()
        first, first_flags = self._next, 0
        for number, (gpa, length, given) in enumerate(parts):
            more = VIRTQ_DESC_F_NEXT if number < len(parts) - 1 else 0
            flags = given | more | self._wrap << 7 | (self._wrap ^ 1) << 15
            entry = struct.pack("<QIHH", gpa, length, key, flags)
            if number == 0:
                first_flags = flags
                entry = entry[:14]
            self.memory.write(self.ring + 16 * self._next, entry)
            self._next += 1
            if self._next == self.size:
                self._next, self._wrap = 0, self._wrap ^ 1
        self.memory.write(self.ring + 16 * first + 14, struct.pack("<H", first_flags))
        self._counts[key] = len(parts)
        self._room -= len(parts)
        self._added += len(parts)
        return key

    def wants_kick(self) -> bool:
        added, self._added = self._added, 0
        place, flags = struct.unpack("<HH", self.memory.read(self.device_event, 4))
        if flags != 2:
            return bool(flags == 0)
        event = place & 0x7FFF
        if place >> 15 != self._wrap:
            event -= self.size
        return need_event(event, self._next, self._next - added)

    def suppress(self, *, interrupts: bool) -> None:
        if not interrupts:
            data = struct.pack("<HH", 0, 1)
        elif self.event_index:
            data = struct.pack("<HH", self._next_used | self._used_wrap << 15, 2)
        else:
            data = struct.pack("<HH", 0, 0)
        self.memory.write(self.driver_event, data)

    def used(self) -> list[Used]:
        found = []
        while True:
            entry = self.memory.read(self.ring + 16 * self._next_used, 16)
            _gpa, written, key, flags = struct.unpack("<QIHH", entry)
            if flags >> 7 & 1 != self._used_wrap or flags >> 15 != self._used_wrap:
                break
            count = self._counts.pop(key)
            self._free_ids.append(key)
            self._room += count
            self._next_used += count
            if self._next_used >= self.size:
                self._next_used -= self.size
                self._used_wrap ^= 1
            found.append(Used(key, written))
        if found:
            self.suppress(interrupts=True)
        return found
