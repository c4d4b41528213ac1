"""What memory there is, as int 15h tells it (ACPI 6.5, section 15: INT 15h E820h)."""

from __future__ import annotations

import enum
from typing import NamedTuple

from vdisk.vm._bios.layout import CONVENTIONAL_KIB
from vdisk.vm._bios.rom import ROM_BASE

KIB, MIB, FOUR_GIB = 1 << 10, 1 << 20, 1 << 32
CONVENTIONAL_END = 640 * KIB
FLASH_START = FOUR_GIB - 0x40000  # the ROM's place below 4 GiB and what may lie under it


class MemoryType(enum.IntEnum):
    """Address range types."""

    USABLE = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class Entry(NamedTuple):
    """One range."""

    start: int
    length: int
    kind: MemoryType


def memory_map(low_end: int, high_end: int, tables: list[Entry]) -> list[Entry]:
    """All ranges in order; ``tables`` lie at the top of low RAM."""
    usable, reserved = MemoryType.USABLE, MemoryType.RESERVED
    conventional = CONVENTIONAL_KIB * KIB
    top = min((entry.start for entry in tables), default=low_end)
    entries = [
        Entry(0, conventional, usable),
        Entry(conventional, CONVENTIONAL_END - conventional, reserved),
        Entry(ROM_BASE, MIB - ROM_BASE, reserved),
        Entry(MIB, top - MIB, usable),
        *sorted(tables),
        Entry(FLASH_START, FOUR_GIB - FLASH_START, reserved),
    ]
    if high_end > FOUR_GIB:
        entries.append(Entry(FOUR_GIB, high_end - FOUR_GIB, usable))
    return [entry for entry in entries if entry.length > 0]


def kib_above_1_mib(entries: list[Entry]) -> tuple[int, int]:
    """int 15h AX=E801h: KiB from 1 to 16 MiB, and 64 KiB blocks from 16 MiB to 4 GiB."""
    end = max(
        (
            entry.start + entry.length
            for entry in entries
            if entry.kind is MemoryType.USABLE and entry.start < FOUR_GIB
        ),
        default=MIB,
    )
    low = max(min(end, 16 * MIB) - MIB, 0) // KIB
    return low, max(end - 16 * MIB, 0) // (64 * KIB)
