"""Laws of the NBD machines: how the wire is cut does not matter, any bytes are survived, and a
client and a server that meet agree.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from tests.tools.nbd_pair import (
    EVERYTHING,
    MemoryDisk,
    Pair,
    answer,
    answer_handshake,
    negotiate,
)
from vdisk.errors import VdiskError
from vdisk.nbd.client_negotiation import ClientNegotiation
from vdisk.nbd.client_negotiation import State as ClientState
from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.connect import ClientHandshake, ClientSettings, connect
from vdisk.nbd.errors import LocalProtocolError, NegotiationError, RemoteProtocolError
from vdisk.nbd.events import (
    DataReceived,
    Greeted,
    HoleReceived,
    InvalidRequest,
    ReplyDone,
    Request,
    SessionStarted,
    StatusReceived,
    TlsWanted,
)
from vdisk.nbd.options import ExportQuery, MetaContextQuery
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, Session, TlsMode
from vdisk.nbd.wire import (
    BASE_ALLOCATION,
    EXTENDED_REQUEST,
    NBD_EXTENDED_REQUEST_MAGIC,
    NBD_REQUEST_MAGIC,
    REQUEST,
    CommandFlag,
    ErrorValue,
    Option,
    TransmissionFlag,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIZE = 64 * 1024
CONTEXTS = (MetaContext(0, BASE_ALLOCATION), MetaContext(1, "qemu:allocation-depth"))
FLAGS = (
    EVERYTHING
    | TransmissionFlag.NBD_FLAG_HAS_FLAGS
    | TransmissionFlag.NBD_FLAG_SEND_DF
    | TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD
)

styles = st.sampled_from(HeaderStyle)
numbers = st.one_of(
    st.integers(0, 16),
    st.integers(0, SIZE).map(lambda n: n & ~511),
    st.sampled_from([SIZE - 1, SIZE, 2**25 + 1, 2**32 - 1, 2**63, 2**64 - 1]),
)


def cutter(sizes: list[int]) -> Callable[[bytes], Iterable[bytes]]:
    """Cut data into pieces of these lengths, over and over."""

    def cut(data: bytes) -> Iterable[bytes]:
        position, turn = 0, 0
        while position < len(data):
            length = sizes[turn % len(sizes)]
            yield data[position : position + length]
            position += length
            turn += 1

    return cut


cuts = st.lists(st.integers(1, 50), min_size=1, max_size=8).map(cutter)


def session(style: HeaderStyle, **export: Any) -> Session:
    flags = export.pop("flags", FLAGS)
    contexts = CONTEXTS if style is not HeaderStyle.SIMPLE else ()
    return Session(ExportInfo("", SIZE, flags, **export), style, contexts)


# --- requests, as a client of any kind may send them ----------------------------------------------


@st.composite
def wire_requests(draw: st.DrawFn, style: HeaderStyle) -> bytes:
    """One request: often valid, sometimes wrong in a field, its payload always as announced."""
    command = draw(st.sampled_from([0, 0, 1, 1, 3, 4, 5, 6, 7, 7, 8]))
    flags = draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 32, 33, 64]))
    offset, length = draw(numbers), draw(numbers)
    if style is not HeaderStyle.EXTENDED:
        length &= 0xFFFFFFFF
    if command == 1 and style is HeaderStyle.EXTENDED and draw(st.booleans()):
        flags |= CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN
    announced = flags & CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN
    carries = command == 1 or (style is HeaderStyle.EXTENDED and announced)
    payload = b""
    if carries:
        payload = draw(st.binary(max_size=600))
        if command == 7 and draw(st.booleans()):
            payload = pack(">QI", length, draw(st.integers(0, 2)))
        length = len(payload)
    cookie = draw(st.integers(0, 2**64 - 1))
    if style is HeaderStyle.EXTENDED:
        magic = NBD_EXTENDED_REQUEST_MAGIC
        return EXTENDED_REQUEST.pack(magic, flags, command, cookie, offset, length) + payload
    return REQUEST.pack(NBD_REQUEST_MAGIC, flags, command, cookie, offset, length) + payload


def received(machine: ServerTransmission, pieces: Iterable[bytes]) -> list[object]:
    """The events of a server, payloads made comparable; the error last, if there is one."""
    events: list[object] = []
    try:
        for piece in pieces:
            machine.receive_data(piece)
            while (event := machine.next_event()) is not None:
                if isinstance(event, Request):
                    event = event._replace(data=memoryview(bytes(event.data)))
                events.append(event)
    except RemoteProtocolError as error:
        events.append(str(error))
    return events


@given(st.data(), styles, cuts)
def test_any_cutting_of_the_wire_gives_the_same_requests(
    data: st.DataObject, style: HeaderStyle, cut: Callable[[bytes], Iterable[bytes]]
) -> None:
    wire = b"".join(data.draw(st.lists(wire_requests(style), max_size=12)))
    at_once = received(ServerTransmission(session(style)), [wire])
    assert received(ServerTransmission(session(style)), cut(wire)) == at_once


@given(st.data(), styles)
def test_every_admitted_request_lies_within_the_export(
    data: st.DataObject, style: HeaderStyle
) -> None:
    wire = b"".join(data.draw(st.lists(wire_requests(style), max_size=12)))
    for event in received(ServerTransmission(session(style)), [wire]):
        if isinstance(event, Request):
            assert event.offset + event.length <= SIZE
            assert event.length or event.command == 3
            assert len(event.data) == (event.length if event.command == 1 else 0)


# --- any bytes ------------------------------------------------------------------------------------


@st.composite
def mangled(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """A valid message with some of its bytes replaced, removed or added."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(data)))
        data[position : position + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


@given(st.data(), styles, st.binary(max_size=200))
def test_a_server_survives_any_bytes(data: st.DataObject, style: HeaderStyle, tail: bytes) -> None:
    machine = ServerTransmission(session(style))
    machine.receive_data(data.draw(mangled(wire_requests(style))) + tail)
    machine.receive_eof()
    try:
        while (event := machine.next_event()) is not None:
            if isinstance(event, InvalidRequest):
                machine.reply_error(event.request, event.error, event.message)
    except RemoteProtocolError:
        assert not machine.wants_data


def _option(number: int, data: bytes) -> bytes:
    return b"IHAVEOPT" + pack(">II", number, len(data)) + data


options = st.builds(
    _option,
    st.integers(0, 12),
    st.one_of(
        st.binary(max_size=60),
        st.just(b"\0\0\0\0\0\1\0\3"),
        st.just(b"\0\0\0\0\0\0\0\1\0\0\0\5base:"),
    ),
)
tls_modes = st.sampled_from(TlsMode)
DISKS = {"": MemoryDisk.of(SIZE)}


def haggle(machine: ServerNegotiation, pieces: Iterable[bytes]) -> tuple[list[object], bytes]:
    """The events of a server's handshake and all it sends, answers included."""
    events: list[object] = []
    sent = machine.data_to_send()
    try:
        for piece in pieces:
            if not machine.wants_data:
                break
            machine.receive_data(piece)
            while (event := machine.next_event()) is not None:
                events.append(event)
                answer_handshake(machine, DISKS, event)
                sent += machine.data_to_send()
            sent += machine.data_to_send()
    except RemoteProtocolError as error:
        events.append(str(error))
    return events, sent + machine.data_to_send()


@given(st.lists(mangled(options), max_size=8), tls_modes, st.sampled_from([0, 1, 3, 4]))
def test_a_server_survives_any_handshake(wire: list[bytes], tls: TlsMode, flags: int) -> None:
    events, sent = haggle(ServerNegotiation(tls=tls), [pack(">I", flags), *wire])
    assert sent.startswith(b"NBDMAGIC")
    for event in events:
        if isinstance(event, SessionStarted):
            assert tls is not TlsMode.REQUIRE or event.session.tls


@given(st.lists(options.filter(lambda o: o[11] != 5), max_size=8), cuts)
def test_any_cutting_of_the_wire_gives_the_same_handshake(
    wire: list[bytes], cut: Callable[[bytes], Iterable[bytes]]
) -> None:
    whole = pack(">I", 3) + b"".join(wire)
    assert haggle(ServerNegotiation(), cut(whole)) == haggle(ServerNegotiation(), [whole])


replies = st.builds(
    lambda option, kind, data: pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data,
    st.integers(1, 11),
    st.one_of(st.integers(1, 4), st.integers(0x80000001, 0x8000000B)),
    st.one_of(
        st.just(b""),
        st.just(pack(">HQH", 0, SIZE, 1)),
        st.just(b"\0\0\0\1base:allocation"),
        st.binary(max_size=40),
    ),
)
questions = st.sampled_from(
    [
        (Option.NBD_OPT_GO, ExportQuery("", frozenset())),
        (Option.NBD_OPT_INFO, ExportQuery("", frozenset())),
        (Option.NBD_OPT_LIST, None),
        (Option.NBD_OPT_STARTTLS, None),
        (Option.NBD_OPT_LIST_META_CONTEXT, MetaContextQuery("", ())),
        (Option.NBD_OPT_ABORT, None),
        (Option.NBD_OPT_EXPORT_NAME, ""),
    ]
)


@given(questions, st.lists(mangled(replies), max_size=5), st.booleans())
def test_a_client_survives_any_handshake(
    question: tuple[Option, Any], wire: list[bytes], renumber: bool
) -> None:
    machine = ClientNegotiation()
    machine.receive_data(b"NBDMAGICIHAVEOPT\0\3")
    assert isinstance(machine.next_event(), Greeted)
    machine.send(*question)
    if renumber:  # let the answers be about the question
        wire = [piece[:8] + pack(">I", question[0]) + piece[12:] for piece in wire]
    try:
        machine.receive_data(b"".join(wire))
        machine.receive_eof()
        while (event := machine.next_event()) is not None:
            if isinstance(event, SessionStarted | TlsWanted):
                return
    except (RemoteProtocolError, NegotiationError):
        assert machine.state is ClientState.CLOSED


@given(st.binary(max_size=300))
def test_a_client_survives_any_greeting(wire: bytes) -> None:
    machine = ClientNegotiation()
    machine.receive_data(wire)
    machine.receive_eof()
    try:
        while machine.next_event() is not None:
            pass
    except (RemoteProtocolError, NegotiationError):
        assert machine.state is ClientState.CLOSED


@st.composite
def wire_replies(draw: st.DrawFn, style: HeaderStyle) -> bytes:
    """A reply to one of the cookies 1, 2 (reads of 512 bytes at 0) and 3 (a block status)."""
    cookie = draw(st.integers(0, 4))
    kind = draw(st.sampled_from([0, 1, 1, 1, 2, 2, 5, 6, 9, 0x8001, 0x8002, 0x8003]))
    offset, length = draw(st.integers(0, 520)), draw(st.integers(0, 520))
    error = pack(">IH", draw(st.sampled_from([0, 5, 22])), 2) + b"no" + pack(">Q", offset)
    context = draw(st.integers(0, 2))
    payload = {
        1: pack(">Q", offset) + bytes(length),
        2: pack(">QI", offset, length),
        5: pack(">III", context, length, 3),
        6: pack(">IIQQ", context, 1, length, 3),
    }.get(kind, error if kind & 0x8000 else b"")
    done = draw(st.integers(0, 1))
    if style is HeaderStyle.SIMPLE or draw(st.integers(0, 9)) == 0:
        return pack(">IIQ", 0x67446698, draw(st.sampled_from([0, 0, 5])), cookie) + bytes(length)
    if style is HeaderStyle.EXTENDED:
        return pack(">IHHQQQ", 0x6E8A278C, done, kind, cookie, 0, len(payload)) + payload
    return pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(payload)) + payload


