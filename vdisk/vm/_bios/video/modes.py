"""The VGA's modes: what each looks like, and the register values that make it.

Values are those of IBM's video parameter table (PS/2 Display Adapter technical reference, "VGA
initialization"), in its order: miscellaneous output, sequencer 1-4, CRT controller 0-18h, graphics
controller 0-8, attribute controller 0-13h.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Layout(enum.Enum):
    """How a mode keeps its picture."""

    TEXT = "text"
    CGA4 = "two bits a pixel, odd rows 8 KiB behind even ones"
    CGA2 = "one bit a pixel, the same"
    PLANAR = "four planes"
    MONO = "one plane"
    LINEAR = "a byte a pixel"


class Registers(NamedTuple):
    """Values for every register of a mode."""

    misc: int
    sequencer: bytes
    crtc: bytes
    graphics: bytes
    attribute: bytes


class Mode(NamedTuple):
    """One mode of int 10h AH=00h.

    ``base``: physical address of the picture.  ``page_size``: bytes.  ``palette``: which values
    the DAC gets.
    """

    layout: Layout
    columns: int
    rows: int
    height: int  # of a character, in lines of the mode
    base: int
    page_size: int
    pages: int
    palette: str
    registers: Registers

    @property
    def is_text(self) -> bool:
        return self.layout is Layout.TEXT

    @property
    def colours(self) -> int:
        return {Layout.CGA2: 2, Layout.MONO: 2, Layout.CGA4: 4, Layout.LINEAR: 256}.get(
            self.layout, 16
        )


def _registers(text: str) -> Registers:
    data = bytes.fromhex(text)
    return Registers(data[0], data[1:5], data[5:30], data[30:39], data[39:59])


_EGA_COLOURS = "0001020304051407 38393a3b3c3d3e3f"
_CGA_COLOURS = "0001020304050607 1011121314151617"
_CRTC_40 = "2d2728902b"
_CRTC_80 = "5f4f508254"
_ZEROES = "00000000000000"

_TEXT_40 = _registers(
    f"67 08030002 {_CRTC_40} a0bf1f004f0d0e00000000 9c8e8f141f96b9a3ff 00000000 00100e00ff"
    f"{_EGA_COLOURS} 0c000f08"
)
_TEXT_80 = _registers(
    "67 00030002 5f4f508255 81bf1f004f0d0e00000000 9c8e8f281f96b9a3ff 00000000 00100e00ff"
    f"{_EGA_COLOURS} 0c000f08"
)
_MONOCHROME = _registers(
    "66 00030002 5f4f508255 81bf1f004f0d0e00000000 9c8e8f280f96b9a3ff 00000000 00100a00ff"
    "0008080808080808 1018181818181818 0e000f08"
)
_CGA4 = _registers(
    f"63 09030002 {_CRTC_40} 80bf1f00c1 000000000000 9c8e8f140096b9a2ff 00000000 00300f00ff"
    "0013151702040607 1011121314151617 01000300"
)
_CGA2 = _registers(
    f"63 01010006 {_CRTC_80} 80bf1f00c1 000000000000 9c8e8f280096b9c2ff 00000000 00000d00ff"
    "0017171717171717 1717171717171717 01000100"
)
_EGA_320 = _registers(
    f"63 090f0006 {_CRTC_40} 80bf1f00c0 000000000000 9c8e8f140096b9e3ff 00000000 0000050fff"
    f"{_CGA_COLOURS} 01000f00"
)
_EGA_640 = _registers(
    f"63 010f0006 {_CRTC_80} 80bf1f00c0 000000000000 9c8e8f280096b9e3ff 00000000 0000050fff"
    f"{_CGA_COLOURS} 01000f00"
)
_EGA_MONO = _registers(
    f"a2 010f0006 {_CRTC_80} 80bf1f0040 000000000000 83855d280f63bae3ff 00000000 0000050fff"
    "0008000018180000 0008000000180000 0b000500"
)
_EGA_350 = _registers(
    f"a3 010f0006 {_CRTC_80} 80bf1f0040 000000000000 83855d280f63bae3ff 00000000 0000050fff"
    f"{_EGA_COLOURS} 01000f00"
)
_VGA_MONO = _registers(
    f"e3 010f0006 {_CRTC_80} 800b3e0040 000000000000 ea8cdf2800e704c3ff 00000000 00000501ff"
    f"003f003f003f003f 003f003f003f003f 01000f00"
)
_VGA_480 = _registers(
    f"e3 010f0006 {_CRTC_80} 800b3e0040 000000000000 ea8cdf2800e704e3ff 00000000 0000050fff"
    f"{_EGA_COLOURS} 01000f00"
)
_VGA_256 = _registers(
    f"63 010f000e {_CRTC_80} 80bf1f0041 000000000000 9c8e8f284096b9a3ff 00000000 0040050fff"
    "0001020304050607 08090a0b0c0d0e0f 41000f00"
)

_TEXT = Layout.TEXT
MODES: dict[int, Mode] = {
    0x00: Mode(_TEXT, 40, 25, 16, 0xB8000, 0x800, 8, "ega", _TEXT_40),
    0x01: Mode(_TEXT, 40, 25, 16, 0xB8000, 0x800, 8, "ega", _TEXT_40),
    0x02: Mode(_TEXT, 80, 25, 16, 0xB8000, 0x1000, 8, "ega", _TEXT_80),
    0x03: Mode(_TEXT, 80, 25, 16, 0xB8000, 0x1000, 8, "ega", _TEXT_80),
    0x04: Mode(Layout.CGA4, 40, 25, 8, 0xB8000, 0x4000, 1, "cga", _CGA4),
    0x05: Mode(Layout.CGA4, 40, 25, 8, 0xB8000, 0x4000, 1, "cga", _CGA4),
    0x06: Mode(Layout.CGA2, 80, 25, 8, 0xB8000, 0x4000, 1, "cga", _CGA2),
    0x07: Mode(_TEXT, 80, 25, 16, 0xB0000, 0x1000, 8, "mono", _MONOCHROME),
    0x0D: Mode(Layout.PLANAR, 40, 25, 8, 0xA0000, 0x2000, 8, "cga", _EGA_320),
    0x0E: Mode(Layout.PLANAR, 80, 25, 8, 0xA0000, 0x4000, 4, "cga", _EGA_640),
    0x0F: Mode(Layout.MONO, 80, 25, 14, 0xA0000, 0x8000, 2, "mono", _EGA_MONO),
    0x10: Mode(Layout.PLANAR, 80, 25, 14, 0xA0000, 0x8000, 2, "ega", _EGA_350),
    0x11: Mode(Layout.MONO, 80, 30, 16, 0xA0000, 0xA000, 1, "ega", _VGA_MONO),
    0x12: Mode(Layout.PLANAR, 80, 30, 16, 0xA0000, 0xA000, 1, "ega", _VGA_480),
    0x13: Mode(Layout.LINEAR, 40, 25, 8, 0xA0000, 0x10000, 1, "vga", _VGA_256),
}

DEFAULT_TEXT = 0x03


def parameter_table() -> bytes:
    """IBM's table of 29 entries of 64 bytes, which the save area at 40:A8 leads to."""
    order = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, *range(0x08, 0x0D), 0x0D, 0x0E]
    order += [0x0E, 0x0E, 0x0F, 0x10, 0x00, 0x01, 0x02, 0x03, 0x00, 0x03, 0x07, 0x11, 0x12, 0x13]
    return b"".join(_entry(MODES.get(number, MODES[DEFAULT_TEXT])) for number in order)


