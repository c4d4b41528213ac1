"""One connection of the asyncio client: the transport feeds the machine.

An ``asyncio.BufferedProtocol`` gives the transport the machine's own buffers, so that what is read
goes from the socket into the caller's memory; the machine's events end the futures of those who
wait::

    call(request) --> machine --> transport.writelines
         ^                             :
         '-- future <-- event <-- buffer_updated
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Any

from vdisk.errors import AuthenticationError, InvalidRequestError, VdiskError, from_os_error
from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.connect import ClientHandshake, ClientSettings
from vdisk.nbd.connect import connect as connect_plan
from vdisk.nbd.errors import LocalProtocolError
from vdisk.nbd.events import ReplyDone, SessionStarted, StatusReceived, TlsWanted
from vdisk.nbd.uri import NbdUri, Transport
from vdisk.stores._nbd.address import describe, tune
from vdisk.stores._nbd.channel import ConnectionLostError, repeated
from vdisk.stores._nbd.requests import Request, failure

if TYPE_CHECKING:
    from vdisk.nbd.session import Session
    from vdisk.stores._nbd.tls import TlsSettings

_RECEIVE_SIZE = 1 << 16

_GOODBYE = 5.0
"""Seconds that a server which reads nothing may hold up a client that leaves."""


class Link(asyncio.BufferedProtocol):
    """One connection: the transport feeds the machine, and the machine's events end futures."""

    def __init__(
        self, uri: NbdUri, settings: ClientSettings, tls: TlsSettings, acknowledged: Any
    ) -> None:
        self.lost: VdiskError | None = None
        self._uri = uri
        self._name = describe(uri)
        self._tls = tls
        self._acknowledged = acknowledged
        self._handshake: ClientHandshake[None] = ClientHandshake(settings, connect_plan)
        self._machine: ClientTransmission | None = None
        self._transport: asyncio.Transport | None = None
        self._inbox = memoryview(bytearray(_RECEIVE_SIZE))
        self._straight = False
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._waiting: dict[int, tuple[Request, asyncio.Future[None]]] = {}

    @property
    def session(self) -> Session:
        assert self._machine is not None
        return self._machine.session

    # -- the handshake -----------------------------------------------------------------------

    async def open(self) -> None:
        await self._open_transport()
        while True:
            self._news.clear()
            event = self._handshake.next_event()
            self._send_handshake()
            if isinstance(event, SessionStarted):
                self._machine = ClientTransmission(event.session)
                self._machine.receive_data(self._handshake.trailing_data)
                return
            if isinstance(event, TlsWanted):
                await self._start_tls()
                self._handshake.tls_started()
            elif self.lost is not None and self._handshake.ended:
                raise self.lost
            else:
                await self._news.wait()

    async def _open_transport(self) -> None:
        loop, uri = asyncio.get_running_loop(), self._uri
        try:
            if uri.transport is Transport.UNIX:
                await loop.create_unix_connection(lambda: self, uri.socket)
            elif uri.transport is Transport.TCP:
                await loop.create_connection(lambda: self, uri.host or "localhost", uri.port)
            else:
                await self._open_vsock(loop)
        except OSError as error:
            raise from_os_error(error, path=self._name, operation="connect") from error

    async def _open_vsock(self, loop: asyncio.AbstractEventLoop) -> None:
        import socket

        client = socket.socket(socket.AF_VSOCK)
        client.setblocking(False)
        try:
            await loop.sock_connect(client, (self._uri.cid, self._uri.port))
        except BaseException:
            client.close()
            raise
        await loop.create_connection(lambda: self, sock=client)

    async def _start_tls(self) -> None:
        assert self._transport is not None
        assert self._tls.context is not None
        loop = asyncio.get_running_loop()
        hostname = self._tls.hostname
        try:
            # An empty name: there is none to be checked, and the context does not ask for one.
            transport = await loop.start_tls(
                self._transport, self, self._tls.context, server_hostname=hostname or ""
            )
        except OSError as error:
            raise AuthenticationError(
                f"TLS failed: {error}", path=self._name, operation="connect"
            ) from error
        assert transport is not None
        self._transport = transport

    def _send_handshake(self) -> None:
        data = self._handshake.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    # -- what the transport calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        connected = transport.get_extra_info("socket")
        if connected is not None:
            tune(connected)

    def get_buffer(self, _sizehint: int) -> memoryview:
        target = None if self._machine is None else self._machine.payload_buffer
        self._straight = target is not None
        return self._inbox if target is None else target

    def buffer_updated(self, count: int) -> None:
        if self._machine is None:
            self._handshake.receive_data(self._inbox[:count])
            self._news.set()
            return
        try:
            if self._straight:
                self._machine.payload_received(count)
            else:
                self._machine.receive_data(self._inbox[:count])
            self._take_events(self._machine)
        except VdiskError as error:
            self._lose(error)

    def eof_received(self) -> None:
        """Nothing more comes: the transport closes, which ``connection_lost`` tells."""

    def connection_lost(self, error: Exception | None) -> None:
        reason = "the server closed the connection" if error is None else f"lost: {error}"
        self._handshake.receive_eof()
        silent = isinstance(error, OSError) and not isinstance(error, ConnectionError)
        self._lose(
            ConnectionLostError(reason, path=self._name, errno=errno.ECONNRESET, silent=silent)
        )
        self._ended.set()
        self._news.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # -- requests ----------------------------------------------------------------------------

    async def call(self, request: Request) -> Request:
        """Send a request and wait for its answer."""
        await self._room.wait()
        if self.lost is not None or self._machine is None or self._transport is None:
            raise ConnectionLostError("the connection is lost", path=self._name)
        try:
            cookie, buffers = request.start(self._machine)
        except LocalProtocolError as error:
            raise InvalidRequestError(error.message, path=self._name) from error
        request.sent += 1
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[cookie] = request, answer
        self._transport.writelines(buffers)
        await answer
        return request

    def _take_events(self, machine: ClientTransmission) -> None:
        while (event := machine.next_event()) is not None:
            if isinstance(event, StatusReceived):
                self._waiting[event.cookie][0].status.append(event)
            elif isinstance(event, ReplyDone):
                self._answer(event)

    def _answer(self, reply: ReplyDone) -> None:
        request, answer = self._waiting.pop(reply.cookie)
        if reply.error is None:
            self._acknowledged(request)
        if answer.done():  # whoever waited was cancelled
            return
        if reply.error is None:
            answer.set_result(None)
        else:
            answer.set_exception(failure(request, reply.error, self._name))

    def _lose(self, error: VdiskError) -> None:
        """Every request under way fails, and the connection is of no use any more."""
        if self.lost is None:
            error.path = error.path or self._name
            self.lost = error
        self._room.set()
        waiting, self._waiting = self._waiting, {}
        for _, answer in waiting.values():
            if not answer.done():
                answer.set_exception(repeated(self.lost))
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Say goodbye, and close."""
        if self.lost is None and self._machine is not None and self._transport is not None:
            self._transport.writelines(self._machine.disconnect())
            self._transport.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE):
                    await self._ended.wait()
        self.abort()
