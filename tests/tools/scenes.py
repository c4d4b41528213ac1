"""Images with something of everything in them, and every operation that writes to one.

What may be found after an operation that was cut short or failed is judged in one place, too:
:meth:`Scene.allow`.  Tests of failing requests and of cuts go through the same operations.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.tools import images, qemu
from vdisk.formats import ChildRequest, OpenContext
from vdisk.formats.qcow2 import DRIVER, Qcow2Image
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vdisk.block import BlockDevice

SECTOR = 512

CACHES = {"l2-cache-size": 1024, "refcount-cache-size": 1024}
"""So small that tables are read, and saved to make room, in the middle of everything."""

IMAGE, DATA_FILE, BACKING = "image", "data-file", "backing"
"""The files of an image, by their roles, by which it names them too."""


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


def open_files(
    files: Mapping[str, BlockDevice], *, readonly: bool = False, repairing: bool = False
) -> Qcow2Image:
    """The image in ``files``, which are those of its roles."""

    def open_child(request: ChildRequest) -> BlockDevice | None:
        return files.get(request.role)

    context = OpenContext(
        readonly=readonly, open_child=open_child, options=CACHES, repairing=repairing
    )
    return DRIVER.open(files[IMAGE], context)


def stores(contents: Mapping[str, bytes]) -> dict[str, MemoryStore]:
    """Files in memory."""
    return {role: MemoryStore(content, name=role) for role, content in contents.items()}


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def compressible(seed: int, length: int) -> bytes:
    return pattern(seed, 16) * (length // 16)


# -- the image -------------------------------------------------------------------------------------


class Scene:
    """An image with something of everything in it.  ``initial``: its files, by their roles."""

    def __init__(self, *, filled: int = 0, **options: Any) -> None:
        self.options = options
        self.unit = options.get("cluster_size", 512)
        self.version = 2 if options.get("compat") == "0.10" else 3
        self.external = DATA_FILE in options.values()
        self.snapshots = options.get("refcount_bits", 16) > 1 and not self.external
        size = 40 * self.unit
        files = {IMAGE: MemoryStore()}
        if BACKING in options.values():
            files[BACKING] = MemoryStore(pattern(5, 30 * self.unit), growable=False)
        images.create(files[IMAGE], size, **options)
        if self.external:
            files[DATA_FILE] = MemoryStore(bytes(size))
        with open_files(files) as image:
            image.resize(size + filled * self.unit)  # with the refcount table of a small one
            self._fill(image)
        self.initial = {role: file.content() for role, file in files.items()}
        self.changing = [role for role in files if role != BACKING]
        """The roles of the files that are written to."""
        with open_files(stores(self.initial), readonly=True) as image:
            self.before = state_of(image)

    def _fill(self, image: Qcow2Image) -> None:
        unit = self.unit
        image.write(0, pattern(1, 9 * unit))
        for number in (10, 11) if not self.external else ():
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

    # -- what may be found -----------------------------------------------------------------------

    def inspect(
        self,
        operation: Operation,
        contents: Mapping[str, bytes],
        after: State,
        *,
        head: int = 0,
        done: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Hold files against the law, as whoever opens them next will find them.

        ``done``: the operation is stable, so that what was before must not be found.
        ``folder``: where to put them for qemu-img; None leaves it out.
        """
        with open_files(stores(contents), readonly=True) as image:
            marked = image.dirty
            found = image.check()
        mending = self.version == 2 and operation in [*SNAPSHOTS, amend_version]
        assert marked or mending or not found.corruptions, found.findings
        assert not found.check_errors, found.findings
        if folder is not None and not marked:
            assert _qemu_code(contents, folder) in (0, 3) or found.corruptions
        files = stores(contents)
        with open_files(files, repairing=mending) as image:
            if mending:  # no mark says that flags and counts are being changed
                assert not image.check(repair={"leaks", "errors"}).remaining
            result = image.check(repair={"leaks"})
            assert result.clean, result.remaining
            state = state_of(image)
            self.allow(operation, state, after, head)
            if done:
                assert state.content[head:] == after.content[head:]
                assert state.snapshots == after.snapshots
            image.write(0, b"alive")
        contents = {role: file.content() for role, file in files.items()}
        with open_files(stores(contents), readonly=True) as image:
            assert image.check().clean
            assert image.read(0, image.size) == b"alive" + state.content[5:]
        if folder is not None:
            assert _qemu_code(contents, folder) == 0

    def allow(self, operation: Operation, found: State, after: State, head: int = 0) -> None:
        """Hold what was ``found`` against the states before the operation and after it.

        ``head``: bytes at the beginning of the disk that were written since.
        """
        before = self.before
        assert len(found.content) in {len(before.content), len(after.content)}
        if operation in SNAPSHOTS:
            assert found.content[head:] in (before.content[head:], after.content[head:])
        else:
            _allow_sectors(found.content, before.content, after.content, head)
        assert found.snapshots in (before.snapshots, after.snapshots)
        self._allow_bitmaps(operation, found, after)

    def _allow_bitmaps(self, operation: Operation, found: State, after: State) -> None:
        before = self.before
        assert found.bitmaps.keys() <= before.bitmaps.keys() | after.bitmaps.keys()
        assert found.bitmaps.keys() >= before.bitmaps.keys() & after.bitmaps.keys()
        dirty = found.bitmaps.get("resting")
        assert dirty is None or dirty == self._resting(len(found.content))
        recorded = found.bitmaps.get("recording")
        if recorded is None or operation in (clear_bitmap, switch_bitmaps, unallocate):
            return  # it need not know what was written
        size = min(len(found.content), len(before.content))
        for start in range(0, size, SECTOR):
            if found.content[start : start + SECTOR] != before.content[start : start + SECTOR]:
                assert any(first <= start < first + count for first, count in recorded), start

    def _resting(self, size: int) -> frozenset[tuple[int, int]]:
        return frozenset({(0, min(4 * self.unit, size))})


