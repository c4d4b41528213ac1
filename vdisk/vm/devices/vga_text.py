"""Text modes: characters as numbers, for terminals, and as dots.

A cell is 8 dots wide, or 9: the ninth is background, but in box-drawing characters (C0h-DFh) it
repeats the eighth, so that lines join.
"""

from __future__ import annotations

from functools import lru_cache

from vdisk.vm.devices import vga_registers as reg
from vdisk.vm.devices.vga_picture import (
    MODE_BLINK,
    MODE_LINE,
    PLANE_SPAN,
    Band,
    Picture,
    palette_16,
    units,
)
from vdisk.vm.display.base import Cursor, Frame, TextFrame

FONTS = (0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x6000, 0xA000, 0xE000)
"""Where in plane 2 the fonts lie that SEQ_FONTS chooses from."""
GLYPH_ROOM = 32
CURSOR_OFF = 0x20
MOST_GLYPHS = 2048
"""Cells whose pixels are kept from one picture to the next: 256 characters in eight colours."""


def text(picture: Picture) -> TextFrame | None:
    """The characters of a text mode; None in a graphics mode."""
    if not picture.is_text or picture.crtc[reg.CR_DISPLAY_END_H] == 0:
        return None
    columns, height = picture.columns, picture.row_lines << picture.double_scan
    rows = max(picture.display_end // height, 1)
    content = b"".join(
        cells(
            units(picture.memory, (picture.start + row * picture.row_units) % PLANE_SPAN, columns)
        )
        for row in range(rows)
    )
    if picture.blank:
        content = bytes(len(content))
    return TextFrame(
        columns, rows, content, _cursor(picture, columns, rows), palette_16(picture),
        bool(picture.attribute[reg.AR_MODE] & MODE_BLINK),
    )  # fmt: skip


def cells(data: bytes) -> bytes:
    """Characters and attributes, of planes 0 and 1."""
    found = bytearray(len(data) // 2)
    found[0::2], found[1::2] = data[0::4], data[1::4]
    return bytes(found)


def _cursor(picture: Picture, columns: int, rows: int) -> Cursor | None:
    shape = _cursor_shape(picture)
    row, column = divmod(_cursor_offset(picture) - picture.start, picture.row_units or columns)
    if shape is None or row < 0 or row >= rows or column >= columns:
        return None
    return Cursor(column, row, shape.start, shape.stop - 1)


def _cursor_offset(picture: Picture) -> int:
    return picture.crtc[reg.CR_CURSOR_HIGH] << 8 | picture.crtc[reg.CR_CURSOR_LOW]


def _cursor_shape(picture: Picture) -> range | None:
    """The lines of a cell that the cursor covers; None where it is off."""
    start, end = picture.crtc[reg.CR_CURSOR_START], picture.crtc[reg.CR_CURSOR_END] & 0x1F
    first = start & 0x1F
    if start & CURSOR_OFF or first > end or first >= picture.row_lines:
        return None
    return range(first, min(end + 1, picture.row_lines))


@lru_cache(maxsize=MOST_GLYPHS)
def _rasterized(shapes: bytes, width: int, ninth: bool, ink: bytes, paper: bytes) -> list[bytes]:
    """The lines of a cell; what ``ink`` and ``paper`` are is a dot of each."""
    lines = []
    for shape in shapes:
        dots = shape << 1 | (shape & 1 if ninth else 0)
        lines.append(b"".join([ink if dots >> 8 - dot & 1 else paper for dot in range(width)]))
    return lines


class _Glyphs(dict[tuple[int, int], list[bytes]]):
    """Cells, each a character and its attribute, as lines of pixels."""

    def __init__(self, picture: Picture) -> None:
        super().__init__()
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
        self.cursor_at = _cursor_offset(picture)
        self._cursor = _cursor_shape(picture)

    def __missing__(self, cell: tuple[int, int]) -> list[bytes]:
        character, attribute = cell
        font = self._fonts[attribute >> 3 & 1]
        shapes = font[character * GLYPH_ROOM : character * GLYPH_ROOM + self.height]
        back = attribute >> 4 & (7 if self._mode & MODE_BLINK else 15)
        ink, paper = self._palette[attribute & 15], self._palette[back]
        ninth = bool(self._mode & MODE_LINE) and 0xC0 <= character <= 0xDF
        lines = _rasterized(shapes.ljust(self.height, b"\x00"), self.width, ninth, ink, paper)
        if attribute & 7 == 1 and self._underline < self.height:
            lines = [*lines]
            lines[self._underline] = ink * self.width
        self[cell] = lines
        return lines

    def with_cursor(self, lines: list[bytes], attribute: int) -> list[bytes]:
        """A cell with the cursor over it."""
        ink = self._palette[attribute & 15] * self.width
        inside = self._cursor or ()
        return [ink if line in inside else shape for line, shape in enumerate(lines)]


def draw_text(picture: Picture) -> Frame:
    glyphs = _Glyphs(picture)
    width = picture.columns * glyphs.width * picture.dot_factor
    if picture.blank:
        return Frame(width, picture.display_end, bytes(width * picture.display_end * 4))
    panning = picture.attribute[reg.AR_PANNING] & 0xF
    # Of nine dots the register's 8 is none, and 0 is one (FreeVGA, horizontal pixel panning).
    panning = (panning + 1) % 9 if glyphs.width == 9 else panning & 7
    lines: list[bytes] = []
    for band in picture.bands():
        lines += _text_lines(picture, glyphs, band, panning if band.panned else 0)
    return Frame(width, picture.display_end, b"".join(lines))


def _text_lines(picture: Picture, glyphs: _Glyphs, band: Band, panning: int) -> list[bytes]:
    """The lines of pixels of a band, ``panning`` dots to the left."""
    shown = (band.lines >> picture.double_scan) + band.preset + picture.double_scan
    found: list[bytes] = []
    for row in range(-(-shown // glyphs.height)):
        offset = (band.start + row * picture.row_units) % PLANE_SPAN
        for line in _text_row(picture, glyphs, offset, panning):
            found += [line] * (1 + picture.double_scan)
    first = band.preset << picture.double_scan
    return found[first : first + band.lines]


def _text_row(picture: Picture, glyphs: _Glyphs, offset: int, panning: int) -> list[bytes]:
    """The lines of pixels of the row of characters at an offset."""
    row = cells(units(picture.memory, offset, picture.columns + 1))
    pairs = list(zip(row[0::2], row[1::2], strict=True))
    drawn = list(map(glyphs.__getitem__, pairs))
    column = (glyphs.cursor_at - offset) % PLANE_SPAN
    if column < len(drawn):
        drawn[column] = glyphs.with_cursor(drawn[column], pairs[column][1])
    start = panning * picture.dot_factor * 4
    end = start + picture.columns * glyphs.width * picture.dot_factor * 4
    return [b"".join(line)[start:end] for line in zip(*drawn, strict=True)]
