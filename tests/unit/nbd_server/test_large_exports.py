"""Exports larger than 32-bit lengths, by raw bytes and by our own client (extended headers)."""

from __future__ import annotations

from socket import MSG_WAITALL
from struct import pack
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools.nbd_pipeline import Pipeline, client
from tests.tools.nbd_server import Running, running
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd_server import Export, Server
from vdisk.stores.nbd import NbdStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 8 << 40
FIRST, SECOND = 5 << 30, 1 << 40
CLUSTER = 65536

REQUEST_MAGIC, REPLY_MAGIC = 0x21E41C71, 0x6E8A278C
TRIM, WRITE_ZEROES, BLOCK_STATUS = 4, 6, 7
REQ_ONE, DONE = 1 << 3, 1
NONE, STATUS_EXT = 0, 6
DATA, HOLE = 0, 3
COOKIE = 0x0123456789ABCDEF


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    path = tmp_path / "large.qcow2"
    vdisk.create(path, SIZE, format="qcow2")
    with vdisk.open(path, "r+") as disk:
        for offset in (FIRST, SECOND):
            disk.write(offset, b"x" * CLUSTER)
        export = Export("", disk, discard=True)
        with running(lambda: Server([export])) as server:
            yield server


class RawClient:
    """Sends and expects bytes; ``context``: the id of base:allocation."""

    def __init__(self, talk: Pipeline) -> None:
        self._socket = talk.socket
        (self.context,) = (each.id for each in talk.session.meta_contexts)

    def asks(self, command: int, offset: int, length: int, *, flags: int = 0) -> None:
        request = pack(">IHHQQQ", REQUEST_MAGIC, flags, command, COOKIE, offset, length)
        self._socket.sendall(request)

    def gets(self, kind: int, offset: int, payload: bytes = b"") -> None:
        head = pack(">IHHQQQ", REPLY_MAGIC, DONE, kind, COOKIE, offset, len(payload))
        found = self._socket.recv(len(head + payload), MSG_WAITALL)
        assert found == head + payload

    def gets_status(self, offset: int, *extents: tuple[int, int]) -> None:
        content = b"".join(pack(">QQ", *extent) for extent in extents)
        self.gets(STATUS_EXT, offset, pack(">II", self.context, len(extents)) + content)


def test_ranges_beyond_4_gib_are_asked_for_and_told_in_64_bits(server: Running) -> None:
    with client(server, HeaderStyle.EXTENDED) as talk:
        raw = RawClient(talk)
        between, behind = SECOND - FIRST - CLUSTER, SIZE - SECOND - CLUSTER
        raw.asks(BLOCK_STATUS, 0, SIZE)
        raw.gets_status(
            0, (FIRST, HOLE), (CLUSTER, DATA), (between, HOLE), (CLUSTER, DATA), (behind, HOLE)
        )
        raw.asks(BLOCK_STATUS, FIRST + 1, SIZE - FIRST - 1, flags=REQ_ONE)
        raw.gets_status(FIRST + 1, (CLUSTER - 1, DATA))
        raw.asks(BLOCK_STATUS, FIRST + CLUSTER, 1 << 39, flags=REQ_ONE)
        raw.gets_status(FIRST + CLUSTER, (1 << 39, HOLE))


@pytest.mark.parametrize("command", [TRIM, WRITE_ZEROES])
def test_one_request_clears_more_than_4_gib(command: int, server: Running) -> None:
    with client(server, HeaderStyle.EXTENDED) as talk:
        raw = RawClient(talk)
        raw.asks(command, CLUSTER, SECOND)
        raw.gets(NONE, CLUSTER)
        raw.asks(BLOCK_STATUS, 0, SIZE)
        raw.gets_status(0, (SIZE, HOLE))


def test_our_client_follows_extents_beyond_4_gib(server: Running) -> None:
    with NbdStore(server.uri) as store:
        assert store.session.headers is HeaderStyle.EXTENDED
        assert list(store.context_extents("base:allocation")) == [
            (0, FIRST, HOLE),
            (FIRST, CLUSTER, DATA),
            (FIRST + CLUSTER, SECOND - FIRST - CLUSTER, HOLE),
            (SECOND, CLUSTER, DATA),
            (SECOND + CLUSTER, SIZE - SECOND - CLUSTER, HOLE),
        ]
        assert store.read(SECOND - 1, 3) == b"\0xx"
