"""An NBD client for asyncio: many requests under way, one connection, no thread.

::

    async with await connect("nbd://example.com/disk") as client:
        head, tail = await asyncio.gather(client.read(0, 512), client.read(client.size - 512, 512))
        await client.write(0, data)
        await client.flush()

The protocol is the same machine that the blocking store drives (:mod:`vdisk.nbd`);
:mod:`vdisk.nbd_link` is one connection.  One that was lost is replaced as
:mod:`vdisk.stores._nbd.pool` explains: ``reconnect_delay`` 0 fails what was under way, otherwise
requests wait and are sent again where that is safe, behind the acknowledged writes that no flush
had covered.
"""

from __future__ import annotations

import asyncio
import errno
import time
from typing import TYPE_CHECKING

from vdisk.block import as_bytes_view
from vdisk.errors import ClosedError, DeviceError, VdiskError
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.limits import MAX_PAYLOAD
from vdisk.nbd.wire import BASE_ALLOCATION, TransmissionFlag
from vdisk.nbd_link import Link
from vdisk.stores._nbd.address import describe, parse_name
from vdisk.stores._nbd.channel import ConnectionLostError
from vdisk.stores._nbd.handshake import HANDSHAKE_TIMEOUT
from vdisk.stores._nbd.journal import Journal
from vdisk.stores._nbd.pool import FIRST_PAUSE, LONGEST_PAUSE, MOST_SENT, difference, may_pass
from vdisk.stores._nbd.requests import (
    BLOCK_STATUS,
    CACHE,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Request,
)
from vdisk.stores._nbd.tls import TlsSettings, settings_for
from vdisk.units import round_down

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from typing_extensions import Buffer

    from vdisk.nbd.session import Session
    from vdisk.nbd.uri import NbdUri

_DEPTH = 512
"""Requests under way at a time; others wait their turn."""


async def connect(
    uri: NbdUri | str,
    *,
    meta_contexts: tuple[str, ...] = (BASE_ALLOCATION,),
    reconnect_delay: float = 0,
    timeout: float = HANDSHAKE_TIMEOUT,
    tls: TlsSettings | None = None,
) -> NbdClient:
    """Connect to the export that ``uri`` names; raises :class:`~vdisk.errors.VdiskError`.

    ``timeout``: seconds for connecting, from the first packet to the session.
    """
    uri = parse_name(uri) if isinstance(uri, str) else uri
    tls = settings_for(uri) if tls is None else tls
    settings = ClientSettings(export=uri.export, tls=tls.mode, meta_contexts=meta_contexts)
    client = NbdClient(uri, settings, tls, timeout, reconnect_delay)
    await client._connected()
    return client


