"""The web display to a client that speaks HTTP and WebSocket: who is let in, and what is said."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from struct import unpack_from
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp.web import WebSocketResponse
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.fake_machine import FakeMachine, pattern
from tests.tools.patience import PATIENCE
from vdisk.errors import VdiskError
from vdisk.vm.display import web
from vdisk.vm.display.rfb.wire import Rect
from vdisk.vm.display.web import PAGE, WebDisplay
from vdisk.vm.display.web_client import WebProtocolError, parse_message, to_rgba
from vdisk.vm.monitor.control import RunState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vdisk.vm.display.base import Frame


class Browser:
    """A session with its cookies, at the URL of a display."""

    def __init__(self, session: aiohttp.ClientSession, url: str, machine: FakeMachine) -> None:
        self.session, self.url, self.machine = session, url, machine
        self.base = url.partition("/?")[0]

    async def get(self, path: str, **options: Any) -> tuple[int, str, Any]:
        async with self.session.get(self.base + path, **options) as answer:
            return answer.status, await answer.text(), answer.headers

    async def visit(self) -> None:
        status, text, _ = await self.get(self.url.removeprefix(self.base))
        assert status == 200
        assert "<canvas" in text

    def socket(self, origin: str | None = None) -> Any:
        return self.session.ws_connect(
            f"{self.base}/socket", headers={"Origin": self.base if origin is None else origin}
        )


@asynccontextmanager
async def browser(picture: Frame | None = None) -> AsyncIterator[Browser]:
    machine = FakeMachine()
    machine.screen.show(picture or pattern(100, 50))
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address that is no name
    async with asyncio.timeout(PATIENCE), WebDisplay(machine) as display:
        url = await display.listen()
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            yield Browser(session, url, machine)


class Canvas:
    """What the page would show."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.size = (0, 0)
        self.rows: list[bytearray] = []
        self.state: dict[str, Any] = {}
        self.areas: list[tuple[int, ...]] = []

    async def take(self, *, answer: bool = True) -> str:
        message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            self.state = json.loads(message.data)
            return "state"
        assert message.type is aiohttp.WSMsgType.BINARY, message
        kind, *self_size = unpack_from(">BxHH", message.data.ljust(6, b"\0"))
        if kind == 1:
            self.size = (self_size[0], self_size[1])
            self.rows = [bytearray(4 * self.size[0]) for _ in range(self.size[1])]
            return "size"
        at, self.areas = 4, []
        for _ in range(self_size[0]):
            x, y, width, height = area = unpack_from(">HHHH", message.data, at)
            self.areas.append(area)
            at += 8
            for row in range(y, y + height):
                self.rows[row][4 * x : 4 * (x + width)] = message.data[at : at + 4 * width]
                at += 4 * width
        assert at == len(message.data)
        if answer:
            await self.socket.send_json({"type": "shown"})
        return "picture"

    async def until(self, wanted: str, **options: Any) -> None:
        while await self.take(**options) != wanted:
            pass

    def shows(self, frame: Frame) -> bool:
        return self.size == frame[:2] and b"".join(self.rows) == to_rgba(frame.pixels)


def test_pixels() -> None:
    assert to_rgba(b"\1\2\3\0\4\5\6\x99") == b"\3\2\1\xff\6\5\4\xff"


def test_a_stranger_gets_nothing() -> None:
    async def scenario() -> None:
        async with browser() as here:
            for path in ("/", "/screen.js", "/style.css", "/?token=wrong", "/?token=ö"):
                status, text, _ = await here.get(path)
                assert status == 403
                assert "token" in text
                assert "<canvas" not in text
            for path in ("/nope", "/..%2fweb.py", "/%2e%2e/web.py"):
                assert (await here.get(path))[0] == 404
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with here.socket():
                    pass
            assert caught.value.status == 403

    asyncio.run(scenario())


def test_the_token_becomes_a_cookie() -> None:
    async def scenario() -> None:
        async with browser() as here:
            path = here.url.removeprefix(here.base)
            status, _, headers = await here.get(path, allow_redirects=False)
            assert (status, headers["Location"]) == (303, "/")
            cookie = headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert f"vdisk-{here.base.rpartition(':')[2]}=" in cookie
            for page in PAGE.iterdir():
                status, text, headers = await here.get(f"/{page.name}")
                assert (status, text) == (200, page.read_text())
                assert "default-src 'none'" in headers["Content-Security-Policy"]

    asyncio.run(scenario())


