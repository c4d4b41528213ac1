"""Any directory: bitmaps, which survive being written and read, or a VdiskError; ≤ 256 MiB, ≤ 2 s.

The input stands where the bitmap directory of a valid image stood, and behind it what its
entries may point at; its first byte says how many bitmaps the header extension promises, its
second how many units of 8 bytes the directory has.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fuzz.images import context, small_images
from fuzz.mutate import change_bytes, change_fields
from fuzz.qcow2_fields import Finder
from fuzz.store import SmallDisk
from vdisk.errors import VdiskError
from vdisk.formats._qcow2 import bitmap_directory, layout
from vdisk.formats.qcow2 import DRIVER

if TYPE_CHECKING:
    import random

    from vdisk.formats.qcow2 import Qcow2Image

LONGEST = 2048
IMAGE = "small clusters"
_EXTENSION = layout.EXT_BITMAPS.to_bytes(4, "big")


def _extension(image: bytes | bytearray) -> int:
    """Where the data of the bitmaps extension begins."""
    return image.index(_EXTENSION) + 8


def seeds() -> dict[str, bytes]:
    image = small_images()[IMAGE]
    at = _extension(image)
    size, start = (int.from_bytes(image[at + n : at + n + 8], "big") for n in (8, 16))
    return {"two": bytes([2, size // 8]) + image[start : start + 512]}


def image_with(data: bytes) -> bytes:
    """A valid image but for its bitmap directory, which is the rest of the file."""
    image = bytearray(small_images()[IMAGE])
    count, size = data.ljust(2, b"\0")[:2]
    at = _extension(image)
    image[at : at + 4] = count.to_bytes(4, "big")
    image[at + 8 : at + 24] = (size * 8).to_bytes(8, "big") + len(image).to_bytes(8, "big")
    return bytes(image + data[2:])


def mutate(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        image = bytearray(image_with(data))
        groups = Finder(image).run().groups
        wanted = {name: groups.get(name, []) for name in ("bitmaps", "bitmap tables")}
        change_fields(image, wanted, rng, 512)
        return data[:2] + bytes(image[len(small_images()[IMAGE]) :])
    changed = bytearray(data)
    change_bytes(changed, rng, 8)
    return bytes(changed)


def run(data: bytes) -> None:
    _parse(data)
    image = image_with(data)
    with suppress(VdiskError), DRIVER.open(SmallDisk(image), context(image)) as opened:
        opened.check()
        for bitmap in opened.bitmaps():
            with suppress(VdiskError):
                assert sum(length for _, length in opened.dirty_ranges(bitmap.name)) <= opened.size
    file = SmallDisk(image)
    with suppress(VdiskError), DRIVER.open(file, context(image, readonly=False)) as opened:
        _change(opened)


def _parse(data: bytes) -> None:
    """The directory alone, its bytes taken as they are."""
    count, size = data.ljust(2, b"\0")[:2]
    try:
        entries = bitmap_directory.parse(data[2 : 2 + size * 8], count, path="fuzz", offset=0)
    except VdiskError:
        return
    written = bitmap_directory.build(entries)
    assert bitmap_directory.parse(written, count, path="fuzz", offset=0) == entries


def _change(image: Qcow2Image) -> None:
    for bitmap in image.bitmaps()[:4]:
        for change in (image.clear_bitmap, image.disable_bitmap, image.remove_bitmap):
            with suppress(VdiskError):
                image.write(0, b"recorded")
                change(bitmap.name)
