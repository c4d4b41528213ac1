"""Packed virtqueues: one ring that both sides write (VIRTIO 1.2, section 2.8)::

    descriptor ring, 16 bytes each                 driver / device event suppression
    +------------------+--------+------+-------+   0 desc: offset (14-0), wrap counter (15)
    | address (64)     | length | id   | flags |   2 flags: 0 enable, 1 disable, 2 at desc
    +------------------+--------+------+-------+
       flags: 1 NEXT, 2 WRITE, 4 INDIRECT, 7 AVAIL, 15 USED

A descriptor is available while AVAIL equals the wrap counter of the driver and USED does not; it
is used when both equal that of the device.  Each side's counter flips when it passes the end.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from vdisk.vm.devices.virtqueue import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    BrokenQueueError,
    Chain,
    Layout,
    Parts,
    Virtqueue,
    indirect_table,
    need_event,
)

if TYPE_CHECKING:
    from vdisk.vm.memory import GuestMemory

VIRTQ_DESC_F_AVAIL: Final = 1 << 7
VIRTQ_DESC_F_USED: Final = 1 << 15
RING_EVENT_FLAGS_ENABLE: Final = 0
RING_EVENT_FLAGS_DISABLE: Final = 1
RING_EVENT_FLAGS_DESC: Final = 2

_DESCRIPTOR: Final = Struct("<QIHH")
_EVENT: Final = Struct("<HH")
_USED: Final = Struct("<IH")
_U16: Final = Struct("<H")
_SIZE: Final = 16


class PackedQueue(Virtqueue):
    """A packed virtqueue.  Positions are places in the ring, wrap counters 0 or 1."""

    def __init__(self, memory: GuestMemory, layout: Layout) -> None:
        super().__init__(memory, layout)
        self._ring = self._area(layout.descriptors, _SIZE * layout.size, 16)
        self._driver_event = self._area(layout.driver, _EVENT.size, 4)
        self._device_event = self._area(layout.device, _EVENT.size, 4)
        self._next_avail, self._avail_wrap = 0, 1
        self._next_used, self._used_wrap = 0, 1
        self._pushed: list[tuple[int, int, int, int]] = []
        """What :meth:`publish` will show: (position, id, written, flags)."""
        self._advanced = 0
        """Descriptors given back since the driver was last told."""

    def pop(self) -> Chain | None:
        if not self._is_available():
            return None
        chain = self.take(self._next_avail)
        self._next_avail += chain.count
        if self._next_avail >= self.size:
            self._next_avail -= self.size
            self._avail_wrap ^= 1
        return chain

    def _is_available(self) -> bool:
        flags = _U16.unpack_from(self._ring, _SIZE * self._next_avail + 14)[0]
        return bool(flags >> 7 & 1 == self._avail_wrap != flags >> 15)

    def _read_chain(self, key: int) -> Chain:
        parts, count, position = Parts(), 0, key
        if not 0 <= key < self.size:
            raise BrokenQueueError(f"descriptor {key} of a queue of {self.size}")
        while True:
            fields = _DESCRIPTOR.unpack_from(self._ring, _SIZE * position)
            address, length, identifier, flags = fields
            count += 1
            if count > self.size:
                raise BrokenQueueError("a chain that is longer than its queue")
            if flags & VIRTQ_DESC_F_INDIRECT:
                if flags & VIRTQ_DESC_F_NEXT or count > 1:
                    raise BrokenQueueError("an indirect descriptor that is part of a chain")
                self._add_indirect(parts, address, length)
            else:
                parts.add(address, length, flags)
            if not flags & VIRTQ_DESC_F_NEXT:
                break
            position = position + 1 if position + 1 < self.size else 0
        chain = Chain(key, identifier, count)
        return chain.fill(self.memory, parts)

    def _add_indirect(self, parts: Parts, address: int, length: int) -> None:
        """Every descriptor of the table belongs to the chain, in order.

        Of its flags only WRITE means something (2.8.7).
        """
        if not self.layout.indirect:
            raise BrokenQueueError("an indirect descriptor, which was not negotiated")
        table = indirect_table(self.memory, address, length)
        for place, size, _identifier, flags in _DESCRIPTOR.iter_unpack(table):
            parts.add(place, size, flags)

    def push(self, chain: Chain, written: int) -> None:
        flags = (VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED) if self._used_wrap else 0
        if written:
            flags |= VIRTQ_DESC_F_WRITE
        self._pushed.append((self._next_used, chain.identifier, written, flags))
        self._next_used += chain.count
        self.held -= chain.count
        self._advanced += chain.count
        if self._next_used >= self.size:
            self._next_used -= self.size
            self._used_wrap ^= 1

    def publish(self) -> bool:
        """The first of the descriptors is marked last: a driver that looks sees all or none."""
        if not self._pushed:
            return False
        for position, identifier, written, _flags in self._pushed:
            _USED.pack_into(self._ring, _SIZE * position + 8, written, identifier)
        for position, _identifier, _written, flags in reversed(self._pushed):
            _U16.pack_into(self._ring, _SIZE * position + 14, flags)
        self._pushed.clear()
        self.memory.dirtied(self.layout.descriptors, len(self._ring))
        advanced, self._advanced = self._advanced, 0
        return self._wants_interrupt(advanced)

    def _wants_interrupt(self, advanced: int) -> bool:
        place, flags = _EVENT.unpack_from(self._driver_event)
        if flags & 3 != RING_EVENT_FLAGS_DESC or not self.layout.event_index:
            return bool(flags & 3 != RING_EVENT_FLAGS_DISABLE)
        event = place & 0x7FFF
        if place >> 15 != self._used_wrap:
            event -= self.size
        return need_event(event, self._next_used, self._next_used - advanced)

    def pause_notifications(self) -> None:
        _U16.pack_into(self._device_event, 2, RING_EVENT_FLAGS_DISABLE)

    def await_notification(self) -> bool:
        if self.layout.event_index:
            place = self._next_avail | self._avail_wrap << 15
            _EVENT.pack_into(self._device_event, 0, place, RING_EVENT_FLAGS_DESC)
        else:
            _U16.pack_into(self._device_event, 2, RING_EVENT_FLAGS_ENABLE)
        return self._is_available()

    def save(self) -> list[int]:
        return [self._next_avail, self._avail_wrap, self._next_used, self._used_wrap]

    def load(self, indices: list[int]) -> None:
        if len(indices) != 4 or not all(0 <= value < self.size for value in indices[::2]):
            raise BrokenQueueError("saved indices of a packed queue that cannot be")
        if not all(value in (0, 1) for value in indices[1::2]):
            raise BrokenQueueError("saved wrap counters of a packed queue that cannot be")
        self._next_avail, self._avail_wrap, self._next_used, self._used_wrap = indices
