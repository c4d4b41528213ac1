"""The Multiboot specification 0.6.96: kernels with a header that any boot loader understands.

The header lies on a 4-byte boundary in the first 8 KiB (section 3.1)::

    00 magic 1BADB002   04 flags   08 checksum (the three add up to 0)
    0C header_addr  10 load_addr  14 load_end_addr  18 bss_end_addr  1C entry_addr  (flag 16)

With flag 16 those addresses say what to load where (the "a.out kludge"), otherwise the file is
ELF.  The kernel begins in 32-bit protected mode with EAX = 2BADB002 and EBX at the information
structure (section 3.3), which is put where :mod:`~vdisk.vm._boot.pieces` finds room.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import FormatError, InvalidRequestError, UnsupportedFeatureError
from vdisk.vm._boot import entry
from vdisk.vm._boot.pieces import Area, Piece, from_elf, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm._boot.entry import Entry, MemoryRange
    from vdisk.vm.memory import GuestMemory

SEARCH = 8192
HEADER_MAGIC, LOADER_MAGIC = 0x1BAD_B002, 0x2BAD_B002
HEADER_SIZE, HEADER_WITH_ADDRESSES = 12, 32
ALIGN_MODULES, MEMORY_INFO, VIDEO_MODE, ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
UNDERSTOOD = ALIGN_MODULES | MEMORY_INFO | VIDEO_MODE
REQUIRED_FLAGS = 0xFFFF

INFO_MEMORY, INFO_COMMAND_LINE, INFO_MODULES, INFO_MEMORY_MAP, INFO_LOADER_NAME = (
    1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9,
)  # fmt: skip
INFO_SIZE = 116
MODULE, MEMORY_MAP_ENTRY = struct.Struct("<4I"), struct.Struct("<IQQI")
LOADER_NAME = b"vdisk-vm"
HIGH_MEMORY = 0x10_0000
MOST_MODULES = 64


class MultibootImage(NamedTuple):
    """A kernel, taken apart."""

    path: str
    pieces: list[Piece]
    entry_point: int


def find_header(data: bytes) -> int | None:
    """The offset of a Multiboot header, if there is one."""
    for offset in range(0, min(SEARCH, len(data)) - HEADER_SIZE + 1, 4):
        magic, flags, checksum = struct.unpack_from("<3I", data, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset
    return None


def parse(path: str, data: bytes) -> MultibootImage:
    """Take a kernel apart; raises :class:`FormatError` or :class:`UnsupportedFeatureError`."""
    offset = find_header(data)
    if offset is None:
        raise FormatError("no Multiboot header in the first 8 KiB", path=path)
    flags: int
    (flags,) = struct.unpack_from("<I", data, offset + 4)
    unknown = flags & REQUIRED_FLAGS & ~UNDERSTOOD
    if unknown:
        raise UnsupportedFeatureError(f"Multiboot flags {unknown:#x} are required", path=path)
    if flags & ADDRESSES:
        pieces, start = _from_addresses(path, data, offset)
    else:
        pieces, start = from_elf(path, data)
    return MultibootImage(path, pieces, start)


def _from_addresses(path: str, data: bytes, offset: int) -> tuple[list[Piece], int]:
    """The a.out kludge (section 3.1.3)."""
    if offset + HEADER_WITH_ADDRESSES > len(data):
        raise FormatError("the Multiboot header is cut off", path=path)
    header, load, load_end, bss_end, start = struct.unpack_from("<5I", data, offset + 12)
    begin = offset - (header - load)
    if load > header or begin < 0:
        raise FormatError("the Multiboot header lies before the kernel", path=path)
    length = load_end - load if load_end else len(data) - begin
    if length < 0 or begin + length > len(data):
        raise FormatError("the Multiboot addresses reach past the file", path=path)
    size = bss_end - load if bss_end else length
    if size < length:
        raise FormatError("the Multiboot bss ends inside the kernel", path=path)
    return [Piece(load, data[begin : begin + length], size)], start


def load(
    image: MultibootImage, memory: GuestMemory, ranges: Sequence[MemoryRange], *,
    command_line: bytes = b"", modules: Sequence[tuple[str, bytes]] = (),
) -> Entry:  # fmt: skip
    """Place the kernel and its modules; gives the state to start in.

    ``modules``: (path, string) of each.  Raises :class:`InvalidRequestError` where something
    does not fit.
    """
    room, end = place(image.path, image.pieces, memory, ranges)
    if len(modules) > MOST_MODULES:
        raise InvalidRequestError(f"{len(modules)} modules; at most {MOST_MODULES}")
    loaded = []
    ceiling = memory.low_end
    for path, text in modules:
        start, length = entry.load_file(path, memory, ranges, end, ceiling)
        loaded.append((start, length, text))
        ceiling = start
    name = image.path.encode("utf-8", "surrogateescape")
    area = Area(memory, room, INFO_SIZE)
    _write_information(area, ranges, b" ".join(filter(None, (name, command_line))), loaded)
    state = entry.protected(memory, image.entry_point, room)
    state.registers.gprs[entry.RAX] = LOADER_MAGIC
    state.registers.gprs[entry.RBX] = area.start
    return state


def _write_information(
    area: Area, ranges: Sequence[MemoryRange], command_line: bytes,
    modules: Sequence[tuple[int, int, bytes]],
) -> None:  # fmt: skip
    """The information structure (section 3.3): memory, command line, modules, memory map."""
    lower = _usable_from(ranges, 0) >> 10
    upper = max(_usable_from(ranges, HIGH_MEMORY) - HIGH_MEMORY, 0) >> 10
    text = area.put(command_line + b"\0")
    strings = [area.put(string + b"\0") for _, _, string in modules]
    table = area.put(
        b"".join(
            MODULE.pack(start, start + length, string, 0)
            for (start, length, _), string in zip(modules, strings, strict=True)
        )
    )
    rows = [MEMORY_MAP_ENTRY.pack(20, row.start, row.length, row.type) for row in ranges]
    memory_map = area.put(b"".join(rows))
    flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
    name = area.put(LOADER_NAME + b"\0")
    head = struct.pack("<IIIII", flags, lower, upper, 0xFFFF_FFFF, text)
    head += struct.pack("<II16x", len(modules), table)
    head += struct.pack("<II", MEMORY_MAP_ENTRY.size * len(rows), memory_map)
    head += struct.pack("<III", 0, 0, 0) + struct.pack("<I", name)
    area.put_first(head.ljust(INFO_SIZE, b"\0"))


def _usable_from(ranges: Sequence[MemoryRange], start: int) -> int:
    """The end of the RAM that begins at ``start`` without a hole."""
    end = start
    for item in sorted(ranges):
        if item.type == entry.RAM and item.start <= end < item.start + item.length:
            end = item.start + item.length
    return end
