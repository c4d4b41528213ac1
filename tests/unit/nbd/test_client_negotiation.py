"""The client's handshake, against bytes written by hand."""

from __future__ import annotations

from struct import pack

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.nbd.client_negotiation import ClientNegotiation, State
from vdisk.nbd.errors import LocalProtocolError, NegotiationError, RemoteProtocolError
from vdisk.nbd.events import Greeted, OptionDone, SessionStarted, TlsWanted
from vdisk.nbd.limits import Limits
from vdisk.nbd.options import ExportQuery, MetaContextQuery
from vdisk.nbd.session import BlockSizes, HandshakeStyle, HeaderStyle, MetaContext
from vdisk.nbd.wire import Option, OptionReply, TransmissionFlag

ACK = OptionReply.NBD_REP_ACK
QUERY = ExportQuery("disk", frozenset())
CONTEXTS = MetaContextQuery("disk", ("base:allocation",))


def greeted(flags: int = 3, limits: Limits | None = None) -> ClientNegotiation:
    machine = ClientNegotiation(limits=limits or Limits())
    machine.receive_data(b"NBDMAGICIHAVEOPT" + pack(">H", flags))
    style = HandshakeStyle.FIXED_NEWSTYLE if flags & 1 else HandshakeStyle.NEWSTYLE
    assert machine.next_event() == Greeted(style)
    assert machine.data_to_send() == pack(">I", flags & 3)
    return machine


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def done(machine: ClientNegotiation, option: Option, *answers: bytes) -> OptionDone:
    for answer in answers:
        machine.receive_data(answer)
    event = machine.next_event()
    assert isinstance(event, OptionDone)
    assert event.option is option
    return event


def accept(machine: ClientNegotiation, option: Option) -> None:
    machine.send(option)
    assert machine.data_to_send() == b"IHAVEOPT" + pack(">II", option, 0)
    assert done(machine, option, reply(option, ACK)).accepted


def test_unknown_handshake_flags_are_ignored() -> None:
    greeted(0xFFFF)


def test_go() -> None:
    machine = greeted()
    accept(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    machine.send(Option.NBD_OPT_SET_META_CONTEXT, CONTEXTS)
    machine.data_to_send()
    selected = done(
        machine,
        Option.NBD_OPT_SET_META_CONTEXT,
        reply(10, 4, b"\0\0\0\7base:allocation"),
        reply(10, ACK),
    )
    assert selected.contexts == (MetaContext(7, "base:allocation"),)
    machine.send(Option.NBD_OPT_GO, QUERY)
    assert machine.data_to_send() == b"IHAVEOPT\0\0\0\7\0\0\0\x0a\0\0\0\4disk\0\0"
    machine.receive_data(
        reply(7, 3, pack(">HQH", 0, 1 << 20, 0x81))
        + reply(7, 3, b"\0\2a disk")
        + reply(7, 3, b"\x12\x34unknown")
        + reply(7, 3, pack(">HIII", 3, 1, 4096, 1 << 20))
        + reply(7, ACK)
        + b"trailing"
    )
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    export = event.session.export
    assert (export.name, export.size, export.description) == ("disk", 1 << 20, "a disk")
    assert export.flags == TransmissionFlag(0x81)
    assert export.block_sizes == BlockSizes(1, 4096, 1 << 20)
    assert event.session.headers is HeaderStyle.STRUCTURED
    assert event.session.meta_contexts == selected.contexts
    assert machine.trailing_data == b"trailing"


def test_the_server_may_name_an_export_differently() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_INFO, QUERY)
    info = reply(6, 3, pack(">HQH", 0, 1, 1)), reply(6, 3, b"\0\1canonical"), reply(6, ACK)
    event = done(machine, Option.NBD_OPT_INFO, *info)
    assert event.export is not None
    assert event.export.name == "canonical"
    assert machine.state is State.READY


@pytest.mark.parametrize(("flags", "padding"), [(1, 124), (3, 0), (0, 124), (2, 0)])
def test_export_name(flags: int, padding: int) -> None:
    machine = greeted(flags)
    machine.send(Option.NBD_OPT_EXPORT_NAME, "disk")
    assert machine.data_to_send() == b"IHAVEOPT\0\0\0\1\0\0\0\4disk"
    machine.receive_data(pack(">QH", 1 << 20, 3) + bytes(padding)[:-1])
    assert machine.next_event() is None or not padding
    if padding:
        machine.receive_data(b"\0")
        assert isinstance(machine.next_event(), SessionStarted)


def test_export_name_refused() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_EXPORT_NAME, "disk")
    machine.receive_eof()
    with pytest.raises(NegotiationError, match="disk"):
        machine.next_event()


def test_oldstyle() -> None:
    machine = ClientNegotiation()
    magic = pack(">Q", 0x00420281861253)
    machine.receive_data(b"NBDMAGIC" + magic + pack(">QI", 1 << 20, 0x30003) + bytes(124))
    assert machine.next_event() == Greeted(HandshakeStyle.OLDSTYLE)
    assert machine.data_to_send() == b""
    event = machine.next_event()
    assert isinstance(event, SessionStarted)
    assert event.session.export.size == 1 << 20
    assert event.session.export.flags == TransmissionFlag(3)


def test_the_list_of_exports() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_LIST)
    answers = reply(3, 2, b"\0\0\0\1atext"), reply(3, 2, b"\0\0\0\0"), reply(3, ACK)
    assert done(machine, Option.NBD_OPT_LIST, *answers).exports == (("a", "text"), ("", ""))


