"""The hot path on a connection of its own: what it makes, and what it leaves to others."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools.hostile_client import request
from vdisk.nbd.gate import Gate
from vdisk.nbd.session import HeaderStyle, Session
from vdisk.nbd.wire import Command, CommandFlag
from vdisk.nbd_server import RECEIVE_BUFFER, Export
from vdisk.nbd_serving.channel import Channel
from vdisk.nbd_serving.fast import FastPath
from vdisk.nbd_serving.fast_writes import APART_FROM, INLINE_WRITE
from vdisk.nbd_serving.limits import Account, Budget, ServerLimits
from vdisk.nbd_serving.outbox import Outbox
from vdisk.nbd_serving.pace import Pace
from vdisk.nbd_serving.sending import SendBuffer
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vdisk.block import BlockDevice

SIZE = 8 << 20
HEADER = 28
WRITE = Command.NBD_CMD_WRITE


class Served:
    """A hot path, and the client at the other end of its connection.  ``given``: to the machine."""

    def __init__(self, disk: BlockDevice, *, alone: bool, write_through: bool = False) -> None:
        self.disk = disk
        self.client, ours = socket.socketpair()
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SIZE)
        self.client.setblocking(False)
        self.given: list[bytes] = []
        export = Export("", disk, write_through=write_through)
        session = Session(export.info("", 32 << 20), HeaderStyle.SIMPLE)
        self.channel = Channel(ours)
        self.path = FastPath(
            session,
            Gate(session, 32 << 20),
            export,
            Outbox(self.channel, Account(Budget(ServerLimits()))),
            SendBuffer(),
            Pace(),
            lambda view: self.given.append(bytes(view)),
            lambda: alone,
        )

    def close(self) -> None:
        self.client.close()
        self.channel.close()

    def send(self, *requests: bytes) -> None:
        data = b"".join(requests)
        assert self.client.send(data) == len(data)

    def exchange(self) -> tuple[int, int] | None:
        """What :meth:`FastPath.exchange` gives; None when there was nothing more."""
        try:
            return self.path.exchange(memoryview(bytearray(RECEIVE_BUFFER)))
        except BlockingIOError:
            return None

    def exchange_all(self) -> None:
        """Until there is nothing more: on a slow machine it turns to others in between."""
        while (found := self.exchange()) is not None:
            assert found[0] == found[1]

    def replies(self) -> list[tuple[int, int, int]]:
        """Magic, error and cookie of the simple replies that came, to requests without data."""
        try:
            data = self.client.recv(1 << 16)
        except BlockingIOError:
            return []
        return [
            (
                int.from_bytes(data[at : at + 4]),
                int.from_bytes(data[at + 4 : at + 8]),
                int.from_bytes(data[at + 8 : at + 16]),
            )
            for at in range(0, len(data), 16)
        ]


@pytest.fixture(params=[True, False], ids=["alone", "with others"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    yield from _served(tmp_path, alone=request.param)


def _served(folder: Path, *, alone: bool, write_through: bool = False) -> Iterator[Served]:
    (folder / "disk").write_bytes(bytes(SIZE))
    with FileStore(folder / "disk", readonly=False) as disk:
        found = Served(disk, alone=alone, write_through=write_through)
        yield found
        found.close()


def pattern(length: int, seed: int = 0) -> bytes:
    return bytes((number * 7 + seed) & 255 for number in range(256)) * (length // 256)


def write(offset: int, data: bytes, cookie: int = 1, flags: int = 0) -> bytes:
    return request(WRITE, offset, len(data), cookie=cookie, flags=flags, payload=data)


DONE = 0x67446698


@pytest.mark.parametrize("length", [4096, 100 << 10, 300 << 10, INLINE_WRITE])
def test_a_write_that_is_there_is_made_at_once(served: Served, length: int) -> None:
    data = pattern(length)
    served.send(write(512, data))
    served.exchange_all()
    assert served.given == []
    assert served.replies() == [(DONE, 0, 1)]
    assert served.disk.read(0, 512 + length + 512) == bytes(512) + data + bytes(512)


def test_large_writes_behind_each_other_are_all_made(served: Served) -> None:
    """Where the first are received, only a beginning of the next is."""
    data = [pattern(700 << 10, seed) for seed in range(4)]
    served.send(*(write(number << 20, part, number) for number, part in enumerate(data)))
    served.exchange_all()
    assert served.given == []
    assert served.replies() == [(DONE, 0, number) for number in range(4)]
    for number, part in enumerate(data):
        assert served.disk.read(number << 20, len(part)) == part


@pytest.mark.parametrize("cluster_size", [4096, APART_FROM, 64 << 10])
@pytest.mark.parametrize("allocated", [20 << 16, 13 << 16], ids=["all", "not all"])
@pytest.mark.parametrize("lengths", [[16 << 16], [64 << 10] * 16, [4096 * 11] * 20])
def test_writes_over_clusters_that_lie_apart_are_made_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster_size: int,
    allocated: int,
    lengths: list[int],
) -> None:
    """Backwards, as they were allocated; some begin in the midst of a cluster."""
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, SIZE, format="qcow2", options={"cluster_size": cluster_size})
    with vdisk.open(path, "r+") as disk:
        for offset in reversed(range(4096, allocated, cluster_size)):
            disk.write(offset, b"o" * min(cluster_size, allocated - offset))
        disk.flush()
        planned: list[int] = []
        writev = disk.writev

        def plan(at: int, views: Sequence[memoryview]) -> None:
            planned.append(at)
            writev(at, views)

        monkeypatch.setattr(disk, "writev", plan)
        served = Served(disk, alone=True)
        data = [pattern(length, seed) for seed, length in enumerate(lengths)]
        offset = 8192
        for number, part in enumerate(data):
            served.send(write(offset, part, number))
            offset += len(part)
        served.exchange_all()
        assert served.given == []
        assert served.replies() == [(DONE, 0, number) for number in range(len(data))]
        assert disk.read(8192, offset - 8192) == b"".join(data)
        assert disk.read(4096, 4096) == b"o" * 4096
        assert disk.read(offset, 4096) == (b"o" if offset < allocated else b"\0") * 4096
        assert bool(planned) is (cluster_size < APART_FROM or offset > allocated)
        served.close()
    with vdisk.open(path) as disk:
        assert disk.read(8192, offset - 8192) == b"".join(data)
    assert vdisk.check(path).clean


@pytest.mark.parametrize("there", [HEADER, 5000, 300_000, HEADER + INLINE_WRITE - 1])
@pytest.mark.parametrize("ends", [False, True])
def test_a_write_that_is_not_all_there_changes_nothing(
    served: Served, there: int, ends: bool
) -> None:
    served.send(write(0, pattern(INLINE_WRITE))[:there])
    if ends:
        served.client.shutdown(socket.SHUT_WR)
    assert served.exchange() == (0, there)
    assert served.replies() == []
    assert served.disk.read(0, SIZE) == bytes(SIZE)
    assert not served.channel.waits


def test_what_is_not_made_here_is_left_as_it_came(served: Served) -> None:
    for unusual in (
        write(0, pattern(INLINE_WRITE + 256)),
        write(0, pattern(300 << 10), flags=CommandFlag.NBD_CMD_FLAG_FUA)[:-1],
        write(0, pattern(300 << 10), flags=CommandFlag.NBD_CMD_FLAG_DF),
        write(SIZE - 512, pattern(300 << 10)),
        request(Command.NBD_CMD_TRIM, 0, 300 << 10),
    ):
        served.send(unusual)
        found = served.exchange()
        assert found is not None
        assert b"".join(served.given) == unusual[: found[0]]
        served.given.clear()
        served.path.handed_over = False
        served.path.send()
        assert served.replies() == []
        assert served.disk.read(0, SIZE) == bytes(SIZE)
        while served.channel.readable():
            served.channel.recv_into(memoryview(bytearray(SIZE)))


def test_where_writes_are_for_workers_none_is_completed(tmp_path: Path) -> None:
    for served in _served(tmp_path, alone=True, write_through=True):
        served.send(write(0, pattern(INLINE_WRITE))[:-1])
        found = served.exchange()
        assert found is not None
        assert found[0] == 0
        assert served.disk.read(0, SIZE) == bytes(SIZE)
