"""What is read from a backing file is kept in the image: the second time it is near.

::

    read      |  depth 0  |  depth 1  |  zeroes  |
    does       read        read+write  fills

A copy must not overwrite what somebody wrote meanwhile, so copies and writes exclude one another.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vdisk.block import BlockDevice, Extent, Kind, execute_read
from vdisk.errors import InvalidRequestError
from vdisk.filters.passing import Passing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vdisk.options import OptionBag


class CopyOnRead(Passing):
    """A writable image with a backing file; reads bring what they meet into the image."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        if inner.readonly:
            raise InvalidRequestError(
                f"{inner.name} is opened read-only, and copying on read writes to it"
            )
        self._lock = threading.Lock()

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        """Only what is in the image already: the rest must be read through this device."""
        extents = list(self.inner.map(offset, length))
        return None if any(map(_is_below, extents)) else self.inner.locate(offset, length)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        for extent in self.inner.map(start, length):
            if _is_below(extent):
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
        with self._lock:
            extents = list(self.inner.map(offset, len(view)))
            with self.inner.hold():
                execute_read(extents, offset, view)
            for extent in filter(_is_below, extents):
                start = extent.start - offset
                self.inner.write(extent.start, view[start : start + extent.length])

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
    """Whether the bytes stand in a backing file."""
    return extent.depth > 0 and extent.kind in (Kind.DATA, Kind.COMPRESSED)


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