def test_an_error_discards_what_came_before_it() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_LIST)
    error = reply(3, OptionReply.NBD_REP_ERR_SHUTDOWN, b"bye")
    event = done(machine, Option.NBD_OPT_LIST, reply(3, 2, b"\0\0\0\1a"), error)
    assert event == OptionDone(Option.NBD_OPT_LIST, OptionReply.NBD_REP_ERR_SHUTDOWN, "bye")
    assert not event.accepted


def test_an_error_reply_nobody_knows() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_LIST)
    event = done(machine, Option.NBD_OPT_LIST, reply(3, 0x80001234, b"\xff not UTF-8"))
    assert (event.reply, event.message) == (0x80001234, "")


def test_starttls_forgets_what_was_negotiated_in_the_clear() -> None:
    machine = greeted()
    accept(machine, Option.NBD_OPT_EXTENDED_HEADERS)
    assert machine.headers is HeaderStyle.EXTENDED
    machine.send(Option.NBD_OPT_STARTTLS)
    machine.receive_data(reply(5, ACK))
    assert machine.next_event() == TlsWanted()
    assert not machine.wants_data
    machine.tls_started()
    assert machine.next_event() == OptionDone(Option.NBD_OPT_STARTTLS, ACK)
    assert machine.headers is HeaderStyle.SIMPLE
    assert machine.tls_active
    with pytest.raises(LocalProtocolError):
        machine.send(Option.NBD_OPT_STARTTLS)


def test_plain_text_slipped_in_before_tls_ends_the_connection() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_STARTTLS)
    machine.receive_data(reply(5, ACK) + reply(3, ACK))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


@pytest.mark.parametrize("closes", [False, True])
def test_abort(closes: bool) -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_ABORT)
    if closes:
        machine.receive_eof()
    else:
        machine.receive_data(reply(2, ACK))
    assert machine.next_event() == OptionDone(Option.NBD_OPT_ABORT, ACK)
    assert machine.state is State.CLOSED


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"NBDMAGIC" + bytes(8),
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
    ],
)
def test_not_an_nbd_server(greeting: bytes) -> None:
    machine = ClientNegotiation()
    machine.receive_data(greeting)
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


def test_the_server_leaves() -> None:
    machine = greeted()
    machine.receive_eof()
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


@pytest.mark.parametrize(
    "answer",
    [
        pack(">QIII", 0x3E889045565A8, 7, ACK, 0),
        reply(6, ACK),
        reply(7, ACK),
        reply(7, ACK, b"data"),
        reply(7, 2, b"\0\0\0\1a"),
        reply(7, 4, b"\0\0\0\1base:x"),
        reply(7, 5),
        reply(7, 0),
        reply(7, 3, b"\0"),
        reply(7, 3, pack(">HQ", 0, 1)),
        reply(7, 3, pack(">HIII", 3, 3, 4096, 4096)),
        reply(7, 3, b"\0\1\xff"),
        reply(7, 3, pack(">HQH", 0, 2**63, 1)) + reply(7, ACK),
        pack(">QIII", 0x3E889045565A9, 7, 3, 2**31),
    ],
)
def test_a_lying_server(answer: bytes) -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_GO, QUERY)
    machine.receive_data(answer)
    with pytest.raises(RemoteProtocolError):
        machine.next_event()
    assert machine.state is State.CLOSED


def test_two_contexts_with_one_id() -> None:
    machine = greeted()
    accept(machine, Option.NBD_OPT_STRUCTURED_REPLY)
    machine.send(Option.NBD_OPT_SET_META_CONTEXT, CONTEXTS)
    machine.receive_data(reply(10, 4, b"\0\0\0\1a:b") + reply(10, 4, b"\0\0\0\1a:c"))
    machine.receive_data(reply(10, ACK))
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


@pytest.mark.parametrize("limits", [Limits(option_replies=10), Limits(option_replies_data=60)])
def test_endless_replies(limits: Limits) -> None:
    machine = greeted(limits=limits)
    machine.send(Option.NBD_OPT_LIST)
    for _ in range(20):
        machine.receive_data(reply(3, 2, b"\0\0\0\2ab"))
    with pytest.raises(RemoteProtocolError, match="endless"):
        machine.next_event()


def test_one_option_at_a_time() -> None:
    machine = greeted()
    machine.send(Option.NBD_OPT_LIST)
    with pytest.raises(LocalProtocolError):
        machine.send(Option.NBD_OPT_ABORT)


def test_no_options_before_the_greeting() -> None:
    with pytest.raises(LocalProtocolError):
        ClientNegotiation().send(Option.NBD_OPT_LIST)


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (Option.NBD_OPT_GO, "disk"),
        (Option.NBD_OPT_EXPORT_NAME, None),
        (Option.NBD_OPT_LIST, "disk"),
        (Option.NBD_OPT_SET_META_CONTEXT, CONTEXTS),
        (Option.NBD_OPT_EXPORT_NAME, "nul\0"),
    ],
)
def test_options_sent_wrongly(option: Option, data: object) -> None:
    machine = greeted()
    with pytest.raises((LocalProtocolError, InvalidRequestError)):
        machine.send(option, data)  # type: ignore[arg-type]
    assert machine.state is State.READY
    assert machine.data_to_send() == b""


def test_a_newstyle_server_takes_one_option_only() -> None:
    machine = greeted(0)
    with pytest.raises(LocalProtocolError):
        machine.send(Option.NBD_OPT_GO, QUERY)


def test_export_name_cannot_follow_extended_headers() -> None:
    machine = greeted()
    accept(machine, Option.NBD_OPT_EXTENDED_HEADERS)
    with pytest.raises(LocalProtocolError):
        machine.send(Option.NBD_OPT_EXPORT_NAME, "disk")
