"""Every failing request: whatever a device refuses, nothing is lost and nobody is lied to.

An operation is run once to count its requests; then again and again, each time with another of
them failing: once or from there on, doing nothing, half or all of what it was asked to.  Law:

- a :class:`VdiskError` comes out, or the operation succeeds all the same;
- the file as it is then opens, and a check finds leaks at most (a marked image: after the repair
  that opening it is);
- every sector holds what it held before or what the operation was to put there, and a change of
  structure has happened wholly or not at all; snapshots are whole, bitmaps whole or inconsistent
  by their own account;
- the handle goes on reading.  Writing and flushing succeed, and then what it reads is what stands
  in the file, or they raise; so does closing.

Of all these runs a sample by seed is made; ``VDISK_TEST_FAULTS=all`` makes (nearly) every one.
"""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.tools import images
from tests.tools.peers import requires_peer
from tests.tools.scenes import (
    CASES,
    DATA_FILE,
    IMAGE,
    SCENES,
    SECTOR,
    Operation,
    Scene,
    open_files,
    pattern,
    scene_called,
    state_of,
    stores,
    write_at_the_end,
    write_in_place,
    write_new,
)
from vdisk.errors import CorruptImageError, DeviceError, VdiskError
from vdisk.filters.faults import Effect, Faults, InjectError, IoType, Where
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tools.scenes import State

ALL = os.environ.get("VDISK_TEST_FAULTS") == "all"
SAMPLE = 4
"""Runs of each operation on each kind of image and with each kind of fault, unless all."""

CHANGING = frozenset({IoType.WRITE, IoType.WRITE_ZEROES, IoType.DISCARD, IoType.TRUNCATE})
ANY = CHANGING | {IoType.READ, IoType.FLUSH}

# -- the faults ------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """How the request that was chosen fails, and the ones after it."""

    errno: int = errno.EIO
    iotypes: frozenset[IoType] = ANY
    once: bool = True
    effect: Effect = Effect.NONE

    def at(self, number: int) -> InjectError:
        where = Where(iotypes=self.iotypes, skip=number, once=self.once)
        return InjectError(where=where, errno=self.errno, effect=self.effect)


FAULTS = {
    "once": Fault(),
    "once, half done": Fault(effect=Effect.HALF),
    "once, but done": Fault(effect=Effect.DONE),
    "disk full": Fault(errno.ENOSPC, CHANGING, once=False),
    "device gone": Fault(once=False),
}


# -- the law ---------------------------------------------------------------------------------------


class Trial:
    """One operation with one request failing, of the file that has the ``role``."""

    def __init__(self, scene: Scene, operation: Operation, role: str = IMAGE) -> None:
        self.scene = scene
        self.operation = operation
        self.files = stores(scene.initial)
        self.faults = Faults(self.files[role])
        self.head = 0
        self.image = open_files({**self.files, role: self.faults})

    def perform(self) -> bool:
        """Whether all of it succeeded."""
        return succeeds(lambda: self.operation(self.image)) and succeeds(self.image.flush)

    def count(self, iotypes: frozenset[IoType]) -> tuple[int, State]:
        """How many requests the operation makes, and what it leaves."""
        self.faults.requests.clear()
        assert self.perform()
        requests = sum(self.faults.requests[kind] for kind in iotypes)
        after = state_of(self.image)
        self.image.close()
        return requests, after

    def run(self, fault: InjectError, after: State, folder: Path | None) -> None:
        """Hold the image against the law at every step."""
        self.faults.set_rules(fault)
        done = self.perform()
        self._inspect(after, folder)
        if fault.where.once:
            self.faults.set_rules()
        assert not done or self.scene.before == after or not self._failed_for_good()
        self._go_on(after, done)
        self._inspect(after, folder)

    def _failed_for_good(self) -> bool:
        return self.image._core.failure is not None

    def _go_on(self, after: State, done: bool) -> None:
        gone = bool(self.faults._armed)
        before_probe = None if gone else state_of(self.image)
        if before_probe is not None:
            self.scene.allow(self.operation, before_probe, after)
            assert not done or before_probe.content == after.content
        probe = pattern(99, SECTOR)
        self.head = SECTOR
        alive = succeeds(lambda: self.image.write(0, probe)) and succeeds(self.image.flush)
        if alive:
            with open_files(stores(self._contents())) as stored:
                assert stored.read(0, stored.size) == self.image.read(0, self.image.size)
                assert stored.read(0, SECTOR) == probe
        expected = None if gone else self.image.read(0, self.image.size)
        closed = succeeds(self.image.close)
        assert all(file.closed for file in self.files.values())
        if closed and expected is not None:
            with open_files(stores(self._contents()), readonly=True) as stored:
                assert stored.read(0, stored.size) == expected
                assert not stored.dirty

    def _inspect(self, after: State, folder: Path | None) -> None:
        self.scene.inspect(self.operation, self._contents(), after, head=self.head, folder=folder)

    def _contents(self) -> dict[str, bytes]:
        """What the files hold at this moment."""
        return {role: file.content() for role, file in self.files.items()}


