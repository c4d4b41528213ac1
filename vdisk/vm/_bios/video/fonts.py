"""int 10h AH=11h: shapes of characters, in the VGA's generator (text) or in memory (graphics)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.video import chip as vga
from vdisk.vm._bios.video.cells import FONT_VECTOR, HIGH_FONT_VECTOR

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.video import VideoService
    from vdisk.vm._bios.video.modes import Mode

ROM_FONTS = {8: "font_8x8", 14: "font_8x14", 16: "font_8x16"}
BY_FUNCTION = {0x01: 14, 0x02: 8, 0x04: 16}
GRAPHICS_FONTS = {0x22: 14, 0x23: 8, 0x24: 16}
ROWS_BY_CODE = {1: 14, 2: 25, 3: 43}
RESIZE = 0x10
MOST_LINES = 32
SCAN_LINES = 400


class FontService:
    """Fonts of the ROM and of the program."""

    def __init__(self, video: VideoService) -> None:
        self.video = video
        self.hw, self.bda, self.chip = video.hw, video.bda, video.chip

    def glyphs(self, height: int) -> bytes:
        """The ROM's 256 shapes of 8, 14 or 16 lines."""
        start = self.hw.rom.labels[ROM_FONTS[height]]
        return bytes(self.hw.rom.image[start : start + 256 * height])

    def load_standard(self, height: int) -> None:
        self.chip.load_font(0, 0, height, self.glyphs(height))

    def point_at_standard(self, mode: Mode) -> None:
        """Vectors 43h and 1Fh, from which graphics modes draw."""
        self._set_vector(FONT_VECTOR, self.hw.rom.far(ROM_FONTS[mode.height]))
        upper_half = self.hw.rom.far("font_8x8") + 128 * 8
        self._set_vector(HIGH_FONT_VECTOR, upper_half)

    def _set_vector(self, number: int, pointer: int) -> None:
        self.hw.space.write(number * 4, pointer.to_bytes(4, "little"))

    # -- AH=11h ------------------------------------------------------------------------------

    def service(self, call: Call) -> None:
        function = call.al
        if function == 0x30:
            self._information(call)
        elif function == 0x03:
            self.chip.set_sequencer(vga.CHARACTER_MAPS, call.bl)
        elif function & ~RESIZE == 0x00:
            self._user_font(call)
        elif function & ~RESIZE in BY_FUNCTION:
            height = BY_FUNCTION[function & ~RESIZE]
            self.chip.load_font(call.bl, 0, height, self.glyphs(height))
            if function & RESIZE:
                self._resize(height)
        elif 0x20 <= function <= 0x24:
            self._graphics_font(call)

    def _user_font(self, call: Call) -> None:
        height = min(call.bh, MOST_LINES)
        first, count = call.dx & 0xFF, min(call.cx, 256)
        glyphs = call.read(call.at_es(call.bp), count * height)
        self.chip.load_font(call.bl, first, height, glyphs)
        if call.al & RESIZE and height:
            self._resize(height)

    def _resize(self, height: int) -> None:
        """As many rows of cells as the screen has room for."""
        bda, columns = self.bda, self.bda.word(layout.COLUMNS)
        rows = SCAN_LINES // height
        self.chip.set_crtc(vga.MAX_SCAN_LINE, self.chip.crtc(vga.MAX_SCAN_LINE) & 0xE0 | height - 1)
        self.chip.set_crtc(vga.DISPLAY_END, rows * height - 1 & 0xFF)
        bda.set_word(layout.CHARACTER_HEIGHT, height)
        bda.set_byte(layout.ROWS_LESS_ONE, rows - 1)
        bda.set_word(layout.PAGE_SIZE, rows * columns * 2 + 0xFF & ~0xFF)
        self.video.set_cursor_shape(6, 7)

    def _graphics_font(self, call: Call) -> None:
        """Only pointers change: the next character is drawn from there."""
        function = call.al
        pointer = call.es << 16 | call.bp
        if function == 0x20:
            self._set_vector(HIGH_FONT_VECTOR, pointer)
            return
        height = call.cx if function == 0x21 else GRAPHICS_FONTS[function]
        if function != 0x21:
            pointer = self.hw.rom.far(ROM_FONTS[height])
        if not 1 <= height <= MOST_LINES:
            return
        self._set_vector(FONT_VECTOR, pointer)
        rows = ROWS_BY_CODE.get(call.bl, call.dl if call.bl == 0 else 25)
        self.bda.set_word(layout.CHARACTER_HEIGHT, height)
        self.bda.set_byte(layout.ROWS_LESS_ONE, max(rows, 1) - 1)

    def _information(self, call: Call) -> None:
        """AL=30h: where the font BH is; CX lines a character, DL the last row."""
        if call.bh <= 1:
            vector = HIGH_FONT_VECTOR if call.bh == 0 else FONT_VECTOR
            pointer = int.from_bytes(self.hw.space.read(vector * 4, 4), "little")
        else:
            names = {2: 14, 3: 8, 4: 8, 5: 14, 6: 16, 7: 16}
            if call.bh not in names:
                return
            pointer = self.hw.rom.far(ROM_FONTS[names[call.bh]])
            if call.bh == 4:
                pointer += 128 * 8
            elif call.bh in {5, 7}:  # alternate 9-dot shapes: none
                pointer = self.hw.rom.far("no_alternate_font")
        call.es, call.bp = pointer >> 16, pointer & 0xFFFF
        call.cx = self.bda.word(layout.CHARACTER_HEIGHT)
        call.dl = self.bda.byte(layout.ROWS_LESS_ONE)
