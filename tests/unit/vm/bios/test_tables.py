"""Tables in the ROM's segment: SMBIOS."""

from __future__ import annotations

import struct

import pytest

from tests.tools.bios_machine import BiosMachine
from vdisk.vm._bios.smbios import smbios_tables
from vdisk.vm.memory import FOUR_GIB

MIB = 1 << 20


def walk(table: bytes) -> list[tuple[int, bytes, list[str]]]:
    """(type, formatted part, strings) of each structure, as a reader of SMBIOS goes."""
    found, at = [], 0
    while at < len(table):
        kind, length = table[at], table[at + 1]
        end = table.index(b"\0\0", at + length)
        strings = table[at + length : end].split(b"\0") if end > at + length else []
        found.append((kind, table[at : at + length], [text.decode() for text in strings]))
        at = end + 2
    return found


def test_post_places_it_where_it_is_searched() -> None:
    pc = BiosMachine(memory=64 * MIB)
    pc.post()
    rom = pc.memory.read(0xF0000, 0x10000)
    at = next(n for n in range(0, 0x10000, 16) if rom[n : n + 4] == b"_SM_")
    entry = rom[at : at + 0x1F]
    assert sum(entry) & 0xFF == 0 and sum(entry[0x10:]) & 0xFF == 0
    length, address, count = struct.unpack_from("<HIH", entry, 0x16)
    structures = walk(pc.memory.read(address, length))
    assert len(structures) == count and structures[-1][0] == 127
    assert [kind for kind, _, _ in structures] == [0, 1, 3, 4, 16, 17, 19, 32, 127]


@pytest.mark.parametrize(
    ("processors", "low", "high"), [(1, 64 * MIB, 0), (8, 3072 * MIB, 5 << 30), (64, 3072 * MIB, 0)]
)
def test_strings_and_sizes_agree(processors: int, low: int, high: int) -> None:
    data = smbios_tables(0xF9000, processors, low, FOUR_GIB + high)
    structures = walk(data[32:])
    assert sum(kind == 4 for kind, _, _ in structures) == processors
    handles = [fields[2:4] for _, fields, _ in structures]
    assert len(set(handles)) == len(handles)
    size = (low + high) // MIB
    device = next(fields for kind, fields, _ in structures if kind == 17)
    simple, extended = (
        struct.unpack_from("<H", device, 12)[0],
        struct.unpack_from("<I", device, 28)[0],
    )
    assert (extended if simple == 0x7FFF else simple) == size
    ranges = [struct.unpack_from("<II", fields, 4) for kind, fields, _ in structures if kind == 19]
    assert sum(last - first + 1 for first, last in ranges) * 1024 == low + high


def test_every_string_that_is_named_is_there() -> None:
    for kind, fields, strings in walk(smbios_tables(0xF9000, 2, 64 * MIB, FOUR_GIB)[32:]):
        places = {0: (4, 5, 8), 1: (4, 5), 3: (4,), 4: (4, 7), 17: (16,)}.get(kind, ())
        assert all(1 <= fields[place] <= len(strings) for place in places), kind
