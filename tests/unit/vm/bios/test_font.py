"""The fonts that the BIOS draws with."""

from __future__ import annotations

import pytest

from vdisk.vm._bios.video.font import box, font, skeletons
from vdisk.vm._bios.video.glyphs import BOXES, COLUMNS, ROWS

HEIGHTS = (8, 14, 16)
BLANK = {0x00, 0x20, 0xFF}


def glyph(code: int, height: int) -> bytes:
    return font(height)[code * height : (code + 1) * height]


def test_the_art_is_whole() -> None:
    for name, rows in skeletons().items():
        assert len(rows) == ROWS, name
        assert all(len(row) == COLUMNS and set(row) <= set(".#") for row in rows), name


@pytest.mark.parametrize("height", HEIGHTS)
def test_all_but_blanks_are_drawn_and_differ(height: int) -> None:
    shapes = [glyph(code, height) for code in range(256)]
    assert all(any(shapes[code]) == (code not in BLANK) for code in range(256))
    drawn = [shape for code, shape in enumerate(shapes) if code not in BLANK]
    same = {shape for shape in drawn if drawn.count(shape) > 1}
    assert not same


@pytest.mark.parametrize("height", HEIGHTS)
def test_capitals_stand_on_one_line(height: int) -> None:
    bottoms = {len(glyph(ord(c), height).rstrip(b"\0")) for c in "ABCDEFGHIJKLMNOPRSTUVWXYZ"}
    assert len(bottoms) == 1


@pytest.mark.parametrize("height", HEIGHTS)
def test_neighbouring_letters_do_not_touch(height: int) -> None:
    for code in range(0x21, 0x7F):
        assert all(not line & 1 for line in glyph(code, height)), chr(code)


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("code", BOXES)
def test_lines_reach_the_edges_they_should(code: int, height: int) -> None:
    arms = tuple(map(int, BOXES[code]))
    shape = box(arms, height)
    up, down, left, right = arms
    assert bool(shape[0]) == bool(up) and bool(shape[-1]) == bool(down)
    assert any(line & 0x80 for line in shape) == bool(left)
    assert any(line & 0x01 for line in shape) == bool(right)


@pytest.mark.parametrize(("code", "edge"), [(0xBA, 0x66), (0xB3, 0x18)])
def test_vertical_lines_are_the_same_in_every_row(code: int, edge: int) -> None:
    assert set(glyph(code, 16)) == {edge}
