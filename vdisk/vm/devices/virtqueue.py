"""Virtqueues: rings in guest memory through which a driver and a device pass buffers.

Virtual I/O Device (VIRTIO) 1.2, sections 2.6 to 2.8.  A buffer is a *descriptor chain*: parts
that the device reads, then parts that it writes.  Here is what both layouts have in common, and
the split one (2.7); :mod:`vdisk.vm.devices.virtqueue_packed` is the packed one (2.8)::

    descriptor table, 16 bytes each            available ring (driver's)   used ring (device's)
    +------------------+--------+------+-----+  0 flags: 1 NO_INTERRUPT    0 flags: 1 NO_NOTIFY
    | address (64)     | length | flags| next|  2 idx                      2 idx
    +------------------+--------+------+-----+  4 ring[size]: heads (16)   4 ring[size]: id, len
       1 NEXT, 2 WRITE, 4 INDIRECT              … used_event               … avail_event

Everything in a ring is the guest's to forge.  A chain is read once, checked whole (length, loops,
order of its parts, RAM) and becomes a :class:`Chain` of memory views; what breaks a rule is
:class:`BrokenQueueError`, after which a device sets DEVICE_NEEDS_RESET and touches the ring no
more.  Addresses and lengths are bytes.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.errors import OutOfRangeError, VdiskError
from vdisk.vm.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm.memory import GuestMemory
    from vdisk.vm.ranges import Range

VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4
VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1
VIRTQ_USED_F_NO_NOTIFY: Final = 1

LARGEST_QUEUE: Final = 1024
"""Descriptors of a queue; larger ones bring nothing, and a chain is read while all wait."""

MAX_CHAIN: Final = 1024
"""Descriptors of one chain, an indirect table's included; a loop is found when it has more."""

MANY: Final = 64
"""Descriptors of a table from which on it is cheaper to look at all of them at once."""

FEW: Final = 16
"""Descriptors of a table from which on an engine looks at them faster than Python does; and parts
from which on views are not made of each."""

MAX_CHAIN_BYTES: Final = 1 << 32  # 2.7.5.3.1: no more than 2^32 bytes in total

MOST_TABLES: Final = 64
"""Sizes of tables whose lengths are taken out at once; a driver uses few, and each takes 16 KiB."""

DESCRIPTOR: Final = Struct("<QIHH")
_U16: Final = Struct("<H")
_READ: Final = bytes([VIRTQ_DESC_F_NEXT])
_WRITTEN: Final = bytes([VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE])
_NEXT_LOW: Final = bytes(number & 0xFF for number in range(1, MAX_CHAIN))
_NEXT_HIGH: Final = bytes(number >> 8 for number in range(1, MAX_CHAIN))
"""Columns of a table in order."""
_FIELDS: Final = Struct("<QII")
"""The same: address, length, and in one number flags and (above them) the next one."""
_USED: Final = Struct("<II")


class BrokenQueueError(VdiskError):
    """The driver broke a rule of its ring; the message says which."""

    kind = "virtqueue"


class Layout(NamedTuple):
    """Where a queue lies: its size in descriptors, and three addresses (2.6).

    ``driver``: the available ring or driver event suppression; ``device``: the used ring or
    device event suppression.  ``indirect``, ``event_index``: negotiated features.
    """

    size: int
    descriptors: int
    driver: int
    device: int
    indirect: bool = False
    event_index: bool = False


class Chain:
    """One buffer from the driver, checked.

    ``readable``, ``writable``: what the device reads and then writes, as slices of guest RAM;
    of few parts those that are neighbours in memory are one.  ``room``: bytes of what it may write.
    ``key``: by which the queue finds it again; ``identifier``, ``count``: as it is given back.
    """

    __slots__ = ("_written", "count", "identifier", "key", "readable", "room", "writable")

    def __init__(self, key: int, identifier: int, count: int) -> None:
        self.key = key
        self.identifier = identifier
        self.count = count
        self.readable: Sequence[memoryview] = []
        self.writable: Sequence[memoryview] = []
        self.room = 0
        self._written: Sequence[Range] = []

    def fill(self, memory: GuestMemory, parts: Parts) -> Chain:
        """Look the parts up; raises :class:`BrokenQueueError` for what is not RAM."""
        try:
            self.readable = memory.views(parts.readable)
            self.writable = memory.views(parts.writable)
        except OutOfRangeError as error:
            raise BrokenQueueError(f"a descriptor names what is not RAM: {error}") from error
        self._written, self.room = parts.writable, parts.room
        return self

    def head(self, size: int) -> tuple[bytes | memoryview, Sequence[memoryview]]:
        """The first ``size`` bytes that the device reads, and the parts behind them.

        Drivers may cut buffers where they like (2.7.4.1).  Raises :class:`BrokenQueueError` for
        a buffer that is shorter.
        """
        parts = self.readable
        if parts and len(parts[0]) == size:  # as all drivers lay it
            return parts[0], parts[1:]
        found = bytearray()
        for number, part in enumerate(parts):
            missing = size - len(found)
            found += part[:missing]
            if len(found) == size:
                rest = [part[missing:]] if len(part) > missing else []
                return bytes(found), [*rest, *parts[number + 1 :]]
        raise BrokenQueueError("a buffer without its whole header")

    def dirtied(self, memory: GuestMemory) -> None:
        """Say that the device wrote the writable parts."""
        memory.all_dirtied(self._written)


