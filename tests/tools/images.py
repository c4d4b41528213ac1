"""Small qcow2 images for tests, made and opened without going through names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.formats import ChildRequest, OpenContext
from vdisk.formats.qcow2 import DRIVER, Qcow2Image
from vdisk.formats.raw import RawImage
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    import os

    from vdisk.block import BlockDevice

    Where = str | os.PathLike[str] | MemoryStore

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "v2": {"compat": "0.10"},
    "512-byte clusters": {"cluster_size": 512},
    "2 MiB clusters": {"cluster_size": 2 << 20},
    "1-bit refcounts": {"cluster_size": 4096, "refcount_bits": 1},
    "2-bit refcounts": {"cluster_size": 1024, "refcount_bits": 2},
    "64-bit refcounts": {"cluster_size": 512, "refcount_bits": 64},
    "lazy refcounts": {"lazy_refcounts": True},
    "zstd": {"compression_type": "zstd"},
    "subclusters": {"extended_l2": True},
    "small subclusters": {"extended_l2": True, "cluster_size": 16384},
}
"""Ways to create an image that differ in how its metadata works."""


def create(where: Where, size: int, **options: Any) -> None:
    """A new qcow2 image with ``-o`` options."""
    if isinstance(where, MemoryStore):
        DRIVER.create(where, size, options)
        return
    with FileStore(where, readonly=False, create=True, ignore_flush=True) as file:
        DRIVER.create(file, size, options)


def open_child(request: ChildRequest) -> BlockDevice | None:
    """Backing and data files: raw ones by absolute path, qcow2 ones likewise."""
    if request.name is None:
        return None
    file = FileStore(request.name, readonly=request.readonly)
    if request.role == "data-file":
        return file
    if request.format == "qcow2":
        return DRIVER.open(file, OpenContext(open_child=open_child))
    return RawImage(file, readonly=True)


def open_image(where: Where, *, readonly: bool = False, **options: Any) -> Qcow2Image:
    """Open a qcow2 image; ``options`` are run-time ones with ``_`` for ``-``."""
    file = (
        where
        if isinstance(where, MemoryStore)
        else FileStore(where, readonly=readonly, ignore_flush=True)
    )
    named = {name.replace("_", "-"): value for name, value in options.items()}
    context = OpenContext(readonly=readonly, open_child=open_child, options=named)
    return DRIVER.open(file, context)
