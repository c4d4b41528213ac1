"""int 10h: text, graphics, fonts, colours, saved state."""

from __future__ import annotations

import pytest

from tests.tools.bios_machine import BiosMachine
from vdisk.vm._bios.rom import build
from vdisk.vm._bios.video.font import font
from vdisk.vm._bios.video.modes import MODES, Layout, dac_colours, parameter_table

TEXT = 0x18000  # of B8000 in the window of A0000
BUFFER = 0x2000
PLANES = [n for n, mode in MODES.items() if mode.layout in {Layout.PLANAR, Layout.MONO}]
GRAPHICS = [number for number, mode in MODES.items() if not mode.is_text]


@pytest.fixture
def pc() -> BiosMachine:
    machine = BiosMachine()
    machine.post()
    machine.interrupt(0x10, ax=0x0003)
    return machine


def teletype(pc: BiosMachine, text: str) -> None:
    for character in text.encode("cp437"):
        pc.interrupt(0x10, ax=0x0E00 | character, bx=7)


def cursor(pc: BiosMachine) -> tuple[int, int]:
    answer = pc.interrupt(0x10, ax=0x0300, bx=0)
    return answer.dh, answer.dl


class TestText:
    def test_a_mode_is_clear_and_its_cursor_home(self, pc: BiosMachine) -> None:
        assert pc.screen().strip() == "" and cursor(pc) == (0, 0)
        assert bytes(pc.vga.memory[TEXT : TEXT + 4]) == b" \x07 \x07"
        mode = pc.interrupt(0x10, ax=0x0F00)
        assert (mode.al, mode.ah, mode.bh) == (3, 80, 0)

    def test_a_mode_may_keep_its_memory(self, pc: BiosMachine) -> None:
        teletype(pc, "kept")
        pc.interrupt(0x10, ax=0x0083)
        assert pc.screen().startswith("kept")
        assert pc.interrupt(0x10, ax=0x0F00).al == 0x83

    def test_teletype(self, pc: BiosMachine) -> None:
        teletype(pc, "one\r\ntwo\x08X\x07!")
        assert pc.screen().splitlines()[:2] == ["one", "twX!"]
        assert cursor(pc) == (1, 4)

    def test_the_last_line_scrolls(self, pc: BiosMachine) -> None:
        teletype(pc, "first\r\n" + "\n" * 23 + "last" + " " * 76)
        lines = pc.screen().split("\n")
        assert lines[0] == "" and lines[23] == "last" and cursor(pc) == (24, 0)

    def test_a_line_that_is_full_goes_on_in_the_next(self, pc: BiosMachine) -> None:
        teletype(pc, "x" * 81)
        assert cursor(pc) == (1, 1)

    def test_the_hardware_cursor_follows(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x0200, bx=0, dx=0x0203)
        high, low = pc.vga.registers[0x3D4, 0x0E], pc.vga.registers[0x3D4, 0x0F]
        assert high << 8 | low == 2 * 80 + 3

    def test_cells_with_and_without_attributes(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x0941, bx=0x1E, cx=3)
        pc.interrupt(0x10, ax=0x0A42, bx=0x4F, cx=1)
        assert bytes(pc.vga.memory[TEXT : TEXT + 8]) == b"B\x1eA\x1eA\x1e \x07"
        read = pc.interrupt(0x10, ax=0x0800, bx=0)
        assert (read.al, read.ah) == (0x42, 0x1E)

    def test_cells_end_with_the_screen(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x0200, bx=0, dx=0x184F)
        pc.interrupt(0x10, ax=0x0941, bx=0x07, cx=0xFFFF)
        assert bytes(pc.vga.memory[TEXT + 3998 : TEXT + 4002]) == b"A\x07 \x07"

    @pytest.mark.parametrize(("function", "expected"), [(0x06, "bcd"), (0x07, " ab")])
    def test_scrolling_a_window(self, pc: BiosMachine, function: int, expected: str) -> None:
        teletype(pc, "a\r\nb\r\nc\r\nd")
        pc.interrupt(0x10, ax=function << 8 | 1, bx=0x2000, cx=0x0000, dx=0x0200)
        column = "".join(chr(pc.vga.memory[TEXT + 160 * row]) for row in range(4))
        assert column[3] == "d"
        assert column[:3] == ("bc " if function == 6 else " ab")
        assert pc.vga.memory[TEXT + (320 if function == 6 else 0) + 1] == 0x20

    def test_a_window_beyond_the_screen_is_cut(self, pc: BiosMachine) -> None:
        before = bytes(pc.vga.memory[TEXT + 4000 :])
        pc.interrupt(0x10, ax=0x0600, bx=0x7000, cx=0, dx=0xFFFF)
        assert bytes(pc.vga.memory[TEXT : TEXT + 4000]) == b" \x70" * 2000
        assert bytes(pc.vga.memory[TEXT + 4000 :]) == before

    def test_pages(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x0501)
        teletype(pc, "page one")
        assert pc.vga.memory[TEXT + 4096] == ord("p") and pc.screen().strip() == ""
        high, low = pc.vga.registers[0x3D4, 0x0C], pc.vga.registers[0x3D4, 0x0D]
        assert high << 8 | low == 2048
        assert pc.interrupt(0x10, ax=0x0F00).bh == 1
        pc.interrupt(0x10, ax=0x0508)
        assert pc.interrupt(0x10, ax=0x0F00).bh == 1

    def test_strings(self, pc: BiosMachine) -> None:
        pc.memory.write(BUFFER << 4, b"A\x1fB\x2f")
        pc.interrupt(0x10, ax=0x1303, bx=0, cx=2, dx=0x0305, es=BUFFER)
        assert bytes(pc.vga.memory[TEXT + 490 : TEXT + 494]) == b"A\x1fB\x2f"
        assert cursor(pc) == (3, 7)
        pc.interrupt(0x10, ax=0x1300, bx=0x0070, cx=1, dx=0, es=BUFFER)
        assert bytes(pc.vga.memory[TEXT : TEXT + 2]) == b"A\x70" and cursor(pc) == (3, 7)

    def test_a_bda_of_nonsense_stays_in_video_memory(self, pc: BiosMachine) -> None:
        pc.memory.write(0x44A, b"\xff" * 0x20)
        pc.memory.write(0x484, b"\xff" * 3)
        before = pc.memory.read(0xC0000, 0x10000)
        for function in (0x0541, 0x0601, 0x0941, 0x0E41, 0x0E0A):
            pc.interrupt(0x10, ax=function, bx=0xFF07, cx=5, dx=0xFFFF)
        assert pc.memory.read(0xC0000, 0x10000) == before


