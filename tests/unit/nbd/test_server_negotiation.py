"""The server's handshake, against bytes written by hand."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError
from vdisk.nbd.events import (
    ExportsWanted,
    ExportWanted,
    NegotiationAborted,
    SessionStarted,
    TlsWanted,
)
from vdisk.nbd.limits import Limits
from vdisk.nbd.server_negotiation import ServerNegotiation, State
from vdisk.nbd.session import BlockSizes, ExportInfo, HeaderStyle, MetaContext, TlsMode
from vdisk.nbd.wire import Option, OptionReply, TransmissionFlag

FIXED, NO_ZEROES = 1, 2
ACK = OptionReply.NBD_REP_ACK
INFO = OptionReply.NBD_REP_INFO
UNSUP = OptionReply.NBD_REP_ERR_UNSUP
INVALID = OptionReply.NBD_REP_ERR_INVALID
TLS_REQD = OptionReply.NBD_REP_ERR_TLS_REQD
UNKNOWN = OptionReply.NBD_REP_ERR_UNKNOWN

DISK = ExportInfo(
    "disk",
    1 << 20,
    TransmissionFlag.NBD_FLAG_SEND_FLUSH | TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO,
    description="a disk",
    meta_contexts=("base:allocation", "qemu:allocation-depth"),
)


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + pack(">II", number, len(data)) + data


def query(name: str, *requests: int) -> bytes:
    return pack(
        f">I{len(name)}sH{len(requests)}H", len(name), name.encode(), len(requests), *requests
    )


def contexts(name: str, *queries: str) -> bytes:
    data = pack(f">I{len(name)}sI", len(name), name.encode(), len(queries))
    return data + b"".join(pack(">I", len(text)) + text.encode() for text in queries)


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, reply, data) of each option reply."""
    found = []
    while data:
        magic, number, reply, length = unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        found.append((number, reply, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def greeted(flags: int = FIXED | NO_ZEROES, **arguments: object) -> ServerNegotiation:
    machine = ServerNegotiation(**arguments)  # type: ignore[arg-type]
    assert machine.data_to_send() == b"NBDMAGICIHAVEOPT\0\3"
    machine.receive_data(pack(">I", flags))
    assert machine.next_event() is None
    return machine


def ask(machine: ServerNegotiation, number: int, data: bytes = b"") -> list[tuple[int, int, bytes]]:
    """Send an option that the machine answers by itself."""
    machine.receive_data(option(number, data))
    assert machine.next_event() is None
    return replies(machine.data_to_send())


def go(
    machine: ServerNegotiation, *requests: int, export: ExportInfo = DISK, name: str = "disk"
) -> list[tuple[int, int, bytes]]:
    machine.receive_data(option(Option.NBD_OPT_GO, query(name, *requests)))
    assert machine.next_event() == ExportWanted(name, Option.NBD_OPT_GO)
    machine.send_export(export)
    return replies(machine.data_to_send())


# --- the ways into transmission -------------------------------------------------------------------


def test_go_with_every_information() -> None:
    machine = greeted()
    sized = ExportInfo("disk", 1 << 20, DISK.flags, "a disk", BlockSizes(512, 4096, 1 << 20))
    answers = go(machine, 3, 2, 1, export=sized)
    assert answers == [
        (7, INFO, pack(">HQH", 0, 1 << 20, 0b101)),
        (7, INFO, b"\0\1disk"),
        (7, INFO, b"\0\2a disk"),
        (7, INFO, pack(">HIII", 3, 512, 4096, 1 << 20)),
        (7, ACK, b""),
    ]
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.headers is HeaderStyle.SIMPLE
    assert event.session.export.flags == TransmissionFlag(0b101)
    assert event.session.block_sizes == BlockSizes(512, 4096, 1 << 20)
    assert machine.state is State.TRANSMISSION
    assert not machine.wants_data


def test_go_sends_only_what_was_asked_for_and_what_matters() -> None:
    assert [data[:2] for _, _, data in go(greeted())] == [b"\0\0", b""]


@pytest.mark.parametrize(("flags", "padding"), [(FIXED, 124), (FIXED | NO_ZEROES, 0), (0, 124)])
def test_export_name(flags: int, padding: int) -> None:
    machine = greeted(flags)
    machine.receive_data(option(Option.NBD_OPT_EXPORT_NAME, b"disk") + b"trailing")
    assert machine.next_event() == ExportWanted("disk", Option.NBD_OPT_EXPORT_NAME)
    machine.send_export(DISK)
    assert machine.data_to_send() == pack(">QH", 1 << 20, 0b101) + bytes(padding)
    assert isinstance(machine.next_event(), SessionStarted)
    assert machine.trailing_data == b"trailing"


def test_export_name_of_an_unknown_export_ends_the_connection() -> None:
    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_EXPORT_NAME, b"other"))
    machine.next_event()
    machine.refuse(message="no such export")
    assert machine.data_to_send() == b""
    assert machine.next_event() == NegotiationAborted("no such export")
    assert machine.state is State.CLOSED


