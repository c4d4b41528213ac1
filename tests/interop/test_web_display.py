"""The web page in a real browser: the canvas shows the screen, keys and buttons arrive."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.tools.chromium import browsing
from tests.tools.fake_machine import FakeMachine, pattern
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.vm.display.rfb.wire import Rect
from vdisk.vm.display.web import WebDisplay
from vdisk.vm.display.web_client import to_rgba
from vdisk.vm.monitor.control import RunState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.tools.chromium import Page
    from vdisk.vm.display.base import Frame

pytestmark = requires_peer("chromium")

STATUS = "document.getElementById('status').textContent"
PIXELS = """(async () => {
    const canvas = document.getElementById('screen');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', pixels));
    const text = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
    return `${canvas.width} ${canvas.height} ${text}`;
})()"""
CAPTURED = "document.pointerLockElement !== null"


def expected(frame: Frame) -> str:
    return f"{frame.width} {frame.height} {sha256(to_rgba(frame.pixels)).hexdigest()}"


@asynccontextmanager
async def page_of(machine: FakeMachine, tmp_path: Path) -> AsyncIterator[tuple[Page, WebDisplay]]:
    async with asyncio.timeout(100), WebDisplay(machine) as display:
        url = await display.listen()
        async with browsing(tmp_path / "profile") as page:
            await page.open(url)
            await page.until(STATUS, "running")
            yield page, display
            assert not page.errors


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


def test_the_screen_and_its_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine("debian")
        machine.screen.show(pattern(160, 100))
        async with page_of(machine, tmp_path) as (page, _):
            await page.until(PIXELS, expected(machine.screen.picture))
            machine.screen.fill(Rect(30, 40, 70, 9), 0xFF8000)
            await page.until(PIXELS, expected(machine.screen.picture))
            machine.screen.show(pattern(64, 120, seed=3))
            await page.until(PIXELS, expected(machine.screen.picture))
            assert await page.script("location.search") == ""
            assert await page.script("document.cookie") == ""
            assert await page.script("document.title") == "debian - vdisk"
            assert (await page.screenshot(tmp_path / "page.png")).startswith(b"\x89PNG")

    asyncio.run(scenario())


def test_keys_and_the_mouse(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        sink = machine.input
        async with page_of(machine, tmp_path) as (page, _):
            await page.key("KeyA", "a", text="a")
            await page.key("F5", "F5")
            await until(lambda: len(sink.keys) == 4)
            assert sink.keys == [("a", True), ("a", False), ("f5", True), ("f5", False)]
            await page.click("#keys")
            await until(lambda: len(sink.keys) == 10)
            assert sink.typed()[2:] == ["ctrl", "alt", "delete"]
            await page.click("#screen")
            await page.until(CAPTURED)
            for x in (500, 520):
                await page.mouse("mouseMoved", x, 300)
            await page.click("#screen")
            await until(lambda: 1 in sink.buttons and sink.buttons[-1] == 0)
            assert any(dx for dx, _, _ in sink.moves)

    asyncio.run(scenario())


def test_a_text_is_pasted(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        async with page_of(machine, tmp_path) as (page, _):
            await page.click("#paste")
            await page.until("document.getElementById('pasting').open")
            await page.script(
                "document.getElementById('text').value = 'ls -l\\r\\n' + 'x'.repeat(300)"
            )
            await page.click("#type")
            await until(lambda: machine.input.typed().count("x") == 300)
            assert machine.input.typed()[:6] == ["l", "s", "spc", "minus", "l", "ret"]

    asyncio.run(scenario())


def test_a_telephone(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(720, 400))
        sink = machine.input
        async with page_of(machine, tmp_path) as (page, _):
            await page.call(
                "Emulation.setDeviceMetricsOverride",
                width=390, height=844, deviceScaleFactor=2, mobile=True,
            )  # fmt: skip
            await page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
            assert await page.script("document.documentElement.scrollWidth") == 390
            await page.until(
                "getComputedStyle(document.getElementById('keyboard')).display", "flex"
            )

            began = time.time()

            async def fingers(seconds: float, kind: str, *points: tuple[int, int]) -> None:
                """What the screen says at a time: how long a finger stays decides what it does."""
                touches = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
                await page.call(
                    "Input.dispatchTouchEvent", type=kind, touchPoints=touches,
                    timestamp=began + seconds,
                )  # fmt: skip

            box = await page.script(
                "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.getElementById('screen')"
                ".getBoundingClientRect())"
            )
            x, y = (int(value) for value in box)
            await fingers(0, "touchStart", (x, y))
            await fingers(0.1, "touchMove", (x + 30, y - 20))
            await until(lambda: sink.moves)
            await fingers(0.5, "touchEnd")
            assert sum(dx for dx, _, _ in sink.moves) > 30  # the picture is shown smaller
            assert sum(dy for _, dy, _ in sink.moves) < -20
            assert sink.buttons == []
            await fingers(1, "touchStart", (x, y))
            await fingers(1.1, "touchEnd")
            await until(lambda: sink.buttons == [1, 0])
            await fingers(2, "touchStart", (x, y), (x + 40, y))
            await fingers(2.1, "touchEnd")
            await until(lambda: sink.buttons == [1, 0, 2, 0])
            await fingers(3, "touchStart", (x, y))
            await fingers(3.1, "touchEnd")
            await fingers(3.2, "touchStart", (x, y))  # a tap, and the finger is back: it drags
            await fingers(3.9, "touchEnd")
            await until(lambda: sink.buttons[4:] == [1, 0, 1, 0])
            await page.click("#keyboard")
            await page.call("Input.insertText", text="Hi")
            await until(lambda: sink.typed() == ["shift", "h", "i"])
            await page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Backspace")
            await page.click("#escape")
            await until(lambda: sink.typed()[3:] == ["backspace", "esc"])
            assert (await page.screenshot(tmp_path / "phone.png")).startswith(b"\x89PNG")

    asyncio.run(scenario())


def test_a_network_that_falls_silent_is_noticed_and_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(160, 100))
        async with page_of(machine, tmp_path) as (page, display):
            display._tasks[0].cancel()  # nothing is said any more, and nothing is closed
            await page.until(STATUS, "not connected")
            display._tasks[0] = asyncio.create_task(display._tell_state())
            await page.until(STATUS, "running")
            machine.screen.fill(Rect(0, 0, 9, 9), 0xFF0000)
            await page.until(PIXELS, expected(machine.screen.picture))
            assert len(display._clients) == 1

    asyncio.run(scenario())


def test_power_buttons(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        async with page_of(machine, tmp_path) as (page, _):
            await page.click("#pause")
            await page.until(STATUS, "paused")
            await page.until("document.getElementById('pause').textContent.trim()", "Resume")
            await page.click("#pause")
            await page.until(STATUS, "running")
            await page.click("#reset")
            await page.until("document.getElementById('confirm').open")
            await page.click("#yes")
            await until(lambda: "reset" in machine.calls)
            await page.click("#powerdown")
            await until(lambda: len(machine.calls) == 4)
            assert machine.calls == ["stop", "cont", "reset", "powerdown"]
            machine.state = RunState.IO_ERROR
            await page.until(STATUS, "disk error")

    asyncio.run(scenario())


def test_a_machine_that_has_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        async with asyncio.timeout(100), browsing(tmp_path / "profile") as page:
            async with WebDisplay(machine) as display:
                await page.open(await display.listen())
                await page.until(STATUS, "running")
            await page.until(STATUS, "not connected")
            for _ in range(3):  # nor does looking for it again change what is known of it
                notice = await page.script("document.getElementById('notice').textContent")
                assert notice == "The machine has ended"
                await asyncio.sleep(1)

    asyncio.run(scenario())
