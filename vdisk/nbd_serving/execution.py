"""Carrying out requests on a device: in any thread, waiting for disks as needed.

A request becomes an :class:`Outcome`, which the event loop's thread turns into a reply: the
protocol's machines belong to that thread.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.errors import VdiskError
from vdisk.nbd.wire import Command, CommandFlag, ErrorValue
from vdisk.nbd_serving.outbox import file_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.nbd.events import Request
    from vdisk.nbd.replies import Buffer
    from vdisk.nbd.server_transmission import ServerTransmission
    from vdisk.nbd.session import MetaContext
    from vdisk.nbd_serving.export import Export

MAX_STATUS_EXTENTS: Final = 1 << 14
"""Extents in one reply about one context: 256 KiB of reply; the client asks again from there."""

MAX_STATUS_STEPS: Final = 1 << 18
"""Extents looked at for one such reply: where neighbours are alike, many make one."""

SHORTEST_HOLE: Final = 512
"""Zeroes are sent as a hole from this length on, a sector: below, the chunk costs what it saves."""

MAX_PREFETCH: Final = 32 << 20
"""Bytes that NBD_CMD_CACHE brings in at most: it is advice, and has no bound of its own."""

_PREFETCH_STEP: Final = 1 << 20


class Outcome(NamedTuple):
    """What became of a request.

    ``parts`` (of a read): (offset, data) or (offset, length of a hole).  ``statuses`` (of a
    block status): by context id.  ``error``: it failed, ``message`` says how.
    """

    error: ErrorValue | None = None
    message: str = ""
    parts: list[tuple[int, memoryview | int]] | None = None
    statuses: Mapping[int, list[tuple[int, int]]] | None = None


DONE: Final = Outcome()


class Job(NamedTuple):
    """Requests of one client, for one worker.  ``can_split``: reads may be answered in chunks."""

    export: Export
    contexts: tuple[MetaContext, ...]
    requests: list[Request]
    can_split: bool

    def run(self) -> list[Outcome]:
        """Carry them out one after the other."""
        return [carry_out(self, request) for request in self.requests]


def carry_out(job: Job, request: Request) -> Outcome:
    """Carry out one request, waiting as long as that takes."""
    export = job.export
    try:
        if request.command == Command.NBD_CMD_READ:
            split = job.can_split and not request.flags & CommandFlag.NBD_CMD_FLAG_DF
            return Outcome(parts=_read(export.device, request, split=split))
        if request.command == Command.NBD_CMD_BLOCK_STATUS:
            return Outcome(statuses=_status(export, job.contexts, request))
        outcome = _COMMANDS[request.command](export, request)
        if request.command in _CHANGING and (request.fua or export.write_through):
            export.flush()
        return outcome
    except VdiskError as error:
        # Without the path and the offset in the file, which are no business of a client.
        return Outcome(ErrorValue.from_errno(error.errno), error.message)


def _read(
    device: BlockDevice, request: Request, *, split: bool
) -> list[tuple[int, memoryview | int]]:
    if not split or request.length < SHORTEST_HOLE:
        data = bytearray(request.length)
        device.read_into(request.offset, data)
        return [(request.offset, memoryview(data))]
    parts: list[tuple[int, memoryview | int]] = []
    for start, length, zero in _runs(device, request.offset, request.length):
        if zero:
            parts.append((start, length))
        else:
            data = bytearray(length)
            device.read_into(start, data)
            parts.append((start, memoryview(data)))
    return parts


def _runs(device: BlockDevice, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(start, length, zero) of runs that are worth a chunk of their own."""
    start, end = offset, offset + length
    position = offset
    for extent in device.map(offset, length):
        position = extent.end
        if extent.reads_zero and extent.length >= SHORTEST_HOLE:
            if extent.start > start:
                yield start, extent.start - start, False
            yield extent.start, extent.length, True
            start = position
    if start < end:
        yield start, end - start, False


def _write(export: Export, request: Request) -> Outcome:
    export.device.write(request.offset, request.data)
    return DONE


def _flush(export: Export, _request: Request) -> Outcome:
    export.flush()
    return DONE


def _trim(export: Export, request: Request) -> Outcome:
    if export.discard:
        export.device.discard(request.offset, request.length)
    return DONE


def _write_zeroes(export: Export, request: Request) -> Outcome:
    if request.flags & CommandFlag.NBD_CMD_FLAG_FAST_ZERO and not export.device.zeroes_fast:
        return Outcome(ErrorValue.NBD_ENOTSUP, "zeroing here takes as long as writing")
    unmap = export.discard and not request.flags & CommandFlag.NBD_CMD_FLAG_NO_HOLE
    export.device.write_zeroes(request.offset, request.length, unmap=unmap)
    return DONE


def _cache(export: Export, request: Request) -> Outcome:
    """Bring the range into the page cache, and into an image that copies on read."""
    length = min(request.length, MAX_PREFETCH)
    with export.device.hold():
        pieces = file_pieces(export.device, request.offset, length)
        if pieces is not None and hasattr(os, "posix_fadvise"):
            for descriptor, offset, size in pieces:
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
            return DONE
    buffer = bytearray(min(length, _PREFETCH_STEP))
    for start in range(0, length, _PREFETCH_STEP):
        view = memoryview(buffer)[: length - start]
        export.device.read_into(request.offset + start, view)
    return DONE


_COMMANDS: Final[dict[int, Callable[[Export, Request], Outcome]]] = {
    Command.NBD_CMD_WRITE: _write,
    Command.NBD_CMD_FLUSH: _flush,
    Command.NBD_CMD_TRIM: _trim,
    Command.NBD_CMD_WRITE_ZEROES: _write_zeroes,
    Command.NBD_CMD_CACHE: _cache,
}
_CHANGING: Final = frozenset(
    (Command.NBD_CMD_WRITE, Command.NBD_CMD_TRIM, Command.NBD_CMD_WRITE_ZEROES)
)


def _status(
    export: Export, contexts: tuple[MetaContext, ...], request: Request
) -> dict[int, list[tuple[int, int]]]:
    wanted = request.context_ids or tuple(context.id for context in contexts)
    names = {context.id: context.name for context in contexts}
    one = bool(request.flags & CommandFlag.NBD_CMD_FLAG_REQ_ONE)
    return {
        number: joined(
            export.status(names[number], request.offset, request.length),
            1 if one else MAX_STATUS_EXTENTS,
        )
        for number in wanted
    }


def joined(statuses: Iterable[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """The first ``limit`` runs of (length, status), neighbours that are alike joined."""
    found: list[tuple[int, int]] = []
    for length, status in islice(statuses, MAX_STATUS_STEPS):
        if found and found[-1][1] == status:
            found[-1] = (found[-1][0] + length, status)
        elif len(found) == limit:
            break
        else:
            found.append((length, status))
    return found


def reply(machine: ServerTransmission, request: Request, outcome: Outcome) -> list[Buffer]:
    """The outcome as the machine says it to the client."""
    if outcome.error is not None:
        return machine.reply_error(request, outcome.error, outcome.message)
    if outcome.statuses is not None:
        return machine.reply_block_status(request, outcome.statuses)
    if outcome.parts is None:
        return machine.reply_success(request)
    offset, first = outcome.parts[0]
    if len(outcome.parts) == 1 and not isinstance(first, int):
        return machine.reply_read(request, first)
    buffers: list[Buffer] = []
    for offset, part in outcome.parts:
        done = offset == outcome.parts[-1][0]
        if isinstance(part, int):
            buffers += machine.read_hole(request, offset, part, done=done)
        else:
            buffers += machine.read_data(request, offset, part, done=done)
    return buffers
