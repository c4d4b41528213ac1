"""A processor that spins with PAUSE leaves the host's core to others."""

from __future__ import annotations

import threading
import time

import pytest

from tests.tools.asm_programs import SmpBoard, programs
from tests.tools.engines import ENGINES
from tests.tools.peers import requires_peer
from vdisk.vm.accel import spinning
from vdisk.vm.accel.spinning import Spinning
from vdisk.vm.cpu.semantics.machine import PAUSES

SPINNING = next(program for program in programs() if program.name == "spinning")


@requires_peer("nasm")
@pytest.mark.parametrize("engine", ENGINES[1:2], ids=str)
def test_the_one_that_waits_rests(engine, tmp_path, monkeypatch):
    """For most of its time, however busy the host is."""
    board = SmpBoard(engine, SPINNING.assemble(tmp_path), SPINNING.processors)
    waiting = board.processors[1].vcpu
    passed, rested, threads = [0.0], {}, set()

    def run(budget=None, run=waiting.run):
        threads.add(threading.get_ident())
        began = time.monotonic()
        try:
            return run(budget)
        finally:
            passed[0] += time.monotonic() - began

    def give_way(spinning, budget, give_way=Spinning.give_way):
        began, thread = time.monotonic(), threading.get_ident()
        give_way(spinning, budget)
        rested[thread] = rested.get(thread, 0.0) + time.monotonic() - began

    waiting.run = run  # type: ignore[method-assign]
    monkeypatch.setattr(Spinning, "give_way", give_way)
    try:
        assert board.run().splitlines() == list(SPINNING.lines)
    finally:
        board.close()
    (thread,) = threads
    assert rested.get(thread, 0.0) > passed[0] / 2


@pytest.fixture
def slept(monkeypatch):
    """What it has slept; yielding is -1."""
    pauses: list[float] = []
    monkeypatch.setattr(spinning.time, "sleep", pauses.append)
    monkeypatch.setattr(spinning, "_yield", lambda: pauses.append(-1))
    return pauses


def test_it_yields_first_and_sleeps_then(slept):
    one = Spinning()
    for count in range(30):
        one.give_way(10**9 - count * 5 * PAUSES)
    assert slept[: spinning.YIELDS] == [-1] * spinning.YIELDS
    naps = slept[spinning.YIELDS :]
    assert naps == sorted(naps) and naps[0] > 0 and naps[-1] == spinning.LONGEST


def test_other_work_in_between_is_no_spinning(slept):
    one = Spinning()
    for count in range(30):
        one.give_way(10**9 - count * 100 * PAUSES)
    assert not slept


def test_a_new_budget_is_no_spinning(slept):
    one = Spinning()
    for _ in range(30):
        one.give_way(10**9)
        one.give_way(10**9 - 5 * PAUSES)
    assert set(slept) <= {-1}
