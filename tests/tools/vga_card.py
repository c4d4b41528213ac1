"""A video card on a bus of its own, and the registers of modes as a video BIOS sets them."""

from __future__ import annotations

from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.devices.vga import Vga
from vdisk.vm.memory import GuestMemory, PageKind

LFB = 0xE000_0000
_CRTC_80 = "5f4f508254 80bf1f00"
_ZEROES = "000000000000"
TEXT_80 = (
    f"67 00030002 5f4f508255 81bf1f004f0d0e {'00' * 4} 9c8e8f281f96b9a3ff 00000000 00100e00ff"
    "0001020304051407 38393a3b3c3d3e3f 0c000f08"
)
TEXT_40 = (
    f"67 09030002 2d2728902b a0bf1f004f0d0e {'00' * 4} 9c8e8f141f96b9a3ff 00000000 00100e00ff"
    "0001020304051407 38393a3b3c3d3e3f 0c000f00"
)
CGA4 = (
    f"63 09030002 2d2728902b 80bf1f00c1 {_ZEROES} 9c8e8f140096b9a2ff 00000000 00300f00ff"
    "0013151702040607 1011121314151617 01000300"
)
CGA2 = (
    f"63 01010006 5f4f508254 80bf1f00c1 {_ZEROES} 9c8e8f280096b9c2ff 00000000 00000d00ff"
    "0017171717171717 1717171717171717 01000100"
)
PLANAR_480 = (
    f"e3 010f0006 5f4f508254 800b3e0040 {_ZEROES} ea8cdf2800e704e3ff 00000000 0000050fff"
    "0001020304051407 38393a3b3c3d3e3f 01000f00"
)
PLANAR_320 = (
    f"63 090f0006 2d2728902b 80bf1f00c0 {_ZEROES} 9c8e8f140096b9e3ff 00000000 0000050fff"
    "0001020304050607 1011121314151617 01000f00"
)
MODE_13H = (
    f"63 010f000e 5f4f508254 80bf1f0041 {_ZEROES} 9c8e8f284096b9a3ff 00000000 0040050fff"
    "0001020304050607 08090a0b0c0d0e0f 41000f00"
)


class Card:
    """The card, and a processor's hands."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.memory = GuestMemory(1 << 24)
        self.vga = Vga(self.bus, self.memory, self.clock)
        self.pci = PciBus(self.bus)
        self.pci.add(self.vga, 2)
        self.vga.reset()

    def out(self, port: int, value: int) -> None:
        self.bus.ports.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.bus.ports.read(port, 1)

    def indexed(self, port: int, index: int, value: int) -> None:
        self.bus.ports.write(port, 2, value << 8 | index)

    def mode(self, text: str) -> None:
        """Program every register, as a video BIOS does; the DAC with colour n = (n, n/2, 63-n)."""
        data = bytes.fromhex(text)
        self.indexed(0x3C4, 0, 1)
        self.out(0x3C2, data[0])
        for index, value in enumerate(data[1:5], 1):
            self.indexed(0x3C4, index, value)
        self.indexed(0x3C4, 0, 3)
        self.indexed(0x3D4, 0x11, 0)
        for index, value in enumerate(data[5:30]):
            self.indexed(0x3D4, index, value)
        for index, value in enumerate(data[30:39]):
            self.indexed(0x3CE, index, value)
        for index, value in enumerate(data[39:59]):
            self.attribute(index, value)
        self.attribute(0x14, 0)
        self.read(0x3DA)
        self.out(0x3C0, 0x20)
        self.out(0x3C8, 0)
        for number in range(256):
            for part in (number & 63, number // 2 & 63, 63 - (number & 63)):
                self.out(0x3C9, part)

    def attribute(self, index: int, value: int) -> None:
        self.read(0x3DA)
        self.out(0x3C0, index)
        self.out(0x3C0, value)

    def poke(self, address: int, *values: int) -> None:
        """Write memory as a processor does: RAM in place, the rest over the bus."""
        for place, value in enumerate(values, address):
            if self.memory.kind(place) is PageKind.RAM:
                self.memory.view(place, 1)[0] = value
            else:
                self.bus.mmio.write(place, 1, value)

    def peek(self, address: int) -> int:
        if self.memory.kind(address) is PageKind.RAM:
            return self.memory.view(address, 1)[0]
        return self.bus.mmio.read(address, 1)

    def glyph(self, character: int, *lines: int) -> None:
        """Load a shape into plane 2, as BIOS and Linux do, then go back to text."""
        for port, index, value in ((0x3C4, 2, 4), (0x3C4, 4, 7), (0x3CE, 4, 2)):
            self.indexed(port, index, value)
        self.indexed(0x3CE, 5, 0)
        self.indexed(0x3CE, 6, 0)
        self.poke(0xA0000 + character * 32, *lines)
        for port, index, value in ((0x3C4, 2, 3), (0x3C4, 4, 2), (0x3CE, 4, 0)):
            self.indexed(port, index, value)
        self.indexed(0x3CE, 5, 0x10)
        self.indexed(0x3CE, 6, 0x0E)

    def dispi(self, index: int, value: int) -> None:
        self.bus.ports.write(0x1CE, 2, index)
        self.bus.ports.write(0x1CF, 2, value)

    def read_dispi(self, index: int) -> int:
        self.bus.ports.write(0x1CE, 2, index)
        return self.bus.ports.read(0x1CF, 2)

    def linear_mode(self, width: int, height: int, depth: int, enable: int = 0x41) -> None:
        self.dispi(4, 0)
        for index, value in ((1, width), (2, height), (3, depth), (4, enable)):
            self.dispi(index, value)

    def place(self, address: int = LFB) -> None:
        for register, value in ((0x10, address), (0x04, 3)):
            self.bus.ports.write(0xCF8, 4, 1 << 31 | 2 << 11 | register)
            self.bus.ports.write(0xCFC, 4, value)

    def colour(self, number: int) -> bytes:
        """Colour ``number`` of the DAC as :meth:`mode` sets it, as a pixel."""
        parts = (63 - (number & 63), number // 2 & 63, number & 63, 0)
        return bytes(part << 2 | part >> 4 for part in parts)

    def pixels(self, x: int, y: int, count: int = 1) -> list[bytes]:
        width, _height, pixels = self.vga.frame()
        start = (y * width + x) * 4
        return [pixels[at : at + 4] for at in range(start, start + 4 * count, 4)]