def test_go_to_an_unknown_export_can_be_tried_again() -> None:
    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_GO, query("other")))
    machine.next_event()
    machine.refuse(message="no other")
    assert replies(machine.data_to_send()) == [(7, UNKNOWN, b"no other")]
    assert go(machine)[-1] == (7, ACK, b"")


def test_info_does_not_start_transmission() -> None:
    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_INFO, query("disk")))
    assert machine.next_event() == ExportWanted("disk", Option.NBD_OPT_INFO)
    machine.send_export(DISK)
    assert replies(machine.data_to_send())[-1] == (6, ACK, b"")
    assert machine.next_event() is None
    assert machine.wants_data


def test_an_export_that_insists_on_its_block_sizes() -> None:
    strict = ExportInfo(
        "disk", 1 << 20, block_sizes=BlockSizes(4096, 4096, 2**25), block_sizes_required=True
    )
    machine = greeted()
    answers = go(machine, export=strict)
    assert [reply for _, reply, _ in answers] == [
        INFO,
        INFO,
        OptionReply.NBD_REP_ERR_BLOCK_SIZE_REQD,
    ]
    assert answers[1][2] == pack(">HIII", 3, 4096, 4096, 2**25)
    assert go(machine, 3, export=strict)[-1] == (7, ACK, b"")

    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_EXPORT_NAME, b"disk"))
    machine.next_event()
    machine.send_export(strict)
    assert isinstance(machine.next_event(), NegotiationAborted)


# --- reply styles and meta contexts ---------------------------------------------------------------


def test_structured_replies_bring_df() -> None:
    machine = greeted()
    assert ask(machine, Option.NBD_OPT_STRUCTURED_REPLY) == [(8, ACK, b"")]
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.headers is HeaderStyle.STRUCTURED
    assert TransmissionFlag.NBD_FLAG_SEND_DF in event.session.export.flags


def test_extended_headers_take_precedence() -> None:
    machine = greeted()
    assert ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)[0][1] == ACK
    assert ask(machine, Option.NBD_OPT_EXTENDED_HEADERS)[0][1] == ACK
    refusal = ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)[0][1]
    assert refusal == OptionReply.NBD_REP_ERR_EXT_HEADER_REQD
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.headers is HeaderStyle.EXTENDED
    # No meta context was selected: no use for a choice among them.
    assert TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD not in event.session.export.flags


@pytest.mark.parametrize("number", [8, 11])
def test_a_style_is_negotiated_once(number: int) -> None:
    machine = greeted()
    assert ask(machine, number)[0][1] == ACK
    assert ask(machine, number)[0][1] == INVALID
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.headers is not HeaderStyle.SIMPLE


@pytest.mark.parametrize("extended", [False, True])
def test_info_tells_of_payloads_before_contexts_are_selected(extended: bool) -> None:
    machine = greeted()
    ask(machine, 11 if extended else 8)
    machine.receive_data(option(Option.NBD_OPT_INFO, query("disk")))
    assert isinstance(machine.next_event(), ExportWanted)
    machine.send_export(DISK)
    information = replies(machine.data_to_send())[0][2]
    payload = int(TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD)
    assert bool(int.from_bytes(information[-2:], "big") & payload) is extended