def asked(style: HeaderStyle) -> ClientTransmission:
    machine = ClientTransmission(session(style))
    machine.read(0, 512)
    machine.read(0, 512, dont_fragment=True)
    if style is not HeaderStyle.SIMPLE:
        machine.block_status(0, 512)
    return machine


def learnt(machine: ClientTransmission, pieces: Iterable[bytes]) -> list[str]:
    """The events of a client; the error last, if there is one."""
    events = []
    try:
        for piece in pieces:
            machine.receive_data(piece)
            while (event := machine.next_event()) is not None:
                parts = [bytes(p) if isinstance(p, memoryview) else repr(p) for p in event]
                events.append(f"{type(event).__name__} {parts}")
    except RemoteProtocolError as error:
        events.append(str(error))
    return events


@given(st.data(), styles)
def test_a_client_survives_any_replies(data: st.DataObject, style: HeaderStyle) -> None:
    wire = data.draw(st.lists(mangled(wire_replies(style)), max_size=6))
    machine = asked(style)
    before = machine.unanswered
    events = learnt(machine, [b"".join(wire)])
    finished = sum(event.startswith("ReplyDone") for event in events)
    assert machine.unanswered == before - finished


@given(st.data(), styles, cuts)
def test_any_cutting_of_the_wire_gives_the_same_replies(
    data: st.DataObject, style: HeaderStyle, cut: Callable[[bytes], Iterable[bytes]]
) -> None:
    wire = b"".join(data.draw(st.lists(wire_replies(style), max_size=6)))
    assert learnt(asked(style), cut(wire)) == learnt(asked(style), [wire])


