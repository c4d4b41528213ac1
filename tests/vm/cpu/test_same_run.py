"""The same program gives the same run, whatever engine executes it and whoever interrupts it.

The run is cut into slices of a budget; registers and the count of instructions after each of them,
and memory in the end, are compared bit for bit.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import pytest

from tests.tools.asm_programs import IMAGE_SIZE, MEMORY_SIZE, Board, programs
from tests.tools.engines import ENGINES, Engine
from tests.tools.peers import requires_peer
from vdisk.vm.accel.base import VcpuExit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tools.asm_programs import Program

PROGRAMS = {program.name: program for program in programs()}
INTERP, THREADED, HOT = ENGINES[:3]
SAMPLED = Engine("llvm-sampled", "vdisk.vm.accel.llvm", "LlvmAccelerator", {"hot": True})
"""Both tiers, the second one in the background as it comes."""
SLICE = 1009
MOST_SLICES = 3000

pytestmark = requires_peer("nasm")


def trace(
    engine: Engine,
    program: Program,
    directory: Path,
    *,
    disturbed: bool = False,
    prepare: Callable[[Board], None] | None = None,
) -> list[object]:
    """What a run looks like after each slice, and its memory in the end."""
    board = Board(engine, program.assemble(directory))
    if prepare is not None:
        prepare(board)
    vcpu = board.vcpu
    vcpu.timestamp_source = lambda: vcpu.instructions
    over = threading.Event()
    disturber = threading.Thread(target=_disturb, args=(vcpu, over))
    found: list[object] = []
    try:
        if disturbed:
            disturber.start()
        while not board.exited and len(found) < MOST_SLICES:
            result = vcpu.run(SLICE)
            registers, system = vcpu.get_registers(), vcpu.get_system_registers()
            found.append((result, vcpu.instructions, registers.gprs, registers.rip))
            found.append((registers.rflags, system.cr0, system.cr2, system.cr3, system.ss))
            if result in {VcpuExit.SHUTDOWN, VcpuExit.HLT}:
                break
    finally:
        over.set()
        if disturbed:
            disturber.join()
        board.close()
    found.append(bytes(board.said))
    found.append(hashlib.sha256(board.memory.read(0, MEMORY_SIZE)).hexdigest())
    return found


def _disturb(vcpu, over: threading.Event) -> None:
    """What the second tier's sampler does, and more often."""
    while not over.wait(0.0002):
        vcpu.sample()


@pytest.mark.parametrize("name", ["rep", "smc", "long", "debug", "straight", "real_interrupts"])
@pytest.mark.parametrize("engine", [THREADED, SAMPLED], ids=str)
def test_twice_the_same_run(engine, name, tmp_path):
    program = PROGRAMS[name]
    first = trace(engine, program, tmp_path)
    assert trace(engine, program, tmp_path) == first
    assert trace(engine, program, tmp_path, disturbed=True) == first


ENDS = 3
"""Of a trace: the last flags and system registers, output, memory.  (How many elements of repeated
instructions are done, and counted, at once is the engine's affair.)"""


@pytest.mark.parametrize(("engine", "name"), [(INTERP, "real"), (INTERP, "long"), (HOT, "smc")])
def test_every_engine_ends_alike(engine, name, tmp_path):
    program = PROGRAMS[name]
    one, other = trace(engine, program, tmp_path), trace(THREADED, program, tmp_path)
    assert one[-ENDS:] == other[-ENDS:]


CODE = 0x1000
BLOCKS = b"".join(bytes([0x40 + register, 0xEB, 0x00]) for register in range(8))
"""INC AX, JMP to the next; INC CX, and so on: blocks of two instructions in 16-bit mode."""


@pytest.mark.parametrize("engine", [INTERP, THREADED], ids=str)
@pytest.mark.parametrize("budget", range(1, 7))
def test_a_run_ends_where_it_does_whether_its_code_was_known_or_not(engine, budget):
    """Code is left where there is something to learn, be that at the budget's very end."""
    board = Board(engine, bytes(IMAGE_SIZE))
    board.memory.write(CODE, BLOCKS + b"\xf4")
    ends = []
    try:
        for _ in range(3):
            system, registers = board.vcpu.get_system_registers(), board.vcpu.get_registers()
            system.cs.selector, system.cs.base, registers.rip = 0, 0, CODE
            board.vcpu.set_system_registers(system)
            board.vcpu.set_registers(registers)
            before = board.vcpu.instructions
            assert board.vcpu.run(budget) is VcpuExit.INTERRUPTED
            ends.append((board.vcpu.instructions - before, board.vcpu.get_registers().rip))
    finally:
        board.close()
    assert len(set(ends)) == 1
    assert ends[0][0] >= budget
