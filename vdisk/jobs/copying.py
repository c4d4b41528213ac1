"""Copying one disk into another: which ranges are skipped, zeroed or copied, and in what blocks.

the map says    target reads as zeroes    target holds something    target has a backing file
DATA            copy                      copy                      copy
ZERO            skip                      zero                      zero
HOLE            skip                      zero                      zero
below the top   copy                      copy                      skip: it shows through
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, NamedTuple, cast

from vdisk.block import Extent, Kind
from vdisk.errors import DeviceError, UnsupportedFeatureError
from vdisk.jobs.encoding import Compressed, Sparse, verbatim
from vdisk.jobs.engine import BATCH_SIZE, CopySettings, Totals, run
from vdisk.jobs.parallel import MAX_WORKERS
from vdisk.jobs.plan import Action, plan
from vdisk.jobs.progress import Progress
from vdisk.jobs.salvage import Salvager
from vdisk.jobs.sources import read_planned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.block import BlockDevice
    from vdisk.jobs.encoding import CompressingDevice, Encoder
    from vdisk.jobs.plan import Step
    from vdisk.jobs.progress import ProgressCallback

SPARSE_SIZE = 4096
"""Zeroes in a row that become a hole unless the caller says otherwise: a file system's block."""

SECTOR = 512
_FILE_BLOCK = 4096
_FIRST_LOOK = 64 << 20
_UNKNOWN = 64 << 10
"""What is taken for data where the map fails, before it is asked again."""


class Zeroes(enum.Enum):
    """What the target has where the source has zeroes."""

    HOLES = "holes"
    """No room of its own, if it can do without."""
    ALLOCATED = "allocated"
    """Room, in which it has zeroes by whatever means."""
    DATA = "data"
    """Zeroes that were written like any other bytes."""


class CopyOptions(NamedTuple):
    """How to copy a disk.

    ``sparse_size``: data is searched for so many zeroes in a row; 0: it is not.
    ``zeroes``: what becomes of those, and of what the source's map says is zero.
    ``over_backing``: the target's backing file shows what the source's does.
    ``target_is_zero``: the target reads as zeroes; None: find out from its map.
    ``offload``: let the system copy between files, without looking for zeroes.
    ``workers``: threads.  ``out_of_order``: let them write as they come.  ``rate_limit``: bytes
    a second.  ``batch_size``: bytes read and written at a time.  ``salvage``: told of each sector
    that cannot be read, which is then zero.  ``count_copied``: progress is made by bytes copied,
    for which the whole map is looked at first; else by how far into the disk they are.
    """

    sparse_size: int = SPARSE_SIZE
    zeroes: Zeroes = Zeroes.HOLES
    over_backing: bool = False
    target_is_zero: bool | None = None
    compress: bool = False
    offload: bool = False
    workers: int | None = None
    out_of_order: bool = False
    rate_limit: int | None = None
    batch_size: int = BATCH_SIZE
    salvage: Callable[[str], None] | None = None
    count_copied: bool = False


def copy_disk(
    source: BlockDevice,
    target: BlockDevice,
    options: CopyOptions,
    progress: ProgressCallback | None = None,
) -> Totals:
    """Copy all of ``source`` to the same offsets of ``target``, which is no smaller."""
    if options.zeroes is Zeroes.ALLOCATED:  # also where they are zero already
        options = options._replace(target_is_zero=False)
    if options.target_is_zero is None:
        is_zero = not options.over_backing and _reads_zero(target, source.size)
        options = options._replace(target_is_zero=is_zero)
    unit = _unit(target, options)
    settings = CopySettings(
        encode=_encoder(target, unit, options),
        compressor=_compressor(target) if options.compress else None,
        offload=options.offload,
        unmap=options.zeroes is Zeroes.HOLES,
        workers=options.workers or min(os.cpu_count() or 1, MAX_WORKERS),
        out_of_order=options.out_of_order,
        rate_limit=options.rate_limit,
        batch_size=options.batch_size,
        read=Salvager(options.salvage) if options.salvage else read_planned,
        count_copied=options.count_copied,
    )
    total = _to_be_copied(source, options, unit) if options.count_copied else source.size
    meter = Progress(total, progress)
    totals = run(_steps(source, options, unit), target, settings, meter)
    meter.finish()
    return totals


def _steps(source: BlockDevice, options: CopyOptions, unit: int) -> Iterator[Step]:
    """The plan for all of ``source``."""
    choose = _chooser(options)
    extents = source.map() if options.salvage is None else _told(source, options.salvage)
    return plan(((extent, choose(extent)) for extent in extents), unit)


def _to_be_copied(source: BlockDevice, options: CopyOptions, unit: int) -> int:
    """How many bytes are going to be read."""
    silent = options if options.salvage is None else options._replace(salvage=lambda _: None)
    steps = _steps(source, silent, unit)
    return sum(step.length for step in steps if step.action is Action.COPY)


def _told(source: BlockDevice, complain: Callable[[str], None]) -> Iterator[Extent]:
    """The map of ``source``; where it cannot be had, ``complain`` is told, and it is data.

    Where a question fails smaller ones narrow down why, then they grow again.
    """
    position, step = 0, source.size
    while position < source.size:
        step = min(step, source.size - position)
        try:
            for extent in source.map(position, step):
                yield extent
                position = extent.end
            step *= 2
        except DeviceError as error:
            if step > _UNKNOWN:
                step = _UNKNOWN
                continue
            why = os.strerror(error.errno)
            complain(f"error while reading block status at offset {position}: {why}")
            yield Extent(position, step, Kind.DATA, source, position)
            position += step


def _reads_zero(target: BlockDevice, length: int) -> bool:
    """Whether the first ``length`` bytes are zero, as its map says.

    In steps that grow: a map joins what is alike, and a server may need a request for each part
    of that, so an answer about all of a large disk can be long in coming.
    """
    start, step = 0, _FIRST_LOOK
    while start < length:
        step = min(step, length - start)
        try:
            zero = all(extent.reads_zero for extent in target.map(start, step))
        except DeviceError:  # a server that cannot say; writing tells whether it is gone
            return False
        if not zero:
            return False
        start, step = start + step, 2 * step
    return True


def _unit(target: BlockDevice, options: CopyOptions) -> int:
    """Bytes that the target allocates at once: what a plan cuts the disk into."""
    if options.offload:
        return SECTOR
    if options.compress:
        return _compressor(target).cluster_size
    return target.subcluster_size if target.subcluster_size > 1 else _FILE_BLOCK


def _encoder(target: BlockDevice, unit: int, options: CopyOptions) -> Encoder:
    zero = bool(options.target_is_zero)
    if options.compress:
        keep = options.zeroes is Zeroes.DATA
        return Compressed(_compressor(target), unit, target_is_zero=zero, keep_zeroes=keep)
    if not options.sparse_size:
        return verbatim
    return Sparse(options.sparse_size, target_is_zero=zero)


def _compressor(target: BlockDevice) -> CompressingDevice:
    if not hasattr(target, "write_compressed"):
        raise UnsupportedFeatureError(
            "this format does not hold compressed clusters (qcow2 does)", path=target.name
        )
    return cast("CompressingDevice", target)


def _chooser(options: CopyOptions) -> Callable[[Extent], Action]:
    """What to do with each extent of the source; see the table above."""
    zero = Action.SKIP if options.target_is_zero else Action.ZERO
    if options.zeroes is Zeroes.DATA:
        zero = Action.COPY

    def choose(extent: Extent) -> Action:
        if options.over_backing and extent.depth > 0:
            return Action.SKIP
        return zero if extent.reads_zero else Action.COPY

    return choose
