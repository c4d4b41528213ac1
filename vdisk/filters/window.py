"""A window: the bytes [offset, offset + size) of another device, as a device.

A partition of a disk, a LUKS payload, a raw image inside a larger file::

    inner   |......|=====================|......|
                   offset                offset + size
    window         |0                    size|
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.block import BlockDevice, Extent
from vdisk.errors import OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager


class Window(BlockDevice):
    """``size`` bytes of ``inner`` from ``offset`` on (None: up to its end).

    Raises :class:`OutOfRangeError` when the window does not fit.  Closing it closes ``inner``.
    """

    def __init__(self, inner: BlockDevice, offset: int = 0, size: int | None = None) -> None:
        room = inner.size - offset
        if offset < 0 or room < 0 or (size is not None and not 0 <= size <= room):
            raise OutOfRangeError(
                f"a window of {size} bytes at {offset} does not fit in {inner.size} bytes",
                path=inner.name,
            )
        self.inner = inner
        self._offset = offset
        self._size = room if size is None else size
        self.name = inner.name
        self.readonly = inner.readonly
        self.zeroes_fast = inner.zeroes_fast
        self.locate_unit = min(inner.locate_unit, offset & -offset or inner.locate_unit)

    @property
    def size(self) -> int:
        return self._size

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self.inner.locate(self._offset + offset, length)

    def moves(self) -> int | None:
        return self.inner.moves()

    def hold(self) -> AbstractContextManager[None]:
        return self.inner.hold()

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.inner.read_into(self._offset + offset, view)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        self.inner.readv(self._offset + offset, views)

    def locate_to_write(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self.inner.locate_to_write(self._offset + offset, length)

    def hold_to_write(self) -> AbstractContextManager[None]:
        return self.inner.hold_to_write()

    def _write(self, offset: int, view: memoryview) -> None:
        self.inner.write(self._offset + offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self.inner.writev(self._offset + offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.inner.write_zeroes(self._offset + offset, length, unmap=unmap)

    def _copy_from(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        return self.inner.copy_from(self._offset + offset, source, source_offset, length)

    def _discard(self, offset: int, length: int) -> None:
        self.inner.discard(self._offset + offset, length)

    def _flush(self) -> None:
        self.inner.flush()

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        for extent in self.inner.map(self._offset + start, length):
            yield extent.shifted(-self._offset)

    def _close(self) -> None:
        self.inner.close()
