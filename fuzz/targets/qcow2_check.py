"""Any bytes: check gives a result or a VdiskError, what a repair calls clean is; ≤ 256 MiB, ≤ 2 s.

A repair changes the content of no disk that could be read before; but where an entry of an
encrypted image points past the end of the file, noise becomes zeroes.
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

    from vdisk.formats.qcow2 import Qcow2Image

LONGEST = 512 << 10
READABLE = 1 << 20
"""Bytes of the largest disk whose content is compared."""


def seeds() -> dict[str, bytes]:
    return small_images()


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_image(data, rng)


def run(data: bytes) -> None:
    file = SmallDisk(data)
    before = None
    with suppress(VdiskError), DRIVER.open(SmallDisk(data), context(data)) as image:
        before = content(image)
    try:
        with DRIVER.open(file, context(data, readonly=False, repairing=True)) as image:
            result = image.check(repair={"leaks", "errors"})
            clean = not result.corruptions + result.leaks + result.check_errors
    except VdiskError:
        return
    if clean:
        repaired = file.content()
        with DRIVER.open(SmallDisk(repaired), context(repaired)) as image:
            again = image.check()
            assert not again.corruptions + again.check_errors + again.leaks, again.findings
            assert before in (None, content(image))


def content(image: Qcow2Image) -> bytes | None:
    """The bytes of a small disk, not encrypted; None if something cannot be read."""
    if image.size <= READABLE and image.encryption is None:
        with suppress(VdiskError):
            return image.read(0, image.size)
    return None
