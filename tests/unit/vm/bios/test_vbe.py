"""int 10h AH=4Fh: VESA modes on the display interface registers."""

from __future__ import annotations

import struct

import pytest

from tests.tools.bios_machine import BiosMachine
from vdisk.vm._bios.video.vbe import VBE_MODES
from vdisk.vm.devices.edid import PREFERRED, edid

BUFFER = 0x2000
XRES, YRES, BPP, ENABLE, BANK = 1, 2, 3, 4, 5


@pytest.fixture
def pc() -> BiosMachine:
    machine = BiosMachine()
    machine.post()
    return machine


def vbe(pc: BiosMachine, function: int, **registers: int) -> int:
    return pc.interrupt(0x10, ax=0x4F00 | function, **registers).ax


def test_information(pc: BiosMachine) -> None:
    pc.memory.write(BUFFER << 4, b"VBE2")
    assert vbe(pc, 0x00, es=BUFFER) == 0x004F
    block = pc.memory.read(BUFFER << 4, 512)
    assert block[:6] == b"VESA\x00\x03"
    offset, segment, units = struct.unpack_from("<HHH", block, 14)
    assert units == 256
    numbers = []
    at = (segment << 4) + offset
    while (number := pc.word(at)) != 0xFFFF:
        numbers.append(number)
        at += 2
    assert {0x101, 0x103, 0x112, 0x118, 0x144} <= set(numbers) <= VBE_MODES.keys()
    vendor = int.from_bytes(block[6:8], "little") + (int.from_bytes(block[8:10], "little") << 4)
    assert pc.memory.read(vendor, 5) == b"vdisk"


def test_an_old_caller_gets_no_more_than_256_bytes(pc: BiosMachine) -> None:
    pc.memory.write((BUFFER << 4) + 256, b"\xee" * 256)
    vbe(pc, 0x00, es=BUFFER)
    assert pc.memory.read((BUFFER << 4) + 256, 256) == b"\xee" * 256


@pytest.mark.parametrize("number", VBE_MODES)
def test_mode_information(pc: BiosMachine, number: int) -> None:
    mode = VBE_MODES[number]
    assert vbe(pc, 0x01, cx=number, es=BUFFER) == 0x004F
    block = pc.memory.read(BUFFER << 4, 256)
    pitch, width, height = struct.unpack_from("<HHH", block, 0x10)
    assert (pitch, width, height, block[0x19]) == (mode.pitch, mode.width, mode.height, mode.bits)
    assert block[0x1B] == (4 if mode.bits == 8 else 6)
    if mode.bits > 8:
        sizes, places = block[0x1F:0x27:2], block[0x20:0x27:2]
        assert sum(sizes) == (16 if mode.bits == 15 else mode.bits)
        assert all(place + size <= 32 for size, place in zip(sizes, places, strict=True))
    assert block[0x00] & 0x90 == 0x90


def test_unknown_modes(pc: BiosMachine) -> None:
    assert vbe(pc, 0x01, cx=0x1FF, es=BUFFER) == 0x014F
    assert vbe(pc, 0x02, bx=0x1FF) == 0x014F


def test_setting_a_mode_and_going_back(pc: BiosMachine) -> None:
    assert vbe(pc, 0x02, bx=0x4118) == 0x004F
    dispi = pc.vga.dispi
    assert (dispi[XRES], dispi[YRES], dispi[BPP], dispi[ENABLE]) == (1024, 768, 24, 0x41)
    assert pc.interrupt(0x10, ax=0x4F03).bx == 0x4118
    pc.interrupt(0x10, ax=0x0003)
    assert dispi[ENABLE] == 0
    assert pc.interrupt(0x10, ax=0x4F03).bx == 3


def test_characters_are_not_drawn_over_a_picture(pc: BiosMachine) -> None:
    vbe(pc, 0x02, bx=0x4118)
    before = bytes(pc.vga.memory[:0x10000])
    pc.interrupt(0x10, ax=0x0E41, bx=7)
    assert bytes(pc.vga.memory[:0x10000]) == before


