"""Connections to one export: as many as help, replaced when they are lost.

More than one connection is used only where the server says NBD_FLAG_CAN_MULTI_CONN (a flush on
one covers the writes of all), and opened only when those there are have requests waiting.

When a connection is lost its requests have no answer.  With ``reconnect_delay`` 0 they fail, and
the next request connects again.  Otherwise everybody waits while one thread connects again, with
growing pauses, for at most so many seconds; then

1. writes that the server acknowledged and no flush has covered are written again
   (:mod:`~vdisk.stores._nbd.journal`), since it may have died before they were stable;
2. reads, block status and flushes without an answer are sent again;
3. so are writes, zeroes and trims, unless the server had only fallen *silent*.  Doing them twice
   does no harm, and nobody who waits for an answer can tell before from after; but a server that
   is merely slow may still do the first one after we have written something newer there.  These
   fail, their outcome unknown.

A server that breaks the protocol, or comes back with another export, is not asked again.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import ClosedError, DeviceError, NotFoundError, VdiskError
from vdisk.nbd.errors import NegotiationError
from vdisk.nbd.wire import OptionReply, TransmissionFlag
from vdisk.stores._nbd.channel import ConnectionLostError, repeated
from vdisk.stores._nbd.connection import Connection
from vdisk.stores._nbd.handshake import open_session
from vdisk.stores._nbd.journal import Journal
from vdisk.stores._nbd.requests import FLUSH, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.nbd.session import Session
    from vdisk.stores._nbd.handshake import Opened, Server

MAX_CONNECTIONS = 16
"""As many as QEMU allows one client."""
DEFAULT_CONNECTIONS = 4
DEFAULT_DEPTH = 64
"""Requests under way in one connection: beyond what servers work on at once (16 in qemu-nbd and
nbdkit), so that none of them waits for us."""
BUSY = 4
"""Requests under way in each connection before another one is opened."""

SMALL = 32 << 10
"""Bytes of a request that finds room in any socket that is empty."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
"""Seconds between attempts to connect: soon at first, and never a burden to the server."""
REFUSING = 0.5
"""Seconds after a failed attempt during which requests fail without another one."""
MOST_SENT = 5
"""How often a request is sent: it may be what the server dies of."""


class PoolSettings(NamedTuple):
    """``open_timeout``, ``reconnect_delay``: seconds of trying again, 0: do not.

    ``request_timeout``: seconds that a server may be silent while it owes answers; None: forever.
    """

    connections: int = DEFAULT_CONNECTIONS
    depth: int = DEFAULT_DEPTH
    open_timeout: float = 0
    reconnect_delay: float = 0
    request_timeout: float | None = None


