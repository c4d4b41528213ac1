"""Characters on the screen: one class for each way in which a mode keeps its picture.

All of them know rows and columns of character cells on a page; those of graphics modes draw the
shapes at vector 43h (characters 80h and up of modes 4-6: vector 1Fh).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm._bios import layout
from vdisk.vm._bios.video import chip as vga
from vdisk.vm._bios.video.modes import Layout, Mode

if TYPE_CHECKING:
    from vdisk.vm._bios.hardware import Hardware
    from vdisk.vm._bios.video.chip import Chip

FONT_VECTOR, HIGH_FONT_VECTOR = 0x43, 0x1F
XOR = 0x80
CGA_BANK = 0x2000
MOST_COLUMNS, MOST_ROWS = 132, 100  # of text modes that there are: the BDA may say anything
MOST_LINES = 32  # what a cell of the character generator holds


class Window(NamedTuple):
    """A rectangle of cells, its last row and column included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def width(self) -> int:
        return self.right - self.left + 1


class Cells:
    """Common to all: where pages are."""

    def __init__(self, hardware: Hardware, chip: Chip, mode: Mode) -> None:
        self.hw, self.chip, self.mode = hardware, chip, mode
        bda = hardware.bda
        self.columns = min(bda.word(layout.COLUMNS), MOST_COLUMNS) or mode.columns
        self.height = min(bda.word(layout.CHARACTER_HEIGHT), MOST_LINES) or mode.height
        self.rows = min(bda.byte(layout.ROWS_LESS_ONE) + 1, MOST_ROWS)
        if not mode.is_text:  # there is no room for more, whatever the BDA says
            self.columns = mode.columns
            self.rows = min(self.rows, max(mode.rows * mode.height // self.height, 1))

    def page_base(self, page: int) -> int:
        """Physical address of a page."""
        size = self.hw.bda.word(layout.PAGE_SIZE)
        return self.mode.base + (page & 7) * size

    def at(self, address: int) -> int:
        """Addresses stay in the window of video memory, whatever the BDA says."""
        return self.mode.base + (address - self.mode.base) % self.window_size

    def store(self, address: int, data: bytes) -> None:
        """Write cells or pixels, as many as the window has room for."""
        room = self.mode.base + self.window_size - address
        self.hw.space.write(address, data[:room])

    @property
    def window_size(self) -> int:
        return 0x10000 if self.mode.base == 0xA0000 else 0x8000

    def put(self, page: int, row: int, column: int, character: int, attribute: int | None) -> None:
        """Draw a character; without an attribute the cell keeps its own, in text modes."""
        raise NotImplementedError

    def get(self, page: int, row: int, column: int) -> tuple[int, int]:
        """The character and attribute of a cell."""
        raise NotImplementedError

    def move(self, page: int, window: Window, source_row: int, row: int) -> None:
        """Copy the cells of a row, within the window's columns."""
        raise NotImplementedError

    def clear(self, page: int, window: Window, row: int, attribute: int) -> None:
        """Blank the cells of a row."""
        raise NotImplementedError

    def scroll(self, page: int, window: Window, lines: int, attribute: int) -> None:
        """Move a window up by ``lines`` (down if negative); all of them: blank it."""
        height = window.bottom - window.top + 1
        if not lines or abs(lines) >= height:
            for row in range(window.top, window.bottom + 1):
                self.clear(page, window, row, attribute)
            return
        rows = range(window.top, window.bottom + 1)
        for row in rows if lines > 0 else reversed(rows):
            if window.top <= row + lines <= window.bottom:
                self.move(page, window, row + lines, row)
            else:
                self.clear(page, window, row, attribute)


class TextCells(Cells):
    """Character and attribute, two bytes a cell."""

    def address(self, page: int, row: int, column: int) -> int:
        return self.at(self.page_base(page) + 2 * (row * self.columns + column))

    def put(self, page: int, row: int, column: int, character: int, attribute: int | None) -> None:
        data = bytes([character]) if attribute is None else bytes([character, attribute])
        self.store(self.address(page, row, column), data)

    def put_many(self, page: int, row: int, column: int, cells: bytes) -> None:
        """Write cells that follow each other on the page."""
        self.store(self.address(page, row, column), cells)

    def get(self, page: int, row: int, column: int) -> tuple[int, int]:
        character, attribute = self.hw.space.read(self.address(page, row, column), 2)
        return character, attribute

    def move(self, page: int, window: Window, source_row: int, row: int) -> None:
        source = self.address(page, source_row, window.left)
        cells = self.hw.space.read(source, 2 * window.width)
        self.store(self.address(page, row, window.left), cells)

    def clear(self, page: int, window: Window, row: int, attribute: int) -> None:
        blank = bytes([0x20, attribute]) * window.width
        self.store(self.address(page, row, window.left), blank)


class GraphicsCells(Cells):
    """Shapes drawn line by line."""

    def glyph(self, character: int) -> bytes:
        """The lines of a character."""
        vector = FONT_VECTOR
        if self.mode.layout in {Layout.CGA2, Layout.CGA4} and character >= 0x80:
            vector, character = HIGH_FONT_VECTOR, character - 0x80
        return self.hw.space.read(self._font(vector) + character * self.height, self.height)

    def get(self, page: int, row: int, column: int) -> tuple[int, int]:
        """Find the character whose shape the cell has; 0 if none fits."""
        lines = self.shape(page, row, column)
        for character, shape in enumerate(self.shapes):
            if shape == lines:
                return character, 0
        return 0, 0

    @cached_property
    def shapes(self) -> list[bytes]:
        """The lines of every character."""
        size = self.height
        whole = self.hw.space.read(self._font(FONT_VECTOR), 256 * size)
        if self.mode.layout in {Layout.CGA2, Layout.CGA4}:
            upper = self.hw.space.read(self._font(HIGH_FONT_VECTOR), 128 * size)
            whole = whole[: 128 * size] + upper
        return [whole[at : at + size] for at in range(0, 256 * size, size)]

    def _font(self, vector: int) -> int:
        """Where the far pointer at an interrupt vector leads."""
        pointer = self.hw.space.read(vector * 4, 4)
        offset, segment = (int.from_bytes(part, "little") for part in (pointer[:2], pointer[2:]))
        return (segment << 4) + offset

    def shape(self, page: int, row: int, column: int) -> bytes:
        """A bit for each pixel of the cell that is not background."""
        raise NotImplementedError

    def pixel(self, page: int, x: int, y: int) -> int:
        raise NotImplementedError

    def set_pixel(self, page: int, x: int, y: int, colour: int) -> None:
        raise NotImplementedError


class PlanarCells(GraphicsCells):
    """Four planes at A0000 (modes 0Dh-12h); with colour bit 7 drawing is XOR."""

    def line_address(self, page: int, row: int, line: int, column: int) -> int:
        return self.at(self.page_base(page) + (row * self.height + line) * self.columns + column)

    @property
    def planes(self) -> tuple[int, ...]:
        return (0,) if self.mode.layout is Layout.MONO else (0, 1, 2, 3)

    def put(self, page: int, row: int, column: int, character: int, attribute: int | None) -> None:
        colour = 0x0F if attribute is None else attribute
        lines, space = self.glyph(character), self.hw.space
        self.chip.set_graphics(vga.FUNCTION, 0x18 if colour & XOR else 0)
        for plane in self.planes:
            self.chip.set_sequencer(vga.MAP_MASK, 1 << plane)
            for line, bits in enumerate(lines):
                at = self.line_address(page, row, line, column)
                if colour & XOR:
                    space.read(at, 1)  # fills the latches that are then XORed
                self.store(at, bytes([bits if colour >> plane & 1 else 0]))
        self._restore()

    def _restore(self) -> None:
        self.chip.set_graphics(vga.FUNCTION, 0)
        self.chip.set_graphics(vga.GRAPHICS_MODE, 0)
        self.chip.set_graphics(vga.BIT_MASK, 0xFF)
        self.chip.set_sequencer(vga.MAP_MASK, 0x0F)

    def shape(self, page: int, row: int, column: int) -> bytes:
        lines = bytearray(self.height)
        for plane in self.planes:
            self.chip.set_graphics(vga.READ_MAP, plane)
            for line in range(self.height):
                at = self.line_address(page, row, line, column)
                lines[line] |= self.hw.space.read(at, 1)[0]
        return bytes(lines)

    def move(self, page: int, window: Window, source_row: int, row: int) -> None:
        space, width = self.hw.space, window.width
        for plane in self.planes:
            self.chip.set_graphics(vga.READ_MAP, plane)
            self.chip.set_sequencer(vga.MAP_MASK, 1 << plane)
            for line in range(self.height):
                source = self.line_address(page, source_row, line, window.left)
                target = self.line_address(page, row, line, window.left)
                self.store(target, space.read(source, width))
        self._restore()

    def clear(self, page: int, window: Window, row: int, attribute: int) -> None:
        for plane in self.planes:
            self.chip.set_sequencer(vga.MAP_MASK, 1 << plane)
            fill = (b"\xff" if attribute >> plane & 1 else b"\0") * window.width
            for line in range(self.height):
                self.store(self.line_address(page, row, line, window.left), fill)
        self._restore()

    def pixel(self, page: int, x: int, y: int) -> int:
        at = self.at(self.page_base(page) + y * self.columns + x // 8)
        colour = 0
        for plane in self.planes:
            self.chip.set_graphics(vga.READ_MAP, plane)
            colour |= (self.hw.space.read(at, 1)[0] >> 7 - x % 8 & 1) << plane
        return colour

    def set_pixel(self, page: int, x: int, y: int, colour: int) -> None:
        at = self.at(self.page_base(page) + y * self.columns + x // 8)
        self.chip.set_graphics(vga.BIT_MASK, 0x80 >> x % 8)
        self.chip.set_graphics(vga.GRAPHICS_MODE, 2)  # the byte written is a colour
        self.chip.set_graphics(vga.FUNCTION, 0x18 if colour & XOR else 0)
        self.hw.space.read(at, 1)
        self.store(at, bytes([colour & 0x0F]))
        self._restore()


class CgaCells(GraphicsCells):
    """One or two bits a pixel, odd rows of pixels 8 KiB further (modes 4-6)."""

    @property
    def bits(self) -> int:
        return 2 if self.mode.layout is Layout.CGA4 else 1

    def line_address(self, row: int, line: int, column: int) -> int:
        y = row * self.height + line
        return self.at(self.mode.base + y % 2 * CGA_BANK + y // 2 * 80 + column * self.bits)

    def put(self, page: int, row: int, column: int, character: int, attribute: int | None) -> None:
        colour = 0x03 if attribute is None else attribute
        for line, bits in enumerate(self.glyph(character)):
            data = self._spread(bits, colour)
            at = self.line_address(row, line, column)
            if colour & XOR:
                old = self.hw.space.read(at, len(data))
                data = bytes(one ^ other for one, other in zip(old, data, strict=True))
            self.store(at, data)

    def _spread(self, bits: int, colour: int) -> bytes:
        """Eight pixels as the mode keeps them."""
        if self.bits == 1:
            return bytes([bits if colour & 1 else 0])
        pixels = 0
        for shift in range(7, -1, -1):
            pixels = pixels << 2 | (colour & 3 if bits >> shift & 1 else 0)
        return pixels.to_bytes(2, "big")

    def shape(self, page: int, row: int, column: int) -> bytes:
        lines = bytearray()
        for line in range(self.height):
            data = self.hw.space.read(self.line_address(row, line, column), self.bits)
            if self.bits == 2:
                pixels = int.from_bytes(data, "big")
                data = bytes([sum((pixels >> 2 * n & 3 != 0) << n for n in range(8))])
            lines += data
        return bytes(lines)

    def move(self, page: int, window: Window, source_row: int, row: int) -> None:
        for line in range(self.height):
            source = self.line_address(source_row, line, window.left)
            data = self.hw.space.read(source, window.width * self.bits)
            self.store(self.line_address(row, line, window.left), data)

    def clear(self, page: int, window: Window, row: int, attribute: int) -> None:
        fill = self._spread(0xFF, attribute) * window.width
        for line in range(self.height):
            self.store(self.line_address(row, line, window.left), fill)

    def _place(self, x: int, y: int) -> tuple[int, int]:
        per_byte = 8 // self.bits
        at = self.at(self.mode.base + y % 2 * CGA_BANK + y // 2 * 80 + x // per_byte)
        return at, (per_byte - 1 - x % per_byte) * self.bits

    def pixel(self, page: int, x: int, y: int) -> int:
        at, shift = self._place(x, y)
        return self.hw.space.read(at, 1)[0] >> shift & (1 << self.bits) - 1

    def set_pixel(self, page: int, x: int, y: int, colour: int) -> None:
        at, shift = self._place(x, y)
        mask = (1 << self.bits) - 1
        old = self.hw.space.read(at, 1)[0]
        value = (colour & mask) << shift
        new = old ^ value if colour & XOR else old & ~(mask << shift) | value
        self.store(at, bytes([new]))


class LinearCells(GraphicsCells):
    """A byte a pixel (mode 13h)."""

    def line_address(self, row: int, line: int, column: int) -> int:
        return self.at(self.mode.base + (row * self.height + line) * self.columns * 8 + column * 8)

    def put(self, page: int, row: int, column: int, character: int, attribute: int | None) -> None:
        colour = 0x0F if attribute is None else attribute
        for line, bits in enumerate(self.glyph(character)):
            pixels = bytes(colour if bits >> shift & 1 else 0 for shift in range(7, -1, -1))
            self.store(self.line_address(row, line, column), pixels)

    def shape(self, page: int, row: int, column: int) -> bytes:
        lines = bytearray()
        for line in range(self.height):
            pixels = self.hw.space.read(self.line_address(row, line, column), 8)
            lines.append(sum((pixel != 0) << 7 - n for n, pixel in enumerate(pixels)))
        return bytes(lines)

    def move(self, page: int, window: Window, source_row: int, row: int) -> None:
        for line in range(self.height):
            source = self.line_address(source_row, line, window.left)
            data = self.hw.space.read(source, window.width * 8)
            self.store(self.line_address(row, line, window.left), data)

    def clear(self, page: int, window: Window, row: int, attribute: int) -> None:
        for line in range(self.height):
            at = self.line_address(row, line, window.left)
            self.store(at, bytes([attribute]) * (window.width * 8))

    def pixel(self, page: int, x: int, y: int) -> int:
        return self.hw.space.read(self.at(self.mode.base + y * self.columns * 8 + x), 1)[0]

    def set_pixel(self, page: int, x: int, y: int, colour: int) -> None:
        at = self.at(self.mode.base + y * self.columns * 8 + x)
        self.store(at, bytes([colour]))


CELLS: dict[Layout, type[Cells]] = {
    Layout.TEXT: TextCells,
    Layout.CGA4: CgaCells,
    Layout.CGA2: CgaCells,
    Layout.PLANAR: PlanarCells,
    Layout.MONO: PlanarCells,
    Layout.LINEAR: LinearCells,
}