def succeeds(call: Callable[[], object]) -> bool:
    """Call it: it succeeds or raises a :class:`VdiskError`, nothing else."""
    try:
        call()
    except VdiskError:
        return False
    return True


def chosen(count: int, seed: str, most: int) -> list[int]:
    """The requests to fail: ``most`` of them, the last among them."""
    numbers = list(range(count))
    if count <= most:
        return numbers
    return sorted({count - 1, *random.Random(seed).sample(numbers, most - 1)})


@requires_peer("qemu-img")
@pytest.mark.parametrize(("name", "operation"), CASES)
def test_any_request_may_fail(tmp_path: Path, name: str, operation: Operation) -> None:
    scene = scene_called(name)
    tried, most = 0, SAMPLE
    if ALL:
        most = 20 if "filled" in SCENES[name] else 1000  # a large image takes its time
    for role in scene.changing:
        for title, fault in FAULTS.items():
            count, after = Trial(scene, operation, role).count(fault.iotypes)
            assert count or role == DATA_FILE
            for number in chosen(count, f"{name} {operation.__name__} {title}", most):
                folder = tmp_path if tried % 40 == 0 else None
                tried += 1
                try:
                    Trial(scene, operation, role).run(fault.at(number), after, folder)
                except BaseException as error:
                    error.add_note(f"request {number} of {count} to the {role}, {title}")
                    raise


def test_the_table_that_is_full_grows() -> None:
    trial = Trial(scene_called("full refcount table"), write_at_the_end)
    trial.count(ANY)
    assert trial.faults.events["reftable_grow"] == 1


# -- a flush that failed ---------------------------------------------------------------------------


def test_a_flush_that_failed_is_the_last() -> None:
    """What the device lost cannot be found again, so nobody is told that it is safe."""
    trial = Trial(scene_called("512-byte clusters"), write_new)
    image, faults = trial.image, trial.faults
    write_in_place(image)
    image.flush()
    content = image.read(0, image.size)
    faults.set_rules(InjectError(where=Where(iotypes=frozenset({IoType.FLUSH}), once=True)))
    image.write(3 * image.cluster_size, b"perhaps lost")
    with pytest.raises(DeviceError, match="cannot flush"):
        image.flush()
    faults.requests.clear()
    refused: list[Callable[[], object]] = [
        image.flush,
        lambda: image.write(0, b"x"),
        lambda: image.write_zeroes(0, 512),
        lambda: image.discard(0, 8192),
        lambda: image.create_snapshot("late"),
        lambda: image.delete_snapshot("first"),
        lambda: image.resize(1 << 20),
        lambda: image.amend({"lazy_refcounts": True}),
        lambda: image.add_bitmap("late"),
        lambda: image.check(repair={"leaks"}),
    ]
    for call in refused:
        with pytest.raises(DeviceError, match="open the image anew"):
            call()
    assert image.read(4 * image.cluster_size, 1000) == content[4 * image.cluster_size :][:1000]
    with pytest.raises(DeviceError, match="open the image anew"):
        image.close()
    assert not faults.requests[IoType.WRITE]
    assert trial.files[IMAGE].closed


def test_a_corrupt_image_does_not_acknowledge_what_is_only_in_memory() -> None:
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512)
    image = open_files({IMAGE: store})
    image.write(0, b"saved")
    image.flush()
    image.write(100 * 512, b"only in memory")
    image._core.l1.words[20] = 1 << 9 | 1 << 40
    with pytest.raises(CorruptImageError):
        image.read(20 * 64 * 512, 1)
    for call in (image.flush, image.close):
        with pytest.raises(DeviceError, match="open the image anew"):
            call()


def test_a_corrupt_image_of_which_all_is_saved_closes() -> None:
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512)
    image = open_files({IMAGE: store})
    image.write(0, b"saved")
    image.flush()
    image.write(0, b"again, in place")
    image._core.l1.words[20] = 1 << 9 | 1 << 40
    with pytest.raises(CorruptImageError):
        image.read(20 * 64 * 512, 1)
    image.close()
    with open_files({IMAGE: MemoryStore(store.content())}, readonly=True) as stored:
        assert stored.read(0, 15) == b"again, in place"
