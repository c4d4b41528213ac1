"""NBD servers that behave badly: each breaks one rule, in one place, as soon as it can.

:class:`HostileServer` listens and gives every connection to a *behaviour*, a function of the
connected socket and of the number of the connection, counted from 0.  Most behaviours are an
honest server (:func:`tests.tools.nbd_pair.serve`) behind a :class:`Tampered` socket that changes
what it sends::

    HostileServer(honest(disk))
    HostileServer(tampered(disk, Edit(Phase.TRANSMISSION, 0, 8, b"\\xff" * 8)))
    HostileServer(lambda connection, number: connection.recv(1))       # says nothing, ever

The test server of other tools: a client must survive each of them, in bounded time and memory,
with an error that says what was wrong.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tests.tools.nbd_pair import answer_handshake, serve
from tests.tools.patience import PATIENCE
from vdisk.errors import VdiskError
from vdisk.nbd.events import SessionStarted
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.wire import (
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    UINT32,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from tests.tools.nbd_pair import MemoryDisk

    Behaviour = Callable[[socket.socket, int], object]

_REPLIES = {NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, NBD_EXTENDED_REPLY_MAGIC}


class HostileServer:
    """Listens on a unix socket while it is entered; ``uri`` names it."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._folder = tempfile.TemporaryDirectory(prefix="vdisk-")
        self.path = os.path.join(self._folder.name, "nbd.sock")
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._begin(self._accept)
        return self

    def _begin(self, target: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                number, self.connections = self.connections, self.connections + 1
                self._begin(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError, VdiskError):
            self._behaviour(connection, number)

    def hang_up(self) -> None:
        """Close all connections, as the system does for a server that dies."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._folder.cleanup()


# -- behaviours ------------------------------------------------------------------------------


def honest(disk: MemoryDisk, **options: Any) -> Behaviour:
    """A server that does nothing wrong; ``options`` are those of ServerNegotiation."""

    def behave(connection: socket.socket, _number: int) -> None:
        serve(connection, {disk.info.name: disk}, ServerNegotiation(**options))

    return behave


class Phase(Enum):
    """Which of the server's messages."""

    GREETING = "greeting"
    OPTION = "option reply"
    TRANSMISSION = "reply"


class Edit(NamedTuple):
    """Message ``number`` of a phase, from 0, has ``replacement`` from byte ``offset`` on.

    ``then``: what happens after it: "go on", "close" or "stall".
    """

    phase: Phase
    number: int
    offset: int
    replacement: bytes
    then: str = "go on"


def tampered(disk: MemoryDisk, edit: Edit, **options: Any) -> Behaviour:
    """An honest server with one message changed."""

    def behave(connection: socket.socket, _number: int) -> None:
        stream = cast("socket.socket", Tampered(connection, edit))
        serve(stream, {disk.info.name: disk}, ServerNegotiation(**options))

    return behave


class Tampered:
    """A socket that changes one message on its way out."""

    def __init__(self, connection: socket.socket, edit: Edit) -> None:
        self._connection = connection
        self._edit = edit
        self._seen: Mapping[Phase, int] = dict.fromkeys(Phase, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendall(self, data: bytes) -> None:
        if not data:
            return
        phase = _phase(data)
        count = self._seen[phase]
        self._seen = {**self._seen, phase: count + 1}
        if (phase, count) == (self._edit.phase, self._edit.number):
            self._send_changed(bytearray(data))
        else:
            self._connection.sendall(data)

    def _send_changed(self, data: bytearray) -> None:
        start, new = self._edit.offset, self._edit.replacement
        data[start : start + len(new)] = new
        if self._edit.then == "close":
            self._connection.sendall(data[: max(start, 1)])
            self._connection.shutdown(socket.SHUT_RDWR)
        elif self._edit.then == "stall":
            self._connection.sendall(data[: max(start, 1)])
            stall(self._connection)
        else:
            self._connection.sendall(data)


def _phase(data: bytes) -> Phase:
    if data.startswith(b"NBDMAGIC"):
        return Phase.GREETING
    return Phase.TRANSMISSION if UINT32.unpack_from(data)[0] in _REPLIES else Phase.OPTION


def stall(connection: socket.socket, _number: int = 0) -> None:
    """Read, and never say anything more, until the client leaves."""
    while connection.recv(1 << 16):
        pass


def deaf(connection: socket.socket, _number: int = 0) -> None:
    """Neither read nor say anything until the socket is shut down."""
    import select

    poll = select.poll()
    poll.register(connection, select.POLLHUP)
    poll.poll(30_000)


def deaf_after_the_handshake(disk: MemoryDisk) -> Behaviour:
    """An honest server, until it would have to read the first request."""

    def behave(connection: socket.socket, _number: int) -> None:
        machine = ServerNegotiation()
        while not isinstance(event := machine.next_event(), SessionStarted):
            answer_handshake(machine, {disk.info.name: disk}, event)
            if event is None:
                connection.sendall(machine.data_to_send())
                machine.receive_data(connection.recv(1 << 16))
        connection.sendall(machine.data_to_send())
        deaf(connection)

    return behave


def trickle(connection: socket.socket, _number: int = 0) -> None:
    """A greeting, one byte every 50 ms, and never the last."""
    import time

    while True:
        for byte in b"NBDMAGIC":
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
        stall(connection)


def flood(connection: socket.socket, _number: int = 0) -> None:
    """A greeting, and then option replies without end, whatever is asked."""
    from vdisk.nbd.wire import GREETING, IHAVEOPT, NBD_REP_MAGIC, NBDMAGIC, OPTION_REPLY_HEADER

    connection.sendall(GREETING.pack(NBDMAGIC, IHAVEOPT, 3))
    connection.recv(4)
    head = connection.recv(16)
    option = int.from_bytes(head[8:12], "big")
    reply = OPTION_REPLY_HEADER.pack(NBD_REP_MAGIC, option, 3, 12) + bytes(12)
    while True:
        connection.sendall(reply * 1000)
