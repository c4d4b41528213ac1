"""Any requests: each way of the hot path takes what the machine takes, as it; ≤ 256 MiB, ≤ 2 s.

Input: a byte that chooses the kind of session, a byte that says in what pieces the machine gets
what the hot path leaves to it, and the requests of a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuzz.targets.nbd_server import CONTEXTS, SIZE, client_requests
from fuzz.wire_fields import change_stream
from tests.tools.nbd_pair import EVERYTHING
from vdisk.nbd.bulk import BulkParser
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.events import InvalidRequest, Request
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import Command, CommandFlag, ErrorValue, TransmissionFlag

if TYPE_CHECKING:
    import random

    from vdisk.nbd.bulk import PlainRead, PlainWrite

LONGEST = 4096
STYLES = list(HeaderStyle)
MOST = 5
"""Requests that the hot path takes at once."""
FLAGS = [
    EVERYTHING,
    EVERYTHING | TransmissionFlag.NBD_FLAG_READ_ONLY,
    EVERYTHING & ~TransmissionFlag.NBD_FLAG_SEND_FUA,
]


def seeds() -> dict[str, bytes]:
    return {
        style.value: bytes([number, 7]) + client_requests(style)
        for number, style in enumerate(STYLES)
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    settings = bytes(rng.randrange(256) if rng.random() < 0.1 else byte for byte in data[:2])
    return settings + change_stream(data[2:], [seed[2:] for seed in seeds().values()], rng)


def session(settings: int) -> Session:
    sizes = [None, BlockSizes(512, 4096, 1 << 25), BlockSizes(1, 512, 4096)][settings // 9 % 3]
    export = ExportInfo("", SIZE, FLAGS[settings // 3 % 3], block_sizes=sizes)
    contexts = tuple(MetaContext(number, name) for number, name in enumerate(CONTEXTS))
    return Session(export, STYLES[settings % 3], contexts)


def run(data: bytes) -> None:
    settings, piece = data.ljust(2, b"\0")[:2]
    agreed = session(settings)
    slow = _taken(ServerTransmission(agreed), data[2:])
    assert _with_hot_path(agreed, memoryview(data)[2:], piece or 1) == slow


def _alone_and_alike(parser: BulkParser, rest: memoryview, reads: list[PlainRead]) -> None:
    """What is taken one at a time, or many of one length at once, is what a run of them has."""
    each = parser.header_size
    if len(rest) < each:
        assert not reads
        return
    assert parser.read(rest[:each]) == (reads[0] if reads else None)
    for count in {max(len(reads), 1), min(len(rest) // each, MOST)}:
        found = parser.alike(rest[: count * each])
        if len(reads) == count and len({length for _, _, length in reads}) == 1:
            assert found == (reads[0][2], [offset for _, offset, _ in reads])
        else:
            assert found == (0, [])


def _complete(parser: BulkParser, rest: memoryview, writes: list[PlainWrite]) -> None:
    """A write that is taken misses nothing; cut off it misses the rest, if it may be waited for."""
    if not writes:
        return
    cookie, offset, data, fua = writes[0]
    whole = rest[: parser.header_size + len(data)]
    assert parser.write(whole) == (None if fua else (cookie, offset, data))
    lengths = range(1, LONGEST)
    for there in {parser.header_size, len(whole) - 1, len(whole)}:
        waited_for = not fua and len(data) in lengths
        missing = len(whole) - there if waited_for else 0
        assert parser.missing(whole[:there], lengths) == missing


def _with_hot_path(agreed: Session, rest: memoryview, piece: int) -> list[Any]:
    machine = ServerTransmission(agreed)
    parser, found = BulkParser(agreed, machine.gate), list[Any]()
    while rest and machine.wants_data:
        before = len(found)
        if machine.at_boundary:
            reads, used = parser.reads(rest, MOST)
            _alone_and_alike(parser, rest, reads)
            found += [(Command.NBD_CMD_READ, *read, False, b"") for read in reads]
            rest = rest[used:]
            writes, used = parser.writes(rest, MOST)
            _complete(parser, rest, writes)
            found += [
                (Command.NBD_CMD_WRITE, cookie, offset, len(data), fua, bytes(data))
                for cookie, offset, data, fua in writes
            ]
            rest = rest[used:]
        if len(found) == before:
            found += _taken(machine, rest[:piece])
            rest = rest[piece:]
    return found


def _taken(machine: ServerTransmission, data: bytes | memoryview) -> list[Any]:
    """What the machine makes of some input; it then wants no more after a violation."""
    found: list[Any] = []
    machine.receive_data(data)
    try:
        while (event := machine.next_event()) is not None:
            if isinstance(event, InvalidRequest):
                found.append((str(event.error), event.request.cookie))
                machine.reply_error(event.request, event.error, event.message)
            elif isinstance(event, Request):
                found.append(_shown(event))
                machine.reply_error(event, ErrorValue.NBD_EIO)
    except RemoteProtocolError as error:
        found.append(str(error))
    return found


def _shown(event: Request) -> tuple[Any, ...]:
    fua = bool(event.flags & CommandFlag.NBD_CMD_FLAG_FUA)
    return (event.command, event.cookie, event.offset, event.length, fua, bytes(event.data))
