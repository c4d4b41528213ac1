"""Whatever registers and memory a guest comes with, a service returns soon and without an error."""

from __future__ import annotations

import random

import pytest

from tests.tools.bios_machine import BiosMachine
from vdisk.vm._bios.rom import build

TRAPS = sorted(set(build().traps.values()) - {"post"})
REGISTERS = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")
CALLS = 200
SLOW = {"print_screen": 10, "video": 40}  # whole screens, cell by cell
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xE0, 0xFF, 0x100, 0x4F00, 0x7FFF, 0x8000, 0xFFFF, 0x534D4150)
DATA_AREAS = ((0x400, 0x100), (0x9FC00, 0x100), (0x0, 0x400))


def machine() -> BiosMachine:
    pc = BiosMachine(
        memory=4 << 20,
        disks=[bytes(1 << 20)],
        floppies=[bytes(1440 << 10)],
        cdroms=[bytes(1 << 20)],
    )
    pc.post()
    return pc


def value(chance: random.Random) -> int:
    kind = chance.random()
    if kind < 0.4:
        return chance.choice(INTERESTING)
    if kind < 0.8:
        return chance.getrandbits(16)
    return chance.getrandbits(32)


def call(pc: BiosMachine, chance: random.Random, trap: str, number: int) -> None:
    registers = {name: value(chance) for name in REGISTERS}
    if trap in {"disk", "video", "system", "keyboard", "time_of_day", "serial", "printer"}:
        registers["eax"] = number << 8 & 0xFF00 | chance.getrandbits(8)
    segments = {"es": chance.getrandbits(16), "ds": chance.getrandbits(16)}
    pc.trap(trap, flags=chance.getrandbits(16), **segments, **registers)


@pytest.mark.parametrize("trap", TRAPS)
def test_any_registers(trap: str) -> None:
    chance = random.Random(trap)
    pc = machine()
    for number in range(256 if trap == "video" else SLOW.get(trap, CALLS)):
        call(pc, chance, trap, number)


@pytest.mark.parametrize("trap", TRAPS)
def test_any_data_areas(trap: str) -> None:
    chance = random.Random(trap)
    pc = machine()
    for number in range(SLOW.get(trap, CALLS)):
        if number % 10 == 0:
            start, length = chance.choice(DATA_AREAS)
            pc.memory.write(start, chance.randbytes(length))
        call(pc, chance, trap, chance.getrandbits(8))


@pytest.mark.parametrize("trap", TRAPS)
def test_any_page_tables(trap: str) -> None:
    chance = random.Random(trap)
    pc = machine()
    pc.memory.write(0x100000, chance.randbytes(0x10000))
    for number in range(SLOW.get(trap, CALLS) // 4):
        pc.processor.system.cr0 = 1 | chance.getrandbits(1) << 31
        pc.processor.system.cr3 = chance.choice((0x100000, chance.getrandbits(32)))
        pc.processor.system.cr4 = chance.getrandbits(6)
        pc.processor.system.efer = chance.choice((0, 0x400))
        call(pc, chance, trap, number)
