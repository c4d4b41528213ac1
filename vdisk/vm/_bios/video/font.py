"""The fonts of the ROM: 256 shapes of 8, 14 and 16 lines, made from one set of skeletons.

Rows of a skeleton are repeated so that a capital is 7, 9 or 10 lines high, and every stroke is
widened to two pixels.  Lines and blocks (B0h-DFh) fill their cells and are drawn by rule.
"""

from __future__ import annotations

from functools import cache

from vdisk.vm._bios.video.glyphs import (
    ACCENTED,
    ART,
    BLOCKS,
    BOXES,
    COLUMNS,
    INTEGRAL_BOTTOM,
    INTEGRAL_TOP,
    INVERTED,
    ROWS,
    SHADES,
)

CAPITAL, LOWER = "capital", "lower"
REPEATS = {  # how often each row is drawn: bars once, stems twice
    (8, CAPITAL): (1, 1, 1, 1, 1, 1, 1, 1, 1),
    (8, LOWER): (1, 1, 1, 1, 1, 1, 1, 1, 1),
    (14, CAPITAL): (1, 2, 1, 1, 2, 1, 1, 1, 1),
    (14, LOWER): (1, 1, 1, 2, 1, 2, 1, 1, 1),
    (16, CAPITAL): (1, 2, 1, 1, 2, 2, 1, 2, 1),
    (16, LOWER): (1, 2, 1, 2, 1, 2, 1, 2, 1),
}
TOP = {8: 0, 14: 2, 16: 2}
WIDTH = 8
SINGLE, DOUBLE = 1, 2
THIN = frozenset("mwMW")
"""Three stems side by side: widened they would run together."""
Skeleton = list[str]


@cache
def font(height: int) -> bytes:
    """256 shapes of ``height`` lines (8, 14 or 16), a byte a line, leftmost pixel first."""
    named = skeletons()
    return b"".join(_glyph(code, height, named) for code in range(256))


def skeletons() -> dict[str, Skeleton]:
    """The drawn glyphs, by their names in the art."""
    found: dict[str, Skeleton] = {}
    for block in ART.strip("\n").split("\n\n"):
        names, *rows = block.split("\n")
        for place, name in enumerate(names.split()):
            at = place * (COLUMNS + 1)
            found[name] = [row[at : at + COLUMNS] for row in rows[:ROWS]]
    return found


def _glyph(code: int, height: int, named: dict[str, Skeleton]) -> bytes:
    if 0xB0 <= code <= 0xDF or code in {INTEGRAL_TOP, INTEGRAL_BOTTOM}:
        return _by_rule(code, height)
    if code in INVERTED:
        return bytes(line ^ 0xFF for line in _glyph(INVERTED[code], height, named))
    if code in ACCENTED:
        letter, mark = ACCENTED[code]
        return _render(_accented(named[letter], named[mark], letter), height, letter)
    name = chr(code) if 0x20 < code < 0x7F else f"{code:02x}"
    return _render(named[name], height, name) if name in named else bytes(height)


def _by_rule(code: int, height: int) -> bytes:
    """Shapes that fill the cell, so that those of neighbours join."""
    if code in BOXES:
        return box(tuple(int(line) for line in BOXES[code]), height)
    if code in SHADES:
        return bytes(SHADES[code][line % 2] for line in range(height))
    if code in BLOCKS:
        return _block(BLOCKS[code], height)
    return _integral(code == INTEGRAL_TOP, height)


def _accented(letter: Skeleton, mark: Skeleton, name: str) -> Skeleton:
    """A letter with a mark above it; a capital gives up a row for it."""
    if name.isupper():
        return [mark[0], letter[0], letter[1], *letter[3:]]
    return [mark[0], mark[1], *letter[2:]]


def _render(skeleton: Skeleton, height: int, name: str) -> bytes:
    """Repeat rows, widen strokes, put the glyph into its cell."""
    if height == 8 and "#" in skeleton[ROWS - 1] and "#" not in skeleton[0]:
        skeleton = skeleton[1:]
    style = LOWER if name.islower() and len(name) != 2 else CAPITAL
    lines = [0] * TOP[height]
    for row, times in zip(skeleton, REPEATS[height, style], strict=False):
        bits = int(row.replace("#", "1").replace(".", "0"), 2) << WIDTH - COLUMNS
        lines += [bits if name in THIN else bits | bits >> 1] * times
    lines = lines[:height]
    return bytes(lines + [0] * (height - len(lines)))


