"""Reading what can be read from a failing disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vdisk.block import Extent, fill_zeroes
from vdisk.errors import DeviceError, VdiskError
from vdisk.jobs.sources import read_planned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SECTOR = 512
"""What a disk loses at least when it loses something."""


class Salvager:
    """Reads like :func:`vdisk.jobs.sources.read_planned`, with zeroes for what cannot be read.

    An extent that fails is read again by halves, down to single sectors.  ``report``: told, in
    one line, of each sector that is lost.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def __call__(self, extents: Iterable[Extent], offset: int, view: memoryview) -> None:
        for extent in extents:
            start = extent.start - offset
            self._read(extent, view[start : start + extent.length])

    def _read(self, extent: Extent, view: memoryview) -> None:
        try:
            read_planned([extent], extent.start, view)
        except VdiskError as error:
            if extent.length <= SECTOR:
                why = os.strerror(error.errno) if isinstance(error, DeviceError) else error.message
                self._report(f"error while reading offset {extent.start}: {why}")
                fill_zeroes(view)
                return
            half = max(extent.length // 2 // SECTOR, 1) * SECTOR
            middle = extent.start + half
            self._read(extent.clipped(extent.start, middle), view[:half])
            self._read(extent.clipped(middle, extent.end), view[half:])