@pytest.mark.parametrize("origin", ["http://evil.example", "null", ""])
def test_pages_of_other_sites_get_no_socket(origin: str) -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            with pytest.raises(aiohttp.WSServerHandshakeError):
                async with here.socket(origin):
                    pass
            async with here.socket() as socket:
                await Canvas(socket).until("picture")

    asyncio.run(scenario())


def test_the_picture_and_its_changes() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            screen = here.machine.screen
            async with here.socket() as socket:
                canvas = Canvas(socket)
                await canvas.until("picture")
                assert canvas.shows(screen.picture)
                screen.fill(Rect(70, 20, 2, 2), 0xFF0000)
                await canvas.until("picture")
                assert canvas.areas == [(64, 16, 36, 16)]
                assert canvas.shows(screen.picture)
                screen.show(pattern(30, 60))
                await canvas.until("picture")
                assert canvas.shows(screen.picture)

    asyncio.run(scenario())


def test_no_picture_comes_before_the_last_was_shown() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            async with here.socket() as socket:
                canvas = Canvas(socket)
                await canvas.until("picture", answer=False)
                for colour in range(4):
                    here.machine.screen.fill(Rect(0, 0, 100, 50), colour)
                    await asyncio.sleep(0.05)
                for _ in range(2):
                    assert await canvas.take() == "state"
                await socket.send_json({"type": "shown"})
                await canvas.until("picture")
                assert canvas.shows(here.machine.screen.picture)

    asyncio.run(scenario())