class TestModes:
    def test_unknown_modes_change_nothing(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x0055)
        assert pc.interrupt(0x10, ax=0x0F00).al == 3

    @pytest.mark.parametrize("number", MODES)
    def test_every_register_is_programmed(self, pc: BiosMachine, number: int) -> None:
        pc.interrupt(0x10, ax=number)
        values = MODES[number].registers
        crtc = 0x3D4 if values.misc & 1 else 0x3B4
        registers = pc.vga.registers
        assert pc.vga.misc == values.misc
        written = bytes(registers[crtc, index] for index in range(0x19))
        differ = {0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F} if MODES[number].is_text else set()
        assert all(written[i] == values.crtc[i] for i in range(0x19) if i not in differ)
        assert bytes(registers[0x3C0, index] for index in range(0x14)) == values.attribute
        assert [tuple(entry) for entry in pc.vga.dac[:16]] == dac_colours(MODES[number].palette)[
            :16
        ]

    def test_the_parameter_table_is_ibms(self) -> None:
        table = parameter_table()
        assert len(table) == 29 * 64
        assert table[0x13 * 0 : 5] == bytes([40, 24, 16, 0x00, 0x08])
        last = table[28 * 64 :]
        assert last[:5] == bytes([40, 24, 8, 0x00, 0x00]) and last[5:9] == b"\x01\x0f\x00\x0e"

    @pytest.mark.parametrize("number", [n for n in GRAPHICS if n not in PLANES])
    def test_pixels_come_back(self, pc: BiosMachine, number: int) -> None:
        pc.interrupt(0x10, ax=number)
        for x, y, colour in ((0, 0, 1), (7, 3, 1), (8, 100, 1), (101, 199, 1)):
            pc.interrupt(0x10, ax=0x0C00 | colour, cx=x, dx=y)
            assert pc.interrupt(0x10, ax=0x0D00, cx=x, dx=y).al == colour
        pc.interrupt(0x10, ax=0x0C81, cx=0, dx=0)
        assert pc.interrupt(0x10, ax=0x0D00, cx=0, dx=0).al == (0 if number != 0x13 else 0x81)

    @pytest.mark.parametrize("number", [0x04, 0x06, 0x13])
    def test_characters_are_drawn_and_read_back(self, pc: BiosMachine, number: int) -> None:
        pc.interrupt(0x10, ax=number)
        teletype(pc, "Hi")
        for column, character in enumerate("Hi"):
            pc.interrupt(0x10, ax=0x0200, bx=0, dx=column)
            assert pc.interrupt(0x10, ax=0x0800, bx=0).al == ord(character)

    def test_mode_13h_draws_the_font(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x0013)
        pc.interrupt(0x10, ax=0x0941, bx=0x0C, cx=1)
        shape = font(8)[0x41 * 8 : 0x41 * 8 + 8]
        for line, bits in enumerate(shape):
            row = pc.vga.memory[320 * line : 320 * line + 8]
            assert [pixel == 0x0C for pixel in row] == [bool(bits >> 7 - x & 1) for x in range(8)]


