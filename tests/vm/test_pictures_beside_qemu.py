"""Registers and random memory give the same picture here and on QEMU's screen.

Colours are black or full in each part: QEMU widens six bits to eight in another way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.tools import qemu_machine, qtest
from tests.tools import vga_card as modes
from tests.tools.peers import requires_peer
from tests.tools.vga_card import Card

pytestmark = requires_peer("qemu-system-x86_64")
QEMU_LFB = 0xE000_0000


class Screen:
    """A stopped QEMU whose screen can be dumped, and a card of ours told the same."""

    def __init__(self, machine: qtest.Qtest, monitor: qemu_machine.Monitor) -> None:
        self.qemu = machine
        self._monitor = monitor

    def picture(self) -> tuple[int, int, bytes]:
        """Width, height and pixels of three bytes."""
        self.qemu.answers()
        return self._monitor.picture()


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    folder = tmp_path_factory.mktemp("qmp")
    with (
        qemu_machine.listening(folder) as (words, connect),
        qtest.machine(["-vga", "std", *words]) as machine,
        connect() as monitor,
    ):
        yield Screen(machine, monitor)


class Both(Card):
    """A card of ours whose every access is made on QEMU's too."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        super().__init__()
        self.dispi(4, 0)
        self.place()
        screen.qemu.clear(QEMU_LFB, 1 << 20)

    def out(self, port: int, value: int) -> None:
        super().out(port, value)
        self.screen.qemu.out(port, value)

    def read(self, port: int) -> int:
        self.screen.qemu.read_port(port)
        return super().read(port)

    def indexed(self, port: int, index: int, value: int) -> None:
        super().indexed(port, index, value)
        self.screen.qemu.out(port, value << 8 | index, 2)

    def poke(self, address: int, *values: int) -> None:
        super().poke(address, *values)
        for place, value in enumerate(values, address):
            self.screen.qemu.write(place, value)

    def dispi(self, index: int, value: int) -> None:
        super().dispi(index, value)
        self.screen.qemu.out(0x1CE, index, 2)
        self.screen.qemu.out(0x1D0, value, 2)

    def place(self, address: int = QEMU_LFB) -> None:
        super().place(address)
        for register, value in ((0x10, address), (0x04, 3)):
            self.screen.qemu.out(0xCF8, 1 << 31 | 2 << 11 | register, 4)
            self.screen.qemu.out(0xCFC, value, 4)

    def colours(self) -> None:
        """Any palette of black and full parts; no two pictures have the same."""
        source = random.Random(63)
        self.out(0x3C8, 0)
        for _ in range(768):
            self.out(0x3C9, source.choice((0, 63)))

    def compare(self, bits: int = 8) -> None:
        """Compare the upper ``bits`` of each part of each pixel."""
        width, height, theirs = self.screen.picture()
        ours = self.vga.frame()
        assert (ours.width, ours.height) == (width, height)
        rgb = bytearray(3 * width * height)
        for part in range(3):
            rgb[part::3] = ours.pixels[2 - part :: 4]
        kept = bytes(value & (0xFF << 8 - bits) for value in range(256))
        rgb, theirs = rgb.translate(kept), theirs.translate(kept)
        if rgb != theirs:
            wrong = next(n for n, (a, b) in enumerate(zip(rgb, theirs, strict=True)) if a != b) // 3
            pixel = slice(3 * wrong, 3 * wrong + 3)
            where = f"the pixel at {wrong % width}, {wrong // width}"
            pytest.fail(f"{where}: {rgb[pixel].hex()} here, {theirs[pixel].hex()} there")


@pytest.fixture
def both(screen: Screen) -> Both:
    return Both(screen)


def fill(both: Both, start: int, length: int, seed: int = 1) -> None:
    source = random.Random(seed)
    both.poke(start, *source.randbytes(length))


@pytest.mark.parametrize("mode", [modes.TEXT_80, modes.TEXT_40])
@pytest.mark.parametrize("dots", [8, 9])
def test_text(both: Both, mode: str, dots: int) -> None:
    both.mode(mode)
    both.colours()
    if dots == 8:
        both.indexed(0x3C4, 1, 1 | (8 if mode == modes.TEXT_40 else 0))
    both.indexed(0x3D4, 0x0A, 0x20)
    for character in range(0, 256, 5):
        both.glyph(character, *random.Random(character).randbytes(16))
    both.attribute(0x10, 0x04)  # QEMU blinks by its clock
    both.read(0x3DA)
    both.out(0x3C0, 0x20)
    source = random.Random(80)
    shown = [n for n in range(256) if not 0xB0 <= n < 0xC0]  # QEMU widens these to nine dots too
    both.poke(0xB8000, *(source.choice((shown, range(256))[n & 1]) for n in range(4000)))
    both.compare()


@pytest.mark.parametrize("start", [0, 7])
def test_sixteen_colours(both: Both, start: int) -> None:
    both.mode(modes.PLANAR_480)
    both.colours()
    for plane in range(4):
        both.indexed(0x3C4, 2, 1 << plane)
        fill(both, 0xA0000, 4000, plane)
    both.indexed(0x3D4, 0x0D, start)
    both.compare()


def test_sixteen_colours_of_low_resolution(both: Both) -> None:
    both.mode(modes.PLANAR_320)
    both.colours()
    for plane in range(4):
        both.indexed(0x3C4, 2, 1 << plane)
        fill(both, 0xA0000, 2000, plane)
    both.compare()


def test_mode_13h(both: Both) -> None:
    both.mode(modes.MODE_13H)
    both.colours()
    fill(both, 0xA0000, 6400)
    both.compare()


def test_mode_x(both: Both) -> None:
    both.mode(modes.MODE_13H)
    both.colours()
    both.indexed(0x3C4, 4, 6)
    both.indexed(0x3D4, 0x14, 0)
    both.indexed(0x3D4, 0x17, 0xE3)
    for plane in range(4):
        both.indexed(0x3C4, 2, 1 << plane)
        fill(both, 0xA0000, 1600, plane)
    both.compare()


@pytest.mark.parametrize("mode", [modes.CGA4, modes.CGA2])
def test_cga(both: Both, mode: str) -> None:
    both.mode(mode)
    both.colours()
    for bank in (0, 0x2000):
        fill(both, 0xB8000 + bank, 3000, bank)
    both.compare()


@pytest.mark.parametrize("depth", [8, 15, 16, 24, 32])
def test_the_display_interface(both: Both, depth: int) -> None:
    both.mode(modes.TEXT_80)
    both.colours()
    both.linear_mode(640, 400, depth)
    fill(both, QEMU_LFB, 4000)
    both.dispi(8, 0)
    both.dispi(9, 1)
    both.compare(5 if depth == 15 else 8)  # where QEMU leaves the lower three zero
