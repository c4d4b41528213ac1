"""Breakpoints: a request is held at its event until it is let go, and others pass."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from vdisk.filters.breakpoints import Breakpoints
from vdisk.filters.faults import Faults
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = 60.0


def started(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_a_write_is_held_in_the_middle() -> None:
    disk = Faults(MemoryStore(4096))
    disk.breakpoints.set("pwritev", "A")
    thread = started(lambda: disk.write(0, b"held"))
    assert disk.breakpoints.wait("A", LONG)
    disk.write(512, b"passes")  # the breakpoint is for one request
    assert disk.read(0, 4) == bytes(4)
    assert disk.read(512, 6) == b"passes"
    assert disk.breakpoints.resume("A")
    thread.join(LONG)
    assert disk.read(0, 4) == b"held"
    assert not disk.breakpoints.resume("A")


def test_one_tag_for_several_requests_lets_them_go_one_by_one() -> None:
    points, passed = Breakpoints(), []
    for _ in range(2):
        points.set("event", "A")
        points.meet("another")
    points.remove("A")
    assert not points.remove("A")
    points.set("event", "A")
    first = started(lambda: (points.meet("event"), passed.append(1)))
    assert points.wait("A", LONG)
    points.set("event", "B")
    second = started(lambda: (points.meet("event"), passed.append(2)))
    assert points.wait("B", LONG)
    assert points.resume("B")
    second.join(LONG)
    assert passed == [2]
    assert points.remove("A")
    first.join(LONG)
    assert passed == [2, 1]


def test_everything_is_let_go_at_the_end() -> None:
    points = Breakpoints()
    points.set("event", "A")
    thread = started(lambda: points.meet("event"))
    assert points.wait("A", LONG)
    points.clear()
    thread.join(LONG)
    assert not thread.is_alive()
    points.meet("event")


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_waiting_ends_without_a_request(seconds: float) -> None:
    points = Breakpoints()
    points.set("event", "A")
    assert not points.wait("A", seconds)