def _block(part: str, height: int) -> bytes:
    half = height // 2
    return {
        "all": b"\xff" * height,
        "lower": bytes(half) + b"\xff" * (height - half),
        "upper": b"\xff" * half + bytes(height - half),
        "left": b"\xf0" * height,
        "right": b"\x0f" * height,
    }[part]


def _integral(top: bool, height: int) -> bytes:
    lines = [0x18] * height
    hook = [0x0E, 0x1B, 0x1B] if top else [0xD8, 0xD8, 0x70]
    if top:
        lines[1:4], lines[0] = hook, 0
    else:
        lines[height - 4 : height - 1], lines[height - 1] = hook, 0
    return bytes(lines)


def box(arms: tuple[int, ...], height: int) -> bytes:
    """A line-drawing character: arms up, down, left, right of weight 0, 1 or 2.

    Arms are drawn as bands from the edge to the middle; a double one then gets a channel.
    """
    cell = _Cell(height)
    up, down, left, right = arms
    cross = DOUBLE in (left, right), DOUBLE in (up, down)
    tee_across = left == right == DOUBLE and not (up and down)
    tee_down = up == down == DOUBLE and not (left and right)
    reach, wide = (-1 if tee_across else 1) if cross[0] else 0, 3 if cross[1] else 1
    for weight, sign in ((up, -1), (down, 1)):
        if weight:
            far = reach if weight == SINGLE else int(cross[0])
            cell.vertical(weight, sign, far)
    for weight, sign in ((left, -1), (right, 1)):
        if weight:
            far = (-2 if tee_down and weight == SINGLE else wide) - 1
            cell.horizontal(weight, sign, far)
    for weight, sign in ((up, -1), (down, 1)):
        if weight == DOUBLE:
            through = up == down and left + right < DOUBLE
            cell.carve_vertical(sign, 0 if cross[0] or through else 1)
    for weight, sign in ((left, -1), (right, 1)):
        if weight == DOUBLE:
            kept = not cross[1] and bool(up or down) and not tee_across
            cell.carve_horizontal(sign, keep_stem=kept)
    return cell.rows()


class _Cell:
    """Pixels of a line-drawing character, measured from its middle."""

    STEM = (3, 4)
    BANDS = {SINGLE: (3, 4), DOUBLE: (1, 6)}

    def __init__(self, height: int) -> None:
        self.middle = (height - 1) // 2
        self.lines = [0] * height

    def rows(self) -> bytes:
        return bytes(self.lines)

    def _change(self, rows: range, first: int, last: int, value: bool) -> None:
        mask = sum(0x80 >> column for column in range(max(first, 0), min(last, 7) + 1))
        for row in rows:
            self.lines[row] = self.lines[row] | mask if value else self.lines[row] & ~mask

    def _side(self, sign: int, far: int) -> range:
        """Rows from the upper (-1) or lower edge to ``far`` rows beyond the middle."""
        if sign < 0:
            return range(self.middle + far + 1)
        return range(self.middle - far, len(self.lines))

    def vertical(self, weight: int, sign: int, far: int) -> None:
        self._change(self._side(sign, far), *self.BANDS[weight], True)

    def horizontal(self, weight: int, sign: int, far: int) -> None:
        """A band to ``far`` columns beyond the middle, which lies between columns 3 and 4."""
        half = 1 if weight == DOUBLE else 0
        rows = range(self.middle - half, self.middle + half + 1)
        if sign < 0:
            self._change(rows, 0, 4 + far, True)
        else:
            self._change(rows, 3 - far, 7, True)

    def carve_vertical(self, sign: int, short: int) -> None:
        self._change(self._side(sign, -short), *self.STEM, False)

    def carve_horizontal(self, sign: int, keep_stem: bool) -> None:
        row = range(self.middle, self.middle + 1)
        if sign < 0:
            self._change(row, 0, 2 if keep_stem else 4, False)
        else:
            self._change(row, 5 if keep_stem else 3, 7, False)
