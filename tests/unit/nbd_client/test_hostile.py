"""The client against servers that break the rules: an error that is named, in bounded time."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_server import (
    Edit,
    HostileServer,
    Phase,
    deaf,
    deaf_after_the_handshake,
    flood,
    honest,
    stall,
    tampered,
    trickle,
)
from tests.tools.nbd_pair import MemoryDisk
from tests.tools.patience import PATIENCE
from vdisk.errors import VdiskError
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.wire import HandshakeFlag
from vdisk.stores._nbd.channel import ConnectionLostError
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tools.hostile_server import Behaviour

SIZE = 1 << 20
PATIENT = NbdSettings(PoolSettings(connections=1, request_timeout=PATIENCE), timeout=PATIENCE)
SIMPLE = PATIENT._replace(structured_replies=False, extended_headers=False)
STRUCTURED = PATIENT._replace(extended_headers=False)
IMPATIENT = PATIENT._replace(pool=PATIENT.pool._replace(request_timeout=1))
"""For servers that never answer a request."""


@contextlib.contextmanager
def opened(
    behaviour: Behaviour, settings: NbdSettings = PATIENT, *, readonly: bool = True
) -> Iterator[NbdStore]:
    """A store on a server that behaves so."""
    with HostileServer(behaviour) as server:
        store = NbdStore(server.uri, readonly=readonly, settings=settings)
        with store:
            yield store


def disk() -> MemoryDisk:
    found = MemoryDisk.of(SIZE)
    found.content[:] = b"x" * SIZE
    return found


SIMPLE_FIELDS = {"magic": (0, 4), "cookie": (8, 8)}
CHUNK_FIELDS = {
    "magic": (0, 4),
    "type": (6, 2),
    "cookie": (8, 8),
    "length": (16, 4),
    "offset": (20, 8),
}
EXTENDED_FIELDS = {
    "magic": (0, 4),
    "type": (6, 2),
    "cookie": (8, 8),
    "request offset": (16, 8),
    "length": (24, 8),
    "offset": (32, 8),
}
REPLIES = [
    *((SIMPLE, name, *place) for name, place in SIMPLE_FIELDS.items()),
    *((STRUCTURED, name, *place) for name, place in CHUNK_FIELDS.items()),
    *((PATIENT, name, *place) for name, place in EXTENDED_FIELDS.items()),
]


@pytest.mark.parametrize(("settings", "field", "offset", "length"), REPLIES)
@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_each_field_of_a_reply_wrong_in_turn(
    settings: NbdSettings, field: str, offset: int, length: int, byte: bytes
) -> None:
    # Read behind the start: an offset of zero is wrong, too.
    edit = Edit(Phase.TRANSMISSION, 0, offset, byte * length)
    with opened(tampered(disk(), edit), settings) as store:
        with pytest.raises(RemoteProtocolError) as caught:
            store.read(4096, 4096)
        assert caught.value.path is not None
        # The next request comes over a new connection, and fails alike: nothing hangs.
        with pytest.raises(RemoteProtocolError):
            store.read(4096, 4096)


HANDSHAKE = {
    "greeting": (Phase.GREETING, 0, 0, 8),
    "option magic": (Phase.GREETING, 0, 8, 8),
    "reply magic": (Phase.OPTION, 0, 0, 8),
    "reply option": (Phase.OPTION, 0, 8, 4),
    "reply length": (Phase.OPTION, 0, 16, 4),
    "context length": (Phase.OPTION, 1, 16, 4),
    "export length": (Phase.OPTION, 2, 16, 4),
    "export size": (Phase.OPTION, 2, 22, 8),
}


@pytest.mark.parametrize("field", HANDSHAKE)
def test_each_field_of_the_handshake_wrong_in_turn(field: str) -> None:
    phase, index, offset, length = HANDSHAKE[field]
    edit = Edit(phase, index, offset, b"\xff" * length)
    with HostileServer(tampered(disk(), edit)) as server:
        with pytest.raises(VdiskError) as caught:
            NbdStore(server.uri, settings=PATIENT)
        assert caught.value.path is not None


@pytest.mark.parametrize("cut", [1, 4, 15, 16, 20, 32, 40])
def test_a_reply_cut_off_at_any_place(cut: int) -> None:
    edit = Edit(Phase.TRANSMISSION, 0, cut, b"", then="close")
    with (
        opened(tampered(disk(), edit)) as store,
        pytest.raises(ConnectionLostError, match="closed the connection"),
    ):
        store.read(0, 4096)


@pytest.mark.parametrize("cut", [1, 16, 40])
def test_silence_in_a_reply(cut: int) -> None:
    edit = Edit(Phase.TRANSMISSION, 0, cut, b"", then="stall")
    with (
        opened(tampered(disk(), edit), IMPATIENT) as store,
        pytest.raises(ConnectionLostError, match="silent for 1 s"),
    ):
        store.read(0, 4096)


@pytest.mark.parametrize("behaviour", [stall, deaf, trickle])
def test_a_handshake_that_never_ends(behaviour: object) -> None:
    with (
        HostileServer(behaviour) as server,  # type: ignore[arg-type]
        pytest.raises(ConnectionLostError, match="did not end in 2 s"),
    ):
        NbdStore(server.uri, settings=PATIENT._replace(timeout=2))


def test_replies_to_options_without_end_stay_small() -> None:
    tracemalloc.start()
    try:
        with HostileServer(flood) as server, pytest.raises(VdiskError):
            NbdStore(server.uri, settings=PATIENT._replace(timeout=2))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_one_silent_reply_fails_all_that_wait() -> None:
    """Threads that share a connection all learn of its end, and none of them waits for ever."""
    edit = Edit(Phase.TRANSMISSION, 3, 0, b"", then="stall")
    errors: list[VdiskError] = []

    def work(store: NbdStore, number: int) -> None:
        try:
            for _ in range(4):
                store.read(number * 4096, 4096)
        except VdiskError as error:
            errors.append(error)

    with opened(tampered(disk(), edit), IMPATIENT) as store:
        threads = [threading.Thread(target=work, args=(store, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert errors
    assert all(isinstance(error, ConnectionLostError) for error in errors)


def test_a_server_that_stops_reading_does_not_hold_a_writer_for_ever() -> None:
    large = MemoryDisk.of(64 << 20)
    settings = IMPATIENT._replace(ignore_flush=True)
    with (
        opened(deaf_after_the_handshake(large), settings, readonly=False) as store,
        pytest.raises(ConnectionLostError, match="silent"),
    ):
        store.write(0, bytes(32 << 20))


def test_a_greeting_without_an_end() -> None:
    half = HostileServer(lambda connection, _: connection.sendall(b"NBDMAGIC"))
    with half as server, pytest.raises(VdiskError, match="closed the connection"):
        NbdStore(server.uri, settings=PATIENT)


def test_the_others_see_nothing_of_a_hostile_server() -> None:
    edit = Edit(Phase.TRANSMISSION, 0, 0, b"\xff" * 8)
    with opened(tampered(disk(), edit)) as wrong, opened(honest(disk())) as right:
        with pytest.raises(RemoteProtocolError):
            wrong.read(0, 512)
        assert right.read(0, 512) == b"x" * 512


def test_greeting_flags_are_no_promise() -> None:
    """A server that says it is not fixed newstyle is taken at its word."""
    flags = int(HandshakeFlag.NBD_FLAG_NO_ZEROES).to_bytes(2, "big")
    with opened(tampered(disk(), Edit(Phase.GREETING, 0, 16, flags))) as store:
        assert store.read(0, 4096) == b"x" * 4096
        assert not store.session.meta_contexts
