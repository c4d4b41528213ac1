"""int 10h AH=10h: the attribute controller's palette and the DAC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm._bios.video.chip import DAC_MASK

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.hardware import Hardware
    from vdisk.vm._bios.video.chip import Chip
    from vdisk.vm._bios.video.modes import RGB

MODE_CONTROL, OVERSCAN, COLOUR_SELECT = 0x10, 0x11, 0x14
BLINK, PALETTE_4_BITS = 0x08, 0x80


class PaletteService:
    """The colours."""

    def __init__(self, hardware: Hardware, chip: Chip) -> None:
        self.hw, self.chip = hardware, chip
        self._functions = {
            0x00: self._set_one,
            0x01: self._set_overscan,
            0x02: self._set_all,
            0x03: self._set_blink,
            0x07: self._get_one,
            0x08: self._get_overscan,
            0x09: self._get_all,
            0x10: self._set_colour,
            0x12: self._set_colours,
            0x13: self._select_page,
            0x15: self._get_colour,
            0x17: self._get_colours,
            0x18: self._set_mask,
            0x19: self._get_mask,
            0x1A: self._get_page,
            0x1B: self._sum_to_grey,
        }

    def service(self, call: Call) -> None:
        function = self._functions.get(call.al)
        if function is not None:
            function(call)

    def _set_one(self, call: Call) -> None:
        if call.bl <= 0x14:
            self.chip.set_attribute(call.bl, call.bh)

    def _set_overscan(self, call: Call) -> None:
        self.chip.set_attribute(OVERSCAN, call.bh)

    def _set_all(self, call: Call) -> None:
        values = call.read(call.at_es(call.dx), 17)
        for index, value in enumerate(values[:16]):
            self.chip.set_attribute(index, value)
        self.chip.set_attribute(OVERSCAN, values[16])

    def _set_blink(self, call: Call) -> None:
        value = self.chip.attribute(MODE_CONTROL) & ~BLINK
        self.chip.set_attribute(MODE_CONTROL, value | (BLINK if call.bl & 1 else 0))

    def _get_one(self, call: Call) -> None:
        if call.bl <= 0x14:
            call.bh = self.chip.attribute(call.bl)

    def _get_overscan(self, call: Call) -> None:
        call.bh = self.chip.attribute(OVERSCAN)

    def _get_all(self, call: Call) -> None:
        values = [self.chip.attribute(index) for index in (*range(16), OVERSCAN)]
        call.write(call.at_es(call.dx), bytes(values))

    def _set_colour(self, call: Call) -> None:
        self.chip.set_colours(call.bx & 0xFF, [(call.dh, call.ch, call.cl)])

    def _set_colours(self, call: Call) -> None:
        count = min(call.cx, 256)
        data = call.read(call.at_es(call.dx), 3 * count)
        colours: list[RGB] = [(data[n], data[n + 1], data[n + 2]) for n in range(0, 3 * count, 3)]
        self.chip.set_colours(call.bx & 0xFF, colours)

    def _select_page(self, call: Call) -> None:
        """BL=0: 4 pages of 64 colours or 16 of 16; BL=1: which page."""
        control = self.chip.attribute(MODE_CONTROL)
        if call.bl == 0:
            value = control & ~PALETTE_4_BITS | (call.bh & 1) << 7
            self.chip.set_attribute(MODE_CONTROL, value)
        elif call.bl == 1:
            page = call.bh if control & PALETTE_4_BITS else call.bh << 2
            self.chip.set_attribute(COLOUR_SELECT, page & 0x0F)

    def _get_colour(self, call: Call) -> None:
        call.dh, call.ch, call.cl = self.chip.colours(call.bx & 0xFF, 1)[0]

    def _get_colours(self, call: Call) -> None:
        colours = self.chip.colours(call.bx & 0xFF, min(call.cx, 256))
        call.write(call.at_es(call.dx), bytes(part for colour in colours for part in colour))

    def _set_mask(self, call: Call) -> None:
        self.hw.outb(DAC_MASK, call.bl)

    def _get_mask(self, call: Call) -> None:
        call.bl = self.hw.inb(DAC_MASK)

    def _get_page(self, call: Call) -> None:
        call.bl = self.chip.attribute(MODE_CONTROL) >> 7
        page = self.chip.attribute(COLOUR_SELECT) & 0x0F
        call.bh = page if call.bl else page >> 2

    def _sum_to_grey(self, call: Call) -> None:
        """30 % of red, 59 % of green and 11 % of blue."""
        first, count = call.bx & 0xFF, min(call.cx, 256)
        colours = self.chip.colours(first, count)
        greys = [(30 * red + 59 * green + 11 * blue) // 100 for red, green, blue in colours]
        self.chip.set_colours(first, [(grey, grey, grey) for grey in greys])
