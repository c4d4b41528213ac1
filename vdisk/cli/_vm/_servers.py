"""VNC, the web page and QMP: servers beside the machine, in an event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from vdisk.cli._vm._address import listening_address
from vdisk.errors import InvalidRequestError, from_os_error
from vdisk.options import OptionBag, parse_keyval

if TYPE_CHECKING:
    from vdisk.vm import Machine

LARGEST_PASSWORD = 4096


class Servers:
    """Started in the constructor, ended by :meth:`close`.

    ``displays``: ``vnc[=HOST:N]`` and ``web[=HOST:PORT]``; ``qmp`` and ``monitors``: addresses.
    """

    def __init__(
        self,
        machine: Machine,
        displays: list[str],
        qmp: list[str],
        monitors: list[str],
        password_file: str | None,
    ) -> None:
        self._machine = machine
        self._displays, self._qmp, self._monitors = displays, qmp, monitors
        self._password = None if password_file is None else _read_password(password_file)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vdisk-servers", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def close(self) -> None:
        """End all connections."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            for display in self._displays:
                await self._start_display(stack, display)
            await self._start_monitors(stack)
            self._started.set()
            await self._stop.wait()

    async def _start_display(self, stack: AsyncExitStack, text: str) -> None:
        kind, _, where = text.partition("=")
        if kind == "vnc":
            await self._start_vnc(stack, where or ":0")
            return
        from vdisk.vm.display.serving import parse_address
        from vdisk.vm.display.web import WebDisplay

        display = await stack.enter_async_context(WebDisplay(self._machine.control))
        address = parse_address(where or "127.0.0.1:0", default_host="127.0.0.1")
        if address.path:
            raise InvalidRequestError("the web display listens on a TCP port: web=HOST:PORT")
        _announce(f"the screen is at {await display.listen(address.host, address.port)}")

    async def _start_vnc(self, stack: AsyncExitStack, where: str) -> None:
        """``HOST:N[,share=…]``, of which ``password=on`` says that a password is meant to be."""
        from vdisk.vm.display.serving import parse_address
        from vdisk.vm.display.vnc import VNC_PORT, Share, VncServer

        place, _, words = where.partition(",")
        options = OptionBag(parse_keyval(words) if words else {}, "the VNC display")
        share = options.choice(
            "share", tuple(one.value for one in Share), Share.ALLOW_EXCLUSIVE.value
        )
        if options.boolean("password") and self._password is None:
            raise InvalidRequestError("a VNC password comes from --password-file FILE")
        options.finish()
        machine = self._machine
        server = VncServer(
            machine.screen,
            machine.input,
            name=machine.name,
            password=self._password,
            share=Share(share),
        )
        await stack.enter_async_context(server)
        found = await server.listen(parse_address(place, base=VNC_PORT))
        _announce(f"VNC server at {found}")

    async def _start_monitors(self, stack: AsyncExitStack) -> None:
        if self._qmp:
            from vdisk.vm.monitor.qmp import QmpServer

            qmp = await stack.enter_async_context(QmpServer(self._machine.control))
            for address in self._qmp:
                await qmp.listen(listening_address(address))
        if self._monitors:
            from vdisk.vm.monitor.hmp_server import HmpServer

            people = await stack.enter_async_context(HmpServer(self._machine.control))
            for address in self._monitors:
                await people.listen(listening_address(address))


def _announce(message: str) -> None:
    sys.stderr.write(f"vdisk-vm: {message}\r\n")
    sys.stderr.flush()


def _read_password(path: str) -> str:
    """The first line of a file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(LARGEST_PASSWORD).split("\n", 1)[0]
    except OSError as error:
        raise from_os_error(error, path=path, operation="open") from error
