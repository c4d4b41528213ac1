"""The Multiboot specification 0.6.96: kernels with a header that any boot loader understands.

The header lies on a 4-byte boundary in the first 8 KiB (section 3.1)::

    00 magic 1BADB002   04 flags   08 checksum (the three add up to 0)
    0C header_addr  10 load_addr  14 load_end_addr  18 bss_end_addr  1C entry_addr  (flag 16)

With flag 16 those addresses say what to load where (the "a.out kludge"), otherwise the file is
ELF.  The kernel begins in 32-bit protected mode with EAX = 2BADB002 and EBX at the information
structure (section 3.3), which is put with all it points to at :data:`ROOM`, or behind the kernel.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import fill_zeroes
from vdisk.errors import FormatError, InvalidRequestError, UnsupportedFeatureError
from vdisk.vm._boot import entry

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
ROOM, ROOM_SIZE, INFORMATION = 0x8000, 0x2_8000, 0x1000
"""Where the GDT is, and behind it the information: memory that kernels mostly leave alone."""
INFO_SIZE = 116
MODULE, MEMORY_MAP_ENTRY = struct.Struct("<4I"), struct.Struct("<IQQI")
LOADER_NAME = b"vdisk-vm"
HIGH_MEMORY = 0x10_0000
MOST_MODULES = 64

ELF_MAGIC = b"\x7fELF"
ELF32_HEADER, ELF32_PROGRAM = struct.Struct("<16xHHIIIIIHHH"), struct.Struct("<8I")
ELF64_HEADER, ELF64_PROGRAM = struct.Struct("<16xHHIQQQIHHH"), struct.Struct("<II6Q")
EM_386, EM_X86_64, PT_LOAD = 3, 62, 1
MOST_SEGMENTS = 128


class Piece(NamedTuple):
    """Bytes to load at ``address``, followed by zeroes up to ``size``."""

    address: int
    data: bytes
    size: int


class MultibootImage(NamedTuple):
    """A kernel, taken apart."""

    path: str
    flags: int
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
        pieces, start = _from_elf(path, data)
    return MultibootImage(path, flags, pieces, start)


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


def _from_elf(path: str, data: bytes) -> tuple[list[Piece], int]:
    if data[:4] != ELF_MAGIC or len(data) < ELF64_HEADER.size:
        raise FormatError("a Multiboot kernel that is neither ELF nor has addresses", path=path)
    wide = data[4] == 2
    header = ELF64_HEADER if wide else ELF32_HEADER
    kind, machine, _version, start, table, _sections, _flags, _size, entry_size, count = (
        header.unpack_from(data)
    )
    program = ELF64_PROGRAM if wide else ELF32_PROGRAM
    if kind != 2 or machine != (EM_X86_64 if wide else EM_386) or data[5] != 1:
        raise UnsupportedFeatureError("not an executable of this architecture", path=path)
    if entry_size < program.size or count > MOST_SEGMENTS:
        raise FormatError(f"{count} program headers of {entry_size} bytes", path=path)
    if table + entry_size * count > len(data):
        raise FormatError("the program headers reach past the file", path=path)
    rows = (program.unpack_from(data, table + entry_size * number) for number in range(count))
    pieces = [_segment(path, data, row, wide) for row in rows if row[0] == PT_LOAD]
    if not pieces:
        raise FormatError("nothing to load", path=path)
    if start >= 1 << 32:
        raise UnsupportedFeatureError(f"an entry point above 4 GiB ({start:#x})", path=path)
    return pieces, _physical(pieces, data, table, entry_size, count, program, start, wide)


def _segment(path: str, data: bytes, row: tuple[int, ...], wide: bool) -> Piece:
    if wide:
        _kind, _flags, offset, _virtual, physical, file_size, size, _align = row
    else:
        _kind, offset, _virtual, physical, file_size, size, _flags, _align = row
    if offset + file_size > len(data) or size < file_size:
        raise FormatError("a program header reaches past the file", path=path)
    return Piece(physical, data[offset : offset + file_size], size)


def _physical(
    pieces: list[Piece], data: bytes, table: int, entry_size: int, count: int,
    program: struct.Struct, start: int, wide: bool,
) -> int:  # fmt: skip
    """The entry point as a physical address: it may be given as a virtual one."""
    if any(piece.address <= start < piece.address + piece.size for piece in pieces):
        return start
    for number in range(count):
        row = program.unpack_from(data, table + entry_size * number)
        virtual, physical, size = (row[3], row[4], row[6]) if wide else (row[2], row[3], row[5])
        if row[0] == PT_LOAD and virtual <= start < virtual + size:
            return int(start - virtual + physical)
    return start


def load(
    image: MultibootImage, memory: GuestMemory, ranges: Sequence[MemoryRange], *,
    command_line: bytes = b"", modules: Sequence[tuple[str, bytes]] = (),
) -> Entry:  # fmt: skip
    """Place the kernel and its modules; gives the state to start in.

    ``modules``: (path, string) of each.  Raises :class:`InvalidRequestError` where something
    does not fit.
    """
    end = _place_pieces(image, memory, ranges)
    room = _find_room(image, ranges)
    if room >= end:
        end = room + ROOM_SIZE
    if len(modules) > MOST_MODULES:
        raise InvalidRequestError(f"{len(modules)} modules; at most {MOST_MODULES}")
    loaded = []
    ceiling = memory.low_end
    for path, text in modules:
        start, length = entry.load_file(path, memory, ranges, end, ceiling)
        loaded.append((start, length, text))
        ceiling = start
    name = image.path.encode("utf-8", "surrogateescape")
    area = _Area(memory, room)
    _write_information(area, ranges, b" ".join(filter(None, (name, command_line))), loaded)
    state = entry.protected(memory, image.entry_point, room)
    state.registers.gprs[entry.RAX] = LOADER_MAGIC
    state.registers.gprs[entry.RBX] = area.start
    return state


def _place_pieces(image: MultibootImage, memory: GuestMemory, ranges: Sequence[MemoryRange]) -> int:
    """Load all pieces; gives their end."""
    for piece in image.pieces:
        entry.require_ram(ranges, piece.address, piece.address + piece.size, image.path)
    for piece in image.pieces:
        view = memory.view(piece.address, piece.size)
        view[: len(piece.data)] = piece.data
        fill_zeroes(view[len(piece.data) :])
        memory.dirtied(piece.address, piece.size)
    return max(piece.address + piece.size for piece in image.pieces)


def _find_room(image: MultibootImage, ranges: Sequence[MemoryRange]) -> int:
    """Where :data:`ROOM_SIZE` bytes are free: the usual place, or the first one behind a piece."""
    behind = sorted((piece.address + piece.size + 0xFFF) & ~0xFFF for piece in image.pieces)
    for start in (ROOM, *behind):
        end = start + ROOM_SIZE
        used = any(p.address < end and p.address + p.size > start for p in image.pieces)
        if not used and entry.is_ram(ranges, start, end):
            return start
    raise InvalidRequestError("the kernel leaves no room for its information", path=image.path)


class _Area:
    """Memory that is handed out upwards from the information structure at ``start``."""

    def __init__(self, memory: GuestMemory, room: int) -> None:
        self._memory = memory
        self.start, self._end = room + INFORMATION, room + ROOM_SIZE
        self._next = self.start + INFO_SIZE

    def put(self, data: bytes) -> int:
        """Write ``data``; gives its address."""
        address = self._next
        if address + len(data) > self._end:
            raise InvalidRequestError("the command lines of kernel and modules are too long")
        self._memory.write(address, data)
        self._next = address + len(data) + 3 & ~3
        return address

    def put_first(self, data: bytes) -> None:
        """Write the information structure itself."""
        self._memory.write(self.start, data)


def _write_information(
    area: _Area, ranges: Sequence[MemoryRange], command_line: bytes,
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
