"""An export of an NBD server as a block device.

Any number of threads may use one store; their requests are under way at the same time, over one
connection or, where the server allows, over several.  What is read goes from the socket into the
caller's buffer.  The device has a fixed size.

What the server does not offer:

=====================  ===========================================================================
NBD_CMD_WRITE_ZEROES   zeroes are written
NBD_CMD_TRIM           discards are forgotten: they are advice
NBD_CMD_FLUSH          a write is taken to be stable when it is answered, as the protocol says
NBD_CMD_FLAG_FUA       write-through writes are followed by a flush
block status           all is data
small blocks           the edges of a request are read, changed and written back
=====================  ===========================================================================

What happens when a connection is lost is told in :mod:`vdisk.stores._nbd.pool`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import ZERO_CHUNK, ZEROES, BlockDevice, Extent
from vdisk.errors import InvalidRequestError, NotFoundError, ReadOnlyError
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.limits import MAX_PAYLOAD
from vdisk.nbd.uri import NbdUri, parse_uri
from vdisk.nbd.wire import BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH, TransmissionFlag
from vdisk.stores import alignment
from vdisk.stores._nbd.handshake import HANDSHAKE_TIMEOUT, Server
from vdisk.stores._nbd.pool import Pool, PoolSettings
from vdisk.stores._nbd.requests import CACHE, READ, TRIM, WRITE, WRITE_ZEROES, Request
from vdisk.stores._nbd.status import Run, StatusMap, context_extents
from vdisk.stores._nbd.tls import TlsSettings, settings_for
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vdisk.nbd.session import Session

REQUEST_SIZE = 1 << 20
"""Bytes read or written by one request.  A longer one is cut, and its parts are under way
together, so that the server reads the next while the last one travels."""

LONGEST_RANGE = 1 << 30
"""Bytes zeroed or discarded by one request: no signed 32-bit number of any server overflows."""

ZEROES_TOGETHER = 16 * ZERO_CHUNK
"""Bytes of zeroes that are under way at once where a server has no NBD_CMD_WRITE_ZEROES."""

SMALL = 64 << 10
"""Bytes of a scattered request that are cheaper to copy than to ask for one by one."""


class NbdSettings(NamedTuple):
    """How to use a server.

    ``pool``: connections and reconnecting.  ``request_size``: bytes of one request.
    ``write_through``: every write is stable when it returns.  ``ignore_flush``: flushing does
    nothing.  ``range_size``: bytes that one request zeroes or discards.
    ``meta_contexts``: those to select.  ``shown_context``: the only one to select, and what
    :meth:`NbdStore.status_runs` shows; reading takes all for data.
    ``structured_replies``, ``extended_headers``: use them if the server can.
    ``timeout``: seconds for connecting.
    """

    pool: PoolSettings = PoolSettings()
    request_size: int = REQUEST_SIZE
    range_size: int = LONGEST_RANGE
    write_through: bool = False
    ignore_flush: bool = False
    meta_contexts: tuple[str, ...] = (BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH)
    shown_context: str | None = None
    structured_replies: bool = True
    extended_headers: bool = True
    timeout: float = HANDSHAKE_TIMEOUT


class NbdStore(BlockDevice):
    """The export that ``uri`` names.

    ``readonly``: never write; an export that is read-only itself is refused otherwise.
    Raises :class:`~vdisk.errors.VdiskError`; failed requests are
    :class:`~vdisk.errors.DeviceError` with the server's errno.
    """

    def __init__(
        self,
        uri: NbdUri | str,
        *,
        readonly: bool = True,
        settings: NbdSettings | None = None,
        tls: TlsSettings | None = None,
    ) -> None:
        uri = parse_uri(uri) if isinstance(uri, str) else uri
        self.uri = uri
        self.name = str(uri)
        self.readonly = readonly
        self._settings = settings = settings or NbdSettings()
        tls = settings_for(uri) if tls is None else tls
        shown = settings.shown_context
        wanted = ClientSettings(
            export=uri.export,
            tls=tls.mode,
            meta_contexts=settings.meta_contexts if shown is None else (shown,),
            structured_replies=settings.structured_replies,
            extended_headers=settings.extended_headers,
        )
        self._pool = Pool(Server(uri, wanted, tls, settings.timeout), settings.pool)
        try:
            self._take_constraints(self._pool.session)
        except BaseException:
            self._pool.close()
            raise

    def _take_constraints(self, session: Session) -> None:
        export = session.export
        if export.read_only and not self.readonly:
            raise ReadOnlyError("the server offers this export read-only", path=self.name)
        self._flags = export.flags
        self._unit = session.block_sizes.minimum
        # A part of a block at the end cannot be asked for.
        self._size = round_down(export.size, self._unit)
        most = min(session.block_sizes.maximum, MAX_PAYLOAD)
        self._piece = max(
            round_down(min(self._settings.request_size, most), self._unit), self._unit
        )
        shown = self._settings.shown_context
        self._status = StatusMap(self._pool, self._unit, shown or BASE_ALLOCATION)
        if shown is not None and not self._status.available:
            raise NotFoundError(f"the server has no meta context {shown!r}", path=self.name)
        self._blocks = alignment.SharedLock() if self._unit > 1 else None
        self.zeroes_fast = self._offers(TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES)

    def _offers(self, flag: TransmissionFlag) -> bool:
        return flag in self._flags

    @property
    def size(self) -> int:
        return self._size

    @property
    def session(self) -> Session:
        """What was agreed on with the server."""
        return self._pool.session

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._pool.connections

    # -- reading -----------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        if self._unit > 1 and (offset | len(view)) % self._unit:
            self._read_parts(offset, view)
        elif len(view) <= self._piece:
            if len(view):
                self._pool.call(Request(READ, offset, len(view), view))
        else:
            self._pool.call_all(self._reads(offset, [view]))

    def _reads(self, offset: int, views: Sequence[memoryview]) -> Iterator[Request]:
        for view in views:
            for start in range(0, len(view), self._piece):
                part = view[start : start + self._piece]
                yield Request(READ, offset + start, len(part), part)
            offset += len(view)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        total = sum(map(len, views))
        if len(views) == 1 or (self._unit > 1 and any(len(v) % self._unit for v in views)):
            super()._readv(offset, views)
        elif total > SMALL:
            self._pool.call_all(self._reads(offset, views))
        else:
            together = memoryview(bytearray(total))
            self._read_into(offset, together)
            for view in views:
                view[:], together = together[: len(view)], together[len(view) :]

    def _read_parts(self, offset: int, view: memoryview) -> None:
        for part in alignment.parts(offset, len(view), self._unit):
            target = view[part.start - offset : part.end - offset]
            if part.whole:
                self._read_into(part.start, target)
            else:
                block = self._block(part)
                target[:] = block[part.start - part.block : part.end - part.block]

    def _block(self, part: alignment.Part) -> memoryview:
        block = memoryview(bytearray(part.block_end - part.block))
        self._read_into(part.block, block)
        return block

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        if self._status.available and self._settings.shown_context is None:
            return self._status.extents(self, start, length)
        return super()._map(start, length)

    def status_runs(self, start: int, length: int) -> Iterator[tuple[int, int, Run]] | None:
        """The map with what is a hole in it; None where the server tells nothing."""
        self._check("map", start, length)
        return self._status.runs(self._size, start, length) if self._status.available else None

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return (self, offset) if offset + length <= self._size else None

    def context_extents(
        self, context: str, start: int = 0, length: int | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """(start, length, status) of a meta context that was selected, as the server tells it.

        ``start`` is a multiple of the server's minimum block size.
        """
        if context not in {each.name for each in self.session.meta_contexts}:
            raise InvalidRequestError(
                f"the server has no meta context {context!r}", path=self.name, operation="map"
            )
        length = self._size - start if length is None else length
        self._check("map", start, length)
        return context_extents(self._pool, context, start, start + length, self._unit)

    # -- writing -----------------------------------------------------------------------------

    def _write(self, offset: int, view: memoryview) -> None:
        self._writev(offset, [view])

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        total = sum(map(len, views))
        if len(views) > 1 and (total <= SMALL or self._unit > 1):
            views = [memoryview(b"".join(views))]
        try:
            if self._blocks is None:
                self._write_whole(offset, views)
            elif (offset | total) % self._unit:
                with self._blocks.alone():
                    self._write_parts(offset, views[0])
            else:
                with self._blocks.shared():
                    self._write_whole(offset, views)
        finally:
            self._status.changed()

    def _write_whole(self, offset: int, views: Sequence[memoryview]) -> None:
        with self._stable() as fua:
            if len(views) == 1 and len(views[0]) <= self._piece:
                self._pool.call(Request(WRITE, offset, len(views[0]), views[0], fua=fua))
            else:
                self._pool.call_all(self._writes(offset, views, fua))

    def _writes(self, offset: int, views: Sequence[memoryview], fua: bool) -> Iterator[Request]:
        for view in views:
            for start in range(0, len(view), self._piece):
                part = view[start : start + self._piece]
                yield Request(WRITE, offset + start, len(part), part, fua=fua)
            offset += len(view)

    def _write_parts(self, offset: int, view: memoryview) -> None:
        for part in alignment.parts(offset, len(view), self._unit):
            source = view[part.start - offset : part.end - offset]
            if not part.whole:
                block = self._block(part)
                block[part.start - part.block : part.end - part.block] = source
                source = block
            self._write_whole(part.block, [source])

    @contextlib.contextmanager
    def _stable(self) -> Iterator[bool]:
        """Whether to set NBD_CMD_FLAG_FUA on what is written; without it, flush afterwards."""
        through = self._settings.write_through
        fua = through and self._offers(TransmissionFlag.NBD_FLAG_SEND_FUA)
        yield fua
        if through and not fua:
            self._pool.flush()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        if not self.zeroes_fast:
            for start in range(offset, offset + length, ZEROES_TOGETHER):
                self._writev(start, _zeroes(min(ZEROES_TOGETHER, offset + length - start)))
            return
        try:
            if self._blocks is None or not (offset | length) % self._unit:
                with self._blocks.shared() if self._blocks else contextlib.nullcontext():
                    self._zero_whole(offset, length, unmap)
            else:
                self._zero_parts(offset, length, unmap)
        finally:
            self._status.changed()

    def _zero_parts(self, offset: int, length: int, unmap: bool) -> None:
        for part in alignment.parts(offset, length, self._unit):
            if part.whole:
                self._write_zeroes(part.start, part.end - part.start, unmap)
            else:
                self._write(part.start, memoryview(bytes(part.end - part.start)))

    def _zero_whole(self, offset: int, length: int, unmap: bool) -> None:
        with self._stable() as fua:
            self._pool.call_all(
                Request(WRITE_ZEROES, start, size, fua=fua, no_hole=not unmap)
                for start, size in self._ranges(offset, offset + length)
            )

    def _discard(self, offset: int, length: int) -> None:
        if not self._offers(TransmissionFlag.NBD_FLAG_SEND_TRIM):
            return
        start, end = round_up(offset, self._unit), round_down(offset + length, self._unit)
        try:
            self._pool.call_all(Request(TRIM, at, size) for at, size in self._ranges(start, end))
        finally:
            self._status.changed()

    def _ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset and length of the parts, cut at multiples, that requests without data cover."""
        most = self._settings.range_size
        while start < end:
            stop = min(round_down(start, most) + most, end)
            yield start, stop - start
            start = stop

    def prefetch(self, offset: int, length: int) -> None:
        """Have the server read the range into its cache (NBD_CMD_CACHE), if it can."""
        self._check("cache", offset, length)
        if self._offers(TransmissionFlag.NBD_FLAG_SEND_CACHE):
            start = round_down(offset, self._unit)
            end = min(round_up(offset + length, self._unit), self._size)
            self._pool.call_all(
                Request(CACHE, at, min(self._piece, end - at))
                for at in range(start, end, self._piece)
            )

    def _flush(self) -> None:
        if not self._settings.ignore_flush:
            self._pool.flush()

    def _truncate(self, size: int) -> None:
        """As for a disk: an export cannot grow, and what is behind a smaller size stays there."""
        if size > self._size:
            raise InvalidRequestError(
                f"an export of {self._size} bytes cannot grow to {size}", path=self.name
            )

    def _close(self) -> None:
        self._pool.close()


def _zeroes(length: int) -> list[memoryview]:
    """So many zeroes to write: many times the same ones."""
    zeroes = memoryview(ZEROES)
    return [zeroes[: length - start] for start in range(0, length, ZERO_CHUNK)]