class Pool:
    """Thread-safe.  ``session``: what was agreed on; the same for all connections, ever."""

    def __init__(self, server: Server, settings: PoolSettings) -> None:
        self._server = server
        self._settings = settings
        self._changing = threading.RLock()
        """Held by whoever changes the list of connections."""
        self._closed = False
        self._down: tuple[float, VdiskError] | None = None
        self._connected = time.monotonic()
        opened = open_session_until(server, time.monotonic() + settings.open_timeout)
        self.session: Session = opened.session
        flags = opened.session.export.flags
        self._most = (
            settings.connections if TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN in flags else 1
        )
        self._flushable = TransmissionFlag.NBD_FLAG_SEND_FLUSH in flags
        self._journal = Journal(keep=settings.reconnect_delay > 0)
        self._connections = [self._made(Connection(opened, self._acknowledged))]

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    # -- requests ----------------------------------------------------------------------------

    def call(self, request: Request) -> Request:
        """Send a request and wait for its answer; raises what came of it."""
        if not self._talk(request):
            self.submit(request)
        return self.wait(request)

    def _talk(self, request: Request) -> bool:
        """Have it answered the shortest way, which is for one small request at a time."""
        connections = self._connections
        if request.length > SMALL or not connections or (self._journal.full and request.changes):
            return False
        request.mark = self._journal.mark()
        return connections[0].talk(request)

    def call_all(self, requests: Iterable[Request]) -> None:
        """Send requests one behind the other, and wait for all; raises the first error.

        They share a connection: one thread receives from one at a time.
        """
        sent: list[Request] = []
        connection: Connection | None = None
        try:
            for request in requests:
                self.submit(request, connection)
                connection = request.connection
                sent.append(request)
                if sent[0].error is not None:  # no more of what has failed already
                    break
        finally:
            for request in sent:
                self._wait(request)
        for request in sent:
            if request.error is not None:
                raise request.error

    def flush(self) -> None:
        """Flush; raises for acknowledged writes that may have been lost before."""
        if self._flushable:
            self._flush()
        if self._journal.lost:
            self._journal.lost = False
            raise DeviceError(
                "the connection was lost before writes that the server had acknowledged were "
                "flushed: they may be gone",
                path=self._server.name,
                operation="flush",
            )

    def _flush(self) -> None:
        """By the first connection: it knows the server that acknowledged all the writes."""
        request = Request(FLUSH)
        if not self._talk(request):
            self.submit(request, next(iter(self._connections), None))
        self.wait(request)

    def submit(self, request: Request, preferred: Connection | None = None) -> None:
        """Send a request; its answer is to be waited for."""
        if self._journal.full and request.changes:
            self._flush()
        while True:
            connection = preferred if preferred in self._connections else self._choose()
            assert connection is not None
            with connection.sending:
                connection.make_room(self._settings.depth)
                request.mark = self._journal.mark()
                if connection.send(request):
                    return
            self._restore(connection)

    def wait(self, request: Request) -> Request:
        """Wait for the answer to a request that was sent; raises the error that it is."""
        self._wait(request)
        if request.error is not None:
            raise request.error
        return request

    def _wait(self, request: Request) -> None:
        while not request.done:
            connection = request.connection
            assert connection is not None
            if not connection.wait(request):
                self._restore(connection)

    def _acknowledged(self, request: Request) -> None:
        if self._flushable:
            self._journal.acknowledged(request)

    # -- connections -------------------------------------------------------------------------

    def _made(self, connection: Connection) -> Connection:
        connection.set_timeout(self._settings.request_timeout)
        return connection

    def _choose(self) -> Connection:
        """The connection with the fewest requests under way, perhaps a new one."""
        connections = self._connections
        if not connections:
            return self._first()
        best = min(connections, key=lambda connection: len(connection.unanswered))
        if (
            len(best.unanswered) >= BUSY
            and len(connections) < self._most
            and self._changing.acquire(blocking=False)
        ):
            try:
                return self._another(best)
            finally:
                self._changing.release()
        return best

    def _another(self, best: Connection) -> Connection:
        """One more connection; ``best`` where the server does not want that many clients."""
        server = self._server._replace(timeout=EXTRA_TIMEOUT)
        try:
            opened = open_session(server)
        except VdiskError:
            self._most = len(self._connections)
            return best
        connection = self._made(Connection(opened, self._acknowledged))
        if difference(self.session, opened.session) is not None:
            connection.disconnect()
            self._most = len(self._connections)
            return best
        self._connections = [*self._connections, connection]
        return connection

    def _first(self) -> Connection:
        """A connection after all were lost, and nobody could replace them then."""
        with self._changing:
            if self._closed:
                raise ClosedError("the device is closed", path=self._server.name)
            now = time.monotonic()
            if self._down is None:
                return self._first_or_new(now + self._settings.reconnect_delay)
            if not self._connections and now < self._down[0]:
                raise repeated(self._down[1])
            return self._first_or_new(now)

    def _restore(self, lost: Connection) -> None:
        """Do for the requests of a lost connection what can be done; one thread does it."""
        with self._changing:
            if lost not in self._connections:
                return
            deadline = time.monotonic() + self._settings.reconnect_delay
            requests = self._take_out(lost)
            while requests:
                try:
                    connection = self._first_or_new(deadline)
                except VdiskError as error:
                    _fail(requests, error)
                    return
                sent = self._send_again(requests, connection)
                requests = requests[sent:]
                if requests:  # lost once more
                    requests = self._take_out(connection) + requests

    def _take_out(self, lost: Connection) -> list[Request]:
        """Remove a connection; the requests to send again.  With the first one, all go.

        The others may have been opened when the server that the first one knew had died already,
        so they prove nothing about what it acknowledged.
        """
        gone = self._connections if lost is self._connections[0] else [lost]
        self._connections = [each for each in self._connections if each not in gone]
        for connection in gone:
            connection.retire()
        if not self._connections:
            self._journal.connection_lost()
        return [request for connection in gone for request in self._sort_out(connection)]

    def _sort_out(self, gone: Connection) -> list[Request]:
        """Fail the requests that must not be sent again; the others."""
        error = gone.lost
        requests = list(gone.unanswered.values())
        assert error is not None
        if not self._settings.reconnect_delay or not isinstance(error, ConnectionLostError):
            _fail(requests, error)
            return []
        _fail((r for r in requests if error.silent and r.changes), error)
        _fail((r for r in requests if r.sent >= MOST_SENT), error)
        return [request for request in requests if not request.done]

    def _send_again(self, requests: list[Request], connection: Connection) -> int:
        """How many of the requests went out before the connection was lost."""
        with connection.sending:
            for index, request in enumerate(requests):
                connection.make_room(self._settings.depth)
                if not connection.send(request):
                    return index
        return len(requests)

    def _first_or_new(self, deadline: float) -> Connection:
        """The first connection; where there is none a new one, with the journal written again."""
        if self._connections:
            return self._connections[0]
        pause = self._connected + LONGEST_PAUSE - time.monotonic()
        if pause > 0 and self._settings.reconnect_delay:  # it comes and goes
            time.sleep(FIRST_PAUSE)
        try:
            connection = self._prepared(deadline)
        except VdiskError as error:
            self._down = time.monotonic() + REFUSING, error
            raise
        self._down, self._connected = None, time.monotonic()
        self._connections = [connection]
        return connection

    def _prepared(self, deadline: float) -> Connection:
        """A new connection that knows what the old ones were told."""
        while True:
            connection = self._connect(deadline)
            try:
                self._repeat(connection)
            except ConnectionLostError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(FIRST_PAUSE)
            else:
                return connection

    def _connect(self, deadline: float) -> Connection:
        opened = open_session_until(self._server, deadline)
        connection = self._made(Connection(opened, self._acknowledged))
        changed = difference(self.session, opened.session)
        if changed is not None:
            connection.disconnect()
            raise DeviceError(
                f"the server came back with another export: {changed}", path=self._server.name
            )
        return connection

    def _repeat(self, connection: Connection) -> None:
        """Write the journal again, in order."""
        for request in self._journal.again():
            with connection.sending:
                sent = connection.send(request)
            answered = sent and connection.wait(request)
            error = request.error if answered else connection.lost
            if error is not None:
                connection.disconnect()
                raise error

    def close(self) -> None:
        """Leave; requests under way fail."""
        with self._changing:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.disconnect()
            _fail(
                connection.unanswered.values(),
                ClosedError("the device was closed", path=self._server.name),
            )


