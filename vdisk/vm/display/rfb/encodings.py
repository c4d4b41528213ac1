"""How the pixels of a rectangle go over the wire (RFC 6143, section 7.7; Zlib and Tight: rfbproto).

================  ================================================================================
Raw               pixels, row by row
Hextile           tiles of 16 x 16: raw, one colour, or a background and coloured rectangles on it
Zlib              raw pixels through one zlib stream
ZRLE              tiles of 64 x 64 of CPIXELs, one colour or raw, through one zlib stream
Tight             a fill, or 3 bytes a pixel through one of its zlib streams
================  ================================================================================

The zlib streams are the client's and last as long as its connection.  Compression is light: a
screen is flat, and the network is mostly this machine.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from vdisk.vm.display.base import BYTES_PER_PIXEL
from vdisk.vm.display.image import to_rgb
from vdisk.vm.display.rfb.pixels import NATIVE
from vdisk.vm.display.rfb.wire import Encoding, Rect, rectangle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.vm.display.base import Frame
    from vdisk.vm.display.rfb.pixels import PixelFormat

_LEVEL = 2
_HEXTILE = 16
_ZRLE = 64
_RAW, _BACKGROUND, _FOREGROUND, _SUBRECTS = 1, 2, 4, 8
"""Bits of a Hextile tile's subencoding."""
_TIGHT_FILL = 0x80
_TIGHT_SHORTEST = 12
"""Bytes from which on Tight compresses."""
_TIGHT_WIDEST = 2048
_RUNS = re.compile(b"\x01+")

PIXELS = (Encoding.ZRLE, Encoding.TIGHT, Encoding.ZLIB, Encoding.HEXTILE, Encoding.RAW)
"""Encodings of pixels."""


def cut(frame: Frame, rect: Rect) -> bytes:
    """The pixels of a rectangle, row by row."""
    stride = frame.width * BYTES_PER_PIXEL
    start = rect.y * stride + rect.x * BYTES_PER_PIXEL
    if rect.width == frame.width:
        return frame.pixels[start : start + rect.height * stride]
    length = rect.width * BYTES_PER_PIXEL
    end = start + rect.height * stride
    return b"".join([frame.pixels[row : row + length] for row in range(start, end, stride)])


def _tiles(data: bytes, width: int, height: int, size: int, edge: int) -> Iterator[bytes]:
    """Tiles of pixels of ``size`` bytes, from left to right, from top to bottom."""
    stride = width * size
    for top in range(0, height, edge):
        first, last = top * stride, min(top + edge, height) * stride
        for left in range(0, stride, edge * size):
            length = min(edge * size, stride - left)
            yield b"".join(
                [data[at : at + length] for at in range(first + left, last + left, stride)]
            )


