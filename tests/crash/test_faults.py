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
import functools
import os
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.tools import images, qemu
from tests.tools.peers import requires_peer
from vdisk.errors import CorruptImageError, DeviceError, VdiskError
from vdisk.filters.faults import Effect, Faults, InjectError, IoType, Where
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER, Qcow2Image
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECTOR = 512
ALL = os.environ.get("VDISK_TEST_FAULTS") == "all"
SAMPLE = 4
"""Runs of each operation on each kind of image and with each kind of fault, unless all."""

CHANGING = frozenset({IoType.WRITE, IoType.WRITE_ZEROES, IoType.DISCARD, IoType.TRUNCATE})
ANY = CHANGING | {IoType.READ, IoType.FLUSH}

CACHES = {"l2-cache-size": 1024, "refcount-cache-size": 1024}
"""So small that tables are read, and saved to make room, in the middle of everything."""


class State(NamedTuple):
    """All that an image holds.  ``bitmaps``: what each says is dirty, None if inconsistent."""

    content: bytes
    snapshots: dict[str, bytes]
    bitmaps: dict[str, frozenset[tuple[int, int]] | None]


def state_of(image: Qcow2Image) -> State:
    snapshots = {}
    for snapshot in image.snapshots():
        with image.open_snapshot(snapshot.id) as view:
            snapshots[snapshot.id] = view.read(0, view.size)
    bitmaps = {
        one.name: None if "in-use" in one.flags else frozenset(image.dirty_ranges(one.name))
        for one in image.bitmaps()
    }
    return State(image.read(0, image.size), snapshots, bitmaps)


def open_to_write(disk: MemoryStore | Faults) -> Qcow2Image:
    return DRIVER.open(disk, OpenContext(readonly=False, options=CACHES))


def open_to_read(content: bytes) -> Qcow2Image:
    return DRIVER.open(MemoryStore(content), OpenContext())


