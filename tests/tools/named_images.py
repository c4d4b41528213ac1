"""Images made and opened by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vdisk
from vdisk.opening import open_image

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
"""Bytes of a disk that :func:`qcow2` makes."""


def make(path: Path, size: int, *writes: tuple[int, bytes], **options: Any) -> str:
    """A qcow2 image with data at offsets."""
    vdisk.create(path, size, format="qcow2", **options)
    with vdisk.open(path, "r+", format="qcow2") as image:
        for offset, data in writes:
            image.write(offset, data)
    return str(path)


def content(path: str, format: str = "qcow2") -> bytes:
    with vdisk.open(path, format=format) as image:
        return image.read(0, image.size)


def qcow2(path: Path, backing: str | None = None, format: str | None = "raw") -> str:
    """A new qcow2 image, its backing file named but not looked at."""
    vdisk.create(path, SIZE, format="qcow2")
    if backing is not None:
        with open_image(str(path), readonly=False, format="qcow2") as image:
            image.change_backing(backing, format)  # type: ignore[attr-defined]
    return str(path)
