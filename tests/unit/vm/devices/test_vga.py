"""The video card: planes, latches, windows, modes drawn dot by dot, the display interface."""

from __future__ import annotations

import random
import zlib

import pytest

from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.devices.vga import HOME, Vga
from vdisk.vm.devices.vga_registers import LINE_TIME
from vdisk.vm.memory import GuestMemory, PageKind

LFB = 0xE000_0000
_CRTC_80 = "5f4f508254 80bf1f00"
_ZEROES = "000000000000"
TEXT_80 = (
    f"67 00030002 5f4f508255 81bf1f004f0d0e {'00' * 4} 9c8e8f281f96b9a3ff 00000000 00100e00ff"
    "0001020304051407 38393a3b3c3d3e3f 0c000f08"
)
TEXT_40 = (
    f"67 09030002 2d2728902b a0bf1f004f0d0e {'00' * 4} 9c8e8f141f96b9a3ff 00000000 00100e00ff"
    "0001020304051407 38393a3b3c3d3e3f 0c000f00"
)
CGA4 = (
    f"63 09030002 2d2728902b 80bf1f00c1 {_ZEROES} 9c8e8f140096b9a2ff 00000000 00300f00ff"
    "0013151702040607 1011121314151617 01000300"
)
CGA2 = (
    f"63 01010006 5f4f508254 80bf1f00c1 {_ZEROES} 9c8e8f280096b9c2ff 00000000 00000d00ff"
    "0017171717171717 1717171717171717 01000100"
)
PLANAR_480 = (
    f"e3 010f0006 5f4f508254 800b3e0040 {_ZEROES} ea8cdf2800e704e3ff 00000000 0000050fff"
    "0001020304051407 38393a3b3c3d3e3f 01000f00"
)
PLANAR_320 = (
    f"63 090f0006 2d2728902b 80bf1f00c0 {_ZEROES} 9c8e8f140096b9e3ff 00000000 0000050fff"
    "0001020304050607 1011121314151617 01000f00"
)
MODE_13H = (
    f"63 010f000e 5f4f508254 80bf1f0041 {_ZEROES} 9c8e8f284096b9a3ff 00000000 0040050fff"
    "0001020304050607 08090a0b0c0d0e0f 41000f00"
)


