"""One browser that shows the web page: pictures out, keys and the mouse in."""

from __future__ import annotations

import asyncio
import contextlib
import json
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from vdisk.errors import VdiskError
from vdisk.vm.display.changes import all_tiles, rectangles
from vdisk.vm.display.keys import BY_BROWSER_CODE
from vdisk.vm.display.rfb.encodings import cut

if TYPE_CHECKING:
    from aiohttp import web

    from vdisk.vm.display.base import Frame
    from vdisk.vm.display.changes import Tile
    from vdisk.vm.display.rfb.wire import Rect
    from vdisk.vm.display.web import WebDisplay

LONGEST_MESSAGE: Final = 1024
"""Bytes that a browser may send at once: its messages are shorter than 100."""
LARGEST_MOTION: Final = 1 << 15
MOST_WAITING: Final = 256
"""Messages that are not worked off yet: a text of 25,000 characters, pasted."""
STALL_SECONDS: Final = 60.0
"""How long a browser may not take what is sent to it."""
FAREWELL_SECONDS: Final = 10.0
"""How long a browser that is to leave may not take the last picture."""
REFUSED: Final = 4000
"""The code of a close whose reason the page shows."""
_ACTIONS: Final = ("stop", "cont", "reset", "powerdown")
_SIZE = Struct(">BxHH")
_PICTURE = Struct(">BxH")
_RECT = Struct(">HHHH")
_MOST_RECTANGLES: Final = 1000


class WebProtocolError(VdiskError):
    """What came is none of the page's messages."""

    kind = "protocol"


def to_rgba(pixels: bytes) -> bytes:
    """Pixels as a canvas has them: red, green, blue, opaque."""
    rgba = bytearray(b"\xff") * len(pixels)
    rgba[0::4] = pixels[2::4]
    rgba[1::4] = pixels[1::4]
    rgba[2::4] = pixels[0::4]
    return bytes(rgba)


def encode_picture(frame: Frame, areas: list[Rect]) -> bytes:
    """A message with rectangles of a picture."""
    parts = [_PICTURE.pack(2, len(areas))]
    for area in areas:
        parts += [_RECT.pack(*area), to_rgba(cut(frame, area))]
    return b"".join(parts)


