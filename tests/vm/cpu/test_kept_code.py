"""Code that was compiled for an earlier run: used, and the run is the same bit for bit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.tools.asm_programs import Board, SmpBoard, programs
from tests.tools.engines import ENGINES, Engine
from tests.tools.peers import requires_peer
from tests.vm.cpu.test_same_run import trace
from vdisk.vm.accel import llvm
from vdisk.vm.cpu import arena
from vdisk.vm.cpu.codegen import NativeCode, native_code
from vdisk.vm.cpu.compiler import Level
from vdisk.vm.cpu.orders import HandlersOrder
from vdisk.vm.cpu.region_store import RegionStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tools.asm_programs import Program
    from vdisk.vm.cpu.decode import Mode

PROGRAMS = {program.name: program for program in programs()}
THREADED, EAGER, QUICK = ENGINES[1:4]
SAMPLED = Engine("llvm-sampled", "vdisk.vm.accel.llvm", "LlvmAccelerator", {"hot": True})

pytestmark = requires_peer("nasm")


def store(directory: Path) -> RegionStore:
    """What a process finds that starts now."""
    return RegionStore(native_code().memory, str(directory), "x")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Callable[[str], Path]:
    """The directory in which an earlier run of a program has left its regions."""

    @functools.cache
    def run(name: str) -> Path:
        directory = tmp_path_factory.mktemp(name)
        compile_regions(PROGRAMS[name], directory)
        return directory

    return run


def compile_regions(program: Program, directory: Path) -> None:
    """A run that compiles whatever it executes."""
    board = make(EAGER, program, directory)
    try:
        board.accelerator.hotspots.use(store(directory))
        board.run()
        assert board.accelerator.hotspots.compiled > 10
    finally:
        board.close()


def make(engine: Engine, program: Program, directory: Path) -> Board:
    image, several = program.assemble(directory), program.processors > 1
    return SmpBoard(engine, image, program.processors) if several else Board(engine, image)


@pytest.mark.parametrize("name", ["long", "paging", "protected", "rep", "smc", "smp", "v86"])
def test_regions_of_an_earlier_run_are_used(name, earlier, tmp_path):
    program = PROGRAMS[name]
    board = make(SAMPLED, program, tmp_path)
    try:
        board.accelerator.hotspots.use(store(earlier(name)))
        assert board.run().splitlines() == list(program.lines)
        assert board.accelerator.hotspots.recalled > 10
    finally:
        board.close()


@pytest.mark.parametrize("name", ["long", "smc", "rep"])
def test_they_change_nothing(name, earlier, tmp_path):
    program, kept = PROGRAMS[name], store(earlier(name))

    def use_kept(board: Board) -> None:
        board.accelerator.hotspots.use(kept)

    first = trace(SAMPLED, program, tmp_path, prepare=use_kept)
    assert any(each.addresses for alike in kept.known.values() for each in alike)
    assert trace(SAMPLED, program, tmp_path, prepare=use_kept) == first
    assert trace(THREADED, program, tmp_path) == first


@pytest.mark.parametrize(("name", "records"), [("long", 1000), ("smp", 1000), ("smc", 250)])
def test_a_full_arena_takes_them_again_and_again(name, records, earlier, tmp_path, monkeypatch):
    program, kept = PROGRAMS[name], store(earlier(name))
    monkeypatch.setattr(arena, "ARENA_RECORDS", records)
    board = make(SAMPLED, program, tmp_path)
    try:
        board.accelerator.hotspots.use(kept)
        assert board.run().splitlines() == list(program.lines)
        assert board.accelerator.arena.generation > 0
        assert board.accelerator.hotspots.recalled > 10
    finally:
        board.close()


@pytest.mark.parametrize("name", ["long", "paging", "protected", "rep", "smc", "smp"])
def test_regions_are_made_better_while_a_guest_is_in_them(name, tmp_path):
    program = PROGRAMS[name]
    board = make(QUICK, program, tmp_path)
    hotspots, arena = board.accelerator.hotspots, board.accelerator.arena
    compile_ = hotspots.compile

    def compile_and_make_better(physical: int, mode: Mode) -> bool:
        done = compile_(physical, mode)
        for page, regions in list(arena.regions.items()):
            for address in {arena.handler(region.record) for region in regions}:
                kept = hotspots.store.quick.get(address)
                if kept is not None and hotspots.compiled % 4 == 0:
                    hotspots._make_best(kept, page)
        return done

    hotspots.compile = compile_and_make_better
    try:
        assert board.run().splitlines() == list(program.lines)
        assert hotspots.refined > 10
    finally:
        board.close()


def test_handlers_are_made_fine_for_later_runs(tmp_path, monkeypatch):
    program = PROGRAMS["straight"]
    rough = NativeCode(str(tmp_path))
    run_with(rough, program, tmp_path, monkeypatch)
    count = 0
    while shapes := rough.next_rough():
        count += len(shapes)
        names = [shape.symbol for shape in shapes]
        rough.keep(names, rough.carry_out(HandlersOrder(shapes)), Level.FINE)
    assert count > 20
    later = NativeCode(str(tmp_path))
    run_with(later, program, tmp_path, monkeypatch)
    assert not later.next_rough()
    assert later.memory.used < rough.memory.used


@pytest.mark.parametrize("name", ["long", "faults", "protected", "rep", "smc"])
def test_fine_handlers(name, tmp_path, monkeypatch):
    run_with(NativeCode(None, Level.FINE), PROGRAMS[name], tmp_path, monkeypatch)


def run_with(code: NativeCode, program: Program, directory: Path, monkeypatch) -> None:
    monkeypatch.setattr(llvm, "native_code", lambda *_: code)
    board = make(THREADED, program, directory)
    try:
        assert board.run().splitlines() == list(program.lines)
    finally:
        board.close()
