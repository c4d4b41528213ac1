"""What is read from a backing file is kept in the image: the second time it is near.

::

    read      |  depth 0  |  depth 1: data  |  depth 1: zeroes  |
    does       read        read+write        fill+write zeroes

The image keeps whole clusters: writing a part of one brings the rest of it along.  Clusters of
nothing but zeroes become zero clusters, so that afterwards the image no longer needs its backing
file for what was read.

A copy must not overwrite what somebody wrote meanwhile, so copies and writes exclude one another.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vdisk.block import BlockDevice, Extent, execute_read
from vdisk.errors import InvalidRequestError
from vdisk.filters.passing import Passing
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vdisk.options import OptionBag


class CopyOnRead(Passing):
    """A writable image with a backing file; reads bring what they meet into the image."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        if inner.readonly:
            raise InvalidRequestError(f"Can't use copy-on-read on read-only device {inner.name}")
        self._lock = threading.Lock()
        self._unit = inner.subcluster_size

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """Only what is in the image already: the rest must be read through this device."""
        extents = list(self.inner.map(offset, length))
        return None if any(map(_is_below, extents)) else self.inner.locate(offset, length)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        for extent in self.inner.map(start, length):
            if _is_below(extent) and not extent.reads_zero:
                yield extent._replace(source=self, source_offset=extent.start)
            else:
                yield extent

    def _read_into(self, offset: int, view: memoryview) -> None:
        if any(map(_is_below, self.inner.map(offset, len(view)))):
            self._copy(offset, view)
        else:
            self.inner.read_into(offset, view)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self._read_into(offset, view)
            offset += len(view)

    def _copy(self, offset: int, view: memoryview) -> None:
        """Read, and keep what came from below, to the edges of its clusters."""
        end = offset + len(view)
        first, last = round_down(offset, self._unit), min(round_up(end, self._unit), self.size)
        with self._lock:
            extents = list(self.inner.map(first, last - first))
            inside = [e.clipped(offset, end) for e in extents if e.start < end and e.end > offset]
            with self.inner.hold():
                execute_read(inside, offset, view)
            for extent in filter(_is_below, extents):
                if not extent.reads_zero:
                    self._keep(extent, offset, view)
            self._keep_zeroes(extents)

    def _keep(self, extent: Extent, offset: int, view: memoryview) -> None:
        """Write data from below; what was not asked for comes along with the rest of its cluster,
        or has one of its own with zeroes that were."""
        start, end = max(extent.start, offset), min(extent.end, offset + len(view))
        if start < end:
            self.inner.write(start, view[start - offset : end - offset])
        else:
            self.inner.write(extent.start, self.inner.read(extent.start, extent.length))

    def _keep_zeroes(self, extents: list[Extent]) -> None:
        """Make zero clusters of those that are nothing but zeroes from below."""
        for start, end in _zero_runs(extents):
            first = round_up(start, self._unit)
            last = end if end == self.size else round_down(end, self._unit)
            if first < last:
                self.inner.write_zeroes(first, last - first, unmap=True)

    def _write(self, offset: int, view: memoryview) -> None:
        with self._lock:
            self.inner.write(offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        with self._lock:
            self.inner.writev(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._lock:
            self.inner.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        with self._lock:
            self.inner.discard(offset, length)


def _is_below(extent: Extent) -> bool:
    """Whether a backing file shows through."""
    return extent.depth > 0


def _zero_runs(extents: list[Extent]) -> Iterator[tuple[int, int]]:
    """Start and end of the zeroes from below, neighbours joined."""
    start: int | None = None
    for extent in extents:
        zero = _is_below(extent) and extent.reads_zero
        if zero and start is None:
            start = extent.start
        elif not zero and start is not None:
            yield start, extent.start
            start = None
    if start is not None:
        yield start, extents[-1].end


class CopyOnReadDriver:
    """``{"driver": "copy-on-read", "file": …}``."""

    children = ("file",)
    images: frozenset[str] = frozenset()

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> CopyOnRead:
        image = children["file"]
        try:
            options.finish()
            return CopyOnRead(image)
        except BaseException:
            image.close()
            raise


FILTER = CopyOnReadDriver()
