"""A headless Chromium, driven through its DevTools protocol.

Only what the tests of the web display need: open a page, run a script in it, press keys, click,
take a screenshot.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.tools.patience import PATIENCE
from tests.tools.peers import command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1180,800"),
    *("--remote-allow-origins=*", "--hide-scrollbars", "about:blank"),
)


class Page:
    """A page of the browser; ``errors``: what went wrong in its scripts and requests."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                self._answers.pop(value["id"]).set_result(value)
            elif value["method"] == "Runtime.exceptionThrown" or (
                value["method"] == "Log.entryAdded" and _is_error(value["params"]["entry"])
            ):
                self.errors.append(json.dumps(value["params"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        number = len(self._answers) + 1
        while number in self._answers:
            number += 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        value = await answer
        assert "error" not in value, value
        result: dict[str, Any] = value["result"]
        return result

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState + location.protocol", "completehttp:")

    async def script(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, wanted: Any = True) -> None:
        """Wait for an expression to have a value."""
        async with asyncio.timeout(PATIENCE):
            while await self.script(expression) != wanted:
                assert not self.errors, self.errors
                await asyncio.sleep(0.05)

    async def key(self, code: str, key: str, **more: Any) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, code=code, key=key, **more)

    async def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    async def click(self, selector: str) -> None:
        """Press the left button on an element."""
        box = await self.script(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.mouse(kind, *box, button="left", clickCount=1)

    async def screenshot(self, path: Path) -> bytes:
        """The page as a PNG."""
        data = base64.b64decode((await self.call("Page.captureScreenshot"))["data"])
        path.write_bytes(data)
        return data

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


def _is_error(entry: dict[str, Any]) -> bool:
    """A browser asks for a page's icon when it likes: perhaps when its server has ended already."""
    late = "net::ERR_" in entry["text"] and entry.get("url", "").endswith("/icon.svg")
    return entry["level"] == "error" and not late


async def _endpoint(process: asyncio.subprocess.Process) -> str:
    """Where the browser listens for DevTools, which it says on stderr."""
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(PATIENCE):
        while line := await process.stderr.readline():
            said += line
            if b"DevTools listening on " in line:
                return line.split()[-1].decode()
    raise AssertionError(f"chromium ended: {said!r}")


async def _pour_away(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


@asynccontextmanager
async def browsing(profile: Path) -> AsyncIterator[Page]:
    """A browser with an empty profile and one page."""
    words = command("chromium", *_FLAGS, f"--user-data-dir={profile}")
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        base = (await _endpoint(process)).split("/devtools")[0].replace("ws:", "http:")
        assert process.stderr is not None
        pouring = asyncio.create_task(_pour_away(process.stderr))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/json/list") as answer:
                targets = await answer.json()
            address = next(one for one in targets if one["type"] == "page")["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=64 << 20) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
                await page.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await pouring