class WebClient:
    """Shows ``display`` in a browser until it goes away, and is ``gone`` then."""

    def __init__(self, display: WebDisplay, socket: web.WebSocketResponse) -> None:
        self._display = display
        self._socket = socket
        self._frame: Frame | None = None
        self._dirty: set[Tile] = set()
        self._size = (0, 0)
        self._state: str | None = None
        self._ready = True
        self._awake = asyncio.Event()
        self._leaving, self.gone = asyncio.Event(), asyncio.Event()
        self._reason: str | None = None
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST_WAITING)
        self._pressed: set[str] = set()
        self._buttons = 0
        self._sending: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Until the browser leaves, or is asked to.  Raises WebProtocolError."""
        self._display.watch.add(self._changed)
        tasks: list[asyncio.Task[Any]] = []
        tasks.append(asyncio.create_task(self._send(), name="web pictures"))
        try:
            self._changed(await self._display.watch.frame(), None)
            tasks.append(asyncio.create_task(self._receive(), name="web messages"))
            tasks.append(asyncio.create_task(self._work(), name="web input"))
            tasks.append(asyncio.create_task(self._leaving.wait(), name="web leaving"))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (OSError, TimeoutError):
            pass  # the browser has gone, or sleeps
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._finish_sending()
            self._display.watch.remove(self._changed)
            await self._release_all()
        if self._reason is not None:
            await self.end(self._reason)

    def leave(self, reason: str) -> None:
        """Have :meth:`run` end the connection, and the page say why."""
        self._reason = reason
        self._leaving.set()

    async def end(self, reason: str) -> None:
        """Close, and let the page say why.

        What the page has sent meanwhile is received until it answers, by this task alone: a
        connection that is closed with something unread in it is reset, and the reason is lost.
        """
        with contextlib.suppress(OSError):
            await self._socket.close(code=REFUSED, message=reason.encode()[:120])

    def tell(self, state: str) -> None:
        """What the machine does, as JSON."""
        self._state = state
        self._awake.set()

    # -- pictures ----------------------------------------------------------------------------

    def _changed(self, frame: Frame, tiles: set[Tile] | None) -> None:
        self._frame = frame
        self._dirty |= all_tiles(frame.width, frame.height) if tiles is None else tiles
        self._awake.set()

    async def _send(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            async with asyncio.timeout(STALL_SECONDS):
                state, self._state = self._state, None
                if state is not None:
                    await self._socket.send_str(state)
                if self._ready and self._dirty and self._frame is not None:
                    await self._send_picture(self._frame)

    async def _send_picture(self, frame: Frame) -> None:
        size = (frame.width, frame.height)
        if size != self._size:
            self._size, self._dirty = size, all_tiles(*size)
            await self._socket.send_bytes(_SIZE.pack(1, *size))
        areas = rectangles(self._dirty, frame)
        if len(areas) > _MOST_RECTANGLES:
            areas = rectangles(all_tiles(*size), frame)
        self._dirty = set()
        if areas:
            self._ready = False
            message = await asyncio.to_thread(encode_picture, frame, areas)
            self._sending = asyncio.ensure_future(self._socket.send_bytes(message))
            await asyncio.shield(self._sending)

    async def _finish_sending(self) -> None:
        """Let a picture out that was begun.

        A thread packs it, whatever becomes of who waits for that: it would be sent behind the
        farewell, where a browser takes it for an error and does not show why it had to leave.
        """
        if self._sending is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await asyncio.gather(self._sending, return_exceptions=True)

    # -- input -------------------------------------------------------------------------------

    async def _receive(self) -> None:
        from aiohttp import WSMsgType

        async for message in self._socket:
            if message.type is WSMsgType.TEXT:
                parsed = parse_message(message.data)
                if parsed["type"] == "shown":
                    self._ready = True
                    self._awake.set()
                else:
                    await self._waiting.put(parsed)
            elif message.type is WSMsgType.BINARY:
                raise WebProtocolError("a message that is not text")

    async def _work(self) -> None:
        """One after the other: typing a text takes as long as the guest does."""
        while True:
            await self._handle(await self._waiting.get())

    async def _handle(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "key":
                await self._key(message["code"], message["down"])
            case "text":
                await self._display.input.type(message["text"])
            case "move":
                motion = (message["dx"], message["dy"], message["wheel"])
                await self._display.input.pointer(*motion, None)
            case "buttons":
                self._buttons = message["buttons"]
                await self._display.input.pointer(0, 0, 0, self._buttons)
            case "power":
                await self._display.act(message["action"])

    async def _key(self, code: str, down: bool) -> None:
        qcode = BY_BROWSER_CODE.get(code)
        if qcode is None:
            return  # a key that a PC of this kind does not have
        (self._pressed.add if down else self._pressed.discard)(qcode)
        await self._display.input.keys([(qcode, down)])

    async def _release_all(self) -> None:
        """Nobody is left to release what this browser holds."""
        with contextlib.suppress(RuntimeError):  # the input thread has ended with the display
            await self._display.input.keys((qcode, False) for qcode in sorted(self._pressed))
            if self._buttons:
                await self._display.input.pointer(0, 0, 0, 0)


_FIELDS: Final[dict[str, dict[str, type]]] = {
    "shown": {},
    "key": {"code": str, "down": bool},
    "text": {"text": str},
    "move": {"dx": int, "dy": int, "wheel": int},
    "buttons": {"buttons": int},
    "power": {"action": str},
}


def parse_message(text: str) -> dict[str, Any]:
    """A message of the page, all of whose members are there and of their type and range."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WebProtocolError(f"a message that is no JSON: {error}") from error
    kind = message.get("type") if isinstance(message, dict) else None
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None or message.keys() != {"type", *fields}:
        raise WebProtocolError("none of the page's messages")
    for name, wanted in fields.items():
        value = message[name]
        if type(value) is not wanted or (type(value) is int and abs(value) > LARGEST_MOTION):
            raise WebProtocolError(f"the member {name} of a message is wrong")
    if kind == "buttons" and not 0 <= message["buttons"] <= 7:
        raise WebProtocolError("a mouse has three buttons")
    if kind == "power" and message["action"] not in _ACTIONS:
        raise WebProtocolError("a machine has no such button")
    return dict(message)
