"""Copying persistent dirty bitmaps from one qcow2 image into another."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vdisk.errors import CorruptImageError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.bitmaps import BitmapInfo
    from vdisk.formats.qcow2 import Qcow2Image


def copyable_bitmaps(
    source: BlockDevice, *, skip_broken: bool, warn: Callable[[str], None]
) -> list[BitmapInfo]:
    """The bitmaps of ``source`` that can be copied.

    One that was not closed properly ("in-use") does not tell the truth: it is left out if
    ``skip_broken``, and raises :class:`CorruptImageError` otherwise.
    """
    found = []
    for bitmap in _bitmaps(source).bitmaps():
        if "in-use" not in bitmap.flags:
            found.append(bitmap)
        elif skip_broken:
            warn(f"skipping the inconsistent bitmap {bitmap.name!r}")
        else:
            raise CorruptImageError(
                f"the bitmap {bitmap.name!r} is inconsistent: leave it out "
                "(--skip-broken-bitmaps) or remove it (vdisk bitmap --remove)",
                path=source.name,
            )
    return found


def copy_bitmaps(source: BlockDevice, bitmaps: Sequence[BitmapInfo], target: BlockDevice) -> None:
    """Add ``bitmaps`` of ``source`` to ``target``, with their content and flags."""
    reader, writer = _bitmaps(source), _bitmaps(target)
    for bitmap in bitmaps:
        writer.add_bitmap(bitmap.name, granularity=bitmap.granularity, enabled=False)
        writer.merge_bitmap(bitmap.name, reader.dirty_ranges(bitmap.name))
        if "auto" in bitmap.flags:
            writer.enable_bitmap(bitmap.name)


def _bitmaps(device: BlockDevice) -> Qcow2Image:
    if not hasattr(device, "bitmaps"):
        raise UnsupportedFeatureError(
            "this format has no persistent bitmaps (qcow2 does)", path=device.name
        )
    return cast("Qcow2Image", device)
