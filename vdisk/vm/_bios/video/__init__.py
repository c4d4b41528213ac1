"""int 10h: the screen (IBM PS/2 Display Adapter technical reference; Ralf Brown's list)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.video.cells import CELLS, Cells, GraphicsCells, TextCells, Window
from vdisk.vm._bios.video.chip import CURSOR_END, CURSOR_START, Chip
from vdisk.vm._bios.video.fonts import FontService
from vdisk.vm._bios.video.modes import DEFAULT_TEXT, MODES, Layout, Mode, dac_colours
from vdisk.vm._bios.video.palette import PaletteService
from vdisk.vm._bios.video.state import StateService
from vdisk.vm._bios.video.vbe import VbeService

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware

KEEP_MEMORY = 0x80
BELL, BACKSPACE, LINE_FEED, RETURN = 0x07, 0x08, 0x0A, 0x0D
PAGES = 8
CURSOR_HIDDEN = 0x20
BLANK = 0x0720
NORMAL = 0x07
NO_CURSOR_EMULATION, NO_PALETTE_LOADING = 0x01, 0x08
MODE_SET_CONTROL = 0x2C  # CGA's 3D8 as of mode 3, kept at 40:65
COLOUR_ADAPTER, EQUIPMENT_VIDEO = 0x20, 0x30
DISPLAY_VGA_COLOUR = 0x08


class VideoService:
    """int 10h, and the screen for the BIOS's own messages."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.bda = hardware.bda
        self.chip = Chip(hardware)
        self.palette = PaletteService(hardware, self.chip)
        self.fonts = FontService(self)
        self.state = StateService(self)
        self.vbe = VbeService(self)
        self._functions = {
            0x00: self._set_mode,
            0x01: self._cursor_shape,
            0x02: self._set_cursor,
            0x03: self._get_cursor,
            0x04: self._light_pen,
            0x05: self._set_page,
            0x06: self._scroll_up,
            0x07: self._scroll_down,
            0x08: self._read_cell,
            0x09: self._write_cells,
            0x0A: self._write_cells,
            0x0B: self._cga_palette,
            0x0C: self._write_pixel,
            0x0D: self._read_pixel,
            0x0E: self._teletype,
            0x0F: self._get_mode,
            0x10: self.palette.service,
            0x11: self.fonts.service,
            0x12: self._alternate,
            0x13: self._write_string,
            0x1A: self._combination,
            0x1B: self.state.functionality,
            0x1C: self.state.service,
            0x4F: self.vbe.service,
        }

    def service(self, call: Call) -> None:
        function = self._functions.get(call.ah)
        if function is not None:
            function(call)

    # -- modes -------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """The mode that is set, as the BDA has it."""
        return MODES.get(self.bda.byte(layout.VIDEO_MODE) & 0x7F, MODES[DEFAULT_TEXT])

    def cells(self) -> Cells:
        mode = self.mode
        return CELLS[mode.layout](self.hw, self.chip, mode)

    def set_mode(self, number: int, keep_memory: bool = False) -> None:
        """Program the VGA for a mode and note it in the BDA."""
        mode = MODES[number]
        self.vbe.leave()
        self.chip.program(mode.registers)
        if not self.bda.byte(layout.VIDEO_FLAGS) & NO_PALETTE_LOADING:
            self.chip.set_colours(0, dac_colours(mode.palette))
        self._note(number, mode, keep_memory)
        if mode.is_text:
            self.fonts.load_standard(mode.height)
        if not keep_memory:
            self._clear_memory(mode)
        self.fonts.point_at_standard(mode)
        if mode.is_text:
            self.set_cursor_shape(0x06, 0x07)
        for page in range(PAGES):
            self.move_cursor(page, 0, 0)

    def _note(self, number: int, mode: Mode, keep_memory: bool) -> None:
        bda = self.bda
        bda.set_byte(layout.VIDEO_MODE, number)
        bda.set_word(layout.COLUMNS, mode.columns)
        bda.set_word(layout.PAGE_SIZE, mode.page_size)
        bda.set_word(layout.PAGE_START, 0)
        bda.set_byte(layout.ACTIVE_PAGE, 0)
        bda.set_byte(layout.ROWS_LESS_ONE, mode.rows - 1)
        bda.set_word(layout.CHARACTER_HEIGHT, mode.height)
        bda.set_byte(layout.CGA_MODE, MODE_SET_CONTROL | (0 if number & 1 else 1))
        bda.set_byte(layout.CGA_PALETTE, 0x3F if number == 0x06 else 0x30)
        emulation = bda.byte(layout.VIDEO_CONTROL) & NO_CURSOR_EMULATION
        bda.set_byte(layout.VIDEO_CONTROL, 0x60 | emulation | (0x80 if keep_memory else 0))
        bda.set_byte(layout.VIDEO_SWITCHES, 0xF9)

    def _clear_memory(self, mode: Mode) -> None:
        if mode.is_text:
            size = mode.page_size * PAGES
            self.hw.space.write(mode.base, BLANK.to_bytes(2, "little") * (size // 2))
        elif mode.layout in {Layout.CGA2, Layout.CGA4}:
            self.hw.space.write(mode.base, bytes(0x4000))
        else:
            self.hw.space.write(mode.base, bytes(0x10000))

    def _set_mode(self, call: Call) -> None:
        number = call.al & 0x7F
        if number not in MODES:
            return
        if number != 0x07 and self.bda.byte(layout.EQUIPMENT) & EQUIPMENT_VIDEO == EQUIPMENT_VIDEO:
            self.bda.set_bits(layout.EQUIPMENT, EQUIPMENT_VIDEO, COLOUR_ADAPTER)
        self.set_mode(number, bool(call.al & KEEP_MEMORY))
        call.al = 0x30 if number not in {0x06, 0x07} else 0x3F  # as Phoenix's and AMI's do

    def _get_mode(self, call: Call) -> None:
        kept = self.bda.byte(layout.VIDEO_CONTROL) & 0x80
        call.al = self.bda.byte(layout.VIDEO_MODE) | kept
        call.ah = self.bda.word(layout.COLUMNS)
        call.bh = self.bda.byte(layout.ACTIVE_PAGE)

    # -- cursor and pages --------------------------------------------------------------------

    def cursor(self, page: int) -> tuple[int, int]:
        """Row and column of a page's cursor."""
        return divmod(self.bda.word(layout.CURSORS + 2 * (page % PAGES)), 256)

    def move_cursor(self, page: int, row: int, column: int) -> None:
        page %= PAGES
        self.bda.set_word(layout.CURSORS + 2 * page, (row & 0xFF) << 8 | column & 0xFF)
        if page == self.bda.byte(layout.ACTIVE_PAGE) and self.mode.is_text:
            start = self.bda.word(layout.PAGE_START) // 2
            self.chip.set_cursor_address(start + row * self.bda.word(layout.COLUMNS) + column)

    def set_cursor_shape(self, start: int, end: int) -> None:
        """Lines of the cursor, said for cells of eight lines unless emulation is off."""
        self.bda.set_word(layout.CURSOR_SHAPE, start << 8 | end)
        height = self.bda.word(layout.CHARACTER_HEIGHT)
        emulated = not self.bda.byte(layout.VIDEO_CONTROL) & NO_CURSOR_EMULATION
        if emulated and 8 < height <= 32 and end < 8 and not start & CURSOR_HIDDEN:
            start, end = _scaled(start & 0x1F, height), _scaled(end, height)
        self.chip.set_crtc(CURSOR_START, start)
        self.chip.set_crtc(CURSOR_END, end)

    def _cursor_shape(self, call: Call) -> None:
        self.set_cursor_shape(call.ch & 0x3F, call.cl & 0x1F)

    def _set_cursor(self, call: Call) -> None:
        self.move_cursor(call.bh, call.dh, call.dl)

    def _get_cursor(self, call: Call) -> None:
        call.dh, call.dl = self.cursor(call.bh)
        call.cx = self.bda.word(layout.CURSOR_SHAPE)
        call.ax = 0

    def _light_pen(self, call: Call) -> None:
        call.ah = 0

    def _set_page(self, call: Call) -> None:
        if call.al >= self.mode.pages:
            return
        page, size = call.al, self.bda.word(layout.PAGE_SIZE)
        start = page * size
        self.bda.set_byte(layout.ACTIVE_PAGE, page)
        self.bda.set_word(layout.PAGE_START, start)
        self.chip.set_start_address(start // 2 if self.mode.is_text else start)
        self.move_cursor(page, *self.cursor(page))

    # -- characters --------------------------------------------------------------------------

    def _scroll_up(self, call: Call) -> None:
        self._scroll(call, call.al)

    def _scroll_down(self, call: Call) -> None:
        self._scroll(call, -call.al)

    def _scroll(self, call: Call, lines: int) -> None:
        cells = self.cells()
        bottom, right = min(call.dh, cells.rows - 1), min(call.dl, cells.columns - 1)
        if call.ch > bottom or call.cl > right:
            return
        window = Window(call.ch, call.cl, bottom, right)
        cells.scroll(self.bda.byte(layout.ACTIVE_PAGE), window, lines, call.bh)

    def _read_cell(self, call: Call) -> None:
        row, column = self.cursor(call.bh)
        call.al, call.ah = self.cells().get(call.bh, row, column)

    def _write_cells(self, call: Call) -> None:
        """AH=09h with the attribute BL, 0Ah without (a colour in graphics modes)."""
        cells = self.cells()
        row, column = self.cursor(call.bh)
        attribute: int | None = call.bl
        if call.ah == 0x0A and isinstance(cells, TextCells):
            attribute = None
        count = min(call.cx, max(cells.columns * cells.rows - row * cells.columns - column, 0))
        if isinstance(cells, TextCells) and attribute is not None:
            cells.put_many(call.bh, row, column, bytes([call.al, attribute]) * count)
            return
        for place in range(row * cells.columns + column, row * cells.columns + column + count):
            cells.put(call.bh, *divmod(place, cells.columns), call.al, attribute)

    def _teletype(self, call: Call) -> None:
        page = self.bda.byte(layout.ACTIVE_PAGE)
        self.teletype(page, call.al, None if self.mode.is_text else call.bl)

    def teletype(self, page: int, character: int, attribute: int | None) -> None:
        """Write a character where the cursor is and move on, scrolling at the end."""
        cells = self.cells()
        row, column = self.cursor(page)
        if character == BELL:
            return
        if character == BACKSPACE:
            column = max(column - 1, 0)
        elif character == RETURN:
            column = 0
        elif character == LINE_FEED:
            row += 1
        else:
            cells.put(page, row, column, character, attribute)
            column += 1
        if column >= cells.columns:
            row, column = row + 1, 0
        if row >= cells.rows:
            last = cells.rows - 1
            blank = cells.get(page, last, min(column, cells.columns - 1))[1]
            everything = Window(0, 0, last, cells.columns - 1)
            cells.scroll(page, everything, 1, blank if self.mode.is_text else 0)
            row = last
        self.move_cursor(page, row, column)

    def print(self, text: str) -> None:
        """A message of the BIOS; line feeds begin new lines."""
        page = self.bda.byte(layout.ACTIVE_PAGE)
        for character in text.replace("\n", "\r\n").encode("cp437", "replace"):
            self.teletype(page, character, None if self.mode.is_text else NORMAL)

    def _write_string(self, call: Call) -> None:
        """AL bit 0: the cursor moves; bit 1: characters and attributes alternate."""
        pairs, moves = call.al & 2, call.al & 1
        cells = self.cells()
        length = min(call.cx, cells.rows * cells.columns) * (2 if pairs else 1)  # one screen
        text = call.read(call.at_es(call.bp), length)
        before = self.cursor(call.bh)
        self.move_cursor(call.bh, call.dh, call.dl)
        for place in range(0, length, 2 if pairs else 1):
            attribute = text[place + 1] if pairs else call.bl
            self.teletype(call.bh, text[place], attribute)
        if not moves:
            self.move_cursor(call.bh, *before)

    # -- pixels ------------------------------------------------------------------------------

    def _write_pixel(self, call: Call) -> None:
        cells = self.cells()
        if isinstance(cells, GraphicsCells) and self._on_screen(cells, call):
            cells.set_pixel(call.bh, call.cx, call.dx, call.al)

    def _read_pixel(self, call: Call) -> None:
        cells = self.cells()
        if isinstance(cells, GraphicsCells) and self._on_screen(cells, call):
            call.al = cells.pixel(call.bh, call.cx, call.dx)

    def _on_screen(self, cells: Cells, call: Call) -> bool:
        return call.cx < cells.columns * 8 and call.dx < cells.rows * cells.height

    def _cga_palette(self, call: Call) -> None:
        """BH=0: border and background BL; BH=1: green-red-brown or cyan-magenta-white."""
        kept = self.bda.byte(layout.CGA_PALETTE)
        if call.bh == 0:
            kept = kept & 0xE0 | call.bl & 0x1F
            colour = call.bl & 0x0F
            colour = colour & 7 | (colour & 8) << 1
            if not self.mode.is_text:
                self.chip.set_attribute(0, colour)
            self.chip.set_attribute(0x11, colour)
        elif call.bh == 1:
            kept = kept & 0xDF | (call.bl & 1) << 5
        self.bda.set_byte(layout.CGA_PALETTE, kept)
        if self.mode.layout is Layout.CGA4:
            bright = kept & 0x10
            for index in range(1, 4):
                self.chip.set_attribute(index, 2 * index | bright | kept >> 5 & 1)

    # -- the rest ----------------------------------------------------------------------------

    def _alternate(self, call: Call) -> None:
        """AH=12h: settings of the adapter by BL."""
        bda, choice = self.bda, call.al & 1
        if call.bl == 0x10:
            call.bh = int(bda.word(layout.CRTC_PORT) == 0x3B4)
            call.bl, call.cx = 3, 0x0009  # 256 KiB
            return
        if call.bl == 0x30:
            if call.al != 2:  # 400 lines are what there is
                call.al = 0
                return
        elif call.bl == 0x31:
            bda.set_bits(layout.VIDEO_FLAGS, NO_PALETTE_LOADING, choice * NO_PALETTE_LOADING)
        elif call.bl == 0x33:
            bda.set_bits(layout.VIDEO_FLAGS, 0x02, 0 if choice else 0x02)
        elif call.bl == 0x34:
            bda.set_bits(layout.VIDEO_CONTROL, NO_CURSOR_EMULATION, choice)
        elif call.bl == 0x36:
            clocking = self.hw.in_indexed(0x3C4, 1) & ~0x20
            self.chip.set_sequencer(1, clocking | choice << 5)
        elif call.bl != 0x20:
            return
        call.al = 0x12

    def _combination(self, call: Call) -> None:
        """AH=1Ah: a VGA with a colour monitor, and nothing else."""
        if call.al == 0:
            call.bx = self.bda.byte(layout.DISPLAY_COMBINATION)
        elif call.al == 1:
            self.bda.set_byte(layout.DISPLAY_COMBINATION, call.bl)
        else:
            return
        call.al = 0x1A

    def initialize(self) -> None:
        """POST: colour text, with the tables that programs look for."""
        bda = self.bda
        bda.set_byte(layout.VIDEO_FLAGS, 0x11)  # a VGA is active, 400 lines
        bda.set_byte(layout.DISPLAY_COMBINATION, DISPLAY_VGA_COLOUR)
        bda.set_dword(layout.SAVE_POINTER, self.hw.rom.far("save_area"))
        bda.set_bits(layout.EQUIPMENT, EQUIPMENT_VIDEO, COLOUR_ADAPTER)
        self.set_mode(DEFAULT_TEXT)


def _scaled(line: int, height: int) -> int:
    """A line of an eight-line cell in a taller one: the lower half keeps its distance below."""
    if line > 4:
        return height - (8 - line) - 1
    return line * height // 8