class Parts:
    """The parts of a chain as (gpa, bytes): readable ones, then writable ones.

    ``count``: of descriptors; ``total``: bytes of all, ``room``: of the writable ones.
    """

    __slots__ = ("_read", "_write", "_written", "count", "readable", "room", "total", "writable")

    def __init__(self) -> None:
        self._read: list[Range] = []
        self._write: list[Range] = []
        self.readable: Sequence[Range] = self._read
        self.writable: Sequence[Range] = self._write
        self.count = self.total = self.room = 0
        self._written = False  # there was a writable one

    def add(self, address: int, length: int, flags: int) -> None:
        """One descriptor; raises :class:`BrokenQueueError`."""
        self.count += 1
        self.total += length
        self._check()
        if flags & VIRTQ_DESC_F_WRITE:
            ranges, self._written = self._write, True
            self.room += length
        elif self._written:
            raise BrokenQueueError("a device-readable descriptor follows a device-writable one")
        else:
            ranges = self._read
        if ranges and sum(ranges[-1]) == address:
            start, before = ranges[-1]
            ranges[-1] = start, before + length
        elif length:
            ranges.append((address, length))

    def _check(self) -> None:
        if self.count > MAX_CHAIN:
            raise BrokenQueueError(f"a chain of more than {MAX_CHAIN} descriptors, or a loop")
        if self.total > MAX_CHAIN_BYTES:
            raise BrokenQueueError("a chain of more than 4 GiB")

    def gather(self, memory: GuestMemory, address: int, count: int) -> bool:
        """A table as :meth:`add_in_order` takes them, by an engine that does it faster."""
        if self.count or count < FEW or memory.gather is None:
            return False
        found = memory.gather(address, count)
        if found is None:
            return False
        self.count, self.total, self.room = count, found.total, found.writable.total
        self._check()
        self.readable, self.writable = _few_or_many(found.readable), _few_or_many(found.writable)
        return True

    def add_in_order(self, table: memoryview) -> bool:
        """A split table whose descriptors each name the one behind it, as drivers lay them.

        False for any other, of which nothing was taken: it has to be followed.
        """
        if self.count:
            return False
        count = len(table) >> 4
        if count >= MANY:
            return self._add_many(bytes(table), count)
        return self._add_few(table, count)

    def _add_few(self, table: memoryview, count: int) -> bool:
        """In one pass, and keeping nothing of a descriptor: a guest's own code has emptied the
        host's caches before."""
        readable: list[Range] = []
        writable: list[Range] = []
        ranges, tail, total, read = readable, 0, 0, 0
        start = end = -1
        expected = 1 << 16 | VIRTQ_DESC_F_NEXT
        for address, length, tail in _FIELDS.iter_unpack(table):
            if tail != expected:
                wrong = tail ^ expected
                if expected >> 16 == count:  # the last one names none
                    wrong = tail & 0xFFFF ^ expected & VIRTQ_DESC_F_WRITE
                if wrong == VIRTQ_DESC_F_WRITE and ranges is readable:
                    if start < end:
                        readable.append((start, end - start))
                    ranges, start, end, read = writable, -1, -1, total
                    expected |= VIRTQ_DESC_F_WRITE
                elif wrong:
                    return False
            expected += 1 << 16
            total += length
            if address == end:
                end += length
            else:
                if start < end:
                    ranges.append((start, end - start))
                start, end = address, address + length
        if tail & VIRTQ_DESC_F_NEXT:
            return False
        if start < end:
            ranges.append((start, end - start))
        self.readable, self.writable = readable, writable
        self.count, self.total = count, total
        self.room = total - read if ranges is writable else 0
        self._check()
        return True

    def _add_many(self, table: bytes, count: int) -> bool:
        """All descriptors at once, and neighbours stay two.

        The table's columns are compared with what they have to be; without flags and next it is
        what :class:`Ranges` are made of.
        """
        flags, last = table[12:-16:16], table[-4]
        read = flags.count(VIRTQ_DESC_F_NEXT)
        wanted = _READ * read + _WRITTEN * (len(flags) - read)
        if flags != wanted or table[13::16].strip(b"\0"):
            return False
        if (
            table[14:-16:16] != _NEXT_LOW[: count - 1]
            or table[15:-16:16] != _NEXT_HIGH[: count - 1]
        ):
            return False
        if last == 0 and read == len(flags):
            read = count
        elif last != VIRTQ_DESC_F_WRITE:
            return False
        lengths = _lengths_of(count).unpack(table)
        if 0 in lengths:
            return False
        self.count, self.total = count, sum(lengths)
        self._check()
        before = sum(lengths[:read])
        self.room = self.total - before
        lanes = bytearray(table)
        for column in range(12, 16):
            lanes[column::16] = bytes(count)
        self.readable = _few_or_many(Ranges(bytes(lanes[: read << 4]), before))
        self.writable = _few_or_many(Ranges(bytes(lanes[read << 4 :]), self.room))
        return True


