"""Laws of the NBD's smaller parts: round trips, total parsers, and the two parsers of requests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import InvalidRequestError
from vdisk.nbd import chunks, options
from vdisk.nbd.bulk import BulkParser, BulkReplies, ReadSheet
from vdisk.nbd.coverage import Coverage
from vdisk.nbd.events import InvalidRequest, Request
from vdisk.nbd.options import ExportQuery, MetaContextQuery
from vdisk.nbd.replies import fit_extents
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, Session
from vdisk.nbd.uri import NbdUri, TlsType, Transport, format_uri, parse_uri
from vdisk.nbd.wire import (
    EXTENDED_REQUEST,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REQUEST_MAGIC,
    REQUEST,
    Command,
    CommandFlag,
    Info,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from collections.abc import Callable

strings = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)

# --- options and chunks ---------------------------------------------------------------------------


@given(strings, st.frozensets(st.sampled_from(Info)))
def test_export_queries_round_trip(name: str, requests: frozenset[Info]) -> None:
    query = ExportQuery(name, requests)
    assert options.parse_export_query(options.build_export_query(query)) == query


@given(strings, st.lists(strings, max_size=5))
def test_meta_context_queries_round_trip(name: str, queries: list[str]) -> None:
    query = MetaContextQuery(name, tuple(queries))
    assert options.parse_meta_context_query(options.build_meta_context_query(query)) == query


@given(strings, strings)
def test_export_entries_round_trip(name: str, description: str) -> None:
    assert options.parse_server(options.build_server(name, description)) == (name, description)


PARSERS: list[Callable[[bytes], object]] = [
    options.parse_export_query,
    options.parse_meta_context_query,
    options.parse_server,
    options.parse_meta_context,
    options.parse_info,
]


@given(st.sampled_from(PARSERS), st.binary(max_size=60))
def test_option_parsers_are_total(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except ValueError:
        return


@given(st.integers(0, 0xFFFF), st.binary(min_size=6, max_size=60))
def test_the_error_chunk_parser_is_total(kind: int, data: bytes) -> None:
    try:
        value, message, _ = chunks.parse_error(kind, memoryview(data))
    except ValueError:
        return
    assert value
    assert "\0" not in message


# --- coverage -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12)), max_size=40))
def test_coverage_is_a_set_of_bytes(pieces: list[tuple[int, int]]) -> None:
    coverage, model = Coverage(100, 40), set[int]()
    for start, length in pieces:
        piece = set(range(start, start + length))
        fits = max(piece) < 40
        assert coverage.contains(100 + start, length) is fits
        if fits:
            assert coverage.add(100 + start, length) is model.isdisjoint(piece)
            model |= piece if model.isdisjoint(piece) else set()
        assert coverage.filled == len(model)
        assert coverage.fragments == sum(1 for n in model if n - 1 not in model)
    assert coverage.complete is (len(model) == 40)


# --- extents --------------------------------------------------------------------------------------


@given(
    extents=st.lists(st.tuples(st.integers(1, 2**34), st.integers(0, 3)), min_size=1, max_size=20),
    length=st.integers(1, 2**32 - 1),
    one=st.booleans(),
    style=st.sampled_from([HeaderStyle.STRUCTURED, HeaderStyle.EXTENDED]),
    limit=st.integers(1, 5),
)
def test_fitted_extents_obey_the_specification_and_say_nothing_new(
    extents: list[tuple[int, int]], length: int, one: bool, style: HeaderStyle, limit: int
) -> None:
    flags = CommandFlag.NBD_CMD_FLAG_REQ_ONE if one else CommandFlag(0)
    request = Request(Command.NBD_CMD_BLOCK_STATUS, flags, 1, 0, length)
    fitted = fit_extents(style, request, extents, limit)
    assert 1 <= len(fitted) <= (1 if one else limit)
    assert all(extent > 0 for extent, _ in fitted)
    assert sum(extent for extent, _ in fitted[:-1]) < length
    if one:
        assert fitted[0][0] <= length
    if style is HeaderStyle.STRUCTURED:
        assert all(extent < 2**32 for extent, _ in fitted)
    assert _at_boundaries(fitted, extents)


def _at_boundaries(fitted: list[tuple[int, int]], extents: list[tuple[int, int]]) -> bool:
    """Whether *fitted* has the status that *extents* has, as far as it goes."""
    ends: list[tuple[int, int]] = []
    end = 0
    for length, status in extents:
        end += length
        ends.append((end, status))
    start = 0
    for length, status in fitted:
        overlapped = {
            old
            for (stop, old), (size, _) in zip(ends, extents, strict=True)
            if stop - size < start + length and start < stop
        }
        if overlapped != {status}:
            return False
        start += length
    return start <= end


# --- the two parsers of requests ------------------------------------------------------------------

SIZE = 1 << 20
FLAGS = TransmissionFlag.NBD_FLAG_SEND_FUA | TransmissionFlag.NBD_FLAG_SEND_FLUSH
fields = st.one_of(
    st.integers(0, SIZE // 512).map(lambda n: n * 512), st.sampled_from([1, SIZE - 1, 2**32 - 512])
)


@st.composite
def request_streams(draw: st.DrawFn) -> tuple[Session, bytes]:
    style = draw(st.sampled_from(HeaderStyle))
    flags = FLAGS | (draw(st.sampled_from([0, 1])) * TransmissionFlag.NBD_FLAG_READ_ONLY)
    sizes = draw(st.sampled_from([None, BlockSizes(512, 512, 1 << 16)]))
    extended = style is HeaderStyle.EXTENDED
    layout, magic = (
        (EXTENDED_REQUEST, NBD_EXTENDED_REQUEST_MAGIC) if extended else (REQUEST, NBD_REQUEST_MAGIC)
    )
    parts = []
    for _ in range(draw(st.integers(0, 8))):
        command = draw(st.sampled_from([0, 0, 0, 1, 1, 3]))
        bits = draw(st.sampled_from([0, 0, 0, 1, 4]))
        length = draw(st.sampled_from([0, 511, 512, 1024])) if command == 1 else draw(fields)
        if extended and command == 1 and draw(st.booleans()):
            bits |= CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN
        header = layout.pack(magic, bits, command, draw(st.integers(0, 9)), draw(fields), length)
        payload = length if command == 1 else 0
        parts.append(header + draw(st.sampled_from([b"a", b"\0"])) * payload)
    wire = b"".join(parts)
    session = Session(ExportInfo("", SIZE, flags, block_sizes=sizes), style)
    return session, wire[: draw(st.integers(0, len(wire)))] if draw(st.booleans()) else wire


@given(request_streams(), st.integers(1, 4))
def test_the_bulk_parser_says_what_the_machine_says(
    stream: tuple[Session, bytes], most: int
) -> None:
    """Taking turns with the machine, the bulk parser changes nothing about the requests."""
    session, wire = stream
    machine, reference = ServerTransmission(session), ServerTransmission(session)
    parser = BulkParser(session, machine.gate)
    found: list[tuple[object, ...]] = []
    rest = memoryview(wire)
    while rest:
        before = len(found)
        if machine.at_boundary:
            reads, used = parser.reads(rest, most)
            found += [(0, False, cookie, offset, length, b"") for cookie, offset, length in reads]
            whole = rest[:used]
            rest = rest[used:]
            if whole:
                length, offsets = parser.alike(whole)
                alike = len({read[2] for read in reads}) == 1
                assert offsets == ([read[1] for read in reads] if alike else [])
                assert length == (reads[0][2] if alike else 0)
            writes, used = parser.writes(rest, most)
            if len(writes) == 1:
                cookie, offset, data, fua = writes[0]
                assert parser.write(rest[:used]) == (None if fua else (cookie, offset, data))
            found += [
                (1, fua, cookie, offset, len(data), bytes(data))
                for cookie, offset, data, fua in writes
            ]
            rest = rest[used:]
        if len(found) == before:  # not for the bulk parser: the machine's, bit by bit
            machine.receive_data(rest[:7])
            rest = rest[7:]
            found += _drain(machine)
    reference.receive_data(wire)
    assert found == _drain(reference)


def _drain(machine: ServerTransmission) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    while (event := machine.next_event()) is not None:
        if isinstance(event, Request):
            flagged = int(event.flags) == 1 if event.command == 1 else int(event.flags)
            found.append(
                (
                    event.command,
                    flagged,
                    event.cookie,
                    event.offset,
                    event.length,
                    bytes(event.data),
                )
            )
        elif isinstance(event, InvalidRequest):
            found.append((event.request._replace(serial=0), event.error))
    return found


@given(
    st.sampled_from(HeaderStyle),
    st.integers(0, 2**64 - 1),
    st.integers(0, SIZE - 8),
    st.integers(0, 50),
)
def test_bulk_replies_are_the_machine_s(
    style: HeaderStyle, cookie: int, offset: int, position: int
) -> None:
    session = Session(ExportInfo("", SIZE, FLAGS), style)
    extended = style is HeaderStyle.EXTENDED
    layout, magic = (
        (EXTENDED_REQUEST, NBD_EXTENDED_REQUEST_MAGIC) if extended else (REQUEST, NBD_REQUEST_MAGIC)
    )
    machine = ServerTransmission(session)
    machine.receive_data(layout.pack(magic, 0, 0, cookie, offset, 8))
    machine.receive_data(layout.pack(magic, 0, 3, cookie, 0, 0))
    read, flush = machine.next_event(), machine.next_event()
    assert isinstance(read, Request)
    assert isinstance(flush, Request)
    packer, out = BulkReplies(style), bytearray(300)
    place = packer.pack_read(out, position, cookie, offset, 8)
    out[place : place + 8] = b"contents"
    end = packer.pack_done(out, place + 8, cookie, 0)
    expected = machine.reply_read(read, b"contents") + machine.reply_success(flush)
    assert out[position:end] == b"".join(expected)
    sheet = ReadSheet(style, 8, 3)
    sheet.targets[0][0][:] = b"contents"
    request = memoryview(layout.pack(magic, 0, 0, cookie, offset, 8))
    assert sheet.replies(request, 1) == b"".join(expected[:-1])


# --- URIs -----------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
paths = st.binary(min_size=1, max_size=12).map(os.fsdecode)
hosts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":\0"), max_size=9)


def can_be_resolved(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


@st.composite
def uris(draw: st.DrawFn) -> NbdUri:
    transport = draw(st.sampled_from(Transport))
    place: dict[str, object] = {}
    match transport:
        case Transport.TCP:
            host = st.one_of(
                hosts.filter(can_be_resolved),
                st.sampled_from(["::1", "fe80::1%eth0", "2001:db8::7"]),
            )
            place = {"host": draw(host), "port": draw(st.integers(0, 65535))}
        case Transport.UNIX:
            place = {"socket": draw(paths)}
        case Transport.VSOCK:
            place = {
                "cid": draw(st.integers(0, 2**32 - 1)),
                "port": draw(st.integers(0, 2**32 - 1)),
            }
    return NbdUri(
        transport=transport,
        tls=draw(st.booleans()),
        export=draw(strings),
        user=draw(st.none() | names),
        tls_type=draw(st.none() | st.sampled_from(TlsType)),
        tls_hostname=draw(st.none() | names),
        tls_verify_peer=draw(st.none() | st.booleans()),
        tls_certificates=draw(st.none() | names),
        tls_psk_file=draw(st.none() | names),
        experimental=tuple(draw(st.lists(st.tuples(names.map("x-".__add__), names), max_size=2))),
        **place,  # type: ignore[arg-type]
    )


@given(uris())
def test_uris_round_trip(uri: NbdUri) -> None:
    text = format_uri(uri)
    assert text.isascii()
    assert parse_uri(text) == uri


@given(st.one_of(st.text(), st.text("nbd+unix:/?=&%0123[]@#", max_size=30).map("nbd://".__add__)))
def test_the_uri_parser_is_total(text: str) -> None:
    try:
        uri = parse_uri(text)
    except InvalidRequestError:
        return
    assert parse_uri(format_uri(uri)) == uri


@given(st.lists(strings.map("x:".__add__), max_size=4), st.lists(strings, max_size=4))
def test_only_available_contexts_are_selected(available: list[str], queries: list[str]) -> None:
    try:
        selected = options.match_meta_contexts(queries, available, wildcards=False)
    except ValueError:
        assert any(":" not in query or query.startswith(":") for query in queries)
        return
    assert set(selected) == set(available) & set(queries)
    assert all(isinstance(MetaContext(0, name), MetaContext) for name in selected)
