"""Every cut: whatever a loss of power leaves of an image's writes, nothing acknowledged is lost.

A guest works on an image whose file is a write log over memory.  From the log come the disks
that a cut at any point can leave, torn and reordered between flushes.  Law, for each of them:
the image opens for writing; every sector holds what it held at the last acknowledged flush, or
something written to it since; snapshots are there or not, but whole; and qemu-img finds nothing
wrong but leaks (nothing at all once a marked image was opened for writing, which repairs it).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import images
from tests.tools.allowed import Allowed
from tests.tools.cuts import try_cuts
from tests.tools.peers import requires_peer
from vdisk.filters.writelog import SECTOR, WriteLog
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img")

SIZE = 300 * 512


class Guest:
    """Works on an image by chance, marking in the log what it was told."""

    def __init__(self, options: dict[str, Any], seed: int, *, structural: bool) -> None:
        self.rng = random.Random(seed)
        store = MemoryStore()
        images.create(store, SIZE, **options)
        self.initial = store.content()
        self.size = SIZE
        self.log = WriteLog(store)
        self.image = DRIVER.open(self.log, OpenContext(readonly=False))
        self.now = Allowed(SIZE)
        self.structural = structural and options.get("refcount_bits", 16) > 2

    def tell(self, *event: Any) -> None:
        self.log.mark(event)
        self.now.happen(event)

    def live(self, steps: int) -> None:
        plain = [self.write] * 8 + [self.zero] * 3 + [self.discard, self.compressed, self.flush]
        structural = [self.snapshot, self.apply, self.delete, self.resize] * self.structural
        for _ in range(steps):
            self.rng.choice(plain + structural)()
        self.image.close()
        self.tell("acknowledged")

    def span(self) -> tuple[int, int]:
        sectors = self.image.size // SECTOR
        first = self.rng.randrange(sectors)
        count = min(self.rng.choice([1, 1, 2, 9, 40]), sectors - first)
        return first * SECTOR, count * SECTOR

    def write(self) -> None:
        offset, length = self.span()
        data = self.rng.randbytes(length)
        self.tell("write", offset, data)
        self.image.write(offset, data)

    def zero(self) -> None:
        offset, length = self.span()
        self.tell("write", offset, bytes(length))
        self.image.write_zeroes(offset, length, unmap=self.rng.random() < 0.5)

    def discard(self) -> None:
        offset, length = self.span()
        unit = self.image.cluster_size
        first, last = -(-offset // unit) * unit, (offset + length) // unit * unit
        if offset + length == self.image.size:
            last = self.image.size
        if first < last:
            self.tell("write", first, bytes(last - first))
        self.image.discard(offset, length)

    def compressed(self) -> None:
        unit = self.image.cluster_size
        offset = self.span()[0] // unit * unit
        if offset + unit <= self.image.size:
            data = self.rng.randbytes(16) * (unit // 16)
            self.tell("write", offset, data)
            packed = self.image.compress_cluster(data)
            assert packed is not None
            self.image.write_compressed(offset, packed)

    def flush(self) -> None:
        self.image.flush()
        self.tell("acknowledged")

    def snapshot(self) -> None:
        numbers = [int(s.id) for s in self.image.snapshots()]
        tag = str(max(numbers, default=0) + 1)
        if len(numbers) < 3:
            self.tell("snapshot", tag)
            self.image.create_snapshot("s")
            self.tell("taken", tag)

    def _pick(self) -> str | None:
        tags = [snapshot.id for snapshot in self.image.snapshots()]
        return self.rng.choice(tags) if tags else None

    def apply(self) -> None:
        tag = self._pick()
        if tag is not None:
            size = len(self.now.snapshots[tag])
            self.tell("resize", size)
            self.tell("apply", tag)
            self.image.apply_snapshot(tag)
            self.tell("resized", size)
            self.tell("applied", tag)

    def delete(self) -> None:
        tag = self._pick()
        if tag is not None:
            self.tell("delete", tag)
            self.image.delete_snapshot(tag)
            self.tell("deleted", tag)

    def resize(self) -> None:
        size = self.rng.randrange(20, 2 * SIZE // SECTOR) * SECTOR
        self.tell("resize", size)
        self.image.resize(size)
        self.tell("resized", size)


CONFIGURATIONS = {
    "512-byte clusters": {"cluster_size": 512},
    "v2": {"cluster_size": 1024, "compat": "0.10"},
    "1-bit refcounts": {"cluster_size": 512, "refcount_bits": 1},
    "64-bit refcounts": {"cluster_size": 512, "refcount_bits": 64},
    "lazy refcounts": {"cluster_size": 2048, "lazy_refcounts": True},
    "subclusters": {"cluster_size": 16384, "extended_l2": True},
    "4 KiB clusters": {"cluster_size": 4096},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_guest_writes(tmp_path: Path, name: str, seed: int) -> None:
    guest = Guest(CONFIGURATIONS[name], seed, structural=False)
    guest.live(40)
    assert try_cuts(guest, tmp_path / "cut.qcow2", 40, seed) > 50


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name != "v2"])
def test_structural_changes(tmp_path: Path, name: str, seed: int) -> None:
    guest = Guest(CONFIGURATIONS[name], 100 + seed, structural=True)
    guest.live(25)
    assert try_cuts(guest, tmp_path / "cut.qcow2", 40, seed) > 50