def _few_or_many(ranges: Ranges) -> Sequence[Range]:
    return ranges if len(ranges) >= FEW else list(ranges)


@lru_cache(maxsize=MOST_TABLES)
def _lengths_of(count: int) -> Struct:
    return Struct("<" + "8xI4x" * count)


def indirect_table(memory: GuestMemory, address: int, length: int) -> memoryview:
    """The table that an indirect descriptor names; raises :class:`BrokenQueueError` (2.7.5.3)."""
    if not length or length % DESCRIPTOR.size:
        raise BrokenQueueError(f"an indirect table of {length} bytes")
    if length > MAX_CHAIN * DESCRIPTOR.size:
        raise BrokenQueueError(f"an indirect table of more than {MAX_CHAIN} descriptors")
    try:
        return memory.view(address, length)
    except OutOfRangeError as error:
        raise BrokenQueueError(f"an indirect table that is not in RAM: {error}") from error


def need_event(event: int, new: int, old: int) -> bool:
    """Whether going from ``old`` to ``new`` passed ``event``, modulo 2^16 (2.7.7)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class Virtqueue:
    """The device's side of one enabled queue; subclasses know its layout.

    ``pop`` and ``push`` move chains; ``publish`` shows the driver what was pushed and says
    whether it wants an interrupt.  Between ``pause_notifications`` and ``await_notification``
    the driver need not notify; the latter says whether more came meanwhile.
    """

    def __init__(self, memory: GuestMemory, layout: Layout) -> None:
        self.memory = memory
        self.layout = layout
        self.size = layout.size
        self.held = 0
        """Descriptors, of the ring itself, that were taken and not given back."""
        if not 0 < layout.size <= LARGEST_QUEUE:
            raise BrokenQueueError(f"a queue of {layout.size} descriptors")

    def _area(self, gpa: int, length: int, alignment: int) -> memoryview:
        if gpa % alignment:
            raise BrokenQueueError(f"a ring at {gpa:#x}: not aligned to {alignment} bytes")
        try:
            return self.memory.view(gpa, length)
        except OutOfRangeError as error:
            raise BrokenQueueError(f"a ring that is not in RAM: {error}") from error

    def pop(self) -> Chain | None:
        """The next buffer; None while there is none.  Raises :class:`BrokenQueueError`."""
        raise NotImplementedError

    def take(self, key: int) -> Chain:
        """The buffer that begins at ``key``, also one popped before a machine was saved.

        Raises :class:`BrokenQueueError`.
        """
        chain = self._read_chain(key)
        self.held += chain.count
        if self.held > self.size:
            raise BrokenQueueError("more buffers are available than fit in the ring")
        return chain

    def _read_chain(self, key: int) -> Chain:
        raise NotImplementedError

    def push(self, chain: Chain, written: int) -> None:
        """Give a buffer back, ``written`` bytes of its writable parts filled from the start."""
        raise NotImplementedError

    def publish(self) -> bool:
        """Let the driver see what was pushed; True if it is to be interrupted."""
        raise NotImplementedError

    def pause_notifications(self) -> None:
        """The driver need not say that there is more."""
        raise NotImplementedError

    def await_notification(self) -> bool:
        """The driver must say so again; True if there is more already."""
        raise NotImplementedError

    def save(self) -> list[int]:
        """The device's own indices, for :meth:`load`."""
        raise NotImplementedError

    def load(self, indices: list[int]) -> None:
        """Go on from saved indices; raises :class:`BrokenQueueError` if they cannot be."""
        raise NotImplementedError


