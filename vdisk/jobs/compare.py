"""compare: do two images hold the same content?

The maps are laid side by side.  Ranges that both say are zero, and ranges that both read from the
same place of the same file, are equal without being read; the rest is read in several threads::

    first     | DATA a.raw+0 |    HOLE     |  DATA a.raw+8M  |
    second    | DATA a.raw+0 | ZERO | DATA |  DATA b.raw+0   |
              | same         | same | read |  read           |

A shorter image is taken to be followed by zeroes.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import Extent, Kind
from vdisk.errors import VdiskError
from vdisk.jobs.parallel import in_order
from vdisk.jobs.progress import Progress
from vdisk.jobs.sources import Sources, as_device, padded_map, pairs, read_planned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vdisk.block import BlockDevice
    from vdisk.jobs.progress import ProgressCallback
    from vdisk.jobs.sources import Source

SECTOR = 512
"""The unit in which the first difference is reported, as disks are addressed."""

_CHUNK = 512 << 10
_WORKERS = 2


class Difference(enum.Enum):
    """In what two images differ."""

    SIZE = "size"
    CONTENT = "content"
    ALLOCATION = "allocation"


class CompareResult(NamedTuple):
    """``difference``: None if there is none.  ``offset``: of the first difference, in bytes."""

    difference: Difference | None
    offset: int | None = None

    @property
    def identical(self) -> bool:
        return self.difference is None


class _Range(NamedTuple):
    """A range to be read from both, and the extents of each that cover it; at least one.

    ``strict``: that the two differ in allocation is known, and the range is not read.
    """

    first: list[Extent]
    second: list[Extent]
    strict: bool = False

    @property
    def start(self) -> int:
        return self.first[0].start

    @property
    def length(self) -> int:
        return self.first[-1].end - self.first[0].start


def compare(
    first: Source,
    second: Source,
    *,
    strict: bool = False,
    progress: ProgressCallback | None = None,
) -> CompareResult:
    """Compare the contents of two images, up to the first difference.

    ``strict``: sizes that differ, and ranges that only one of the two has allocated, count as
    differences.  An image that fails raises its :class:`VdiskError`, with ``operation`` "read"
    if its map could be had.
    """
    with as_device(first) as one, as_device(second) as other:
        return _compare_devices(one, other, strict, progress)


def _compare_devices(
    first: BlockDevice, second: BlockDevice, strict: bool, progress: ProgressCallback | None
) -> CompareResult:
    if strict and first.size != second.size:
        return CompareResult(Difference.SIZE)
    end = max(first.size, second.size)
    meter = Progress(end, progress)
    sides = pairs(padded_map(first, 0, end), padded_map(second, 0, end))
    ranges = _ranges(sides, strict, meter)
    for result in in_order(_Comparer(), ranges, _WORKERS, 2 * _WORKERS):
        if result is not None:
            return result
    meter.finish()
    return CompareResult(None)


def _ranges(
    sides: Iterable[tuple[Extent, Extent]], strict: bool, meter: Progress
) -> Iterator[_Range]:
    """What must be read: long extents cut, neighbouring short ones together."""
    same = Sources().same
    pending = _Range([], [])
    for one, other in sides:
        meter.reach(one.start)
        differs = strict and _allocation(one) is not _allocation(other)
        alike = not differs and same(one, other)
        if pending.first and (differs or alike or pending.length + one.length > _CHUNK):
            yield pending
            pending = _Range([], [])
        if differs:
            yield _Range([one], [other], strict=True)
            return
        if not alike and one.length < _CHUNK:
            pending.first.append(one)
            pending.second.append(other)
        elif not alike:
            yield from _cut(one, other)
    if pending.first:
        yield pending


def _cut(one: Extent, other: Extent) -> Iterator[_Range]:
    """The same range of both in pieces of ``_CHUNK`` bytes."""
    for start in range(one.start, one.end, _CHUNK):
        end = min(start + _CHUNK, one.end)
        yield _Range([one.clipped(start, end)], [other.clipped(start, end)])


def _allocation(extent: Extent) -> Kind:
    return Kind.DATA if extent.kind is Kind.COMPRESSED else extent.kind


class _Comparer:
    """Reads ranges from both and compares them; called by ``_WORKERS`` threads at once."""

    def __init__(self) -> None:
        self._buffers = [(bytearray(_CHUNK), bytearray(_CHUNK)) for _ in range(_WORKERS)]

    def __call__(self, part: _Range) -> CompareResult | None:
        """None if the range is the same."""
        if part.strict:
            return CompareResult(Difference.ALLOCATION, part.start)
        one, other = buffers = self._buffers.pop()
        length = part.length
        try:
            read_planned(part.first, part.start, memoryview(one)[:length])
            read_planned(part.second, part.start, memoryview(other)[:length])
            if length < _CHUNK:
                one, other = one[:length], other[:length]
            if one == other:
                return None
            return CompareResult(Difference.CONTENT, part.start + first_difference(one, other))
        except VdiskError as error:
            error.operation = "read"
            raise
        finally:
            self._buffers.append(buffers)


def first_difference(one: bytearray, other: bytearray) -> int:
    """Where the first sector begins in which two buffers of one length differ."""
    low, high = 0, len(one)
    while high - low > SECTOR:
        middle = low + max((high - low) // 2 // SECTOR, 1) * SECTOR
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
