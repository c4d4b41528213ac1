"""From video memory to pixels: what the CRT and attribute controllers make of the planes.

Everything here is a function of a :class:`Picture`, a copy of registers and memory, so drawing
needs no lock.  A picture is drawn a row of units at a time (a unit: one offset of the four planes)
and widened to 32 bits a pixel by ``bytes.translate``, whole screens at once::

    planes --(shift mode)--> indices 0-255 --(attribute controller, DAC)--> 00RRGGBB
"""

from __future__ import annotations

from typing import NamedTuple

from vdisk.vm.devices import vga_registers as reg
from vdisk.vm.devices.vga_dispi import DEPTHS
from vdisk.vm.display.base import Cursor, Frame, TextFrame

UNIT = 4
PLANE_SPAN = 1 << 16  # offsets that the address counter of the CRT controller reaches
FONTS = (0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x6000, 0xA000, 0xE000)
"""Where in plane 2 the fonts lie that SEQ_FONTS chooses from."""
GLYPH_ROOM = 32
BLANK = Frame(720, 400, bytes(720 * 400 * 4))
"""What is shown of a card that nobody has programmed yet."""
MODE_GRAPHICS, MODE_LINE, MODE_BLINK, MODE_PALETTE_54 = 0x01, 0x04, 0x08, 0x80
CURSOR_OFF = 0x20
DOUBLE_SCAN = 0x80
SHIFT_INTERLEAVED, SHIFT_256 = 0x20, 0x40
CR_MODE_A13, CR_MODE_A14, CR_MODE_BYTES, CR_MODE_RUN = 0x01, 0x02, 0x40, 0x80


class Picture(NamedTuple):
    """Registers and memory at one moment.

    ``geometry``: of the Bochs display interface while it is enabled (width, height, depth, bytes
    a row), else None; ``memory`` then begins with the first pixel, else with offset 0.
    """

    misc: int
    sequencer: bytes
    graphics: bytes
    crtc: bytes
    attribute: bytes
    palette_on: bool
    dac: bytes
    dac_mask: int
    dac_8_bit: bool
    display_end: int
    memory: bytes
    geometry: tuple[int, int, int, int] | None

    @property
    def blank(self) -> bool:
        """True while nothing is shown, whatever is in memory."""
        if self.geometry is not None:
            return False
        off = self.sequencer[reg.SEQ_CLOCKING] & reg.CLOCKING_OFF
        return bool(off) or not self.palette_on or self.crtc[reg.CR_DISPLAY_END_H] == 0

    @property
    def is_text(self) -> bool:
        """True in the alphanumeric modes."""
        graphics = self.graphics[reg.GC_MISC] & 1
        return self.geometry is None and not graphics

    @property
    def columns(self) -> int:
        """Character clocks of a line."""
        return self.crtc[reg.CR_DISPLAY_END_H] + 1

    @property
    def start(self) -> int:
        """The offset with which the screen begins."""
        return self.crtc[reg.CR_START_HIGH] << 8 | self.crtc[reg.CR_START_LOW]

    @property
    def row_units(self) -> int:
        """Units from row to row."""
        return self.crtc[reg.CR_OFFSET] * 2

    @property
    def row_lines(self) -> int:
        """Lines of a row: of characters, or of the same pixels."""
        return (self.crtc[reg.CR_MAX_SCAN] & 0x1F) + 1

    @property
    def double_scan(self) -> int:
        """1 where each line is shown twice."""
        return self.crtc[reg.CR_MAX_SCAN] >> 7

    @property
    def dot_factor(self) -> int:
        """2 where each dot is two wide."""
        return 2 if self.sequencer[reg.SEQ_CLOCKING] & reg.CLOCKING_HALF else 1

    @property
    def line_compare(self) -> int:
        """The line after which the screen begins anew, with offset 0."""
        crtc = self.crtc
        high = (crtc[reg.CR_OVERFLOW] >> 4 & 1) << 8 | (crtc[reg.CR_MAX_SCAN] >> 6 & 1) << 9
        return crtc[reg.CR_LINE_COMPARE] | high


# -- colours ---------------------------------------------------------------------------------------


def colours(picture: Picture) -> list[int]:
    """The 256 colours of the DAC, 0xRRGGBB."""
    dac = picture.dac
    if not picture.dac_8_bit:
        dac = bytes(part << 2 | part >> 4 for part in (value & 0x3F for value in dac))
    return [dac[i] << 16 | dac[i + 1] << 8 | dac[i + 2] for i in range(0, 768, 3)]


