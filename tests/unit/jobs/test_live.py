"""Jobs on a disk that is written to meanwhile: nothing of that is lost, nor comes too early."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

import vdisk
from tests.tools.patience import PATIENCE, eventually
from vdisk.errors import CancelledError, DeviceError
from vdisk.filters.attended import Attended
from vdisk.filters.faults import Faults, InjectError
from vdisk.jobs import live
from vdisk.jobs.dirty import DirtyParts
from vdisk.opening import open_image
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vdisk.block import BlockDevice
    from vdisk.filters.attended import Around
    from vdisk.formats.qcow2 import Qcow2Image

MIB = 1 << 20
SIZE = 8 * MIB
LIVED_IN = 6 * MIB
PART = 64 << 10


class Guest:
    """Writes, zeroes and discards at random in a thread, until it is told to end.

    It leaves the end of the disk alone, so that not all can be its own, however long it lives.
    ``content``: what the disk holds; after a discard, what it is found to hold.
    """

    def __init__(self, image: BlockDevice, around: Around, seed: int) -> None:
        self._disk = Attended(image, around)
        self._random = random.Random(seed)
        self.content = bytearray(image.read(0, image.size))
        self.changes = 0
        self._over = False
        self._thread = threading.Thread(target=self._live, daemon=True)

    def _live(self) -> None:
        while not self._over:
            self._change()
            self.changes += 1
            time.sleep(0)  # the job's turn

    def _change(self) -> None:
        start = self._random.randrange(LIVED_IN // 512) * 512
        length = min(self._random.choice([512, 4096, PART, 300 << 10]), LIVED_IN - start)
        kind = self._random.random()
        if kind < 0.8:
            data = self._random.randbytes(512) * (length // 512)
            self._disk.write(start, data)
        elif kind < 0.9:
            data = bytes(length)
            self._disk.write_zeroes(start, length)
        else:
            self._disk.discard(start, length)
            data = self._disk.read(start, length)
        self.content[start : start + length] = data

    @contextmanager
    def living(self) -> Iterator[None]:
        """In there it lives, and has begun to; afterwards it has ended."""
        self._thread.start()
        try:
            assert eventually(lambda: self.changes, pause=0.001)
            yield
        finally:
            self._over = True
            self._thread.join()


def chain(tmp_path: Path, *formats: str, seed: int = 1) -> list[str]:
    """Images each with the one before as its backing file, all with something of their own."""
    rng = random.Random(seed)
    names: list[str] = []
    for number, format in enumerate(formats):
        name = str(tmp_path / f"{number}.{format}")
        if names:
            vdisk.create(
                name, format=format, backing_file=names[-1], backing_format=formats[number - 1]
            )
        else:
            vdisk.create(name, SIZE, format=format)
        with vdisk.open(name, "r+", format=format) as image:
            for _ in range(12):
                start, length = rng.randrange(SIZE // PART) * PART, rng.choice([4096, PART])
                image.write(start, rng.randbytes(length))
                image.write_zeroes(rng.randrange(SIZE // PART) * PART, PART)
        names.append(name)
    return names


@pytest.mark.parametrize("base", [None, 0, 1])
@pytest.mark.parametrize("first", ["raw", "qcow2"])
def test_stream(tmp_path: Path, first: str, base: int | None) -> None:
    names = chain(tmp_path, first, "qcow2", "qcow2")
    with open_image(names[-1], readonly=False) as image:
        qcow2 = cast("Qcow2Image", image)
        below = None
        if base is not None:
            below = image.backing if base == 1 else cast("Qcow2Image", image.backing).backing
        job = live.Stream(qcow2, below, live.Pace(SIZE))
        guest = Guest(image, job.around, seed=3)
        with guest.living():
            job.run()
        format = None if base is None else "qcow2" if base else first
        qcow2.change_backing(None if base is None else names[base], format)
    for name in names[0 if base is None else base + 1 : -1]:  # no longer needed
        os.unlink(name)
    with vdisk.open(names[-1]) as image:
        assert image.read(0, SIZE) == bytes(guest.content)
    assert vdisk.check(names[-1]).clean


@pytest.mark.parametrize("depth", [1, 2])
def test_commit(tmp_path: Path, depth: int) -> None:
    names = chain(tmp_path, "raw", "qcow2", "qcow2")
    with open_image(names[-1], readonly=False, writable_backing=depth) as image:
        base = image.backing if depth == 1 else cast("Qcow2Image", image.backing).backing
        assert base is not None
        job = live.commit(image, base, depth, live.Pace(SIZE))
        guest = Guest(image, job.around, seed=4)
        with guest.living():
            job.run()
            assert eventually(lambda: guest.changes >= 50, pause=0.001)
        job.catch_up()
        assert base.read(0, SIZE) == image.read(0, SIZE) == bytes(guest.content)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("top_only", [False, True])
@pytest.mark.parametrize("job_of", [live.mirror, live.Backup])
def test_mirror_and_backup(tmp_path: Path, kind: str, top_only: bool, job_of: object) -> None:
    names = chain(tmp_path, "qcow2", "qcow2")
    target = str(tmp_path / "target")
    if top_only:
        vdisk.create(target, format="qcow2", backing_file=names[0], backing_format="qcow2")
    else:
        vdisk.create(target, SIZE, format=kind)
    format = "qcow2" if top_only else kind
    with (
        open_image(names[-1], readonly=False) as image,
        open_image(target, readonly=False, format=format) as copy,
    ):
        before = image.read(0, SIZE)
        job = job_of(image, copy, live.Pace(SIZE), top_only=top_only, target_is_zero=True)  # type: ignore[operator]
        guest = Guest(image, job.around, seed=5)
        with guest.living():
            job.run()
        if isinstance(job, live.Follow):
            job.catch_up()
        now = bytes(guest.content)
        assert image.read(0, SIZE) == now != before
        assert copy.read(0, SIZE) == (now if isinstance(job, live.Follow) else before)
        if top_only:
            below = sum(each.length for each in copy.map() if each.depth)
            assert below, "what the backing file holds was not copied"


def test_what_a_backup_cannot_keep_fails_the_backup_and_not_the_guest() -> None:
    source = MemoryStore(bytes(range(256)) * (SIZE // 256), growable=False)
    target = Faults(MemoryStore(bytes(SIZE), growable=False))
    target.set_rules(InjectError(errno=28))
    job = live.Backup(source, target, live.Pace(SIZE), top_only=False, target_is_zero=True)
    Attended(source, job.around).write(0, b"new")
    assert source.read(0, 3) == b"new"
    with pytest.raises(DeviceError):
        job.run()


def test_a_failed_copy_is_made_again() -> None:
    source = MemoryStore(b"x" * SIZE, growable=False)
    target = Faults(MemoryStore(bytes(SIZE), growable=False))
    job = live.mirror(source, target, live.Pace(SIZE), top_only=False, target_is_zero=True)
    job.run()
    Attended(source, job.around).write(SIZE - 3, b"end")
    target.set_rules(InjectError())
    with pytest.raises(DeviceError):
        job.catch_up()
    target.set_rules()
    job.catch_up()
    assert target.read(SIZE - 4, 4) == b"xend"


class TestPace:
    def in_a_thread(self, pace: live.Pace, moved: int) -> tuple[threading.Thread, list[object]]:
        result: list[object] = []

        def go() -> None:
            try:
                pace.went(moved, moved)
                result.append(None)
            except CancelledError as error:
                result.append(error)

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        return thread, result

    def test_a_rate_is_kept(self) -> None:
        pace = live.Pace(1000)
        pace.speed = 1000
        began = time.monotonic()
        for _ in range(4):
            pace.went(50, 50)
        assert time.monotonic() - began >= 0.19
        assert pace.offset == 200

    @pytest.mark.parametrize("how", ["cancel", "hurry", "speed"])
    def test_who_waits_is_woken(self, how: str) -> None:
        pace = live.Pace(1000)
        pace.speed = 1
        thread, result = self.in_a_thread(pace, 1000)
        time.sleep(0.05)
        assert not result
        if how == "speed":
            pace.speed = 0
        else:
            getattr(pace, how)()
        thread.join(PATIENCE)
        assert isinstance(result[0], CancelledError) == (how == "cancel")

    def test_a_pause(self) -> None:
        pace = live.Pace(1000)
        pace.paused = True
        thread, result = self.in_a_thread(pace, 1)
        time.sleep(0.05)
        assert not result
        pace.paused = False
        thread.join(PATIENCE)
        assert result == [None]


class TestDirtyParts:
    def test_runs_are_given_once(self) -> None:
        parts = DirtyParts(SIZE - 100)
        parts.mark(PART + 1, 1)
        parts.mark(2 * PART, PART + 1)
        parts.mark(SIZE - 200, 50)
        assert parts.take(0, SIZE, MIB) == (PART, 3 * PART)
        assert parts.take(0, SIZE, MIB) == (SIZE - PART, PART - 100)
        assert parts.take(0, SIZE, MIB) is None

    def test_a_range_and_a_length(self) -> None:
        parts = DirtyParts(SIZE, everything=True)
        assert parts.take(PART + 5, SIZE, 2 * PART) == (PART, 2 * PART)
        assert parts.take(PART, 3 * PART, MIB) is None
        assert parts.take(3 * PART, 3 * PART + 1, 1) == (3 * PART, PART)

    def test_a_large_disk_has_no_more_parts_than_a_small_one(self) -> None:
        parts = DirtyParts(1 << 46)
        assert parts.part == 64 << 20
        parts.mark((1 << 46) - 1, 1)
        assert parts.take(0, 1 << 46, 1) == ((1 << 46) - parts.part, parts.part)