def _qemu_code(contents: Mapping[str, bytes], folder: Path) -> int:
    """The exit status of ``qemu-img check``: 0 if nothing is wrong, 3 if clusters leak."""
    for role, content in contents.items():
        folder.joinpath(role).write_bytes(content)
    options = f"driver=qcow2,file.filename={folder / IMAGE}"
    if DATA_FILE in contents:  # whose name qemu-img takes to be relative to the working directory
        options += f",data-file.driver=file,data-file.filename={folder / DATA_FILE}"
    return qemu.img("check", "--image-opts", options, check=False).returncode


def _allow_sectors(found: bytes, before: bytes, after: bytes, head: int) -> None:
    size = len(found)
    old, new = before[:size].ljust(size, b"\0"), after[:size].ljust(size, b"\0")
    for start in range(head, size, SECTOR):
        sector = found[start : start + SECTOR]
        assert sector in (old[start : start + SECTOR], new[start : start + SECTOR]), start


SCENES: dict[str, dict[str, Any]] = {
    "512-byte clusters": {"cluster_size": 512},
    "64-bit refcounts": {"cluster_size": 512, "refcount_bits": 64},
    "lazy refcounts": {"cluster_size": 1024, "lazy_refcounts": True},
    "subclusters": {"cluster_size": 16384, "extended_l2": True},
    "v2": {"cluster_size": 512, "compat": "0.10"},
    "full refcount table": {"cluster_size": 512, "refcount_bits": 64, "filled": 4040},
    "a backing file": {"cluster_size": 512, "backing_file": BACKING, "backing_fmt": "raw"},
    "a data file": {"cluster_size": 1024, "data_file": DATA_FILE},
    "a raw data file": {"cluster_size": 1024, "data_file": DATA_FILE, "data_file_raw": True},
}


@functools.cache
def scene_called(name: str) -> Scene:
    return Scene(**SCENES[name])


# -- what is done to it ----------------------------------------------------------------------------


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


def unallocate(image: Qcow2Image) -> None:
    """As commit does to what it has committed."""
    image.unallocate()
    image.flush()


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
        image.amend({"refcount_bits": 16, "lazy_refcounts": False})
        image.write_zeroes(7 * image.cluster_size, 2 * image.cluster_size)
        image.create_snapshot("zeroes")
        image.amend({"compat": "0.10"})


def change_backing(image: Qcow2Image) -> None:
    image.change_backing("null-co://", "raw")
    image.change_backing(None, None)


def add_bitmap(image: Qcow2Image) -> None:
    image.add_bitmap("new", 512)


def remove_bitmap(image: Qcow2Image) -> None:
    image.remove_bitmap("resting")


def switch_bitmaps(image: Qcow2Image) -> None:
    image.disable_bitmap("recording")
    image.enable_bitmap("recording")


def clear_bitmap(image: Qcow2Image) -> None:
    image.clear_bitmap("recording")


def merge_bitmap(image: Qcow2Image) -> None:
    image.merge_bitmap("recording", image.dirty_ranges("resting"))


def save_bitmaps(image: Qcow2Image) -> None:
    image.write(5 * image.cluster_size, b"new" * 100)
    image.save_bitmaps()


Operation = Callable[[Qcow2Image], None]
GUEST: list[Operation] = [
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
    unallocate,
]
SNAPSHOTS: list[Operation] = [create_snapshot, apply_snapshot, delete_snapshot]
STRUCTURE: list[Operation] = [
    grow,
    grow_preallocated,
    shrink,
    amend_refcounts,
    amend_lazy,
    amend_version,
    change_backing,
]
BITMAPS: list[Operation] = [
    add_bitmap,
    remove_bitmap,
    clear_bitmap,
    merge_bitmap,
    save_bitmaps,
    switch_bitmaps,
]
OPERATIONS = [*GUEST, *SNAPSHOTS, *STRUCTURE, *BITMAPS]


def is_possible(operation: Operation, options: Mapping[str, Any]) -> bool:
    """Whether an operation goes with a scene; a large one is for what needs it only."""
    if "filled" in options or operation is write_at_the_end:
        return "filled" in options and operation in [write_at_the_end, create_snapshot]
    if "compat" in options:  # version 2, with a snapshot
        return operation in [*GUEST, *SNAPSHOTS, amend_version, change_backing]
    if DATA_FILE in options.values() and operation in [*SNAPSHOTS, write_compressed]:
        return False
    if operation is amend_version:
        return "extended_l2" not in options and DATA_FILE not in options.values()
    if operation is change_backing:
        return not {DATA_FILE, BACKING}.intersection(options.values())
    return True


CASES = [
    (name, operation)
    for name, options in SCENES.items()
    for operation in OPERATIONS
    if is_possible(operation, options)
]