class TestFonts:
    def test_text_modes_load_the_font(self, pc: BiosMachine) -> None:
        start = 0x41 * 32
        assert bytes(pc.vga.memory[start : start + 16]) != bytes(16)
        assert bytes(pc.vga.memory[start : start + 16]) == font(16)[0x410:0x420]

    def test_eight_line_cells_give_fifty_rows(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x1112, bx=0)
        information = pc.interrupt(0x10, ax=0x1130, bx=0x0300)
        assert (information.cx, information.dl) == (8, 49)
        assert pc.vga.registers[0x3D4, 0x09] & 0x1F == 7
        teletype(pc, "\n" * 49 + "bottom")
        assert cursor(pc) == (49, 6)

    def test_a_programs_own_shapes(self, pc: BiosMachine) -> None:
        pc.memory.write(BUFFER << 4, b"\xaa" * 16 + b"\x55" * 16)
        pc.interrupt(0x10, ax=0x1100, bx=0x1000, cx=2, dx=0x0080, es=BUFFER)
        assert bytes(pc.vga.memory[0x80 * 32 : 0x80 * 32 + 16]) == b"\xaa" * 16
        assert bytes(pc.vga.memory[0x81 * 32 : 0x81 * 32 + 16]) == b"\x55" * 16

    @pytest.mark.parametrize(
        ("which", "label"), [(2, "font_8x14"), (3, "font_8x8"), (6, "font_8x16")]
    )
    def test_where_fonts_are(self, pc: BiosMachine, which: int, label: str) -> None:
        answer = pc.interrupt(0x10, ax=0x1130, bx=which << 8)
        assert (answer.es, answer.bp) == (0xF000, build().labels[label])


class TestColours:
    def test_one_colour_of_the_dac(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x1010, bx=0x20, cx=0x0B0C, dx=0x0A00)
        assert pc.vga.dac[0x20] == [0x0A, 0x0B, 0x0C]
        answer = pc.interrupt(0x10, ax=0x1015, bx=0x20)
        assert (answer.dh, answer.ch, answer.cl) == (0x0A, 0x0B, 0x0C)

    def test_a_block_of_colours(self, pc: BiosMachine) -> None:
        pc.memory.write(BUFFER << 4, bytes(range(9)))
        pc.interrupt(0x10, ax=0x1012, bx=5, cx=3, es=BUFFER)
        assert pc.vga.dac[5:8] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        pc.interrupt(0x10, ax=0x1017, bx=5, cx=3, dx=0x100, es=BUFFER)
        assert pc.memory.read((BUFFER << 4) + 0x100, 9) == bytes(range(9))

    def test_greys(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x1010, bx=1, cx=0, dx=0x3F00)
        pc.interrupt(0x10, ax=0x101B, bx=1, cx=1)
        assert pc.vga.dac[1] == [18, 18, 18]

    def test_palette_registers(self, pc: BiosMachine) -> None:
        pc.interrupt(0x10, ax=0x1000, bx=0x2A03)
        assert pc.vga.registers[0x3C0, 3] == 0x2A
        assert pc.interrupt(0x10, ax=0x1007, bx=3).bh == 0x2A
        pc.interrupt(0x10, ax=0x1003, bx=0)
        assert not pc.vga.registers[0x3C0, 0x10] & 8

    def test_the_default_palette_can_stay(self, pc: BiosMachine) -> None:
        assert pc.interrupt(0x10, ax=0x1201, bx=0x31).al == 0x12
        pc.interrupt(0x10, ax=0x1010, bx=1, cx=0, dx=0x3F00)
        pc.interrupt(0x10, ax=0x0003)
        assert pc.vga.dac[1] == [0x3F, 0, 0]

    def test_mode_13h_has_its_256(self) -> None:
        colours = dac_colours("vga")
        assert len(colours) == 256 and colours[32] == (0, 0, 63) and colours[40] == (63, 0, 0)
        assert len(set(colours[:248])) == 248 - 2  # black and white are there twice


