"""Any bytes: a device whose map has no gaps, or a VdiskError; ≤ 256 MiB, ≤ 2 s.

The disk is mapped and read, its snapshots and bitmaps too, and looked at as ``vdisk info`` does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fuzz.images import context, small_images
from fuzz.qcow2_fields import change_image
from fuzz.store import SmallDisk
from vdisk.errors import VdiskError
from vdisk.formats.qcow2 import DRIVER

if TYPE_CHECKING:
    import random

    from vdisk.block import BlockDevice
    from vdisk.formats.qcow2 import Qcow2Image

LONGEST = 512 << 10
WINDOW = 256 << 10
"""Bytes of the disk that are looked at, at its beginning and at its end."""
MOST = 8
"""Snapshots and bitmaps that are looked at."""


def seeds() -> dict[str, bytes]:
    return small_images()


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_image(data, rng)


def run(data: bytes) -> None:
    with suppress(VdiskError), DRIVER.open(SmallDisk(data), context(data)) as image:
        image.format_info()
        look_at(image)
        _look_at_snapshots(image)
        _look_at_bitmaps(image)


def look_at(disk: BlockDevice) -> None:
    """Map and read both ends of a disk."""
    for start in sorted({0, max(disk.size - WINDOW, 0) // 512 * 512}):
        length = min(WINDOW, disk.size - start)
        with suppress(VdiskError):
            position = start
            for extent in disk.map(start, length):
                assert extent.start == position
                assert extent.length > 0
                position = extent.end
            assert position == start + length
        with suppress(VdiskError):
            assert len(disk.read(start, length)) == length
        with suppress(VdiskError):
            disk.locate(start, min(length, 4096))


def _look_at_snapshots(image: Qcow2Image) -> None:
    for snapshot in image.snapshots()[:MOST]:
        with suppress(VdiskError), image.open_snapshot(snapshot.id) as view:
            look_at(view)
            if snapshot.vm_state_size < WINDOW:
                state = view.read_vm_state(0, snapshot.vm_state_size)
                assert len(state) == snapshot.vm_state_size


def _look_at_bitmaps(image: Qcow2Image) -> None:
    with suppress(VdiskError):
        for bitmap in image.bitmaps()[:MOST]:
            with suppress(VdiskError):
                end = 0
                for start, length in image.dirty_ranges(bitmap.name):
                    assert start >= end
                    assert length > 0
                    end = start + length
                assert end <= image.size