# --- both machines --------------------------------------------------------------------------------

block_sizes = st.sampled_from([None, BlockSizes(1, 512, 4096), BlockSizes(512, 4096, 2**25)])


@given(
    missing=st.sets(st.sampled_from(sorted(set(Option) - {Option.NBD_OPT_EXPORT_NAME}))),
    tls=tls_modes,
    settings=st.builds(
        ClientSettings,
        export=st.sampled_from(["", "name", "unknown"]),
        tls=tls_modes,
        meta_contexts=st.sampled_from([(), (BASE_ALLOCATION,), ("x-no:such",)]),
        structured_replies=st.booleans(),
        extended_headers=st.booleans(),
    ),
    sizes=block_sizes,
    cut=cuts,
)
def test_both_sides_of_a_handshake_agree(
    missing: set[Option],
    tls: TlsMode,
    settings: ClientSettings,
    sizes: BlockSizes | None,
    cut: Callable[[bytes], Iterable[bytes]],
) -> None:
    disk = MemoryDisk.of(SIZE, "name", block_sizes=sizes)
    server = ServerNegotiation(tls=tls, unsupported=missing)
    client = ClientHandshake(settings, connect)
    try:
        ours, theirs = negotiate(server, client, {"name": disk, "": disk}, cut)
    except NegotiationError:
        refused_tls = TlsMode.REQUIRE in (tls, settings.tls)
        assert settings.export == "unknown" or refused_tls
        return
    assert ours is not None
    assert theirs is not None
    assert settings.export != "unknown"
    assert (theirs.headers, theirs.tls) == (ours.headers, ours.tls)
    assert theirs.meta_contexts == ours.meta_contexts
    assert theirs.export.size == ours.export.size
    assert theirs.export.flags == ours.export.flags
    if Option.NBD_OPT_GO not in missing:
        assert theirs.block_sizes == ours.block_sizes


