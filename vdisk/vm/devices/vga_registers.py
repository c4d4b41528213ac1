"""The VGA's register file (IBM PS/2 Display Adapter technical reference; FreeVGA).

::

    3C0  attribute index/data (flip-flop)  3C1 data read    3C4,5 sequencer
    3C2  write: misc output; read: status 0                 3C6-9 DAC mask, read, write, data
    3CA  feature control read              3CC misc read    3CE,F graphics controller
    3D4,5 CRT controller, 3DA status 1     (3B4, 3B5, 3BA while misc output bit 0 is clear)

Status 1 tells where the beam is, from the clock: bit 3 in vertical retrace, bit 0 in any blanking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vdisk.vm.devices.base import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.clock import Clock

ATTRIBUTE, ATTRIBUTE_DATA, MISC_WRITE, ENABLE, SEQUENCER_INDEX, SEQUENCER_DATA = range(0x3C0, 0x3C6)
STATUS_0 = MISC_WRITE
DAC_MASK, DAC_READ, DAC_WRITE, DAC_DATA, FEATURE_READ = range(0x3C6, 0x3CB)
MISC_READ, GRAPHICS_INDEX, GRAPHICS_DATA = 0x3CC, 0x3CE, 0x3CF
CRTC_INDEX, CRTC_DATA, STATUS_1 = 0x3D4, 0x3D5, 0x3DA

MISC_COLOUR, MISC_RAM = 0x01, 0x02
SEQ_RESET, SEQ_CLOCKING, SEQ_MAP_MASK, SEQ_FONTS, SEQ_MEMORY = range(5)
SEQ_MASKS = bytes([0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0])
CLOCKING_8_DOTS, CLOCKING_HALF, CLOCKING_OFF = 0x01, 0x08, 0x20
MEMORY_SEQUENTIAL, MEMORY_CHAIN_4 = 0x04, 0x08
GC_SET_RESET, GC_ENABLE, GC_COMPARE, GC_ROTATE, GC_READ_MAP = range(5)
GC_MODE, GC_MISC, GC_DONT_CARE, GC_BIT_MASK = range(5, 9)
GC_MASKS = bytes([0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF, 0, 0, 0, 0, 0, 0, 0])
CR_DISPLAY_END_H, CR_OVERFLOW, CR_PRESET_ROW, CR_MAX_SCAN = 1, 7, 8, 9
CR_CURSOR_START, CR_CURSOR_END = 10, 11
CR_START_HIGH, CR_START_LOW, CR_CURSOR_HIGH, CR_CURSOR_LOW = 12, 13, 14, 15
CR_RETRACE_START, CR_RETRACE_END, CR_DISPLAY_END, CR_OFFSET, CR_UNDERLINE = range(0x10, 0x15)
CR_TOTAL, CR_MODE, CR_LINE_COMPARE = 0x06, 0x17, 0x18
CR_PROTECT = 0x80  # in CR_RETRACE_END
CRTC_REGISTERS = 0x19
AR_MODE, AR_OVERSCAN, AR_PLANES, AR_PANNING, AR_COLOUR = range(0x10, 0x15)
ATTRIBUTE_REGISTERS = 0x15
AR_MASKS = bytes([0x3F] * 16 + [0xEF, 0xFF, 0x3F, 0x0F, 0x0F])
PALETTE_SOURCE = 0x20  # in the attribute index: the screen is on, the palette not accessible

STATUS_DISABLED, STATUS_RETRACE = 0x01, 0x08
STATUS_0_SWITCH = 0x10
LINE_TIME = 31_778  # ns: 31.469 kHz, the horizontal frequency of every VGA mode
LINE_VISIBLE = 25_422  # ns of it: 640 of 800 dots
LINES_AFTER_RESET = 449


class VgaRegisters(Device):
    """All registers but those of the Bochs extensions.

    ``changed()`` is called after a write that may change picture or memory map.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *("misc", "feature", "sequencer", "graphics", "crtc", "attribute", "attribute_index"),
        *("dac", "dac_mask", "_sequencer_index", "_graphics_index", "_crtc_index", "_flip_flop"),
        *("_dac_index", "_dac_part", "_dac_state", "_dac_latch", "dac_8_bit"),
    )
    name = "vga registers"

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self.sequencer, self.graphics = bytearray(8), bytearray(16)
        self.crtc, self.attribute = bytearray(CRTC_REGISTERS), bytearray(ATTRIBUTE_REGISTERS)
        self.dac = bytearray(768)
        self._dac_latch = bytearray(3)
        self.reset()

    def reset(self) -> None:
        self.misc = self.feature = self.attribute_index = self.dac_mask = 0
        self.dac_mask = 0xFF
        for registers in (self.sequencer, self.graphics, self.crtc, self.attribute, self.dac):
            registers[:] = bytes(len(registers))
        self._dac_latch[:] = bytes(3)
        self._sequencer_index = self._graphics_index = self._crtc_index = 0
        self._dac_index = self._dac_part = self._dac_state = 0
        self._flip_flop = self.dac_8_bit = False

    # -- ports -------------------------------------------------------------------------------

    def decodes(self, port: int) -> int | None:
        """The port as the colour adapter has it; None where the other set is in use."""
        if 0x3C0 <= port < 0x3D0:
            return port
        colour = bool(self.misc & MISC_COLOUR)
        if port < 0x3C0:
            return None if colour else port + 0x20
        return port if colour else None

    def read(self, port: int) -> int:
        """A byte of one of the ports 3B0-3DF."""
        known = self.decodes(port)
        reader = _READERS.get(known) if known is not None else None
        return 0xFF if reader is None else reader(self)

    def write(self, port: int, value: int) -> None:
        """A byte to one of the ports 3B0-3DF."""
        known = self.decodes(port)
        writer = _WRITERS.get(known) if known is not None else None
        if writer is not None:
            writer(self, value)

    def read_status_1(self) -> int:
        """Where the beam is; the attribute controller then takes an index."""
        self._flip_flop = False
        line, into = divmod(self._clock.now() % (self.lines() * LINE_TIME), LINE_TIME)
        status = 0
        if line >= self.display_end() or into >= LINE_VISIBLE:
            status |= STATUS_DISABLED
        start = self.vertical(CR_RETRACE_START, 2, 7)
        length = (self.crtc[CR_RETRACE_END] - start & 0xF) or 2
        if start <= line < start + length:
            status |= STATUS_RETRACE
        return status

    def vertical(self, register: int, bit_8: int, bit_9: int) -> int:
        """A vertical timing of ten bits, two of them in the overflow register."""
        overflow = self.crtc[CR_OVERFLOW]
        return self.crtc[register] | (overflow >> bit_8 & 1) << 8 | (overflow >> bit_9 & 1) << 9

    def display_end(self) -> int:
        """Lines that are displayed."""
        return self.vertical(CR_DISPLAY_END, 1, 6) + 1

    def lines(self) -> int:
        """Lines of a whole picture, retrace included."""
        total = self.vertical(CR_TOTAL, 0, 5) + 2
        return max(total, self.display_end() + 1) if self.crtc[CR_TOTAL] else LINES_AFTER_RESET

    # -- attribute controller ----------------------------------------------------------------

    def _read_attribute(self) -> int:
        index = self.attribute_index & 0x1F
        return self.attribute[index] if index < ATTRIBUTE_REGISTERS else 0

    def _write_attribute(self, value: int) -> None:
        if not self._flip_flop:
            self.attribute_index = value & 0x3F
        else:
            index = self.attribute_index & 0x1F
            locked = index < 16 and self.attribute_index & PALETTE_SOURCE
            if index < ATTRIBUTE_REGISTERS and not locked:
                self.attribute[index] = value & AR_MASKS[index]
        self._flip_flop = not self._flip_flop
        self._changed()

    # -- DAC ---------------------------------------------------------------------------------

    def _start_dac(self, value: int, state: int) -> None:
        self._dac_index, self._dac_part, self._dac_state = value, 0, state

    def _read_dac(self) -> int:
        value = self.dac[self._dac_index * 3 + self._dac_part]
        self._step_dac()
        return value

    def _write_dac(self, value: int) -> None:
        """A colour is taken when its third part arrives."""
        self._dac_latch[self._dac_part] = value if self.dac_8_bit else value & 0x3F
        if self._dac_part == 2:
            place = self._dac_index * 3
            self.dac[place : place + 3] = self._dac_latch
            self._changed()
        self._step_dac()

    def _step_dac(self) -> None:
        self._dac_part += 1
        if self._dac_part == 3:
            self._dac_part, self._dac_index = 0, self._dac_index + 1 & 0xFF

    # -- the rest ----------------------------------------------------------------------------

    def _write_misc(self, value: int) -> None:
        self.misc = value & 0xEF
        self._changed()

    def _set_index(self, name: str, value: int) -> None:
        setattr(self, name, value)

    def _write_sequencer(self, value: int) -> None:
        self.sequencer[self._sequencer_index] = value & SEQ_MASKS[self._sequencer_index]
        self._changed()

    def _write_graphics(self, value: int) -> None:
        self.graphics[self._graphics_index] = value & GC_MASKS[self._graphics_index]
        self._changed()

    def _read_crtc(self) -> int:
        return self.crtc[self._crtc_index] if self._crtc_index < CRTC_REGISTERS else 0

    def _write_crtc(self, value: int) -> None:
        index = self._crtc_index
        if index >= CRTC_REGISTERS:
            return
        if index <= CR_OVERFLOW and self.crtc[CR_RETRACE_END] & CR_PROTECT:
            if index == CR_OVERFLOW:  # bit 4 of the line compare register is not protected
                self.crtc[index] = self.crtc[index] & ~0x10 | value & 0x10
        else:
            self.crtc[index] = value
        self._changed()

    def restored(self) -> None:
        indexes = (
            (self._sequencer_index, 8),
            (self._graphics_index, 16),
            (self._crtc_index, 256),
            (self._dac_index, 256),
            (self._dac_part, 3),
            (self.attribute_index, 0x40),
        )
        self.require(all(0 <= value < limit for value, limit in indexes), "an index")
        self.require(0 <= self.misc <= 0xFF and 0 <= self.dac_mask <= 0xFF, "a register")


