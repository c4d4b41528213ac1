"""A device that somebody else works on meanwhile, who wants to know of each change to it.

Around every change the attendant's context is entered::

    write  -->  with around(offset, length):  inner.write(...)

It may keep what is there before it is overwritten, note what has to be looked at again, or make
the change wait for a moment.  Reads pass by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.filters.passing import Passing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from vdisk.block import BlockDevice

    Around = Callable[[int, int], AbstractContextManager[object]]
    """The context of a change of ``length`` bytes at ``offset``."""


class Attended(Passing):
    """``inner``, each change of which happens inside ``around(offset, length)``.

    Closing it closes ``inner``, as with any filter; who only wants it out of the way drops it.
    """

    def __init__(self, inner: BlockDevice, around: Around) -> None:
        super().__init__(inner)
        self._around = around

    def _write(self, offset: int, view: memoryview) -> None:
        with self._around(offset, len(view)):
            self.inner.write(offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        with self._around(offset, sum(map(len, views))):
            self.inner.writev(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._around(offset, length):
            self.inner.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        with self._around(offset, length):
            self.inner.discard(offset, length)
