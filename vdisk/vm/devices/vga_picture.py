"""What a screen is made of: registers and memory at one moment, its bands, its colours.

::

    +------------------+  start, from the preset row on, panned
    |  first band      |
    +------------------+  line compare
    |  second band     |  offset 0; panned too, unless AR 10h bit 5 says not
    +------------------+
"""

from __future__ import annotations

from typing import NamedTuple

from vdisk.vm.devices import vga_registers as reg

UNIT = 4
PLANE_SPAN = 1 << 16  # offsets that the address counter of the CRT controller reaches
MODE_GRAPHICS, MODE_LINE, MODE_BLINK, MODE_SPLIT_STILL, MODE_PALETTE_54 = (
    0x01, 0x04, 0x08, 0x20, 0x80
)  # fmt: skip


class Band(NamedTuple):
    """Lines that show memory from one offset on: a screen is one, or two where it is split.

    ``preset``: lines of the first row that are above the screen; ``panned``: whether the panning
    register holds here.
    """

    lines: int
    start: int
    preset: int = 0
    panned: bool = True


class Picture(NamedTuple):
    """Registers and memory at one moment.

    ``geometry``: of the Bochs display interface while it is enabled (width, height, depth, bytes
    a row), else None; ``memory`` then begins with the first pixel, else with offset 0.
    """

    misc: int
    sequencer: bytes
    graphics: bytes
    crtc: bytes
    attribute: bytes
    palette_on: bool
    dac: bytes
    dac_mask: int
    dac_8_bit: bool
    display_end: int
    memory: bytes
    geometry: tuple[int, int, int, int] | None

    @property
    def blank(self) -> bool:
        """True while nothing is shown, whatever is in memory."""
        if self.geometry is not None:
            return False
        off = self.sequencer[reg.SEQ_CLOCKING] & reg.CLOCKING_OFF
        return bool(off) or not self.palette_on or self.crtc[reg.CR_DISPLAY_END_H] == 0

    @property
    def is_text(self) -> bool:
        """True in the alphanumeric modes."""
        graphics = self.graphics[reg.GC_MISC] & 1
        return self.geometry is None and not graphics

    @property
    def columns(self) -> int:
        """Character clocks of a line."""
        return self.crtc[reg.CR_DISPLAY_END_H] + 1

    @property
    def start(self) -> int:
        """The offset with which the screen begins."""
        return self.crtc[reg.CR_START_HIGH] << 8 | self.crtc[reg.CR_START_LOW]

    @property
    def row_units(self) -> int:
        """Units from row to row."""
        return self.crtc[reg.CR_OFFSET] * 2

    @property
    def row_lines(self) -> int:
        """Lines of a row: of characters, or of the same pixels."""
        return (self.crtc[reg.CR_MAX_SCAN] & 0x1F) + 1

    @property
    def double_scan(self) -> int:
        """1 where each line is shown twice."""
        return self.crtc[reg.CR_MAX_SCAN] >> 7

    @property
    def dot_factor(self) -> int:
        """2 where each dot is two wide."""
        return 2 if self.sequencer[reg.SEQ_CLOCKING] & reg.CLOCKING_HALF else 1

    @property
    def line_compare(self) -> int:
        """The line after which the screen begins anew, with offset 0."""
        crtc = self.crtc
        high = (crtc[reg.CR_OVERFLOW] >> 4 & 1) << 8 | (crtc[reg.CR_MAX_SCAN] >> 6 & 1) << 9
        return crtc[reg.CR_LINE_COMPARE] | high

    def bands(self) -> list[Band]:
        """The parts of the screen, from top to bottom."""
        preset = self.crtc[reg.CR_PRESET_ROW]
        first = min(self.line_compare + 1, self.display_end)
        bands = [Band(first, self.start + (preset >> 5 & 3), preset & 0x1F)]
        if first < self.display_end:
            still = self.attribute[reg.AR_MODE] & MODE_SPLIT_STILL
            bands.append(Band(self.display_end - first, 0, panned=not still))
        return bands


def units(memory: bytes, offset: int, count: int) -> bytes:
    """Units from an offset on, wrapping at the end of the planes."""
    data = memory[offset * UNIT : (offset + count) * UNIT]
    if offset + count > PLANE_SPAN:
        data = memory[offset * UNIT : PLANE_SPAN * UNIT] + memory[: count * UNIT]
    return data[: count * UNIT].ljust(count * UNIT, b"\x00")


# -- colours ---------------------------------------------------------------------------------------


_SIX_BITS_AS_EIGHT = bytes((value & 0x3F) << 2 | (value & 0x3F) >> 4 for value in range(256))


def colours(picture: Picture) -> list[int]:
    """The 256 colours of the DAC, 0xRRGGBB."""
    dac = picture.dac
    if not picture.dac_8_bit:
        dac = dac.translate(_SIX_BITS_AS_EIGHT)
    return [dac[i] << 16 | dac[i + 1] << 8 | dac[i + 2] for i in range(0, 768, 3)]


def palette_256(picture: Picture) -> list[int]:
    """The colours of bytes that go to the DAC as they are."""
    dac = colours(picture)
    return [dac[index & picture.dac_mask] for index in range(256)]


def palette_16(picture: Picture) -> list[int]:
    """The 16 colours that the attribute controller chooses from the DAC's."""
    dac, mask = colours(picture), picture.dac_mask
    attribute = picture.attribute
    select = attribute[reg.AR_COLOUR]
    chosen = []
    for value in attribute[:16]:
        index = value & 0x3F | (select & 0x0C) << 4
        if attribute[reg.AR_MODE] & MODE_PALETTE_54:
            index = index & ~0x30 | (select & 0x03) << 4
        chosen.append(dac[index & mask])
    return chosen
