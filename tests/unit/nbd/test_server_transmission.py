"""The server's transmission phase, against bytes written by hand."""

from __future__ import annotations

from struct import pack

import pytest

from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError
from vdisk.nbd.events import Disconnected, InvalidRequest, Request
from vdisk.nbd.limits import Limits
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import Command, CommandFlag, ErrorValue, TransmissionFlag

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
DF, PAYLOAD_LEN = 1 << 2, 1 << 5
SIZE = 1 << 20
FLAGS = TransmissionFlag(0x1FFF) & ~TransmissionFlag.NBD_FLAG_READ_ONLY
CONTEXTS = (MetaContext(3, "base:allocation"), MetaContext(9, "x-a:b"))
COOKIE = 0x0102030405060708


def machine(
    style: HeaderStyle = HeaderStyle.STRUCTURED,
    limits: Limits | None = None,
    flags: TransmissionFlag = FLAGS,
    sizes: BlockSizes | None = None,
) -> ServerTransmission:
    session = Session(ExportInfo("", SIZE, flags, "", sizes), style, CONTEXTS)
    return ServerTransmission(session, limits=limits or Limits())


def compact(
    command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
) -> bytes:
    return pack(">IHHQQI", 0x25609513, flags, command, COOKIE, offset, length) + data


def extended(
    command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
) -> bytes:
    return pack(">IHHQQQ", 0x21E41C71, flags, command, COOKIE, offset, length) + data


def request(server: ServerTransmission, data: bytes) -> Request:
    server.receive_data(data)
    event = server.next_event()
    assert isinstance(event, Request)
    return event


def refused(server: ServerTransmission, data: bytes) -> ErrorValue:
    server.receive_data(data)
    event = server.next_event()
    assert isinstance(event, InvalidRequest)
    server.reply_error(event.request, event.error, event.message)
    assert server.at_boundary
    return event.error


