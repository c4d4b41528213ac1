"""The VNC server to a client that decodes everything, to several, to slow and hostile ones."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from struct import pack
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools.fake_machine import FakeInput, FakeScreen, pattern
from tests.tools.patience import PATIENCE
from tests.tools.rfb_client import Refused, RfbClient
from vdisk.errors import InvalidRequestError, VdiskError
from vdisk.vm.display.base import Frame
from vdisk.vm.display.rfb.encodings import PIXELS
from vdisk.vm.display.rfb.pixels import COLOUR_MAPPED, NATIVE, PixelFormat
from vdisk.vm.display.rfb.wire import RELATIVE_ORIGIN, Encoding, Rect
from vdisk.vm.display.serving import Address, parse_address
from vdisk.vm.display.vnc import Share, VncLimits, VncServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FORMATS = [
    NATIVE,
    PixelFormat(16, 16, False, True, (31, 63, 31), (11, 5, 0)),
    PixelFormat(8, 8, False, True, (7, 7, 3), (0, 3, 6)),
    PixelFormat(32, 24, True, True, (255, 255, 255), (24, 16, 8)),
    PixelFormat(32, 24, False, True, (255, 255, 255), (0, 8, 16)),
]


class Scene:
    """A server, what it shows, what it presses."""

    def __init__(self, screen: FakeScreen, sink: FakeInput, server: VncServer, at: Address) -> None:
        self.screen, self.sink, self.server, self.address = screen, sink, server, at
        self._clients: list[RfbClient] = []

    async def client(self, **options: Any) -> RfbClient:
        client = await RfbClient.connect(self.address, **options)
        self._clients.append(client)
        return client

    async def connection(self) -> RfbClient:
        """A connection on which nothing was said yet."""
        streams = await asyncio.open_connection(self.address.host, self.address.port)
        self._clients.append(RfbClient(*streams))
        return self._clients[-1]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def scene(picture: Frame | None = None, **options: Any) -> AsyncIterator[Scene]:
    screen, sink = FakeScreen(picture or pattern(150, 70)), FakeInput()
    async with asyncio.timeout(PATIENCE), VncServer(screen, sink, **options) as server:
        here = Scene(screen, sink, server, await server.listen(parse_address("127.0.0.1:0")))
        try:
            yield here
        finally:
            await here.close()


def shown(frame: Frame, wanted: PixelFormat = NATIVE) -> list[list[int]]:
    data = wanted.convert(frame.pixels)
    order, size = "big" if wanted.big_endian else "little", wanted.size
    values = [int.from_bytes(data[at : at + size], order) for at in range(0, len(data), size)]  # type: ignore[arg-type]
    return [values[row * frame.width : (row + 1) * frame.width] for row in range(frame.height)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("encoding", PIXELS)
def test_every_encoding_in_every_format(encoding: Encoding, wanted: PixelFormat) -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            client.set_format(wanted)
            client.set_encodings(encoding)
            await client.refresh()
            assert client.pixels == shown(here.screen.picture, wanted)
            here.screen.fill(Rect(10, 10, 75, 3), 0x00FF00)
            await client.refresh(incremental=True)
            assert client.pixels == shown(here.screen.picture, wanted)
            assert {rect[4] for rect in client.rectangles} == {encoding}
            area = sum(rect[2] * rect[3] for rect in client.rectangles)
            assert area <= 2 * 64 * 16

    asyncio.run(scenario())


def test_the_client_chooses_the_encoding() -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            for wanted in (Encoding.HEXTILE, Encoding.RAW, Encoding.TIGHT):
                client.set_encodings(wanted, Encoding.ZRLE, Encoding.ZLIB)
                await client.refresh()
                assert {rect[4] for rect in client.rectangles} == {wanted}

    asyncio.run(scenario())


def test_a_colour_map() -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            client.set_format(PixelFormat(8, 8, False, False, (0, 0, 0), (0, 0, 0)))
            await client.refresh()
            assert client.pixels == shown(here.screen.picture, COLOUR_MAPPED)
            assert len(client.colours) == 256

    asyncio.run(scenario())


def test_nothing_is_sent_until_something_changes() -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            await client.refresh()
            client.request(incremental=True)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.next_update()
            here.screen.fill(Rect(0, 0, 1, 1), 1)
            await client.next_update()
            assert client.rectangles == [(0, 0, 64, 16, Encoding.RAW)]

    asyncio.run(scenario())


@pytest.mark.parametrize("encoding", [Encoding.DESKTOP_SIZE, Encoding.EXTENDED_DESKTOP_SIZE])
def test_another_size(encoding: Encoding) -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            client.set_encodings(Encoding.ZRLE, encoding)
            await client.refresh()
            here.screen.show(pattern(90, 200))
            while client.height != 200:
                await client.refresh(incremental=True)
            await client.refresh(incremental=True)
            assert client.pixels == shown(here.screen.picture)

    asyncio.run(scenario())


def test_a_client_that_cannot_resize_sees_what_fits() -> None:
    async def scenario() -> None:
        async with scene(pattern(100, 50)) as here:
            client = await here.client()
            await client.refresh()
            here.screen.show(Frame(120, 20, b"\1\2\3\0" * 120 * 20))
            await client.refresh(incremental=True)
            assert client.pixels == [[0x030201] * 100] * 20 + [[0] * 100] * 30

    asyncio.run(scenario())


def test_a_client_may_not_choose_the_size() -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            client.set_encodings(Encoding.EXTENDED_DESKTOP_SIZE)
            await client.refresh()
            await client.refresh()
            client.writer.write(pack(">BxHHBx", 251, 800, 600, 0))
            client.request(incremental=True)
            await client.next_update()
            assert client.pseudo[-1][:2] == (Encoding.EXTENDED_DESKTOP_SIZE, (1, 1, 150, 70))

    asyncio.run(scenario())


def test_keys_and_pointer() -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            for character in "aB":
                client.key(ord(character), True)
                client.key(ord(character), False)
            client.extended_key(0, 0xC8, True)
            client.extended_key(0, 0xC8, False)
            client.point(10, 10)
            client.point(15, 8, 0b001)
            client.point(15, 8, 0b110)
            client.point(15, 8, 0b01000)
            client.point(15, 8, 0b10000)
            await until(lambda: len(here.sink.moves) == 3)
            assert here.sink.typed() == ["a", "shift", "b", "up"]
            assert here.sink.moves == [(5, -2, 0), (0, 0, -1), (0, 0, 1)]
            assert here.sink.buttons == [0b001, 0b110, 0, 0]

    asyncio.run(scenario())


def test_relative_motion_and_extended_keys_are_announced() -> None:
    async def scenario() -> None:
        async with scene(name="machine") as here:
            client = await here.client()
            assert client.name == "machine"
            here.sink.lights = 5
            pseudo = [
                *(Encoding.POINTER_MOTION_CHANGE, Encoding.EXTENDED_KEY_EVENT),
                *(Encoding.LED_STATE, Encoding.DESKTOP_NAME),
            ]
            client.set_encodings(Encoding.RAW, *pseudo)
            await client.refresh()
            told = {encoding: data for encoding, _, data in client.pseudo}
            assert told.keys() == set(pseudo)
            assert told[Encoding.LED_STATE] == b"\5"
            assert told[Encoding.DESKTOP_NAME] == b"machine"
            client.point(RELATIVE_ORIGIN - 3, RELATIVE_ORIGIN + 4)
            await until(lambda: here.sink.moves)
            assert here.sink.moves == [(-3, 4, 0)]

    asyncio.run(scenario())


def test_what_a_client_held_is_released_when_it_leaves() -> None:
    async def scenario() -> None:
        async with scene() as here:
            client = await here.client()
            client.key(0xFFE3, True)
            client.extended_key(0, 0x38, True)
            client.point(1, 1, 1)
            await until(lambda: here.sink.buttons)
            await client.close()
            await until(lambda: len(here.sink.buttons) == 2)
            assert here.sink.keys[2:] == [("alt", False), ("ctrl", False)]
            await until(lambda: len(here.server.connections) == 0)

    asyncio.run(scenario())


def test_passwords() -> None:
    async def scenario() -> None:
        limits = VncLimits(refusal_seconds=0.01)
        async with scene(password="secret", limits=limits) as here:
            with pytest.raises(Refused, match="wrong password"):
                await here.client(password="guess")
            for version in (b"003.003", b"003.007", b"003.008"):
                client = await here.client(password="secret", version=version)
                await client.refresh()
                assert client.pixels == shown(here.screen.picture)

    asyncio.run(scenario())


def test_an_empty_password_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        VncServer(FakeScreen(), FakeInput(), password="")


def test_a_client_that_does_not_share() -> None:
    async def scenario() -> None:
        async with scene() as here:
            first = await here.client()
            await here.client(shared=False)
            await until(lambda: len(here.server.connections) == 1)
            with pytest.raises(EOFError):
                await first.refresh()
            with pytest.raises(EOFError):  # nor may one join it
                await here.client()

    asyncio.run(scenario())


@pytest.mark.parametrize(("share", "admitted"), [(Share.FORCE_SHARED, False), (Share.IGNORE, True)])
def test_other_ways_of_sharing(share: Share, admitted: bool) -> None:
    async def scenario() -> None:
        limits = VncLimits(refusal_seconds=0.01)
        async with scene(share=share, limits=limits) as here:
            first = await here.client()
            if admitted:
                await (await here.client(shared=False)).refresh()
            else:
                with pytest.raises(EOFError):
                    await here.client(shared=False)
            await first.refresh()

    asyncio.run(scenario())


def test_a_client_that_does_not_read_holds_nobody() -> None:
    async def scenario() -> None:
        limits = VncLimits(stall_seconds=1)
        async with scene(pattern(600, 400), limits=limits) as here:
            slow, quick = await here.client(), await here.client()
            for _ in range(2000):  # 2000 pictures would be 2 GB
                slow.request()
            for number in range(1, 20):
                here.screen.fill(Rect(0, 0, 600, 400), number)
                slow.request()
                while quick.pixels[-1][-1] != number:
                    await quick.refresh(incremental=True)
                held = [
                    one._writer.transport.get_write_buffer_size() for one in here.server.connections
                ]
                assert max(held) <= 600 * 400 * 4 + (1 << 17)
            assert quick.pixels == shown(here.screen.picture)
            await until(lambda: len(here.server.connections) == 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"RFB 003.008\n\2",
        b"RFB 003.008\n\1\1\x7f",
        b"RFB 003.008\n\1\1" + pack(">BxH", 2, 0xFFFF),
        b"RFB 003.008\n\1\1" + pack(">BxxxI", 6, 0xFFFFFFFF),
    ],
)
def test_a_hostile_client_is_ended(sent: bytes) -> None:
    async def scenario() -> None:
        async with scene(limits=VncLimits(refusal_seconds=0.01)) as here:
            client = await here.connection()
            client.writer.write(sent)
            try:
                while await client.reader.read(4096):
                    pass
            except ConnectionResetError:
                pass
            await (await here.client()).refresh()

    asyncio.run(scenario())


def test_limits() -> None:
    async def scenario() -> None:
        limits = VncLimits(clients=2, handshake_seconds=0.2)
        async with scene(limits=limits) as here:
            idle = await here.connection()
            await here.client()
            with pytest.raises((EOFError, ConnectionError)):
                await here.client()
            with pytest.raises((EOFError, ConnectionError)):  # it never said a word
                await idle.reader.readexactly(100)
            await here.client()

    asyncio.run(scenario())


def test_a_unix_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with VncServer(FakeScreen(), FakeInput()) as server:
            address = await server.listen(parse_address(f"unix:{tmp_path}/vnc"))
            assert address.path == f"{tmp_path}/vnc"
            client = await RfbClient.connect(address)
            await client.refresh()
            await client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":1", Address("localhost", 5901)),
        ("127.0.0.1:0", Address("127.0.0.1", 5900)),
        ("[::1]:2", Address("::1", 5902)),
        ("unix:/run/vnc", Address(path="/run/vnc")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text, base=5900) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:a", "host:60000", "unix:"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_address(text, base=5900)


def test_an_address_in_use(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene() as here:
            with pytest.raises(VdiskError, match="cannot listen"):
                await here.server.listen(here.address)

    asyncio.run(scenario())
