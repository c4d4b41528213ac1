"""From video memory to pixels: what the CRT and attribute controllers make of the planes.

Everything here is a function of a :class:`Picture`, a copy of registers and memory, so drawing
needs no lock.  A picture is drawn a row of units at a time (a unit: one offset of the four planes)
and widened to 32 bits a pixel by ``bytes.translate``, whole screens at once::

    planes --(shift mode)--> indices 0-255 --(attribute controller, DAC)--> 00RRGGBB
"""

from __future__ import annotations

from vdisk.vm.devices import vga_registers as reg
from vdisk.vm.devices.vga_dispi import DEPTHS
from vdisk.vm.devices.vga_picture import (
    PLANE_SPAN,
    UNIT,
    Picture,
    palette_16,
    palette_256,
    units,
)
from vdisk.vm.devices.vga_text import draw_text
from vdisk.vm.display.base import Frame

BLANK = Frame(720, 400, bytes(720 * 400 * 4))
"""What is shown of a card that nobody has programmed yet."""
SHIFT_INTERLEAVED, SHIFT_256 = 0x20, 0x40
CR_MODE_A13, CR_MODE_A14, CR_MODE_BYTES = 0x01, 0x02, 0x40


def translate(indices: bytes, table: list[int]) -> bytearray:
    """Indices as pixels of 32 bits; ``table`` has up to 256 colours."""
    table = table + [0] * (256 - len(table))
    pixels = bytearray(4 * len(indices))
    for byte in range(3):
        pixels[byte::4] = indices.translate(bytes(c >> 8 * byte & 0xFF for c in table))
    return pixels


def widen(indices: bytes, factor: int) -> bytes:
    """Each index ``factor`` times."""
    if factor == 1:
        return indices
    wide = bytearray(len(indices) * factor)
    for place in range(factor):
        wide[place::factor] = indices
    return bytes(wide)


# -- entry -----------------------------------------------------------------------------------------


def draw(picture: Picture) -> Frame:
    """The picture as pixels."""
    if picture.geometry is not None:
        return _draw_dispi(picture, *picture.geometry)
    if picture.crtc[reg.CR_DISPLAY_END_H] == 0:
        return BLANK
    if picture.is_text:
        return draw_text(picture)
    return _draw_graphics(picture)


# -- graphics modes --------------------------------------------------------------------------------


class _Rows:
    """The distinct rows of ``count`` units, and for each line which row it shows.

    ``panned``: for each row, whether the panning register holds.
    """

    def __init__(self, picture: Picture, count: int) -> None:
        self.rows: list[bytes] = []
        self.panned: list[bool] = []
        self.lines: list[int] = []
        self._found: dict[tuple[int, bool], int] = {}
        for band in picture.bands():
            for line in range(band.lines):
                scan = (line >> picture.double_scan) + band.preset
                offset = _offset(picture, band.start, *divmod(scan, picture.row_lines))
                self._show(picture.memory, offset, count, band.panned)

    def _show(self, memory: bytes, offset: int, count: int, panned: bool) -> None:
        row = self._found.setdefault((offset, panned), len(self.rows))
        if row == len(self.rows):
            self.rows.append(units(memory, offset, count))
            self.panned.append(panned)
        self.lines.append(row)


def _offset(picture: Picture, start: int, row: int, within: int) -> int:
    """Where a row of pixels begins; bits of the line within it may replace some of the address."""
    mode = picture.crtc[reg.CR_MODE]
    substitute = 12 + (mode & CR_MODE_BYTES > 0)
    offset = start + row * picture.row_units
    if not mode & CR_MODE_A13:
        offset = offset & ~(1 << substitute) | (within & 1) << substitute
    if not mode & CR_MODE_A14:
        offset = offset & ~(2 << substitute) | (within >> 1 & 1) << substitute + 1
    return offset & PLANE_SPAN - 1


def _draw_graphics(picture: Picture) -> Frame:
    shift = picture.graphics[reg.GC_MODE] & (SHIFT_256 | SHIFT_INTERLEAVED)
    panning = picture.attribute[reg.AR_PANNING] & 7
    found = _Rows(picture, picture.columns + 1)
    if shift & SHIFT_256:
        dots, factor, panning = UNIT, 2, panning >> 1
        table = palette_256(picture)
        pixels = found.rows
    else:
        dots, factor = 8, picture.dot_factor
        table = palette_16(picture)
        mask = picture.attribute[reg.AR_PLANES] & 0xF
        table = [table[index & mask] for index in range(16)]
        unpack = _unpack_interleaved if shift else _unpack_planar
        pixels = [unpack(row) for row in found.rows]
    width = picture.columns * dots
    starts = [panning if panned else 0 for panned in found.panned]
    cut = b"".join(row[at : at + width] for row, at in zip(pixels, starts, strict=True))
    wide = translate(widen(cut, factor), table)
    return _assemble(picture, wide, width * factor * 4, found.lines)


