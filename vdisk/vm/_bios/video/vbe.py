"""int 10h AH=4Fh: VESA BIOS Extensions 3.0 (VBE Core Functions Standard), on Bochs's registers.
4Fh/15h: VBE/DDC 1.1, what the monitor tells of itself.

The display interface registers stand behind ports 1CEh (index) and 1CFh (data): the size and
depth of the picture, the bank at A0000, where the picture begins in video memory.  All of that
memory is also a linear frame buffer, the first memory BAR of the VGA's PCI function.  Its third
begins with the monitor's EDID.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm._bios import layout, pci
from vdisk.vm._bios.video.modes import MODES
from vdisk.vm._bios.video.state import BLOCK, blocks

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.video import VideoService

INDEX, DATA = 0x1CE, 0x1CF
ID, XRES, YRES, BPP, ENABLE, BANK = 0, 1, 2, 3, 4, 5
VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY = 6, 7, 8, 9, 0xA
FIRST_ID, LAST_ID = 0xB0C0, 0xB0CF
ENABLED, EIGHT_BIT_DAC, LINEAR, NO_CLEAR = 0x01, 0x20, 0x40, 0x80
UNIT = 0x10000  # of the memory size, and of the bank window

SUPPORTED, FAILED, NOT_IN_THIS_MODE = 0x004F, 0x014F, 0x034F
WANTS_LINEAR, KEEPS_MEMORY = 0x4000, 0x8000
WINDOW_SEGMENT, WINDOW_KIB = 0xA000, 64
WINDOW_READABLE = 0x07  # there, can be read, can be written
PACKED, DIRECT = 4, 6
TEXT_ATTRIBUTES = 0x0F
GRAPHICS_ATTRIBUTES = 0x9B  # there, colour, graphics, linear frame buffer; TTY output is not
BIG_INFO = 512
OWN_NUMBER = 0x7F
"""What 40:49 holds in a VESA mode: no mode of AH=00h, so nothing is drawn there by other calls."""
MAX_PIXEL_CLOCK = 200_000_000
EDID_BAR = pci.BARS + 4 * 2
EDID_BLOCK, EDID_EXTENSIONS = 128, 126
EDID_HEADER = b"\0\xff\xff\xff\xff\xff\xff\0"
DDC = 0x0102
"""A second for a block, by DDC2."""


class VbeMode(NamedTuple):
    """A graphics mode; ``bits`` of a pixel, 15 kept in two bytes."""

    number: int
    width: int
    height: int
    bits: int

    @property
    def pixel_bytes(self) -> int:
        return -(-self.bits // 8)

    @property
    def pitch(self) -> int:
        return self.width * self.pixel_bytes


def _modes() -> dict[int, VbeMode]:
    """VESA's own numbers, and from 140h on what has none."""
    standard = {
        0x100: (640, 400, 8),
        0x101: (640, 480, 8),
        0x103: (800, 600, 8),
        0x105: (1024, 768, 8),
        0x107: (1280, 1024, 8),
        0x11C: (1600, 1200, 8),
    }
    sizes = ((320, 200), (640, 480), (800, 600), (1024, 768), (1280, 1024))
    number = 0x10D
    for width, height in sizes:
        for bits in (15, 16, 24):
            standard[number] = (width, height, bits)
            number += 1
    for number, bits in ((0x11D, 15), (0x11E, 16), (0x11F, 24)):
        standard[number] = (1600, 1200, bits)
    number = 0x140
    wide = (
        *((1280, 720), (1280, 800), (1440, 900), (1680, 1050), (1920, 1080), (1920, 1200)),
        *((2560, 1440), (2560, 1600)),
    )
    for width, height in ((320, 200), (640, 400), *sizes[1:], (1600, 1200)):
        standard[number] = (width, height, 32)
        number += 1
    for width, height in wide:
        for bits in (8, 16, 24, 32):
            standard[number] = (width, height, bits)
            number += 1
    return {number: VbeMode(number, *shape) for number, shape in sorted(standard.items())}


VBE_MODES = _modes()
CHANNELS = {  # red, green, blue and what is left: size and place in bits
    15: (5, 10, 5, 5, 5, 0, 1, 15),
    16: (5, 11, 6, 5, 5, 0, 0, 0),
    24: (8, 16, 8, 8, 8, 0, 0, 0),
    32: (8, 16, 8, 8, 8, 0, 8, 24),
}


