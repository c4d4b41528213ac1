"""Both ends of an NBD connection without a network: to test either machine against the other.

:class:`MemoryDisk` is an export made of a bytearray that carries out requests; :func:`answer` is a
complete server program in a dozen lines.  :func:`negotiate` runs two handshake machines against
each other, :class:`Pair` two transmission machines.  :func:`serve` and :class:`BlockingClient` put
the same machines on a blocking socket, to meet real peers.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.connect import ClientHandshake, ClientSettings, PlanDone, connect
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.events import (
    ClientEvent,
    Disconnected,
    ExportsWanted,
    ExportWanted,
    InvalidRequest,
    NegotiationAborted,
    ReplyDone,
    Request,
    ServerEvent,
    SessionStarted,
    TlsWanted,
)
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import ExportInfo
from vdisk.nbd.wire import (
    BASE_ALLOCATION,
    AllocationState,
    Command,
    ErrorValue,
    TransmissionFlag,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vdisk.nbd.client_requests import Outgoing
    from vdisk.nbd.replies import Buffer
    from vdisk.nbd.server_negotiation import ServerNegotiation
    from vdisk.nbd.session import Session

EVERYTHING = (
    TransmissionFlag.NBD_FLAG_SEND_FLUSH
    | TransmissionFlag.NBD_FLAG_SEND_FUA
    | TransmissionFlag.NBD_FLAG_SEND_TRIM
    | TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES
    | TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO
    | TransmissionFlag.NBD_FLAG_SEND_CACHE
    | TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN
)
BLOCK = 4096
"""Granularity of a MemoryDisk's holes, bytes."""


@dataclass
class MemoryDisk:
    """An export that lives in memory, with holes where its blocks are zero."""

    content: bytearray
    info: ExportInfo
    failures: dict[int, ErrorValue] = field(default_factory=dict)
    """Offsets at which every request that covers them fails."""

    @classmethod
    def of(
        cls,
        size: int,
        name: str = "",
        flags: TransmissionFlag = EVERYTHING,
        meta_contexts: tuple[str, ...] = (BASE_ALLOCATION,),
        **more: object,
    ) -> MemoryDisk:
        info = ExportInfo(name, size, flags, meta_contexts=meta_contexts, **more)  # type: ignore[arg-type]
        return cls(bytearray(size), info)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(length, base:allocation status) of each block that the range touches."""
        end = min(offset + length, len(self.content))
        while offset < end:
            stop = min(offset - offset % BLOCK + BLOCK, len(self.content))
            zero = not any(self.content[offset:stop])
            hole = AllocationState.NBD_STATE_HOLE | AllocationState.NBD_STATE_ZERO
            yield stop - offset, int(hole) if zero else 0
            offset = stop

    def failure(self, request: Request) -> tuple[int, ErrorValue] | None:
        for offset, error in self.failures.items():
            if request.offset <= offset < request.offset + request.length:
                return offset, error
        return None


def answer(machine: ServerTransmission, disk: MemoryDisk, request: Request) -> list[Buffer]:
    """Carry out one request and build its reply."""
    start, end = request.offset, request.offset + request.length
    failure = disk.failure(request)
    if failure is not None:
        return machine.reply_error(request, failure[1], "told to fail", offset=failure[0])
    match request.command:
        case Command.NBD_CMD_READ:
            return _read(machine, disk, request)
        case Command.NBD_CMD_BLOCK_STATUS:
            wanted = request.context_ids or [item.id for item in machine.session.meta_contexts]
            extents = list(disk.extents(start, request.length))
            return machine.reply_block_status(request, dict.fromkeys(wanted, extents))
        case Command.NBD_CMD_WRITE:
            disk.content[start:end] = request.data
        case Command.NBD_CMD_WRITE_ZEROES | Command.NBD_CMD_TRIM:
            disk.content[start:end] = bytes(request.length)
    return machine.reply_success(request)


def _read(machine: ServerTransmission, disk: MemoryDisk, request: Request) -> list[Buffer]:
    start, end = request.offset, request.offset + request.length
    if not machine.can_split(request):
        return machine.reply_read(request, bytes(disk.content[start:end]))
    buffers: list[Buffer] = []
    for length, status in disk.extents(start, request.length):
        stop = min(start + length, end)
        if status:
            buffers += machine.read_hole(request, start, stop - start)
        else:
            buffers += machine.read_data(request, start, bytes(disk.content[start:stop]))
        start = stop
    return buffers + machine.read_done(request)


def answer_handshake(
    machine: ServerNegotiation, disks: Mapping[str, MemoryDisk], event: object
) -> None:
    """Answer a question of the server's handshake machine."""
    match event:
        case ExportsWanted():
            machine.send_exports((disk.info.name, disk.info.description) for disk in disks.values())
        case ExportWanted(name=name) if name in disks:
            machine.send_export(disks[name].info)
        case ExportWanted():
            machine.refuse()
        case TlsWanted():
            machine.tls_started()


def whole(data: bytes) -> Iterable[bytes]:
    return [data] if data else []


