"""An NBD server on asyncio: any :class:`~vdisk.block.BlockDevice`, to any number of clients.

::

    with vdisk.open("disk.qcow2", "r+") as disk:
        async with Server([Export("disk", disk)]) as server:
            await server.listen_tcp("localhost", 10809)
            await server.listen_unix("/run/disk.sock")
            ...                                     # exports may be added and removed meanwhile

One thread runs the event loop, and answers what it can without waiting for a disk; worker threads
do the rest.  Clients are untrusted: see :mod:`vdisk.nbd_serving.limits` for what bounds them and
:mod:`vdisk.nbd_serving.access` for who may use what.

What the server is doing it says to the logger ``vdisk.nbd_server``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, VdiskError
from vdisk.filters.throttle import Throttle
from vdisk.listening import stop_listening
from vdisk.nbd.session import TlsMode
from vdisk.nbd.wire import NBD_DEFAULT_PORT
from vdisk.nbd_serving.access import parse_rule, peer_of, permits
from vdisk.nbd_serving.client import Client, Phase
from vdisk.nbd_serving.export import Export
from vdisk.nbd_serving.fast import RECEIVED_AT_ONCE
from vdisk.nbd_serving.fast_writes import INLINE_WRITE
from vdisk.nbd_serving.leases import Leases
from vdisk.nbd_serving.limits import Budget, ServerLimits
from vdisk.nbd_serving.listeners import tcp_sockets, unix_socket, uri_of, vsock_socket
from vdisk.nbd_serving.pace import Pace
from vdisk.nbd_serving.payloads import PayloadBuffers
from vdisk.nbd_serving.sending import SendBuffer
from vdisk.nbd_serving.sources import DirectoryOfImages, ExportSource
from vdisk.nbd_serving.tls import TlsSettings, certificates, pre_shared_keys

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from vdisk.nbd_serving.access import Peer
    from vdisk.nbd_serving.statistics import Statistics

__all__ = [
    "DirectoryOfImages",
    "Export",
    "ExportSource",
    "Server",
    "ServerLimits",
    "Throttle",
    "TlsMode",
    "TlsSettings",
    "certificates",
    "pre_shared_keys",
]

log = logging.getLogger("vdisk.nbd_server")

RECEIVE_BUFFER: Final = RECEIVED_AT_ONCE + INLINE_WRITE + (4 << 10)
"""Bytes of a buffer that all clients share: what is received at once, and behind it room for the
rest of a write that is made there."""

ACCEPTS_AT_ONCE: Final = 16
"""Connections accepted before those that exist have their turn."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds without accepting when the system is out of descriptors or memory."""

SWEEP_SECONDS: Final = 1.0
"""Between two looks for clients that are overdue."""


def _do_nothing() -> None:
    """What most servers do when the last client has left."""


