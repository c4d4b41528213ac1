"""A web page with the screen, the keyboard, the mouse, power buttons and what the disks do.

::

    async with WebDisplay(machine) as display:
        print(await display.listen("127.0.0.1", 8080))      # the address, with its token

The page (``page/``) paints a canvas from what a WebSocket brings; its messages are listed in
``page/screen.js``.  A picture is sent when the last one has been shown, so a slow browser costs
one picture of memory.

Loopback keeps strangers out, but not the other users of this machine, nor pages of other sites in
the user's own browser: the address has a random token, which becomes a cookie at the first visit,
and a socket is opened only for the page's own origin.  Needs the extra ``vdisk[web]`` (aiohttp).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vdisk.errors import UnsupportedFeatureError, VdiskError, from_os_error
from vdisk.vm.display.changes import ScreenWatch
from vdisk.vm.display.serving import InputThread
from vdisk.vm.display.web_client import LONGEST_MESSAGE, WebClient

if TYPE_CHECKING:
    from typing import Self

    from aiohttp import web

    from vdisk.vm.monitor.control import MachineControl, MachineEvent

log = logging.getLogger("vdisk.vm.display.web")

PAGE: Final = Path(__file__).parent / "page"
CLIENTS: Final = 16
"""Browsers at once."""
STATE_SECONDS: Final = 0.5
"""Between two looks at what the disks do."""
HEARTBEAT_SECONDS: Final = 20.0

_TYPES: Final = {
    "index.html": "text/html",
    "screen.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STRANGER: Final = "The address is not complete: take it from the terminal, with its token.\n"


class WebDisplay:
    """Serves the page for ``machine`` while its ``async with`` block runs."""

    def __init__(self, machine: MachineControl, *, token: str | None = None) -> None:
        try:
            from aiohttp import web
        except ImportError as error:
            raise UnsupportedFeatureError(
                "the web display needs the package aiohttp: pip install 'vdisk[web]'"
            ) from error
        self.machine = machine
        self.watch = ScreenWatch(machine.screen)
        self.input = InputThread(machine.input)
        self._token = token or secrets.token_urlsafe(24)
        self._clients: set[WebClient] = set()
        self._look = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._web = web
        app = web.Application(client_max_size=LONGEST_MESSAGE)
        app.router.add_get("/", self._index)
        app.router.add_get("/socket", self._socket)
        app.router.add_get("/{name}", self._file)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        loop = asyncio.get_running_loop()

        def happened(_event: MachineEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the machine
                loop.call_soon_threadsafe(self._look.set)

        self._unsubscribe = self.machine.subscribe(happened)
        self._tasks.append(asyncio.create_task(self._tell_state(), name="web display"))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for site in self._runner.sites:
            await site.stop()  # so that nobody who is told to leave comes back
        clients = list(self._clients)
        for client in clients:
            client.leave("The machine has ended")
        await asyncio.gather(*(client.gone.wait() for client in clients))
        await self._runner.cleanup()
        self.input.close()

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve on an address (port 0: any free one); the URL for the user, with its token."""
        site = self._web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise from_os_error(error, path=f"{host}:{port}", operation="listen") from error
        chosen = self._runner.addresses[-1][1]
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{chosen}/?token={self._token}"

    # -- who is it -------------------------------------------------------------------------------

    def _cookie(self, request: web.Request) -> str:
        """A name of its own for each server: browsers share cookies among the ports of a host."""
        _host, _, port = request.host.rpartition(":")
        return f"vdisk-{port}"

    def _is_known(self, request: web.Request) -> bool:
        given = request.cookies.get(self._cookie(request), "")
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _refuse(self) -> web.Response:
        return self._web.Response(status=403, text=_STRANGER, headers=_HEADERS)

    async def _index(self, request: web.Request) -> web.StreamResponse:
        given = request.query.get("token")
        if given is None:
            return self._page("index.html") if self._is_known(request) else self._refuse()
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return self._refuse()
        # Away from the address bar and its history, into a cookie that no script can read.
        response = self._web.Response(status=303, headers={**_HEADERS, "Location": "/"})
        response.set_cookie(
            self._cookie(request), self._token, httponly=True, samesite="Strict", path="/"
        )
        return response

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in _TYPES:
            return self._web.Response(status=404, text="There is no such page.\n", headers=_HEADERS)
        return self._page(name) if self._is_known(request) else self._refuse()

    def _page(self, name: str) -> web.Response:
        return self._web.Response(
            body=(PAGE / name).read_bytes(),
            content_type=_TYPES[name],
            charset="utf-8",
            headers=_HEADERS,
        )

    # -- the socket ------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        own = (f"http://{request.host}", f"https://{request.host}")  # the latter behind a proxy
        if not self._is_known(request) or request.headers.get("Origin") not in own:
            return self._refuse()
        socket = self._web.WebSocketResponse(
            heartbeat=HEARTBEAT_SECONDS, max_msg_size=LONGEST_MESSAGE
        )
        await socket.prepare(request)
        client = WebClient(self, socket)
        if len(self._clients) >= CLIENTS:
            await client.end("Too many browsers show this machine")
            return socket
        self._clients.add(client)
        log.info("a browser shows the machine")
        try:
            self._look.set()
            await client.run()
        except VdiskError as error:
            log.warning("a browser was ended: %s", error)
            await client.end(str(error))
        finally:
            self._clients.discard(client)
            client.gone.set()
        return socket

    async def act(self, action: str) -> None:
        """Press a button of the machine."""
        call = {
            "stop": self.machine.stop,
            "cont": self.machine.cont,
            "reset": self.machine.reset,
            "powerdown": self.machine.powerdown,
        }[action]
        await asyncio.to_thread(call)
        self._look.set()

    async def _tell_state(self) -> None:
        """Tell all browsers what the machine does; they make rates of what disks have done."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_SECONDS):
                    await self._look.wait()
            self._look.clear()
            if not self._clients:
                continue
            try:
                state = json.dumps(await asyncio.to_thread(self._describe))
            except VdiskError as error:
                log.warning("the machine does not say how it is: %s", error)
                continue
            for client in self._clients:
                client.tell(state)

    def _describe(self) -> dict[str, Any]:
        machine = self.machine
        drives = [
            {
                "device": drive.device,
                "filename": drive.medium.filename if drive.medium else None,
                "rd_bytes": drive.statistics.rd_bytes,
                "wr_bytes": drive.statistics.wr_bytes,
            }
            for drive in machine.drives()
        ]
        return {
            "type": "state",
            "name": machine.name,
            "status": machine.status().value,
            "leds": machine.input.leds(),
            "drives": drives,
        }