def test_export_name_after_extended_headers_is_a_violation() -> None:
    machine = greeted()
    ask(machine, Option.NBD_OPT_EXTENDED_HEADERS)
    machine.receive_data(option(Option.NBD_OPT_EXPORT_NAME, b"disk"))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


def select(machine: ServerNegotiation, number: int, *queries: str) -> list[tuple[int, int, bytes]]:
    machine.receive_data(option(number, contexts("disk", *queries)))
    assert machine.next_event() == ExportWanted("disk", Option(number))
    machine.send_export(DISK)
    return replies(machine.data_to_send())


def test_selected_contexts_hold_for_their_export() -> None:
    machine = greeted()
    ask(machine, Option.NBD_OPT_EXTENDED_HEADERS)
    answers = select(machine, 10, "qemu:allocation-depth", "base:allocation", "x-no:such")
    assert answers == [
        (10, OptionReply.NBD_REP_META_CONTEXT, b"\0\0\0\0base:allocation"),
        (10, OptionReply.NBD_REP_META_CONTEXT, b"\0\0\0\1qemu:allocation-depth"),
        (10, ACK, b""),
    ]
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.meta_contexts == (
        MetaContext(0, "base:allocation"),
        MetaContext(1, "qemu:allocation-depth"),
    )
    assert TransmissionFlag.NBD_FLAG_BLOCK_STATUS_PAYLOAD in event.session.export.flags


@pytest.mark.parametrize("spoil", ["another export", "a failed selection", "an empty selection"])
def test_contexts_are_lost(spoil: str) -> None:
    machine = greeted()
    ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    select(machine, 10, "base:allocation")
    name = "disk"
    if spoil == "another export":
        name = ""
    elif spoil == "a failed selection":
        assert ask(machine, 10, b"garbage")[0][1] == INVALID
    else:
        assert select(machine, 10) == [(10, ACK, b"")]
    go(machine, name=name)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.meta_contexts == ()


def test_listed_contexts_are_not_selected() -> None:
    machine = greeted()
    ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    answers = select(machine, 9)
    assert [data for _, _, data in answers] == [
        b"\0\0\0\0base:allocation",
        b"\0\0\0\0qemu:allocation-depth",
        b"",
    ]
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.meta_contexts == ()


def test_contexts_are_selected_after_structured_replies_and_listed_at_any_time() -> None:
    machine = greeted()
    assert ask(machine, Option.NBD_OPT_SET_META_CONTEXT, contexts("disk"))[0][1] == INVALID
    machine.receive_data(option(Option.NBD_OPT_LIST_META_CONTEXT, contexts("disk")))
    assert isinstance(machine.next_event(), ExportWanted)


def test_a_query_without_namespace_is_invalid() -> None:
    machine = greeted()
    ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    assert select(machine, 10, "base:allocation", "nonsense")[0][1] == INVALID


# --- other options --------------------------------------------------------------------------------


def test_the_list_of_exports() -> None:
    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_LIST))
    assert machine.next_event() == ExportsWanted()
    assert not machine.wants_data
    machine.send_exports([("a", ""), ("b", "text")])
    assert replies(machine.data_to_send()) == [
        (3, OptionReply.NBD_REP_SERVER, b"\0\0\0\1a"),
        (3, OptionReply.NBD_REP_SERVER, b"\0\0\0\1btext"),
        (3, ACK, b""),
    ]


def test_the_list_may_be_refused() -> None:
    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_LIST))
    machine.next_event()
    machine.refuse(OptionReply.NBD_REP_ERR_POLICY, "not for you")
    answers = replies(machine.data_to_send())
    assert answers == [(3, OptionReply.NBD_REP_ERR_POLICY, b"not for you")]


@pytest.mark.parametrize("data", [b"", b"ignored"])
def test_abort(data: bytes) -> None:
    machine = greeted()
    machine.receive_data(option(Option.NBD_OPT_ABORT, data))
    assert machine.next_event() == NegotiationAborted("NBD_OPT_ABORT")
    assert replies(machine.data_to_send()) == [(2, ACK, b"")]


