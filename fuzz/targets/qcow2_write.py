"""Any bytes, any life: every operation succeeds or is a VdiskError; ≤ 256 MiB, ≤ 2 s.

An image that is opened for writing and then written, zeroed, discarded, resized, given snapshots
and bitmaps.  What is done follows from the bytes of the image, so that an input is all there is.
"""

from __future__ import annotations

import random
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fuzz.images import context, small_images
from fuzz.qcow2_fields import change_image
from fuzz.store import SmallDisk
from vdisk.errors import VdiskError
from vdisk.formats.qcow2 import DRIVER

if TYPE_CHECKING:
    from vdisk.formats.qcow2 import Qcow2Image

LONGEST = 512 << 10
STEPS = 10
LARGEST = 64 << 10
"""Bytes of the largest request."""


def seeds() -> dict[str, bytes]:
    return small_images()


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_image(data, rng)


def run(data: bytes) -> None:
    file = SmallDisk(data)
    with suppress(VdiskError), DRIVER.open(file, context(data, readonly=False)) as image:
        life = Life(image, random.Random(zlib.crc32(data)))
        for _ in range(STEPS):
            with suppress(VdiskError):
                life.step()
    left = file.content()
    with suppress(VdiskError), DRIVER.open(SmallDisk(left), context(left)) as image:
        image.check()


class Life:
    """Operations by chance."""

    def __init__(self, image: Qcow2Image, rng: random.Random) -> None:
        self.image = image
        self.rng = rng
        self.steps = [
            *[self.write] * 5,
            *[self.zero, self.discard, self.read, self.flush] * 2,
            *[self.compressed, self.take, self.apply, self.delete, self.resize],
            *[self.amend, self.add_bitmap, self.remove_bitmap, self.clear_bitmap],
        ]

    def step(self) -> None:
        self.rng.choice(self.steps)()

    def _span(self) -> tuple[int, int]:
        size = self.image.size
        offset = self.rng.choice([0, self.rng.randrange(size or 1), max(size - 5000, 0)])
        return offset, min(self.rng.choice([1, 512, 5000, LARGEST]), size - offset)

    def write(self) -> None:
        offset, length = self._span()
        self.image.write(offset, b"w" * length)

    def zero(self) -> None:
        self.image.write_zeroes(*self._span(), unmap=self.rng.random() < 0.5)

    def discard(self) -> None:
        self.image.discard(*self._span())

    def read(self) -> None:
        self.image.read(*self._span())

    def flush(self) -> None:
        self.image.flush()

    def compressed(self) -> None:
        unit = self.image.cluster_size
        packed = self.image.compress_cluster(bytes(unit))
        assert packed is not None
        self.image.write_compressed(self._span()[0] // unit * unit, packed)

    def take(self) -> None:
        self.image.create_snapshot("taken", date=0, vm_state=b"state")

    def _snapshot(self) -> str:
        snapshots = self.image.snapshots()
        return self.rng.choice(snapshots).id if snapshots else "none"

    def apply(self) -> None:
        self.image.apply_snapshot(self._snapshot())

    def delete(self) -> None:
        self.image.delete_snapshot(self._snapshot())

    def resize(self) -> None:
        size = self.image.size + self.rng.choice([512, 100_000, -512, -50_000, -(1 << 40)])
        mode = self.rng.choice(["off", "off", "metadata"])
        self.image.resize(max(size, 512), mode if size > self.image.size else "off")

    def amend(self) -> None:
        changes: list[dict[str, Any]] = [
            {"refcount_bits": 8},
            {"refcount_bits": 64},
            {"lazy_refcounts": True},
        ]
        self.image.amend(self.rng.choice(changes))

    def add_bitmap(self) -> None:
        self.image.add_bitmap("new", 512)

    def remove_bitmap(self) -> None:
        self.image.remove_bitmap("writes")

    def clear_bitmap(self) -> None:
        self.image.clear_bitmap("writes")
