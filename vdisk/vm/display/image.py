"""Pictures as files: PPM (the "P6" of netpbm), PNG (ISO/IEC 15948), and pixels as red-green-blue.

A PNG is a signature and chunks, each ``length, type, data, CRC-32 of type and data``::

    IHDR  width, height, 8 bits, colour type 2 (RGB), 0, 0, 0
    IDAT  zlib: for each row a filter byte, then 3 bytes a pixel
    IEND

Filter 0 (none) is right for screens: they are flat, or repeat what was drawn before.
"""

from __future__ import annotations

import os
import zlib
from struct import pack
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError, from_os_error
from vdisk.vm.display.base import BYTES_PER_PIXEL

if TYPE_CHECKING:
    from vdisk.vm.display.base import Frame

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NO_FILTER = b"\0"


def to_rgb(pixels: bytes) -> bytes:
    """3 bytes a pixel, red first, of pixels as :mod:`vdisk.vm.display.base` has them."""
    rgb = bytearray(len(pixels) // BYTES_PER_PIXEL * 3)
    rgb[0::3] = pixels[2::4]
    rgb[1::3] = pixels[1::4]
    rgb[2::3] = pixels[0::4]
    return bytes(rgb)


def encode_ppm(frame: Frame) -> bytes:
    """The picture as a portable pixmap."""
    return b"P6\n%d %d\n255\n" % (frame.width, frame.height) + to_rgb(frame.pixels)


def encode_png(frame: Frame) -> bytes:
    """The picture as a PNG."""
    stride = frame.width * 3
    rgb = to_rgb(frame.pixels)
    rows = [rgb[start : start + stride] for start in range(0, len(rgb), stride or 1)]
    idat = zlib.compress(_NO_FILTER + _NO_FILTER.join(rows))
    header = pack(">IIBBBBB", frame.width, frame.height, 8, 2, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", idat) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


_ENCODERS = {"png": encode_png, "ppm": encode_ppm}


def format_of(filename: str) -> str:
    """The format a file's name asks for: ``png`` by its ending, else ``ppm``."""
    return "png" if os.fspath(filename).lower().endswith(".png") else "ppm"


def save_picture(frame: Frame, filename: str, format: str | None = None) -> None:
    """Write a picture to a file; ``format`` (``png``, ``ppm``) defaults to what its name says."""
    encode = _ENCODERS.get(format or format_of(filename))
    if encode is None:
        raise InvalidRequestError(f"{format!r} is no format of pictures: png or ppm")
    data = encode(frame)
    try:
        with open(filename, "wb") as file:
            file.write(data)
    except OSError as error:
        raise from_os_error(error, path=filename, operation="write the picture") from error