class TestState:
    def test_what_is_saved_comes_back(self, pc: BiosMachine) -> None:
        size = pc.interrupt(0x10, ax=0x1C00, cx=7).bx
        assert size * 64 > 768
        pc.interrupt(0x10, ax=0x1C01, cx=7, es=BUFFER)
        saved = dict(pc.vga.registers)
        colours = [list(entry) for entry in pc.vga.dac]
        pc.interrupt(0x10, ax=0x0013)
        pc.interrupt(0x10, ax=0x1C02, cx=7, es=BUFFER)
        assert pc.interrupt(0x10, ax=0x0F00).al == 3
        assert pc.vga.dac == colours
        changed = {key for key in saved if pc.vga.registers[key] != saved[key]}
        assert changed <= {(0x3C4, 0), (0x3C0, 0x14), (0x3DA, 0)}

    def test_functionality(self, pc: BiosMachine) -> None:
        assert pc.interrupt(0x10, ax=0x1B00, bx=0, es=BUFFER).al == 0x1B
        table = pc.memory.read(BUFFER << 4, 64)
        assert table[4] == 3 and table[5] == 80 and table[34] == 25 and table[35] == 16

    def test_what_kind_of_adapter(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x10, ax=0x1A00)
        assert (answer.al, answer.bl) == (0x1A, 8)
        answer = pc.interrupt(0x10, ax=0x1200, bx=0x10)
        assert (answer.bh, answer.bl) == (0, 3)


@pytest.fixture
def real() -> BiosMachine:
    """A machine with a real VGA, whose planes and latches work."""
    machine = BiosMachine(real_vga=True)
    machine.post()
    return machine


@pytest.mark.parametrize("number", PLANES)
class TestPlanes:
    def colours(self, number: int) -> list[int]:
        return [1] if MODES[number].layout is Layout.MONO else [1, 6, 9, 15]

    def test_pixels_come_back(self, real: BiosMachine, number: int) -> None:
        real.interrupt(0x10, ax=number)
        for x, colour in enumerate(self.colours(number)):
            real.interrupt(0x10, ax=0x0C00 | colour, cx=x * 9, dx=x * 40)
            assert real.interrupt(0x10, ax=0x0D00, cx=x * 9, dx=x * 40).al == colour
            assert real.interrupt(0x10, ax=0x0D00, cx=x * 9 + 1, dx=x * 40).al == 0
            real.interrupt(0x10, ax=0x0C80 | colour, cx=x * 9, dx=x * 40)  # XOR
            assert real.interrupt(0x10, ax=0x0D00, cx=x * 9, dx=x * 40).al == 0

    def test_characters_are_drawn_read_and_scrolled(self, real: BiosMachine, number: int) -> None:
        real.interrupt(0x10, ax=number)
        real.interrupt(0x10, ax=0x0200, bx=0, dx=0x0102)
        real.interrupt(0x10, ax=0x0951, bx=self.colours(number)[-1], cx=2)
        for row, column in ((1, 2), (1, 3)):
            real.interrupt(0x10, ax=0x0200, bx=0, dx=row << 8 | column)
            assert real.interrupt(0x10, ax=0x0800, bx=0).al == 0x51
        real.interrupt(0x10, ax=0x0601, bx=0, cx=0, dx=0x0527)
        real.interrupt(0x10, ax=0x0200, bx=0, dx=0x0002)
        assert real.interrupt(0x10, ax=0x0800, bx=0).al == 0x51
        real.interrupt(0x10, ax=0x0200, bx=0, dx=0x0102)
        assert real.interrupt(0x10, ax=0x0800, bx=0).al in {0x00, 0x20}
