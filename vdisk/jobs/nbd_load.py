"""Load for an NBD server: as many requests as it can answer, at little cost to the client.

One thread drives all connections.  Request headers are packed once, in a ring; what has come back
is counted with one ``iter_unpack`` for a whole receive buffer, and as many requests go out with
one send.  So a read of 4 KiB costs a few microseconds, and a fast server is measured, not us::

    ring     |req 0|req 1|req 2| ... |req n-1|        offsets random or in order, cookie = index
                   ^^^^^^^^^^^^^ sent together, after as many replies

Replies are the simple ones of the protocol, whose length follows from the request, so nothing else
is negotiated.  A latency is the time from the send to the receive that brought the reply.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import time
from array import array
from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import DeviceError, InvalidRequestError
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.wire import (
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    REQUEST,
    Command,
    ErrorValue,
    TransmissionFlag,
)
from vdisk.stores._nbd.handshake import open_session

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from vdisk.nbd.session import Session
    from vdisk.stores._nbd.handshake import Opened, Server

MAX_DEPTH = 1024
MAX_CONNECTIONS = 64
"""Enough to saturate any server; more would measure the client's memory."""

_RING = 4096
"""Requests prepared for a connection; at least MAX_DEPTH, so that cookies in flight differ."""
_BUFFER = 2 << 20
_MOST_SAMPLES = 1 << 20
"""Latencies kept: a few MiB."""
_IOV_MAX = 1024
_SILENCE = 30.0
"""Seconds without a reply after which a server is taken for dead."""


class Load(NamedTuple):
    """What to ask for.

    ``depth``: requests under way in each of ``connections``.  ``seconds``: for how long.
    ``write``: write instead of reading.  ``sequential``: one offset after the other.
    """

    block_size: int = 4096
    depth: int = 32
    connections: int = 1
    seconds: float = 5.0
    write: bool = False
    sequential: bool = False
    seed: int = 0


