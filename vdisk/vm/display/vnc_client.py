"""One client of the VNC server: a task that reads what it wants, one that sends what it gets.

The two share: what the client asked for last, and the tiles it has not been shown.  Both are
bounded, so it does not matter how fast the client asks or how slowly it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from vdisk.vm.display.changes import all_tiles, rectangles
from vdisk.vm.display.keys import BY_NUMBER, KeysymKeyboard
from vdisk.vm.display.pointer import AbsolutePointer
from vdisk.vm.display.rfb import session, wire
from vdisk.vm.display.rfb.encodings import Encoder
from vdisk.vm.display.rfb.pixels import COLOUR_MAPPED, colour_map
from vdisk.vm.display.rfb.session import Phase, RfbSession
from vdisk.vm.display.rfb.wire import RELATIVE_ORIGIN, Encoding, Rect, RfbProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.display.base import Frame
    from vdisk.vm.display.changes import Tile
    from vdisk.vm.display.vnc import VncServer

log = logging.getLogger("vdisk.vm.display.vnc")

_READ = 1 << 16
_MOST_RECTANGLES = 1000
"""Of one update; where more changed, all is sent."""
_WHEEL_UP, _WHEEL_DOWN = 8, 16
_SIZE_BY_SERVER, _SIZE_BY_CLIENT = 0, 1
_SIZE_PROHIBITED = 1
_PSEUDO = (Encoding.POINTER_MOTION_CHANGE, Encoding.EXTENDED_KEY_EVENT, Encoding.DESKTOP_NAME)
"""Pseudo-encodings that are answered once, by a rectangle that says: I know that too."""


class VncClient:
    """``exclusive``: it did not want to share."""

    def __init__(
        self,
        server: VncServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        challenge: bytes,
        check: Callable[[bytes, bytes], bool] | None,
    ) -> None:
        self.peer = writer.get_extra_info("peername") or "unix socket"
        self.exclusive = False
        self._server = server
        self._reader = reader
        self._writer = writer
        self._session = RfbSession(challenge=challenge, check=check)
        self._encoder = Encoder()
        self._keyboard = KeysymKeyboard()
        self._pressed: set[str] = set()
        self._pointer = AbsolutePointer()
        self._buttons = 0
        self._extensions: frozenset[int] = frozenset()
        self._announce: list[int] = []
        self._frame: Frame | None = None
        self._shown_size = (0, 0)
        self._dirty: set[Tile] = set()
        self._asked: session.UpdateRequest | None = None
        self._refuse_size = False
        self._send_colours = False
        self._leds = -1
        self._awake = asyncio.Event()
        self._encoding = asyncio.Lock()

    @property
    def is_in(self) -> bool:
        """Whether the handshake is over."""
        return self._session.phase is Phase.NORMAL

    async def run(self) -> None:
        """Serve until the client leaves, or breaks the protocol (RfbProtocolError)."""
        try:
            async with asyncio.timeout(self._server.limits.handshake_seconds):
                await self._shake_hands()
            await self._converse()
        finally:
            self._writer.transport.abort()  # who has left, or does not read, is owed nothing
            self._server.watch.remove(self._changed)
            await self._release_all()

    async def _converse(self) -> None:
        sender = asyncio.create_task(self._send_updates(), name="vnc updates")
        receiver = asyncio.create_task(self._receive(), name="vnc input")
        try:
            done, _ = await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            sender.cancel()
            receiver.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    # -- handshake ---------------------------------------------------------------------------

    async def _shake_hands(self) -> None:
        while not self.is_in:
            await self._flush()
            data = await self._reader.read(_READ)
            if not data:
                raise EOFError("in the handshake")
            try:
                self._session.receive_data(data)
            except RfbProtocolError:
                await asyncio.sleep(self._server.limits.refusal_seconds)
                await self._flush()
                raise
        event = self._session.next_event()
        assert isinstance(event, session.Initialised)
        self.exclusive = not event.shared
        if not self._server.admit(self, shared=event.shared):
            raise RfbProtocolError("refused: the screen is not shared that way")
        self._server.watch.add(self._changed)  # before looking, so that no change is missed
        self._frame = frame = await self._server.watch.frame()
        self._shown_size = (frame.width, frame.height)
        self._dirty = self._everything()
        self._session.introduce(frame.width, frame.height, self._server.name)
        await self._flush()
        log.info("%s: connected", self.peer)

    async def _flush(self) -> None:
        self._writer.write(self._session.data_to_send())
        await self._drain()

    async def _drain(self) -> None:
        async with asyncio.timeout(self._server.limits.stall_seconds):
            await self._writer.drain()

    # -- what the client says ----------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            while (event := self._session.next_event()) is not None:
                await self._handle(event)
            data = await self._reader.read(_READ)
            if not data:
                return
            self._session.receive_data(data)

    async def _handle(self, event: session.Event) -> None:
        match event:
            case session.UpdateRequest():
                self._request(event)
            case session.KeyEvent():
                await self._key(event)
            case session.PointerEvent():
                await self._point(event)
            case session.EncodingsWanted(encodings):
                async with self._encoding:
                    self._use_encodings(encodings)
            case session.PixelFormatWanted(wanted):
                async with self._encoding:  # one update has one format
                    self._encoder.format = wanted
                self._send_colours = wanted == COLOUR_MAPPED
            case session.SizeWanted():
                self._refuse_size = True
                self._awake.set()

    def _request(self, event: session.UpdateRequest) -> None:
        # Two requests before an answer are one for both; the area is never less than asked for.
        if not event.incremental:
            self._dirty = self._everything()
        self._asked = event
        self._awake.set()

    def _use_encodings(self, encodings: tuple[int, ...]) -> None:
        self._encoder.choose(encodings)
        before, self._extensions = self._extensions, frozenset(encodings)
        new = self._extensions - before
        self._announce += [one for one in _PSEUDO if one in new and one not in self._announce]
        if Encoding.EXTENDED_DESKTOP_SIZE in new:
            self._shown_size = (0, 0)  # the layout of the screen is told with the first update
        self._awake.set()

    async def _key(self, event: session.KeyEvent) -> None:
        qcode = BY_NUMBER.get(event.number)
        if qcode is not None:
            keys = [(qcode, event.down)]
        else:
            keys = self._keyboard.key(event.keysym, event.down, self._server.input.sink.leds())
        for name, down in keys:
            (self._pressed.add if down else self._pressed.discard)(name)
        await self._server.input.keys(keys)

    async def _point(self, event: session.PointerEvent) -> None:
        if Encoding.POINTER_MOTION_CHANGE in self._extensions:
            dx, dy = event.x - RELATIVE_ORIGIN, event.y - RELATIVE_ORIGIN
        else:
            dx, dy = self._pointer.move_to(event.x, event.y)
        pressed = event.buttons & ~self._buttons
        wheel = bool(pressed & _WHEEL_DOWN) - bool(pressed & _WHEEL_UP)
        changed = event.buttons != self._buttons
        self._buttons = event.buttons
        # RFB has left, middle, right; the PS/2 protocol left, right, middle.
        left, middle, right = (event.buttons >> bit & 1 for bit in range(3))
        buttons = left | right << 1 | middle << 2 if changed else None
        await self._server.input.pointer(dx, dy, wheel, buttons)

    async def _release_all(self) -> None:
        """Nobody is left to release what this client holds."""
        with contextlib.suppress(RuntimeError):  # the input thread has ended with the server
            await self._server.input.keys((qcode, False) for qcode in sorted(self._pressed))
            if self._buttons:
                await self._server.input.pointer(0, 0, 0, 0)

    # -- what the client gets ----------------------------------------------------------------

    def _changed(self, frame: Frame, tiles: set[Tile] | None) -> None:
        self._frame = frame
        self._dirty = self._everything() if tiles is None else self._dirty | tiles
        self._awake.set()

    def _everything(self) -> set[Tile]:
        """Every tile of the picture, and of what the client has if that is larger."""
        frame = self._frame
        width, height = (frame.width, frame.height) if frame else (0, 0)
        return all_tiles(max(width, self._shown_size[0]), max(height, self._shown_size[1]))

    async def _send_updates(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            if self._send_colours:
                self._send_colours = False
                self._writer.write(colour_map())
            async with self._encoding:
                message = await self._next_update()
                self._writer.write(message)
            if message:
                await self._drain()
                self._awake.set()  # meanwhile more may have been asked for

    async def _next_update(self) -> bytes:
        """An update that was asked for; empty if there is nothing to tell."""
        asked, frame = self._asked, self._frame
        if asked is None or frame is None:
            return b""
        found = self._extension_rectangles(frame)
        size = (frame.width, frame.height)
        if size != self._shown_size and self._can_resize:
            # Nothing may follow a change of size; the client asks again (rfbproto).
            self._shown_size, self._asked = size, None
            return wire.update([*found, self._size_rectangle(size, _SIZE_BY_SERVER, 0)])
        # A client that cannot learn of another size is shown what fits into the old one.
        shown = frame if self._can_resize else _fitted(frame, self._shown_size)
        areas = self._areas(shown)
        self._dirty = set()
        if not areas and not found:
            return b""
        self._asked = None
        encoder = self._encoder
        encoded = await asyncio.to_thread(lambda: [encoder.encode(shown, area) for area in areas])
        return wire.update([*found, *(one for group in encoded for one in group)])

    def _areas(self, frame: Frame) -> list[Rect]:
        areas = rectangles(self._dirty, frame)
        if len(areas) > _MOST_RECTANGLES:
            areas = [Rect(0, 0, frame.width, frame.height)]
        return areas

    @property
    def _can_resize(self) -> bool:
        return bool(self._extensions & {Encoding.DESKTOP_SIZE, Encoding.EXTENDED_DESKTOP_SIZE})

    def _size_rectangle(self, size: tuple[int, int], reason: int, status: int) -> bytes:
        if Encoding.EXTENDED_DESKTOP_SIZE not in self._extensions:
            return wire.rectangle(Rect(0, 0, *size), Encoding.DESKTOP_SIZE)
        layout = b"\1\0\0\0" + wire.SCREEN.pack(0, 0, 0, *size, 0)
        area = Rect(reason, status, *size)
        return wire.rectangle(area, Encoding.EXTENDED_DESKTOP_SIZE, layout)

    def _extension_rectangles(self, frame: Frame) -> list[bytes]:
        """What pseudo-encodings have to say now."""
        size = (frame.width, frame.height)
        found = []
        for encoding in self._announce:
            area, data = Rect(0, 0, *size), b""
            if encoding == Encoding.DESKTOP_NAME:
                name = self._server.name.encode("utf-8", "replace")[:256]
                area, data = Rect(0, 0, 0, 0), len(name).to_bytes(4, "big") + name
            found.append(wire.rectangle(area, encoding, data))
        self._announce.clear()
        if self._refuse_size and Encoding.EXTENDED_DESKTOP_SIZE in self._extensions:
            found.append(self._size_rectangle(size, _SIZE_BY_CLIENT, _SIZE_PROHIBITED))
        self._refuse_size = False
        leds = self._server.input.sink.leds()
        if Encoding.LED_STATE in self._extensions and leds != self._leds:
            found.append(wire.rectangle(Rect(0, 0, *size), Encoding.LED_STATE, bytes([leds & 7])))
            self._leds = leds
        return found


def _fitted(frame: Frame, size: tuple[int, int]) -> Frame:
    """A picture cut or filled with black to ``size``."""
    width, height = size
    if (frame.width, frame.height) == size:
        return frame
    stride, shown = frame.width * 4, min(frame.width, width) * 4
    rows = [
        frame.pixels[row * stride : row * stride + shown].ljust(width * 4, b"\0")
        for row in range(min(frame.height, height))
    ]
    pixels = b"".join(rows).ljust(width * height * 4, b"\0")
    return frame._replace(width=width, height=height, pixels=pixels)
