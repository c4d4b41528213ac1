"""The lock that many share or one holds alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.tools.patience import PATIENCE
from vdisk.formats._gate import Gate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

SOON = 0.2
"""Seconds after which what has not happened is taken to be waiting."""


class Entering:
    """A thread that enters a gate, and leaves it when told to."""

    def __init__(self, way: AbstractContextManager[None]) -> None:
        self._inside, self._leave = threading.Event(), threading.Event()
        self._way = way
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._way:
            self._inside.set()
            self._leave.wait(PATIENCE)

    @property
    def waits(self) -> bool:
        return not self._inside.wait(SOON)

    def is_let_in(self) -> bool:
        return self._inside.wait(PATIENCE)

    def leave(self, *others: Entering) -> None:
        """With the others, in whatever order they come in."""
        for each in (self, *others):
            each._leave.set()
        for each in (self, *others):
            each._thread.join(PATIENCE)


@pytest.mark.parametrize("fair", [False, True])
def test_many_share_and_one_alone_waits_for_all_of_them(fair: bool) -> None:
    gate = Gate(fair=fair)
    first, second = Entering(gate.shared), Entering(gate.shared)
    assert first.is_let_in() and second.is_let_in()
    alone = Entering(gate.alone)
    assert alone.waits
    first.leave()
    assert alone.waits
    second.leave()
    assert alone.is_let_in()
    alone.leave()


@pytest.mark.parametrize("fair", [False, True])
def test_nobody_enters_beside_one_alone(fair: bool) -> None:
    gate = Gate(fair=fair)
    alone = Entering(gate.alone)
    assert alone.is_let_in()
    shared, other = Entering(gate.shared), Entering(gate.alone)
    assert shared.waits and other.waits
    alone.leave()
    shared.leave(other)
    assert shared.is_let_in() and other.is_let_in()


def test_the_holder_may_enter_again_either_way() -> None:
    gate = Gate()
    with gate.alone:
        with gate.alone, gate.shared:
            pass
        shared = Entering(gate.shared)
        assert shared.waits
    assert shared.is_let_in()
    shared.leave()


@pytest.mark.parametrize("fair", [False, True])
def test_whoever_waits_to_be_alone_is_passed_only_where_that_is_unfair(fair: bool) -> None:
    gate = Gate(fair=fair)
    first = Entering(gate.shared)
    assert first.is_let_in()
    alone = Entering(gate.alone)
    assert alone.waits
    newcomer = Entering(gate.shared)
    assert newcomer.waits is fair
    first.leave(newcomer, alone)
    assert newcomer.is_let_in() and alone.is_let_in()