class VbeService:
    """VESA modes."""

    def __init__(self, video: VideoService) -> None:
        self.video = video
        self.hw, self.chip = video.hw, video.chip
        self._functions = {
            0x00: self._information,
            0x01: self._mode_information,
            0x02: self._set,
            0x03: self._get,
            0x04: self._state,
            0x05: self._window,
            0x06: self._line_length,
            0x07: self._display_start,
            0x08: self._dac_width,
            0x09: self._colours,
            0x15: self._monitor,
        }

    # -- the registers -----------------------------------------------------------------------

    def register(self, index: int) -> int:
        self.hw.ports.write(INDEX, 2, index)
        return self.hw.ports.read(DATA, 2)

    def set_register(self, index: int, value: int) -> None:
        self.hw.ports.write(INDEX, 2, index)
        self.hw.ports.write(DATA, 2, value & 0xFFFF)

    def present(self) -> bool:
        return FIRST_ID <= self.register(ID) <= LAST_ID

    def memory(self) -> int:
        """Bytes of video memory."""
        return self.register(MEMORY) * UNIT

    def leave(self) -> None:
        """Back to plain VGA."""
        if self.present():
            self.set_register(ENABLE, 0)

    def current(self) -> VbeMode | None:
        """The VESA mode that is set."""
        if not self.register(ENABLE) & ENABLED:
            return None
        shape = (self.register(XRES), self.register(YRES), self.register(BPP))
        return next((mode for mode in VBE_MODES.values() if mode[1:] == shape), None)

    def _bar(self, offset: int) -> int:
        """Where a memory BAR of the VGA lies; 0 without one."""
        for function in pci.functions(self.hw.ports):
            if function.read(pci.CLASS + 2, 2) == pci.VGA_CLASS:
                bar = function.read(offset, 4)
                return 0 if bar & 1 else bar & 0xFFFFFFF0
        return 0

    def frame_buffer(self) -> int:
        """Physical address of the linear frame buffer; 0 without one."""
        return self._bar(pci.BARS)

    def edid(self, block: int) -> bytes:
        """A block of the monitor's EDID; empty where there is none."""
        place = self._bar(EDID_BAR)
        space = self.hw.space.ungated()
        first = space.read(place, EDID_BLOCK) if place else b""
        if first[: len(EDID_HEADER)] != EDID_HEADER or block > first[EDID_EXTENSIONS]:
            return b""
        return space.read(place + block * EDID_BLOCK, EDID_BLOCK) if block else first

    def usable(self, number: int) -> VbeMode | None:
        mode = VBE_MODES.get(number & 0x3FFF & ~0x0800)
        if mode is None or mode.pitch * mode.height > self.memory():
            return None
        return mode

    # -- AH=4Fh ------------------------------------------------------------------------------

    def service(self, call: Call) -> None:
        function = self._functions.get(call.al)
        if function is None or not self.present():
            return  # AL stays what it is, and is not 4Fh
        call.ax = function(call)

    def _information(self, call: Call) -> int:
        at = call.at_es(call.di)
        wants_vbe2 = call.read(at, 4) == b"VBE2"
        block = bytearray(BIG_INFO if wants_vbe2 else 256)
        numbers = [number for number in VBE_MODES if self.usable(number)]
        modes = struct.pack(f"<{len(numbers) + 1}H", *numbers, 0xFFFF)
        segment = call.es
        block[0:4] = b"VESA"
        far = self.hw.rom.far
        offset = call.di + 34  # the list of modes goes into the reserved part of the block
        struct.pack_into("<HIII", block, 4, 0x0300, far("vbe_vendor"), 1, segment << 16 | offset)
        struct.pack_into("<H", block, 18, self.memory() // UNIT)
        if wants_vbe2:
            names = (far("vbe_vendor"), far("vbe_vendor"), far("vbe_revision"))
            struct.pack_into("<HIII", block, 20, 0x0001, *names)
        block[34 : 34 + len(modes)] = modes
        call.write(at, block)
        return SUPPORTED

    def _mode_information(self, call: Call) -> int:
        mode = self.usable(call.cx)
        if mode is None:
            return FAILED
        call.write(call.at_es(call.di), self._describe(mode))
        return SUPPORTED

    def _describe(self, mode: VbeMode) -> bytes:
        channels = CHANNELS.get(mode.bits, (0,) * 8)
        images = min(self.memory() // (mode.pitch * mode.height), 255)
        model = DIRECT if mode.bits > 8 else PACKED
        window = (WINDOW_READABLE, 0, WINDOW_KIB, WINDOW_KIB, WINDOW_SEGMENT, 0)
        block = struct.pack("<HBBHHHH", GRAPHICS_ATTRIBUTES, *window)
        block += struct.pack("<IH", self.hw.rom.far("vbe_window"), mode.pitch)
        block += struct.pack("<HH", mode.width, mode.height)
        block += bytes([8, 16, 1, mode.bits, 1, model, 0, max(images, 1) - 1, 1])
        block += bytes([*channels, 2 if mode.bits == 32 else 0])
        block += struct.pack("<IIH", self.frame_buffer(), 0, 0)
        block += struct.pack("<HBB", mode.pitch, max(images, 1) - 1, max(images, 1) - 1)
        block += bytes(channels) + struct.pack("<I", MAX_PIXEL_CLOCK)
        return block.ljust(256, b"\0")

    # -- setting -----------------------------------------------------------------------------

    def _set(self, call: Call) -> int:
        number = call.bx
        if number & 0x1FF < 0x100:
            if number & 0x7F not in MODES:
                return FAILED
            self.video.set_mode(number & 0x7F, bool(number & KEEPS_MEMORY))
            return SUPPORTED
        mode = self.usable(number)
        if mode is None:
            return FAILED
        self.set_mode(mode, bool(number & WANTS_LINEAR), bool(number & KEEPS_MEMORY))
        return SUPPORTED

    def set_mode(self, mode: VbeMode, linear: bool, keep_memory: bool) -> None:
        self.video.set_mode(0x13, keep_memory=True)
        for index, value in ((XRES, mode.width), (YRES, mode.height), (BPP, mode.bits)):
            self.set_register(index, value)
        flags = ENABLED | (LINEAR if linear else 0) | (NO_CLEAR if keep_memory else 0)
        self.set_register(ENABLE, flags)
        self.set_register(BANK, 0)
        bda = self.hw.bda
        bda.set_byte(layout.VIDEO_MODE, OWN_NUMBER)
        bda.set_word(layout.COLUMNS, mode.width // 8)
        bda.set_byte(layout.ROWS_LESS_ONE, min(mode.height // 16 - 1, 255))
        bda.set_word(layout.CHARACTER_HEIGHT, 16)

    def _get(self, call: Call) -> int:
        mode = self.current()
        if mode is None:
            call.bx = self.hw.bda.byte(layout.VIDEO_MODE) & 0x7F
        else:
            call.bx = mode.number | (WANTS_LINEAR if self.register(ENABLE) & LINEAR else 0)
        return SUPPORTED

    def _state(self, call: Call) -> int:
        """4Fh/04h: as AH=1Ch, the display interface's registers behind the rest."""
        parts = call.cx & 7
        size = blocks(parts) + 1
        if call.dl == 0:
            call.bx = size
        elif call.dl == 1:
            data = self.video.state.save(parts).ljust(blocks(parts) * BLOCK, b"\0")
            own = struct.pack("<10H", *(self.register(index) for index in range(10)))
            call.write(call.at_es(call.bx), data + own)
        elif call.dl == 2:
            data = call.read(call.at_es(call.bx), size * BLOCK)
            self._restore(parts, data)
        else:
            return FAILED
        return SUPPORTED

    def _restore(self, parts: int, data: bytes) -> None:
        own = struct.unpack_from("<10H", data, blocks(parts) * BLOCK)
        self.set_register(ENABLE, 0)
        for index in (XRES, YRES, BPP):
            self.set_register(index, own[index])
        self.set_register(ENABLE, own[ENABLE] | NO_CLEAR if own[ENABLE] else 0)
        for index in (BANK, VIRTUAL_WIDTH, X_OFFSET, Y_OFFSET):
            self.set_register(index, own[index])
        self.video.state.restore(parts, data)

    # -- windows, lines, colours -------------------------------------------------------------

    def window(self, call: Call) -> None:
        """The far call that mode information gives for 4Fh/05h: no registers are returned."""
        self._window(call)

    def _window(self, call: Call) -> int:
        """BH=0 sets the bank at A0000 to DX, BH=1 gets it; BL: window A only."""
        if self.current() is None or self.register(ENABLE) & LINEAR:
            return NOT_IN_THIS_MODE
        if call.bl != 0 or call.bh > 1:
            return FAILED
        if call.bh == 1:
            call.dx = self.register(BANK)
        elif call.dx * UNIT >= self.memory():
            return FAILED
        else:
            self.set_register(BANK, call.dx)
        return SUPPORTED

    def _line_length(self, call: Call) -> int:
        """BL: 0 sets pixels CX, 1 gets, 2 sets bytes CX, 3 gets the longest."""
        mode = self.current()
        if mode is None:
            return NOT_IN_THIS_MODE
        if call.bl > 3:
            return FAILED
        longest = self.memory() // mode.height // mode.pixel_bytes & ~7
        if call.bl in {0, 2}:
            pixels = call.cx if call.bl == 0 else -(-call.cx // mode.pixel_bytes)
            if not mode.width <= pixels <= longest:
                return FAILED
            self.set_register(VIRTUAL_WIDTH, pixels)
        pixels = longest if call.bl == 3 else self.register(VIRTUAL_WIDTH) or mode.width
        call.bx = min(pixels * mode.pixel_bytes, 0xFFFF)
        call.cx = pixels
        call.dx = min(self.memory() // (pixels * mode.pixel_bytes), 0xFFFF)
        return SUPPORTED

    def _display_start(self, call: Call) -> int:
        """BL: 0 or 80h sets the first pixel CX and line DX, 1 gets them."""
        if self.current() is None:
            return NOT_IN_THIS_MODE
        if call.bl in {0x00, 0x80}:
            self.set_register(X_OFFSET, call.cx)
            self.set_register(Y_OFFSET, call.dx)
            if self.register(X_OFFSET) != call.cx or self.register(Y_OFFSET) != call.dx:
                return FAILED
        elif call.bl == 0x01:
            call.bh, call.cx, call.dx = 0, self.register(X_OFFSET), self.register(Y_OFFSET)
        else:
            return FAILED
        return SUPPORTED

    def _dac_width(self, call: Call) -> int:
        """BL=0 sets the bits of a colour in the DAC to BH, BL=1 gets them."""
        enable = self.register(ENABLE)
        if call.bl == 0:
            wide = call.bh >= 8
            enable = enable & ~EIGHT_BIT_DAC | (EIGHT_BIT_DAC if wide else 0)
            self.set_register(ENABLE, enable | NO_CLEAR)
        elif call.bl != 1:
            return FAILED
        call.bh = 8 if enable & EIGHT_BIT_DAC else 6
        return SUPPORTED

    def _colours(self, call: Call) -> int:
        """Blue, green, red and padding at ES:DI; BL: 0 or 80h sets, 1 gets."""
        first, count = call.dx & 0xFF, min(call.cx, 256)
        at = call.at_es(call.di)
        if call.bl in {0x00, 0x80}:
            data = call.read(at, 4 * count)
            colours = [(data[n + 2], data[n + 1], data[n]) for n in range(0, 4 * count, 4)]
            self.chip.set_colours(first, colours)
        elif call.bl == 0x01:
            colours = self.chip.colours(first, count)
            entries = (bytes([blue, green, red, 0]) for red, green, blue in colours)
            call.write(at, b"".join(entries))
        else:
            return FAILED
        return SUPPORTED

    def _monitor(self, call: Call) -> int:
        """BL: 0 tells how it can be asked, 1 reads block DX of the EDID to ES:DI."""
        if call.cx or call.bl > 1:
            return FAILED
        block = self.edid(call.dx if call.bl else 0)
        if not block:
            return FAILED
        if call.bl:
            call.write(call.at_es(call.di), block)
        else:
            call.bx = DDC
        return SUPPORTED
