"""Soak: whole lives of disks, one after another, each against a model.

  python -m fuzz.soak --time 600 --seed 7     for ten minutes
  python -m fuzz.soak --lives 50 --seed 7     the first fifty of these lives
  python -m fuzz.soak --life 7000042          that very life again

Lives (:mod:`fuzz.life`) follow from their seeds: the digest that is printed at the end is the same
for the same seed and number of lives.  A part of the time goes to what is not only ours to decide,
threads on one image, processes that want the same one, and servers that are killed
(:mod:`fuzz.together`).  Memory and file descriptors of this process must not grow.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fuzz.life import Life
from fuzz.session import parser_of
from fuzz.together import Together
from tests.tools import peers

TOGETHER = 0.25
"""The share of the time for what happens together."""
WARM_UP = 40
"""Lives after which the process is as large as it gets."""
MEASURED_EVERY = 20
"""Lives from one measurement to the next."""
ROOM_TO_GROW = 48 << 20
"""Bytes that memory may vary by; a leak of a few KiB a life shows within the hour."""


class Size(NamedTuple):
    """How large this process is: bytes of memory, and open file descriptors."""

    memory: int
    descriptors: int


class Soak:
    """Lives for some time.  ``lives``, ``events``: how many, and of what."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.folder = folder
        self.lives = 0
        self.events: Counter[str] = Counter()
        self.sizes: list[Size] = []
        """Measured after the warm-up, every so often."""
        self.together = Together(folder)
        self._digest = hashlib.sha256()

    def run(self, seconds: float = float("inf"), lives: int = 1 << 62) -> None:
        """Live for so many seconds, or so many lives."""
        begin, apart = time.monotonic(), 0.0
        while self.lives < lives and (spent := time.monotonic() - begin) < seconds:
            if apart < TOGETHER * spent:
                start = time.monotonic()
                self.together.one(f"{self.seed} {self.together.counts['trials']}")
                apart += time.monotonic() - start
                continue
            self.one(self.seed * 1_000_000 + self.lives)
            self.lives += 1
            if self.lives >= WARM_UP and self.lives % MEASURED_EVERY == 0:
                self._check_growth()

    def one(self, seed: int) -> None:
        folder = self.folder if peers.find("qemu-img") else None
        try:
            life = Life(seed, folder)
            life.live()
        except BaseException:
            print(f"life {seed} failed; again: python -m fuzz.soak --life {seed}", flush=True)
            raise
        self.events.update(life.events)
        self._digest.update(life.digest())

    def _check_growth(self) -> None:
        gc.collect()
        size = Size(_resident(), len(os.listdir("/proc/self/fd")))
        self.sizes.append(size)
        first = self.sizes[0]
        assert size.descriptors <= first.descriptors, f"{size.descriptors} descriptors: they leak"
        assert size.memory <= first.memory + ROOM_TO_GROW, f"{size.memory} bytes of memory: leaks"

    def report(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        lines = [
            f"{self.lives} lives (digest {self._digest.hexdigest()[:16]}): {_told(self.events)}",
            f"together: {_told(self.together.counts)}",
            f"memory: {_resident() >> 20} MiB now, {peak} MiB at most",
        ]
        if self.sizes:
            first, last = self.sizes[0], self.sizes[-1]
            lines += [
                f"  after the warm-up {first.memory >> 10} KiB, {first.descriptors} descriptors",
                f"  at the end {last.memory >> 10} KiB, {last.descriptors} descriptors",
                f"  at most {max(self.sizes).memory >> 10} KiB in {len(self.sizes)} measurements",
            ]
        return "\n".join(lines)


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    parser = parser_of("soak", __doc__, "lives")
    parser.add_argument("--lives", type=int, default=None, help="so many, however long they take")
    parser.add_argument("--life", type=int, default=None, help="this one life only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vdisk-soak-") as folder:
        soak = Soak(args.seed, Path(folder))
        try:
            if args.life is not None:
                soak.one(args.life)
            elif args.lives is not None:
                soak.run(lives=args.lives)
            else:
                print(f"{args.time:g} s of lives; seed {args.seed}", flush=True)
                soak.run(args.time)
        finally:
            print(soak.report(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
