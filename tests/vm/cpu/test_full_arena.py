"""An arena too small for the guest: everything is dropped, and the guest notices nothing."""

from __future__ import annotations

import pytest

from tests.tools.asm_programs import Board, SmpBoard, programs
from tests.tools.engines import ENGINES
from tests.tools.peers import requires_peer
from vdisk.vm.cpu import arena

RECORDS = {"smc": 250, "sysenter": 300, "spinning": 200}
"""Of programs that need less than twice 700 records (of smc, what it changes is dropped block by
block): how many there are for them."""
PROGRAMS = {program.name: program for program in programs()}
NAMES = ("long", "smc", "smp")
SHORT = {"long": "sysenter", "smp": "spinning"}
"""What the second tier gets instead, which compiles all of it each time."""
CASES = [
    (engine, SHORT.get(name, name) if engine.name == "llvm-hot" else name)
    for engine in ENGINES[:3]
    for name in NAMES
]


@requires_peer("nasm")
@pytest.mark.parametrize("limits", [(700, 16384), (1 << 16, 3)], ids=["records", "arrays"])
@pytest.mark.parametrize(("engine", "name"), CASES, ids=[f"{e}-{n}" for e, n in CASES])
def test_everything_is_dropped_again_and_again(engine, name, limits, tmp_path, monkeypatch):
    records = RECORDS.get(name, limits[0]) if limits[0] < 1 << 16 else limits[0]
    monkeypatch.setattr(arena, "ARENA_RECORDS", records)
    monkeypatch.setattr(arena, "CODE_ARRAYS", limits[1])
    program = PROGRAMS[name]
    image, several = program.assemble(tmp_path), program.processors > 1
    board = SmpBoard(engine, image, program.processors) if several else Board(engine, image)
    try:
        assert board.run().splitlines() == list(program.lines)
        assert board.accelerator.arena.generation > 0
    finally:
        board.close()
