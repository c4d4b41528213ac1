"""Many at once: threads, processes and servers that are killed, for as long as wanted.

  python -m fuzz.together --time 3600 --seed 7

Trials by chance, each on an image of its own:

- *servers*: ``vdisk-nbd serve`` is killed (-9) under load again and again, while a client keeps
  account of what it was told (:mod:`tests.tools.killing`);
- *threads* read, write, take snapshots and resize at once (:mod:`tests.tools.hammer`);
- *processes* want the image for themselves, and some are killed while they have it
  (:mod:`tests.tools.contending`).

What the system decides is not in the seed: a trial that fails is tried again by its seed, and may
succeed then.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.tools import images
from tests.tools.contending import contend
from tests.tools.hammer import Hammer, often_switching
from tests.tools.killing import Killing

SIZE = 4 << 20
KILLS = 6
"""Times that a server of one image is killed."""
SECONDS = 1.0
"""How long threads hammer one image, and processes contend for one."""

OPTIONS: list[dict[str, Any]] = [
    {},
    {"cluster_size": 4096},
    {"cluster_size": 512},
    {"cluster_size": 4096, "lazy_refcounts": True},
    {"cluster_size": 16384, "extended_l2": True},
    {"cluster_size": 4096, "refcount_bits": 1},
]


class Together:
    """Trials in ``folder``; ``counts``: how many of what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()

    def run(self, seconds: float, seed: int) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.one(f"{seed} {self.counts['trials']}")

    def one(self, seed: str) -> None:
        """One trial of some kind."""
        rng = random.Random(seed)
        trial = rng.choice([self.servers, self.servers, self.threads, self.processes])
        path = self.folder / "image"
        try:
            trial(path, rng)
        except BaseException:
            print(f"together: the trial of {trial.__name__} with seed {seed!r} failed", flush=True)
            raise
        self.counts["trials"] += 1
        for left in self.folder.glob("image*"):
            left.unlink()

    def servers(self, path: Path, rng: random.Random) -> None:
        raw = rng.random() < 0.2
        options = {} if raw else rng.choice(OPTIONS)
        trial = Killing(path, SIZE, rng.randrange(1 << 30), "raw" if raw else "qcow2", **options)
        for _ in range(KILLS):
            trial.round()
            self.counts["servers killed"] += 1
        self.counts["requests answered"] += trial.answered
        self.counts["flushes answered"] += trial.flushes

    def threads(self, path: Path, rng: random.Random) -> None:
        options = rng.choice(OPTIONS)
        images.create(path, SIZE, **options)
        with images.open_image(path, l2_cache_size=1 << 16) as image, often_switching():
            image.add_bitmap("writes", 4096)
            snapshots = options.get("refcount_bits") != 1
            hammer = Hammer(image, rng.randrange(1 << 30), snapshots=snapshots, resizing=True)
            hammer.run(SECONDS, {"requests": 1})
        self.counts.update({f"hammered {name}": count for name, count in hammer.counts.items()})

    def processes(self, path: Path, rng: random.Random) -> None:
        done = contend(path, rng, SECONDS, kills=2)
        self.counts["processes killed"] += done.killed
        self.counts["times a process had the image"] += done.written + done.read
        self.counts["times it was locked"] += done.locked

    def report(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="fuzz.together", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--time", type=float, default=60, help="seconds")
    parser.add_argument("--seed", type=int, default=None, help="of chance; the time by default")
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    print(f"{args.time:g} s of many at once; seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vdisk-together-") as folder:
        together = Together(Path(folder))
        try:
            together.run(args.time, seed)
        finally:
            print(together.report(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