class NbdClient:
    """An export; made by :func:`connect`.  Methods raise :class:`~vdisk.errors.VdiskError`."""

    def __init__(
        self,
        uri: NbdUri,
        settings: ClientSettings,
        tls: TlsSettings,
        timeout: float,
        reconnect_delay: float,
    ) -> None:
        self.name = str(uri)
        self._uri = uri
        self._settings = settings
        self._tls = tls
        self._timeout = timeout
        self._reconnect_delay = reconnect_delay
        self._journal = Journal(keep=reconnect_delay > 0)
        self._link: Link | None = None
        self._session: Session | None = None
        self._connecting = asyncio.Lock()
        self._slots = asyncio.Semaphore(_DEPTH)
        self._closed = False

    @property
    def session(self) -> Session:
        """What was agreed on with the server."""
        assert self._session is not None
        return self._session

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return self.session.export.size

    # -- requests ----------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        buffer = bytearray(length)
        await self.read_into(offset, buffer)
        return bytes(buffer)

    async def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a writable buffer with the bytes from ``offset`` on."""
        view = as_bytes_view(buffer)
        await self._all(
            Request(READ, offset + start, len(part), part) for start, part in self._parts(view)
        )

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write all of ``data``; with ``fua`` it is stable then."""
        view = as_bytes_view(data)
        await self._all(
            Request(WRITE, offset + start, len(part), part, fua=fua)
            for start, part in self._parts(view)
        )

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = True, fua: bool = False
    ) -> None:
        """Make the range read as zeroes; with ``unmap`` its room may be given back."""
        await self._call(Request(WRITE_ZEROES, offset, length, no_hole=not unmap, fua=fua))

    async def discard(self, offset: int, length: int) -> None:
        """The range is no longer needed (NBD_CMD_TRIM)."""
        await self._call(Request(TRIM, offset, length))

    async def cache(self, offset: int, length: int) -> None:
        """Have the server read the range into its cache."""
        await self._call(Request(CACHE, offset, length))

    async def flush(self) -> None:
        """Return once every write finished before this call survives a loss of power."""
        if self._flushable:
            await self._call(Request(FLUSH))
        if self._journal.lost:
            self._journal.lost = False
            raise DeviceError(
                "the connection was lost before writes that the server had acknowledged were "
                "flushed: they may be gone",
                path=self.name,
                operation="flush",
            )

    async def block_status(
        self, offset: int, length: int, *, one: bool = False
    ) -> dict[str, tuple[tuple[int, int], ...]]:
        """(length, status) of the extents from ``offset`` on, for each meta context by name.

        The server may answer for less of the range than was asked, or for more.
        """
        request = await self._call(Request(BLOCK_STATUS, offset, length, one=one))
        return {event.context.name: event.extents for event in request.status}

    def _parts(self, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Pieces that fit into a request."""
        sizes = self.session.block_sizes
        most = round_down(min(sizes.maximum, MAX_PAYLOAD), sizes.minimum)
        for start in range(0, len(view), most):
            yield start, view[start : start + most]

    @property
    def _flushable(self) -> bool:
        return TransmissionFlag.NBD_FLAG_SEND_FLUSH in self.session.export.flags

    async def _all(self, requests: Iterator[Request]) -> None:
        together = list(requests)
        if len(together) == 1:
            await self._call(together[0])
            return
        results = await asyncio.gather(*map(self._call, together), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _call(self, request: Request) -> Request:
        """Send a request, again where that is safe; raises the error that it is."""
        if self._journal.full and request.changes:
            await self._call(Request(FLUSH))
        async with self._slots:
            while True:
                link = await self._connected()
                try:
                    return await link.call(request)
                except ConnectionLostError as error:
                    unsafe = error.silent and request.changes
                    if not self._reconnect_delay or unsafe or request.sent >= MOST_SENT:
                        raise

    # -- the connection ----------------------------------------------------------------------

    async def _connected(self) -> Link:
        """The connection, a new one if the last was lost."""
        if self._link is not None and self._link.lost is None:
            return self._link
        async with self._connecting:
            if self._closed:
                raise ClosedError("the client is closed", path=self.name)
            if self._link is None:
                self._link = await self._open()
                self._session = self._link.session
            elif self._link.lost is not None:
                self._journal.connection_lost()
                self._link = await self._open_again()
            return self._link

    async def _open(self) -> Link:
        link = Link(self._uri, self._settings, self._tls, self._acknowledged)
        try:
            async with asyncio.timeout(self._timeout):
                await link.open()
        except TimeoutError as error:
            link.abort()
            raise ConnectionLostError(
                f"the handshake did not end in {self._timeout:g} s",
                path=describe(self._uri),
                errno=errno.ETIMEDOUT,
                silent=True,
            ) from error
        except BaseException:
            link.abort()
            raise
        return link

    async def _open_again(self) -> Link:
        """Try until it works or ``reconnect_delay`` is over."""
        deadline, pause = time.monotonic() + self._reconnect_delay, FIRST_PAUSE
        while True:
            try:
                return await self._prepared()
            except VdiskError as error:
                left = deadline - time.monotonic()
                if left <= 0 or not may_pass(error):
                    raise
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _prepared(self) -> Link:
        """A new connection to the same export, with the journal written again."""
        link = await self._open()
        changed = difference(self.session, link.session)
        try:
            if changed is not None:
                raise DeviceError(
                    f"the server came back with another export: {changed}", path=self.name
                )
            for request in self._journal.again():
                await link.call(request)
        except BaseException:
            link.abort()
            raise
        return link

    def _acknowledged(self, request: Request) -> None:
        if self._flushable:
            self._journal.acknowledged(request)

    async def close(self) -> None:
        """Say goodbye and close; a second call does nothing."""
        self._closed = True
        if self._link is not None:
            await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
