"""Assembly guests for what no single instruction shows: modes, paging, faults, gates, tasks.

Each runs on every engine, and once in QEMU, which has to agree but where its source says that
and how it differs from the manual.
"""

from __future__ import annotations

import pytest

from tests.tools.asm_programs import Board, SmpBoard, programs, run_qemu
from tests.tools.engines import ENGINES
from tests.tools.peers import requires_peer
from vdisk.vm.accel import kvm_probe

PROGRAMS = programs()
EMULATED = {"rep", "smc", "straight", "triple"}
"""What even a KVM gets right that emulates: others lack exceptions by instructions (INT3, UD2),
far transfers, x87, limits of segments, or another processor's APIC."""
NOT_UNDER_KVM = {"mwait": "KVM keeps MONITOR and MWAIT to itself"}
"""Programs of what KVM does not tell guests that they have."""


@requires_peer("nasm")
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_on_an_engine(engine, program, tmp_path):
    engine.require()
    if engine.name == "kvm":
        reason = kvm_probe.problem()
        if program.name in NOT_UNDER_KVM:
            pytest.skip(NOT_UNDER_KVM[program.name])
        if reason and program.name not in EMULATED:
            pytest.skip(f"{program.name}: {reason}")
    image = program.assemble(tmp_path)
    several = program.processors > 1
    board = SmpBoard(engine, image, program.processors) if several else Board(engine, image)
    try:
        assert board.run().splitlines() == list(program.lines)
    finally:
        board.close()


@requires_peer("nasm", "qemu-system-x86_64")
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_qemu_agrees(program, tmp_path):
    if program.not_in_qemu:
        pytest.skip(program.not_in_qemu)
    program.assemble(tmp_path)
    said = run_qemu(tmp_path / f"{program.name}.bin", program.processors)
    assert said.splitlines() == list(program.qemu_lines)
