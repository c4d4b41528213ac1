"""An arena too small for the guest: everything is dropped, and the guest notices nothing."""

from __future__ import annotations

import pytest

from tests.tools.asm_programs import Board, SmpBoard, programs
from tests.tools.engines import ENGINES
from tests.tools.peers import requires_peer
from vdisk.vm.cpu import arena

SMALL = {"smc": 250}
"""Programs that need less than 700 records: what they change is dropped block by block."""
PROGRAMS = {program.name: program for program in programs()}


@requires_peer("nasm")
@pytest.mark.parametrize("limits", [(700, 16384), (1 << 16, 3)], ids=["records", "arrays"])
@pytest.mark.parametrize("name", ["long", "smc", "smp"])
@pytest.mark.parametrize("engine", ENGINES[:3], ids=str)
def test_everything_is_dropped_again_and_again(engine, name, limits, tmp_path, monkeypatch):
    slow = {"llvm-hot": {"long", "smp"}, "interp": {"smc", "long"}}
    if name in slow.get(engine.name, ()):
        pytest.skip("making everything again and again takes too long")
    records = SMALL.get(name, limits[0]) if limits[0] < 1 << 16 else limits[0]
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