class SplitQueue(Virtqueue):
    """A split virtqueue (2.7)."""

    def __init__(self, memory: GuestMemory, layout: Layout) -> None:
        super().__init__(memory, layout)
        size = layout.size
        if size & (size - 1):
            raise BrokenQueueError(f"a split queue of {size} descriptors: no power of two")
        events = 2 if layout.event_index else 0
        self._table = self._area(layout.descriptors, DESCRIPTOR.size * size, 16)
        self._avail = self._area(layout.driver, 4 + 2 * size + events, 2)
        self._used = self._area(layout.device, 4 + 8 * size + events, 4)
        self._used_ring = ((layout.device, len(self._used)),)
        self._used_event = 4 + 2 * size
        self._avail_event = 4 + 8 * size
        self._next_avail = 0
        self._next_used = 0
        self._published = 0

    def pop(self) -> Chain | None:
        index: int = _U16.unpack_from(self._avail, 2)[0]
        waiting = (index - self._next_avail) & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise BrokenQueueError(f"the available index jumped by {waiting}")
        head = _U16.unpack_from(self._avail, 4 + 2 * (self._next_avail & (self.size - 1)))[0]
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return self.take(head)

    def _read_chain(self, key: int) -> Chain:
        parts, index, table = Parts(), key, self._table
        while True:
            if index >= self.size:
                raise BrokenQueueError(f"descriptor {index} of a queue of {self.size}")
            address, length, flags, following = DESCRIPTOR.unpack_from(table, index << 4)
            if flags & VIRTQ_DESC_F_INDIRECT:
                self._add_indirect(parts, address, length, flags)
            else:
                parts.add(address, length, flags)
            if not flags & VIRTQ_DESC_F_NEXT:
                break
            index = following
        return Chain(key, key, 1).fill(self.memory, parts)

    def _add_indirect(self, parts: Parts, address: int, length: int, flags: int) -> None:
        if not self.layout.indirect:
            raise BrokenQueueError("an indirect descriptor, which was not negotiated")
        if flags & VIRTQ_DESC_F_NEXT:
            raise BrokenQueueError("an indirect descriptor that has a next one")
        table, index = indirect_table(self.memory, address, length), 0
        if parts.gather(self.memory, address, length >> 4) or parts.add_in_order(table):
            return
        while True:
            if index >= length >> 4:
                raise BrokenQueueError(f"descriptor {index} of a table of {length >> 4}")
            address, size, flags, following = DESCRIPTOR.unpack_from(table, index << 4)
            if flags & VIRTQ_DESC_F_INDIRECT:
                raise BrokenQueueError("an indirect table inside an indirect table")
            parts.add(address, size, flags)
            if not flags & VIRTQ_DESC_F_NEXT:
                return
            index = following

    def push(self, chain: Chain, written: int) -> None:
        place = 4 + 8 * (self._next_used & (self.size - 1))
        _USED.pack_into(self._used, place, chain.identifier, written)
        self.held -= chain.count
        self._next_used = (self._next_used + 1) & 0xFFFF

    def publish(self) -> bool:
        new, old = self._next_used, self._published
        if new == old:
            return False
        _U16.pack_into(self._used, 2, new)
        self.memory.all_dirtied(self._used_ring)
        self._published = new
        if self.layout.event_index:
            return need_event(_U16.unpack_from(self._avail, self._used_event)[0], new, old)
        return not self._avail[0] & VIRTQ_AVAIL_F_NO_INTERRUPT

    def pause_notifications(self) -> None:
        if not self.layout.event_index:
            _U16.pack_into(self._used, 0, VIRTQ_USED_F_NO_NOTIFY)

    def await_notification(self) -> bool:
        if self.layout.event_index:
            _U16.pack_into(self._used, self._avail_event, self._next_avail)
        else:
            _U16.pack_into(self._used, 0, 0)
        return bool(_U16.unpack_from(self._avail, 2)[0] != self._next_avail)

    def save(self) -> list[int]:
        return [self._next_avail, self._next_used, self._published]

    def load(self, indices: list[int]) -> None:
        if len(indices) != 3 or not all(0 <= value <= 0xFFFF for value in indices):
            raise BrokenQueueError("saved indices of a split queue that cannot be")
        self._next_avail, self._next_used, self._published = indices