def palette_256(picture: Picture) -> list[int]:
    """The colours of bytes that go to the DAC as they are."""
    dac = colours(picture)
    return [dac[index & picture.dac_mask] for index in range(256)]


def palette_16(picture: Picture) -> list[int]:
    """The 16 colours that the attribute controller chooses from the DAC's."""
    dac, mask = colours(picture), picture.dac_mask
    attribute = picture.attribute
    select = attribute[reg.AR_COLOUR]
    chosen = []
    for value in attribute[:16]:
        index = value & 0x3F | (select & 0x0C) << 4
        if attribute[reg.AR_MODE] & MODE_PALETTE_54:
            index = index & ~0x30 | (select & 0x03) << 4
        chosen.append(dac[index & mask])
    return chosen


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
        return _draw_text(picture)
    return _draw_graphics(picture)


# -- graphics modes --------------------------------------------------------------------------------


def _rows(picture: Picture, units: int) -> tuple[list[bytes], list[int]]:
    """The distinct rows as bytes of ``units`` units, and for each line which row it shows."""
    memory, mode = picture.memory, picture.crtc[reg.CR_MODE]
    substitute = 12 + (mode & CR_MODE_BYTES > 0)
    found: dict[int, int] = {}
    rows: list[bytes] = []
    lines = []
    for line in range(picture.display_end):
        scan, start = line >> picture.double_scan, picture.start
        if line > picture.line_compare:
            scan, start = line - picture.line_compare - 1 >> picture.double_scan, 0
        row, within = divmod(scan, picture.row_lines)
        offset = start + row * picture.row_units
        if not mode & CR_MODE_A13:
            offset = offset & ~(1 << substitute) | (within & 1) << substitute
        if not mode & CR_MODE_A14:
            offset = offset & ~(2 << substitute) | (within >> 1 & 1) << substitute + 1
        offset &= PLANE_SPAN - 1
        if offset not in found:
            found[offset] = len(rows)
            rows.append(_units(memory, offset, units))
        lines.append(found[offset])
    return rows, lines


def _units(memory: bytes, offset: int, count: int) -> bytes:
    """Units from an offset on, wrapping at the end of the planes."""
    data = memory[offset * UNIT : (offset + count) * UNIT]
    if offset + count > PLANE_SPAN:
        data = memory[offset * UNIT : PLANE_SPAN * UNIT] + memory[: count * UNIT]
    return data[: count * UNIT].ljust(count * UNIT, b"\x00")


def _draw_graphics(picture: Picture) -> Frame:
    units = picture.columns
    shift = picture.graphics[reg.GC_MODE] & (SHIFT_256 | SHIFT_INTERLEAVED)
    panning = picture.attribute[reg.AR_PANNING] & 7
    rows, lines = _rows(picture, units + 1)
    if shift & SHIFT_256:
        dots, factor, panning = UNIT, 2, panning >> 1
        table = palette_256(picture)
        pixels = rows
    else:
        dots, factor = 8, picture.dot_factor
        table = palette_16(picture)
        mask = picture.attribute[reg.AR_PLANES] & 0xF
        table = [table[index & mask] for index in range(16)]
        unpack = _unpack_interleaved if shift else _unpack_planar
        pixels = [unpack(row) for row in rows]
    width = units * dots
    cut = b"".join(row[panning : panning + width] for row in pixels)
    wide = translate(widen(cut, factor), table)
    return _assemble(picture, wide, width * factor * 4, lines)


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


# -- text ------------------------------------------------------------------------------------------


