"""What the monitor tells of itself: E-EDID 1.4 (VESA, Release A, Revision 2), one block::

    00 header (8)   08 maker, product, serial number, week, year   12 version
    14 kind of input, size in cm, gamma, features   19 colours (10)
    23 established timings (3)   26 standard timings (8 of 2)
    36 the preferred timing (18)   48 three other descriptors of 18   7E extensions   7F checksum

Drivers choose the size of the first picture by it: the preferred one, with CVT's timing of reduced
blanking (VESA CVT 1.2, section 3.4).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.vga_dispi import LARGEST_HEIGHT, LARGEST_WIDTH

BLOCK: Final = 128
PREFERRED: Final = (1280, 800)
"""As QEMU's monitor."""
SIZES: Final = (
    *((1920, 1200), (1920, 1080), (1680, 1050), (1600, 1200)),
    *((1440, 900), (1280, 1024), (1280, 800), (1280, 720)),
)
ESTABLISHED: Final = {(640, 480): (0, 0x20), (800, 600): (0, 0x01), (1024, 768): (1, 0x08)}
"""At 60 Hz: byte and bit."""
PIXEL_BYTES: Final = 4

_HEADER: Final = b"\0\xff\xff\xff\xff\xff\xff\0"
_MAKER: Final = "VDK"
_DIGITAL_8_BITS, _GAMMA_2_2, _SRGB_PREFERRED_NATIVE = 0xA0, 0x78, 0x06
_SRGB: Final = bytes.fromhex("ee91a3544c99260f5054")
_NAME, _RANGES, _NOTHING = 0xFC, 0xFD, 0x10
_DOTS_PER_INCH, _CM_PER_INCH = 100, 2.54

# CVT's reduced blanking: pixels, lines, and the least time of a vertical blanking
_FRONT, _SYNC, _BACK = 48, 32, 80
_V_FRONT, _V_BACK_LEAST, _V_BLANK_LEAST = 3, 6, 460e-6
_SYNC_LINES: Final = {(4, 3): 4, (16, 9): 5, (16, 10): 6, (5, 4): 7}
_SYNC_LINES_OTHERWISE: Final = 10
_CLOCK_STEP, _RATE = 250_000, 60
_DIGITAL_SEPARATE_H_POSITIVE: Final = 0x1A
_ASPECTS: Final = {(16, 10): 0, (4, 3): 1, (5, 4): 2, (16, 9): 3}


class Timing(NamedTuple):
    """``clock``: Hz; ``lines``: of a frame, ``sync``: of the vertical synchronization."""

    clock: int
    lines: int
    sync: int


def _aspect(width: int, height: int) -> tuple[int, int] | None:
    return next((pair for pair in _ASPECTS if width * pair[1] == height * pair[0]), None)


def timing(width: int, height: int) -> Timing:
    """Of a picture shown 60 times a second."""
    aspect = _aspect(width, height)
    sync = _SYNC_LINES[aspect] if aspect else _SYNC_LINES_OTHERWISE
    line = (1 / _RATE - _V_BLANK_LEAST) / height
    blank = max(int(_V_BLANK_LEAST / line) + 1, _V_FRONT + sync + _V_BACK_LEAST)
    pixels = (width + _FRONT + _SYNC + _BACK) * (height + blank)
    return Timing(pixels * _RATE // _CLOCK_STEP * _CLOCK_STEP, height + blank, sync)


def _detailed(width: int, height: int, size: tuple[int, int]) -> bytes:
    """``size``: millimetres."""
    clock, lines, sync = timing(width, height)
    blank, v_blank = _FRONT + _SYNC + _BACK, lines - height
    return struct.pack("<H", clock // 10_000) + bytes(
        [
            *(width & 0xFF, blank, width >> 8 << 4 | blank >> 8),
            *(height & 0xFF, v_blank & 0xFF, height >> 8 << 4 | v_blank >> 8),
            *(_FRONT, _SYNC, _V_FRONT << 4 | sync, 0),
            *(size[0] & 0xFF, size[1] & 0xFF, size[0] >> 8 << 4 | size[1] >> 8),
            *(0, 0, _DIGITAL_SEPARATE_H_POSITIVE),
        ]
    )


def _descriptor(kind: int, data: bytes) -> bytes:
    return bytes([0, 0, 0, kind, 0]) + data.ljust(13, b" ")


def _standard(width: int, height: int) -> bytes:
    aspect = _aspect(width, height)
    assert aspect is not None  # SIZES have one
    return bytes([width // 8 - 31, _ASPECTS[aspect] << 6 | _RATE - 60])


def best(width: int, height: int, memory: int) -> tuple[int, int]:
    """The size to prefer: this one, or the largest smaller one that has room in video memory.

    Raises :class:`InvalidRequestError` for a size that the card has not.
    """
    if not (8 <= width <= LARGEST_WIDTH and 0 < height <= LARGEST_HEIGHT) or width % 8:
        raise InvalidRequestError(
            f"a picture of {width}x{height}: at most {LARGEST_WIDTH}x{LARGEST_HEIGHT}, "
            "its width a multiple of 8"
        )
    smaller = [size for size in (*SIZES, *ESTABLISHED) if size[0] <= width and size[1] <= height]
    fits = (s for s in sorted(smaller, reverse=True) if s[0] * s[1] * PIXEL_BYTES <= memory)
    return (width, height) if width * height * PIXEL_BYTES <= memory else next(fits, (640, 480))


def edid(preferred: tuple[int, int], memory: int) -> bytes:
    """The block of a monitor that prefers this size; the others have room in ``memory`` bytes."""
    width, height = preferred
    size = tuple(round(pixels / _DOTS_PER_INCH * 10 * _CM_PER_INCH) for pixels in preferred)
    letters = [ord(letter) - 64 for letter in _MAKER]
    maker = letters[0] << 10 | letters[1] << 5 | letters[2]
    head = _HEADER + struct.pack(">H", maker) + struct.pack("<HIBB", 1, 0, 1, 2026 - 1990)
    cm = [min(round(length / 10), 255) for length in size]
    head += bytes([1, 4, _DIGITAL_8_BITS, *cm, _GAMMA_2_2, _SRGB_PREFERRED_NATIVE]) + _SRGB
    established = bytearray(3)
    for place, bit in ESTABLISHED.values():
        established[place] |= bit
    fitting = [one for one in SIZES if one[0] * one[1] * PIXEL_BYTES <= memory]
    standard = b"".join(_standard(*one) for one in fitting).ljust(16, b"\1")
    ranges = bytes([50, 75, 30, 160, 60, 1]) + b"\n"  # Hz, kHz, 10 MHz; and no formula
    block = head + established + standard + _detailed(width, height, (size[0], size[1]))
    block += _descriptor(_RANGES, ranges) + _descriptor(_NAME, b"vdisk screen\n")
    block += _descriptor(_NOTHING, bytes(13)) + b"\0"
    return block + bytes([-sum(block) & 0xFF])
