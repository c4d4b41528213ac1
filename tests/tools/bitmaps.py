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


def is_sound(image: Qcow2Image) -> bool:
    """No cluster is leaked or wrongly counted."""
    report = image.check()
    return not (report.leaks or report.corruptions or report.check_errors)


def reader(image: Qcow2Image) -> Qcow2Image:
    """What another program sees that opens the file now."""
    return images.open_image(copy_of(image), readonly=True)
