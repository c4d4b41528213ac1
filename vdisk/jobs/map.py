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
    from vdisk.stores._nbd.status import Run
    from vdisk.stores.nbd import NbdStore


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


_Facts = tuple[int, bool, bool, bool, str | None]
"""What does not change along an entry: depth, present, zero, data, filename."""

_Piece = tuple[int, int, _Facts, int | None]
"""Start, length, facts, offset.  Plain tuples: an image can have millions of them."""


def map_entries(
    image: BlockDevice, start: int = 0, length: int | None = None
) -> Iterator[MapEntry]:
    """The map of ``image`` from ``start`` on, at most ``length`` bytes of it.

    A range that is empty, or lies past the end, gives one entry of no length, as in QEMU.
    """
    room = max(image.size - start, 0)
    length = room if length is None else min(length, room)
    if not length:
        yield MapEntry(start, 0, 0, False, False, False, None, None)
        return
    known: _Facts | None = None
    begin = end = start
    offset: int | None = None
    for at, size, facts, place in _pieces(image, start, length):
        expected = None if offset is None else offset + at - begin
        if facts != known or place != expected:
            if known is not None:
                yield _entry(begin, end, known, offset)
            begin, known, offset = at, facts, place
        end = at + size
    if known is not None:
        yield _entry(begin, end, known, offset)


def _entry(begin: int, end: int, facts: _Facts, offset: int | None) -> MapEntry:
    depth, present, zero, data, filename = facts
    return MapEntry(begin, end - begin, depth, present, zero, data, offset, filename)


def _pieces(image: BlockDevice, start: int, length: int) -> Iterator[_Piece]:
    if (runs := _status_runs(image, start, length)) is not None:
        yield from runs
        return
    preallocated: dict[int, bool] = {}
    for extent in image.map(start, length):
        at, size, kind, source, offset, depth = extent
        if kind is Kind.HOLE:
            yield at, size, (depth, False, True, False, None), None
        elif source is None or kind is Kind.COMPRESSED or not source.verbatim:
            zero = kind is Kind.ZERO
            yield at, size, (depth, True, zero, not zero, None), None
        elif kind is Kind.ZERO:
            yield at, size, (depth, True, True, False, source.name), offset
        elif _is_preallocated(image, extent, preallocated):
            yield from _by_file(extent, source)
        else:
            yield at, size, (depth, True, False, True, source.name), offset


def _status_runs(image: BlockDevice, start: int, length: int) -> Iterator[_Piece] | None:
    """The map of an NBD export, whose server says what has room; None for all other disks."""
    is_raw = getattr(image, "format_name", None) == "raw"
    place: BlockDevice = getattr(image, "file", image) if is_raw else image
    if place.size != image.size or not hasattr(place, "status_runs"):
        return None
    runs = cast("NbdStore", place).status_runs(start, length)
    return None if runs is None else _told(runs, place.name)


def _told(runs: Iterator[tuple[int, int, Run]], name: str) -> Iterator[_Piece]:
    for at, size, run in runs:
        zero = run.kind is not Kind.DATA
        if run.kind is Kind.HOLE or (run.hole and not zero):  # nowhere, or of unknown content
            yield at, size, (run.depth, False, zero, False, None), None
        else:
            yield at, size, (run.depth, True, zero, not run.hole, name), at


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


def _by_file(extent: Extent, source: BlockDevice) -> Iterator[_Piece]:
    """``extent`` split where its file changes between data and hole."""
    assert extent.source_offset is not None
    delta = extent.start - extent.source_offset
    for part in source.map(extent.source_offset, extent.length):
        facts = (extent.depth, True, part.reads_zero, True, source.name)
        yield part.start + delta, part.length, facts, part.start