def joined(buffers: list[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(buffers)


# --- requests -------------------------------------------------------------------------------------


def test_a_read() -> None:
    server = machine()
    event = request(server, compact(READ, 4096, 512, DF))
    assert event.command is Command.NBD_CMD_READ
    assert event.flags is CommandFlag.NBD_CMD_FLAG_DF
    assert (event.cookie, event.offset, event.length) == (COOKIE, 4096, 512)
    assert not event.fua
    assert server.unanswered == 1


def test_a_write_with_fua() -> None:
    event = request(machine(), compact(WRITE, 8, 5, 1, b"hello"))
    assert event.fua
    assert event.data == b"hello"


def test_the_payload_may_be_received_in_place() -> None:
    server = machine()
    server.receive_data(compact(WRITE, 0, 10, 0, b"abc"))
    assert server.next_event() is None
    assert server.payload_wanted == 7
    target = server.payload_buffer
    assert target is not None
    target[:4] = b"defg"
    server.payload_received(4)
    assert server.next_event() is None
    server.receive_data(b"hij" + compact(FLUSH))
    event = server.next_event()
    assert isinstance(event, Request)
    assert event.data == b"abcdefghij"
    assert isinstance(server.next_event(), Request)
    assert server.payload_buffer is None


def test_more_payload_than_is_missing() -> None:
    server = machine()
    server.receive_data(compact(WRITE, 0, 10))
    server.next_event()
    with pytest.raises(LocalProtocolError):
        server.payload_received(11)


def test_the_buffer_of_a_payload_can_be_supplied() -> None:
    pool = bytearray(100)
    session = Session(ExportInfo("", SIZE, FLAGS))
    server = ServerTransmission(session, allocate=lambda _: memoryview(pool))
    assert request(server, compact(WRITE, 0, 3, 0, b"abc")).data.obj is pool


def test_extended_requests() -> None:
    server = machine(HeaderStyle.EXTENDED)
    event = request(server, extended(WRITE, 0, 3, PAYLOAD_LEN, b"abc"))
    assert (event.data, event.flags) == (b"abc", CommandFlag(0))
    assert request(server, extended(WRITE_ZEROES, 0, SIZE)).length == SIZE


def test_an_extended_write_that_does_not_announce_its_payload() -> None:
    """What QEMU 10.0 sends."""
    event = request(machine(HeaderStyle.EXTENDED), extended(WRITE, 0, 3, 1, b"abc"))
    assert (event.data, event.fua) == (b"abc", True)


def test_block_status_for_some_contexts() -> None:
    server = machine(HeaderStyle.EXTENDED)
    payload = pack(">QI", 4096, 9)
    event = request(server, extended(BLOCK_STATUS, 512, len(payload), PAYLOAD_LEN, payload))
    assert (event.offset, event.length, event.context_ids) == (512, 4096, (9,))
    assert event.flags == CommandFlag(0)


@pytest.mark.parametrize(
    "payload",
    [
        pack(">Q", 0),
        pack(">Q", 4096),
        pack(">QI", 4096, 4),
        pack(">QII", 4096, 9, 9),
        pack(">QI", SIZE, 9),
        pack(">QH", 4096, 9),
        b"short",
        pack(">Q2000I", 4096, *range(2000)),
    ],
)
def test_bad_block_status_payloads(payload: bytes) -> None:
    server = machine(HeaderStyle.EXTENDED)
    data = extended(BLOCK_STATUS, 512, len(payload), PAYLOAD_LEN, payload)
    assert refused(server, data) is ErrorValue.NBD_EINVAL


def test_block_status_without_contexts() -> None:
    server = ServerTransmission(Session(ExportInfo("", SIZE, FLAGS), HeaderStyle.STRUCTURED))
    assert refused(server, compact(BLOCK_STATUS, 0, 512)) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize(
    "data",
    [
        extended(READ, 0, 3, PAYLOAD_LEN, b"abc"),
        extended(TRIM, 0, 3, PAYLOAD_LEN, b"abc"),
        extended(77, 0, 3, PAYLOAD_LEN, b"abc"),
    ],
)
def test_payloads_where_none_belongs(data: bytes) -> None:
    assert refused(machine(HeaderStyle.EXTENDED), data) is ErrorValue.NBD_EINVAL


def test_the_block_status_payload_must_be_offered() -> None:
    flags = FLAGS & ~TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD
    server = machine(HeaderStyle.EXTENDED, flags=flags)
    payload = pack(">QI", 4096, 9)
    data = extended(BLOCK_STATUS, 0, len(payload), PAYLOAD_LEN, payload)
    assert refused(server, data) is ErrorValue.NBD_EINVAL


def test_payload_len_is_unknown_to_compact_requests() -> None:
    data = compact(WRITE, 0, 3, PAYLOAD_LEN, b"abc")
    assert refused(machine(), data) is ErrorValue.NBD_EINVAL


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (compact(WRITE, SIZE, 3, 0, b"abc"), ErrorValue.NBD_ENOSPC),
        (compact(WRITE, 1, 512, 0, bytes(512)), ErrorValue.NBD_EINVAL),
        (compact(WRITE, 0, 8192, 0, bytes(8192)), ErrorValue.NBD_EINVAL),
        (compact(WRITE), ErrorValue.NBD_EINVAL),
        (compact(99), ErrorValue.NBD_EINVAL),
    ],
)
def test_the_payload_of_a_refused_write_is_skipped(data: bytes, error: ErrorValue) -> None:
    server = machine(sizes=BlockSizes(512, 512, 4096))
    assert refused(server, data) is error
    assert isinstance(request(server, compact(FLUSH)), Request)


def test_a_payload_beyond_all_bounds_ends_the_connection() -> None:
    server = machine()
    server.receive_data(compact(WRITE, 0, 2**25 + 1))
    with pytest.raises(RemoteProtocolError):
        server.next_event()
    assert not server.wants_data


