"""The human monitor at a socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.tools.fake_machine import FakeMachine
from tests.tools.patience import PATIENCE
from vdisk.vm.display.serving import parse_address
from vdisk.vm.monitor.hmp_server import HmpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PROMPT = b"(vdisk) "


@asynccontextmanager
async def clients(machine: FakeMachine) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    async with asyncio.timeout(PATIENCE), HmpServer(machine) as server:
        address = await server.listen(parse_address("127.0.0.1:0"))
        opened: list[asyncio.StreamWriter] = []

        async def connect() -> Streams:
            streams = await asyncio.open_connection(address.host, address.port)
            opened.append(streams[1])
            assert (await streams[0].readuntil(PROMPT)).startswith(b"vdisk ")
            return streams

        yield connect
        for writer in opened:
            writer.close()


def test_each_client_has_a_processor_of_its_own() -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.cpus = lambda: 2  # type: ignore[method-assign]
        async with clients(machine) as connect:
            (reader, writer), (other, other_writer) = await connect(), await connect()
            writer.write(b"cpu 1\n")
            assert await reader.readuntil(PROMPT) == PROMPT
            for target in (writer, other_writer):
                target.write(b"info registers\r\n")
            assert b"CPU#1\r\n" in await reader.readuntil(PROMPT)
            assert b"CPU#0\r\n" in await other.readuntil(PROMPT)

    asyncio.run(scenario())


def test_what_telnet_says_is_not_part_of_a_line() -> None:
    async def scenario() -> None:
        async with clients(FakeMachine()) as connect:
            reader, writer = await connect()
            writer.write(b"\xff\xfb\x18info\xff\xf1 name\n")
            assert await reader.readuntil(PROMPT) == b"fake\r\n" + PROMPT

    asyncio.run(scenario())


def test_the_last_line_needs_no_end_and_a_long_one_ends_the_connection() -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        async with clients(machine) as connect:
            reader, writer = await connect()
            writer.write(b"stop")
            writer.write_eof()
            assert await reader.read() == PROMPT
            assert machine.calls == ["stop"]
            reader, writer = await connect()
            writer.write(bytes(1 << 20))
            assert b"too long" in await reader.readline()

    asyncio.run(scenario())