def negotiate(
    server: ServerNegotiation,
    client: ClientHandshake[Any],
    disks: Mapping[str, MemoryDisk],
    cut: Callable[[bytes], Iterable[bytes]] = whole,
) -> tuple[Session | None, Any]:
    """Run a handshake; (server's session, client's session or the result of its plan).

    *cut* splits what is sent, as a network might.  TLS is only pretended.
    """
    ours: Session | None = None
    theirs: Any = None
    closed = moved = False
    while not closed or moved:
        moved = False
        for piece in cut(server.data_to_send()):
            moved = True
            client.receive_data(piece)
            theirs = _follow(client) or theirs
        if closed:
            client.receive_eof()
            theirs = _follow(client) or theirs
        for piece in cut(client.data_to_send()):
            moved = True
            server.receive_data(piece)
            while (event := server.next_event()) is not None:
                answer_handshake(server, disks, event)
                if isinstance(event, SessionStarted):
                    ours = event.session
                closed = closed or isinstance(event, NegotiationAborted)
        if not moved:
            break
    return ours, theirs


def _follow(client: ClientHandshake[Any]) -> Any:
    """Take the client's events; its session or result, once there is one."""
    result = None
    while (event := client.next_event()) is not None:
        match event:
            case SessionStarted():
                result = event.session
            case PlanDone():
                result = event.result
            case TlsWanted():
                client.tls_started()
    return result


@dataclass
class Pair:
    """A client and a server in the transmission phase, with a disk behind the server."""

    client: ClientTransmission
    server: ServerTransmission
    disk: MemoryDisk
    cut: Callable[[bytes], Iterable[bytes]] = whole

    def exchange(self, *requests: Outgoing) -> list[ClientEvent]:
        """Send requests, have the server answer them, and collect what the client learns."""
        sent = b"".join(bytes(part) for request in requests for part in request.buffers)
        replies: list[Buffer] = []
        for piece in self.cut(sent):
            self.server.receive_data(piece)
            while (event := self.server.next_event()) is not None:
                replies += self._serve(event)
        events: list[ClientEvent] = []
        for piece in self.cut(b"".join(bytes(part) for part in replies)):
            self.client.receive_data(piece)
            while (received := self.client.next_event()) is not None:
                events.append(received)
        return events

    def _serve(self, event: ServerEvent) -> list[Buffer]:
        match event:
            case Request():
                return answer(self.server, self.disk, event)
            case InvalidRequest(request, error, message):
                return self.server.reply_error(request, error, message)
            case Disconnected():
                return []


# --- on a socket ----------------------------------------------------------------------------------


def serve(
    connection: socket.socket, disks: Mapping[str, MemoryDisk], machine: ServerNegotiation
) -> None:
    """Serve one client on a blocking socket until it leaves."""
    with connection:
        session: Session | None = None
        while session is None:
            event = machine.next_event()
            match event:
                case SessionStarted():
                    session = event.session
                case NegotiationAborted():
                    with contextlib.suppress(BrokenPipeError):  # clients may leave right after
                        connection.sendall(machine.data_to_send())
                    return
                case None:
                    connection.sendall(machine.data_to_send())
                    _receive(connection, machine)
                case _:
                    answer_handshake(machine, disks, event)
        connection.sendall(machine.data_to_send())
        transmission = ServerTransmission(session)
        transmission.receive_data(machine.trailing_data)
        _transmit(connection, transmission, _disk_of(session, disks))


def _disk_of(session: Session, disks: Mapping[str, MemoryDisk]) -> MemoryDisk:
    return next(disk for disk in disks.values() if disk.info.name == session.export.name)


def _transmit(connection: socket.socket, machine: ServerTransmission, disk: MemoryDisk) -> None:
    while True:
        match machine.next_event():
            case None:
                _receive(connection, machine)
            case Request() as request:
                connection.sendall(b"".join(answer(machine, disk, request)))
            case InvalidRequest(request, error, message):
                connection.sendall(b"".join(machine.reply_error(request, error, message)))
            case Disconnected():
                return


def _receive(
    connection: socket.socket,
    machine: ServerNegotiation | ServerTransmission | ClientHandshake[Any] | ClientTransmission,
) -> None:
    """Receive once, straight into the payload where the machine wants one."""
    target = None
    if isinstance(machine, ServerTransmission | ClientTransmission):
        target = machine.payload_buffer
    try:
        if target is not None:
            count = connection.recv_into(target)
            machine.payload_received(count)  # type: ignore[union-attr]
        else:
            data = connection.recv(1 << 16)
            count = len(data)
            machine.receive_data(data)
    except ConnectionResetError:
        count = 0
    if not count:
        machine.receive_eof()


class BlockingClient:
    """One request at a time over a blocking socket."""

    def __init__(self, connection: socket.socket, settings: ClientSettings) -> None:
        self.socket = connection
        handshake = ClientHandshake(settings, connect)
        while not isinstance(event := handshake.next_event(), SessionStarted):
            assert event is None, event
            connection.sendall(handshake.data_to_send())
            _receive(connection, handshake)
        self.session = event.session
        self.machine = ClientTransmission(self.session)
        self.machine.receive_data(handshake.trailing_data)

    def call(self, request: Outgoing) -> list[ClientEvent]:
        """Send a request; everything its reply consisted of, ReplyDone last."""
        self.socket.sendall(b"".join(bytes(part) for part in request.buffers))
        events: list[ClientEvent] = []
        while not (events and isinstance(events[-1], ReplyDone)):
            event = self.machine.next_event()
            if event is None:
                self.receive()
            else:
                events.append(event)
        return events

    def receive(self) -> None:
        """Wait for some more of what the server sends."""
        if not self.machine.wants_data:
            raise RemoteProtocolError("the connection is closed")
        _receive(self.socket, self.machine)

    def close(self) -> None:
        self.socket.sendall(b"".join(bytes(part) for part in self.machine.disconnect()))
        self.socket.close()
