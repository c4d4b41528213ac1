"""The video card: registers, planes and latches, windows, its place on PCI, its state."""

from __future__ import annotations

import random
import zlib

import pytest

from tests.tools.vga_card import LFB, MODE_13H, PLANAR_480, TEXT_80, Card
from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.vga import HOME, Vga
from vdisk.vm.devices.vga_registers import LINE_TIME
from vdisk.vm.memory import GuestMemory, PageKind


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

    def test_memory_is_there_whatever_misc_output_says(self, card: Card) -> None:
        card.mode(TEXT_80)
        card.out(0x3C2, 0x65)
        card.poke(0xB8000, 0x41)
        card.indexed(0x3CE, 8, 0xF0)  # no more a window of RAM
        assert card.peek(0xB8000) == 0x41
        card.poke(0xB8000, 0x5F)
        assert card.peek(0xB8000) == 0x51

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
        assert card.peek(0xB8000) == 0xFF


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
