"""Text modes, as characters and dot by dot."""

from __future__ import annotations

import random

import pytest

from tests.tools.vga_card import TEXT_40, TEXT_80, Card


@pytest.fixture
def card() -> Card:
    return Card()


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

    def test_shapes_and_colours_that_change_show_at_once(self, card: Card) -> None:
        card.poke(0xB8000, 0x41, 0x1E)
        card.indexed(0x3D4, 0x0A, 0x20)  # no cursor
        ink, paper = card.colour(0x3E), card.colour(1)
        assert card.pixels(0, 0, 3) == [ink, ink, paper]
        card.glyph(0x41, 0x60)
        assert card.pixels(0, 0, 3) == [paper, ink, ink]
        card.out(0x3C8, 0x3E)
        for part in (1, 2, 3):
            card.out(0x3C9, part)
        assert card.pixels(0, 0, 3) == [paper, bytes((12, 8, 4, 0)), bytes((12, 8, 4, 0))]
        card.indexed(0x3D4, 0x14, 0)  # underlined, in an attribute that is
        card.poke(0xB8001, 0x11)
        assert card.pixels(0, 0, 9) == [card.colour(1)] * 9

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
