"""The one interface of the library, and the map that everything else reads.

A :class:`BlockDevice` is bytes at offsets: a file, an NBD connection, an image, a filter over
any of these.  A format does not move bytes; it *maps* them.  :meth:`BlockDevice.map` gives a
plan, a sequence of :class:`Extent`, and whoever holds the plan takes the shortest road: a
read copies, ``convert`` calls ``copy_file_range``, the NBD server calls ``sendfile``::

    guest offsets   0          64 KiB      192 KiB            1 MiB
                    +----------+-----------+------------------+
    overlay.qcow2   |  DATA    |           |  ZERO            |     depth 0
                    +----------+-----------+------------------+
    base.raw        |  (hidden)|   DATA    |  (hidden)        |     depth 1
                    +----------+-----------+------------------+

    map() -> Extent(0, 64K, DATA, overlay's file, 0x50000, depth=0)
             Extent(64K, 128K, DATA, base.raw, 64K, depth=1)
             Extent(192K, 832K, ZERO, None, None, depth=0)

Units are bytes everywhere.  Public methods pass one gate (open? writable? inside the device?)
and then call the underscored hook of the same name, which a subclass implements and which may
trust its arguments.  Devices may be used from several threads at once.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import (
    ClosedError,
    InvalidRequestError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedFeatureError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Self

    from typing_extensions import Buffer

ZERO_CHUNK = 1 << 20
ZEROES = bytes(ZERO_CHUNK)
"""One mebibyte of zeroes: what is written, or compared with, when a device cannot zero."""


class Kind(enum.Enum):
    """What a range of a device holds."""

    DATA = "data"
    """Bytes that stand verbatim at ``source_offset`` of ``source``."""
    COMPRESSED = "compressed"
    """Stored compressed; read through ``source`` (the layer that can decompress it)."""
    ZERO = "zero"
    """Reads as zeroes because a layer says so."""
    HOLE = "hole"
    """Reads as zeroes because no layer has anything here."""


class Extent(NamedTuple):
    """A run of a device's bytes, all of one kind.

    ``start`` and ``length``: bytes of the mapped device.  ``source``/``source_offset``: the
    device that holds the bytes and where they begin in it; for DATA and COMPRESSED
    ``source.read_into(source_offset, …)`` always yields the content.  For ZERO they may name
    preallocated room; for HOLE they are None.  ``depth``: how many backing files down.
    """

    start: int
    length: int
    kind: Kind
    source: BlockDevice | None = None
    source_offset: int | None = None
    depth: int = 0

    @property
    def end(self) -> int:
        """First byte after the extent."""
        return self.start + self.length

    @property
    def reads_zero(self) -> bool:
        """True if the map alone tells that every byte is zero."""
        return self.kind is Kind.ZERO or self.kind is Kind.HOLE

    def shifted(self, delta: int) -> Extent:
        """The same extent as seen by a device whose byte ``start + delta`` this is."""
        return self._replace(start=self.start + delta)

    def clipped(self, start: int, end: int) -> Extent:
        """The part inside [start, end), which must not be empty."""
        first, last = max(start, self.start), min(end, self.end)
        offset = self.source_offset
        if offset is not None:
            offset += first - self.start
        return Extent(first, last - first, self.kind, self.source, offset, self.depth)

    def follows(self, previous: Extent) -> bool:
        """True if ``previous`` and this extent are one run, in the device and in its source."""
        return (
            self.kind is previous.kind
            and self.source is previous.source
            and self.depth == previous.depth
            and self.start == previous.start + previous.length
            and (
                self.source_offset == previous.source_offset
                if self.source_offset is None or previous.source_offset is None
                else self.source_offset == previous.source_offset + previous.length
            )
        )


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same map with neighbours that continue each other joined."""
    pending: Extent | None = None
    for extent in extents:
        if pending is None:
            pending = extent
        elif extent.follows(pending):
            pending = pending._replace(length=pending.length + extent.length)
        else:
            yield pending
            pending = extent
    if pending is not None:
        yield pending


def fill_zeroes(view: memoryview) -> None:
    """Set every byte of a writable ``view`` to zero."""
    for start in range(0, len(view), ZERO_CHUNK):
        part = view[start : start + ZERO_CHUNK]
        part[:] = ZEROES[: len(part)] if len(part) < ZERO_CHUNK else ZEROES


def execute_read(extents: Iterable[Extent], offset: int, view: memoryview) -> None:
    """Carry out a plan: fill ``view`` with the device's bytes from ``offset`` on.

    ``extents`` must cover [offset, offset + len(view)) in order and without gaps.
    """
    for extent in extents:
        start = extent.start - offset
        part = view[start : start + extent.length]
        if extent.source is None or extent.source_offset is None or extent.reads_zero:
            fill_zeroes(part)
        else:
            extent.source.read_into(extent.source_offset, part)


