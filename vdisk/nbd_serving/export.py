"""An export: a device, how it is offered, and what the meta contexts say of it."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vdisk.block import BlockDevice, Kind
from vdisk.errors import InvalidRequestError, NotFoundError, VdiskError
from vdisk.filters.prompt import is_prompt
from vdisk.nbd.session import BlockSizes, ExportInfo
from vdisk.nbd.wire import (
    BASE_ALLOCATION,
    QEMU_ALLOCATION_DEPTH,
    QEMU_DIRTY_BITMAP,
    AllocationState,
    TransmissionFlag,
)
from vdisk.nbd_serving.access import parse_rule
from vdisk.nbd_serving.statistics import Statistics
from vdisk.stores.places import Places

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vdisk.filters.throttle import Throttle

PREFERRED_BLOCK_SIZE = 4096
"""The unit of the page cache, and of the disks under it."""

SLOW_SECONDS = 0.005
"""A write that took longer has waited, for the disk or on a busy machine for the processor."""

SLOW_TIMES = 3
"""Where so many in a row waited, it is the disk, and the event loop no place for the next."""

SLOW_PAUSE = 1.0
"""Seconds after which writing there is tried again."""

_READING = TransmissionFlag.NBD_FLAG_SEND_FLUSH | TransmissionFlag.NBD_FLAG_SEND_CACHE
_WRITING = (
    TransmissionFlag.NBD_FLAG_SEND_FUA
    | TransmissionFlag.NBD_FLAG_SEND_TRIM
    | TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES
    | TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO
)


@runtime_checkable
class HasDirtyBitmaps(Protocol):
    """An image that remembers which ranges were written, and may have a backing file."""

    backing: BlockDevice | None

    @property
    def size(self) -> int: ...

    def dirty_ranges(
        self, name: str, start: int = 0, length: int | None = None
    ) -> Iterable[tuple[int, int]]:
        """(start, length) of each dirty range in [start, start + length), in order."""


class Export:
    """``device`` offered under ``name``; the empty name is what clients get that name none.

    ``read_only``: None, as the device is.  ``discard``: TRIM gives room back, and so may
    zeroing; else both keep it.  ``write_through``: every write is stable when it is answered.
    ``allocation_depth``: offer "qemu:allocation-depth".  ``bitmaps``: names of the dirty bitmaps to
    offer, each that of the uppermost image of the chain that has it.  ``allow``: who may use it,
    see :mod:`vdisk.nbd_serving.access`.
    ``tls_required``: only through TLS.  ``throttle``: how fast it may be used.

    The caller keeps the device, and closes it when the server has ended or the export was
    removed.  All connections use this one device, so what one wrote the others read, and a
    flush covers the writes of all: NBD_FLAG_CAN_MULTI_CONN is true.
    """

    def __init__(
        self,
        name: str,
        device: BlockDevice,
        *,
        description: str = "",
        read_only: bool | None = None,
        discard: bool = False,
        write_through: bool = False,
        allocation_depth: bool = False,
        bitmaps: Collection[str] = (),
        allow: Iterable[str] = (),
        tls_required: bool = False,
        throttle: Throttle | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.description = description
        self.read_only = device.readonly if read_only is None else read_only
        if not self.read_only and device.readonly:
            raise InvalidRequestError(f"{device.name} is opened read-only: export it so")
        self.discard = discard
        self.write_through = write_through
        self.rules = tuple(map(parse_rule, allow))
        self.tls_required = tls_required
        self.throttle = throttle
        self.statistics = Statistics()
        self.places = Places(device)
        """Where reads find their bytes; of the event loop's thread."""
        self.clients = self.jobs = 0
        """How many clients use it, and how many workers; both change in the event loop."""
        self.prompt = is_prompt(device)
        self.slow_until = 0.0
        """While the clock is before this, nothing is tried in the event loop's thread."""
        self._slow_in_a_row = 0
        self._bitmaps = {bitmap: _image_with(bitmap, device) for bitmap in bitmaps}
        contexts = [BASE_ALLOCATION]
        if allocation_depth:
            contexts.append(QEMU_ALLOCATION_DEPTH)
        self._contexts = (*contexts, *(QEMU_DIRTY_BITMAP + name for name in self._bitmaps))
        self._flush_lock = threading.Lock()
        self._tickets = itertools.count(1)
        self._newest_ticket = 0
        self._flushed = 0

    def info(self, name: str, largest_request: int) -> ExportInfo:
        """How the export is described to a client that asked for ``name``."""
        flags = _READING | TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN
        flags |= TransmissionFlag.NBD_FLAG_READ_ONLY if self.read_only else _WRITING
        return ExportInfo(
            name,
            self.device.size,
            flags,
            description=self.description,
            block_sizes=BlockSizes(1, PREFERRED_BLOCK_SIZE, largest_request),
            meta_contexts=self._contexts,
            tls_required=self.tls_required,
        )

    def flush(self) -> None:
        """Flush the device, once for all threads that ask for it at the same time.

        Returns when a flush that began after the call has finished.
        """
        mine = self._newest_ticket = next(self._tickets)
        with self._flush_lock:
            if self._flushed < mine:
                covered = self._newest_ticket
                self.device.flush()
                self._flushed = covered

    def note_time(self, began: float, ended: float, count: int) -> None:
        """``count`` writes were made in the event loop's thread: was that a mistake?"""
        slow = ended - began > SLOW_SECONDS * count
        self._slow_in_a_row = self._slow_in_a_row + 1 if slow else 0
        if self._slow_in_a_row >= SLOW_TIMES:
            self.slow_until = ended + SLOW_PAUSE

    def status(self, context: str, start: int, length: int) -> Iterator[tuple[int, int]]:
        """What a meta context says of a range: (length, status flags), in order, no gaps."""
        if context == BASE_ALLOCATION:
            return self._allocation(start, length)
        if context == QEMU_ALLOCATION_DEPTH:
            return self._depth(start, length)
        return self._dirty(context.removeprefix(QEMU_DIRTY_BITMAP), start, length)

    def _allocation(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        zero = int(AllocationState.NBD_STATE_HOLE | AllocationState.NBD_STATE_ZERO)
        for extent in self.device.map(start, length):
            yield extent.length, zero if extent.reads_zero else 0

    def _depth(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        for extent in self.device.map(start, length):
            yield extent.length, 0 if extent.kind is Kind.HOLE else extent.depth + 1

    def _dirty(self, bitmap: str, start: int, length: int) -> Iterator[tuple[int, int]]:
        image, end = self._bitmaps[bitmap], start + length
        known = min(end, image.size)  # a backing file may be smaller
        dirty = image.dirty_ranges(bitmap, start, known - start) if start < known else ()
        for first, size in dirty:
            if first > start:
                yield first - start, 0
            yield size, 1
            start = first + size
        if start < end:
            yield end - start, 0


def _image_with(bitmap: str, device: BlockDevice) -> HasDirtyBitmaps:
    """The first image from ``device`` downwards that has a bitmap of this name."""
    missing: VdiskError = InvalidRequestError(f"{device.name} has no dirty bitmaps")
    layer: BlockDevice | None = device
    while isinstance(layer, HasDirtyBitmaps):
        try:
            layer.dirty_ranges(bitmap, 0, 0)
        except NotFoundError as error:
            missing = error if layer is device else missing
        else:
            return layer
        layer = layer.backing
    raise missing
