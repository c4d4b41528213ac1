"""The Bochs display interface."""

from __future__ import annotations

import pytest

from tests.tools.vga_card import LFB, TEXT_80, Card


@pytest.fixture
def card() -> Card:
    return Card()


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
