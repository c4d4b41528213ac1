"""The font: its sizes, and shapes that programs rely on."""

from __future__ import annotations

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.vga_font import HEIGHTS, font


def shape(height: int, character: str) -> list[str]:
    number = character.encode("cp437")[0]
    lines = font(height)[number * height : (number + 1) * height]
    return [f"{line:08b}".replace("0", ".").replace("1", "#") for line in lines]


@pytest.mark.parametrize("height", HEIGHTS)
class TestEachHeight:
    def test_there_are_256_shapes(self, height: int) -> None:
        assert len(font(height)) == 256 * height

    def test_every_character_but_blanks_can_be_seen_and_told_apart(self, height: int) -> None:
        shapes: dict[bytes, list[int]] = {}
        data = font(height)
        for number in range(256):
            shapes.setdefault(data[number * height : (number + 1) * height], []).append(number)
        assert shapes[bytes(height)] == [0x00, 0x20, 0xFF]
        printable = [numbers for numbers in shapes.values() if 0x21 <= numbers[0] < 0x7F]
        assert all(len([n for n in numbers if n < 0x7F]) == 1 for numbers in printable)

    def test_lines_meet_their_neighbours(self, height: int) -> None:
        vertical, horizontal = shape(height, "│"), shape(height, "─")
        assert set(vertical) == {"...##..."}
        row = horizontal.index("########")
        assert shape(height, "┼")[row] == "########"
        assert shape(height, "┌")[row] == "...#####"
        double = [n for n, line in enumerate(shape(height, "═")) if line == "########"]
        assert [n for n, line in enumerate(shape(height, "╔")) if line.endswith("###")] == double
        assert shape(height, "╬")[0] == shape(height, "║")[0]

    def test_blocks_fill_their_cells(self, height: int) -> None:
        assert set(shape(height, "█")) == {"########"}
        assert set(shape(height, "▌")) == {"####...."}
        halves = zip(shape(height, "▀"), shape(height, "▄"), strict=True)
        assert all({upper, lower} == {"########", "........"} for upper, lower in halves)


def test_other_heights_do_not_exist() -> None:
    with pytest.raises(InvalidRequestError):
        font(10)
