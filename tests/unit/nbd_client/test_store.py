"""NbdStore against a server in memory: what is asked, what comes back, and what is made up for."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools.hostile_server import HostileServer, honest
from tests.tools.nbd_pair import BLOCK, EVERYTHING, MemoryDisk
from tests.tools.patience import PATIENCE
from vdisk.block import Kind
from vdisk.errors import (
    DeviceError,
    InvalidRequestError,
    NoSpaceError,
    OutOfRangeError,
    ReadOnlyError,
    VdiskError,
)
from vdisk.nbd.session import BlockSizes
from vdisk.nbd.wire import ErrorValue, TransmissionFlag
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.nbd.events import Request

SIZE = 4 << 20
STYLES = {
    "simple": NbdSettings(structured_replies=False, extended_headers=False),
    "structured": NbdSettings(extended_headers=False),
    "extended": NbdSettings(),
}


@contextlib.contextmanager
def opened(
    disk: MemoryDisk, settings: NbdSettings | None = None, *, readonly: bool = False
) -> Iterator[NbdStore]:
    with (
        HostileServer(honest(disk)) as server,
        NbdStore(server.uri, readonly=readonly, settings=settings) as store,
    ):
        yield store


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("request_size", [4096, 1 << 20])
def test_what_is_written_is_read(style: str, request_size: int) -> None:
    disk = MemoryDisk.of(SIZE)
    content = bytearray(SIZE)
    chance = random.Random(1)
    with opened(disk, STYLES[style]._replace(request_size=request_size)) as store:
        for _ in range(60):
            offset = chance.randrange(SIZE)
            length = min(chance.choice([1, 512, 5000, 70_000]), SIZE - offset)
            if chance.random() < 0.3:
                store.write_zeroes(offset, length)
                content[offset : offset + length] = bytes(length)
            else:
                data = chance.randbytes(length)
                store.write(offset, data)
                content[offset : offset + length] = data
        assert store.read(0, SIZE) == content
    assert disk.content == content


def test_scattered_requests() -> None:
    disk = MemoryDisk.of(SIZE)
    pieces = [random.Random(n).randbytes(n) for n in (0, 1, 100, 4096, 200_000, 7)]
    with opened(disk) as store:
        store.writev(1000, pieces)
        store.writev(400_000, pieces[:4])
        for offset, written in ((1000, pieces), (400_000, pieces[:4])):
            buffers = [bytearray(len(piece)) for piece in written]
            store.readv(offset, buffers)
            assert buffers == written


@pytest.mark.parametrize("unit", [512, 4096])
def test_a_minimum_block_size_is_made_up_for(unit: int) -> None:
    sizes = BlockSizes(unit, 4096, 8192)
    disk = MemoryDisk.of(SIZE, block_sizes=sizes)
    content = bytearray(SIZE)
    chance = random.Random(unit)
    with opened(disk) as store:
        for _ in range(100):
            offset = chance.randrange(SIZE - 20_000)
            length = chance.choice([1, 100, unit - 1, unit, unit + 1, 3 * unit, 20_000])
            data = chance.randbytes(length)
            store.write(offset, data)
            content[offset : offset + length] = data
            assert store.read(offset, length) == data
            store.write_zeroes(offset + 1, length // 2)
            content[offset + 1 : offset + 1 + length // 2] = bytes(length // 2)
    assert disk.content == content


def test_neighbours_in_one_block_do_not_undo_each_other() -> None:
    disk = MemoryDisk.of(SIZE, block_sizes=BlockSizes(4096, 4096, 1 << 20))
    errors: list[BaseException] = []

    def fill(store: NbdStore, number: int) -> None:
        try:
            for _ in range(10):
                store.write(number * 100, bytes([number + 1]) * 100)
                store.write(8192 * (number + 1), bytes([number + 1]) * 4096)
        except BaseException as error:
            errors.append(error)

    with opened(disk) as store:
        threads = [threading.Thread(target=fill, args=(store, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    for number in range(8):
        assert disk.content[number * 100 : number * 100 + 100] == bytes([number + 1]) * 100
        assert disk.content[8192 * (number + 1)] == number + 1


def test_a_part_of_a_block_at_the_end_is_out_of_reach() -> None:
    with opened(MemoryDisk.of(10_000, block_sizes=BlockSizes(4096, 4096, 8192))) as store:
        assert store.size == 8192
        with pytest.raises(OutOfRangeError):
            store.read(8192, 1)


@pytest.mark.parametrize("style", ["structured", "extended"])
def test_the_map_is_that_of_block_status(style: str) -> None:
    disk = MemoryDisk.of(SIZE)
    disk.content[BLOCK : 3 * BLOCK] = b"x" * 2 * BLOCK
    with opened(disk, STYLES[style]) as store:
        found = [(each.start, each.length, each.kind) for each in store.map()]
        assert found == [
            (0, BLOCK, Kind.ZERO),
            (BLOCK, 2 * BLOCK, Kind.DATA),
            (3 * BLOCK, SIZE - 3 * BLOCK, Kind.ZERO),
        ]
        (extent,) = store.map(BLOCK + 5, 10)
        assert (extent.source, extent.source_offset) == (store, BLOCK + 5)
        store.write(0, b"y")  # what was answered before is forgotten
        assert next(store.map()).length == 3 * BLOCK


def test_without_block_status_all_is_data() -> None:
    with opened(MemoryDisk.of(SIZE), STYLES["simple"]) as store:
        assert [(each.length, each.kind) for each in store.map()] == [(SIZE, Kind.DATA)]


def test_what_a_server_lacks_is_done_without() -> None:
    disk = MemoryDisk.of(40 << 20, flags=TransmissionFlag(0))
    disk.content[:] = b"x" * len(disk.content)
    with opened(disk) as store:
        assert not store.zeroes_fast
        store.write_zeroes(5, 33 << 20)
        store.discard(36 << 20, 4096)
        store.prefetch(0, 4096)
        store.flush()
    assert disk.content[4 : 6 + (33 << 20)] == b"x" + bytes(33 << 20) + b"x"
    assert disk.content[36 << 20] == ord("x")


def test_write_through_asks_for_fua_or_flushes() -> None:
    seen: list[str] = []

    class Recording(MemoryDisk):
        def failure(self, request):  # type: ignore[no-untyped-def]
            seen.append(f"{int(request.command)}{'f' if request.fua else ''}")
            return super().failure(request)

    for flags, expected in (
        (EVERYTHING, ["1f", "6f"]),
        (EVERYTHING & ~TransmissionFlag.NBD_FLAG_SEND_FUA, ["1", "3", "6", "3"]),
    ):
        seen.clear()
        with opened(Recording.of(SIZE, flags=flags), NbdSettings(write_through=True)) as store:
            store.write(0, b"x")
            store.write_zeroes(0, 4096)
            assert seen == expected


ERRORS = {
    ErrorValue.NBD_ENOSPC: (NoSpaceError, errno.ENOSPC),
    ErrorValue.NBD_EPERM: (ReadOnlyError, errno.EPERM),
    ErrorValue.NBD_EIO: (DeviceError, errno.EIO),
    ErrorValue.NBD_ENOMEM: (DeviceError, errno.ENOMEM),
}


@pytest.mark.parametrize("value", ERRORS)
@pytest.mark.parametrize("style", STYLES)
def test_errors_of_the_server(value: ErrorValue, style: str) -> None:
    disk = MemoryDisk.of(SIZE)
    disk.failures[70_000] = value
    kind, number = ERRORS[value]
    with opened(disk, STYLES[style]._replace(request_size=65536)) as store:
        with pytest.raises(kind) as caught:
            store.write(0, bytes(200_000))
        assert caught.value.errno == number
        assert caught.value.path is not None
        assert value.name in str(caught.value)
        assert store.read(0, 4096) == bytes(4096)  # the connection goes on


def test_read_only() -> None:
    disk = MemoryDisk.of(SIZE, flags=EVERYTHING | TransmissionFlag.NBD_FLAG_READ_ONLY)
    with HostileServer(honest(disk)) as server:
        with pytest.raises(ReadOnlyError, match="read-only"):
            NbdStore(server.uri, readonly=False)
        with NbdStore(server.uri) as store, pytest.raises(ReadOnlyError):
            store.write(0, b"x")


def test_the_size_is_fixed() -> None:
    with opened(MemoryDisk.of(SIZE)) as store:
        store.truncate(SIZE // 2)  # as for a disk: nothing to do
        assert store.size == SIZE
        with pytest.raises(InvalidRequestError, match="cannot grow"):
            store.truncate(SIZE + 1)


class SlowDisk(MemoryDisk):
    def failure(self, request: Request) -> tuple[int, ErrorValue] | None:
        time.sleep(0.001)
        return super().failure(request)


def test_connections_are_opened_when_there_is_work() -> None:
    disk = SlowDisk.of(SIZE)
    settings = NbdSettings(PoolSettings(connections=3), request_size=4096)
    with HostileServer(honest(disk)) as server, NbdStore(server.uri, settings=settings) as store:
        store.read(0, SIZE // 4)
        assert (store.connections, server.connections) == (1, 1)  # one thread: one connection

        together = threading.Barrier(6)

        def keep_reading() -> None:
            together.wait(PATIENCE)
            for _ in range(8):  # each of them chooses a connection
                store.read(0, SIZE // 16)

        threads = [threading.Thread(target=keep_reading) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 < store.connections <= 3


def test_one_connection_where_the_server_wants_no_more() -> None:
    disk = MemoryDisk.of(SIZE, flags=EVERYTHING & ~TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN)
    settings = NbdSettings(request_size=4096)
    with HostileServer(honest(disk)) as server, NbdStore(server.uri, settings=settings) as store:
        threads = [threading.Thread(target=store.read, args=(0, SIZE)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.connections == 1


def test_by_name_and_by_options() -> None:
    disk = MemoryDisk.of(SIZE, name="a/b")
    disk.content[:4] = b"disk"
    with HostileServer(honest(disk)) as server:
        server_options = {"type": "unix", "path": server.path}
        for name in (
            f"nbd+unix:///a/b?socket={server.path}",
            f"nbd:unix:{server.path}:exportname=a/b",
            {"driver": "raw", "file": {"driver": "nbd", "server": server_options, "export": "a/b"}},
            {"driver": "nbd", "path": server.path, "export": "a/b", "reconnect-delay": 1},
        ):
            with vdisk.open(name) as image:
                assert image.read(0, 4) == b"disk"
                assert image.size == SIZE
        with pytest.raises(VdiskError, match="nosuch"):
            vdisk.open(f"nbd+unix:///nosuch?socket={server.path}")


def test_a_chain_over_nbd(tmp_path) -> None:  # type: ignore[no-untyped-def]
    disk = MemoryDisk.of(SIZE)
    disk.content[:4] = b"base"
    overlay = tmp_path / "overlay.qcow2"
    with HostileServer(honest(disk)) as server:
        vdisk.create(
            overlay, format="qcow2", backing_file=f"nbd:unix:{server.path}", backing_format="raw"
        )
        with vdisk.open(overlay, "r+") as image:
            assert image.size == SIZE
            image.write(2, b"XX")
            assert image.read(0, 4) == b"baXX"
    assert disk.content[:4] == b"base"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"path": "/a", "host": "b"},
        {"uri": "nbd://a", "export": "b"},
        {"server": {"type": "fd"}},
        {"path": "/a", "connections": 0},
        {"path": "/a", "connections": 17},
        {"path": "/a", "reconnect-delay": -1},
        {"path": "/a", "reconnect-delay": "soon"},
        {"path": "/a", "open-timeout": 10**9},
        {"path": "/a", "tls-creds": "nobody"},
        {"path": "/a", "nonsense": 1},
    ],
)
def test_options_that_cannot_work(options: dict[str, object]) -> None:
    with pytest.raises(VdiskError) as caught:
        vdisk.open({"driver": "nbd", **options})
    assert caught.value.kind in ("invalid", "not-found")