_READERS: dict[int, Callable[[VgaRegisters], int]] = {
    ATTRIBUTE: lambda vga: vga.attribute_index,
    ATTRIBUTE_DATA: VgaRegisters._read_attribute,
    STATUS_0: lambda _vga: STATUS_0_SWITCH,
    ENABLE: lambda _vga: 1,
    SEQUENCER_INDEX: lambda vga: vga._sequencer_index,
    SEQUENCER_DATA: lambda vga: vga.sequencer[vga._sequencer_index],
    DAC_MASK: lambda vga: vga.dac_mask,
    DAC_READ: lambda vga: vga._dac_state,
    DAC_WRITE: lambda vga: vga._dac_index,
    DAC_DATA: VgaRegisters._read_dac,
    FEATURE_READ: lambda vga: vga.feature,
    MISC_READ: lambda vga: vga.misc,
    GRAPHICS_INDEX: lambda vga: vga._graphics_index,
    GRAPHICS_DATA: lambda vga: vga.graphics[vga._graphics_index],
    CRTC_INDEX: lambda vga: vga._crtc_index,
    CRTC_DATA: VgaRegisters._read_crtc,
    STATUS_1: VgaRegisters.read_status_1,
}


def _set_mask(vga: VgaRegisters, value: int) -> None:
    vga.dac_mask = value
    vga._changed()


def _set_feature(vga: VgaRegisters, value: int) -> None:
    vga.feature = value & 0x08


_WRITERS: dict[int, Callable[[VgaRegisters, int], None]] = {
    ATTRIBUTE: VgaRegisters._write_attribute,
    MISC_WRITE: VgaRegisters._write_misc,
    SEQUENCER_INDEX: lambda vga, value: vga._set_index("_sequencer_index", value & 7),
    SEQUENCER_DATA: VgaRegisters._write_sequencer,
    DAC_MASK: _set_mask,
    DAC_READ: lambda vga, value: vga._start_dac(value, 3),
    DAC_WRITE: lambda vga, value: vga._start_dac(value, 0),
    DAC_DATA: VgaRegisters._write_dac,
    GRAPHICS_INDEX: lambda vga, value: vga._set_index("_graphics_index", value & 0x0F),
    GRAPHICS_DATA: VgaRegisters._write_graphics,
    CRTC_INDEX: lambda vga, value: vga._set_index("_crtc_index", value),
    CRTC_DATA: VgaRegisters._write_crtc,
    STATUS_1: _set_feature,
}
