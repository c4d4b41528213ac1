"""What a client makes of servers that know less than it does."""

from __future__ import annotations

import pytest

from tests.tools.nbd_pair import MemoryDisk, negotiate
from vdisk.nbd.connect import (
    ClientHandshake,
    ClientSettings,
    connect,
    describe_export,
    list_exports,
)
from vdisk.nbd.errors import NegotiationError
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.session import ExportInfo, HeaderStyle, MetaContext, Session, TlsMode
from vdisk.nbd.wire import Option, OptionReply

DISK = MemoryDisk.of(1 << 20, "disk", description="a disk")
DISKS = {"disk": DISK, "": DISK}


def opened(settings: ClientSettings, **server: object) -> Session:
    """Connect; both sides must agree on everything that matters afterwards."""
    machine = ServerNegotiation(**server)  # type: ignore[arg-type]
    ours, theirs = negotiate(machine, ClientHandshake(settings, connect), DISKS)
    assert ours is not None
    assert isinstance(theirs, Session)
    assert theirs.headers is ours.headers
    assert theirs.meta_contexts == ours.meta_contexts
    assert theirs.tls is ours.tls
    assert theirs.export.size == ours.export.size
    assert theirs.export.flags == ours.export.flags
    return theirs


def test_the_best_there_is() -> None:
    session = opened(ClientSettings("disk"))
    assert session.headers is HeaderStyle.EXTENDED
    assert session.meta_contexts == (MetaContext(0, "base:allocation"),)
    assert session.export.description == "a disk"


@pytest.mark.parametrize(
    ("missing", "style"),
    [
        ({Option.NBD_OPT_EXTENDED_HEADERS}, HeaderStyle.STRUCTURED),
        (
            {Option.NBD_OPT_EXTENDED_HEADERS, Option.NBD_OPT_STRUCTURED_REPLY},
            HeaderStyle.SIMPLE,
        ),
        ({Option.NBD_OPT_SET_META_CONTEXT}, HeaderStyle.EXTENDED),
        ({Option.NBD_OPT_GO, Option.NBD_OPT_EXTENDED_HEADERS}, HeaderStyle.STRUCTURED),
        (set(Option) - {Option.NBD_OPT_EXPORT_NAME}, HeaderStyle.SIMPLE),
    ],
)
def test_falling_back(missing: set[Option], style: HeaderStyle) -> None:
    session = opened(ClientSettings("disk"), unsupported=missing)
    assert session.headers is style
    without_contexts = style is HeaderStyle.SIMPLE or Option.NBD_OPT_SET_META_CONTEXT in missing
    assert bool(session.meta_contexts) is not without_contexts


def test_styles_that_are_switched_off() -> None:
    settings = ClientSettings("disk", extended_headers=False)
    assert opened(settings).headers is HeaderStyle.STRUCTURED
    settings = ClientSettings("disk", extended_headers=False, structured_replies=False)
    assert opened(settings).headers is HeaderStyle.SIMPLE


def test_the_default_export_by_its_canonical_name() -> None:
    session = opened(ClientSettings())
    assert session.export.name == "disk"
    assert session.meta_contexts


@pytest.mark.parametrize(
    ("client", "server", "secured"),
    [
        (TlsMode.OFF, TlsMode.OFF, False),
        (TlsMode.OFF, TlsMode.ALLOW, False),
        (TlsMode.ALLOW, TlsMode.OFF, False),
        (TlsMode.ALLOW, TlsMode.ALLOW, True),
        (TlsMode.ALLOW, TlsMode.REQUIRE, True),
        (TlsMode.REQUIRE, TlsMode.ALLOW, True),
        (TlsMode.REQUIRE, TlsMode.REQUIRE, True),
    ],
)
def test_tls(client: TlsMode, server: TlsMode, secured: bool) -> None:
    assert opened(ClientSettings("disk", tls=client), tls=server).tls is secured


@pytest.mark.parametrize(
    ("client", "server", "reply"),
    [
        (TlsMode.OFF, TlsMode.REQUIRE, OptionReply.NBD_REP_ERR_TLS_REQD),
        (TlsMode.REQUIRE, TlsMode.OFF, OptionReply.NBD_REP_ERR_POLICY),
    ],
)
def test_tls_that_one_side_refuses(client: TlsMode, server: TlsMode, reply: OptionReply) -> None:
    handshake = ClientHandshake(ClientSettings("disk", tls=client), connect)
    machine = ServerNegotiation(tls=server)
    with pytest.raises(NegotiationError) as caught:
        negotiate(machine, handshake, DISKS)
    assert caught.value.reply is reply
    assert handshake.data_to_send().startswith(b"IHAVEOPT\0\0\0\2")  # NBD_OPT_ABORT