_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server:
    """Serves ``exports`` while its ``async with`` block runs, to whoever the listeners let in.

    ``default``: the export for clients that name none.  ``tls``: :func:`certificates` or
    :func:`pre_shared_keys`.  ``allow``: who may use anything at all.  ``shared``: clients at
    once, others wait to be accepted; 0 any number.  ``fast`` False: answer everything the
    slow way, as through the hot path nothing may differ but time.
    """

    def __init__(
        self,
        exports: Iterable[Export] = (),
        *,
        sources: Iterable[ExportSource] = (),
        default: str = "",
        tls: TlsSettings = TlsSettings(),  # noqa: B008 - immutable
        allow: Iterable[str] = (),
        limits: ServerLimits = ServerLimits(),  # noqa: B008 - immutable
        shared: int = 0,
        fast: bool = True,
    ) -> None:
        if shared < 0:
            raise InvalidRequestError(f"{shared} is no number of clients")
        self.limits = limits
        self.tls = tls
        self.fast = fast
        self.budget = Budget(limits)
        self.receive_buffer = memoryview(bytearray(RECEIVE_BUFFER))
        self.send_buffer = SendBuffer()
        self.pace = Pace()
        self.payloads = PayloadBuffers()
        self._default = default
        self._rules = tuple(map(parse_rule, allow))
        self._shared = shared
        self._clients: set[Client] = set()
        self._listeners: list[socket.socket] = []
        self._own: list[socket.socket] = []
        self._accepting: set[socket.socket] = set()
        self._unix_paths: list[tuple[str, int]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._exports: dict[str, Export] = {}
        self.statistics: dict[str, Statistics] = {}
        """By name of the export; also of those from sources, whether open now or not."""
        self._changed = asyncio.Event()
        self.on_last_client: Callable[[], None] = _do_nothing
        """Called when the last client has left, one that had reached an export."""
        self._closing = False
        self.workers = ThreadPoolExecutor(limits.workers, thread_name_prefix="nbd-worker")
        self._leases = Leases(tuple(sources), self.workers, self.statistics)
        for export in exports:
            self.add_export(export)

    async def __aenter__(self) -> Self:
        self._sweep()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # -- exports ---------------------------------------------------------------------------------

    @property
    def exports(self) -> dict[str, Export]:
        """The exports there are, by name; those of sources while they are in use."""
        return {**self._leases.opened, **self._exports}

    @property
    def clients(self) -> list[Peer]:
        """Who is connected."""
        return [client.peer for client in self._clients]

    def add_export(self, export: Export) -> None:
        """Offer one more; raises :class:`AlreadyExistsError`."""
        if export.name in self._exports:
            raise AlreadyExistsError(f"there is an export {export.name!r} already")
        self.statistics[export.name] = export.statistics
        self._exports[export.name] = export

    async def remove_export(self, name: str) -> Export:
        """Withdraw an export: its clients' requests are answered, they are disconnected.

        Returns it when nothing uses its device and what was written is flushed.
        """
        export = self._exports.pop(name, None)
        if export is None:
            raise NotFoundError(f"there is no export {name!r}")
        await self._drain([client for client in self._clients if client.export is export])
        await self._until(lambda: not export.jobs)
        await self._flush(export)
        return export

    async def lease(self, client: Client, name: str) -> Export | None:
        """Let ``client`` use the export ``name``, and none that it used before.

        None if there is no such export for it.  Raises :class:`VdiskError` where opening fails.
        """
        self._give_back(client)
        name = name or self._default
        export = self._exports.get(name)
        if export is None and permits(self._rules, client.peer):
            export = await self._leases.open(name)
        if export is None or client.phase is Phase.CLOSED or not self._may_use(client.peer, export):
            return None
        client.export = export
        export.clients += 1
        return export

    def _give_back(self, client: Client) -> None:
        export, client.export = client.export, None
        if export is not None:
            export.clients -= 1
            self._leases.perhaps_unused(export)

    def _may_use(self, peer: Peer, export: Export) -> bool:
        return permits(self._rules, peer) and permits(export.rules, peer)

    async def list_for(self, peer: Peer) -> list[tuple[str, str]]:
        """(name, description) of what ``peer`` may use."""
        listed = [
            (export.name, export.description)
            for export in self._exports.values()
            if self._may_use(peer, export)
        ]
        if permits(self._rules, peer):
            listed += await self._leases.names()
        return listed

    # -- listening -------------------------------------------------------------------------------

    @property
    def uris(self) -> list[str]:
        """Where clients find the server; an export's name is to be appended."""
        tls = self.tls.mode is TlsMode.REQUIRE
        return [uri_of(listener, tls=tls) for listener in self._listeners]

    async def listen_tcp(
        self, host: str | None = "localhost", port: int = NBD_DEFAULT_PORT
    ) -> list[int]:
        """Listen on every address of ``host`` (None: all interfaces); the ports (for port 0)."""
        sockets = tcp_sockets(host, port)
        self._listen(sockets)
        return [listener.getsockname()[1] for listener in sockets]

    async def listen_unix(self, path: str | os.PathLike[str]) -> None:
        """Listen on a unix socket, which is removed when the server is closed."""
        path = os.fspath(path)
        listener = unix_socket(path)
        self._unix_paths.append((path, os.stat(path).st_ino))
        self._listen([listener])

    async def listen_vsock(self, port: int = NBD_DEFAULT_PORT, cid: int | None = None) -> None:
        """Listen for machines on this host, or the host of this machine."""
        self._listen([vsock_socket(port, cid)])

    def listen_on(self, sockets: Sequence[socket.socket]) -> None:
        """Use sockets that listen already, perhaps for others, too; the server closes them."""
        for listener in sockets:
            listener.setblocking(False)
            self._listeners.append(listener)
        self._choose_accepting()

    def _listen(self, sockets: Sequence[socket.socket]) -> None:
        """Use sockets that nobody else has."""
        self._own += sockets
        self.listen_on(sockets)

    def _choose_accepting(self) -> None:
        """Accept connections, or leave them waiting while as many as may are there."""
        loop = asyncio.get_running_loop()
        room = not self._closing and not (self._shared and len(self._clients) >= self._shared)
        for listener in self._listeners:
            if room and listener not in self._accepting:
                loop.add_reader(listener, self._accept, listener)
                self._accepting.add(listener)
            elif not room and listener in self._accepting:
                loop.remove_reader(listener)
                self._accepting.discard(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if listener not in self._accepting:
                return
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause_accepting(listener, error)
                    return
                continue  # the client has left already
            self._welcome(connection, peer_of(connection, address))

    def _pause_accepting(self, listener: socket.socket, error: OSError) -> None:
        log.error("cannot accept clients now: %s", error.strerror)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._accepting.discard(listener)
        loop.call_later(ACCEPT_PAUSE, self._choose_accepting)

    def _welcome(self, connection: socket.socket, peer: Peer) -> None:
        if len(self._clients) >= self.limits.connections and not self._make_room():
            log.warning("%s: refused, %d clients are connected", peer, len(self._clients))
            connection.close()
            return
        certified = any(rule.kind != "uid" for rule in self._rules)
        if not certified and not permits(self._rules, peer):
            log.warning("%s: refused, no rule lets it in", peer)
            connection.close()
            return
        log.debug("%s: connected", peer)
        client = Client(self, connection, peer)
        if client.phase is not Phase.CLOSED:
            self._clients.add(client)
            self._choose_accepting()

    def _make_room(self) -> bool:
        """End the oldest handshake: a flood of silent connections keeps nobody out."""
        unfinished = [item for item in self._clients if item.phase is not Phase.TRANSMISSION]
        if not unfinished:
            return False
        oldest = min(unfinished, key=lambda client: client.since)
        oldest.end("its handshake took long, and another client came", logging.WARNING)
        return True

    # -- what clients tell -----------------------------------------------------------------------

    def client_ended(self, client: Client, *, served: bool) -> None:
        """``client`` is closed; ``served``: it had reached an export."""
        self._clients.discard(client)
        self._give_back(client)
        if served and not self._clients:
            self.on_last_client()
        self._changed.set()
        self._choose_accepting()

    def has_one_client(self) -> bool:
        """Whether a client that asks is the only one."""
        return len(self._clients) <= 1

    def job_ended(self, export: Export) -> None:
        """A worker is done with something for ``export``."""
        self._leases.perhaps_unused(export)
        self._changed.set()

    def _sweep(self) -> None:
        now = monotonic()
        for client in list(self._clients):
            reason = client.overdue(now)
            if reason:
                client.end(reason, logging.WARNING)
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    # -- the end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop listening, answer what was asked, disconnect everybody, flush every export.

        Raises the :class:`VdiskError` of the first flush that failed, when all is done.
        """
        if self._closing:
            return
        self._closing = True
        self._stop_listening()
        await self._drain(list(self._clients))
        await self._until(lambda: not any(export.jobs for export in self.exports.values()))
        failures = []
        for export in self._exports.values():
            try:
                await self._flush(export)
            except VdiskError as error:
                log.error("export %r cannot be flushed: %s", export.name, error)
                failures.append(error)
        await self._leases.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.workers.shutdown()
        if failures:
            raise failures[0]

    def _stop_listening(self) -> None:
        self._choose_accepting()
        for listener in self._own:
            stop_listening(listener)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, inode in self._unix_paths:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)

    async def _drain(self, clients: Sequence[Client]) -> None:
        for client in clients:
            client.drain()
        try:
            async with asyncio.timeout(self.limits.drain_seconds or None):
                await self._until(lambda: all(item.phase is Phase.CLOSED for item in clients))
        except TimeoutError:
            for client in clients:
                client.end("did not fetch its replies while the server was ending")

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has changed that makes ``condition`` true."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _flush(self, export: Export) -> None:
        await asyncio.get_running_loop().run_in_executor(self.workers, export.flush)