class Card:
    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.memory = GuestMemory(1 << 24)
        self.vga = Vga(self.bus, self.memory, self.clock)
        self.pci = PciBus(self.bus)
        self.pci.add(self.vga, 2)
        self.vga.reset()

    def out(self, port: int, value: int) -> None:
        self.bus.ports.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.bus.ports.read(port, 1)

    def indexed(self, port: int, index: int, value: int) -> None:
        self.bus.ports.write(port, 2, value << 8 | index)

    def mode(self, text: str) -> None:
        """Program every register, as a video BIOS does; the DAC with colour n = (n, n/2, 63-n)."""
        data = bytes.fromhex(text)
        self.indexed(0x3C4, 0, 1)
        self.out(0x3C2, data[0])
        for index, value in enumerate(data[1:5], 1):
            self.indexed(0x3C4, index, value)
        self.indexed(0x3C4, 0, 3)
        self.indexed(0x3D4, 0x11, 0)
        for index, value in enumerate(data[5:30]):
            self.indexed(0x3D4, index, value)
        for index, value in enumerate(data[30:39]):
            self.indexed(0x3CE, index, value)
        for index, value in enumerate(data[39:59]):
            self.attribute(index, value)
        self.attribute(0x14, 0)
        self.read(0x3DA)
        self.out(0x3C0, 0x20)
        self.out(0x3C8, 0)
        for number in range(256):
            for part in (number & 63, number // 2 & 63, 63 - (number & 63)):
                self.out(0x3C9, part)

    def attribute(self, index: int, value: int) -> None:
        self.read(0x3DA)
        self.out(0x3C0, index)
        self.out(0x3C0, value)

    def poke(self, address: int, *values: int) -> None:
        """Write memory as a processor does: RAM in place, the rest over the bus."""
        for place, value in enumerate(values, address):
            if self.memory.kind(place) is PageKind.RAM:
                self.memory.view(place, 1)[0] = value
            else:
                self.bus.mmio.write(place, 1, value)

    def peek(self, address: int) -> int:
        if self.memory.kind(address) is PageKind.RAM:
            return self.memory.view(address, 1)[0]
        return self.bus.mmio.read(address, 1)

    def glyph(self, character: int, *lines: int) -> None:
        """Load a shape into plane 2, as BIOS and Linux do, then go back to text."""
        for port, index, value in ((0x3C4, 2, 4), (0x3C4, 4, 7), (0x3CE, 4, 2)):
            self.indexed(port, index, value)
        self.indexed(0x3CE, 5, 0)
        self.indexed(0x3CE, 6, 0)
        self.poke(0xA0000 + character * 32, *lines)
        for port, index, value in ((0x3C4, 2, 3), (0x3C4, 4, 2), (0x3CE, 4, 0)):
            self.indexed(port, index, value)
        self.indexed(0x3CE, 5, 0x10)
        self.indexed(0x3CE, 6, 0x0E)

    def dispi(self, index: int, value: int) -> None:
        self.bus.ports.write(0x1CE, 2, index)
        self.bus.ports.write(0x1CF, 2, value)

    def read_dispi(self, index: int) -> int:
        self.bus.ports.write(0x1CE, 2, index)
        return self.bus.ports.read(0x1CF, 2)

    def linear_mode(self, width: int, height: int, depth: int, enable: int = 0x41) -> None:
        self.dispi(4, 0)
        for index, value in ((1, width), (2, height), (3, depth), (4, enable)):
            self.dispi(index, value)

    def place(self, address: int = LFB) -> None:
        for register, value in ((0x10, address), (0x04, 3)):
            self.bus.ports.write(0xCF8, 4, 1 << 31 | 2 << 11 | register)
            self.bus.ports.write(0xCFC, 4, value)

    def colour(self, number: int) -> bytes:
        """Colour ``number`` of the DAC as :meth:`mode` sets it, as a pixel."""
        parts = (63 - (number & 63), number // 2 & 63, number & 63, 0)
        return bytes(part << 2 | part >> 4 for part in parts)

    def pixels(self, x: int, y: int, count: int = 1) -> list[bytes]:
        width, _height, pixels = self.vga.frame()
        start = (y * width + x) * 4
        return [pixels[at : at + 4] for at in range(start, start + 4 * count, 4)]


@pytest.fixture
def card() -> Card:
    return Card()


class TestRegisters:
    def test_indexed_registers_keep_their_bits(self, card: Card) -> None:
        for index, kept in enumerate((0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0)):
            card.indexed(0x3C4, index, 0xFF)
            assert card.read(0x3C5) == kept
        for index, kept in enumerate((0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF, 0)):
            card.indexed(0x3CE, index, 0xFF)
            assert card.read(0x3CF) == kept

    def test_crtc_registers_can_be_protected(self, card: Card) -> None:
        card.out(0x3C2, 1)
        card.indexed(0x3D4, 0, 0x5F)
        card.indexed(0x3D4, 0x11, 0x80)
        card.indexed(0x3D4, 0, 0)
        card.indexed(0x3D4, 7, 0xFF)
        assert card.read(0x3D5) == 0x10
        card.out(0x3D4, 0)
        assert card.read(0x3D5) == 0x5F

    def test_misc_output_chooses_the_address_of_the_crtc(self, card: Card) -> None:
        card.out(0x3C2, 0)
        card.indexed(0x3B4, 0x0A, 0x12)
        assert card.read(0x3B5) == 0x12
        assert card.read(0x3D5) == 0xFF
        card.out(0x3C2, 1)
        card.out(0x3D4, 0x0A)
        assert card.read(0x3D5) == 0x12
        assert card.read(0x3B5) == 0xFF

    def test_the_attribute_flip_flop(self, card: Card) -> None:
        card.out(0x3C2, 1)
        card.attribute(0x10, 0x0C)
        assert card.read(0x3C1) == 0x0C
        card.read(0x3DA)
        card.out(0x3C0, 0x21)
        card.out(0x3C0, 0x3F)  # the palette is in use
        assert card.read(0x3C1) == 0

    def test_dac_colours_are_written_and_read_in_threes(self, card: Card) -> None:
        card.out(0x3C8, 5)
        for part in (1, 2, 0xFF, 4, 5, 6):
            card.out(0x3C9, part)
        card.out(0x3C7, 5)
        assert card.read(0x3C7) == 3
        assert [card.read(0x3C9) for _ in range(6)] == [1, 2, 0x3F, 4, 5, 6]
        assert card.read(0x3C8) == 7

    def test_the_beam_moves_with_the_clock(self, card: Card) -> None:
        card.mode(TEXT_80)
        assert card.read(0x3DA) & 9 == 0
        card.clock.advance(LINE_TIME - 1000)
        assert card.read(0x3DA) & 9 == 1
        card.clock.advance(420 * LINE_TIME)
        assert card.read(0x3DA) & 9 == 1
        card.clock.advance(412 * LINE_TIME + 449 * LINE_TIME)
        assert card.read(0x3DA) & 9 == 9
        card.clock.advance(2 * 449 * LINE_TIME)
        assert card.read(0x3DA) & 9 == 0

    def test_any_sequence_of_accesses_has_an_answer(self, card: Card) -> None:
        source = random.Random(1987)
        card.place()
        for step in range(3000):
            port = source.choice((*range(0x3B0, 0x3E0), 0x1CE, 0x1CF, 0x1D0))
            size = source.choice((1, 2, 4))
            card.bus.ports.write(port, size, source.randrange(1 << 8 * size))
            card.bus.ports.read(port, size)
            address = 0xA0000 + source.randrange(0x20000 - 8)
            if card.memory.kind(address) is not PageKind.RAM:
                card.bus.mmio.write(address, size, source.randrange(1 << 8 * size))
                card.bus.mmio.read(address, size)
            if step % 300 == 0:
                width, height, pixels = card.vga.frame()
                assert len(pixels) == 4 * width * height
                card.vga.text()
                card.vga.generation()


class TestPlanes:
    @pytest.fixture
    def card(self) -> Card:
        card = Card()
        card.mode(PLANAR_480)
        return card

    def planes(self, card: Card, offset: int) -> list[int]:
        found = []
        for plane in range(4):
            card.indexed(0x3CE, 4, plane)
            found.append(card.peek(0xA0000 + offset))
        return found

    def test_the_map_mask_chooses_planes(self, card: Card) -> None:
        card.indexed(0x3C4, 2, 0b0101)
        card.poke(0xA0010, 0xA5)
        assert self.planes(card, 0x10) == [0xA5, 0, 0xA5, 0]

    def test_set_reset_replaces_what_the_processor_says(self, card: Card) -> None:
        card.indexed(0x3CE, 0, 0b0011)
        card.indexed(0x3CE, 1, 0b0110)
        card.poke(0xA0000, 0x0F)
        assert self.planes(card, 0) == [0x0F, 0xFF, 0x00, 0x0F]

    def test_the_bit_mask_keeps_bits_of_the_latches(self, card: Card) -> None:
        card.poke(0xA0000, 0xFF)
        card.peek(0xA0000)
        card.indexed(0x3CE, 8, 0x0F)
        card.poke(0xA0000, 0x00)
        assert self.planes(card, 0) == [0xF0] * 4

    @pytest.mark.parametrize(("function", "result"), [(1, 0x08), (2, 0x6E), (3, 0x66)])
    def test_logical_functions(self, card: Card, function: int, result: int) -> None:
        card.poke(0xA0000, 0b0010_1100)
        card.peek(0xA0000)
        card.indexed(0x3CE, 3, function << 3)
        card.poke(0xA0000, 0b0100_1010)
        assert self.planes(card, 0) == [result] * 4

    def test_rotation(self, card: Card) -> None:
        card.indexed(0x3CE, 3, 3)
        card.poke(0xA0000, 0b0000_0101)
        assert self.planes(card, 0) == [0b1010_0000] * 4

    def test_write_mode_1_copies_latches(self, card: Card) -> None:
        for plane in range(4):
            card.indexed(0x3C4, 2, 1 << plane)
            card.poke(0xA0000, 0x11 << plane)
        card.indexed(0x3C4, 2, 0xF)
        card.indexed(0x3CE, 5, 1)
        card.peek(0xA0000)
        card.poke(0xA0100, 0)
        card.indexed(0x3CE, 5, 0)
        assert self.planes(card, 0x100) == [0x11, 0x22, 0x44, 0x88]

    def test_write_mode_2_writes_a_colour(self, card: Card) -> None:
        card.indexed(0x3CE, 5, 2)
        card.indexed(0x3CE, 8, 0x81)
        card.poke(0xA0000, 0b1001)
        assert self.planes(card, 0) == [0x81, 0, 0, 0x81]

    def test_write_mode_3_masks_set_reset(self, card: Card) -> None:
        card.indexed(0x3CE, 5, 3)
        card.indexed(0x3CE, 0, 0b0101)
        card.indexed(0x3CE, 8, 0xF0)
        card.poke(0xA0000, 0x3C)
        assert self.planes(card, 0) == [0x30, 0, 0x30, 0]

    def test_read_mode_1_compares_colours(self, card: Card) -> None:
        card.indexed(0x3CE, 5, 2)
        card.indexed(0x3CE, 8, 0xF0)
        card.poke(0xA0000, 5)
        card.indexed(0x3CE, 8, 0x0F)
        card.peek(0xA0000)
        card.poke(0xA0000, 7)
        card.indexed(0x3CE, 5, 8)
        card.indexed(0x3CE, 2, 7)
        card.indexed(0x3CE, 7, 0xF)
        assert card.peek(0xA0000) == 0x0F
        card.indexed(0x3CE, 7, 0b1101)
        assert card.peek(0xA0000) == 0xFF

    def test_outside_the_window_nobody_answers(self, card: Card) -> None:
        assert card.peek(0xB8000) == 0xFF
        card.poke(0xB8000, 1)
        card.out(0x3C2, 0xE1)  # RAM disabled
        assert card.peek(0xA0000) == 0xFF


class TestWindows:
    def test_text_memory_is_ram(self, card: Card) -> None:
        assert card.memory.kind(0xB8000) is PageKind.MMIO
        card.mode(TEXT_80)
        assert card.memory.is_ram(0xB8000, 0x8000)
        assert card.memory.kind(0xB0000) is PageKind.MMIO
        card.poke(0xB8000, 0x41, 0x1F)
        assert card.vga.picture().memory[:2] == b"\x41\x1f"

    def test_its_content_survives_access_to_the_planes(self, card: Card) -> None:
        card.mode(TEXT_80)
        card.poke(0xB8000, 0x41, 0x1F, 0x42, 0x2F)
        card.glyph(0x41, 0x18)
        assert [card.peek(0xB8000 + place) for place in range(4)] == [0x41, 0x1F, 0x42, 0x2F]
        assert card.vga.picture().memory[0x41 * 32 * 4 + 2] == 0x18

    def test_mode_13h_is_ram(self, card: Card) -> None:
        card.mode(MODE_13H)
        assert card.memory.is_ram(0xA0000, 0x10000)
        card.poke(0xA0000, 1, 2, 3, 4, 5)
        card.indexed(0x3C4, 4, 6)  # unchained: mode X
        assert card.memory.kind(0xA0000) is PageKind.MMIO
        card.indexed(0x3CE, 4, 2)
        assert [card.peek(0xA0000), card.peek(0xA0001)] == [3, 0]
        card.indexed(0x3CE, 4, 0)
        assert [card.peek(0xA0000), card.peek(0xA0001)] == [1, 5]

    def test_a_window_and_the_bus_show_the_same(self, card: Card) -> None:
        """Whatever plain bytes are written, both ways give the same video memory."""
        source = random.Random(3)
        writes = [(source.randrange(0x8000), source.randrange(256)) for _ in range(500)]
        card.mode(TEXT_80)
        other = Card()
        other.mode(TEXT_80)
        other.vga._close_window()
        for place, value in writes:
            card.poke(0xB8000 + place, value)
            other.bus.mmio.write(0xB8000 + place, 1, value)
        assert card.vga.picture().memory == other.vga.picture().memory

    def test_generation_sees_writes_to_ram(self, card: Card) -> None:
        card.mode(TEXT_80)
        first = card.vga.generation()
        assert card.vga.generation() == first
        card.poke(0xB8000, 0x58)
        second = card.vga.generation()
        assert second != first
        card.indexed(0x3D4, 0x0F, 5)  # the cursor
        assert card.vga.generation() != second


class TestText:
    @pytest.fixture
    def card(self) -> Card:
        card = Card()
        card.mode(TEXT_80)
        card.glyph(0x41, 0xC3, *[0x81] * 15)
        card.glyph(0xC4, *[0xFF] * 16)
        return card

    def test_characters_are_told(self, card: Card) -> None:
        card.poke(0xB8000, *b"H\x07i\x07")
        screen = card.vga.text()
        assert screen is not None
        assert (screen.columns, screen.rows) == (80, 25)
        assert screen.cells[:4] == b"H\x07i\x07"
        assert (screen.cursor.column, screen.cursor.row) == (0, 0)
        assert screen.blinking

    def test_a_cell_is_nine_dots_wide(self, card: Card) -> None:
        card.poke(0xB8000, 0x41, 0x1E)
        card.indexed(0x3D4, 0x0A, 0x20)  # no cursor
        assert card.vga.frame()[:2] == (720, 400)
        ink, paper = card.colour(0x3E), card.colour(1)
        assert card.pixels(0, 0, 9) == [ink] * 2 + [paper] * 4 + [ink] * 2 + [paper]
        assert card.pixels(0, 1, 9) == [ink] + [paper] * 6 + [ink] + [paper]

    def test_box_drawing_reaches_into_the_ninth(self, card: Card) -> None:
        card.poke(0xB8000, 0xC4, 0x1E)
        assert card.pixels(8, 0) == [card.colour(0x3E)]
        card.attribute(0x10, 0x08)
        card.read(0x3DA)
        card.out(0x3C0, 0x20)
        assert card.pixels(8, 0) == [card.colour(1)]

    def test_eight_dots(self, card: Card) -> None:
        card.indexed(0x3C4, 1, 1)
        assert card.vga.frame()[:2] == (640, 400)

    def test_forty_columns_are_twice_as_wide(self) -> None:
        card = Card()
        card.mode(TEXT_40)
        card.glyph(0x41, 0x80)
        card.poke(0xB8000, 0x41, 0x0F)
        assert card.vga.frame()[:2] == (640, 400)
        assert card.pixels(0, 0, 3) == [card.colour(0x3F)] * 2 + [card.colour(0)]

    def test_the_cursor_covers_its_lines(self, card: Card) -> None:
        card.indexed(0x3D4, 0x0F, 82)
        card.poke(0xB8000 + 164, 0x20, 0x0F)
        ink = card.colour(0x3F)
        assert card.pixels(18, 16 + 13, 9) == [ink] * 9
        assert card.pixels(18, 16 + 14, 9) == [ink] * 9
        assert card.pixels(18, 16 + 12, 9) == [card.colour(0)] * 9
        screen = card.vga.text()
        assert screen is not None and screen.cursor is not None
        assert screen.cursor[:4] == (2, 1, 13, 14)

    @pytest.mark.parametrize("register", [(0x0A, 0x20), (0x0F, 0xFF), (0x0E, 0xFF), (0x0A, 0x0F)])
    def test_a_cursor_that_is_off_or_elsewhere_is_none(
        self, card: Card, register: tuple[int, int]
    ) -> None:
        card.indexed(0x3D4, *register)
        if register == (0x0F, 0xFF):
            card.indexed(0x3D4, 0x0E, 0x0F)
        screen = card.vga.text()
        assert screen is not None and screen.cursor is None

    def test_the_screen_scrolls_by_its_start(self, card: Card) -> None:
        card.poke(0xB8000 + 160, *b"2\x07")
        card.indexed(0x3D4, 0x0D, 80)
        screen = card.vga.text()
        assert screen is not None and screen.cells[:2] == b"2\x07"

    def test_smooth_scrolling(self, card: Card) -> None:
        source = random.Random(8)
        for character in range(1, 5):
            card.glyph(character, *source.randbytes(16))
        for place in range(80 * 26):
            card.poke(0xB8000 + 2 * place, source.randrange(1, 5), 0x07)
        card.indexed(0x3D4, 0x0A, 0x20)
        still = card.vga.frame()
        card.indexed(0x3D4, 0x08, 5)  # five lines of the first row are above the screen
        card.attribute(0x13, 2)  # of nine dots, three to the left
        card.read(0x3DA)
        card.out(0x3C0, 0x20)
        moved = card.vga.frame()
        assert moved[:2] == still[:2]
        for y in range(395):
            before = still.pixels[((y + 5) * 720 + 3) * 4 : (y + 6) * 720 * 4]
            assert moved.pixels[y * 720 * 4 :][: len(before)] == before

    @pytest.mark.parametrize("together", [False, True])
    def test_a_split_screen_of_characters(self, card: Card, together: bool) -> None:
        card.glyph(1, *[0x81] * 16)
        card.poke(0xB8000, 1, 0x07)
        card.poke(0xB8000 + 160, 0, 0x07)
        card.indexed(0x3D4, 0x0A, 0x20)
        card.indexed(0x3D4, 0x0D, 80)
        for index, value in ((0x18, 199), (0x07, 0x0F), (0x09, 0x0F)):
            card.indexed(0x3D4, index, value)
        card.attribute(0x10, 0x0C if together else 0x2C)
        card.attribute(0x13, 0)
        card.read(0x3DA)
        card.out(0x3C0, 0x20)
        ink, paper = card.colour(0x07), card.colour(0)
        assert card.pixels(0, 199, 2) == [paper] * 2
        # The second part is panned too, unless it was told to stand still.
        assert card.pixels(0, 200, 2) == ([paper] * 2 if together else [ink, paper])
        assert card.pixels(0, 216, 2) == [paper] * 2

    def test_a_second_font_by_attribute_bit_3(self, card: Card) -> None:
        card.indexed(0x3C4, 3, 0x04)  # A: the second font
        card.poke(0xB8000, 0x41, 0x0F, 0x41, 0x07)
        assert card.pixels(0, 1) == [card.colour(0)]
        assert card.pixels(9, 1) == [card.colour(7)]

    def test_bright_backgrounds_instead_of_blinking(self, card: Card) -> None:
        card.poke(0xB8000, 0x20, 0xF0)
        assert card.pixels(0, 0) == [card.colour(7)]
        card.attribute(0x10, 0x04)
        card.read(0x3DA)
        card.out(0x3C0, 0x20)
        assert card.pixels(0, 0) == [card.colour(0x3F)]

    def test_a_blanked_screen_is_black(self, card: Card) -> None:
        card.poke(0xB8000, 0x41, 0x7F)
        card.indexed(0x3C4, 1, 0x20)
        width, height, pixels = card.vga.frame()
        assert (width, height) == (720, 400) and not any(pixels)
        screen = card.vga.text()
        assert screen is not None and not any(screen.cells)

    def test_before_anybody_programmed_it(self) -> None:
        card = Card()
        assert card.vga.frame()[:2] == (720, 400)
        assert card.vga.text() is None


class TestGraphics:
    def test_sixteen_colours(self, card: Card) -> None:
        card.mode(PLANAR_480)
        card.indexed(0x3CE, 5, 2)
        card.indexed(0x3CE, 8, 0x80)
        card.poke(0xA0000 + 80, 9)
        assert card.vga.frame()[:2] == (640, 480)
        assert card.pixels(0, 1, 2) == [card.colour(0x39), card.colour(0)]
        assert card.vga.text() is None

    def test_the_plane_mask_hides_planes(self, card: Card) -> None:
        card.mode(PLANAR_480)
        card.indexed(0x3CE, 5, 2)
        card.poke(0xA0000, 0xF)
        card.attribute(0x12, 0x3)
        card.read(0x3DA)
        card.out(0x3C0, 0x20)
        assert card.pixels(0, 0) == [card.colour(3)]

    def test_low_resolutions_are_doubled(self, card: Card) -> None:
        card.mode(PLANAR_320)
        card.indexed(0x3CE, 5, 2)
        card.indexed(0x3CE, 8, 0x80)
        card.poke(0xA0000, 0xF)
        card.peek(0xA0000)
        assert card.vga.frame()[:2] == (640, 400)
        white, black = card.colour(0x17), card.colour(0)
        assert card.pixels(0, 0, 3) == card.pixels(0, 1, 3) == [white, white, black]
        assert card.pixels(0, 2) == [black]

    def test_mode_13h(self, card: Card) -> None:
        card.mode(MODE_13H)
        card.poke(0xA0000, 1, 2, 3)
        card.poke(0xA0000 + 320, 0xF0)
        assert card.vga.frame()[:2] == (640, 400)
        seen = [card.colour(number) for number in (1, 1, 2, 2, 3, 3)]
        assert card.pixels(0, 0, 6) == card.pixels(0, 1, 6) == seen
        assert card.pixels(0, 2) == [card.colour(0xF0)]
        card.out(0x3C6, 0x0F)
        assert card.pixels(0, 2) == [card.colour(0)]

    def test_mode_13h_pans_and_scrolls(self, card: Card) -> None:
        card.mode(MODE_13H)
        card.poke(0xA0000, *range(8))
        card.attribute(0x13, 2)
        card.read(0x3DA)
        card.out(0x3C0, 0x20)
        assert card.pixels(0, 0) == [card.colour(1)]
        card.indexed(0x3D4, 0x0D, 1)
        assert card.pixels(0, 0) == [card.colour(5)]

    def test_cga_four_colours_in_two_banks(self, card: Card) -> None:
        card.mode(CGA4)
        card.poke(0xB8000, 0b00_01_10_11, 0b11_00_00_00)
        card.poke(0xB8000 + 0x2000, 0b10_00_00_00)
        assert card.vga.frame()[:2] == (640, 400)
        colours = [card.colour(number) for number in (0, 0x13, 0x15, 0x17, 0x17)]
        assert card.pixels(0, 0, 10)[::2] == colours
        assert card.pixels(0, 2, 2) == [card.colour(0x15)] * 2

    def test_cga_two_colours(self, card: Card) -> None:
        card.mode(CGA2)
        card.poke(0xB8000, 0b1010_0000)
        card.poke(0xB8000 + 0x2000, 0b0100_0000)
        assert card.vga.frame()[:2] == (640, 400)
        lit, dark = card.colour(0x17), card.colour(0)
        assert card.pixels(0, 0, 3) == card.pixels(0, 1, 3) == [lit, dark, lit]
        assert card.pixels(0, 2, 3) == [dark, lit, dark]

    def test_the_lower_part_of_a_split_screen_may_stand_still(self, card: Card) -> None:
        card.mode(PLANAR_480)
        card.indexed(0x3CE, 5, 2)
        card.poke(0xA0000, 7)
        card.indexed(0x3D4, 0x18, 99)
        card.indexed(0x3D4, 0x07, 0x2E)
        card.indexed(0x3D4, 0x09, 0x00)
        lit, dark = card.colour(0x07), card.colour(0)
        for mode, below in ((0x01, dark), (0x21, lit)):
            card.attribute(0x10, mode)
            card.attribute(0x13, 4)
            card.read(0x3DA)
            card.out(0x3C0, 0x20)
            assert card.pixels(3, 0, 2) == [lit, dark]
            assert card.pixels(7, 100) == [below]

    def test_a_split_screen_begins_anew(self, card: Card) -> None:
        card.mode(PLANAR_480)
        card.indexed(0x3CE, 5, 2)
        card.poke(0xA0000, 7)
        card.indexed(0x3D4, 0x0C, 0x10)
        card.indexed(0x3D4, 0x18, 99)
        card.indexed(0x3D4, 0x07, 0x2E)
        card.indexed(0x3D4, 0x09, 0x00)
        assert card.pixels(0, 99) == [card.colour(0)]
        assert card.pixels(0, 100) == [card.colour(0x07)]


class TestDispi:
    def test_identity_and_capabilities(self, card: Card) -> None:
        assert card.read_dispi(0) == 0xB0C5
        card.dispi(0, 0xB0C2)
        assert card.read_dispi(0) == 0xB0C2
        card.dispi(0, 0x1234)
        assert card.read_dispi(0) == 0xB0C2
        assert card.read_dispi(10) == 256
        card.dispi(4, 2)
        assert [card.read_dispi(index) for index in (1, 2, 3)] == [2560, 1600, 32]

    @pytest.mark.parametrize(
        ("depth", "stored", "shown"),
        [
            (8, b"\x05", None),
            (15, b"\xe0\x7f", (0xFF, 0xFF, 0)),
            (16, b"\x1f\xf8", (0xFF, 0, 0xFF)),
            (16, b"\xe0\x07", (0, 0xFF, 0)),
            (24, b"\x01\x02\x03", (3, 2, 1)),
            (32, b"\x01\x02\x03\xff", (3, 2, 1)),
        ],
    )
    def test_depths(
        self, card: Card, depth: int, stored: bytes, shown: tuple[int, int, int] | None
    ) -> None:
        card.mode(TEXT_80)
        card.place()
        card.linear_mode(640, 480, depth)
        stride = 640 * len(stored)
        card.memory.view(LFB + stride, len(stored))[:] = stored
        assert card.vga.frame()[:2] == (640, 480)
        expected = card.colour(5) if shown is None else bytes([*reversed(shown), 0])
        assert card.pixels(0, 1, 2) == [expected, card.colour(0) if depth == 8 else bytes(4)]

    def test_four_bits_are_planes(self, card: Card) -> None:
        card.mode(TEXT_80)
        card.linear_mode(800, 600, 4)
        card.indexed(0x3C4, 2, 0x8)
        card.poke(0xA0000 + 100, 0x80)
        assert card.vga.frame()[:2] == (800, 600)
        assert card.pixels(0, 1) == [card.colour(0x38)]

    def test_an_8_bit_dac(self, card: Card) -> None:
        card.linear_mode(640, 480, 8, 0x61)
        card.out(0x3C8, 0)
        for part in (0x80, 0x81, 0xFF):
            card.out(0x3C9, part)
        assert card.pixels(0, 0) == [b"\xff\x81\x80\x00"]

    def test_a_mode_begins_cleared_unless_told_not_to(self, card: Card) -> None:
        card.place()
        card.linear_mode(640, 480, 32)
        card.memory.view(LFB, 4)[:] = b"abcd"
        card.linear_mode(640, 480, 32, 0xC1)
        assert card.memory.read(LFB, 4) == b"abcd"
        card.linear_mode(640, 480, 32)
        assert card.memory.read(LFB, 4) == bytes(4)

    def test_banks_are_windows_of_ram(self, card: Card) -> None:
        card.mode(TEXT_80)
        card.place()
        card.linear_mode(640, 480, 8, 0x01)
        card.dispi(5, 3)
        assert card.memory.is_ram(0xA0000, 0x10000)
        card.poke(0xA0001, 0x77)
        card.dispi(5, 0)
        assert card.peek(0xA0001) == 0
        assert card.memory.read(LFB + 0x30001, 1) == b"\x77"
        card.dispi(5, 3)
        assert card.peek(0xA0001) == 0x77

    def test_with_the_linear_framebuffer_both_ways_agree_at_once(self, card: Card) -> None:
        card.place()
        card.linear_mode(640, 480, 8)
        card.dispi(5, 1)
        card.poke(0xA0010, 0x12)
        assert card.memory.read(LFB + 0x10010, 1) == b"\x12"
        card.memory.view(LFB + 0x10011, 1)[0] = 0x34
        assert card.peek(0xA0011) == 0x34

    def test_a_virtual_screen_scrolls(self, card: Card) -> None:
        card.place()
        card.linear_mode(640, 480, 32)
        card.dispi(6, 1024)
        assert card.read_dispi(7) == (16 << 20) // 4096
        card.memory.view(LFB + 4096 * 5 + 40, 4)[:] = b"\x01\x02\x03\x00"
        card.dispi(8, 10)
        card.dispi(9, 5)
        assert card.pixels(0, 0) == [b"\x01\x02\x03\x00"]

    @pytest.mark.parametrize(
        ("width", "height", "depth"), [(0, 480, 32), (640, 0, 8), (640, 480, 7)]
    )
    def test_impossible_modes_do_not_begin(
        self, card: Card, width: int, height: int, depth: int
    ) -> None:
        card.linear_mode(width, height, depth)
        assert not card.read_dispi(4) & 1

    def test_sizes_are_kept_within_limits(self, card: Card) -> None:
        card.linear_mode(0xFFFF, 0xFFFF, 32)
        width, height, pixels = card.vga.frame()
        assert (width, height) == (2560, 1600)
        assert len(pixels) == 4 * width * height

    def test_offsets_that_leave_memory_show_what_is_left(self, card: Card) -> None:
        card.linear_mode(2560, 1600, 32)
        for value in (0xFFFF, 1000, 1):
            card.dispi(9, value)
            width, height, pixels = card.vga.frame()
            assert len(pixels) == 4 * width * height

    def test_disabling_returns_to_the_vga(self, card: Card) -> None:
        card.mode(TEXT_80)
        card.linear_mode(640, 480, 32)
        card.dispi(4, 0)
        card.mode(TEXT_80)
        assert card.vga.text() is not None

    def test_generation_sees_the_framebuffer(self, card: Card) -> None:
        card.place()
        card.linear_mode(640, 480, 32)
        before = card.vga.generation()
        assert card.vga.generation() == before
        card.memory.view(LFB + 5000, 1)[0] = 1
        assert card.vga.generation() != before


class TestPci:
    def test_video_memory_moves_with_its_bar(self, card: Card) -> None:
        assert card.memory.kind(HOME) is PageKind.MMIO
        card.place()
        card.memory.view(LFB + 0x123456, 4)[:] = b"here"
        card.place(0xD000_0000)
        assert card.memory.kind(LFB) is PageKind.MMIO
        assert card.memory.read(0xD012_3456, 4) == b"here"
        card.place(0xD080_0000 & ~0xFF_FFFF)
        assert card.memory.read(0xD012_3456, 4) == b"here"

    @pytest.mark.parametrize("address", [0x0010_0000, 0xFFFF_FFF0, 0xFF00_0000])
    def test_it_is_not_laid_over_other_memory(self, card: Card, address: int) -> None:
        card.memory.load_rom(0xFFFC_0000, bytes(0x40000))
        before = list(card.memory.regions())
        card.place(address)
        assert list(card.memory.regions()) == before

    def test_sizing_it(self, card: Card) -> None:
        card.place()
        card.place(0xFFFF_FFFF)
        card.bus.ports.write(0xCF8, 4, 1 << 31 | 2 << 11 | 0x10)
        assert card.bus.ports.read(0xCFC, 4) == 0xFF00_0008
        card.place()
        assert card.memory.is_ram(LFB, 16 << 20)

    def test_registers_in_bar_2(self, card: Card) -> None:
        for register, value in ((0x18, 0xFEBF_0000), (0x04, 2)):
            card.bus.ports.write(0xCF8, 4, 1 << 31 | 2 << 11 | register)
            card.bus.ports.write(0xCFC, 4, value)
        mmio = card.bus.mmio
        mmio.write(0xFEBF_0402, 1, 1)
        assert mmio.read(0xFEBF_040C, 1) == 1
        mmio.write(0xFEBF_0414, 2, 0x120A)
        assert mmio.read(0xFEBF_0415, 1) == 0x12
        mmio.write(0xFEBF_0502, 2, 800)
        assert card.read_dispi(1) == 800
        assert mmio.read(0xFEBF_0500, 2) == 0xB0C5
        assert mmio.read(0xFEBF_0600, 4) == 8
        for offset in range(0, 4096, 3):
            for size in (1, 2, 4, 8):
                mmio.write(0xFEBF_0000 + offset, size, 0)
                mmio.read(0xFEBF_0000 + offset, size)

    def test_memory_sizes_have_limits(self) -> None:
        for size in (1 << 19, 3 << 20, 1 << 26):
            with pytest.raises(InvalidRequestError):
                Vga(Bus(), GuestMemory(1 << 20), VirtualClock(), memory_size=size)


class TestState:
    def test_a_text_screen_survives(self, card: Card) -> None:
        card.mode(TEXT_80)
        card.glyph(0x41, *[0x99] * 16)
        card.poke(0xB8000, *b"A\x1e")
        other = Card()
        other.vga.load_state(card.vga.save_state())
        assert other.vga.frame() == card.vga.frame()
        assert other.memory.is_ram(0xB8000, 0x8000)
        assert other.peek(0xB8001) == 0x1E

    def test_a_linear_mode_survives(self, card: Card) -> None:
        card.place()
        card.linear_mode(800, 600, 16)
        card.memory.view(LFB + 100, 2)[:] = b"\x12\x34"
        other = Card()
        other.vga.load_state(card.vga.save_state())
        assert other.memory.read(LFB + 100, 2) == b"\x12\x34"
        assert other.vga.frame() == card.vga.frame()

    @pytest.mark.parametrize(
        "memory", [b"", b"rubbish", zlib.compress(bytes(100)), zlib.compress(bytes(17 << 20))]
    )
    def test_impossible_memory_is_refused(self, card: Card, memory: bytes) -> None:
        with pytest.raises(CorruptImageError):
            card.vga.load_state(card.vga.save_state() | {"memory": memory})

    def test_impossible_registers_are_refused(self, card: Card) -> None:
        saved = card.vga.save_state()
        saved["dispi"]["values"][3] = 7
        saved["dispi"]["values"][4] = 1
        with pytest.raises(CorruptImageError):
            card.vga.load_state(saved)
