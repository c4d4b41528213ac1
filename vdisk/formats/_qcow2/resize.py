"""Changing the size of the disk, and giving it clusters before they are written.

Growing writes the header last, shrinking first: at any cut the disk has one of the two sizes,
and everything inside it is as it was.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vdisk.block import Kind
from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.zeroing import Writer
from vdisk.formats.raw import preallocate as preallocate_file
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from vdisk.formats._qcow2.core import Core
    from vdisk.formats._qcow2.mapping import Mapping
    from vdisk.formats.qcow2 import Qcow2Image

PREALLOCATION = ("off", "metadata", "falloc", "full")
_STEP = 256 << 20
"""Guest bytes preallocated between two looks at the free clusters."""


def resize(core: Core, mapping: Mapping, size: int, preallocation: str = "off") -> None:
    """Make the disk ``size`` bytes long, a multiple of 512; the image is held alone meanwhile.

    Raises :class:`InvalidRequestError`, :class:`UnsupportedFeatureError`.
    """
    header = core.header
    if size % layout.SECTOR or not 0 <= size < 1 << 63:
        raise InvalidRequestError(
            f"size {size} is not a multiple of {layout.SECTOR} below 8 EiB", path=core.file.name
        )
    if header.version < 3 and header.nb_snapshots:
        raise UnsupportedFeatureError(
            "a version 2 image with snapshots cannot be resized: its snapshots do not record "
            "their size (amend compat=1.1)",
            path=core.file.name,
        )
    with core.gate.alone:
        core.settle()
        old = header.size
        if size > old:
            _grow(core, mapping, old, size, preallocation)
        elif size < old:
            _shrink(core, mapping, old, size)


def _grow(core: Core, mapping: Mapping, old: int, size: int, preallocation: str) -> None:
    entries = core.header.l1_entries_for(size)
    if entries * 8 > layout.MAX_L1_BYTES:
        raise InvalidRequestError(
            f"{size} bytes would need an L1 table larger than 32 MiB", path=core.file.name
        )
    if entries > len(core.l1.words):
        missing = array("Q", bytes((entries - len(core.l1.words)) * 8))
        offset, clusters = core.switch_l1(core.l1.words + missing, old)
        core.release(offset >> core.cluster_bits, clusters)
    if core.header.external_data:
        core.data.truncate(size)
    writer = Writer(core, mapping, lambda: size)
    _hide_leftovers(core, mapping, writer, old, size)
    if preallocation == "off" and core.header.data_file_raw:
        preallocation = "metadata"  # both files show the same, whatever the data file has there
    if preallocation != "off":
        first = min(_first_new(core, mapping, old), size)
        preallocate(core, mapping, writer, first, size, preallocation)
    core.flush()
    with core.header_file.changing() as header:
        header.size = size
    core.settle()


def _first_new(core: Core, mapping: Mapping, old: int) -> int:
    """Where preallocation may begin: with the cluster that the old disk ends in, if it is empty."""
    start = round_down(old, core.cluster_size)
    empty = all(extent.reads_zero for extent in mapping.extents(start, old - start))
    return start if empty else round_up(old, core.cluster_size)


def _hide_leftovers(core: Core, mapping: Mapping, writer: Writer, old: int, size: int) -> None:
    """What lies behind the old end must not show: in its last cluster, in the backing file, or
    as the VM state of a snapshot that was applied."""
    first, covered = round_up(old, core.cluster_size), len(core.l1.words) * core.header.l2_coverage
    if first < covered:
        writer.unallocate(first, covered - first)
    end = min(round_up(old, core.cluster_size), size)
    if mapping.backing is not None:
        end = max(end, min(mapping.backing.size, size))
    leftovers = mapping.extents(old, end - old)
    if not all(extent.reads_zero for extent in leftovers):
        writer.write_zeroes(old, end - old, unmap=True)


def _shrink(core: Core, mapping: Mapping, old: int, size: int) -> None:
    with core.header_file.changing() as header:
        header.size = size
    core.at_work.wait()
    first = round_up(size, core.cluster_size)
    if first < old:
        Writer(core, mapping, lambda: old).unallocate(first, old - first)
    core.settle()
    if core.header.external_data:
        core.data.truncate(size)
    else:
        _trim_file(core)


def _trim_file(core: Core) -> None:
    """Cut free clusters off the end of the file."""
    end = core.refcounts.last_used() + 1
    if core.file.growable and end << core.cluster_bits < core.file.size:
        core.file.truncate(end << core.cluster_bits)


def preallocate_new(image: Qcow2Image, mode: str) -> None:
    """Preallocate the whole of an image just created (its file stays open)."""
    if image.header.backing_file is not None and not image.header.extended_l2:
        raise InvalidRequestError(
            "preallocation would hide the backing file (it needs extended_l2 to go with one)",
            path=image.name,
        )
    core = image._core
    preallocate(core, image._mapping, image._writer, 0, image.size, mode)
    core.settle()


def preallocate(
    core: Core, mapping: Mapping, writer: Writer, start: int, end: int, mode: str
) -> None:
    """Give every unallocated cluster of [start, end) a host cluster, contents zero.

    "metadata": only mapped; "falloc": the file reserves room; "full": zeroes are written.
    """
    if core.header.external_data and core.data is not core.file:
        preallocate_file(core.data, start, end, mode if mode != "metadata" else "off")
    for position in range(start, end, _STEP):
        stop = min(position + _STEP, end)
        for run in list(mapping.runs(position, stop - position)):
            if run.kind is None or (run.kind is Kind.ZERO and run.host is None):
                writer.preallocate(run.start, run.length, mode)
    if core.file.growable:
        core.file.truncate(
            max(core.file.size, (core.refcounts.last_used() + 1) << core.cluster_bits)
        )