@pytest.mark.parametrize("number", [0, 4, 12, 0xFFFFFFFF])
def test_unknown_options_are_skipped(number: int) -> None:
    machine = greeted()
    assert ask(machine, number, b"whatever")[0][:2] == (number, UNSUP)
    assert go(machine)[-1] == (7, ACK, b"")


def test_options_that_a_server_was_told_not_to_know() -> None:
    machine = greeted(unsupported=[Option.NBD_OPT_GO])
    assert ask(machine, Option.NBD_OPT_GO, query("disk"))[0][1] == UNSUP


@pytest.mark.parametrize(
    "number",
    [
        Option.NBD_OPT_LIST,
        Option.NBD_OPT_STARTTLS,
        Option.NBD_OPT_STRUCTURED_REPLY,
        Option.NBD_OPT_EXTENDED_HEADERS,
    ],
)
def test_options_that_have_no_data(number: int) -> None:
    assert ask(greeted(tls=TlsMode.ALLOW), number, b"x")[0][1] == INVALID


@pytest.mark.parametrize("number", [6, 7])
def test_malformed_data(number: int) -> None:
    assert ask(greeted(), number, b"\0\0\0\5disk\0\0")[0][1] == INVALID


def test_too_much_data_is_skipped_not_stored() -> None:
    machine = greeted(limits=Limits(option_data=1000, skipped=100_000))
    machine.receive_data(b"IHAVEOPT" + pack(">II", Option.NBD_OPT_INFO, 50_000))
    for _ in range(50):
        assert machine.next_event() is None
        machine.receive_data(bytes(1000))
    assert machine.next_event() is None
    too_big = OptionReply.NBD_REP_ERR_TOO_BIG
    assert replies(machine.data_to_send()) == [(6, too_big, b"too much data")]
    assert go(machine)[-1] == (7, ACK, b"")


# --- TLS ------------------------------------------------------------------------------------------


def secured(mode: TlsMode) -> ServerNegotiation:
    machine = greeted(tls=mode)
    machine.receive_data(option(Option.NBD_OPT_STARTTLS))
    assert machine.next_event() == TlsWanted()
    assert replies(machine.data_to_send()) == [(5, ACK, b"")]
    assert not machine.wants_data
    machine.tls_started()
    assert machine.wants_data
    return machine


@pytest.mark.parametrize("mode", [TlsMode.ALLOW, TlsMode.REQUIRE])
def test_starttls(mode: TlsMode) -> None:
    machine = secured(mode)
    assert machine.tls_active
    assert ask(machine, Option.NBD_OPT_STARTTLS)[0][1] == INVALID
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.tls


def test_starttls_forgets_what_was_negotiated_in_the_clear() -> None:
    machine = greeted(tls=TlsMode.ALLOW)
    ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    select(machine, 10, "base:allocation")
    machine.receive_data(option(Option.NBD_OPT_STARTTLS))
    machine.next_event()
    machine.data_to_send()
    machine.tls_started()
    go(machine)
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.headers is HeaderStyle.SIMPLE
    assert event.session.meta_contexts == ()


def test_plain_text_slipped_in_before_tls_ends_the_connection() -> None:
    machine = greeted(tls=TlsMode.ALLOW)
    machine.receive_data(option(Option.NBD_OPT_STARTTLS) + option(Option.NBD_OPT_LIST))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


def test_without_tls_the_option_is_refused() -> None:
    answers = ask(greeted(), Option.NBD_OPT_STARTTLS)
    assert answers[0][1] == OptionReply.NBD_REP_ERR_POLICY


@pytest.mark.parametrize("number", [3, 4, 6, 7, 8, 9, 10, 11, 99])
def test_forced_tls_refuses_all_else(number: int) -> None:
    assert ask(greeted(tls=TlsMode.REQUIRE), number, b"x")[0][1] == TLS_REQD


def test_forced_tls_can_be_left() -> None:
    machine = greeted(tls=TlsMode.REQUIRE)
    machine.receive_data(option(Option.NBD_OPT_ABORT))
    assert isinstance(machine.next_event(), NegotiationAborted)


