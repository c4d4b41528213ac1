"""Linux's boot protocol (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).

A bzImage is a boot sector, the real-mode setup code, and the kernel proper::

    0      1F1h                 (setup_sects + 1) * 512
    +------+--------------------+---------------------------------------------+
    | boot | setup header, code | protected-mode kernel, syssize * 16 bytes   |
    +------+--------------------+---------------------------------------------+

and is placed so (what lies below 640 KiB is free again as soon as the kernel runs)::

    10000h  setup code, or boot_params (the "zero page": a copy of the header in a page of zeroes)
    1F000h  GDT          20000h  command line          30000h  page tables
    1 MiB   the kernel          …          initial RAM disk, as high as the kernel takes it

It is entered in 64-bit mode where it can be (XLF_KERNEL_64), in 32-bit mode, or, as a boot loader
of a BIOS does, in real mode at its setup code, which asks the firmware for everything itself.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import FormatError, InvalidRequestError, UnsupportedFeatureError
from vdisk.vm._boot import entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm._boot.entry import Entry, MemoryRange
    from vdisk.vm.memory import GuestMemory

HEADER_OFFSET, HEADER_END = 0x1F1, 0x290
SECTOR = 512
DEFAULT_SETUP_SECTS = 4
BOOT_FLAG, HEADER_MAGIC = 0xAA55, b"HdrS"
OLDEST = 0x202
"""The protocol of Linux 2.4.0: the first with a command line anywhere below 640 KiB."""

LOADED_HIGH, CAN_USE_HEAP = 1 << 0, 1 << 7
XLF_KERNEL_64 = 1 << 0
ENTRY_64 = 0x200
UNDEFINED_LOADER = 0xFF

SETUP_SEGMENT, BOOT_PARAMS, GDT, COMMAND_LINE, PAGE_TABLES = (
    0x1000,
    0x10000,
    0x1F000,
    0x20000,
    0x30000,
)
HEAP_END = 0xE000
KERNEL = 0x10_0000
DEFAULT_COMMAND_LINE_SIZE = 255
DEFAULT_INITRD_MAX = 0x37FF_FFFF

E820_ENTRIES, E820_TABLE, MOST_E820 = 0x1E8, 0x2D0, 128
ACPI_RSDP = 0x70
ZERO_PAGE = 4096


class SetupHeader(NamedTuple):
    """The fields used here; those of a later protocol have their defaults."""

    setup_sects: int
    version: int
    loadflags: int
    initrd_addr_max: int
    relocatable_kernel: bool
    xloadflags: int
    cmdline_size: int
    pref_address: int
    init_size: int
    size: int
    """Bytes of the header, from 1F1h on."""


class LinuxImage(NamedTuple):
    """A bzImage, taken apart."""

    path: str
    header: SetupHeader
    setup: bytes
    kernel: memoryview

    def entries(self) -> tuple[int, ...]:
        """The modes it can be entered in: of 64, 32 and 16 bits."""
        wide = (64,) if self.header.xloadflags & XLF_KERNEL_64 else ()
        return (*wide, 32, 16)


def is_linux(data: bytes) -> bool:
    """True if this is the beginning of a kernel with a setup header."""
    return data[0x202:0x206] == HEADER_MAGIC and data[0x1FE:0x200] == b"\x55\xaa"


def parse(path: str, data: bytes) -> LinuxImage:
    """Take a bzImage apart; raises :class:`FormatError` or :class:`UnsupportedFeatureError`."""
    if not is_linux(data) or len(data) < HEADER_END:
        raise FormatError("not a Linux kernel (bzImage)", path=path)
    header = _parse_header(data)
    if header.version < OLDEST or not header.loadflags & LOADED_HIGH:
        version = f"{header.version >> 8}.{header.version & 0xFF:02}"
        raise UnsupportedFeatureError(f"a kernel of boot protocol {version}", path=path)
    setup_length = (header.setup_sects + 1) * SECTOR
    if setup_length > HEAP_END - SECTOR or len(data) <= setup_length:
        raise FormatError(f"setup code of {header.setup_sects} sectors", path=path)
    return LinuxImage(path, header, data[:setup_length], memoryview(data)[setup_length:])


def _parse_header(data: bytes) -> SetupHeader:
    version: int
    (version,) = struct.unpack_from("<H", data, 0x206)

    def field(offset: int, kind: str, since: int, default: int = 0) -> int:
        value: int = struct.unpack_from(kind, data, offset)[0]
        return value if version >= since else default

    return SetupHeader(
        setup_sects=data[0x1F1] or DEFAULT_SETUP_SECTS,
        version=version,
        loadflags=data[0x211],
        initrd_addr_max=field(0x22C, "<I", 0x203, DEFAULT_INITRD_MAX),
        relocatable_kernel=bool(field(0x234, "B", 0x205)),
        xloadflags=field(0x236, "<H", 0x20C),
        cmdline_size=field(0x238, "<I", 0x206, DEFAULT_COMMAND_LINE_SIZE),
        pref_address=field(0x258, "<Q", 0x20A, KERNEL),
        init_size=field(0x260, "<I", 0x20A),
        size=min(0x202 + data[0x201], HEADER_END) - HEADER_OFFSET,
    )


def load(
    image: LinuxImage, memory: GuestMemory, ranges: Sequence[MemoryRange], *,
    command_line: bytes = b"", initrd: str | None = None, bits: int | None = None, rsdp: int = 0,
) -> Entry:  # fmt: skip
    """Place kernel, initial RAM disk and command line; gives the state to start in.

    ``bits``: 64, 32 or 16; None: 64 where the kernel can, else 16.  ``rsdp``: address of ACPI's
    root pointer, or 0.  Raises :class:`InvalidRequestError` where something does not fit.
    """
    bits = bits or (64 if 64 in image.entries() else 16)
    if bits not in image.entries():
        raise UnsupportedFeatureError(f"a kernel without a {bits}-bit entry", path=image.path)
    header = image.header
    end = _place_kernel(image, memory, ranges)
    fields = bytearray(image.setup)
    fields[0x210] = UNDEFINED_LOADER
    fields[0x211] |= CAN_USE_HEAP
    struct.pack_into("<H", fields, 0x224, HEAP_END - SECTOR)
    struct.pack_into("<I", fields, 0x214, KERNEL)
    struct.pack_into("<I", fields, 0x228, _place_command_line(image, memory, command_line))
    if initrd is not None:
        ceiling = min(header.initrd_addr_max + 1, memory.low_end)
        start, length = entry.load_file(initrd, memory, ranges, end, ceiling)
        struct.pack_into("<II", fields, 0x218, start, length)
    if bits == 16:
        memory.write(SETUP_SEGMENT << 4, fields)
        return entry.real_mode(SETUP_SEGMENT, SETUP_SEGMENT + (SECTOR >> 4), HEAP_END)
    memory.write(BOOT_PARAMS, _boot_params(fields, header, memory, ranges, rsdp))
    if bits == 64:
        state = entry.long_mode(memory, KERNEL + ENTRY_64, GDT, PAGE_TABLES)
    else:
        state = entry.protected(memory, KERNEL, GDT)
    state.registers.gprs[entry.RSI] = BOOT_PARAMS
    return state


def _place_kernel(image: LinuxImage, memory: GuestMemory, ranges: Sequence[MemoryRange]) -> int:
    """Put the kernel at 1 MiB; gives the end of what it uses until it manages memory itself."""
    header = image.header
    # Loaded at 1 MiB a kernel moves itself to its preferred address, where it unpacks.
    base = max(KERNEL, header.pref_address)
    end = max(base + header.init_size, KERNEL + len(image.kernel))
    entry.require_ram(ranges, KERNEL, end, image.path)
    memory.write(KERNEL, image.kernel)
    return end


def _place_command_line(image: LinuxImage, memory: GuestMemory, text: bytes) -> int:
    most = min(image.header.cmdline_size, PAGE_TABLES - COMMAND_LINE - 1)
    if len(text) > most or 0 in text:
        raise InvalidRequestError(
            f"a command line of {len(text)} bytes; this kernel takes {most}", path=image.path
        )
    memory.write(COMMAND_LINE, text + b"\0")
    return COMMAND_LINE


def _boot_params(
    fields: bytearray, header: SetupHeader, memory: GuestMemory, ranges: Sequence[MemoryRange],
    rsdp: int,
) -> bytes:  # fmt: skip
    """The zero page, which setup code would otherwise have filled in."""
    page = bytearray(ZERO_PAGE)
    page[HEADER_OFFSET : HEADER_OFFSET + header.size] = fields[HEADER_OFFSET:][: header.size]
    page[:0x40] = _screen_info(memory)
    struct.pack_into("<Q", page, ACPI_RSDP, rsdp)
    if len(ranges) > MOST_E820:
        raise InvalidRequestError(f"a memory map of {len(ranges)} entries")
    page[E820_ENTRIES] = len(ranges)
    for number, item in enumerate(ranges):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * number, item.start, item.length, item.type)
    return bytes(page)


BDA_MODE, BDA_COLUMNS, BDA_CURSOR, BDA_ROWS, BDA_POINTS = 0x449, 0x44A, 0x450, 0x484, 0x485
TEXT_MODES = (3, 7)


def _screen_info(memory: GuestMemory) -> bytes:
    """The text screen as the BIOS left it (its data area); nothing without one."""
    screen = bytearray(0x40)
    bda = memory.read(0x400, 0x100)
    mode, columns = bda[BDA_MODE - 0x400], bda[BDA_COLUMNS - 0x400]
    if mode not in TEXT_MODES or not columns:
        return bytes(screen)
    screen[0], screen[1] = bda[BDA_CURSOR - 0x400], bda[BDA_CURSOR + 1 - 0x400]
    screen[6], screen[7] = mode, columns
    screen[0xE], screen[0xF] = bda[BDA_ROWS - 0x400] + 1, 1  # lines; it is a VGA
    screen[0x10] = bda[BDA_POINTS - 0x400]
    return bytes(screen)