@pytest.mark.parametrize("extended", [True, False])
def test_an_unknown_export(extended: bool) -> None:
    handshake = ClientHandshake(ClientSettings("other", extended_headers=extended), connect)
    with pytest.raises(NegotiationError, match="other") as caught:
        negotiate(ServerNegotiation(), handshake, DISKS)
    assert caught.value.reply is OptionReply.NBD_REP_ERR_UNKNOWN
    assert handshake.data_to_send().startswith(b"IHAVEOPT\0\0\0\2")


def test_a_server_that_shuts_down() -> None:
    machine = ServerNegotiation()
    machine.shut_down()
    with pytest.raises(NegotiationError, match="shutting down"):
        negotiate(machine, ClientHandshake(ClientSettings(), connect), DISKS)


OLD = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + (1 << 20).to_bytes(8, "big") + bytes(128)
NEW = b"NBDMAGICIHAVEOPT\0\0"


@pytest.mark.parametrize(
    ("greeting", "settings"),
    [
        (OLD, ClientSettings("name")),
        (OLD, ClientSettings(tls=TlsMode.REQUIRE)),
        (NEW, ClientSettings(tls=TlsMode.REQUIRE)),
    ],
)
def test_old_servers_that_offer_too_little(greeting: bytes, settings: ClientSettings) -> None:
    handshake = ClientHandshake(settings, connect)
    handshake.receive_data(greeting)
    with pytest.raises(NegotiationError):
        handshake.next_event()
    assert not handshake.data_to_send().startswith(b"IHAVEOPT")


@pytest.mark.parametrize("greeting", [OLD, NEW])
def test_old_servers_answer_no_questions(greeting: bytes) -> None:
    handshake = ClientHandshake(ClientSettings(), list_exports)
    handshake.receive_data(greeting)
    with pytest.raises(NegotiationError, match="no questions"):
        handshake.next_event()


def test_listing_exports() -> None:
    hidden = MemoryDisk.of(4096, "hidden", tls_required=True)
    disks = {"disk": DISK, "hidden": hidden}
    handshake = ClientHandshake(ClientSettings(), list_exports)
    session, listed = negotiate(ServerNegotiation(tls=TlsMode.ALLOW), handshake, disks)
    assert session is None
    assert isinstance(listed, tuple)
    (export,) = listed
    assert isinstance(export, ExportInfo)
    assert (export.name, export.size, export.description) == ("disk", 1 << 20, "a disk")
    assert export.meta_contexts == ("base:allocation",)


def test_listing_exports_over_tls_shows_all() -> None:
    hidden = MemoryDisk.of(4096, "hidden", tls_required=True)
    handshake = ClientHandshake(ClientSettings(tls=TlsMode.ALLOW), list_exports)
    _, listed = negotiate(ServerNegotiation(tls=TlsMode.ALLOW), handshake, {"hidden": hidden})
    assert isinstance(listed, tuple)
    assert [export.name for export in listed] == ["hidden"]


def test_a_list_that_is_refused() -> None:
    machine = ServerNegotiation(unsupported=[Option.NBD_OPT_LIST])
    with pytest.raises(NegotiationError, match="NBD_REP_ERR_UNSUP"):
        negotiate(machine, ClientHandshake(ClientSettings(), list_exports), DISKS)


def test_describing_one_export() -> None:
    handshake = ClientHandshake(ClientSettings("disk"), describe_export)
    _, export = negotiate(ServerNegotiation(), handshake, DISKS)
    assert isinstance(export, ExportInfo)
    assert export.meta_contexts == ("base:allocation",)
    simple = ServerNegotiation(
        unsupported={Option.NBD_OPT_EXTENDED_HEADERS, Option.NBD_OPT_STRUCTURED_REPLY}
    )
    handshake = ClientHandshake(ClientSettings("disk"), describe_export)
    _, export = negotiate(simple, handshake, DISKS)  # which tells what would not be of use
    assert isinstance(export, ExportInfo)
    assert export.meta_contexts == ("base:allocation",)
    with pytest.raises(NegotiationError):
        unknown = ClientHandshake(ClientSettings("other"), describe_export)
        negotiate(ServerNegotiation(), unknown, DISKS)
