"""What has changed on a screen: pictures compared tile by tile, for all who watch it.

::

    Screen.generation() --+ changed?          every REFRESH seconds while somebody watches
    Screen.frame()  ------+--> rows that differ (memcmp) --> tiles that differ --> each watcher

Everybody is told which tiles changed and adds them to what he has not shown yet: a slow watcher
holds a set of tiles, never old pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import groupby
from typing import TYPE_CHECKING

from vdisk.errors import VdiskError
from vdisk.vm.display.base import BYTES_PER_PIXEL, Frame
from vdisk.vm.display.rfb.wire import Rect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vdisk.vm.display.base import Screen

    Watcher = Callable[[Frame, "set[Tile] | None"], None]
    """Called with the new picture and the tiles that differ; None: everything (another size)."""

log = logging.getLogger("vdisk.vm.display")

TILE_WIDTH, TILE_HEIGHT = 64, 16
"""Pixels: a line of text high, so that typing changes one tile."""
REFRESH = 1 / 30
"""Seconds between two looks at the screen: half of a monitor's pictures."""

Tile = tuple[int, int]
"""(column, row) in tiles."""


def changed_tiles(old: Frame, new: Frame) -> set[Tile]:
    """The tiles in which two pictures of one size differ."""
    stride = new.width * BYTES_PER_PIXEL
    step = TILE_WIDTH * BYTES_PER_PIXEL
    before, after = old.pixels, new.pixels  # slices are copies, and still quicker than views
    found: set[Tile] = set()
    for row, top in enumerate(range(0, new.height * stride, stride * TILE_HEIGHT)):
        bottom = min(top + stride * TILE_HEIGHT, len(after))
        if before[top:bottom] == after[top:bottom]:
            continue
        for line in range(top, bottom, stride):
            if before[line : line + stride] == after[line : line + stride]:
                continue
            for left in range(0, stride, step):
                start, end = line + left, line + min(left + step, stride)
                if before[start:end] != after[start:end]:
                    found.add((left // step, row))
    return found


def all_tiles(width: int, height: int) -> set[Tile]:
    """Every tile of a picture of that size."""
    columns, rows = -(-width // TILE_WIDTH), -(-height // TILE_HEIGHT)
    return {(column, row) for row in range(rows) for column in range(columns)}


def rectangles(tiles: Iterable[Tile], frame: Frame) -> list[Rect]:
    """Few rectangles that cover these tiles, as far as they are in the picture."""
    spans: dict[tuple[int, int], list[int]] = {}
    ordered = sorted(tiles, key=lambda tile: (tile[1], tile[0]))
    for row, group in groupby(ordered, key=lambda tile: tile[1]):
        for span in _spans([column for column, _row in group]):
            spans.setdefault(span, []).append(row)
    found = []
    for (left, right), rows in spans.items():
        for top, bottom in _spans(rows):
            x, y = left * TILE_WIDTH, top * TILE_HEIGHT
            width = min(right * TILE_WIDTH, frame.width) - x
            height = min(bottom * TILE_HEIGHT, frame.height) - y
            if width > 0 and height > 0:
                found.append(Rect(x, y, width, height))
    return sorted(found, key=lambda rect: (rect.y, rect.x))


def _spans(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs [first, last + 1) of increasing numbers."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1] = (spans[-1][0], number + 1)
        else:
            spans.append((number, number + 1))
    return spans


class ScreenWatch:
    """Looks at a screen while somebody watches; for one event loop."""

    def __init__(self, screen: Screen, refresh: float = REFRESH) -> None:
        self.screen = screen
        self._refresh = refresh
        self._watchers: list[Watcher] = []
        self._frame: Frame | None = None
        self._generation: int | None = None
        self._task: asyncio.Task[None] | None = None

    async def frame(self) -> Frame:
        """The picture as it was last looked at, or as it is now if nobody watches."""
        if self._task is None or self._frame is None:
            await self._look()
        assert self._frame is not None
        return self._frame

    def add(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of every change from now on."""
        self._watchers.append(watcher)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="screen watch")

    def remove(self, watcher: Watcher) -> None:
        """Tell it no more."""
        with contextlib.suppress(ValueError):
            self._watchers.remove(watcher)
        if not self._watchers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except VdiskError as error:  # a screen that cannot be drawn now may be drawn later
                log.warning("the screen cannot be read: %s", error)
            await asyncio.sleep(self._refresh)

    async def _look(self) -> None:
        generation = self.screen.generation()
        if generation == self._generation and self._frame is not None:
            return
        new = await asyncio.to_thread(self.screen.frame)
        # Only now: a look that was cancelled or failed is made again.
        old, self._frame, self._generation = self._frame, new, generation
        same_size = old is not None and (old.width, old.height) == (new.width, new.height)
        tiles = changed_tiles(old, new) if same_size and old is not None else None
        if tiles is None or tiles:
            for watcher in list(self._watchers):
                watcher(new, tiles)
