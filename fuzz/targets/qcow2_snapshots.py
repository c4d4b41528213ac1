"""Any table: snapshots, which survive being written and read, or a VdiskError; ≤ 256 MiB, ≤ 2 s.

The input stands where the snapshot table of a valid image stood; its first byte says how many
entries the header promises.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fuzz.images import context, small_images
from fuzz.mutate import change_bytes, change_fields
from fuzz.qcow2_fields import Finder
from fuzz.store import SmallDisk
from fuzz.targets.qcow2_read import look_at
from vdisk.errors import VdiskError
from vdisk.formats._qcow2 import snapshots
from vdisk.formats.qcow2 import DRIVER

if TYPE_CHECKING:
    import random

    from vdisk.formats.qcow2 import Qcow2Image

LONGEST = 1024
IMAGE = "small clusters"
NB_SNAPSHOTS, SNAPSHOTS_OFFSET = slice(60, 64), slice(64, 72)


def seeds() -> dict[str, bytes]:
    image = small_images()[IMAGE]
    start = int.from_bytes(image[SNAPSHOTS_OFFSET], "big")
    return {"two": b"\2" + image[start : start + 256], "one": b"\1" + image[start : start + 128]}


def image_with(table: bytes) -> bytes:
    """A valid image but for its snapshot table, which is the rest of the file."""
    image = bytearray(small_images()[IMAGE])
    image[NB_SNAPSHOTS] = table[:1].rjust(4, b"\0")
    image[SNAPSHOTS_OFFSET] = len(image).to_bytes(8, "big")
    return bytes(image + table[1:])


def mutate(data: bytes, rng: random.Random) -> bytes:
    table = bytearray(data)
    image = bytearray(image_with(data))
    fields = {"snapshots": Finder(image).run().groups.get("snapshots", [])}
    if rng.random() < 0.7:
        change_fields(image, fields, rng, 512)
        return bytes(table[:1]) + bytes(image[len(image) - len(table) + 1 :])
    change_bytes(table, rng, 8)
    return bytes(table)


def run(data: bytes) -> None:
    image = image_with(data)
    with suppress(VdiskError), DRIVER.open(SmallDisk(image), context(image)) as opened:
        _round_trip(opened)
        for snapshot in opened.snapshots()[:4]:
            with suppress(VdiskError), opened.open_snapshot(snapshot.id) as view:
                look_at(view)
    for change in ("apply_snapshot", "delete_snapshot"):
        file = SmallDisk(image)
        with suppress(VdiskError), DRIVER.open(file, context(image, readonly=False)) as opened:
            for snapshot in opened.snapshots()[:1]:
                getattr(opened, change)(snapshot.id)


def _round_trip(image: Qcow2Image) -> None:
    """What was read, written as another table, is read as the same."""
    found = image.snapshots()
    written = snapshots.table_bytes(found, image.size)
    again = bytes([len(found)]) + written
    with DRIVER.open(SmallDisk(image_with(again)), context(b"")) as copy:
        for old, new in zip(found, copy.snapshots(), strict=True):
            size = image.size if old.disk_size is None else old.disk_size
            assert new == old._replace(disk_size=size)
