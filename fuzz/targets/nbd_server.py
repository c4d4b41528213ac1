"""Any client: events, answers and a RemoteProtocolError at worst, however cut; ≤ 256 MiB, ≤ 2 s.

Input: a byte of settings, a byte that says how the stream is cut, and all that a client sends,
handshake and transmission.  Whatever the machine admits lies inside the export.
"""

from __future__ import annotations

from struct import Struct, pack
from typing import TYPE_CHECKING

from fuzz.wire_fields import change_stream
from tests.tools.nbd_pair import EVERYTHING, MemoryDisk, answer, answer_handshake
from vdisk.nbd import wire
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.events import InvalidRequest, Request, SessionStarted
from vdisk.nbd.limits import Limits
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import BlockSizes, HeaderStyle, TlsMode

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from vdisk.nbd.session import Session

LONGEST = 4096
SIZE = 64 << 10
TLS = list(TlsMode)
CONTEXTS = (wire.BASE_ALLOCATION, wire.QEMU_ALLOCATION_DEPTH)
FEW = Limits(requests_in_flight=4, option_data=600, options=20)
"""Limits that a short input reaches."""


def _option(number: int, data: bytes = b"") -> bytes:
    return wire.OPTION_HEADER.pack(wire.IHAVEOPT, number, len(data)) + data


def _contexts(number: int, *queries: bytes) -> bytes:
    parts = b"".join(pack(">I", len(query)) + query for query in queries)
    return _option(number, pack(">I", 0) + pack(">I", len(queries)) + parts)


_GO = _option(7, pack(">IHHH", 0, 2, 0, 3))
_PAYLOAD = bytes(range(64)) * 8


def _requests(request: Struct, magic: int) -> bytes:
    sent = []
    for command, length in enumerate([4096, 512, 0, 0, 4096, 512, 8192, SIZE]):
        if command == wire.Command.NBD_CMD_DISC:
            continue
        payload = _PAYLOAD if command == wire.Command.NBD_CMD_WRITE else b""
        wide = magic == wire.NBD_EXTENDED_REQUEST_MAGIC
        flags = wire.CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN if payload and wide else 0
        sent.append(request.pack(magic, flags, command, command + 1, 4096, length) + payload)
    sent.append(request.pack(magic, 0, wire.Command.NBD_CMD_DISC, 99, 0, 0))
    return b"".join(sent)


def client_requests(style: HeaderStyle) -> bytes:
    """One of each command, as a client of that style sends them."""
    if style is HeaderStyle.EXTENDED:
        return _requests(wire.EXTENDED_REQUEST, wire.NBD_EXTENDED_REQUEST_MAGIC)
    return _requests(wire.REQUEST, wire.NBD_REQUEST_MAGIC)


def seeds() -> dict[str, bytes]:
    flags = pack(">I", 3)
    old, wide = client_requests(HeaderStyle.SIMPLE), client_requests(HeaderStyle.EXTENDED)
    set_contexts = _contexts(10, *(context.encode() for context in CONTEXTS))
    ask = _option(3) + _contexts(9) + _option(6, pack(">IHH", 0, 1, 3)) + _option(2)
    streams = {
        "simple": flags + _GO + old,
        "structured": flags + _option(8) + set_contexts + _GO + old,
        "extended": flags + _option(11) + set_contexts + _GO + wide,
        "by name": flags + _option(1) + old,
        "questions": flags + ask,
        "tls": flags + _option(5) + _option(8) + _GO + old,
    }
    return {name: b"\1\0" + stream for name, stream in streams.items()}


def mutate(data: bytes, rng: random.Random) -> bytes:
    settings = bytes(rng.randrange(256) if rng.random() < 0.1 else byte for byte in data[:2])
    return settings + change_stream(data[2:], list(seeds().values()), rng)


def pieces(stream: bytes, cut: int) -> Iterator[bytes]:
    """The stream in pieces of ``cut`` bytes; 0: at once."""
    step = cut or len(stream) or 1
    for start in range(0, len(stream), step):
        yield stream[start : start + step]


def run(data: bytes) -> None:
    settings, cut = data.ljust(2, b"\0")[:2]
    whole = serve(data[2:], settings, 0)
    if cut and b"IHAVEOPT\0\0\0\5" not in data:  # what is in flight when TLS begins is refused
        assert serve(data[2:], settings, cut) == whole


def serve(stream: bytes, settings: int, cut: int) -> bytes:
    """All that the server sends, and how it ended."""
    disk = MemoryDisk.of(
        SIZE,
        flags=EVERYTHING,
        meta_contexts=CONTEXTS,
        block_sizes=[None, BlockSizes(1, 512, 4096), BlockSizes(512, 4096, 1 << 25)][settings % 3],
    )
    limits = FEW if settings & 0x40 else Limits()
    machine = ServerNegotiation(tls=TLS[settings // 3 % 3], limits=limits)
    sent = bytearray()
    session: Session | None = None
    try:
        parts = pieces(stream, cut)
        for part in parts:
            if not machine.wants_data:
                break
            machine.receive_data(part)
            while session is None and (event := machine.next_event()) is not None:
                answer_handshake(machine, {"": disk}, event)
                session = event.session if isinstance(event, SessionStarted) else None
            sent += machine.data_to_send()
            if session is not None:
                break
        if session is not None:
            _transmit(machine.trailing_data, parts, session, disk, limits, sent)
    except RemoteProtocolError as error:
        sent += machine.data_to_send() + str(error).encode()
    return bytes(sent)


def _transmit(
    first: bytes,
    parts: Iterator[bytes],
    session: Session,
    disk: MemoryDisk,
    limits: Limits,
    sent: bytearray,
) -> None:
    machine = ServerTransmission(session, limits=limits)
    for part in (first, *parts):
        if not machine.wants_data:
            break
        machine.receive_data(part)
        _answer_all(machine, disk, sent)
    machine.receive_eof()
    _answer_all(machine, disk, sent)
    assert machine.unanswered == 0


def _answer_all(machine: ServerTransmission, disk: MemoryDisk, sent: bytearray) -> None:
    while (event := machine.next_event()) is not None:
        if isinstance(event, Request):
            assert event.offset + event.length <= SIZE
            sent += b"".join(map(bytes, answer(machine, disk, event)))
        elif isinstance(event, InvalidRequest):
            replies = machine.reply_error(event.request, event.error, event.message)
            sent += b"".join(map(bytes, replies))