aligned = st.integers(0, SIZE // 512 - 1).map(lambda n: n * 512)
actions = st.tuples(
    st.sampled_from(["read", "read", "write", "zero", "trim", "status", "flush", "cache"]),
    aligned,
    st.integers(1, 16).map(lambda n: n * 512),
    st.booleans(),
    st.integers(0, 255),
)


@given(styles, st.lists(actions, max_size=15), cuts)
def test_a_client_reads_back_what_it_wrote(
    style: HeaderStyle,
    script: list[tuple[str, int, int, bool, int]],
    cut: Callable[[bytes], Iterable[bytes]],
) -> None:
    disk = MemoryDisk.of(SIZE)
    agreed = session(style)
    pair = Pair(ClientTransmission(agreed), ServerTransmission(agreed), disk, cut)
    model = bytearray(SIZE)
    for verb, offset, wanted, option, fill in script:
        length = min(wanted, SIZE - offset)
        events = pair.exchange(*_act(pair.client, verb, offset, length, option, fill, style))
        if verb == "write":
            model[offset : offset + length] = bytes([fill]) * length
        elif verb in ("zero", "trim"):
            model[offset : offset + length] = bytes(length)
        for event in events:
            _check(event, model, offset, length)
        assert pair.client.unanswered == pair.server.unanswered == 0
    assert disk.content == model


def _act(
    client: ClientTransmission,
    verb: str,
    offset: int,
    length: int,
    option: bool,
    fill: int,
    style: HeaderStyle,
) -> list[Any]:
    match verb:
        case "read":
            whole = option and style is not HeaderStyle.SIMPLE
            return [client.read(offset, length, dont_fragment=whole)]
        case "write":
            return [client.write(offset, bytes([fill]) * length, fua=option)]
        case "zero":
            return [client.write_zeroes(offset, length, no_hole=option)]
        case "trim":
            return [client.trim(offset, length, fua=option)]
        case "cache":
            return [client.cache(offset, length)]
        case "status" if style is not HeaderStyle.SIMPLE:
            ids = [fill % 2] if style is HeaderStyle.EXTENDED and fill > 100 else []
            return [client.block_status(offset, length, one=option, contexts=ids)]
    return [client.flush()]


def _check(event: object, model: bytearray, offset: int, length: int) -> None:
    match event:
        case DataReceived():
            assert event.data == model[event.offset : event.offset + len(event.data)]
        case HoleReceived():
            assert not any(model[event.offset : event.offset + event.length])
        case StatusReceived():
            place = offset
            for extent, status in event.extents:
                if status:
                    assert not any(model[place : place + extent])
                place += extent
        case ReplyDone():
            assert event.error is None
            if event.data:
                assert event.data == model[offset : offset + length]


@given(styles, aligned, st.sampled_from(ErrorValue), st.sampled_from(["read", "write", "zero"]))
def test_a_failure_arrives_as_what_it_was(
    style: HeaderStyle, offset: int, value: ErrorValue, verb: str
) -> None:
    disk = MemoryDisk.of(SIZE)
    disk.failures[offset] = value
    agreed = session(style)
    pair = Pair(ClientTransmission(agreed), ServerTransmission(agreed), disk)
    (*_, done) = pair.exchange(*_act(pair.client, verb, offset, 512, False, 1, style))
    assert isinstance(done, ReplyDone)
    assert done.error is not None
    kept_for_others = {
        "read": {ErrorValue.NBD_ENOTSUP},
        "write": {ErrorValue.NBD_ENOTSUP, ErrorValue.NBD_EOVERFLOW},
        "zero": {ErrorValue.NBD_ENOTSUP},
    }
    expected = ErrorValue.NBD_EINVAL if value in kept_for_others[verb] else value
    assert done.error.value is expected
    assert isinstance(done.error, VdiskError)


@given(st.data(), styles)
def test_a_server_answers_everything_that_it_admits(
    data: st.DataObject, style: HeaderStyle
) -> None:
    """Whatever is asked, each request gets one whole reply and no answer is refused."""
    agreed = session(style)
    disk = MemoryDisk.of(SIZE)
    machine = ServerTransmission(agreed)
    machine.receive_data(b"".join(data.draw(st.lists(wire_requests(style), max_size=12))))
    try:
        while (event := machine.next_event()) is not None:
            if isinstance(event, Request):
                assert answer(machine, disk, event)
            elif isinstance(event, InvalidRequest):
                assert machine.reply_error(event.request, event.error, event.message)
    except LocalProtocolError:
        raise
    except RemoteProtocolError:
        pass
    assert machine.unanswered == 0