def split_views(views: Sequence[memoryview], lengths: Iterable[int]) -> Iterator[list[memoryview]]:
    """Cut a scatter list into consecutive lists of ``lengths`` bytes each."""
    index = used = 0
    for length in lengths:
        part: list[memoryview] = []
        left = length
        while left:
            view = views[index]
            piece = view[used : used + left] if used or len(view) > left else view
            part.append(piece)
            left -= len(piece)
            used += len(piece)
            if used == len(view):
                index, used = index + 1, 0
        yield part


def execute_readv(extents: Iterable[Extent], offset: int, views: Sequence[memoryview]) -> None:
    """Carry out a plan as :func:`execute_read` does, scattering the bytes over ``views``.

    Each extent is one call of its source, however many buffers it fills.  No view is empty.
    """
    plan = list(extents)
    parts = [views] if len(plan) == 1 else split_views(views, (e.length for e in plan))
    for extent, part in zip(plan, parts, strict=True):
        if extent.source is None or extent.source_offset is None or extent.reads_zero:
            for view in part:
                fill_zeroes(view)
        else:
            extent.source.readv(extent.source_offset, part)


def as_bytes_view(buffer: Buffer) -> memoryview:
    """A flat view of bytes over any contiguous buffer."""
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def flat_views(buffers: Sequence[Buffer]) -> list[memoryview]:
    """Flat views of bytes over those buffers that are not empty.

    Guests give scatter lists of hundreds of pages, through layer after layer: one that is flat
    already is looked at in passing.
    """
    views = [
        buffer
        if type(buffer) is memoryview and buffer.format == "B" and buffer.ndim == 1
        else as_bytes_view(buffer)
        for buffer in buffers
    ]
    return views if all(views) else [view for view in views if len(view)]


def close_all(*devices: BlockDevice | None) -> None:
    """Close those that are there, each of them whether or not closing another one fails."""
    with ExitStack() as closing:
        for device in reversed(devices):
            if device is not None:
                closing.callback(device.close)


