"""What is learned while a machine runs is saved in time, and not all the time."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.tools.patience import PATIENCE
from tests.unit.vm.cpu.test_translate import bench
from vdisk.vm.accel import keeper as module
from vdisk.vm.accel.interp import InterpAccelerator
from vdisk.vm.accel.keeper import Keeper
from vdisk.vm.cpu import known_store
from vdisk.vm.cpu.known_store import InstructionStore

FEW, MORE = 4, 20


def code(first: int, count: int) -> bytes:
    """So many different instructions, and a return."""
    return b"".join(b"\xb0" + bytes([first + each]) for each in range(count)) + b"\xc3"


@pytest.fixture
def it(monkeypatch):
    monkeypatch.setattr(known_store, "WORTH_KEEPING", FEW)
    with bench(InterpAccelerator) as made:
        yield made


@pytest.fixture
def keeper(it, tmp_path):
    store = InstructionStore(str(tmp_path), "1")
    return Keeper(store, it.engine.translator, it.engine.lock)


def in_file(keeper) -> int:
    """How many instructions a run finds that starts now."""
    directory = os.path.dirname(keeper._store.path)
    with bench(InterpAccelerator) as later:
        InstructionStore(directory, "1").load(later.engine.translator)
        return later.arena.known.count


def test_what_is_learned_is_saved(it, keeper):
    keeper.look()
    assert in_file(keeper) == 0
    it.translate(code(0, MORE))
    keeper.look()
    assert in_file(keeper) == MORE + 1


def test_a_little_more_is_saved_when_no_more_comes(it, keeper):
    it.translate(code(0, 3 * MORE))
    keeper.look()
    kept = in_file(keeper)
    assert kept == 3 * MORE + 1
    it.translate(code(100, MORE // 2))  # less than a quarter
    keeper.look()
    assert in_file(keeper) == kept
    keeper.look()
    assert in_file(keeper) == kept + MORE // 2
    written = os.stat(keeper._store.path).st_mtime_ns
    it.translate(code(200, FEW - 1))  # not worth a file
    keeper.look()
    keeper.look()
    assert os.stat(keeper._store.path).st_mtime_ns == written


def test_the_rest_is_saved_at_the_end(it, keeper):
    it.translate(code(0, MORE))
    keeper.close()
    assert in_file(keeper) == MORE + 1


def test_it_looks_by_itself_until_it_is_closed(it, keeper, monkeypatch):
    monkeypatch.setattr(module, "PERIOD", 0.01)
    before = set(threading.enumerate())
    keeper.start()
    keeper.start()
    (started,) = set(threading.enumerate()) - before
    it.translate(code(0, MORE))
    deadline = time.monotonic() + PATIENCE
    while in_file(keeper) <= MORE:
        assert time.monotonic() < deadline
    keeper.close()
    assert not started.is_alive()


def test_a_file_is_whole_however_much_is_learned_meanwhile(it, keeper, monkeypatch):
    written = InstructionStore._write

    def write(store, parts):
        it.translate(code(100, MORE))  # by another thread, really
        written(store, parts)

    monkeypatch.setattr(InstructionStore, "_write", write)
    it.translate(code(0, MORE))
    keeper.look()
    assert in_file(keeper) == MORE + 1