def test_forced_tls_ends_at_export_name() -> None:
    machine = greeted(tls=TlsMode.REQUIRE)
    machine.receive_data(option(Option.NBD_OPT_EXPORT_NAME, b"disk"))
    assert isinstance(machine.next_event(), NegotiationAborted)
    assert machine.data_to_send() == b""


SECRET = ExportInfo("disk", 1 << 20, meta_contexts=("base:allocation",), tls_required=True)


def test_a_tls_only_export_says_nothing_in_the_clear() -> None:
    machine = greeted(tls=TlsMode.ALLOW)
    assert [reply for _, reply, _ in go(machine, export=SECRET)] == [TLS_REQD]
    ask(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    machine.receive_data(option(9, contexts("disk")))
    machine.next_event()
    machine.send_export(SECRET)
    assert [reply for _, reply, _ in replies(machine.data_to_send())] == [UNKNOWN]


def test_a_tls_only_export_over_tls() -> None:
    assert go(secured(TlsMode.ALLOW), export=SECRET)[-1] == (7, ACK, b"")


# --- the end, and violations ----------------------------------------------------------------------


def test_shutting_down() -> None:
    machine = greeted()
    machine.shut_down()
    assert ask(machine, 7, query("disk"))[0][1] == OptionReply.NBD_REP_ERR_SHUTDOWN
    machine.receive_data(option(Option.NBD_OPT_ABORT))
    assert machine.next_event() == NegotiationAborted("NBD_OPT_ABORT")


def test_the_client_leaves() -> None:
    machine = greeted()
    machine.receive_eof()
    assert isinstance(machine.next_event(), NegotiationAborted)


@pytest.mark.parametrize("flags", [4, 0x80000000, 7])
def test_client_flags_that_were_not_offered(flags: int) -> None:
    machine = ServerNegotiation()
    machine.receive_data(pack(">I", flags))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


@pytest.mark.parametrize(
    "data",
    [
        b"IHAVEOPX" + bytes(8),
        b"IHAVEOPT" + pack(">II", 7, 2**25 + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_violations(data: bytes) -> None:
    machine = greeted()
    machine.receive_data(data)
    with pytest.raises(RemoteProtocolError):
        machine.next_event()
    assert machine.state is State.CLOSED


def test_options_before_fixed_newstyle_was_agreed() -> None:
    machine = greeted(0)
    machine.receive_data(option(Option.NBD_OPT_LIST))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


def test_endless_options() -> None:
    machine = greeted(limits=Limits(options=3))
    for _ in range(3):
        assert ask(machine, 99)[0][1] == UNSUP
    machine.receive_data(option(99))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


# --- misuse ---------------------------------------------------------------------------------------


def test_answers_without_question() -> None:
    machine = greeted()
    with pytest.raises(LocalProtocolError):
        machine.send_export(DISK)
    with pytest.raises(LocalProtocolError):
        machine.refuse()
    machine.receive_data(option(Option.NBD_OPT_LIST))
    machine.next_event()
    with pytest.raises(LocalProtocolError):
        machine.send_export(DISK)
    with pytest.raises(LocalProtocolError):
        machine.refuse(OptionReply.NBD_REP_ACK)
    with pytest.raises(InvalidRequestError):
        machine.send_exports([("bad\0name", "")])
    machine.send_exports([])  # the question is still open


def test_tls_started_without_starttls() -> None:
    with pytest.raises(LocalProtocolError):
        greeted().tls_started()


def test_data_during_the_tls_handshake() -> None:
    machine = greeted(tls=TlsMode.ALLOW)
    machine.receive_data(option(Option.NBD_OPT_STARTTLS))
    machine.next_event()
    with pytest.raises(LocalProtocolError):
        machine.receive_data(b"\x16\x03")


def test_more_data_than_the_buffer_may_hold() -> None:
    machine = greeted(limits=Limits(receive_buffer=100))
    with pytest.raises(LocalProtocolError):
        machine.receive_data(bytes(101))
