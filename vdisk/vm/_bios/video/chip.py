"""The VGA's registers, as a program sets them: through the ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios.layout import CRTC_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from vdisk.vm._bios.hardware import Hardware
    from vdisk.vm._bios.video.modes import RGB, Registers

from contextlib import contextmanager

ATTRIBUTE, ATTRIBUTE_READ = 0x3C0, 0x3C1
MISC_WRITE, MISC_READ = 0x3C2, 0x3CC
SEQUENCER, GRAPHICS = 0x3C4, 0x3CE
DAC_MASK, DAC_READ, DAC_WRITE, DAC_DATA = 0x3C6, 0x3C7, 0x3C8, 0x3C9
CRTC_COLOUR, CRTC_MONO = 0x3D4, 0x3B4
SCREEN_ON = 0x20  # in the attribute controller's index: the palette drives the screen
STATUS_OFFSET = 6  # input status 1, from the CRT controller's index port

SET_RESET, SET_RESET_ENABLE, FUNCTION, READ_MAP, GRAPHICS_MODE, MISCELLANEOUS = 0, 1, 3, 4, 5, 6
BIT_MASK = 8
MAP_MASK, CHARACTER_MAPS, MEMORY_MODE = 2, 3, 4
MAX_SCAN_LINE, CURSOR_START, CURSOR_END, START_HIGH, START_LOW = 0x09, 0x0A, 0x0B, 0x0C, 0x0D
CURSOR_HIGH, CURSOR_LOW, RETRACE_END, DISPLAY_END, OFFSET = 0x0E, 0x0F, 0x11, 0x12, 0x13

FONT_BLOCKS = (0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x6000, 0xA000, 0xE000)
FONT_WINDOW = 0xA0000
GLYPH_ROOM = 32


class Chip:
    """One VGA."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware

    @property
    def crtc_port(self) -> int:
        return self.hw.bda.word(CRTC_PORT)

    def set_crtc(self, index: int, value: int) -> None:
        self.hw.out_indexed(self.crtc_port, index, value)

    def crtc(self, index: int) -> int:
        return self.hw.in_indexed(self.crtc_port, index)

    def set_sequencer(self, index: int, value: int) -> None:
        self.hw.out_indexed(SEQUENCER, index, value)

    def set_graphics(self, index: int, value: int) -> None:
        self.hw.out_indexed(GRAPHICS, index, value)

    def _reset_flip_flop(self) -> None:
        """The next write of 3C0 is an index."""
        self.hw.inb(self.crtc_port + STATUS_OFFSET)

    def set_attribute(self, index: int, value: int) -> None:
        self._reset_flip_flop()
        self.hw.outb(ATTRIBUTE, index)
        self.hw.outb(ATTRIBUTE, value)
        self.screen_on()

    def attribute(self, index: int) -> int:
        self._reset_flip_flop()
        self.hw.outb(ATTRIBUTE, index)
        value = self.hw.inb(ATTRIBUTE_READ)
        self.screen_on()
        return value

    def screen_on(self) -> None:
        """Connect the palette, which setting its registers disconnects."""
        self._reset_flip_flop()
        self.hw.outb(ATTRIBUTE, SCREEN_ON)
        self._reset_flip_flop()

    # -- whole modes -------------------------------------------------------------------------

    def program(self, values: Registers) -> None:
        """Set every register of a mode but the DAC."""
        hw = self.hw
        port = CRTC_COLOUR if values.misc & 1 else CRTC_MONO
        hw.bda.set_word(CRTC_PORT, port)
        self.set_sequencer(0, 1)
        hw.outb(MISC_WRITE, values.misc)
        for index, value in enumerate(values.sequencer, 1):
            self.set_sequencer(index, value)
        self.set_sequencer(0, 3)
        self.set_crtc(RETRACE_END, 0)  # which protects registers 0-7
        for index, value in enumerate(values.crtc):
            self.set_crtc(index, value)
        for index, value in enumerate(values.graphics):
            self.set_graphics(index, value)
        for index, value in enumerate(values.attribute):
            self.set_attribute(index, value)
        self.set_attribute(0x14, 0)

    def registers(self) -> Registers:
        """What :meth:`program` has set."""
        from vdisk.vm._bios.video.modes import Registers

        return Registers(
            self.hw.inb(MISC_READ),
            bytes(self.hw.in_indexed(SEQUENCER, index) for index in range(1, 5)),
            bytes(self.crtc(index) for index in range(0x19)),
            bytes(self.hw.in_indexed(GRAPHICS, index) for index in range(9)),
            bytes(self.attribute(index) for index in range(0x14)),
        )

    # -- the DAC -----------------------------------------------------------------------------

    def set_colours(self, first: int, colours: list[RGB]) -> None:
        self.hw.outb(DAC_WRITE, first)
        for colour in colours:
            for part in colour:
                self.hw.outb(DAC_DATA, part)

    def colours(self, first: int, count: int) -> list[RGB]:
        self.hw.outb(DAC_READ, first)
        inb = self.hw.inb
        return [(inb(DAC_DATA), inb(DAC_DATA), inb(DAC_DATA)) for _ in range(count)]

    # -- characters --------------------------------------------------------------------------

    def font_access(self) -> AbstractContextManager[None]:
        """While inside, A0000 is the plane of character shapes."""
        return self._font_access()

    @contextmanager
    def _font_access(self) -> Iterator[None]:
        for index, value in ((MAP_MASK, 0x04), (MEMORY_MODE, 0x06)):
            self.set_sequencer(index, value)
        for index, value in ((READ_MAP, 2), (GRAPHICS_MODE, 0), (MISCELLANEOUS, 4)):
            self.set_graphics(index, value)
        try:
            yield
        finally:
            for index, value in ((MAP_MASK, 0x03), (MEMORY_MODE, 0x02)):
                self.set_sequencer(index, value)
            window = 0x0E if self.crtc_port == CRTC_COLOUR else 0x0A
            for index, value in ((READ_MAP, 0), (GRAPHICS_MODE, 0x10), (MISCELLANEOUS, window)):
                self.set_graphics(index, value)

    def load_font(self, block: int, first: int, height: int, glyphs: bytes) -> None:
        """Put the shapes of characters from ``first`` on into a block of the generator."""
        base = FONT_WINDOW + FONT_BLOCKS[block & 7]
        count = min(len(glyphs) // height, 256 - first) if height else 0
        room = bytearray()
        for number in range(count):
            room += glyphs[number * height : (number + 1) * height].ljust(GLYPH_ROOM, b"\0")
        with self.font_access():
            self.hw.space.write(base + first * GLYPH_ROOM, room)

    def set_cursor_address(self, cell: int) -> None:
        self.set_crtc(CURSOR_HIGH, cell >> 8 & 0xFF)
        self.set_crtc(CURSOR_LOW, cell & 0xFF)

    def set_start_address(self, address: int) -> None:
        self.set_crtc(START_HIGH, address >> 8 & 0xFF)
        self.set_crtc(START_LOW, address & 0xFF)
