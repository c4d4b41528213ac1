"""A short soak, and that a soak notices what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fuzz import soak
from fuzz.soak import Life, Soak
from tests.tools.peers import requires_peer
from vdisk.formats._qcow2.allocation import Writer
from vdisk.formats._qcow2.bitmap_bits import Marks
from vdisk.formats._qcow2.core import Core

if TYPE_CHECKING:
    from pathlib import Path

LIVES = 12


@requires_peer("qemu-img")
def test_lives(tmp_path: Path) -> None:
    short = Soak(7, tmp_path)
    for number in range(LIVES):
        short.one(number)
    assert short.events["write"] > 3 * LIVES
    assert short.events["crashes"] > LIVES
    assert short.events["faults"] > LIVES
    assert short.events["errors"] > 0


@requires_peer("qemu-img")
def test_threads_and_servers_between_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "TOGETHER", 1)
    short = Soak(7, tmp_path)
    short.run(0.01)
    assert short.lives == 1
    assert short.events["servers killed"] == 1
    assert short.events["hammered requests"] > 0
    assert "1 lives" in short.report()


def test_a_life_is_made_of_its_seed() -> None:
    twins = [Life(5), Life(5)]
    for twin in twins:
        twin.live()
    assert twins[0].events == twins[1].events
    assert twins[0].initial == twins[1].initial


def live_some() -> None:
    for seed in range(60):
        Life(seed).live()


def test_a_flush_that_does_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "_flush_devices", lambda _core: None)
    with pytest.raises(AssertionError):
        live_some()


def test_a_write_that_is_not_recorded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marks, "add", lambda *_anything: None)
    with pytest.raises(AssertionError, match="not recorded"):
        live_some()


def test_zeroes_that_are_not_written_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "write_zeroes", lambda *_anything: None)
    with pytest.raises(AssertionError):
        live_some()


def test_growth_is_noticed(tmp_path: Path) -> None:
    grown = Soak(1, tmp_path)
    grown.lives = soak.WARM_UP
    grown._check_growth()
    grown._check_growth()
    with (tmp_path / "more").open("wb"), pytest.raises(AssertionError, match="descriptors"):
        grown._check_growth()
    ballast = b"x" * (soak.ROOM_TO_GROW + (8 << 20))
    with pytest.raises(AssertionError, match="memory"):
        grown._check_growth()
    assert len(ballast) > soak.ROOM_TO_GROW
