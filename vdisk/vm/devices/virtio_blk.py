"""A disk for drivers that know they are in a machine like this (VIRTIO 1.2, section 5.2).

A request is one buffer, cut into parts however the driver likes::

    device-readable   type (32)  reserved (32)  sector (64)   data to write, or 16-byte segments
    device-writable   data that were read                     status (8): 0 OK, 1 IOERR, 2 UNSUPP

Sectors are 512 bytes whatever the block size.  Data go between the disk and the parts themselves.
All of the storage is :class:`~vdisk.emu_blockdev.EmuBlockDevice`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.emu_block.requests import (
    DISCARD,
    FLUSH,
    GET_ID,
    ID_LENGTH,
    READ,
    WRITE,
    WRITE_ZEROES,
    Request,
)
from vdisk.emu_block.scatter import total
from vdisk.emu_blockdev import MAX_REQUEST, EmuBlockDevice
from vdisk.vm.devices.virtio import VirtioDevice
from vdisk.vm.devices.virtqueue import BrokenQueueError, Chain
from vdisk.vm.ranges import Views

if TYPE_CHECKING:
    from vdisk.emu_block.requests import Operation
    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.base import State
    from vdisk.vm.devices.virtio import Slot
    from vdisk.vm.memory import GuestMemory

VIRTIO_BLK_F_SIZE_MAX: Final = 1 << 1
VIRTIO_BLK_F_SEG_MAX: Final = 1 << 2
VIRTIO_BLK_F_GEOMETRY: Final = 1 << 4
VIRTIO_BLK_F_RO: Final = 1 << 5
VIRTIO_BLK_F_BLK_SIZE: Final = 1 << 6
VIRTIO_BLK_F_FLUSH: Final = 1 << 9
VIRTIO_BLK_F_TOPOLOGY: Final = 1 << 10
VIRTIO_BLK_F_CONFIG_WCE: Final = 1 << 11
VIRTIO_BLK_F_MQ: Final = 1 << 12
VIRTIO_BLK_F_DISCARD: Final = 1 << 13
VIRTIO_BLK_F_WRITE_ZEROES: Final = 1 << 14

VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH = 0, 1, 4
VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES = 8, 11, 13
VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP = 0, 1, 2
SEGMENT_UNMAP: Final = 1

SECTOR: Final = 512
QUEUE_SIZE: Final = 512
SEG_MAX: Final = QUEUE_SIZE - 2
"""Parts of data in one request, which has a header and a status besides: 1 MiB is 256 pages."""
MAX_ZEROED_SECTORS: Final = (1 << 30) // SECTOR
"""Of one discard or write-zeroes: 1 GiB, so that none of them keeps a disk busy for long."""

_HEADER: Final = struct.Struct("<IIQ")
_SEGMENT: Final = struct.Struct("<QII")
_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
WRITEBACK_OFFSET: Final = 32


class VirtioBlk(VirtioDevice):
    """The device; ``disk`` is its own.  ``queues``: one for each processor is best."""

    device_type: ClassVar[int] = 2
    class_code: ClassVar[int] = 0x010000

    def __init__(
        self,
        disk: EmuBlockDevice,
        memory: GuestMemory,
        clock: Clock,
        *,
        name: str = "virtio-blk",
        queues: int = 1,
        queue_size: int = QUEUE_SIZE,
        packed: bool = False,
    ) -> None:
        self.disk = disk
        features = (
            *(VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_GEOMETRY),
            *(VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_TOPOLOGY),
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_MQ if queues > 1 else 0,
            VIRTIO_BLK_F_RO if disk.readonly else VIRTIO_BLK_F_WRITE_ZEROES,
            VIRTIO_BLK_F_DISCARD if disk.discard_enabled and not disk.readonly else 0,
        )
        super().__init__(
            name,
            memory,
            clock,
            queues=queues,
            queue_size=queue_size,
            features=sum(features),
            packed=packed,
        )
        self._write_cache = disk.write_cache
        disk.on_change(self.config_changed)

    # -- requests ----------------------------------------------------------------------------

    def ready(self, _slot: Slot) -> bool:
        return self.disk.room

    def use(self, slot: Slot, chain: Chain) -> int | None:
        header, data = chain.head(_HEADER.size)
        kind, _, sector = _HEADER.unpack(header)
        room, status = _status_byte(chain)
        begin = _KINDS.get(kind)
        request = None if begin is None else begin(sector, data, room, chain.room - 1)
        if request is None:
            status[0] = VIRTIO_BLK_S_UNSUPP
            chain.dirtied(self.memory)
            return 1
        request.done, request.context = self._done, (slot, chain, status)
        if not self.disk.submit(request):
            return None
        return self._complete(request, chain, status)

    def _complete(self, request: Request, chain: Chain, status: memoryview) -> int:
        """Tell the guest how it went: the bytes written."""
        status[0] = VIRTIO_BLK_S_OK if request.error is None else VIRTIO_BLK_S_IOERR
        chain.dirtied(self.memory)
        reads = request.operation is READ or request.operation is GET_ID
        return (request.length if reads else 0) + 1

    def _done(self, request: Request) -> None:
        """From a worker, the bus's lock held."""
        context: tuple[Slot, Chain, memoryview] = request.context  # type: ignore[assignment]
        slot, chain, status = context
        if slot.held.get(chain.key) is not chain:
            return  # the driver has reset the device: the memory is no longer ours
        if self.give_back(slot, chain, self._complete(request, chain, status)):
            self.publish(slot)
        if slot.stalled:
            self.serve_later()

    # -- configuration -----------------------------------------------------------------------

    def config(self) -> bytes:
        """5.2.4.  A physical sector's size is told as a power of two of logical ones."""
        disk = self.disk
        cylinders, heads, sectors = disk.geometry.physical
        block = disk.sector_size
        exponent = (disk.physical_sector_size // block).bit_length() - 1
        return _CONFIG.pack(
            disk.size // SECTOR,
            MAX_REQUEST // SEG_MAX // 4096 * 4096,
            min(SEG_MAX, self.slots[0].largest - 2),
            *(min(cylinders, 0xFFFF), heads, sectors),
            block,
            *(exponent, 0, max(disk.physical_sector_size // block, 1), 0),
            *(int(disk.write_cache), 0),
            len(self.slots),
            *(MAX_ZEROED_SECTORS, 1, block // SECTOR),
            *(MAX_ZEROED_SECTORS, 1, int(disk.discard_enabled)),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver chooses between write-back (1) and write-through (0)."""
        if (
            self.features & VIRTIO_BLK_F_CONFIG_WCE
            and offset == WRITEBACK_OFFSET
            and len(data) == 1
        ):
            self.disk.write_cache = bool(data[0] & 1)

    def started(self) -> None:
        """A driver that cannot flush gets every write flushed (5.2.6.2)."""
        if not self.features & VIRTIO_BLK_F_FLUSH:
            self.disk.write_cache = False

    def stop(self) -> None:
        self.disk.cancel()
        self.disk.write_cache = self._write_cache

    def save_state(self) -> State:
        return super().save_state() | {"write_cache": self.disk.write_cache}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.disk.write_cache = bool(state.get("write_cache"))


def _status_byte(chain: Chain) -> tuple[Sequence[memoryview], memoryview]:
    """What data may be written to, and behind that the last byte."""
    parts = chain.writable
    if not parts:
        raise BrokenQueueError("a request without room for its status")
    others, last = parts.without_last() if type(parts) is Views else (parts[:-1], parts[-1])
    if len(last) == 1:
        return others, last
    return [*others, last[:-1]], last[-1:]


Buffers = Sequence[memoryview]


def _read(sector: int, _data: Buffers, room: Buffers, size: int) -> Request:
    return Request(READ, sector * SECTOR, size, room)


def _write(sector: int, data: Buffers, _room: Buffers, _size: int) -> Request:
    return Request(WRITE, sector * SECTOR, total(data), data)


def _flush(_sector: int, _data: Buffers, _room: Buffers, _size: int) -> Request:
    return Request(FLUSH)


def _get_id(_sector: int, _data: Buffers, room: Buffers, size: int) -> Request:
    return Request(GET_ID, 0, min(size, ID_LENGTH), room)


def _discard(_sector: int, data: Buffers, _room: Buffers, _size: int) -> Request | None:
    return _zeroing(DISCARD, 0, data)


def _write_zeroes(_sector: int, data: Buffers, _room: Buffers, _size: int) -> Request | None:
    return _zeroing(WRITE_ZEROES, SEGMENT_UNMAP, data)


def _zeroing(operation: Operation, known: int, data: Buffers) -> Request | None:
    """The one segment of a discard or write-zeroes; None for what 5.2.6.2 calls unsupported."""
    if total(data) != _SEGMENT.size:
        return None
    sector, count, flags = _SEGMENT.unpack(b"".join(data))
    if flags & ~known or count > MAX_ZEROED_SECTORS:
        return None
    unmap = bool(flags & SEGMENT_UNMAP)
    return Request(operation, sector * SECTOR, count * SECTOR, unmap=unmap)


_KINDS: Final[dict[int, Callable[[int, Buffers, Buffers, int], Request | None]]] = {
    VIRTIO_BLK_T_IN: _read,
    VIRTIO_BLK_T_OUT: _write,
    VIRTIO_BLK_T_FLUSH: _flush,
    VIRTIO_BLK_T_GET_ID: _get_id,
    VIRTIO_BLK_T_DISCARD: _discard,
    VIRTIO_BLK_T_WRITE_ZEROES: _write_zeroes,
}
"""How each begins: with the sector, the data that the driver gives, the room for those that it
wants, and the bytes of that."""