def test_banks(pc: BiosMachine) -> None:
    assert vbe(pc, 0x05, bx=0, dx=1) == 0x034F
    vbe(pc, 0x02, bx=0x0101)
    assert vbe(pc, 0x05, bx=0x0000, dx=3) == 0x004F and pc.vga.dispi[BANK] == 3
    assert pc.interrupt(0x10, ax=0x4F05, bx=0x0100).dx == 3
    assert vbe(pc, 0x05, bx=0x0000, dx=256) == 0x014F
    vbe(pc, 0x02, bx=0x4101)
    assert vbe(pc, 0x05, bx=0x0000, dx=1) == 0x034F


def test_colours_are_blue_green_red(pc: BiosMachine) -> None:
    vbe(pc, 0x02, bx=0x0101)
    pc.memory.write(BUFFER << 4, bytes([1, 2, 3, 0, 4, 5, 6, 0]))
    assert vbe(pc, 0x09, bx=0, cx=2, dx=7, es=BUFFER) == 0x004F
    assert pc.vga.dac[7:9] == [[3, 2, 1], [6, 5, 4]]
    assert vbe(pc, 0x09, bx=1, cx=2, dx=7, es=BUFFER + 16) == 0x004F
    assert pc.memory.read((BUFFER << 4) + 256, 8) == bytes([1, 2, 3, 0, 4, 5, 6, 0])


def test_width_of_the_dac(pc: BiosMachine) -> None:
    vbe(pc, 0x02, bx=0x0101)
    assert pc.interrupt(0x10, ax=0x4F08, bx=0x0800).bh == 8
    assert pc.vga.dispi[ENABLE] & 0x20
    assert pc.interrupt(0x10, ax=0x4F08, bx=0x0001).bh == 8
    assert pc.interrupt(0x10, ax=0x4F08, bx=0x0600).bh == 6


def test_lines_longer_than_the_screen(pc: BiosMachine) -> None:
    vbe(pc, 0x02, bx=0x0101)
    answer = pc.interrupt(0x10, ax=0x4F06, bx=0, cx=1024)
    assert (answer.ax, answer.bx, answer.cx) == (0x004F, 1024, 1024)
    assert pc.vga.dispi[6] == 1024
    assert pc.interrupt(0x10, ax=0x4F06, bx=0, cx=100).ax == 0x014F


def test_state_is_saved_with_the_mode(pc: BiosMachine) -> None:
    vbe(pc, 0x02, bx=0x4112)
    size = pc.interrupt(0x10, ax=0x4F04, dx=0, cx=0x0F).bx
    assert size > 1
    assert vbe(pc, 0x04, dx=1, cx=0x0F, es=BUFFER) == 0x004F
    pc.interrupt(0x10, ax=0x0003)
    assert vbe(pc, 0x04, dx=2, cx=0x0F, es=BUFFER) == 0x004F
    assert pc.interrupt(0x10, ax=0x4F03).bx == 0x4112


def test_without_the_registers_there_is_no_vbe(pc: BiosMachine) -> None:
    pc.vga.dispi[0] = 0
    assert vbe(pc, 0x00, es=BUFFER) == 0x4F00


def test_the_monitor_tells_of_itself() -> None:
    pc = BiosMachine(real_vga=True)
    pc.post()
    answer = pc.interrupt(0x10, ax=0x4F15, bx=0)
    assert (answer.ax, answer.bx) == (0x004F, 0x0102)
    assert vbe(pc, 0x15, bx=1, es=BUFFER) == 0x004F
    assert pc.memory.read(BUFFER << 4, 128) == edid(PREFERRED, 16 << 20)
    assert vbe(pc, 0x15, bx=1, dx=1, es=BUFFER) == 0x014F  # there is no other block
    assert vbe(pc, 0x15, bx=1, cx=1, es=BUFFER) == 0x014F  # nor another controller
    assert vbe(pc, 0x15, bx=2) == 0x014F


def test_a_card_without_a_monitors_block(pc: BiosMachine) -> None:
    assert vbe(pc, 0x15, bx=0) == 0x014F
    assert vbe(pc, 0x15, bx=1, es=BUFFER) == 0x014F
