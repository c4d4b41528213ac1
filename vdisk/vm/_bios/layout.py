"""Where the BIOS keeps things: its data area at 400h (BDA) and the extension (EBDA).

The BDA is the IBM AT's and VGA's, as every program that reads it directly expects; offsets count
from 400h.  The EBDA is the last KiB of conventional memory; word 40:0E has its segment, and it is
looked up there each time, for memory managers move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.vm._bios.space import Space

BDA = 0x400
EBDA = 0x9FC00
EBDA_KIB = 1
CONVENTIONAL_KIB = 640 - EBDA_KIB

# -- the BIOS data area ----------------------------------------------------------------------
SERIAL_PORTS = 0x00  # four words
PRINTER_PORTS = 0x08  # three words
EBDA_SEGMENT = 0x0E
EQUIPMENT = 0x10
MEMORY_KIB = 0x13
SHIFT_FLAGS = 0x17
SHIFT_FLAGS_2 = 0x18
ALT_KEYPAD = 0x19
BUFFER_HEAD = 0x1A
BUFFER_TAIL = 0x1C
KEY_BUFFER = 0x1E  # 16 words
DISKETTE_STATUS = 0x41
VIDEO_MODE = 0x49
COLUMNS = 0x4A
PAGE_SIZE = 0x4C
PAGE_START = 0x4E
CURSORS = 0x50  # eight words: row << 8 | column
CURSOR_SHAPE = 0x60
ACTIVE_PAGE = 0x62
CRTC_PORT = 0x63
CGA_MODE = 0x65
CGA_PALETTE = 0x66
LAST_INTERRUPT = 0x6B
TICKS = 0x6C
MIDNIGHT = 0x70
BREAK_FLAG = 0x71
RESET_FLAG = 0x72
DISK_STATUS = 0x74
DISK_COUNT = 0x75
PRINTER_TIMEOUTS = 0x78
SERIAL_TIMEOUTS = 0x7C
BUFFER_START = 0x80
BUFFER_END = 0x82
ROWS_LESS_ONE = 0x84
CHARACTER_HEIGHT = 0x85
VIDEO_CONTROL = 0x87
VIDEO_SWITCHES = 0x88
VIDEO_FLAGS = 0x89
DISPLAY_COMBINATION = 0x8A
DISK_INTERRUPT = 0x8E
KEYBOARD_MODE = 0x96
KEYBOARD_LEDS = 0x97
WAIT_FLAG = 0x98  # far pointer
WAIT_COUNT = 0x9C  # dword, microseconds
WAIT_ACTIVE = 0xA0
SAVE_POINTER = 0xA8  # far pointer
PRINT_SCREEN_STATUS = 0x100

# -- the extended BIOS data area -------------------------------------------------------------
MOUSE_HANDLER = 0x22  # far pointer
MOUSE_FLAGS = 0x26  # bits 0-2: bytes of the packet so far
MOUSE_FLAGS_2 = 0x27  # bit 7: a handler is set; bits 0-2: bytes of a packet, less one
MOUSE_PACKET = 0x28  # up to eight bytes
DISK_TABLES = 0x3D  # two fixed disk parameter tables of 16 bytes (vectors 41h and 46h)
OPTION_ROM = 0x80  # far pointer to the entry that POST calls next, or where a system resumes
OPTION_ROM_NEXT = 0x84  # word: segment at which the scan goes on
DEADLINE = 0x88  # qword: the clock's time at which int 15h AH=86h returns
MOUSE_ARGUMENTS = 0x90  # words: status, X, Y
SERIAL_DEADLINE = 0x98  # qword, 0 while no call waits
BOOT_STATE = 0xA0
BOOT_INDEX = 0xA1
FIRST_DISK = 0xA2  # which hard disk is 80h, the others following in their order
BOOT_DEADLINE = 0xA8  # qword
TALK = 0xD0  # a conversation with the mouse: its state, and
TALK_COMMANDS, TALK_ANSWERS, TALK_PLACE, TALK_COMMAND_BYTE = 0xD1, 0xD2, 0xD3, 0xD4
TALK_BYTES = 0xD8  # four commands and four answers
EMULATION = 0xB0  # the El Torito specification packet in force (19 bytes, first byte its size)


class Area:
    """Bytes, words and doublewords at offsets from ``base()``."""

    def __init__(self, space: Space, base: int | None = None) -> None:
        self._space = space
        self._base = base

    @property
    def base(self) -> int:
        """The physical address of offset 0."""
        if self._base is not None:
            return self._base
        return int.from_bytes(self._space.read(BDA + EBDA_SEGMENT, 2), "little") << 4

    def get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._space.read(self.base + offset, size), "little")

    def put(self, offset: int, size: int, value: int) -> None:
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._space.write(self.base + offset, data)

    def byte(self, offset: int) -> int:
        return self.get(offset, 1)

    def word(self, offset: int) -> int:
        return self.get(offset, 2)

    def dword(self, offset: int) -> int:
        return self.get(offset, 4)

    def set_byte(self, offset: int, value: int) -> None:
        self.put(offset, 1, value)

    def set_word(self, offset: int, value: int) -> None:
        self.put(offset, 2, value)

    def set_dword(self, offset: int, value: int) -> None:
        self.put(offset, 4, value)

    def set_bits(self, offset: int, mask: int, value: int) -> None:
        """Replace the bits of ``mask`` in the byte at ``offset``."""
        self.put(offset, 1, self.get(offset, 1) & ~mask | value & mask)
