"""Kernels in pieces: executables in the ELF format, and where they go in memory.

A kernel's pieces lie where it says.  The GDT, and behind it what the kernel is told, go to
:data:`ROOM`, or to the first free place behind a piece.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import fill_zeroes
from vdisk.errors import FormatError, InvalidRequestError, UnsupportedFeatureError
from vdisk.vm._boot import entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vdisk.vm._boot.entry import MemoryRange
    from vdisk.vm.memory import GuestMemory

ROOM, ROOM_SIZE, INFORMATION = 0x8000, 0x2_8000, 0x1000
"""Memory that kernels mostly leave alone."""
ELF_MAGIC = b"\x7fELF"
ELF32_HEADER, ELF32_PROGRAM = struct.Struct("<16xHHIIIIIHHH"), struct.Struct("<8I")
ELF64_HEADER, ELF64_PROGRAM = struct.Struct("<16xHHIQQQIHHH"), struct.Struct("<II6Q")
EM_386, EM_X86_64, PT_LOAD, PT_NOTE = 3, 62, 1, 4
MOST_SEGMENTS = 128
NOTE = struct.Struct("<3I")
MOST_NOTES = 64


class Piece(NamedTuple):
    """Bytes to load at ``address``, followed by zeroes up to ``size``."""

    address: int
    data: bytes
    size: int


def from_elf(path: str, data: bytes) -> tuple[list[Piece], int]:
    """The pieces of an executable, and its entry point as a physical address."""
    if data[:4] != ELF_MAGIC or len(data) < ELF64_HEADER.size:
        raise FormatError("a kernel that is neither ELF nor says its addresses", path=path)
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
    rows = [program.unpack_from(data, table + entry_size * number) for number in range(count)]
    pieces = [_segment(path, data, row, wide) for row in rows if row[0] == PT_LOAD]
    if not pieces:
        raise FormatError("nothing to load", path=path)
    if start >= 1 << 32:
        raise UnsupportedFeatureError(f"an entry point above 4 GiB ({start:#x})", path=path)
    return pieces, _physical(pieces, rows, start, wide)


def _segment(path: str, data: bytes, row: tuple[int, ...], wide: bool) -> Piece:
    if wide:
        _kind, _flags, offset, _virtual, physical, file_size, size, _align = row
    else:
        _kind, offset, _virtual, physical, file_size, size, _flags, _align = row
    if offset + file_size > len(data) or size < file_size:
        raise FormatError("a program header reaches past the file", path=path)
    return Piece(physical, data[offset : offset + file_size], size)


def _physical(pieces: list[Piece], rows: list[tuple[int, ...]], start: int, wide: bool) -> int:
    """The entry point as a physical address: it may be given as a virtual one."""
    if any(piece.address <= start < piece.address + piece.size for piece in pieces):
        return start
    for row in rows:
        virtual, physical, size = (row[3], row[4], row[6]) if wide else (row[2], row[3], row[5])
        if row[0] == PT_LOAD and virtual <= start < virtual + size:
            return start - virtual + physical
    return start


def notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes of an executable that :func:`from_elf` takes: name, type, and what they say."""
    wide = data[4] == 2
    header, program = (ELF64_HEADER, ELF64_PROGRAM) if wide else (ELF32_HEADER, ELF32_PROGRAM)
    _, _, _, _, table, _, _, _, entry_size, count = header.unpack_from(data)
    for number in range(min(count, MOST_SEGMENTS)):
        place = table + entry_size * number
        if place + program.size > len(data):
            return
        row = program.unpack_from(data, place)
        start, size = (row[2], row[5]) if wide else (row[1], row[4])
        if row[0] == PT_NOTE:
            yield from _notes(data[start : start + size])


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    place = 0
    for _ in range(MOST_NOTES):
        if place + NOTE.size > len(data):
            return
        name, size, kind = NOTE.unpack_from(data, place)
        place += NOTE.size
        what = place + (name + 3 & ~3)
        yield data[place : place + name], kind, data[what : what + size]
        place = what + (size + 3 & ~3)


def place(
    path: str, pieces: Sequence[Piece], memory: GuestMemory, ranges: Sequence[MemoryRange]
) -> tuple[int, int]:
    """Load all pieces; gives the room for what the kernel is told, and where both end."""
    for piece in pieces:
        entry.require_ram(ranges, piece.address, piece.address + piece.size, path)
    for piece in pieces:
        view = memory.view(piece.address, piece.size)
        view[: len(piece.data)] = piece.data
        fill_zeroes(view[len(piece.data) :])
        memory.dirtied(piece.address, piece.size)
    end = max(piece.address + piece.size for piece in pieces)
    room = _find_room(path, pieces, ranges)
    return room, room + ROOM_SIZE if room >= end else end


def _find_room(path: str, pieces: Sequence[Piece], ranges: Sequence[MemoryRange]) -> int:
    """Where :data:`ROOM_SIZE` bytes are free: the usual place, or the first one behind a piece."""
    behind = sorted((piece.address + piece.size + 0xFFF) & ~0xFFF for piece in pieces)
    for start in (ROOM, *behind):
        end = start + ROOM_SIZE
        used = any(p.address < end and p.address + p.size > start for p in pieces)
        if not used and entry.is_ram(ranges, start, end):
            return start
    raise InvalidRequestError("the kernel leaves no room for its information", path=path)


class Area:
    """Memory that is handed out upwards, behind a structure of ``first`` bytes at ``start``."""

    def __init__(self, memory: GuestMemory, room: int, first: int) -> None:
        self._memory = memory
        self.start, self._end = room + INFORMATION, room + ROOM_SIZE
        self._next = self.start + first

    def put(self, data: bytes) -> int:
        """Write ``data``; gives its address."""
        address = self._next
        if address + len(data) > self._end:
            raise InvalidRequestError("the command lines of kernel and modules are too long")
        self._memory.write(address, data)
        self._next = address + len(data) + 7 & ~7
        return address

    def put_first(self, data: bytes) -> None:
        """Write the structure itself."""
        self._memory.write(self.start, data)
