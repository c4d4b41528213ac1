"""int 10h AH=1Bh and 1Ch: what the adapter can do, and saving all of its state."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.vm._bios import layout
from vdisk.vm._bios.video import chip as vga
from vdisk.vm._bios.video.modes import Registers

if TYPE_CHECKING:
    from vdisk.vm._bios.call import Call
    from vdisk.vm._bios.video import VideoService

HARDWARE, BIOS_DATA, COLOURS = 1, 2, 4
BLOCK = 64  # sizes are said in blocks of so many bytes
BDA_PARTS = ((layout.VIDEO_MODE, 0x1E), (layout.ROWS_LESS_ONE, 7), (layout.SAVE_POINTER, 4))
VECTOR_PARTS = (0x1F, 0x43)
REGISTER_SIZES = (1, 4, 0x19, 9, 0x14)
SIZES = {
    HARDWARE: sum(REGISTER_SIZES) + 4,
    BIOS_DATA: sum(length for _, length in BDA_PARTS) + 4 * len(VECTOR_PARTS),
    COLOURS: 3 * 256 + 1,
}


class StateService:
    """The state of the adapter."""

    def __init__(self, video: VideoService) -> None:
        self.video = video
        self.hw, self.bda, self.chip = video.hw, video.bda, video.chip

    def functionality(self, call: Call) -> None:
        """AH=1Bh: the dynamic state table at ES:DI."""
        if call.bx != 0:
            return
        hw, mode = self.hw, self.video.mode
        table = bytearray(64)
        table[0:4] = hw.rom.far("functionality").to_bytes(4, "little")
        table[4:34] = hw.space.read(layout.BDA + layout.VIDEO_MODE, 30)
        table[34] = self.bda.byte(layout.ROWS_LESS_ONE) + 1 & 0xFF
        table[35:37] = hw.space.read(layout.BDA + layout.CHARACTER_HEIGHT, 2)
        table[37] = self.bda.byte(layout.DISPLAY_COMBINATION)
        struct.pack_into("<HBB", table, 39, mode.colours, mode.pages, 2)  # 2: 400 lines
        table[45] = 0x21 | self.chip.attribute(0x10) & 0x08 << 2  # VGA, and blinking
        table[49] = 3  # 256 KiB
        call.write(call.at_es(call.di), table)
        call.al = 0x1B

    def service(self, call: Call) -> None:
        """AH=1Ch: AL=0 the size in blocks, 1 save to ES:BX, 2 restore."""
        if not call.cx & 7 or call.al > 2:
            return
        if call.al == 0:
            call.bx = blocks(call.cx)
        elif call.al == 1:
            call.write(call.at_es(call.bx), self.save(call.cx))
        else:
            self.restore(call.cx, call.read(call.at_es(call.bx), blocks(call.cx) * BLOCK))
        call.al = 0x1C

    def save(self, parts: int) -> bytes:
        """The chosen parts one after another."""
        data = b""
        if parts & HARDWARE:
            registers = self.chip.registers()
            data += bytes([registers.misc]) + b"".join(registers[1:]) + bytes(4)
        if parts & BIOS_DATA:
            read = self.hw.space.read
            data += b"".join(read(layout.BDA + offset, length) for offset, length in BDA_PARTS)
            data += b"".join(read(vector * 4, 4) for vector in VECTOR_PARTS)
        if parts & COLOURS:
            colours = self.chip.colours(0, 256)
            data += bytes(part for colour in colours for part in colour)
            data += bytes([self.hw.inb(vga.DAC_MASK)])
        return data

    def restore(self, parts: int, data: bytes) -> None:
        """What :meth:`save` gave."""
        if parts & HARDWARE:
            piece, data = data[: SIZES[HARDWARE]], data[SIZES[HARDWARE] :]
            values, place = [], 1
            for size in REGISTER_SIZES[1:]:
                values.append(piece[place : place + size])
                place += size
            self.chip.program(Registers(piece[0], *values))
        if parts & BIOS_DATA:
            for offset, length in BDA_PARTS:
                self.hw.space.write(layout.BDA + offset, data[:length])
                data = data[length:]
            for vector in VECTOR_PARTS:
                self.hw.space.write(vector * 4, data[:4])
                data = data[4:]
        if parts & COLOURS:
            colours = [(data[n], data[n + 1], data[n + 2]) for n in range(0, 768, 3)]
            self.chip.set_colours(0, colours)
            self.hw.outb(vga.DAC_MASK, data[768])


def blocks(parts: int) -> int:
    """Room for the chosen parts, in blocks of 64 bytes."""
    size = sum(length for part, length in SIZES.items() if parts & part)
    return -(-size // BLOCK)


def static_functionality() -> bytes:
    """The table that AH=1Bh points at: modes 0-7 and 0Dh-13h, fonts, palettes, state saving."""
    table = bytearray(16)
    modes = sum(1 << number for number in (*range(0x08), *range(0x0D, 0x14)))
    table[0:3] = modes.to_bytes(3, "little")
    table[7] = 0x04  # 400 scan lines
    table[8], table[9] = 8, 8  # character blocks, and how many are active at once
    table[10:12] = (0x0CFF).to_bytes(2, "little")
    table[14] = 0x3F
    return bytes(table)
