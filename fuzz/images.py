"""Small qcow2 images with something of everything in them: where fuzzing begins."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

from fuzz.store import SmallDisk
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.formats import ChildRequest
    from vdisk.formats.qcow2 import Qcow2Image

SECRETS = {"key": b"passphrase"}
BACKING = random.Random(0).randbytes(20_000)

CONFIGURATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "small clusters": (96 << 10, {"cluster_size": 512}),
    "odd size": ((40 << 10) + 1536, {"cluster_size": 1024, "compression_type": "zstd"}),
    "version 2": (128 << 10, {"cluster_size": 1024, "compat": "0.10"}),
    "1-bit refcounts": (64 << 10, {"cluster_size": 512, "refcount_bits": 1}),
    "64-bit refcounts": (64 << 10, {"cluster_size": 512, "refcount_bits": 64}),
    "lazy refcounts": (64 << 10, {"cluster_size": 1024, "lazy_refcounts": True}),
    "subclusters": (112 << 10, {"cluster_size": 16384, "extended_l2": True}),
    "backing file": (
        64 << 10,
        {"cluster_size": 512, "backing_file": "base", "backing_fmt": "raw"},
    ),
    "data file": (64 << 10, {"cluster_size": 512, "data_file": "data"}),
    "encrypted": (
        64 << 10,
        {"cluster_size": 512, "encrypt.format": "aes", "encrypt.key-secret": "key"},
    ),
}
"""Size and options of each; the passphrase of the encrypted one is in :data:`SECRETS`."""


def open_child(request: ChildRequest) -> BlockDevice | None:
    """Backing and data files in memory, whatever their names, for images that name one."""
    if request.name is None:
        return None
    if request.role == "backing":
        return MemoryStore(BACKING, growable=False)
    return SmallDisk(bytes(64 << 10))


def context(data: bytes, *, readonly: bool = True, repairing: bool = False) -> OpenContext:
    """How an image is opened: its passphrase is given if the header says it has one."""
    options = {"encrypt.key-secret": "key"} if data[32:36] == b"\0\0\0\1" else {}
    return OpenContext(
        readonly=readonly,
        open_child=open_child,
        options=options,
        secrets=SECRETS,
        repairing=repairing,
    )


@cache
def small_images() -> dict[str, bytes]:
    """An image of each configuration, and some that were not closed or are marked corrupt."""
    images = {name: _make(size, options) for name, (size, options) in CONFIGURATIONS.items()}
    plain = images["small clusters"]
    images["marked dirty"] = plain[:79] + b"\1" + plain[80:]
    images["marked corrupt"] = plain[:79] + b"\2" + plain[80:]
    return images


def _make(size: int, options: dict[str, Any]) -> bytes:
    file = MemoryStore()
    DRIVER.create(file, size, options, SECRETS)
    image = DRIVER.open(file, context(file.content(), readonly=False))
    _fill(image, random.Random(size))
    image.close()
    return file.content()


def _fill(image: Qcow2Image, rng: random.Random) -> None:
    unit, header = image.cluster_size, image.header
    for cluster in (0, 1, 3, 4, image.size // unit - 1):
        image.write(cluster * unit, rng.randbytes(min(unit // 2, 700)))
    image.write_zeroes(5 * unit, unit)
    if not header.crypt_method and not header.external_data:
        packed = image.compress_cluster(b"squeezed".ljust(unit, b"!"))
        assert packed is not None
        image.write_compressed(6 * unit, packed)
    if header.refcount_bits > 1 and not header.external_data:
        image.create_snapshot("first", date=1, vm_state=b"state of a machine")
        image.write(0, b"after the snapshot")
        image.create_snapshot("second", date=2)
        image.write(3 * unit, b"after the other")
    if header.version > 2:
        image.add_bitmap("writes", 512)
        image.add_bitmap("nothing", 4096, enabled=False)
        image.write(unit, b"recorded")
        image.save_bitmaps()
