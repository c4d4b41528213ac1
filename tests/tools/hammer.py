"""Many at once on one image: threads in one process against a model.

Each writer owns every so manieth block, so that it knows what its blocks hold although its
neighbours in the same clusters change all the time.  Beside the writers one thread takes, reads
and deletes snapshots, and one makes the disk larger and smaller behind the writers' part.  A dirty
bitmap, if the image has one, must know every block in the end.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.tools.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vdisk.formats.qcow2 import Qcow2Image

BLOCK = 4096
WRITERS = 4
JOIN = 60
"""Seconds after which a thread that was told to end is taken to hang."""


class Hammer:
    """Hammers ``image`` for some ``seconds``; the first failure of any thread is raised.

    ``model``: what the writers' part of the disk holds, all of the disk when it begins.
    ``counts``: operations carried out, by name.
    """

    def __init__(self, image: Qcow2Image, seed: int, *, snapshots: bool, resizing: bool) -> None:
        self.image = image
        self.model = bytearray(image.size)
        self.seed = seed
        self.counts: dict[str, int] = {}
        self._changed: set[int] = set()
        self._failures: list[BaseException] = []
        self._over = threading.Event()
        self._jobs: list[Callable[[random.Random], None]] = [
            *(self._writer(number) for number in range(WRITERS)),
            *([self._take_snapshots] * snapshots),
            *([self._resize] * resizing),
        ]

    def run(self, seconds: float, least: Mapping[str, int] | None = None) -> None:
        """For so many seconds, and until at least so many operations were carried out."""
        threads = [
            threading.Thread(target=self._guarded, args=(number, job), daemon=True)
            for number, job in enumerate(self._jobs)
        ]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        eventually(lambda: self._over.is_set() or self._has_done(least or {}))
        self._over.set()
        for thread in threads:
            thread.join(JOIN)
        if self._failures:
            raise self._failures[0]
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        assert self.image.read(0, len(self.model)) == self.model
        self.check_bitmaps()

    def check_bitmaps(self) -> None:
        """Every bitmap of the image has every block that was changed."""
        for bitmap in self.image.bitmaps():
            ranges = self.image.dirty_ranges(bitmap.name, 0, len(self.model))
            dirty = {
                block
                for start, length in ranges
                for block in range(start // BLOCK, -(-(start + length) // BLOCK))
            }
            assert self._changed <= dirty, sorted(self._changed - dirty)

    def _guarded(self, number: int, job: Callable[[random.Random], None]) -> None:
        rng = random.Random(self.seed * 100 + number)
        try:
            while not self._over.is_set():
                job(rng)
        except BaseException as error:
            self._failures.append(error)
            self._over.set()

    def _has_done(self, least: Mapping[str, int]) -> bool:
        return all(self.counts.get(what, 0) >= count for what, count in least.items())

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # -- writers ---------------------------------------------------------------------------------

    def _writer(self, number: int) -> Callable[[random.Random], None]:
        blocks = len(self.model) // BLOCK // WRITERS

        def step(rng: random.Random) -> None:
            start = (rng.randrange(blocks) * WRITERS + number) * BLOCK
            self._change(start, rng)

        return step

    def _change(self, start: int, rng: random.Random) -> None:
        image, place = self.image, slice(start, start + BLOCK)
        match rng.randrange(20):
            case 0:
                image.flush()
            case 1 | 2:
                image.write_zeroes(start, BLOCK, unmap=rng.random() < 0.5)
                self._now_holds(start, bytes(BLOCK))
            case 3 if image.cluster_size <= BLOCK:
                image.discard(start, BLOCK)
                self._now_holds(start, bytes(BLOCK))
            case 4 | 5 | 6 | 7 | 8:
                assert image.read(start, BLOCK) == self.model[place], f"block at {start:#x}"
            case 9:
                assert sum(extent.length for extent in image.map(start, BLOCK)) == BLOCK
            case _:
                data = rng.randbytes(BLOCK)
                image.write(start, data)
                self._now_holds(start, data)
        self._count("requests")

    def _now_holds(self, start: int, data: bytes) -> None:
        self.model[start : start + BLOCK] = data
        self._changed.add(start // BLOCK)

    # -- the structure ---------------------------------------------------------------------------

    def _take_snapshots(self, rng: random.Random) -> None:
        taken = self.image.create_snapshot("of a moment")
        with self.image.open_snapshot(taken.id) as view:
            first = view.read(0, view.size)
            time.sleep(rng.random() / 50)
            assert view.read(0, view.size) == first, "a snapshot changed"
        self.image.delete_snapshot(taken.id)
        self._count("snapshots")

    def _resize(self, rng: random.Random) -> None:
        """The part behind the writers' comes, is written and goes: it comes back as zeroes."""
        image, end = self.image, len(self.model)
        length = rng.randrange(1, 200) * 512
        image.resize(end + length)
        assert image.read(end, length) == bytes(length)
        data = rng.randbytes(length)
        image.write(end, data)
        assert image.read(end, length) == data
        time.sleep(rng.random() / 50)
        image.resize(end)
        self._count("resizes")


@contextmanager
def often_switching(seconds: float = 1e-5) -> Iterator[None]:
    """Let threads take turns after ``seconds``, so that few lines run undisturbed."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