def text(picture: Picture) -> TextFrame | None:
    """The characters of a text mode; None in a graphics mode."""
    if not picture.is_text or picture.crtc[reg.CR_DISPLAY_END_H] == 0:
        return None
    columns, height = picture.columns, picture.row_lines << picture.double_scan
    rows = max(picture.display_end // height, 1)
    content = b"".join(
        cells(
            _units(picture.memory, (picture.start + row * picture.row_units) % PLANE_SPAN, columns)
        )
        for row in range(rows)
    )
    if picture.blank:
        content = bytes(len(content))
    return TextFrame(
        columns, rows, content, _cursor(picture, columns, rows), palette_16(picture),
        bool(picture.attribute[reg.AR_MODE] & MODE_BLINK),
    )  # fmt: skip


def cells(units: bytes) -> bytes:
    """Characters and attributes, of planes 0 and 1."""
    found = bytearray(len(units) // 2)
    found[0::2], found[1::2] = units[0::4], units[1::4]
    return bytes(found)


def _cursor(picture: Picture, columns: int, rows: int) -> Cursor | None:
    crtc = picture.crtc
    start, end = crtc[reg.CR_CURSOR_START], crtc[reg.CR_CURSOR_END] & 0x1F
    place = (crtc[reg.CR_CURSOR_HIGH] << 8 | crtc[reg.CR_CURSOR_LOW]) - picture.start
    row, column = divmod(place, picture.row_units or columns)
    if start & CURSOR_OFF or place < 0 or row >= rows or column >= columns:
        return None
    first = start & 0x1F
    if first > end or first >= picture.row_lines:
        return None
    return Cursor(column, row, first, min(end, picture.row_lines - 1))


class _Glyphs:
    """Cells as lines of pixels, each made once."""

    def __init__(self, picture: Picture) -> None:
        fonts = picture.sequencer[reg.SEQ_FONTS]
        plane = picture.memory[2::4]
        first = FONTS[fonts & 3 | (fonts >> 4 & 1) << 2]
        second = FONTS[fonts >> 2 & 3 | (fonts >> 5 & 1) << 2]
        self._fonts = (plane[first : first + 0x2000], plane[second : second + 0x2000])
        self._mode = picture.attribute[reg.AR_MODE]
        self.height = picture.row_lines
        self.width = 8 if picture.sequencer[reg.SEQ_CLOCKING] & reg.CLOCKING_8_DOTS else 9
        self._underline = picture.crtc[reg.CR_UNDERLINE] & 0x1F
        self._palette = [
            colour.to_bytes(4, "little") * picture.dot_factor for colour in palette_16(picture)
        ]
        self._made: dict[tuple[int, int], list[bytes]] = {}

    def lines(self, character: int, attribute: int) -> list[bytes]:
        """The lines of a cell."""
        key = character, attribute
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(character, attribute)
        return found

    def _make(self, character: int, attribute: int) -> list[bytes]:
        font = self._fonts[attribute >> 3 & 1]
        shapes = font[character * GLYPH_ROOM : character * GLYPH_ROOM + self.height]
        back = attribute >> 4 & (7 if self._mode & MODE_BLINK else 15)
        ink, paper = self._palette[attribute & 15], self._palette[back]
        ninth = self._mode & MODE_LINE and 0xC0 <= character <= 0xDF
        made = []
        for line, shape in enumerate(shapes.ljust(self.height, b"\x00")):
            underlined = line == self._underline and attribute & 7 == 1
            dots = 0x1FF if underlined else shape << 1 | (shape & 1 if ninth else 0)
            made.append(
                b"".join([ink if dots >> 8 - dot & 1 else paper for dot in range(self.width)])
            )
        return made

    def cursor(self, lines: list[bytes], attribute: int, cursor: Cursor) -> list[bytes]:
        """A cell with the cursor over it."""
        ink = self._palette[attribute & 15] * self.width
        inside = range(cursor.start, cursor.end + 1)
        return [ink if line in inside else shape for line, shape in enumerate(lines)]


def _draw_text(picture: Picture) -> Frame:
    screen = text(picture)
    assert screen is not None
    glyphs = _Glyphs(picture)
    width = screen.columns * glyphs.width * picture.dot_factor
    if picture.blank:
        return Frame(width, picture.display_end, bytes(width * picture.display_end * 4))
    repeat = 1 + picture.double_scan
    parts: list[bytes] = []
    for row in range(screen.rows):
        for line in _text_row(screen, glyphs, row):
            parts += [line] * repeat
    lines = parts[: picture.display_end]
    lines += [bytes(width * 4)] * (picture.display_end - len(lines))
    return Frame(width, picture.display_end, b"".join(lines))


def _text_row(screen: TextFrame, glyphs: _Glyphs, row: int) -> list[bytes]:
    """The lines of pixels of one row of characters."""
    cells = screen.cells[row * screen.columns * 2 : (row + 1) * screen.columns * 2]
    pairs = zip(cells[0::2], cells[1::2], strict=True)
    drawn = [glyphs.lines(character, attribute) for character, attribute in pairs]
    cursor = screen.cursor
    if cursor is not None and cursor.row == row:
        attribute = cells[cursor.column * 2 + 1]
        drawn[cursor.column] = glyphs.cursor(drawn[cursor.column], attribute, cursor)
    return [b"".join(line) for line in zip(*drawn, strict=True)]


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
