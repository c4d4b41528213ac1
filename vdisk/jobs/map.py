"""Where the bytes of a disk are, as ``vdisk map`` lists them.

One pass over the extents of the image; entries that only differ in where they begin are one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from vdisk.block import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import BlockDevice, Extent
    from vdisk.formats.qcow2 import Qcow2Image


class MapEntry(NamedTuple):
    """A range of the disk, as QAPI's ``MapEntry``: bytes, and what is known of them.

    ``depth``: how many backing files down.  ``present``: some image of the chain holds
    something for the range.  ``zero``: it reads as zeroes.  ``data``: it has room in an image's
    file.  ``offset``: where in ``filename`` the bytes stand verbatim; None for compressed and
    encrypted ones.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None
    filename: str | None


_NOWHERE = MapEntry(0, 0, 0, False, False, False, None, None)


def map_entries(
    image: BlockDevice, start: int = 0, length: int | None = None
) -> Iterator[MapEntry]:
    """The map of ``image`` from ``start`` on, at most ``length`` bytes of it.

    A range that is empty, or lies past the end, gives one entry of no length, as in QEMU.
    """
    room = max(image.size - start, 0)
    length = room if length is None else min(length, room)
    if not length:
        yield _NOWHERE._replace(start=start)
        return
    pending: MapEntry | None = None
    for entry in _entries(image, start, length):
        if pending is None:
            pending = entry
        elif _continues(entry, pending):
            pending = pending._replace(length=pending.length + entry.length)
        else:
            yield pending
            pending = entry
    if pending is not None:
        yield pending


def _continues(entry: MapEntry, before: MapEntry) -> bool:
    if entry[2:6] != before[2:6] or entry.filename != before.filename:
        return False
    if entry.offset is None or before.offset is None:
        return entry.offset is before.offset
    return entry.offset == before.offset + before.length


def _entries(image: BlockDevice, start: int, length: int) -> Iterator[MapEntry]:
    preallocated: dict[int, bool] = {}
    for extent in image.map(start, length):
        at, size, kind, source, offset, depth = extent
        if kind is Kind.HOLE:
            yield MapEntry(at, size, depth, False, True, False, None, None)
        elif source is None or kind is Kind.COMPRESSED or not source.verbatim:
            zero = kind is Kind.ZERO
            yield MapEntry(at, size, depth, True, zero, not zero, None, None)
        elif kind is Kind.ZERO:
            yield MapEntry(at, size, depth, True, True, False, offset, source.name)
        elif _is_preallocated(image, extent, preallocated):
            yield from _by_file(extent, source)
        else:
            yield MapEntry(at, size, depth, True, False, True, offset, source.name)


def _is_preallocated(image: BlockDevice, extent: Extent, known: dict[int, bool]) -> bool:
    """Does the layer that holds ``extent`` map more than its file has room for?

    Then some of its clusters were allocated without being written, and its file knows which:
    they are holes of it.
    """
    found = known.get(extent.depth)
    if found is None:
        layer: BlockDevice | None = image
        for _ in range(extent.depth):
            layer = None if layer is None else layer.backing
        found = known[extent.depth] = layer is not None and _maps_holes(layer)
    return found


def _maps_holes(layer: BlockDevice) -> bool:
    """As QEMU tells: clusters in use are more than a tenth, and two, above those stored."""
    if getattr(layer, "format_name", None) != "qcow2":
        return False
    image = cast("Qcow2Image", layer)
    stored: int | None = getattr(image.file, "allocated_size", None)
    if stored is None:
        return False
    clusters = stored // image.cluster_size
    threshold = max(clusters * 10 // 9, clusters + 2)
    if image.file.size // image.cluster_size < threshold:  # no need to count them
        return False
    return image.used_clusters(threshold) >= threshold


def _by_file(extent: Extent, source: BlockDevice) -> Iterator[MapEntry]:
    """``extent`` split where its file changes between data and hole."""
    assert extent.source_offset is not None
    delta = extent.start - extent.source_offset
    for part in source.map(extent.source_offset, extent.length):
        yield MapEntry(
            start=part.start + delta,
            length=part.length,
            depth=extent.depth,
            present=True,
            zero=part.reads_zero,
            data=True,
            offset=part.start,
            filename=source.name,
        )
