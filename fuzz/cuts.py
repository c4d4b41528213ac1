"""Every cut, for as long as wanted: random operations and jobs, often after a random fault.

  python -m fuzz.cuts --time 600 --seed 7     for ten minutes
  python -m fuzz.cuts --story 7000042         that very story again

Each story is made of its number alone: which operation on which image (or which job, or which
repair), which request fails before the power does, and which of the disks that a cut can leave are
tried; all of them where they are few (:mod:`tests.tools.cutting` says what has to hold).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.session import parser_of
from tests.tools.cutting import OperationStory, Thoroughness, random_fault, try_cuts
from tests.tools.cutting_jobs import CHANGED, JOBS, MENDABLE, JobStory, RepairStory
from tests.tools.scenes import CASES, SCENES, scene_called

if TYPE_CHECKING:
    from tests.tools.cutting import Story

HOW = Thoroughness(points=24, disks=48)
LARGE = Thoroughness(points=4, disks=8)
"""For an image of some megabytes."""
FAULTY = 0.5
"""The share of stories in which a request fails."""
REQUESTS = 60
"""The last request that is made to fail: few operations make more."""


class CutRun:
    """Stories for some time.  ``counts``: how many of what."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.folder = folder
        self.counts: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.one(self.seed * 1_000_000 + self.counts["stories"])

    def one(self, number: int) -> None:
        """Tell one story and try its ends."""
        rng = random.Random(number)
        try:
            story, how = self._story(rng)
            try_cuts(story, rng, how, self.folder, self.counts)
        except BaseException:
            print(f"again: python -m fuzz.cuts --story {number}", flush=True)
            raise
        self.counts["stories"] += 1

    def _story(self, rng: random.Random) -> tuple[Story, Thoroughness]:
        fault = random_fault(rng, REQUESTS) if rng.random() < FAULTY else None
        self.counts["with a fault"] += fault is not None
        match rng.randrange(10):
            case 0:
                job = rng.choice(JOBS)
                faulty = rng.choice(CHANGED.get(job, ["target"]))
                return JobStory(job, self.folder, fault, faulty), HOW
            case 1:
                return RepairStory(rng.choice(MENDABLE), fault), HOW
            case _:
                name, operation = rng.choice(CASES)
                scene = scene_called(name)
                story = OperationStory(scene, operation, fault, rng.choice(scene.changing))
                return story, LARGE if "filled" in SCENES[name] else HOW

    def report(self) -> str:
        counts = self.counts
        return (
            f"{counts['stories']} stories, {counts['with a fault']} of them with a fault; "
            f"{counts['points']} points cut at, {counts['exhausted']} of them exhaustively; "
            f"{counts['disks']} disks, {counts['seen by qemu-img']} of them seen by qemu-img, too"
        )


def main() -> int:
    parser = parser_of("cuts", __doc__, "stories")
    parser.add_argument("--story", type=int, default=None, help="this one only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vdisk-cuts-") as folder:
        run = CutRun(args.seed, Path(folder))
        try:
            if args.story is not None:
                run.one(args.story)
            else:
                print(f"{args.time:g} s of cuts; seed {args.seed}", flush=True)
                run.run(args.time)
        finally:
            print(run.report(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
