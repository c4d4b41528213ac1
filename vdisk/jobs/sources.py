"""What jobs read: names or devices, maps side by side, and whether two are the same bytes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, cast

from vdisk.block import BlockDevice, Extent, Kind, execute_read
from vdisk.errors import UnsupportedFeatureError
from vdisk.opening import open_image
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vdisk.formats.qcow2 import Qcow2Image

    Source = str | os.PathLike[str] | Mapping[str, Any] | BlockDevice
    """An image by name, by options, or open already (then it stays open)."""


@contextlib.contextmanager
def as_device(source: Source) -> Iterator[BlockDevice]:
    """``source`` itself if it is a device; an image opened by its name, and closed again."""
    if isinstance(source, BlockDevice):
        yield source
    else:
        with open_image(source) as device:
            yield device


def read_planned(extents: Iterable[Extent], offset: int, view: memoryview) -> None:
    """:func:`vdisk.block.execute_read`, of which the devices below hear as of any other reading.

    Whoever maps an image and reads where the map leads passes its format by, which would have
    told them (:meth:`~vdisk.block.BlockDevice.note`).
    """
    plan = list(extents)
    for source in {id(each.source): each.source for each in plan}.values():
        if source is not None:
            source.note("read_aio")
    execute_read(plan, offset, view)


def snapshot_of(image: BlockDevice, tag: str) -> BlockDevice:
    """The internal snapshot with this id or name, as a read-only device."""
    if not hasattr(image, "open_snapshot"):
        raise UnsupportedFeatureError(
            "this format has no internal snapshots (qcow2 does)", path=image.name
        )
    return cast("Qcow2Image", image).open_snapshot(tag)


class Sources:
    """Knows devices by what they are: a file opened twice is one source."""

    def __init__(self) -> None:
        self._known: dict[int, object] = {}

    def identity(self, device: BlockDevice) -> object:
        """Equal for two devices if they are one file, or one object."""
        found = self._known.get(id(device))
        if found is None:
            found = self._known[id(device)] = _identity(device)
        return found

    def same(self, first: Extent, second: Extent) -> bool:
        """True if the extents, of equal length, must read alike without being read."""
        if first.reads_zero or second.reads_zero:
            return first.reads_zero and second.reads_zero
        return (
            first.kind is Kind.DATA
            and second.kind is Kind.DATA
            and first.source_offset == second.source_offset
            and first.source is not None
            and second.source is not None
            and self.identity(first.source) == self.identity(second.source)
        )


def _identity(device: BlockDevice) -> object:
    if isinstance(device, FileStore):
        status = os.fstat(device.fileno())
        return status.st_dev, status.st_ino
    return id(device)


def files_under(device: BlockDevice) -> Iterator[FileStore]:
    """The files that a device is read from, through formats, filters and backing files."""
    if isinstance(device, FileStore):
        yield device
    for role in ("file", "data_file", "backing", "inner"):
        child = getattr(device, role, None)
        if child is not None:
            yield from files_under(child)
    for part in getattr(device, "parts", ()):
        yield from files_under(part)


def pairs(first: Iterable[Extent], second: Iterable[Extent]) -> Iterator[tuple[Extent, Extent]]:
    """Two maps of the same range side by side, cut where either has an edge."""
    left, right = iter(first), iter(second)
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        if one.length == other.length:
            yield one, other
            one, other = next(left, None), next(right, None)
        elif one.end < other.end:
            yield one, other.clipped(other.start, one.end)
            other = other.clipped(one.end, other.end)
            one = next(left, None)
        else:
            yield one.clipped(one.start, other.end), other
            one = one.clipped(other.end, one.end)
            other = next(right, None)


def padded_map(device: BlockDevice, start: int, end: int) -> Iterator[Extent]:
    """The map of [start, end) of a device that may be shorter: past its end is a hole."""
    inside = min(end, device.size)
    if inside > start:
        yield from device.map(start, inside - start)
    if inside < end:
        first = max(inside, start)
        yield Extent(first, end - first, Kind.HOLE)
