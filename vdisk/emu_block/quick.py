"""Requests done at once, in the thread that submits them: what the page cache holds.

A read of a guest costs less here than handing it to a thread, if it need not wait for the disk::

    locate/map -> the file and offset that hold the bytes
    preadv(file, slices of guest RAM, offset, RWF_NOWAIT)      one system call, no copy
                  |
                  '--> short, or EAGAIN: not in the page cache: a worker reads it

A write goes into the page cache without waiting, unless too much there is still unwritten: where
writes were slow several times in a row, workers make them for a while.
"""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from vdisk.block import fill_zeroes, split_views
from vdisk.emu_block.scatter import preadv
from vdisk.errors import VdiskError
from vdisk.filters.prompt import is_prompt
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.block import BlockDevice, Extent

INLINE_READ: Final = 1 << 20
"""Bytes of the longest read tried here: some 100 microseconds of copying, two thread switches."""

INLINE_WRITE: Final = 128 << 10
"""Bytes of the longest write made here: some 30 microseconds for the page cache to take."""

MAX_PIECES: Final = 64
"""Extents of one read that are looked up here; a plan of more is a worker's."""

IOV_MAX: Final = 1024  # of Linux and the BSDs

SLOW_NS: Final = 5_000_000
SLOW_TIMES: Final = 3
PAUSE_NS: Final = 1_000_000_000
"""Writes of more than 5 ms, three in a row, have waited for the disk: pause for a second."""

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)


class Quick:
    """The short way to one device.

    ``read`` and ``write`` return False where a request is not for here; nothing is changed then
    but bytes of the buffers of a read.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._locate = device.locate
        self._moves = not isinstance(device.hold(), nullcontext)
        self._prompt = is_prompt(device)
        self.reads = bool(_NOWAIT) or self._prompt
        self._slow_in_a_row = 0
        self._paused_until = 0

    # -- reading -----------------------------------------------------------------------------

    def read(self, offset: int, length: int, views: Sequence[memoryview]) -> bool:
        """Read what needs no waiting."""
        if length > INLINE_READ or len(views) > IOV_MAX or not self.reads:
            return False
        try:
            if self._moves:
                with self._device.hold():
                    return self._read(offset, length, views)
            return self._read(offset, length, views)
        except VdiskError:  # a worker meets it again, and reports it
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a file system without RWF_NOWAIT
                self.reads = False
            return False

    def _read(self, offset: int, length: int, views: Sequence[memoryview]) -> bool:
        found = self._locate(offset, length)
        if found is not None:
            return self._fetch(found[0], found[1], length, views)
        if not self._prompt:  # asking for the map might wait, for a network say
            return False
        plan: list[Extent] = []
        for extent in self._device.map(offset, length):
            if len(plan) == MAX_PIECES:
                return False
            plan.append(extent)
        parts = [views] if len(plan) == 1 else split_views(list(views), [e.length for e in plan])
        return all(self._fetch_extent(*each) for each in zip(plan, parts, strict=True))

    def _fetch_extent(self, extent: Extent, views: Sequence[memoryview]) -> bool:
        if extent.reads_zero:
            for view in views:
                fill_zeroes(view)
            return True
        if extent.source is None or extent.source_offset is None:
            return False
        return self._fetch(extent.source, extent.source_offset, extent.length, views)

    def _fetch(
        self, source: BlockDevice, offset: int, length: int, views: Sequence[memoryview]
    ) -> bool:
        if type(source) is FileStore and _NOWAIT:
            return preadv(source.fileno(), views, offset, _NOWAIT) == length
        if type(source) is MemoryStore:
            source.readv(offset, views)
            return True
        return False

    # -- writing -----------------------------------------------------------------------------

    def may_write(self, length: int, now: int) -> bool:
        """Whether a write should be made here; then :meth:`note_write` is told how long it took."""
        return self._prompt and length <= INLINE_WRITE and now >= self._paused_until

    def overwrite(self, offset: int, length: int, views: Sequence[memoryview]) -> bool:
        """Write what is one piece of a file, by one system call; the device sees to all else.

        False where it is not that, or has failed: then the device meets it again, and reports it.
        """
        if len(views) > IOV_MAX:
            return False
        try:
            with self._device.hold_to_write():
                found = self._device.locate_to_write(offset, length)
                if found is None or type(found[0]) is not FileStore:
                    return False
                return os.pwritev(found[0].fileno(), list(views), found[1]) == length
        except (VdiskError, OSError):
            return False

    def note_write(self, began: int, ended: int) -> None:
        """A write was made here; times in ns."""
        if ended - began <= SLOW_NS:
            self._slow_in_a_row = 0
            return
        self._slow_in_a_row += 1
        if self._slow_in_a_row >= SLOW_TIMES:
            self._paused_until = ended + PAUSE_NS
