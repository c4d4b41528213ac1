"""What the tests of dirty bitmaps share."""

from __future__ import annotations

from tests.tools import images
from vdisk.formats._qcow2 import bitmap_directory
from vdisk.formats._qcow2.tables import words_from_bytes
from vdisk.formats.qcow2 import Qcow2Image
from vdisk.stores.memory import MemoryStore

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZE = 10 * MIB


def new_file(size: int = SIZE, **options: object) -> MemoryStore:
    file = MemoryStore()
    images.create(file, size, **options)
    return file


def new_image(size: int = SIZE, **options: object) -> Qcow2Image:
    return images.open_image(MemoryStore(new_file(size, **options).content()))


def copy_of(image: Qcow2Image) -> MemoryStore:
    """The file as a crash at this moment would leave it."""
    return MemoryStore(image.file.content())  # type: ignore[attr-defined]


def reopened(image: Qcow2Image, *, readonly: bool = False) -> Qcow2Image:
    image.close()
    return images.open_image(copy_of(image), readonly=readonly)


def ranges(image: Qcow2Image, name: str = "b") -> list[tuple[int, int]]:
    return list(image.dirty_ranges(name))


def table_words(image: Qcow2Image, name: str = "b") -> list[int]:
    entry = bitmap_directory.read(image._core)[name]
    return list(words_from_bytes(image.file.read(entry.table_offset, entry.table_size * 8)))


def leaks(image: Qcow2Image) -> set[int]:
    """Host clusters that are counted and that neither bitmaps nor an empty image refer to."""
    core = image._core
    used = set(core.refcounts.own_clusters()) | {0}
    used |= set(range(core.l1.offset, core.l1.offset + core.header.l1_size * 8, core.cluster_size))
    found = set()
    for offset, length in image._bitmaps.clusters():
        found |= set(range(offset // core.cluster_size, -(-(offset + length) // core.cluster_size)))
    used = {c for c in used if c < core.cluster_size} | {
        c // core.cluster_size for c in used if c >= core.cluster_size
    }
    end = core.refcounts.last_used() + 1
    return {c for c in range(end) if core.refcounts.count(c)} - used - found


def reader(image: Qcow2Image) -> Qcow2Image:
    """What another program sees that opens the file now."""
    return images.open_image(copy_of(image), readonly=True)
