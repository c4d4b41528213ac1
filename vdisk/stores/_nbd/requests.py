"""What is asked of a server, and what came of it.

A :class:`Request` outlives the connection it was sent over: when that is lost, it may be sent
again over the next one.  Which requests may be, see :mod:`vdisk.stores._nbd.pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vdisk.errors import DeviceError, NoSpaceError, ReadOnlyError
from vdisk.nbd.wire import Command, ErrorValue

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from vdisk.errors import VdiskError
    from vdisk.nbd.client_requests import Outgoing
    from vdisk.nbd.client_transmission import ClientTransmission
    from vdisk.nbd.errors import RequestError
    from vdisk.nbd.events import StatusReceived
    from vdisk.stores._nbd.connection import Connection

READ = Command.NBD_CMD_READ
WRITE = Command.NBD_CMD_WRITE
FLUSH = Command.NBD_CMD_FLUSH
TRIM = Command.NBD_CMD_TRIM
CACHE = Command.NBD_CMD_CACHE
WRITE_ZEROES = Command.NBD_CMD_WRITE_ZEROES
BLOCK_STATUS = Command.NBD_CMD_BLOCK_STATUS

CHANGING = frozenset({WRITE, WRITE_ZEROES, TRIM})


class Request:
    """One request.  ``view``: the bytes to write, or where to put those read.

    ``done``: there is an answer, ``error`` if it failed.  ``waiting``: held while a thread sleeps
    until the answer comes.  ``mark``: which acknowledged writes a flush covers.  ``connection``:
    over which it was ``sent``, the last of so many times.  ``repeated``: it comes from the journal,
    which has it already.
    """

    __slots__ = (
        "command",
        "connection",
        "done",
        "error",
        "fua",
        "length",
        "mark",
        "no_hole",
        "offset",
        "one",
        "repeated",
        "sent",
        "status",
        "view",
        "waiting",
    )

    def __init__(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        view: memoryview | None = None,
        *,
        fua: bool = False,
        no_hole: bool = False,
        one: bool = False,
    ) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.view = view
        self.fua = fua
        self.no_hole = no_hole
        self.one = one
        self.done = False
        self.error: VdiskError | None = None
        self.status: list[StatusReceived] = []
        self.waiting: threading.Lock | None = None
        self.mark = 0
        self.sent = 0
        self.repeated = False
        self.connection: Connection | None = None

    @property
    def changes(self) -> bool:
        """Whether sending it twice could undo something else."""
        return self.command in CHANGING

    def start(self, machine: ClientTransmission) -> Outgoing:
        """Its bytes on one connection."""
        self.status = []
        return _START[self.command](self, machine)


def _read(request: Request, machine: ClientTransmission) -> Outgoing:
    assert request.view is not None
    return machine.read(request.offset, request.length, into=request.view)


def _write(request: Request, machine: ClientTransmission) -> Outgoing:
    assert request.view is not None
    return machine.write(request.offset, request.view, fua=request.fua)


def _write_zeroes(request: Request, machine: ClientTransmission) -> Outgoing:
    return machine.write_zeroes(
        request.offset, request.length, no_hole=request.no_hole, fua=request.fua
    )


_START: Final[dict[Command, Callable[[Request, ClientTransmission], Outgoing]]] = {
    READ: _read,
    WRITE: _write,
    WRITE_ZEROES: _write_zeroes,
    FLUSH: lambda _request, machine: machine.flush(),
    TRIM: lambda request, machine: machine.trim(request.offset, request.length, fua=request.fua),
    CACHE: lambda request, machine: machine.cache(request.offset, request.length),
    BLOCK_STATUS: lambda request, machine: machine.block_status(
        request.offset, request.length, one=request.one
    ),
}
_OPERATIONS = {
    READ: "read",
    WRITE: "write",
    FLUSH: "flush",
    TRIM: "discard",
    CACHE: "cache",
    WRITE_ZEROES: "write zeroes",
    BLOCK_STATUS: "map",
}


def failure(request: Request, error: RequestError, name: str) -> VdiskError:
    """The error that a block device raises for one that the server answered."""
    operation = _OPERATIONS[request.command]
    kind: type[VdiskError] = DeviceError
    if error.value is ErrorValue.NBD_ENOSPC:
        kind = NoSpaceError
    elif error.value is ErrorValue.NBD_EPERM and request.changes:
        kind = ReadOnlyError
    found = kind(
        f"the server answered {error.message}",
        path=name,
        offset=error.offset if request.command is not FLUSH else None,
        operation=operation,
        errno=error.errno,
    )
    found.__cause__ = error
    return found
