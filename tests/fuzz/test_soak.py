"""A short soak, and that a soak notices what it is for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fuzz import soak
from fuzz.life import Life
from fuzz.soak import Soak
from fuzz.together import KILLS, Together
from tests.tools.peers import requires_peer
from vdisk.errors import CorruptImageError
from vdisk.formats._qcow2.bitmap_bits import Marks
from vdisk.formats._qcow2.core import Core
from vdisk.formats._qcow2.zeroing import Writer

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
def test_what_happens_together(tmp_path: Path) -> None:
    trials = Together(tmp_path)
    for trial in (trials.servers, trials.threads, trials.processes):
        trial(tmp_path / f"image-{trial.__name__}", random.Random(1))
    assert trials.counts["servers killed"] == KILLS
    assert trials.counts["hammered requests"] > 0
    assert trials.counts["processes killed"] == 2
    assert trials.counts["times a process had the image"] > 0


@requires_peer("qemu-img")
def test_a_soak_has_lives_and_what_happens_together(tmp_path: Path) -> None:
    short = Soak(7, tmp_path)
    short.run(lives=3)
    assert short.lives == 3
    assert short.together.counts["trials"] > 0
    assert "3 lives" in short.report()


def digest(seed: int, hashes: str) -> bytes:
    """Of a few lives in a process whose sets are in an order of its own."""
    words = [sys.executable, "-c", f"from fuzz.life import Life; l = Life({seed}); l.live(); "]
    words[-1] += "print(l.digest().hex())"
    done = subprocess.run(
        words, env={**os.environ, "PYTHONHASHSEED": hashes}, capture_output=True, check=True
    )
    return done.stdout


def test_a_life_is_made_of_its_seed() -> None:
    assert digest(5, "1") == digest(5, "2")
    assert digest(5, "1") != digest(6, "1")


def live_some() -> None:
    for seed in range(60):
        Life(seed).live()


def test_a_flush_that_does_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "_flush_devices", lambda _core: None)
    with pytest.raises((AssertionError, CorruptImageError)):
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
    grown._check_growth()
    grown._check_growth()
    with (tmp_path / "more").open("wb"), pytest.raises(AssertionError, match="descriptors"):
        grown._check_growth()
    ballast = b"x" * (soak.ROOM_TO_GROW + (8 << 20))
    with pytest.raises(AssertionError, match="memory"):
        grown._check_growth()
    assert len(ballast) > soak.ROOM_TO_GROW