EXTRA_TIMEOUT = 5.0
"""Seconds for one connection more.  A server that is content with those it has may leave us in
the queue of its socket, where nothing ever happens."""


def open_session_until(server: Server, deadline: float) -> Opened:
    """Connect; try again while that may help, until ``deadline``.  At least once."""
    pause = FIRST_PAUSE
    while True:
        try:
            return open_session(server)
        except VdiskError as error:
            left = deadline - time.monotonic()
            if left <= 0 or not may_pass(error):
                raise
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)


_PASSING = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EAGAIN,
        errno.EINTR,
        errno.ENODEV,
    }
)


def may_pass(error: VdiskError) -> bool:
    """Whether connecting may succeed later: a server that is not there yet, or not any more."""
    if isinstance(error, NegotiationError):
        return error.reply is OptionReply.NBD_REP_ERR_SHUTDOWN
    if isinstance(error, NotFoundError):  # the socket is not there
        return error.operation == "connect"
    return isinstance(error, ConnectionLostError) or (
        isinstance(error, DeviceError) and error.errno in _PASSING
    )


def difference(old: Session, new: Session) -> str | None:
    """Why requests made for one session are none for the other."""
    before, after = old.export, new.export
    if before.size != after.size:
        return f"{after.size} bytes, not {before.size}"
    missing = before.flags & ~after.flags & ~_MAY_VANISH
    if missing or before.read_only != after.read_only:
        return f"its flags are {after.flags:#x}, not {before.flags:#x}"
    sizes, were = new.block_sizes, old.block_sizes
    if sizes.minimum > were.minimum or sizes.maximum < were.maximum:
        return f"requests of {sizes.minimum} to {sizes.maximum} bytes"
    lacking = {each.name for each in old.meta_contexts} - {each.name for each in new.meta_contexts}
    return f"without {', '.join(sorted(lacking))}" if lacking else None


_MAY_VANISH = (
    TransmissionFlag.NBD_FLAG_HAS_FLAGS
    | TransmissionFlag.NBD_FLAG_ROTATIONAL
    | TransmissionFlag.NBD_FLAG_SEND_DF
    | TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO
    | TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD
)
"""Transmission flags without which every request that this client makes is still good."""


_UNKNOWN = "; whether this write was done is unknown"


def _fail(requests: Iterable[Request], error: VdiskError) -> None:
    """Answer requests by an error; of those that write, nobody knows whether they were done."""
    for request in list(requests):
        request.error = repeated(error, _UNKNOWN if request.changes else "")
        request.done = True