# -- the image, and what is done to it -------------------------------------------------------------


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def compressible(seed: int, length: int) -> bytes:
    return pattern(seed, 16) * (length // 16)


class Scene:
    """An image with something of everything in it, as the bytes of its file."""

    def __init__(self, *, filled: int = 0, **options: Any) -> None:
        store = MemoryStore()
        self.options = options
        self.unit = options.get("cluster_size", 512)
        images.create(store, 40 * self.unit, **options)
        self.version = 2 if options.get("compat") == "0.10" else 3
        self.snapshots = options.get("refcount_bits", 16) > 1
        with images.open_image(store) as image:
            image.resize((40 + filled) * self.unit)  # with the refcount table of a small one
            self._fill(image)
        self.initial = store.content()
        with open_to_read(self.initial) as image:
            self.before = state_of(image)

    def _fill(self, image: Qcow2Image) -> None:
        unit = self.unit
        image.write(0, pattern(1, 9 * unit))
        for number in (10, 11):
            packed = image.compress_cluster(compressible(number, unit))
            assert packed is not None
            image.write_compressed(number * unit, packed)
        if self.snapshots:
            image.create_snapshot("first")
        image.write(2 * unit, pattern(2, 3 * unit))
        image.write_zeroes(6 * unit, unit)
        if self.version > 2:
            image.add_bitmap("recording", 512)
            image.add_bitmap("resting", 512, enabled=False)
            image.merge_bitmap("resting", [(0, 4 * unit)])
        image.write(14 * unit, pattern(3, unit))
        image.write(40 * unit, pattern(4, max(image.size - 240 * unit, 0)))
        image.discard(4 * unit, unit)


SCENES = {
    "512-byte clusters": {"cluster_size": 512},
    "64-bit refcounts": {"cluster_size": 512, "refcount_bits": 64},
    "lazy refcounts": {"cluster_size": 1024, "lazy_refcounts": True},
    "subclusters": {"cluster_size": 16384, "extended_l2": True},
    "v2": {"cluster_size": 512, "compat": "0.10"},
    "full refcount table": {"cluster_size": 512, "refcount_bits": 64, "filled": 4040},
}


def write_new(image: Qcow2Image) -> None:
    image.write(20 * image.cluster_size + 100, pattern(10, 5 * image.cluster_size))


def write_in_place(image: Qcow2Image) -> None:
    image.write(2 * image.cluster_size, pattern(11, image.cluster_size))


def write_shared(image: Qcow2Image) -> None:
    image.write(7 * image.cluster_size + 200, pattern(12, image.cluster_size))


def write_over_compressed(image: Qcow2Image) -> None:
    image.write(10 * image.cluster_size + 200, pattern(13, image.cluster_size))


def write_compressed(image: Qcow2Image) -> None:
    for number in (2, 24, 25):
        packed = image.compress_cluster(compressible(number, image.cluster_size))
        assert packed is not None
        image.write_compressed(number * image.cluster_size, packed)


def write_a_lot(image: Qcow2Image) -> None:
    """Clusters are taken, given back and taken again."""
    unit = image.cluster_size
    for number in range(3):
        image.write((16 + 8 * number) * unit, pattern(14, 8 * unit))
        image.flush()
        image.discard(4 * number * unit, 4 * unit)
        image.flush()


def write_at_the_end(image: Qcow2Image) -> None:
    image.write(image.size - 190 * image.cluster_size, pattern(15, 190 * image.cluster_size))


def zero(image: Qcow2Image) -> None:
    image.write_zeroes(image.cluster_size // 2, 4 * image.cluster_size, unmap=True)


def zero_and_keep(image: Qcow2Image) -> None:
    image.write_zeroes(512, 9 * image.cluster_size, unmap=False)


def discard(image: Qcow2Image) -> None:
    image.discard(0, 16 * image.cluster_size)


def create_snapshot(image: Qcow2Image) -> None:
    image.create_snapshot("second", vm_state=b"registers")


def apply_snapshot(image: Qcow2Image) -> None:
    image.apply_snapshot("first")


def delete_snapshot(image: Qcow2Image) -> None:
    image.delete_snapshot("first")


def grow(image: Qcow2Image) -> None:
    image.resize(image.size + 3 * 64 * image.cluster_size)


def grow_preallocated(image: Qcow2Image) -> None:
    image.resize(image.size + 8 * image.cluster_size, "full")


def shrink(image: Qcow2Image) -> None:
    image.resize(5 * image.cluster_size)


def amend_refcounts(image: Qcow2Image) -> None:
    image.amend({"refcount_bits": 8 if image.header.refcount_bits == 16 else 32})


def amend_lazy(image: Qcow2Image) -> None:
    image.amend({"lazy_refcounts": not image.header.lazy_refcounts})


def amend_version(image: Qcow2Image) -> None:
    if image.header.version == 2:
        image.amend({"compat": "1.1"})
    else:
        for bitmap in image.bitmaps():
            image.remove_bitmap(bitmap.name)
        image.delete_snapshot("first")
        image.amend({"refcount_bits": 16, "lazy_refcounts": False})
        image.amend({"compat": "0.10"})


def change_backing(image: Qcow2Image) -> None:
    image.change_backing("null-co://", "raw")
    image.change_backing(None, None)


def add_bitmap(image: Qcow2Image) -> None:
    image.add_bitmap("new", 512)


def remove_bitmap(image: Qcow2Image) -> None:
    image.remove_bitmap("resting")


def clear_bitmap(image: Qcow2Image) -> None:
    image.clear_bitmap("recording")


def merge_bitmap(image: Qcow2Image) -> None:
    image.merge_bitmap("recording", image.dirty_ranges("resting"))


def save_bitmaps(image: Qcow2Image) -> None:
    image.write(5 * image.cluster_size, b"new" * 100)
    image.save_bitmaps()


GUEST = [
    write_new,
    write_in_place,
    write_shared,
    write_over_compressed,
    write_compressed,
    write_a_lot,
    write_at_the_end,
    zero,
    zero_and_keep,
    discard,
]
SNAPSHOTS = [create_snapshot, apply_snapshot, delete_snapshot]
STRUCTURE = [
    grow,
    grow_preallocated,
    shrink,
    amend_refcounts,
    amend_lazy,
    amend_version,
    change_backing,
]
BITMAPS = [add_bitmap, remove_bitmap, clear_bitmap, merge_bitmap, save_bitmaps]


def is_possible(operation: Callable[[Qcow2Image], None], options: dict[str, Any]) -> bool:
    if "filled" in options or operation is write_at_the_end:
        return "filled" in options and operation in [write_at_the_end, create_snapshot]
    if "compat" in options:  # version 2, with a snapshot
        return operation in [*GUEST, *SNAPSHOTS, amend_version, change_backing]
    return not (operation is amend_version and "extended_l2" in options)


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
    """One operation with one request failing."""

    def __init__(self, scene: Scene, operation: Callable[[Qcow2Image], None]) -> None:
        self.scene = scene
        self.operation = operation
        self.store = MemoryStore(scene.initial)
        self.faults = Faults(self.store)
        self.probed = False
        self.image = open_to_write(self.faults)

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

    def run(self, fault: InjectError, after: State, path: Path | None) -> None:
        """Hold the image against the law at every step."""
        self.faults.set_rules(fault)
        done = self.perform()
        self._inspect(after, path)
        if fault.where.once:
            self.faults.set_rules()
        assert not done or self.scene.before == after or not self._failed_for_good()
        self._go_on(after, done)
        self._inspect(after, path)

    def _failed_for_good(self) -> bool:
        return self.image._core.failure is not None

    def _go_on(self, after: State, done: bool) -> None:
        gone = bool(self.faults._armed)
        before_probe = None if gone else state_of(self.image)
        if before_probe is not None:
            self._allow(before_probe, after)
            assert not done or before_probe.content == after.content
        probe = pattern(99, SECTOR)
        self.probed = True
        alive = succeeds(lambda: self.image.write(0, probe)) and succeeds(self.image.flush)
        if alive:
            with open_to_write(MemoryStore(self.store.content())) as stored:
                assert stored.read(0, stored.size) == self.image.read(0, self.image.size)
                assert stored.read(0, SECTOR) == probe
        expected = None if gone else self.image.read(0, self.image.size)
        closed = succeeds(self.image.close)
        assert self.store.closed
        if closed and expected is not None:
            with open_to_read(self.store.content()) as stored:
                assert stored.read(0, stored.size) == expected
                assert not stored.dirty

    def _inspect(self, after: State, path: Path | None) -> None:
        """The file as it is now, as whoever opens it next will find it."""
        content = self.store.content()
        with open_to_read(content) as image:
            marked = image.dirty
            found = image.check()
        if path is not None and not marked:
            path.write_bytes(content)
            code = qemu.img("check", "-f", "qcow2", path, check=False).returncode
            assert code in (0, 3) or found.corruptions
        mending = self.scene.version == 2 and self.operation in [*SNAPSHOTS, amend_version]
        assert marked or mending or not found.corruptions, found.findings
        assert not found.check_errors
        context = OpenContext(readonly=False, options=CACHES, repairing=mending)
        with DRIVER.open(MemoryStore(content), context) as image:
            if mending:  # no mark says that flags and counts are being changed
                assert not image.check(repair={"leaks", "errors"}).remaining
            assert not image.check().corruptions
            self._allow(state_of(image), after)

    def _allow(self, found: State, after: State) -> None:
        before = self.scene.before
        sizes = {len(before.content), len(after.content)}
        assert len(found.content) in sizes
        if self.operation in SNAPSHOTS:
            head = SECTOR if self.probed else 0
            assert found.content[head:] in (before.content[head:], after.content[head:])
        else:
            self._allow_sectors(found.content, before.content, after.content)
        assert found.snapshots in (before.snapshots, after.snapshots)
        self._allow_bitmaps(found, before, after)

    def _allow_sectors(self, found: bytes, before: bytes, after: bytes) -> None:
        size = len(found)
        old, new = before[:size].ljust(size, b"\0"), after[:size].ljust(size, b"\0")
        for start in range(SECTOR if self.probed else 0, size, SECTOR):
            sector = found[start : start + SECTOR]
            assert sector in (old[start : start + SECTOR], new[start : start + SECTOR]), start

    def _allow_bitmaps(self, found: State, before: State, after: State) -> None:
        assert found.bitmaps.keys() <= before.bitmaps.keys() | after.bitmaps.keys()
        assert found.bitmaps.keys() >= before.bitmaps.keys() & after.bitmaps.keys()
        dirty = found.bitmaps.get("resting")
        assert dirty is None or dirty == self._resting(len(found.content))
        recorded = found.bitmaps.get("recording")
        if recorded is None or self.operation is clear_bitmap:
            return
        size = min(len(found.content), len(before.content))
        for start in range(0, size, SECTOR):
            if found.content[start : start + SECTOR] != before.content[start : start + SECTOR]:
                assert any(first <= start < first + count for first, count in recorded), start

    def _resting(self, size: int) -> frozenset[tuple[int, int]]:
        return frozenset({(0, min(4 * self.scene.unit, size))})


def succeeds(call: Callable[[], object]) -> bool:
    """Call it: it succeeds or raises a :class:`VdiskError`, nothing else."""
    try:
        call()
    except VdiskError:
        return False
    return True


@functools.cache
def scene_called(name: str) -> Scene:
    return Scene(**SCENES[name])


def chosen(count: int, seed: str, most: int) -> list[int]:
    """The requests to fail: ``most`` of them, the last among them."""
    numbers = list(range(count))
    if count <= most:
        return numbers
    return sorted({count - 1, *random.Random(seed).sample(numbers, most - 1)})


CASES = [
    pytest.param(name, operation, id=f"{operation.__name__}-{name}")
    for name, options in SCENES.items()
    for operation in [*GUEST, *SNAPSHOTS, *STRUCTURE, *BITMAPS]
    if is_possible(operation, options)
]


@requires_peer("qemu-img")
@pytest.mark.parametrize(("name", "operation"), CASES)
def test_any_request_may_fail(
    tmp_path: Path, name: str, operation: Callable[[Qcow2Image], None]
) -> None:
    scene = scene_called(name)
    tried, most = 0, SAMPLE
    if ALL:
        most = 20 if "filled" in SCENES[name] else 1000  # a large image takes its time
    for title, fault in FAULTS.items():
        count, after = Trial(scene, operation).count(fault.iotypes)
        assert count
        for number in chosen(count, f"{name} {operation.__name__} {title}", most):
            path = tmp_path / "faulty.qcow2" if tried % 40 == 0 else None
            tried += 1
            try:
                Trial(scene, operation).run(fault.at(number), after, path)
            except BaseException as error:
                error.add_note(f"request {number} of {count}, {title}")
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
    assert trial.store.closed


def test_a_corrupt_image_does_not_acknowledge_what_is_only_in_memory() -> None:
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512)
    image = open_to_write(store)
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
    image = open_to_write(store)
    image.write(0, b"saved")
    image.flush()
    image.write(0, b"again, in place")
    image._core.l1.words[20] = 1 << 9 | 1 << 40
    with pytest.raises(CorruptImageError):
        image.read(20 * 64 * 512, 1)
    image.close()
    with open_to_read(store.content()) as stored:
        assert stored.read(0, 15) == b"again, in place"