def test_the_farewell_comes_behind_the_last_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent later hides it: a browser then says that the connection broke."""
    sent: list[str] = []
    send, close = WebSocketResponse.send_bytes, WebSocketResponse.close
    begun = asyncio.Event()

    async def slowly(socket: Any, data: bytes) -> None:
        if data[0] == 2:
            begun.set()
            await asyncio.sleep(0.1)
        await send(socket, data)
        sent.append("picture" if data[0] == 2 else "size")

    async def closing(socket: Any, **how: Any) -> bool:
        sent.append("farewell")
        return await close(socket, **how)

    monkeypatch.setattr(WebSocketResponse, "send_bytes", slowly)
    monkeypatch.setattr(WebSocketResponse, "close", closing)

    async def until_closed(socket: aiohttp.ClientWebSocketResponse) -> int | None:
        async for _message in socket:
            pass
        return socket.close_code

    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(100, 50))
        jar = aiohttp.CookieJar(unsafe=True)
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(cookie_jar=jar) as session:
            async with WebDisplay(machine) as display:
                here = Browser(session, await display.listen(), machine)
                await here.visit()
                reading = asyncio.create_task(until_closed(await here.socket()))
                await begun.wait()
            assert await reading == 4000
        assert sent[:3] == ["size", "picture", "farewell"]

    asyncio.run(scenario())


def test_keys_and_the_mouse() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            sink = here.machine.input
            async with here.socket() as socket:
                for code in ("ShiftLeft", "KeyA", "NoSuchKey"):
                    await socket.send_json({"type": "key", "code": code, "down": True})
                await socket.send_json({"type": "move", "dx": 3, "dy": -4, "wheel": 1})
                await socket.send_json({"type": "buttons", "buttons": 5})
                async with asyncio.timeout(PATIENCE):
                    while not sink.buttons:
                        await asyncio.sleep(0.01)
                assert sink.keys == [("shift", True), ("a", True)]
                assert sink.moves == [(3, -4, 1)]
                assert sink.buttons == [5]
            async with asyncio.timeout(PATIENCE):
                while len(sink.buttons) < 2:  # released, as the browser has gone
                    await asyncio.sleep(0.01)
            assert sink.keys[2:] == [("a", False), ("shift", False)]

    asyncio.run(scenario())


def test_several_look_at_once_and_what_one_does_the_others_see() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            async with here.socket() as one, here.socket() as other:
                await one.send_json({"type": "power", "action": "stop"})
                for socket in (one, other):
                    seen = set()
                    while seen != {"picture", "paused"}:
                        message = await socket.receive()
                        if message.type is aiohttp.WSMsgType.BINARY:
                            seen |= {"picture"} if message.data[0] == 2 else set()
                        elif json.loads(message.data)["status"] == "paused":
                            seen.add("paused")
                await one.send_json({"type": "key", "code": "KeyA", "down": True})
                await other.send_json({"type": "key", "code": "KeyB", "down": True})
                async with asyncio.timeout(PATIENCE):
                    while len(here.machine.input.keys) < 2:
                        await asyncio.sleep(0.01)
                assert sorted(here.machine.input.typed()) == ["a", "b"]

    asyncio.run(scenario())


def test_a_text_is_typed_as_fast_as_the_guest_takes_it_while_pictures_go_on() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            sink = here.machine.input
            sink.busy = True
            async with here.socket() as socket:
                await socket.send_json({"type": "text", "text": "A\u00e9?\n"})
                await socket.send_json({"type": "key", "code": "KeyB", "down": True})
                pictures = 0
                while pictures < 3:
                    message = await socket.receive()
                    if message.type is aiohttp.WSMsgType.BINARY and message.data[0] == 2:
                        pictures += 1
                        here.machine.screen.fill(Rect(0, 0, 9, 9), pictures)
                        await socket.send_json({"type": "shown"})
                assert sink.keys == []
                sink.busy = False
                async with asyncio.timeout(PATIENCE):
                    while ("b", True) not in sink.keys:
                        await asyncio.sleep(0.01)
                assert sink.typed() == ["shift", "a", "shift", "slash", "ret", "b"]

    asyncio.run(scenario())


def test_buttons_and_what_they_do() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            async with here.socket() as socket:
                canvas = Canvas(socket)
                await canvas.until("state")
                assert canvas.state["name"] == "fake"
                assert canvas.state["drives"][0] == {
                    "device": "ide0-hd0",
                    "filename": "disk.qcow2",
                    "rd_bytes": 0,
                    "wr_bytes": 0,
                }
                for action in ("stop", "reset", "powerdown", "cont", "stop"):
                    await socket.send_json({"type": "power", "action": action})
                while canvas.state["status"] != "paused" or len(here.machine.calls) < 5:
                    await canvas.until("state")
                assert here.machine.calls == ["stop", "reset", "powerdown", "cont", "stop"]
                here.machine.state = RunState.IO_ERROR
                while canvas.state["status"] != "io-error":
                    await canvas.until("state")

    asyncio.run(scenario())


def test_what_is_no_message_ends_the_connection() -> None:
    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            for sent in (b"binary", "text", "x" * 2000):
                async with here.socket() as socket:
                    await (socket.send_bytes if isinstance(sent, bytes) else socket.send_str)(sent)
                    while not (message := await socket.receive()).type & 0x100 and (
                        message.type is not aiohttp.WSMsgType.CLOSE
                    ):
                        pass
            async with here.socket() as socket:
                await Canvas(socket).until("picture")

    asyncio.run(scenario())


def test_too_many_browsers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CLIENTS", 1)

    async def scenario() -> None:
        async with browser() as here:
            await here.visit()
            async with here.socket() as first, here.socket() as second:
                message = await second.receive()
                assert message.data == 4000
                await Canvas(first).until("picture")

    asyncio.run(scenario())


def test_an_address_in_use() -> None:
    async def scenario() -> None:
        async with browser() as here:
            port = int(here.base.rpartition(":")[2])
            async with WebDisplay(FakeMachine()) as other:
                with pytest.raises(VdiskError, match="cannot listen"):
                    await other.listen("127.0.0.1", port)

    asyncio.run(scenario())


GOOD = [
    {"type": "shown"},
    {"type": "key", "code": "KeyA", "down": True},
    {"type": "text", "text": "é"},
    {"type": "move", "dx": 1, "dy": -1, "wheel": 0},
    {"type": "buttons", "buttons": 7},
    {"type": "power", "action": "reset"},
]


@pytest.mark.parametrize("message", GOOD)
def test_good_messages(message: dict[str, Any]) -> None:
    assert parse_message(json.dumps(message)) == message


BAD = [
    *("", "[]", "1", "null", "{}", '{"type": []}', '{"type": "quit"}', "[" * 500),
    '{"type": "shown", "more": 1}',
    '{"type": "key", "code": 1, "down": true}',
    '{"type": "key", "code": "KeyA", "down": 1}',
    '{"type": "move", "dx": 1e3, "dy": 0, "wheel": 0}',
    '{"type": "move", "dx": 100000, "dy": 0, "wheel": 0}',
    '{"type": "move", "dx": true, "dy": 0, "wheel": 0}',
    '{"type": "buttons", "buttons": 8}',
    '{"type": "text", "text": 1}',
    '{"type": "power", "action": "quit"}',
]


@pytest.mark.parametrize("text", BAD)
def test_bad_messages(text: str) -> None:
    with pytest.raises(WebProtocolError):
        parse_message(text)


JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "code", "dx", "down"]), inner)
    ),
)


@given(JSON)
def test_any_json(value: Any) -> None:
    with suppress(WebProtocolError):
        parse_message(json.dumps(value))
