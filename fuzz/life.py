"""The life of one disk, made of its seed alone, and held against a model all along.

An image of some configuration is written, zeroed, discarded, compressed, resized, given snapshots
and bitmaps, amended, checked, closed and opened again; its device fails requests
(:mod:`vdisk.filters.faults`) and loses power (:mod:`vdisk.filters.writelog`) with what is in flight
torn and reordered.  After each crash the disk must be one that can be
(:mod:`tests.tools.allowed`), and its life goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.tools import images, qemu
from tests.tools.allowed import Allowed
from vdisk.errors import VdiskError
from vdisk.filters.faults import Effect, Faults, InjectError, IoType, Where
from vdisk.filters.writelog import SECTOR, Cuts, WriteLog
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vdisk.block import BlockDevice
    from vdisk.formats import ChildRequest

CONFIGURATIONS: list[dict[str, Any]] = [
    {"cluster_size": 512},
    {"cluster_size": 512, "refcount_bits": 1},
    {"cluster_size": 512, "refcount_bits": 64},
    {"cluster_size": 1024, "compat": "0.10"},
    {"cluster_size": 2048, "lazy_refcounts": True},
    {"cluster_size": 4096, "compression_type": "zstd"},
    {"cluster_size": 16384, "extended_l2": True},
    {"cluster_size": 512, "backing_file": "base", "backing_fmt": "raw"},
    {"cluster_size": 16384, "extended_l2": True, "backing_file": "base", "backing_fmt": "raw"},
]
CACHES = {"l2-cache-size": 1024, "refcount-cache-size": 1024}
"""So small that tables are saved to make room in the middle of everything."""
LARGEST = 600
"""Sectors of the largest disk."""
STEPS = 60
MOST_SNAPSHOTS = 3
ANY = frozenset(IoType) - {IoType.BLOCK_STATUS}
CHANGING = ANY - {IoType.READ, IoType.FLUSH}
BITMAP = "writes"


class Life:
    """One disk from its making to its end.  ``events``: what happened to it, by name."""

    def __init__(self, seed: int, folder: Path | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.options = rng.choice(CONFIGURATIONS)
        self.folder = folder
        self.events: Counter[str] = Counter()
        size = rng.randrange(40, LARGEST) * SECTOR
        self.base = b""
        if "backing_file" in self.options:
            self.base = rng.randbytes(rng.randrange(1, LARGEST) * SECTOR)
        self.allowed = Allowed(size)
        self.allowed.adopt(self.base[:size].ljust(size, b"\0"))
        self.recorded: set[int] | None = None
        """Sectors written since there is a bitmap."""
        self.leaky = False
        """A fault or crash may have left clusters that nothing refers to."""
        store = MemoryStore()
        images.create(store, size, **self.options)
        self._open(store.content())

    def _open(self, content: bytes) -> None:
        self.initial = content
        self.log = WriteLog(MemoryStore(content))
        self.faults = Faults(self.log)
        self.hurt = False
        """A fault was armed since the image was opened: errors are to be expected."""
        self.image = DRIVER.open(self.faults, self._context())

    def _context(self) -> OpenContext:
        return OpenContext(readonly=False, open_child=self._open_child, options=CACHES)

    def _open_child(self, request: ChildRequest) -> BlockDevice | None:
        return None if request.name is None else MemoryStore(self.base, growable=False)

    # -- living ----------------------------------------------------------------------------------

    def live(self) -> None:
        plain = [self.write] * 8 + [self.zero, self.discard, self.compressed, self.read] * 2
        structural = [self.snapshot, self.apply, self.delete, self.resize, self.amend]
        structural += [self.add_bitmap, self.remove_bitmap, self.mend]
        for _ in range(STEPS):
            match self.rng.randrange(20):
                case 0 | 1:
                    self.restart()
                case 2:
                    self.crash()
                case 3 | 4:
                    self._with_fault(self.rng.choice([*plain, self.flush]), structural=False)
                case 5:
                    self._with_fault(self.rng.choice(structural), structural=True)
                case 6 | 7 | 8:
                    self._attempt(self.rng.choice(structural), structural=True)
                case 9:
                    self._attempt(self.flush, structural=False)
                case _:
                    self._attempt(self.rng.choice(plain), structural=False)
        self.restart()
        self.image.close()

    def digest(self) -> bytes:
        """What became of it, in short: equal for lives that were equal."""
        told = repr(sorted(self.events.items())).encode()
        return hashlib.sha256(told + self.log.inner.content()).digest()  # type: ignore[attr-defined]

    def _attempt(self, step: Callable[[], None], *, structural: bool) -> None:
        """One step; where it fails because the device had failed, the disk goes on as it can."""
        self.events[step.__name__] += 1
        before = set(self.recorded or ())
        try:
            step()
        except VdiskError:
            if not self.hurt:
                raise
            self.events["errors"] += 1
            if self.recorded is not None:  # what was refused need not be recorded
                self.recorded = before
            if structural:
                self.crash()
            else:
                self._look_again()

    def _with_fault(self, step: Callable[[], None], *, structural: bool) -> None:
        rng = self.rng
        once = rng.random() < 0.7
        fault = InjectError(
            where=Where(
                iotypes=rng.choice([ANY, CHANGING, frozenset({IoType.FLUSH})]),
                skip=rng.choice([0, 1, 2, rng.randrange(12)]),
                once=once,
            ),
            errno=errno.EIO if once else errno.ENOSPC,
            effect=rng.choice(list(Effect)),
        )
        self.events["faults"] += 1
        self.hurt = True
        self.faults.set_rules(fault)
        try:
            self._attempt(step, structural=structural)
        finally:
            self.faults.set_rules()

    def _look_again(self) -> None:
        """A request failed: some of its sectors are old, some new; the handle knows which."""
        self.faults.set_rules()
        try:
            content = self.image.read(0, self.image.size)
        except VdiskError:
            self.crash()
            return
        self.allowed.check_content(content)
        self.allowed.latest = [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]

    # -- ends and beginnings ---------------------------------------------------------------------

    def restart(self) -> None:
        """Close the image and open it again."""
        self.events["restarts"] += 1
        try:
            self.image.close()
        except VdiskError:
            if not self.hurt:
                raise
            self.crash()
            return
        self.allowed.on_acknowledged()
        content = self.log.inner.content()  # type: ignore[attr-defined]
        self.leaky |= self.hurt
        self._let_qemu_check(content)
        self._open(content)
        self._inspect()

    def crash(self) -> None:
        """Lose power, keep some of what was in flight, and go on with that."""
        self.events["crashes"] += 1
        self.leaky = True
        cuts = Cuts(self.initial, self.log.entries)
        cuts.advance(len(self.log.entries))
        kept = [self.rng.random() < 0.5 for _ in range(cuts.pending)]
        disk = cuts.torn(self.rng) if self.rng.random() < 0.6 else cuts.whole(kept)
        self.faults.set_rules(InjectError(where=Where(iotypes=ANY)))
        with contextlib.suppress(VdiskError):
            self.image.close()
        content = disk.content()
        self._open(content)
        self.allowed.check(self.image)
        there = [snapshot.id for snapshot in self.image.snapshots()]
        self.allowed.adopt(self.image.read(0, self.image.size), there)
        self._inspect()
        if self.image.header.version == 2:  # no mark says that counts or flags may be outdated
            self.image.check(repair={"leaks", "errors"})
        result = self.image.check()
        assert not result.corruptions + result.check_errors, result.findings

    def _inspect(self) -> None:
        """The disk, its snapshots and its bitmap are what they ought to be."""
        assert self.image.size in self.allowed.sizes
        assert self.image.read(0, self.image.size) == b"".join(self._visible())
        position = 0
        for extent in self.image.map():
            assert extent.start == position
            position = extent.end
        assert position == self.image.size
        for tag, content in self.allowed.snapshots.items():
            with self.image.open_snapshot(tag) as view:
                assert view.read(0, view.size) == content[: view.size]
        self._inspect_bitmap()

    def _visible(self) -> list[bytes]:
        return self.allowed.latest[: self.image.size // SECTOR]

    def _inspect_bitmap(self) -> None:
        found = [bitmap for bitmap in self.image.bitmaps() if bitmap.name == BITMAP]
        if not found:
            self.recorded = None
        elif "in-use" in found[0].flags:
            self.image.remove_bitmap(BITMAP)
            self.recorded = None
        elif self.recorded is None:  # adding it failed, but it is there
            self.recorded = set()
        else:
            dirty = {
                sector
                for start, length in self.image.dirty_ranges(BITMAP)
                for sector in range(start // SECTOR, -(-(start + length) // SECTOR))
            }
            there = range(self.image.size // SECTOR)
            assert self.recorded.intersection(there) <= dirty, "a write was not recorded"

    def _let_qemu_check(self, content: bytes) -> None:
        if self.rng.random() > 0.1 or self.folder is None:
            return
        path = self.folder / "image.qcow2"
        path.write_bytes(content)
        (self.folder / "base").write_bytes(self.base)
        done = qemu.img("check", "-f", "qcow2", path, check=False)
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 0 or (done.returncode == 3 and self.leaky), said

    # -- steps -----------------------------------------------------------------------------------

    def _span(self) -> tuple[int, int]:
        sectors = self.image.size // SECTOR
        first = self.rng.randrange(sectors)
        return first * SECTOR, min(self.rng.choice([1, 1, 2, 9, 40]), sectors - first) * SECTOR

    def _tell_write(self, offset: int, data: bytes) -> None:
        self.allowed.on_write(offset, data)
        if self.recorded is not None:
            self.recorded.update(range(offset // SECTOR, (offset + len(data)) // SECTOR))

    def write(self) -> None:
        offset, length = self._span()
        data = self.rng.randbytes(length)
        self._tell_write(offset, data)
        self.image.write(offset, data)

    def zero(self) -> None:
        offset, length = self._span()
        self._tell_write(offset, bytes(length))
        self.image.write_zeroes(offset, length, unmap=self.rng.random() < 0.5)

    def discard(self) -> None:
        offset, length = self._span()
        unit, end = self.image.cluster_size, offset + length
        first = -(-offset // unit) * unit
        last = end if end == self.image.size else end // unit * unit
        if first < last:
            self._tell_write(first, bytes(last - first))
        self.image.discard(offset, length)

    def compressed(self) -> None:
        unit = self.image.cluster_size
        offset = self._span()[0] // unit * unit
        if offset + unit <= self.image.size:
            data = self.rng.randbytes(16) * (unit // 16)
            packed = self.image.compress_cluster(data)
            assert packed is not None
            self._tell_write(offset, data)
            self.image.write_compressed(offset, packed)

    def read(self) -> None:
        offset, length = self._span()
        first = offset // SECTOR
        expected = b"".join(self.allowed.latest[first : first + length // SECTOR])
        assert self.image.read(offset, length) == expected

    def flush(self) -> None:
        self.image.flush()
        self.allowed.on_acknowledged()

    def snapshot(self) -> None:
        numbers = [int(one.id) for one in self.image.snapshots()]
        if len(numbers) < MOST_SNAPSHOTS and self.image.header.refcount_bits > 2:
            tag = str(max(numbers, default=0) + 1)
            self.allowed.on_snapshot(tag)
            self.image.create_snapshot("s", date=0)
            self.allowed.on_taken(tag)

    def _pick(self) -> str | None:
        tags = [one.id for one in self.image.snapshots()]
        return self.rng.choice(tags) if tags else None

    def apply(self) -> None:
        tag = self._pick()
        if tag is not None:
            content = self.allowed.snapshots[tag]
            self.allowed.on_resize(len(content))
            self._tell_write(0, content)
            self.image.apply_snapshot(tag)
            self.allowed.on_resized(len(content))
            self._forget_behind(len(content))

    def delete(self) -> None:
        tag = self._pick()
        if tag is not None:
            self.allowed.on_delete(tag)
            self.image.delete_snapshot(tag)
            self.allowed.on_deleted(tag)

    def resize(self) -> None:
        if self.image.header.version == 2 and self.image.snapshots():
            return  # version 2 does not say what size they have
        size = self.rng.randrange(20, LARGEST) * SECTOR
        self.allowed.on_resize(size)
        self.image.resize(size)
        self.allowed.on_resized(size)
        self._forget_behind(size)

    def _forget_behind(self, size: int) -> None:
        """A disk that got shorter has lost what a bitmap said of its end."""
        if self.recorded is not None:
            self.recorded.intersection_update(range(size // SECTOR))

    def amend(self) -> None:
        if self.image.header.version > 2 and self.image.header.refcount_bits > 2:
            changes: list[dict[str, Any]] = [
                {"refcount_bits": self.rng.choice([8, 16, 64])},
                {"lazy_refcounts": self.rng.random() < 0.5},
            ]
            self.image.amend(self.rng.choice(changes))

    def add_bitmap(self) -> None:
        if self.image.header.version > 2 and self.recorded is None:
            self.image.add_bitmap(BITMAP, 512)
            self.recorded = set()

    def remove_bitmap(self) -> None:
        if self.recorded is not None:
            self.image.remove_bitmap(BITMAP)
            self.recorded = None

    def mend(self) -> None:
        result = self.image.check(repair={"leaks"})
        if self.hurt:
            return  # where something could not be read nothing is freed
        assert not result.leaks + result.corruptions + result.check_errors, result.remaining
        self.leaky = False
