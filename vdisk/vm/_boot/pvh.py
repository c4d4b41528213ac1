"""PVH: an uncompressed ELF kernel is entered by what Xen calls HVM direct boot (xen, pvh.markdown).

A note of "Xen", type 18, holds the entry point.  The kernel begins there in 32-bit protected mode,
flat, without paging, with EBX at::

    00 magic 336EC578   04 version 1   08 flags   0C modules   10 their table   18 command line
    20 RSDP   28 memory map   30 its entries   34 reserved

    module      00 address  08 size  10 command line  18 reserved
    memory map  00 address  08 size  10 type (E820)   14 reserved

What Firecracker, Cloud Hypervisor and QEMU boot a ``vmlinux`` by.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import FormatError
from vdisk.vm._boot import entry
from vdisk.vm._boot.pieces import ELF64_HEADER, ELF_MAGIC, Area, Piece, from_elf, notes, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm._boot.entry import Entry, MemoryRange
    from vdisk.vm.memory import GuestMemory

XEN, PHYS32_ENTRY = b"Xen\0", 18
MAGIC, VERSION = 0x336E_C578, 1
START_INFO, MODULE = struct.Struct("<4I4Q2I"), struct.Struct("<4Q")
MEMORY_MAP_ENTRY = struct.Struct("<2Q2I")


class PvhImage(NamedTuple):
    """A kernel, taken apart.  ``wide``: of 64 bits, though it is entered with 32."""

    path: str
    pieces: list[Piece]
    entry_point: int
    wide: bool


def find_entry(data: bytes) -> int | None:
    """The entry point of a kernel that says it has one."""
    if data[:4] != ELF_MAGIC or len(data) < ELF64_HEADER.size:
        return None
    for name, kind, what in notes(data):
        if (name, kind) == (XEN, PHYS32_ENTRY) and len(what) >= 4:
            return int.from_bytes(what[:8], "little")
    return None


def parse(path: str, data: bytes) -> PvhImage:
    """Take a kernel apart; raises :class:`FormatError` or :class:`UnsupportedFeatureError`."""
    pieces, _ = from_elf(path, data)
    start = find_entry(data)
    if start is None or start >= 1 << 32:
        raise FormatError("its PVH entry point is nowhere below 4 GiB", path=path)
    return PvhImage(path, pieces, start, data[4] == 2)


def load(
    image: PvhImage, memory: GuestMemory, ranges: Sequence[MemoryRange], *,
    command_line: bytes = b"", initrd: str | None = None, rsdp: int = 0,
) -> Entry:  # fmt: skip
    """Place the kernel and its initial RAM disk; gives the state to start in.

    Raises :class:`InvalidRequestError` where something does not fit.
    """
    room, end = place(image.path, image.pieces, memory, ranges)
    area = Area(memory, room, START_INFO.size)
    modules = b""
    if initrd is not None:
        start, length = entry.load_file(initrd, memory, ranges, end, memory.low_end)
        modules = MODULE.pack(start, length, 0, 0)
    rows = [MEMORY_MAP_ENTRY.pack(row.start, row.length, row.type, 0) for row in ranges]
    text = area.put(command_line + b"\0")
    table = area.put(modules) if modules else 0
    memory_map = area.put(b"".join(rows))
    head = (MAGIC, VERSION, 0, len(modules) // MODULE.size, table, text, rsdp, memory_map)
    area.put_first(START_INFO.pack(*head, len(rows), 0))
    state = entry.protected(memory, image.entry_point, room)
    state.registers.gprs[entry.RBX] = area.start
    return state