def _entry(mode: Mode) -> bytes:
    values = mode.registers
    head = bytes([mode.columns, mode.rows - 1, mode.height]) + mode.page_size.to_bytes(3, "little")
    body = values.sequencer + bytes([values.misc]) + values.crtc + values.attribute
    return head[:5] + body + values.graphics


# -- the DAC ---------------------------------------------------------------------------------

RGB = tuple[int, int, int]


def dac_colours(name: str) -> list[RGB]:
    """The first DAC entries of a mode: red, green, blue of six bits each."""
    if name == "vga":
        return _cga_colours() + _greys() + _hues()
    if name == "cga":
        return [_cga(number & 7 | (number & 16) >> 1) for number in range(64)]
    if name == "mono":
        return [_mono(number) for number in range(64)]
    return [_ega(number) for number in range(64)]


def _ega(number: int) -> RGB:
    """Bits 0-2 are blue, green, red at two thirds, bits 3-5 the same at one third."""
    red, green, blue = (
        42 * (number >> bit & 1) + 21 * (number >> bit + 3 & 1) for bit in (2, 1, 0)
    )
    return red, green, blue


def _cga(number: int) -> RGB:
    """A colour of the CGA: bit 3 is intensity, and dark yellow is brown."""
    if number == 6:
        return 42, 21, 0
    return _ega(number & 7 | (0x38 if number & 8 else 0))


def _mono(number: int) -> RGB:
    """Bit 3 is the picture, bit 4 its intensity."""
    level = 42 * (number >> 3 & 1) + 21 * (number >> 4 & 1)
    return level, level, level


def _cga_colours() -> list[RGB]:
    return [_cga(number) for number in range(16)]


def _greys() -> list[RGB]:
    levels = (0, 5, 8, 11, 14, 17, 20, 24, 28, 32, 36, 40, 45, 50, 56, 63)
    return [(level, level, level) for level in levels]


_RAMPS = (  # five levels between the weakest and the strongest part of a colour
    *((0, 16, 31, 47, 63), (31, 39, 47, 55, 63), (45, 49, 54, 58, 63)),
    *((0, 7, 14, 21, 28), (14, 17, 21, 24, 28), (20, 22, 24, 26, 28)),
    *((0, 4, 8, 12, 16), (8, 10, 12, 14, 16), (11, 12, 13, 15, 16)),
)


def _hues() -> list[RGB]:
    """Nine circles of 24 hues: three brightnesses, each in three saturations; blue first."""
    return [_hue(ramp, step) for ramp in _RAMPS for step in range(24)] + [(0, 0, 0)] * 8


def _hue(ramp: tuple[int, ...], step: int) -> RGB:
    sector, place = divmod(step, 4)
    low, high, rising, falling = ramp[0], ramp[4], ramp[place], ramp[4 - place]
    return (
        *((rising, low, high), (high, low, falling), (high, rising, low)),
        *((falling, high, low), (low, high, rising), (low, falling, high)),
    )[sector]
