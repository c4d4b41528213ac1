"""Images of one size, made by name, that name others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import vdisk
from vdisk.opening import open_image

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


def qcow2(path: Path, backing: str | None = None, format: str | None = "raw") -> str:
    """A new qcow2 image, its backing file named but not looked at."""
    vdisk.create(path, SIZE, format="qcow2")
    if backing is not None:
        with open_image(str(path), readonly=False, format="qcow2") as image:
            image.change_backing(backing, format)  # type: ignore[attr-defined]
    return str(path)