def _assemble(picture: Picture, rows: bytes | bytearray, stride: int, lines: list[int]) -> Frame:
    """Lines from rows of pixels, all of one length."""
    if picture.blank:
        return Frame(stride // 4, len(lines), bytes(stride * len(lines)))
    cut = [bytes(rows[start : start + stride]) for start in range(0, len(rows), stride)]
    return Frame(stride // 4, len(lines), b"".join([cut[row] for row in lines]))


def _spread(plane: int) -> list[bytes]:
    """For each byte of a plane, its eight pixels' bits of that plane."""
    return [bytes((byte >> 7 - dot & 1) << plane for dot in range(8)) for byte in range(256)]


_SPREAD = [_spread(plane) for plane in range(4)]
_PAIRS = [bytes(byte >> shift & 3 for shift in (6, 4, 2, 0)) for byte in range(256)]


def _unpack_planar(row: bytes) -> bytes:
    """Sixteen colours: a bit of each plane."""
    merged = 0
    for plane in range(4):
        table = _SPREAD[plane]
        merged |= int.from_bytes(b"".join([table[b] for b in row[plane::4]]), "little")
    return merged.to_bytes(len(row) * 2, "little")


def _unpack_interleaved(row: bytes) -> bytes:
    """The CGA's way: two bits a pixel, first from planes 0 and 2, then from 1 and 3."""
    low = b"".join([_PAIRS[a] + _PAIRS[b] for a, b in zip(row[0::4], row[1::4], strict=True)])
    high = b"".join([_PAIRS[a] + _PAIRS[b] for a, b in zip(row[2::4], row[3::4], strict=True)])
    merged = int.from_bytes(low, "little") | int.from_bytes(high, "little") << 2
    return merged.to_bytes(len(low), "little")


# -- the Bochs display interface -------------------------------------------------------------------


def _draw_dispi(picture: Picture, width: int, height: int, depth: int, stride: int) -> Frame:
    """Packed pixels, or planes where the depth is four bits."""
    row_bytes = width * DEPTHS[depth] // 8
    memory = picture.memory.ljust(height * stride, b"\x00")
    if stride != row_bytes:
        memory = b"".join(
            [memory[row * stride : row * stride + row_bytes] for row in range(height)]
        )
    memory = memory[: height * row_bytes]
    if depth == 4:
        pixels = translate(_unpack_planar(memory), palette_16(picture))
    elif depth == 8:
        pixels = translate(memory, palette_256(picture))
    else:
        pixels = _PACKED[depth](memory)
    return Frame(width, height, bytes(pixels))


def _from_32(memory: bytes) -> bytearray:
    pixels = bytearray(memory)
    pixels[3::4] = bytes(len(memory) // 4)
    return pixels


def _from_24(memory: bytes) -> bytearray:
    pixels = bytearray(len(memory) // 3 * 4)
    for byte in range(3):
        pixels[byte::4] = memory[byte::3]
    return pixels


def _expand(bits: int, shift: int, width: int) -> int:
    """A colour of 5 or 6 bits as eight."""
    value = bits >> shift & (1 << width) - 1
    return value << 8 - width | value >> 2 * width - 8


def _or(left: bytes, right: bytes) -> bytes:
    merged = int.from_bytes(left, "little") | int.from_bytes(right, "little")
    return merged.to_bytes(len(left), "little")


def _from_16_bits(memory: bytes, green_bits: int) -> bytearray:
    """Red and blue of five bits, green of five or six across both bytes."""
    low, high = memory[0::2], memory[1::2]
    red_shift = green_bits - 3
    low_green = bytes(b >> 5 for b in range(256))
    high_green = bytes((b & (1 << red_shift) - 1) << 3 for b in range(256))
    green = _or(low.translate(low_green), high.translate(high_green))
    pixels = bytearray(len(memory) * 2)
    pixels[0::4] = low.translate(bytes(_expand(b, 0, 5) for b in range(256)))
    pixels[1::4] = green.translate(bytes(_expand(b, 0, green_bits) for b in range(256)))
    pixels[2::4] = high.translate(bytes(_expand(b, red_shift, 5) for b in range(256)))
    return pixels


_PACKED = {
    15: lambda memory: _from_16_bits(memory, 5),
    16: lambda memory: _from_16_bits(memory, 6),
    24: _from_24,
    32: _from_32,
}
