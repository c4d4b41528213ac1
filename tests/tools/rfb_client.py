"""A VNC client for tests: decodes every encoding of the server, in any pixel format.

Written from RFC 6143 alone, so that it shares no code with the server but the numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from struct import calcsize, pack, unpack
from typing import TYPE_CHECKING, Any

from vdisk.vm.display.rfb.auth import encrypt
from vdisk.vm.display.rfb.wire import Encoding

if TYPE_CHECKING:
    from typing import Self

    from vdisk.vm.display.rfb.pixels import PixelFormat
    from vdisk.vm.display.serving import Address


class Refused(Exception):
    """The server did not let the client in."""


class RfbClient:
    """Connected; ``pixels`` holds what it was sent, as integers of the client's format."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.width = self.height = 0
        self.pixels: list[list[int]] = []
        self.name = ""
        self.pseudo: list[tuple[int, tuple[int, int, int, int], bytes]] = []
        self.colours: dict[int, tuple[int, int, int]] = {}
        self.updates = 0
        self.rectangles: list[tuple[int, int, int, int, int]] = []
        self.format: PixelFormat | None = None
        self._streams: dict[Any, Any] = {}

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        version: bytes = b"003.008",
        password: str = "",
        shared: bool = True,
    ) -> Self:
        opened = (
            asyncio.open_unix_connection(address.path)
            if address.path
            else asyncio.open_connection(address.host, address.port)
        )
        client = cls(*await opened)
        try:
            await client._shake_hands(version, password, shared)
        except BaseException:
            await client.close()
            raise
        return client

    async def _take(self, count: int) -> bytes:
        return await self.reader.readexactly(count)

    async def _unpack(self, layout: str) -> tuple[Any, ...]:
        return unpack(layout, await self._take(calcsize(layout)))

    async def _shake_hands(self, version: bytes, password: str, shared: bool) -> None:
        assert await self._take(12) == b"RFB 003.008\n"
        self.writer.write(b"RFB " + version + b"\n")
        if version == b"003.003":
            (kind,) = await self._unpack(">I")
        else:
            (kind,) = await self._take((await self._take(1))[0])
            self.writer.write(bytes([kind]))
        if kind == 2:
            self.writer.write(encrypt(password, await self._take(16)))
        if kind == 2 or version == b"003.008":
            (result,) = await self._unpack(">I")
            if result:
                said = b""
                if version == b"003.008":
                    said = await self._take((await self._unpack(">I"))[0])
                raise Refused(said.decode())
        self.writer.write(bytes([shared]))
        self.width, self.height = await self._unpack(">HH")
        await self._take(16)
        self.name = (await self._take((await self._unpack(">I"))[0])).decode()
        self._clear()

    def _clear(self) -> None:
        self.pixels = [[0] * self.width for _ in range(self.height)]

    # -- what it sends -----------------------------------------------------------------------

    def set_format(self, wanted: PixelFormat) -> None:
        self.format = wanted
        self.writer.write(bytes(4) + wanted.pack())

    def set_encodings(self, *encodings: int) -> None:
        self.writer.write(pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def request(self, *, incremental: bool = False) -> None:
        self.writer.write(pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def key(self, keysym: int, down: bool) -> None:
        self.writer.write(pack(">BBxxI", 4, down, keysym))

    def extended_key(self, keysym: int, number: int, down: bool) -> None:
        self.writer.write(pack(">BBHII", 255, 0, down, keysym, number))

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        self.writer.write(pack(">BBHH", 5, buttons, x, y))

    def cut_text(self, text: bytes) -> None:
        self.writer.write(pack(">BxxxI", 6, len(text)) + text)

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    # -- what it gets ------------------------------------------------------------------------

    async def refresh(self, *, incremental: bool = False) -> None:
        """Ask for an update and take it."""
        self.request(incremental=incremental)
        await self.next_update()

    async def next_update(self) -> None:
        while True:
            (kind,) = await self._take(1)
            if kind == 0:
                break
            assert kind == 1, f"message {kind}"
            first, count = await self._unpack(">xHH")
            for index in range(first, first + count):
                self.colours[index] = await self._unpack(">HHH")
        (count,) = await self._unpack(">xH")
        self.updates += 1
        self.rectangles = []
        for _ in range(count):
            *rect, encoding = await self._unpack(">HHHHi")
            self.rectangles.append((*rect, encoding))
            await self._rectangle(encoding, *rect)

    async def _rectangle(self, encoding: int, x: int, y: int, width: int, height: int) -> None:
        if encoding < 0:
            await self._pseudo(encoding, (x, y, width, height))
            return
        decode = {
            Encoding.RAW: self._raw,
            Encoding.HEXTILE: self._hextile,
            Encoding.ZLIB: self._zlib,
            Encoding.ZRLE: self._zrle,
            Encoding.TIGHT: self._tight,
        }[Encoding(encoding)]
        await decode(x, y, width, height)

    async def _pseudo(self, encoding: int, area: tuple[int, int, int, int]) -> None:
        data = b""
        if encoding == Encoding.EXTENDED_DESKTOP_SIZE:
            (screens,) = await self._unpack(">Bxxx")
            data = await self._take(16 * screens)
        elif encoding == Encoding.DESKTOP_NAME:
            data = await self._take((await self._unpack(">I"))[0])
        elif encoding == Encoding.LED_STATE:
            data = await self._take(1)
        self.pseudo.append((encoding, area, data))
        by_server = encoding == Encoding.EXTENDED_DESKTOP_SIZE and area[0] == 0
        if by_server or encoding == Encoding.DESKTOP_SIZE:
            self.width, self.height = area[2:]
            self._clear()

    # -- decoding ----------------------------------------------------------------------------

    @property
    def _size(self) -> int:
        return self.format.bits_per_pixel // 8 if self.format else 4

    def _pixel(self, data: bytes) -> int:
        return int.from_bytes(data, "big" if self.format and self.format.big_endian else "little")

    def _compact_size(self) -> int:
        wanted = self.format
        return 3 if wanted is None or (wanted.size == 4 and wanted.depth <= 24) else wanted.size

    def _compact(self, data: bytes) -> int:
        """A CPIXEL: the 3 bytes that matter, where a pixel has one that does not."""
        wanted = self.format
        if len(data) == self._size:
            return self._pixel(data)
        used = (
            0xFFFFFF
            if wanted is None
            else sum(most << at for most, at in zip(wanted.maxima, wanted.shifts, strict=True))
        )
        return self._pixel(data) << (0 if used < 1 << 24 else 8)

    def _put(self, x: int, y: int, width: int, values: list[int]) -> None:
        for row in range(len(values) // width):
            self.pixels[y + row][x : x + width] = values[row * width : (row + 1) * width]

    def _values(self, data: bytes) -> list[int]:
        size = self._size
        return [self._pixel(data[at : at + size]) for at in range(0, len(data), size)]

    async def _raw(self, x: int, y: int, width: int, height: int) -> None:
        self._put(x, y, width, self._values(await self._take(width * height * self._size)))

    def _inflate(self, stream: object, data: bytes) -> bytes:
        result: bytes = self._streams.setdefault(stream, zlib.decompressobj()).decompress(data)
        return result

    async def _zlib(self, x: int, y: int, width: int, height: int) -> None:
        data = self._inflate("zlib", await self._take((await self._unpack(">I"))[0]))
        self._put(x, y, width, self._values(data))

    async def _zrle(self, x: int, y: int, width: int, height: int) -> None:
        data = self._inflate("zrle", await self._take((await self._unpack(">I"))[0]))
        size, at = self._compact_size(), 0
        for top in range(0, height, 64):
            for left in range(0, width, 64):
                wide, high = min(64, width - left), min(64, height - top)
                kind, at = data[at], at + 1
                count = 1 if kind == 1 else wide * high
                assert kind in (0, 1)
                values = [self._compact(data[at + n * size :][:size]) for n in range(count)]
                at += count * size
                self._put(x + left, y + top, wide, values * (wide * high // count))
        assert at == len(data)

    async def _tight(self, x: int, y: int, width: int, height: int) -> None:
        (control,) = await self._take(1)
        wanted = self.format
        small = wanted is None or (wanted.depth == 24 and wanted.maxima == (255, 255, 255))
        size = 3 if small else self._size
        if control == 0x80:
            data = await self._take(size) * (width * height)
        else:
            assert control == 0
            data = await self._tight_data(width * height * size)
        values = [self._tight_pixel(data[at : at + size]) for at in range(0, len(data), size)]
        self._put(x, y, width, values)

    async def _tight_data(self, length: int) -> bytes:
        if length < 12:
            return await self._take(length)
        count = 0
        for shift in (0, 7, 14):
            (byte,) = await self._take(1)
            count |= (byte & (0x7F if shift < 14 else 0xFF)) << shift
            if byte < 0x80:
                break
        return self._inflate("tight", await self._take(count))

    def _tight_pixel(self, data: bytes) -> int:
        if len(data) != 3:
            return self._pixel(data)
        shifts = self.format.shifts if self.format else (16, 8, 0)
        return sum(byte << shift for byte, shift in zip(data, shifts, strict=True))

    async def _hextile(self, x: int, y: int, width: int, height: int) -> None:
        background = foreground = 0
        for top in range(y, y + height, 16):
            for left in range(x, x + width, 16):
                wide, high = min(16, x + width - left), min(16, y + height - top)
                (kind,) = await self._take(1)
                if kind & 1:
                    await self._raw(left, top, wide, high)
                    continue
                if kind & 2:
                    background = self._pixel(await self._take(self._size))
                if kind & 4:
                    foreground = self._pixel(await self._take(self._size))
                self._put(left, top, wide, [background] * (wide * high))
                for _ in range((await self._take(1))[0] if kind & 8 else 0):
                    colour = foreground
                    if kind & 16:
                        colour = self._pixel(await self._take(self._size))
                    place, size = await self._take(2)
                    across, down = (size >> 4) + 1, (size & 15) + 1
                    self._put(
                        left + (place >> 4), top + (place & 15), across, [colour] * (across * down)
                    )
