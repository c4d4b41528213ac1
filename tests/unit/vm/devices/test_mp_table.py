"""The MP tables, parsed as a kernel does."""

from __future__ import annotations

import struct

import pytest

from vdisk.vm.devices.mp_table import mp_tables

ADDRESS = 0xF5A00
LENGTHS = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def entries(data: bytes) -> dict[int, list[bytes]]:
    """The entries of a table by their type, after all checks that a kernel makes."""
    anchor, address, length, revision = struct.unpack_from("<4sIBB", data)
    assert (anchor, address, length, revision) == (b"_MP_", ADDRESS + 16, 1, 4)
    assert sum(data[:16]) & 0xFF == 0
    table = data[16:]
    signature, size = struct.unpack_from("<4sH", table)
    assert (signature, size) == (b"PCMP", len(table))
    assert sum(table) & 0xFF == 0
    count = struct.unpack_from("<H", table, 34)[0]
    assert struct.unpack_from("<I", table, 36)[0] == 0xFEE00000
    found: dict[int, list[bytes]] = {}
    place = 44
    for _ in range(count):
        kind = table[place]
        found.setdefault(kind, []).append(table[place : place + LENGTHS[kind]])
        place += LENGTHS[kind]
    assert place == len(table)
    return found


@pytest.mark.parametrize("cpus", [1, 8])
def test_processors(cpus: int) -> None:
    found = entries(mp_tables(ADDRESS, cpus))[0]
    assert [entry[1] for entry in found] == list(range(cpus))
    assert [entry[3] for entry in found] == [3] + [1] * (cpus - 1)


def test_buses_and_the_io_apic() -> None:
    found = entries(mp_tables(ADDRESS, 1))
    assert [entry[1:] for entry in found[1]] == [b"\x00PCI   ", b"\x01ISA   "]
    assert struct.unpack_from("<I", found[2][0], 4)[0] == 0xFEC00000


def test_isa_interrupts_have_their_pins() -> None:
    found = entries(mp_tables(ADDRESS, 1))[3]
    pins = {entry[5]: entry[7] for entry in found}
    assert pins == {0: 2, **{irq: irq for irq in (1, *range(3, 16))}}
    assert all(entry[4] == 1 for entry in found)


def test_pci_interrupts_take_theirs_away() -> None:
    found = entries(mp_tables(ADDRESS, 1, pins=[(3, 0), (4, 1)], pirq=(5, 10, 11, 5)))[3]
    pci = [entry for entry in found if entry[4] == 0]
    assert [(entry[5], entry[7], entry[2]) for entry in pci] == [(12, 11, 13), (17, 5, 13)]
    assert {5, 11}.isdisjoint(entry[5] for entry in found if entry[4] == 1)


def test_local_interrupts() -> None:
    found = entries(mp_tables(ADDRESS, 2))[4]
    assert [(entry[1], entry[6], entry[7]) for entry in found] == [(3, 0xFF, 0), (1, 0xFF, 1)]
