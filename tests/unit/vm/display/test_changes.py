"""Which tiles changed, and the rectangles made of them."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tests.tools.fake_machine import FakeScreen, pattern
from vdisk.vm.display.base import Frame
from vdisk.vm.display.changes import (
    ScreenWatch,
    all_tiles,
    changed_tiles,
    rectangles,
)
from vdisk.vm.display.rfb.wire import Rect

BLACK = Frame(200, 50, bytes(200 * 50 * 4))


def test_nothing_changed() -> None:
    assert changed_tiles(BLACK, Frame(200, 50, bytes(200 * 50 * 4))) == set()


@given(x=st.integers(0, 199), y=st.integers(0, 49))
def test_one_pixel_is_one_tile(x: int, y: int) -> None:
    pixels = bytearray(BLACK.pixels)
    pixels[(y * 200 + x) * 4] = 1
    assert changed_tiles(BLACK, Frame(200, 50, bytes(pixels))) == {(x // 64, y // 16)}


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_rectangles_cover_the_tiles_once(tiles: set[tuple[int, int]]) -> None:
    covered = [
        (x, y)
        for rect in rectangles(tiles, BLACK)
        for x in range(rect.x, rect.x + rect.width)
        for y in range(rect.y, rect.y + rect.height)
    ]
    assert len(set(covered)) == len(covered)
    wanted = {(x, y) for x in range(200) for y in range(50) if (x // 64, y // 16) in tiles}
    assert set(covered) == wanted


def test_all_tiles_are_one_rectangle() -> None:
    assert rectangles(all_tiles(200, 50), BLACK) == [Rect(0, 0, 200, 50)]


def test_watchers_are_told_of_changes_only() -> None:
    async def scenario() -> None:
        screen = FakeScreen(pattern(100, 40))
        watch = ScreenWatch(screen, refresh=0.001)
        told: asyncio.Queue[tuple[Frame, set[tuple[int, int]] | None]] = asyncio.Queue()
        watcher = lambda frame, tiles: told.put_nowait((frame, tiles))  # noqa: E731
        watch.add(watcher)
        assert (await told.get())[1] is None
        screen.show(screen.picture)  # another generation, the same picture
        screen.fill(Rect(70, 20, 2, 2), 0x123456)
        frame, tiles = await told.get()
        assert frame == screen.picture
        assert tiles == {(1, 1)}
        screen.show(pattern(50, 50))
        assert (await told.get())[1] is None
        watch.remove(watcher)
        screen.show(pattern(100, 40))
        await asyncio.sleep(0.02)
        assert told.empty()
        assert (await watch.frame()) == screen.picture

    asyncio.run(scenario())
