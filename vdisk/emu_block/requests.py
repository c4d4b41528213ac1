"""What a disk controller may ask for, and what it hears of it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.emu_block.barrier import Epoch
    from vdisk.errors import VdiskError

ID_LENGTH = 20
"""Bytes of a serial number: ATA IDENTIFY words 10-19, and VIRTIO_BLK_T_GET_ID."""


class Operation(enum.IntEnum):
    """The kinds of requests; the values are places in :class:`Statistics`."""

    READ = 0
    WRITE = 1
    WRITE_ZEROES = 2
    DISCARD = 3
    FLUSH = 4
    GET_ID = 5


READ, WRITE, WRITE_ZEROES, DISCARD, FLUSH, GET_ID = Operation
"""Looking one up in an enumeration takes a tenth of a microsecond each time."""

MODIFYING = frozenset((WRITE, WRITE_ZEROES, DISCARD))


class Request:
    """One request, from its submission until ``done(request)`` is called.

    ``offset``, ``length``: bytes of the disk; a read or write has as many bytes of ``views``,
    slices of guest RAM that stay valid until it is done (GET_ID: at least one byte).  ``unmap``:
    zeroing may give the room back.  ``fua``: stable before it is done (a write's own flush).
    ``context``: the controller's own.  ``error``: how it went, once it is done.
    """

    __slots__ = (
        "began",
        "context",
        "done",
        "epoch",
        "error",
        "fua",
        "length",
        "offset",
        "operation",
        "unmap",
        "views",
    )

    def __init__(
        self,
        operation: Operation,
        offset: int = 0,
        length: int = 0,
        views: Sequence[memoryview] = (),
        done: Callable[[Request], None] | None = None,
        context: object = None,
        *,
        unmap: bool = False,
        fua: bool = False,
    ) -> None:
        self.operation = operation
        self.offset = offset
        self.length = length
        self.views = views
        self.done = done
        self.context = context
        self.unmap = unmap
        self.fua = fua
        self.error: VdiskError | None = None
        self.epoch: Epoch | None = None
        self.began = 0

    def __repr__(self) -> str:
        return f"<Request {self.operation.name} {self.offset:#x}+{self.length:#x}>"
