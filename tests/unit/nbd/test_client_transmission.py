"""The client's transmission phase, against replies written by hand: honest ones and others."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

import pytest

from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError
from vdisk.nbd.events import (
    ClientEvent,
    DataReceived,
    ErrorReceived,
    HoleReceived,
    ReplyDone,
    StatusReceived,
)
from vdisk.nbd.limits import Limits
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, Session
from vdisk.nbd.wire import ErrorValue, TransmissionFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.client_requests import Outgoing

SIZE = 1 << 20
FLAGS = TransmissionFlag(0x1FFF) & ~TransmissionFlag.NBD_FLAG_READ_ONLY
CONTEXTS = (MetaContext(3, "base:allocation"), MetaContext(9, "x-a:b"))
SIMPLE, STRUCTURED, EXTENDED = HeaderStyle
CHUNKED = [STRUCTURED, EXTENDED]
NONE, DATA, HOLE, STATUS, STATUS_EXT, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 6, 0x8001, 0x8002
OFFSET = 4096
"""Where the requests of these tests begin."""


def machine(
    style: HeaderStyle = STRUCTURED,
    limits: Limits | None = None,
    flags: TransmissionFlag = FLAGS,
    sizes: BlockSizes | None = None,
) -> ClientTransmission:
    session = Session(ExportInfo("", SIZE, flags, "", sizes), style, CONTEXTS)
    return ClientTransmission(session, limits=limits or Limits())


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(
    style: HeaderStyle,
    cookie: int,
    kind: int,
    payload: bytes = b"",
    done: int = 1,
    offset: int = OFFSET,
) -> bytes:
    if style is EXTENDED:
        head = pack(">IHHQQQ", 0x6E8A278C, done, kind, cookie, offset, len(payload))
    else:
        head = pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(payload))
    return head + payload


def data(offset: int, content: bytes) -> bytes:
    return pack(">Q", offset) + content


def hole(offset: int, length: int) -> bytes:
    return pack(">QI", offset, length)


def failure(value: int, text: bytes = b"", offset: int | None = None) -> bytes:
    tail = b"" if offset is None else pack(">Q", offset)
    return pack(">IH", value, len(text)) + text + tail


def joined(outgoing: Outgoing) -> bytes:
    return b"".join(outgoing.buffers)


def events(client: ClientTransmission, received: bytes) -> list[ClientEvent]:
    client.receive_data(received)
    found = []
    while (event := client.next_event()) is not None:
        found.append(event)
    return found


# --- requests -------------------------------------------------------------------------------------


def test_requests_in_the_compact_style() -> None:
    client = machine()
    head = ">IHHQQI"
    cases = [
        (client.read(512, 1024), pack(head, 0x25609513, 0, 0, 1, 512, 1024)),
        (client.read(0, 8, dont_fragment=True), pack(head, 0x25609513, 4, 0, 2, 0, 8)),
        (client.write(8, b"data", fua=True), pack(head, 0x25609513, 1, 1, 3, 8, 4) + b"data"),
        (client.flush(), pack(head, 0x25609513, 0, 3, 4, 0, 0)),
        (client.trim(0, SIZE), pack(head, 0x25609513, 0, 4, 5, 0, SIZE)),
        (client.cache(0, 512), pack(head, 0x25609513, 0, 5, 6, 0, 512)),
        (
            client.write_zeroes(0, 512, no_hole=True, fast_zero=True, fua=True),
            pack(head, 0x25609513, 0x13, 6, 7, 0, 512),
        ),
        (client.block_status(0, 512, one=True), pack(head, 0x25609513, 8, 7, 8, 0, 512)),
    ]
    for outgoing, expected in cases:
        assert joined(outgoing) == expected
    assert client.unanswered == len(cases)
    assert b"".join(client.disconnect()) == pack(head, 0x25609513, 0, 2, 0, 0, 0)


def test_requests_in_the_extended_style() -> None:
    client = machine(EXTENDED)
    head = ">IHHQQQ"
    assert joined(client.read(0, 8)) == pack(head, 0x21E41C71, 0, 0, 1, 0, 8)
    assert joined(client.write(8, b"data")) == pack(head, 0x21E41C71, 0x20, 1, 2, 8, 4) + b"data"
    some = client.block_status(0, 512, contexts=[9])
    assert joined(some) == pack(head, 0x21E41C71, 0x20, 7, 3, 0, 12) + pack(">QI", 512, 9)
    assert joined(client.block_status(0, 512)) == pack(head, 0x21E41C71, 0, 7, 4, 0, 512)


def test_a_payload_is_not_copied() -> None:
    content = b"data"
    assert machine().write(0, content).buffers[1] is content


@pytest.mark.parametrize(
    "request_",
    [
        lambda c: c.read(SIZE, 1),
        lambda c: c.read(-512, 512),
        lambda c: c.read(0, 0),
        lambda c: c.read(0, 2**40),
        lambda c: c.read(0, 8, into=bytearray(7)),
        lambda c: c.read(0, 8, into=memoryview(bytes(8))),
        lambda c: c.write(SIZE - 1, b"xx"),
        lambda c: c.block_status(0, 512, contexts=[4]),
        lambda c: c.block_status(0, 512, contexts=[3, 3]),
        lambda c: c.block_status(SIZE, 512),
        lambda c: c.trim(0, 2**32),
    ],
)
def test_requests_the_server_would_refuse(
    request_: Callable[[ClientTransmission], object],
) -> None:
    client = machine()
    with pytest.raises(LocalProtocolError):
        request_(client)
    assert client.unanswered == 0
    assert client.flush().cookie == 1


def test_what_the_export_does_not_offer() -> None:
    bare = machine(flags=TransmissionFlag.NBD_FLAG_READ_ONLY)
    for request_ in (bare.flush, lambda: bare.write(0, b"x"), lambda: bare.cache(0, 1)):
        with pytest.raises(LocalProtocolError):
            request_()
    without = machine(EXTENDED, flags=FLAGS & ~TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD)
    with pytest.raises(LocalProtocolError):
        without.block_status(0, 512, contexts=[3])
    assert without.unanswered == 0


def test_too_many_requests() -> None:
    client = machine(limits=Limits(requests_in_flight=1))
    cookie = client.flush().cookie
    with pytest.raises(LocalProtocolError):
        client.flush()
    events(client, simple(cookie))
    client.flush()


def test_nothing_follows_a_disconnect() -> None:
    client = machine()
    client.disconnect()
    with pytest.raises(LocalProtocolError):
        client.flush()
    with pytest.raises(LocalProtocolError):
        client.disconnect()


# --- honest replies -------------------------------------------------------------------------------


def test_a_simple_read_into_a_buffer() -> None:
    client = machine(SIMPLE)
    target = bytearray(10)
    cookie = client.read(OFFSET, 4, into=target).cookie
    found = events(client, simple(cookie, 0, b"data"))
    assert found == [
        DataReceived(cookie, OFFSET, memoryview(b"data")),
        ReplyDone(cookie, None, found[1].data),
    ]  # type: ignore[union-attr]
    assert target == b"data" + bytes(6)
    assert client.unanswered == 0


@pytest.mark.parametrize("style", CHUNKED)
def test_a_read_in_chunks(style: HeaderStyle) -> None:
    client = machine(style)
    target = bytearray(b"\xff" * 24)
    cookie = client.read(OFFSET, 24, into=target).cookie
    found = events(
        client,
        chunk(style, cookie, DATA, data(OFFSET + 16, b"tail-end"), 0)
        + chunk(style, cookie, HOLE, hole(OFFSET, 8), 0)
        + chunk(style, cookie, DATA, data(OFFSET + 8, b"middle.."), 1),
    )
    assert found[:3] == [
        DataReceived(cookie, OFFSET + 16, memoryview(b"tail-end")),
        HoleReceived(cookie, OFFSET, 8),
        DataReceived(cookie, OFFSET + 8, memoryview(b"middle..")),
    ]
    assert isinstance(found[3], ReplyDone)
    assert found[3].error is None
    assert target == bytes(8) + b"middle..tail-end"


def test_the_payload_may_be_received_in_place() -> None:
    client = machine(SIMPLE)
    cookie = client.read(OFFSET, 8).cookie
    assert events(client, simple(cookie, 0, b"abc")) == []
    target = client.payload_buffer
    assert target is not None
    assert len(target) == 5
    target[:] = b"defgh"
    with pytest.raises(LocalProtocolError):
        client.payload_received(6)
    client.payload_received(5)
    done = events(client, b"")[-1]
    assert isinstance(done, ReplyDone)
    assert bytes(done.data) == b"abcdefgh"


def test_replies_in_any_order() -> None:
    client = machine()
    first, second = client.flush().cookie, client.flush().cookie
    found = events(client, simple(second) + chunk(STRUCTURED, first, NONE))
    assert [event.cookie for event in found] == [second, first]


@pytest.mark.parametrize("style", CHUNKED)
def test_block_status(style: HeaderStyle) -> None:
    client = machine(style)
    cookie = client.block_status(OFFSET, 8192).cookie
    kind, form = (STATUS_EXT, ">IIQQQQ") if style is EXTENDED else (STATUS, ">IIIII")
    counted = (2,) if style is EXTENDED else ()
    found = events(
        client,
        chunk(style, cookie, kind, pack(form, 9, *counted, 4096, 1, 2**30, 0), 0)
        + chunk(style, cookie, kind, pack(form, 3, *counted, 512, 3, 8192, 0), 1),
    )
    assert found[:2] == [
        StatusReceived(cookie, CONTEXTS[1], ((4096, 1), (2**30, 0))),
        StatusReceived(cookie, CONTEXTS[0], ((512, 3), (8192, 0))),
    ]
    assert isinstance(found[2], ReplyDone)


def test_block_status_of_one_context() -> None:
    client = machine(EXTENDED)
    cookie = client.block_status(OFFSET, 512, contexts=[9]).cookie
    found = events(client, chunk(EXTENDED, cookie, STATUS_EXT, pack(">IIQQ", 9, 1, 512, 0)))
    assert found[0] == StatusReceived(cookie, CONTEXTS[1], ((512, 0),))


@pytest.mark.parametrize("style", [SIMPLE, STRUCTURED])
def test_a_simple_error(style: HeaderStyle) -> None:
    client = machine(style)
    cookie = client.write(OFFSET, b"data").cookie
    (done,) = events(client, simple(cookie, 28))
    assert isinstance(done, ReplyDone)
    assert done.error is not None
    assert done.error.value is ErrorValue.NBD_ENOSPC
    assert done.error.offset == OFFSET
    assert "NBD_CMD_WRITE" in str(done.error)


@pytest.mark.parametrize("style", CHUNKED)
def test_an_error_chunk(style: HeaderStyle) -> None:
    client = machine(style)
    cookie = client.read(OFFSET, 16).cookie
    found = events(
        client,
        chunk(style, cookie, DATA, data(OFFSET, b"12345678"), 0)
        + chunk(style, cookie, ERROR_OFFSET, failure(5, b"bad block", OFFSET + 8), 0)
        + chunk(style, cookie, NONE),
    )
    assert found[1] == ErrorReceived(cookie, ErrorValue.NBD_EIO, "bad block", OFFSET + 8)
    done = found[2]
    assert isinstance(done, ReplyDone)
    assert done.error is not None
    assert "bad block" in done.error.message
    assert done.error.offset == OFFSET + 8


@pytest.mark.parametrize("kind", [ERROR, 0x8003, 0xFFFF])
def test_error_chunks_of_any_type_fail_the_request_only(kind: int) -> None:
    client = machine()
    cookie = client.flush().cookie
    found = events(client, chunk(STRUCTURED, cookie, kind, failure(4711, b"text") + b"more fields"))
    assert found[0] == ErrorReceived(cookie, ErrorValue.NBD_EINVAL, "text", None)
    assert client.unanswered == 0
    client.flush()


def test_the_connection_ends() -> None:
    client = machine()
    cookie = client.flush().cookie
    client.receive_data(simple(cookie))
    client.receive_eof()
    assert isinstance(client.next_event(), ReplyDone)
    assert client.next_event() is None
    assert not client.wants_data
    with pytest.raises(LocalProtocolError):
        client.flush()


# --- hostile replies ------------------------------------------------------------------------------


def expect_violation(client: ClientTransmission, received: bytes) -> None:
    client.receive_data(received)
    with pytest.raises(RemoteProtocolError):
        while client.next_event() is not None:
            pass
    assert not client.wants_data
    assert client.next_event() is None


READ_LIES: dict[str, Callable[[HeaderStyle, int], bytes]] = {
    "an unknown cookie": lambda s, c: chunk(s, c + 1, NONE),
    "a simple reply": lambda s, c: simple(c, 0, bytes(16)) + bytes(16),
    "a simple error": lambda s, c: simple(c, 5) + bytes(16),
    "nothing at all": lambda s, c: chunk(s, c, NONE),
    "bytes missing": lambda s, c: chunk(s, c, DATA, data(OFFSET, bytes(15))),
    "bytes before the range": lambda s, c: chunk(s, c, DATA, data(OFFSET - 1, bytes(16))),
    "bytes after the range": lambda s, c: chunk(s, c, DATA, data(OFFSET + 1, bytes(16))),
    "bytes far away": lambda s, c: chunk(s, c, DATA, data(2**64 - 1, bytes(16))),
    "too many bytes": lambda s, c: chunk(s, c, DATA, data(OFFSET, bytes(17))),
    "no bytes": lambda s, c: chunk(s, c, DATA, data(OFFSET, b"")),
    "not even an offset": lambda s, c: chunk(s, c, DATA, b"1234"),
    "bytes twice": lambda s, c: chunk(s, c, DATA, data(OFFSET, bytes(8)), 0) * 2,
    "bytes in a hole": lambda s, c: (
        chunk(s, c, HOLE, hole(OFFSET, 8), 0) + chunk(s, c, DATA, data(OFFSET + 7, b"x"), 0)
    ),
    "bytes after their error": lambda s, c: (
        chunk(s, c, ERROR_OFFSET, failure(5, b"", OFFSET + 3), 0)
        + chunk(s, c, DATA, data(OFFSET, bytes(8)), 0)
    ),
    "an empty hole": lambda s, c: chunk(s, c, HOLE, hole(OFFSET, 0), 0),
    "a hole too large": lambda s, c: chunk(s, c, HOLE, hole(OFFSET, 17)),
    "a hole with more fields": lambda s, c: chunk(s, c, HOLE, hole(OFFSET, 16) + b"x"),
    "none with a payload": lambda s, c: chunk(s, c, NONE, b"x"),
    "none that is not the end": lambda s, c: chunk(s, c, NONE, b"", 0),
    "a chunk after the last": lambda s, c: (
        chunk(s, c, DATA, data(OFFSET, bytes(16))) + chunk(s, c, NONE)
    ),
    "a status": lambda s, c: chunk(s, c, STATUS, pack(">III", 3, 512, 0)),
    "an extended status": lambda s, c: chunk(s, c, STATUS_EXT, pack(">IIQQ", 3, 1, 512, 0)),
    "an unknown chunk": lambda s, c: chunk(s, c, 77, b"x"),
    "an error that is none": lambda s, c: chunk(s, c, ERROR, failure(0)),
    "an error without fields": lambda s, c: chunk(s, c, ERROR, b"12345"),
    "an error message too long": lambda s, c: chunk(s, c, ERROR, pack(">IH", 5, 9) + b"short"),
    "an error message that is no text": lambda s, c: chunk(s, c, ERROR, failure(5, b"\xff")),
    "an error without its offset": lambda s, c: chunk(s, c, ERROR_OFFSET, failure(5, b"text")),
    "an error elsewhere": lambda s, c: chunk(s, c, ERROR_OFFSET, failure(5, b"", OFFSET + 16)),
    "a huge error": lambda s, c: chunk(s, c, ERROR, failure(5) + bytes(10000)),
    "a wrong magic": lambda s, c: b"HTTP/1.1 500 Internal Server Error\r\n",
}


@pytest.mark.parametrize("style", CHUNKED)
@pytest.mark.parametrize("lie", READ_LIES)
def test_lies_about_a_read(style: HeaderStyle, lie: str) -> None:
    client = machine(style)
    cookie = client.read(OFFSET, 16).cookie
    expect_violation(client, READ_LIES[lie](style, cookie))


STATUS_LIES: dict[str, Callable[[int], bytes]] = {
    "a simple success": simple,
    "no context": lambda c: chunk(STRUCTURED, c, NONE),
    "one context missing": lambda c: chunk(STRUCTURED, c, STATUS, pack(">III", 3, 512, 0)),
    "one context twice": lambda c: chunk(STRUCTURED, c, STATUS, pack(">III", 3, 512, 0), 0) * 2,
    "an unknown context": lambda c: chunk(STRUCTURED, c, STATUS, pack(">III", 4, 512, 0), 0),
    "no extents": lambda c: chunk(STRUCTURED, c, STATUS, pack(">I", 3), 0),
    "half an extent": lambda c: chunk(STRUCTURED, c, STATUS, pack(">IIII", 3, 512, 0, 512), 0),
    "an empty extent": lambda c: chunk(STRUCTURED, c, STATUS, pack(">IIIII", 3, 0, 0, 512, 0), 0),
    "extents past the end": lambda c: chunk(
        STRUCTURED, c, STATUS, pack(">IIIII", 3, 8192, 0, 1, 0), 0
    ),
    "too many extents": lambda c: chunk(STRUCTURED, c, STATUS, pack(">11I", 3, *[1] * 10), 0),
    "the extended form": lambda c: chunk(STRUCTURED, c, STATUS_EXT, pack(">IIQQ", 3, 1, 1, 0), 0),
    "data": lambda c: chunk(STRUCTURED, c, DATA, data(OFFSET, b"x"), 0),
    "a chunk, then a simple reply": lambda c: (
        chunk(STRUCTURED, c, STATUS, pack(">III", 3, 512, 0), 0) + simple(c)
    ),
}


@pytest.mark.parametrize("lie", STATUS_LIES)
def test_lies_about_block_status(lie: str) -> None:
    client = machine(limits=Limits(status_descriptors=4))
    cookie = client.block_status(OFFSET, 8192).cookie
    expect_violation(client, STATUS_LIES[lie](cookie))


@pytest.mark.parametrize(
    "payload",
    [
        pack(">IIQQ", 3, 2, 512, 0),
        pack(">IIQQ", 3, 0, 512, 0),
        pack(">III", 3, 512, 0),
        pack(">II", 3, 0),
    ],
)
def test_lies_about_extended_block_status(payload: bytes) -> None:
    client = machine(EXTENDED)
    cookie = client.block_status(OFFSET, 512).cookie
    expect_violation(client, chunk(EXTENDED, cookie, STATUS_EXT, payload, 0))


@pytest.mark.parametrize("extents", [(513, 0), (256, 0, 256, 1)])
def test_one_extent_means_one(extents: tuple[int, ...]) -> None:
    client = machine()
    cookie = client.block_status(OFFSET, 512, one=True).cookie
    payload = pack(f">I{len(extents)}I", 3, *extents)
    expect_violation(client, chunk(STRUCTURED, cookie, STATUS, payload, 0))


def test_a_second_piece_of_a_read_that_must_not_be_split() -> None:
    client = machine()
    cookie = client.read(OFFSET, 16, dont_fragment=True).cookie
    first = chunk(STRUCTURED, cookie, DATA, data(OFFSET, bytes(8)), 0)
    second = chunk(STRUCTURED, cookie, HOLE, hole(OFFSET + 8, 8))
    expect_violation(client, first + second)


def test_data_in_reply_to_a_write() -> None:
    client = machine()
    cookie = client.write(OFFSET, b"data").cookie
    expect_violation(client, chunk(STRUCTURED, cookie, DATA, data(OFFSET, b"data")))


def test_an_extended_reply_with_the_offset_of_another_request() -> None:
    client = machine(EXTENDED)
    cookie = client.flush().cookie
    expect_violation(client, chunk(EXTENDED, cookie, NONE, offset=512))


@pytest.mark.parametrize("style", [SIMPLE, STRUCTURED, EXTENDED])
def test_replies_of_a_style_that_was_not_negotiated(style: HeaderStyle) -> None:
    for other in HeaderStyle:
        client = machine(style)
        cookie = client.flush().cookie
        reply = simple(cookie) if other is SIMPLE else chunk(other, cookie, NONE, offset=0)
        if other is style or (style is STRUCTURED and other is SIMPLE):
            assert len(events(client, reply)) == 1
        else:
            expect_violation(client, reply + bytes(32))


def test_endless_errors() -> None:
    client = machine(limits=Limits(error_chunks=3))
    cookie = client.read(OFFSET, 16).cookie
    expect_violation(client, chunk(STRUCTURED, cookie, ERROR, failure(5), 0) * 4)


def test_a_read_in_too_many_pieces() -> None:
    client = machine(limits=Limits(read_fragments=3))
    cookie = client.read(OFFSET, 16).cookie
    pieces = [chunk(STRUCTURED, cookie, HOLE, hole(OFFSET + n, 1), 0) for n in (0, 2, 4, 6)]
    expect_violation(client, b"".join(pieces))


@pytest.mark.parametrize("received", [b"", b"\x67", simple(1)[:-1]])
def test_the_connection_ends_with_requests_unanswered(received: bytes) -> None:
    client = machine()
    client.flush()
    client.receive_data(received)
    client.receive_eof()
    with pytest.raises(RemoteProtocolError, match="1 requests unanswered"):
        client.next_event()


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_the_usual_replies_are_known_beforehand(style: HeaderStyle) -> None:
    client = machine(style)
    assert client.at_boundary
    buffer = bytearray(512)
    read = client.read(OFFSET, 512, into=buffer).cookie
    write = client.write(OFFSET, b"w" * 512).cookie
    assert not client.at_boundary
    if style is SIMPLE:
        assert client.plain_replies(read) == (simple(read),)
        assert client.plain_replies(write) == (simple(write),)
    else:
        header = chunk(style, read, DATA, data(OFFSET, b"r" * 512))[:-512]
        assert client.plain_replies(read) == (header,)
        assert client.plain_replies(write)[0] == chunk(style, write, NONE)
    client.answered(write)
    client.answered(read)
    assert client.at_boundary


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_the_usual_replies_are_what_the_machine_takes(style: HeaderStyle) -> None:
    """Given to the machine all the same, they complete the request."""
    for command in ("read", "write", "flush", "trim", "write_zeroes", "cache"):
        client = machine(style)
        arguments = {
            "flush": (),
            "write": (OFFSET, b"w" * 512),
        }.get(command, (OFFSET, 512))
        cookie = getattr(client, command)(*arguments).cookie
        for reply in client.plain_replies(cookie):
            again = machine(style)
            getattr(again, command)(*arguments)
            again.receive_data(reply + (b"r" * 512 if command == "read" else b""))
            events = []
            while (event := again.next_event()) is not None:
                events.append(event)
            assert isinstance(events[-1], ReplyDone), command
            assert events[-1].error is None
            assert again.at_boundary
