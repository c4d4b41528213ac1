"""measure: how large the file of a new image would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import formats
from vdisk.errors import InvalidRequestError
from vdisk.jobs.sources import as_device, snapshot_of
from vdisk.opening.creating import convert_options
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vdisk.block import BlockDevice, Extent
    from vdisk.jobs.sources import Source

_DEFAULT_CLUSTER_SIZE = 65536


class MeasureResult(NamedTuple):
    """Bytes of the new file.

    ``required``: at first.  ``fully_allocated``: once all of the disk has been written.
    ``bitmaps``: for the source's bitmaps besides; None where there can be none.
    """

    required: int
    fully_allocated: int
    bitmaps: int | None = None


def measure(
    source: Source | None = None,
    *,
    size: int | None = None,
    snapshot: str | None = None,
    target_format: str = "raw",
    options: Mapping[str, Any] | None = None,
) -> MeasureResult:
    """Measure the image that converting ``source`` makes, or an empty one of ``size`` bytes.

    ``snapshot``: id or name of an internal snapshot of the source.  ``options``: those that the
    new image would be created with.  Raises :class:`InvalidRequestError`.
    """
    typed = convert_options(target_format, options or {})
    driver = formats.driver(target_format)
    option_size = typed.pop("size", None)
    if source is None:
        size = option_size if size is None else size
        if size is None:
            raise InvalidRequestError("either a size or an image is measured: name one")
        return MeasureResult(*driver.measure(size, typed))
    if size is not None:
        raise InvalidRequestError("a size and an image exclude each other: name one")
    with as_device(source) as image:
        disk = image if snapshot is None else snapshot_of(image, snapshot)
        cluster_size = typed.get("cluster_size", _DEFAULT_CLUSTER_SIZE)
        allocated = allocated_bytes(disk.map(), cluster_size)
        required, at_most = driver.measure(disk.size, typed, allocated)
        bitmaps = None
        if target_format == "qcow2" and typed.get("compat") not in ("0.10", "v2"):
            bitmaps = _bitmaps_size(image, cluster_size)
        return MeasureResult(required, at_most, bitmaps)


def allocated_bytes(extents: Iterable[Extent], cluster_size: int) -> int:
    """Bytes of the clusters in which any data lie."""
    total = counted = 0
    for extent in extents:
        if extent.reads_zero:
            continue
        start = max(round_down(extent.start, cluster_size), counted)
        counted = max(round_up(extent.end, cluster_size), counted)
        total += max(counted - start, 0)
    return total


def _bitmaps_size(image: BlockDevice, cluster_size: int) -> int | None:
    """Bytes that the bitmaps of ``image`` would take; None for a format without them."""
    if not hasattr(image, "bitmaps"):
        return None
    from vdisk.formats._qcow2.measure import measure_bitmaps

    whole = [bitmap for bitmap in image.bitmaps() if "in-use" not in bitmap.flags]
    named = [(bitmap.name, bitmap.granularity) for bitmap in whole]
    return measure_bitmaps(named, image.size, cluster_size)