@pytest.mark.parametrize(
    ("style", "data"),
    [
        (HeaderStyle.SIMPLE, extended(READ, 0, 512)),
        (HeaderStyle.EXTENDED, compact(READ, 0, 512) + bytes(4)),
        (HeaderStyle.STRUCTURED, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"),
    ],
)
def test_a_wrong_magic(style: HeaderStyle, data: bytes) -> None:
    server = machine(style)
    server.receive_data(data)
    with pytest.raises(RemoteProtocolError):
        server.next_event()


def test_disconnecting() -> None:
    server = machine()
    server.receive_data(compact(FLUSH) + compact(DISC) + b"never looked at")
    event = server.next_event()
    assert isinstance(event, Request)
    assert server.next_event() == Disconnected(clean=True)
    assert server.next_event() is None
    assert not server.wants_data
    server.receive_data(b"nor this")
    assert joined(server.reply_success(event))  # what is unanswered may still be finished


def test_the_connection_ends_between_requests() -> None:
    server = machine()
    server.receive_data(compact(FLUSH))
    server.receive_eof()
    assert isinstance(server.next_event(), Request)
    assert server.next_event() == Disconnected(clean=False)
    assert server.next_event() is None


@pytest.mark.parametrize(
    "data", [b"\x25", compact(WRITE, 0, 10, 0, b"abc"), compact(WRITE, SIZE, 1)]
)
def test_the_connection_ends_in_the_middle(data: bytes) -> None:
    server = machine()
    server.receive_data(data)
    server.receive_eof()
    with pytest.raises(RemoteProtocolError):
        server.next_event()


def test_too_many_unanswered_requests_hold_back_the_rest() -> None:
    server = machine(limits=Limits(requests_in_flight=2))
    server.receive_data(compact(FLUSH) * 3 + compact(DISC))
    first, second = server.next_event(), server.next_event()
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert server.next_event() is None
    assert not server.wants_data
    server.receive_eof()
    assert server.next_event() is None
    server.reply_success(first)
    assert isinstance(server.next_event(), Request)
    server.reply_success(second)
    assert server.next_event() == Disconnected(clean=True)


# --- replies --------------------------------------------------------------------------------------

SIMPLE_HEAD = 0x67446698
CHUNK_HEAD = 0x668E33EF
EXTENDED_HEAD = 0x6E8A278C


def chunk(style: HeaderStyle, done: int, kind: int, payload: bytes, offset: int = 0) -> bytes:
    if style is HeaderStyle.EXTENDED:
        head = pack(">IHHQQQ", EXTENDED_HEAD, done, kind, COOKIE, offset, len(payload))
    else:
        head = pack(">IHHQI", CHUNK_HEAD, done, kind, COOKIE, len(payload))
    return head + payload


def simple(error: int = 0) -> bytes:
    return pack(">IIQ", SIMPLE_HEAD, error, COOKIE)


def sent(
    style: HeaderStyle, command: int, offset: int = 0, length: int = 0, flags: int = 0
) -> bytes:
    build = extended if style is HeaderStyle.EXTENDED else compact
    return build(command, offset, length, flags)


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_the_reply_to_a_flush(style: HeaderStyle) -> None:
    server = machine(style)
    reply = joined(server.reply_success(request(server, sent(style, FLUSH))))
    assert reply == (chunk(style, 1, 0, b"") if style is HeaderStyle.EXTENDED else simple())
    assert server.unanswered == 0


@pytest.mark.parametrize("style", [HeaderStyle.STRUCTURED, HeaderStyle.EXTENDED])
def test_the_reply_to_a_read_in_one_chunk(style: HeaderStyle) -> None:
    server = machine(style)
    data = b"payload!"
    buffers = server.reply_read(request(server, sent(style, READ, 512, 8)), data)
    assert joined(buffers) == chunk(style, 1, 1, pack(">Q", 512) + data, 512)
    assert buffers[1] is data  # passed through, not copied


def test_the_simple_reply_to_a_read() -> None:
    server = machine(HeaderStyle.SIMPLE)
    read = request(server, compact(READ, 0, 4))
    assert not server.can_split(read)
    assert joined(server.reply_read(read, b"data")) == simple() + b"data"


@pytest.mark.parametrize("style", [HeaderStyle.STRUCTURED, HeaderStyle.EXTENDED])
def test_the_reply_to_a_read_in_many_chunks(style: HeaderStyle) -> None:
    server = machine(style)
    read = request(server, sent(style, READ, 1000, 24))
    assert server.can_split(read)
    reply = joined(
        server.read_data(read, 1016, b"tail-end")
        + server.read_hole(read, 1000, 8)
        + server.read_data(read, 1008, b"middle..", done=True)
    )
    assert reply == (
        chunk(style, 0, 1, pack(">Q", 1016) + b"tail-end", 1000)
        + chunk(style, 0, 2, pack(">QI", 1000, 8), 1000)
        + chunk(style, 1, 1, pack(">Q", 1008) + b"middle..", 1000)
    )
    assert server.unanswered == 0


def test_a_read_that_fails_in_part() -> None:
    server = machine()
    read = request(server, compact(READ, 0, 16))
    reply = joined(
        server.read_data(read, 0, b"good bye")
        + server.read_error(read, 8, ErrorValue.NBD_EIO, "bad block")
        + server.read_done(read)
    )
    style = HeaderStyle.STRUCTURED
    assert reply == (
        chunk(style, 0, 1, pack(">Q", 0) + b"good bye")
        + chunk(style, 0, 0x8002, pack(">IH9sQ", 5, 9, b"bad block", 8))
        + chunk(style, 1, 0, b"")
    )


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_errors(style: HeaderStyle) -> None:
    server = machine(style)
    failed = server.reply_error(
        request(server, sent(style, READ, 0, 512)), ErrorValue.NBD_EIO, "text"
    )
    if style is HeaderStyle.SIMPLE:
        assert joined(failed) == simple(5)
    else:
        assert joined(failed) == chunk(style, 1, 0x8001, pack(">IH4s", 5, 4, b"text"))


def test_an_error_with_its_place() -> None:
    server = machine()
    write = request(server, compact(WRITE, 512, 3, 0, b"abc"))
    reply = joined(server.reply_error(write, ErrorValue.NBD_ENOSPC, offset=513))
    style = HeaderStyle.STRUCTURED
    assert reply == chunk(style, 1, 0x8002, pack(">IHQ", 28, 0, 513))


def test_block_status_compact() -> None:
    server = machine()
    status = request(server, compact(BLOCK_STATUS, 0, 8192))
    reply = joined(
        server.reply_block_status(status, {9: [(1 << 20, 5)], 3: [(4096, 0), (4096, 0), (8, 3)]})
    )
    style = HeaderStyle.STRUCTURED
    assert reply == (
        chunk(style, 0, 5, pack(">III", 9, 1 << 20, 5))
        + chunk(style, 1, 5, pack(">III", 3, 8192, 0))
    )


def test_block_status_extended() -> None:
    server = machine(HeaderStyle.EXTENDED)
    payload = pack(">QI", SIZE, 9)
    status = request(server, extended(BLOCK_STATUS, 0, len(payload), PAYLOAD_LEN, payload))
    reply = joined(server.reply_block_status(status, {9: [(4096, 2**40), (2**50, 1)]}))
    style = HeaderStyle.EXTENDED
    assert reply == chunk(style, 1, 6, pack(">IIQQQQ", 9, 2, 4096, 2**40, 2**50, 1))


@pytest.mark.parametrize(
    ("flags", "given", "kept"),
    [
        (8, [(100, 0), (50, 1)], [(100, 0)]),
        (8, [(2**40, 3)], [(8192, 3)]),
        (0, [(2**40, 3), (5, 0)], [(2**32 - 2**16, 3)]),
        (0, [(4096, 0), (2**40, 3), (5, 0)], [(4096, 0), (2**32 - 2**16, 3)]),
        (0, [(4096, 0), (4096, 1), (4096, 0)], [(4096, 0), (4096, 1)]),
        (0, [(1, n % 2) for n in range(9)], [(1, n % 2) for n in range(4)]),
    ],
)
def test_extents_are_cut_to_what_a_reply_may_hold(
    flags: int, given: list[tuple[int, int]], kept: list[tuple[int, int]]
) -> None:
    server = machine(limits=Limits(status_descriptors=4))
    status = request(server, compact(BLOCK_STATUS, 0, 8192, flags))
    reply = joined(server.reply_block_status(status, {3: given, 9: [(8192, 0)]}))
    descriptors = b"".join(pack(">II", *extent) for extent in kept)
    style = HeaderStyle.STRUCTURED
    assert reply.startswith(chunk(style, 0, 5, pack(">I", 3) + descriptors))


# --- misuse ---------------------------------------------------------------------------------------


def test_every_request_is_answered_once() -> None:
    server = machine()
    flush = request(server, compact(FLUSH))
    server.reply_success(flush)
    with pytest.raises(LocalProtocolError):
        server.reply_success(flush)
    with pytest.raises(LocalProtocolError):
        server.reply_error(flush, ErrorValue.NBD_EIO)
    read = request(server, compact(READ, 0, 4))
    server.reply_read(read, b"data")
    for reply in (server.read_done, lambda r: server.read_data(r, 0, b"data")):
        with pytest.raises(LocalProtocolError):
            reply(read)


def test_requests_with_equal_cookies_are_kept_apart() -> None:
    server = machine()
    first, second = request(server, compact(FLUSH)), request(server, compact(FLUSH))
    server.reply_success(first)
    server.reply_success(second)
    assert server.unanswered == 0


def test_replies_that_do_not_fit_the_request() -> None:
    server = machine()
    read, flush = request(server, compact(READ, 100, 8)), request(server, compact(FLUSH))
    status = request(server, compact(BLOCK_STATUS, 0, 8))
    for wrong in (
        lambda: server.reply_success(read),
        lambda: server.reply_success(status),
        lambda: server.reply_read(read, b"short"),
        lambda: server.reply_read(flush, b""),
        lambda: server.read_data(flush, 0, b"x"),
        lambda: server.read_data(read, 99, b"x"),
        lambda: server.read_data(read, 107, b"xx"),
        lambda: server.read_data(read, 100, b""),
        lambda: server.read_hole(read, 100, 0),
        lambda: server.read_data(read, 100, b"four", done=True),
        lambda: server.read_error(read, 108, ErrorValue.NBD_EIO),
        lambda: server.reply_error(read, ErrorValue.NBD_EIO, offset=99),
        lambda: server.reply_block_status(read, {3: [(8, 0)], 9: [(8, 0)]}),
        lambda: server.reply_block_status(status, {3: [(8, 0)]}),
        lambda: server.reply_block_status(status, {3: [(8, 0)], 9: []}),
    ):
        with pytest.raises(LocalProtocolError):
            wrong()
    assert server.unanswered == 3


def test_bytes_are_sent_once() -> None:
    server = machine()
    read = request(server, compact(READ, 100, 8))
    server.read_data(read, 100, b"four")
    with pytest.raises(LocalProtocolError):
        server.read_hole(read, 103, 2)
    with pytest.raises(LocalProtocolError):
        server.read_done(read)
    with pytest.raises(LocalProtocolError):
        server.reply_read(read, b"all of it")
    server.read_data(read, 104, b"more", done=True)


@pytest.mark.parametrize(
    ("style", "flags"), [(HeaderStyle.SIMPLE, 0), (HeaderStyle.STRUCTURED, DF)]
)
def test_reads_that_must_not_be_split(style: HeaderStyle, flags: int) -> None:
    server = machine(style)
    read = request(server, compact(READ, 0, 8, flags))
    assert not server.can_split(read)
    with pytest.raises(LocalProtocolError):
        server.read_data(read, 0, b"four")