class BlockDevice(ABC):
    """Bytes at offsets, with zeroes, holes and a map.

    ``name``: what errors and listings call it.  ``readonly``: every writing call raises
    :class:`ReadOnlyError`.  ``growable``: a file under an image; writes past the end extend
    it, and bytes past the end read as zeroes.  ``backing``: the device that shows through
    where this one has nothing.  ``zeroes_fast``: ``write_zeroes`` costs less than writing.
    ``verbatim``: what is read is what is stored, not its decrypted form.  ``locate_unit``: what
    :meth:`locate` finds, it finds for whole aligned parts of so many bytes, a power of two.
    """

    name: str = ""
    readonly: bool = False
    growable: bool = False
    zeroes_fast: bool = False
    verbatim: bool = True
    locate_unit: int = 1
    backing: BlockDevice | None = None
    closed: bool = False

    # -- what a subclass provides ------------------------------------------------------------

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of the device in bytes."""

    @property
    def subcluster_size(self) -> int:
        """Bytes that are allocated together, and brought from a backing file: 1 where any are."""
        return 1

    def _read_into(self, offset: int, view: memoryview) -> None:
        execute_read(self._map(offset, len(view)), offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        raise UnsupportedFeatureError("this device cannot be written", path=self.name)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        for start in range(offset, offset + length, ZERO_CHUNK):
            step = min(ZERO_CHUNK, offset + length - start)
            self._write(start, memoryview(ZEROES)[:step])

    def _copy_from(
        self, _offset: int, _source: BlockDevice, _source_offset: int, _length: int
    ) -> int:
        return 0

    def _discard(self, offset: int, length: int) -> None:  # noqa: B027 - an optional hook
        """Advice only: a device that cannot discard keeps its bytes."""

    def _flush(self) -> None:  # noqa: B027
        """Nothing to do where writes are stable at once."""

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        yield Extent(start, length, Kind.DATA, self, start)

    def _truncate(self, size: int) -> None:
        raise UnsupportedFeatureError("this device cannot be resized", path=self.name)

    def _close(self) -> None:  # noqa: B027
        """Release what the device holds; called once."""

    # -- the gate ----------------------------------------------------------------------------

    def _check(self, operation: str, offset: int, length: int) -> None:
        """Refuse a request that no hook should see; every public method comes through here."""
        if self.closed:
            raise ClosedError("the device is closed", path=self.name, operation=operation)
        if offset < 0 or length < 0:
            raise InvalidRequestError(
                f"{operation} of {length} bytes at {offset}: negative",
                path=self.name,
                operation=operation,
            )
        if offset + length > self.size and not self.growable:
            raise OutOfRangeError(
                f"{operation} of {length} bytes reaches past the end ({self.size} bytes)",
                path=self.name,
                offset=offset,
                operation=operation,
            )

    def _check_write(self, operation: str, offset: int, length: int) -> None:
        if self.readonly:
            raise ReadOnlyError("opened read-only", path=self.name, operation=operation)
        self._check(operation, offset, length)

    # -- reading -----------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        self._check("read", offset, length)
        buffer = bytearray(length)
        self._read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a writable buffer with the bytes from ``offset`` on."""
        view = as_bytes_view(buffer)
        self._check("read", offset, len(view))
        self._read_into(offset, view)

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Fill the buffers one after another with the bytes from ``offset`` on."""
        views = flat_views(buffers)
        self._check("read", offset, sum(map(len, views)))
        self._readv(offset, views)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self._read_into(offset, view)
            offset += len(view)

    def map(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """What the device holds from ``start`` on: extents in order, without gaps or overlap.

        Neighbouring extents differ, or are not adjacent in their source.  The plan is of the
        moment: a write, discard or snapshot made later may outdate it.
        """
        if length is None:
            length = max(self.size - start, 0)
        self._check("map", start, length)
        return merged(self._map(start, length)) if length else iter(())

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """The store and offset where a range stands verbatim, in one piece; None if it does not.

        The shortest road for small reads: formats override it with a lookup that makes no plan.
        """
        extents = list(self.map(offset, length))
        if len(extents) != 1 or extents[0].kind is not Kind.DATA or extents[0].source is None:
            return None
        return extents[0].source, extents[0].source_offset or 0

    def moves(self) -> int | None:
        """Counts the changes after which something may stand elsewhere than :meth:`locate` said.

        Who finds the same number inside :meth:`hold` need not ask again; None: always ask.
        """
        return None

    def hold(self) -> AbstractContextManager[None]:
        """While inside, what :meth:`map` and :meth:`locate` found stays this device's own.

        For whoever carries out a plan by other means than this device's methods: a format may
        not reuse the room of something that was freed meanwhile.
        """
        return nullcontext()

    # -- writing -----------------------------------------------------------------------------

    def locate_to_write(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """The store and offset where a range may be overwritten, in one piece, by other means.

        None where it takes more than that: :meth:`write` knows.  For small writes to a device
        that is not read-only, inside it, and true only inside :meth:`hold_to_write`.
        """
        return None

    def hold_to_write(self) -> AbstractContextManager[None]:
        """While inside, what :meth:`locate_to_write` finds may be written there."""
        return nullcontext()

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of ``data`` at ``offset``; stable after the next :meth:`flush`."""
        view = as_bytes_view(data)
        self._check_write("write", offset, len(view))
        if len(view):
            self._write(offset, view)

    def writev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after another from ``offset`` on."""
        views = flat_views(buffers)
        self._check_write("write", offset, sum(map(len, views)))
        self._writev(offset, views)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self._write(offset, view)
            offset += len(view)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes; with ``unmap`` its room may be given back."""
        self._check_write("write zeroes", offset, length)
        if length:
            self._write_zeroes(offset, length, unmap)

    def copy_from(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        """Let the system copy bytes of ``source`` here, none of them passing through us.

        How many bytes were copied, from the start of the range on: 0 where there is no such
        way, and the caller reads and writes instead.
        """
        self._check_write("copy", offset, length)
        return self._copy_from(offset, source, source_offset, length)

    def discard(self, offset: int, length: int) -> None:
        """The range is no longer needed: it may keep its bytes or read as zeroes."""
        self._check_write("discard", offset, length)
        if length:
            self._discard(offset, length)

    def flush(self) -> None:
        """Return once every write finished before this call survives a loss of power."""
        if self.closed:
            raise ClosedError("the device is closed", path=self.name, operation="flush")
        if not self.readonly:
            self._flush()

    def truncate(self, size: int) -> None:
        """Resize to ``size`` bytes; new bytes read as zeroes."""
        self._check_write("resize", 0, 0)
        if size < 0:
            raise InvalidRequestError(f"size {size} is negative", path=self.name)
        self._truncate(size)

    # -- life --------------------------------------------------------------------------------

    def note(self, event: str) -> None:  # noqa: B027
        """Hear that whoever uses this device is at a step of its work, such as "l2_update".

        Means nothing but to filters that act by it; the names are those of
        :data:`vdisk.filters.faults.EVENTS`.
        """

    def close(self) -> None:
        """Flush and release; a second call does nothing."""
        if self.closed:
            return
        try:
            self.flush()
        finally:
            self.closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<{type(self).__name__} {self.name!r} {state}>"
