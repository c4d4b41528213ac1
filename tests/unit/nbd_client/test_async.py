"""The asyncio client against a server in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.tools.hostile_server import Edit, HostileServer, Phase, honest, stall, tampered
from tests.tools.nbd_pair import BLOCK, MemoryDisk
from vdisk.errors import ClosedError, DeviceError, InvalidRequestError, VdiskError
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.wire import ErrorValue
from vdisk.nbd_client import connect
from vdisk.stores._nbd.channel import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.tools.hostile_server import Behaviour
    from vdisk.nbd_client import NbdClient

SIZE = 4 << 20


def with_client(
    behaviour: Behaviour, use: Callable[[NbdClient], Awaitable[None]], **options: float
) -> HostileServer:
    """Run ``use`` on a client of a server that behaves so."""

    async def main(uri: str) -> None:
        async with await connect(uri, **options) as client:  # type: ignore[arg-type]
            await use(client)

    with HostileServer(behaviour) as server:
        asyncio.run(main(server.uri))
    return server


def test_many_requests_at_once() -> None:
    disk = MemoryDisk.of(SIZE)

    async def use(client: NbdClient) -> None:
        blocks = [bytes([n]) * 4096 for n in range(256)]
        await asyncio.gather(*(client.write(n * 4096, block) for n, block in enumerate(blocks)))
        found = await asyncio.gather(*(client.read(n * 4096, 4096) for n in range(256)))
        assert list(found) == blocks
        await client.flush()
        await client.write_zeroes(4096, 4096)
        await client.discard(0, 512)
        await client.cache(0, 4096)
        assert await client.read(4096, 4096) == bytes(4096)

    with_client(honest(disk), use)
    assert disk.content[255 * 4096] == 255


def test_large_requests_are_cut() -> None:
    disk = MemoryDisk.of(80 << 20)

    async def use(client: NbdClient) -> None:
        data = bytes(range(256)) * (70 << 12)
        await client.write(3, data)
        assert await client.read(3, len(data)) == data

    with_client(honest(disk), use)


def test_block_status() -> None:
    disk = MemoryDisk.of(SIZE)
    disk.content[:BLOCK] = b"x" * BLOCK

    async def use(client: NbdClient) -> None:
        assert client.size == SIZE
        found = await client.block_status(0, SIZE)
        assert found["base:allocation"] == ((BLOCK, 0), (SIZE - BLOCK, 3))

    with_client(honest(disk), use)


def test_errors() -> None:
    disk = MemoryDisk.of(SIZE)
    disk.failures[0] = ErrorValue.NBD_EIO

    async def use(client: NbdClient) -> None:
        with pytest.raises(DeviceError, match="NBD_EIO"):
            await client.read(0, 512)
        with pytest.raises(InvalidRequestError, match="past the end"):
            await client.read(SIZE, 512)
        assert await client.read(4096, 1) == b"\0"
        await client.close()
        with pytest.raises(ClosedError):
            await client.read(0, 1)

    with_client(honest(disk), use)


def dying_once(disk: MemoryDisk, reply: int) -> Behaviour:
    def behave(connection: object, number: int) -> None:
        edit = Edit(Phase.TRANSMISSION, reply, 0, b"", then="close")
        (tampered(disk, edit) if number == 0 else honest(disk))(connection, number)  # type: ignore[arg-type]

    return behave


def test_a_lost_connection_fails_what_was_under_way() -> None:
    async def use(client: NbdClient) -> None:
        with pytest.raises(ConnectionLostError):
            await client.read(0, 512)
        assert await client.read(0, 512) == bytes(512)

    with_client(dying_once(MemoryDisk.of(SIZE), 0), use)


def test_requests_are_sent_again_behind_the_unflushed_writes() -> None:
    disk = MemoryDisk.of(SIZE)

    async def use(client: NbdClient) -> None:
        await client.write(0, b"kept")
        disk.content[:4] = bytes(4)  # the server forgets it, and dies
        assert await client.read(0, 4) == b"kept"

    server = with_client(dying_once(disk, 1), use, reconnect_delay=5)
    assert server.connections == 2


def test_a_flush_admits_the_loss_once() -> None:
    async def use(client: NbdClient) -> None:
        await client.write(0, b"gone")
        with pytest.raises(ConnectionLostError):
            await client.read(0, 4)
        with pytest.raises(DeviceError, match="may be gone"):
            await client.flush()
        await client.flush()

    with_client(dying_once(MemoryDisk.of(SIZE), 1), use)


def test_a_violation_is_named() -> None:
    edit = Edit(Phase.TRANSMISSION, 0, 8, b"\xff" * 8)

    async def use(client: NbdClient) -> None:
        with pytest.raises(RemoteProtocolError, match="cookie"):
            await client.read(0, 512)

    with_client(tampered(MemoryDisk.of(SIZE), edit), use)


def test_a_server_that_says_nothing() -> None:
    async def use(_client: NbdClient) -> None:
        raise AssertionError("it never answered")

    with pytest.raises(ConnectionLostError, match=r"did not end in 0\.5 s"):
        with_client(stall, use, timeout=0.5)


def test_nobody_there() -> None:
    with pytest.raises(VdiskError, match="No such file"):
        asyncio.run(connect("nbd+unix:///?socket=/nonexistent/socket"))
