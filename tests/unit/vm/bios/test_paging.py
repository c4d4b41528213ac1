"""Calls from programs behind paging: virtual-8086 mode, and 32-bit callers of the PCI BIOS."""

from __future__ import annotations

import pytest

from tests.tools.bios_machine import BiosMachine
from vdisk.vm._bios.paging import Translation
from vdisk.vm._bios.space import Space
from vdisk.vm.accel.base import SystemRegisters

PE, PG, PAE, PSE, LMA = 1, 1 << 31, 1 << 5, 1 << 4, 1 << 10
TABLES = 0x100000


def entry(pc: BiosMachine, at: int, value: int, size: int) -> None:
    pc.memory.write(at, value.to_bytes(size, "little"))


@pytest.fixture
def pc() -> BiosMachine:
    return BiosMachine()


def translation(pc: BiosMachine, **registers: int) -> Translation:
    system = SystemRegisters(cr0=PE | PG, cr3=TABLES, **registers)
    return Translation(system, Space(pc.memory, pc.bus.mmio))


def test_32_bit_pages(pc: BiosMachine) -> None:
    entry(pc, TABLES + 4 * 0x300, 0x101000 | 1, 4)
    entry(pc, 0x101000 + 4 * 5, 0xABC000 | 1, 4)
    found = translation(pc)
    assert found.physical(0xC0005123) == 0xABC123
    assert found.physical(0xC0006123) is None and found.physical(0x123) is None


def test_large_pages_only_where_they_are_enabled(pc: BiosMachine) -> None:
    entry(pc, TABLES, 0x400000 | 0x81, 4)
    assert translation(pc, cr4=PSE).physical(0x12345) == 0x412345
    entry(pc, 0x400000 + 4 * 0x12, 0x777000 | 1, 4)
    assert translation(pc).physical(0x12345) == 0x777345


def test_pae(pc: BiosMachine) -> None:
    entry(pc, TABLES + 8 * 3, 0x102000 | 1, 8)
    entry(pc, 0x102000, 0x103000 | 1, 8)
    entry(pc, 0x103000 + 8, 0x555000 | 1, 8)
    entry(pc, 0x102000 + 8, 0x600000 | 0x81, 8)
    found = translation(pc, cr4=PAE)
    assert found.physical(0xC0001007) == 0x555007
    assert found.physical(0xC0234567) == 0x634567


def test_four_levels(pc: BiosMachine) -> None:
    for level, at in enumerate((TABLES, 0x101000, 0x102000)):
        entry(pc, at + 8 * 1, 0x101000 + 0x1000 * level | 1, 8)
    entry(pc, 0x103000 + 8 * 1, 0x999000 | 1, 8)
    linear = 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12
    assert translation(pc, efer=LMA, cr4=PAE).physical(linear | 8) == 0x999008


def test_data_crosses_pages_and_holes(pc: BiosMachine) -> None:
    entry(pc, TABLES, 0x101000 | 1, 4)
    entry(pc, 0x101000 + 4 * 1, 0x201000 | 1, 4)
    entry(pc, 0x101000 + 4 * 2, 0x209000 | 1, 4)
    found = translation(pc)
    found.write(0x1FFE, b"abcd")
    assert pc.memory.read(0x201FFE, 2) == b"ab" and pc.memory.read(0x209000, 2) == b"cd"
    assert found.read(0x1FFE, 4) == b"abcd"
    assert found.read(0x2FFF, 2)[1:] == b"\xff"
    found.fill(0x2FFE, 4, lambda done, view: view.__setitem__(slice(None), b"z" * len(view)))
    assert pc.memory.read(0x209FFE, 2) == b"zz"


def test_tables_beyond_memory_are_not_present(pc: BiosMachine) -> None:
    entry(pc, TABLES, 0xF0000000 | 1, 4)
    assert translation(pc).physical(0) is not None  # ones, as the bus gives
    assert len(translation(pc).read(0, 4)) == 4


def test_an_interrupt_in_virtual_8086_mode(pc: BiosMachine) -> None:
    pc.post()
    entry(pc, TABLES, 0x101000 | 7, 4)
    for page in range(256):
        entry(pc, 0x101000 + 4 * page, page << 12 | 7, 4)
    entry(pc, 0x101000 + 4 * 2, 0x300000 | 7, 4)  # 2000h is elsewhere
    pc.processor.system.cr0, pc.processor.system.cr3 = PE | PG | 0x10, TABLES
    answer = pc.interrupt(0x15, eax=0xE820, edx=0x534D4150, ecx=20, es=0x200)
    assert not answer.carry
    assert int.from_bytes(pc.memory.read(0x300008, 8), "little") == 0x9FC00
