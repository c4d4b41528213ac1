"""Graphics modes of the VGA and its forerunners, dot by dot."""

from __future__ import annotations

import pytest

from tests.tools.vga_card import CGA2, CGA4, MODE_13H, PLANAR_320, PLANAR_480, Card


@pytest.fixture
def card() -> Card:
    return Card()


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