class LoadResult(NamedTuple):
    """What came of it; times in seconds, latencies of single requests.

    ``cpu``: what the measuring cost the client.
    """

    requests: int
    bytes: int
    seconds: float
    cpu: float
    latencies: array[float]

    def percentile(self, share: float) -> float:
        """The latency that ``share`` of the requests stayed below; 0 if there were none."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def run_load(server: Server, load: Load) -> LoadResult:
    """Put ``load`` on an export; a server that fails a request ends it."""
    with contextlib.ExitStack() as stack:
        streams: list[_Stream] = []
        for number in range(max(load.connections, 1)):
            opened = open_session(server)
            stack.callback(opened.channel.close)
            _check(opened.session, load)
            streams.append(_Stream(opened, server.name, load, number))
        return _drive(streams, load, server.name)


def _check(session: Session, load: Load) -> None:
    sizes = session.block_sizes
    if not 1 <= load.depth <= MAX_DEPTH:
        raise InvalidRequestError(f"the depth is between 1 and {MAX_DEPTH}")
    if not 1 <= load.connections <= MAX_CONNECTIONS:
        raise InvalidRequestError(f"the number of connections is between 1 and {MAX_CONNECTIONS}")
    if load.block_size % sizes.minimum or not 0 < load.block_size <= sizes.maximum:
        raise InvalidRequestError(
            f"the server takes blocks of {sizes.minimum} to {sizes.maximum} bytes,"
            f" not {load.block_size}"
        )
    if session.export.size < load.block_size:
        raise InvalidRequestError(f"the export has only {session.export.size} bytes")
    if load.write and session.export.read_only:
        raise InvalidRequestError("the export is read-only")
    several = TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN in session.export.flags
    if load.write and load.connections > 1 and not several:
        raise InvalidRequestError("the server does not allow writing over several connections")


def _drive(streams: list[_Stream], load: Load, name: str) -> LoadResult:
    begin, cpu = time.perf_counter(), time.process_time()
    end = begin + load.seconds
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            stream.send(load.depth)
            selector.register(stream.socket, stream.events, stream)
        while any(stream.under_way for stream in streams):
            ready = selector.select(_SILENCE)
            if not ready:
                raise DeviceError(f"no reply in {_SILENCE:g} s", path=name)
            for key, _ in ready:
                stream = key.data
                answered = stream.receive()
                if time.perf_counter() < end:
                    stream.send(answered)
                stream.push()
                if stream.events != key.events:
                    selector.modify(stream.socket, stream.events, stream)
    seconds = time.perf_counter() - begin
    requests = sum(stream.answered for stream in streams)
    latencies = array("d")
    for stream in streams:
        latencies.extend(stream.latencies)
    spent = time.process_time() - cpu
    return LoadResult(requests, requests * load.block_size, seconds, spent, latencies)


class _Stream:
    """One connection: its ring of requests, and the replies it waits for."""

    def __init__(self, opened: Opened, name: str, load: Load, number: int) -> None:
        self._name = name
        self.socket: socket.socket = opened.channel.detach()
        self.socket.setblocking(False)
        self.unsent: deque[memoryview] = deque()
        self.under_way = 0
        self.answered = 0
        self.latencies = array("d")
        self._load = load
        self._ring = memoryview(_requests(opened.session, load, number))
        self._next = 0
        self._sent_at = [0.0] * _RING
        data = 0 if load.write else load.block_size
        self._reply = Struct(f">IIQ{data}x")
        self._payload = memoryview(random.Random(load.seed).randbytes(load.block_size))
        self._inbox = bytearray(max(_BUFFER, 4 * self._reply.size))
        self._view = memoryview(self._inbox)
        self._start = self._end = 0

    @property
    def events(self) -> int:
        """What to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)

    # -- requests ----------------------------------------------------------------------------

    def send(self, count: int) -> None:
        """Send the next ``count`` requests of the ring."""
        if not count:
            return
        now, each = time.perf_counter(), REQUEST.size
        self.under_way += count
        while count:
            first = self._next
            last = min(first + count, _RING)
            self._sent_at[first:last] = [now] * (last - first)
            if self._load.write:
                for index in range(first, last):
                    self.unsent.append(self._ring[index * each : (index + 1) * each])
                    self.unsent.append(self._payload)
            else:
                self.unsent.append(self._ring[first * each : last * each])
            count -= last - first
            self._next = last % _RING
        self.push()

    def push(self) -> None:
        """Send what there is room for."""
        while self.unsent:
            buffers = [self.unsent[i] for i in range(min(len(self.unsent), _IOV_MAX))]
            try:
                count = self.socket.sendmsg(buffers)
            except BlockingIOError:
                return
            except OSError as error:
                raise DeviceError(f"the connection was lost: {error}", path=self._name) from error
            while count:
                if count < len(self.unsent[0]):
                    self.unsent[0] = self.unsent[0][count:]
                    return
                count -= len(self.unsent.popleft())

    # -- replies -----------------------------------------------------------------------------

    def receive(self) -> int:
        """Receive once; how many replies that completes."""
        if len(self._inbox) - self._end < self._reply.size:
            rest = self._end - self._start
            self._view[:rest] = self._view[self._start : self._end]
            self._start, self._end = 0, rest
        try:
            count = self.socket.recv_into(self._view[self._end :])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise DeviceError(f"the connection was lost: {error}", path=self._name) from error
        if not count:
            raise DeviceError("the server closed the connection", path=self._name)
        self._end += count
        return self._count()

    def _count(self) -> int:
        """Check and take the whole replies in the buffer."""
        each, position = self._reply.size, self._start
        whole = (self._end - position) // each
        now, sent_at = time.perf_counter(), self._sent_at
        found = []
        for magic, error, cookie in self._reply.iter_unpack(
            self._view[position : position + whole * each]
        ):
            if magic != NBD_SIMPLE_REPLY_MAGIC or error or cookie >= _RING:
                self._complain(magic, error, cookie)
            found.append(now - sent_at[cookie])
        if whole < 1 and self._end - position >= _HEAD.size:
            magic, error = _HEAD.unpack_from(self._view, position)
            if error:  # has no data: it will not become longer
                self._complain(magic, error, 0)
        if len(self.latencies) < _MOST_SAMPLES:
            self.latencies.extend(found)
        self._start += whole * each
        if self._start == self._end:
            self._start = self._end = 0
        self.under_way -= whole
        self.answered += whole
        if self.under_way < 0:
            raise RemoteProtocolError("more replies than requests")
        return whole

    def _complain(self, magic: int, error: int, cookie: int) -> None:
        if magic != NBD_SIMPLE_REPLY_MAGIC:
            raise RemoteProtocolError(f"a reply with the magic {magic:#x}")
        if not error:
            raise RemoteProtocolError(f"a reply to the cookie {cookie}, which waits for none")
        value = ErrorValue.from_wire(error)
        raise DeviceError(f"a request failed: {value.name}", path=self._name, errno=value.errno)


_HEAD = Struct(">II")


def _requests(session: Session, load: Load, number: int) -> bytearray:
    """The ring: headers of requests that cover the export at random, or one after the other."""
    command = Command.NBD_CMD_WRITE if load.write else Command.NBD_CMD_READ
    ring = bytearray(_RING * REQUEST.size)
    for index, offset in zip(range(_RING), _offsets(session, load, number), strict=False):
        REQUEST.pack_into(
            ring,
            index * REQUEST.size,
            NBD_REQUEST_MAGIC,
            0,
            command,
            index,
            offset,
            load.block_size,
        )
    return ring


def _offsets(session: Session, load: Load, number: int) -> Iterator[int]:
    blocks = session.export.size // load.block_size
    chance = random.Random(f"{load.seed} {number}")
    block = blocks * number // load.connections
    while True:
        yield (block if load.sequential else chance.randrange(blocks)) * load.block_size
        block = (block + 1) % blocks
