"""What filters have in common that leave most requests as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.block import BlockDevice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from vdisk.block import Extent


class Passing(BlockDevice):
    """Everything is passed on to ``inner``, which is closed with this device."""

    def __init__(self, inner: BlockDevice) -> None:
        self.inner = inner
        self.name = inner.name
        self.readonly = inner.readonly
        self.growable = inner.growable
        self.zeroes_fast = inner.zeroes_fast
        self.verbatim = inner.verbatim
        self.locate_unit = inner.locate_unit

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def subcluster_size(self) -> int:
        return self.inner.subcluster_size

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self.inner.locate(offset, length)

    def moves(self) -> int | None:
        return self.inner.moves()

    def hold(self) -> AbstractContextManager[None]:
        return self.inner.hold()

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        return self.inner.map(start, length)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.inner.read_into(offset, view)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        self.inner.readv(offset, views)

    def _write(self, offset: int, view: memoryview) -> None:
        self.inner.write(offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self.inner.writev(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.inner.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        self.inner.discard(offset, length)

    def _flush(self) -> None:
        self.inner.flush()

    def _truncate(self, size: int) -> None:
        self.inner.truncate(size)

    def note(self, event: str) -> None:
        self.inner.note(event)

    def _close(self) -> None:
        self.inner.close()


class Between(Passing):
    """As :class:`Passing`, except that nothing is read past this device."""

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self, offset

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        """As the device below, except that all bytes are read through this one."""
        for extent in self.inner.map(start, length):
            if extent.source is None:
                yield extent
            else:
                yield extent._replace(source=self, source_offset=extent.start)
