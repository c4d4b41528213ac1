"""A few stories that the power ends, and that a story is made of its number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fuzz import cuts
from fuzz.cuts import CutRun
from tests.tools.cutting import Thoroughness
from tests.tools.peers import requires_peer
from vdisk.formats._qcow2.core import Core

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img")

STORIES = 12


@pytest.fixture(autouse=True)
def few_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "HOW", Thoroughness(points=4, disks=6))


def test_stories(tmp_path: Path) -> None:
    short = CutRun(3, tmp_path)
    for number in range(STORIES):
        short.one(number)
    assert 0 < short.counts["with a fault"] < STORIES
    assert f"{STORIES} stories" in short.report()
    again = CutRun(3, tmp_path)
    for number in range(STORIES):
        again.one(number)
    assert again.counts == short.counts


def test_a_missing_barrier_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "barrier", lambda _core: None)
    with pytest.raises(AssertionError):
        CutRun(3, tmp_path).run(30)