class Encoder:
    """Encodes for one client, who has chosen an encoding and a pixel format."""

    def __init__(self) -> None:
        self.encoding = Encoding.RAW
        self.format: PixelFormat = NATIVE
        self._zlib = zlib.compressobj(_LEVEL)
        self._zrle = zlib.compressobj(_LEVEL)
        self._tight = zlib.compressobj(_LEVEL)

    def choose(self, wanted: tuple[int, ...]) -> None:
        """The first of the client's that is one of ours; raw if there is none."""
        self.encoding = next((Encoding(one) for one in wanted if one in PIXELS), Encoding.RAW)

    def encode(self, frame: Frame, rect: Rect) -> list[bytes]:
        """Rectangles that together are ``rect``."""
        if self.encoding is Encoding.TIGHT:
            return [self._one(frame, part) for part in _narrow(rect, _TIGHT_WIDEST)]
        return [self._one(frame, rect)]

    def _one(self, frame: Frame, rect: Rect) -> bytes:
        data = _ENCODERS[self.encoding](self, cut(frame, rect), rect)
        return rectangle(rect, self.encoding, data)

    def _encode_raw(self, pixels: bytes, _rect: Rect) -> bytes:
        return self.format.convert(pixels)

    def _encode_zlib(self, pixels: bytes, _rect: Rect) -> bytes:
        return _with_length(self._zlib, self.format.convert(pixels))

    def _encode_zrle(self, pixels: bytes, rect: Rect) -> bytes:
        size = self.format.compact_size
        data = self.format.convert_compact(pixels)
        parts = []
        for tile in _tiles(data, rect.width, rect.height, size, _ZRLE):
            colour = tile[:size]
            solid = tile == colour * (len(tile) // size)
            parts.append(b"\1" + colour if solid else b"\0" + tile)
        return _with_length(self._zrle, b"".join(parts))

    def _encode_tight(self, pixels: bytes, _rect: Rect) -> bytes:
        wanted = self.format
        small = wanted.size == 4 and wanted.depth == 24 and wanted.maxima == (255, 255, 255)
        data = to_rgb(pixels) if small else wanted.convert(pixels)
        colour = data[: 3 if small else wanted.size]
        if data == colour * (len(data) // len(colour)):
            return bytes([_TIGHT_FILL]) + colour
        if len(data) < _TIGHT_SHORTEST:
            return b"\0" + data
        packed = self._tight.compress(data) + self._tight.flush(zlib.Z_SYNC_FLUSH)
        return b"\0" + _compact_length(len(packed)) + packed

    def _encode_hextile(self, pixels: bytes, rect: Rect) -> bytes:
        size = self.format.size
        data = self.format.convert(pixels)
        width_left = iter(_tile_widths(rect))
        parts = []
        for tile in _tiles(data, rect.width, rect.height, size, _HEXTILE):
            parts.append(_hextile(tile, next(width_left), size))
        return b"".join(parts)


_ENCODERS: dict[Encoding, Callable[[Encoder, bytes, Rect], bytes]] = {
    Encoding.RAW: Encoder._encode_raw,
    Encoding.ZLIB: Encoder._encode_zlib,
    Encoding.ZRLE: Encoder._encode_zrle,
    Encoding.TIGHT: Encoder._encode_tight,
    Encoding.HEXTILE: Encoder._encode_hextile,
}


def _with_length(stream: zlib._Compress, data: bytes) -> bytes:
    packed = stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)
    return len(packed).to_bytes(4, "big") + packed


def _compact_length(length: int) -> bytes:
    """Tight's numbers of 7, 14 or 22 bits, the low ones first."""
    if length < 1 << 7:
        return bytes([length])
    if length < 1 << 14:
        return bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])


def _narrow(rect: Rect, widest: int) -> Iterator[Rect]:
    """Rectangles no wider than ``widest`` whose data stays below Tight's 4 MiB."""
    tallest = 256
    for y in range(rect.y, rect.y + rect.height, tallest):
        for x in range(rect.x, rect.x + rect.width, widest):
            width = min(widest, rect.x + rect.width - x)
            yield Rect(x, y, width, min(tallest, rect.y + rect.height - y))


def _tile_widths(rect: Rect) -> Iterator[int]:
    """The width of each Hextile tile, in their order."""
    row = [min(_HEXTILE, rect.width - x) for x in range(0, rect.width, _HEXTILE)]
    for _ in range(0, rect.height, _HEXTILE):
        yield from row


def _hextile(tile: bytes, width: int, size: int) -> bytes:
    """A tile of two colours as runs on a background where that is shorter, else raw."""
    background = tile[:size]
    if tile == background * (len(tile) // size):
        return bytes([_BACKGROUND]) + background
    found = {tile[at : at + size] for at in range(0, len(tile), size)}
    raw = bytes([_RAW]) + tile
    if len(found) != 2:
        return raw
    (foreground,) = found - {background}
    mask = bytes(tile[at : at + size] == foreground for at in range(0, len(tile), size))
    runs = bytearray()
    for y in range(len(mask) // width):
        for run in _RUNS.finditer(mask, y * width, (y + 1) * width):
            runs += bytes([(run.start() - y * width) << 4 | y, (run.end() - run.start() - 1) << 4])
    count = len(runs) // 2
    flags = _BACKGROUND | _FOREGROUND | _SUBRECTS
    short = bytes([flags]) + background + foreground + bytes([count & 0xFF]) + runs
    return short if count < 256 and len(short) < len(raw) else raw
