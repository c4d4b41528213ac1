"""Every cut of every writing operation, alone and after a fault; and of the jobs made of them.

The same operations on the same images as those whose requests are made to fail.  Law, for the
files that a cut can leave: the image opens, ``check`` finds leaks at most, and frees them; every
sector is old or new, new if that was acknowledged; snapshots are all there and whole; bitmaps are
right or inconsistent by their own account; it can be written.  qemu-img agrees on a sample.

Of all cuts a sample by seed is tried; ``make cuts TIME=…`` goes on for as long as wanted.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.tools import cutting
from tests.tools.cutting import OperationStory, Story, Thoroughness, random_fault, try_cuts
from tests.tools.cutting_jobs import CHANGED, JOBS, MENDABLE, Job, JobStory, RepairStory
from tests.tools.peers import requires_peer
from tests.tools.scenes import CASES, Operation, scene_called, write_in_place
from vdisk.formats._qcow2.core import Core

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img")

FAULTS = 2
"""Times that each operation fails somewhere before the power does."""


def attempt(story: Story, seed: str, folder: Path, how: Thoroughness | None = None) -> int:
    counts: Counter[str] = Counter()
    try_cuts(story, random.Random(seed), how or Thoroughness(), folder, counts)
    assert counts["seen by qemu-img"] > 0
    return counts["disks"]


@pytest.mark.parametrize(("name", "operation"), CASES)
def test_operations(tmp_path: Path, name: str, operation: Operation) -> None:
    scene, seed = scene_called(name), f"{name} {operation.__name__}"
    assert attempt(OperationStory(scene, operation), seed, tmp_path) >= 6
    rng = random.Random(seed)
    for number in range(FAULTS):
        fault = random_fault(rng, 20)
        story = OperationStory(scene, operation, fault, rng.choice(scene.changing))
        try:
            attempt(story, f"{seed} {number}", tmp_path, Thoroughness(3, 6))
        except BaseException as error:
            error.add_note(str(fault))
            raise


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_jobs(tmp_path: Path, job: Job) -> None:
    assert attempt(JobStory(job, tmp_path), job.__name__, tmp_path, Thoroughness(None, 8)) > 30
    rng = random.Random(job.__name__)
    for number in range(3):
        fault = random_fault(rng, 30)
        faulty = rng.choice(CHANGED.get(job, ["target"]))
        story = JobStory(job, tmp_path, fault, faulty)
        attempt(story, f"{job.__name__} {number}", tmp_path, Thoroughness(4, 8))


@pytest.mark.parametrize("name", MENDABLE)
def test_repairs(tmp_path: Path, name: str) -> None:
    assert attempt(RepairStory(name), name, tmp_path, Thoroughness(None, 6)) > 10
    fault = random_fault(random.Random(name), 60)
    attempt(RepairStory(name, fault), name, tmp_path, Thoroughness(4, 4))


# -- that a cut is noticed -------------------------------------------------------------------------


def test_a_missing_barrier_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "barrier", lambda _core: None)
    with pytest.raises(AssertionError):
        for name, operation in CASES[:26]:
            attempt(OperationStory(scene_called(name), operation), name, tmp_path)


def test_a_flush_that_does_nothing_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Core, "_flush_devices", lambda _core: None)
    story = OperationStory(scene_called("512-byte clusters"), write_in_place)
    with pytest.raises(AssertionError):
        attempt(story, "", tmp_path)


def test_qemu_is_asked_every_so_often(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    story = OperationStory(scene_called("512-byte clusters"), write_in_place)
    try_cuts(story, random.Random(0), Thoroughness(None, 64), tmp_path, counts)
    assert counts["exhausted"] > counts["points"] // 2
    assert counts["seen by qemu-img"] == -(-counts["disks"] // cutting.QEMU_EVERY)
