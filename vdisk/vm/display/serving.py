"""What a machine's servers share: where they listen, whom they serve, the way to the keyboard.

Input goes through one thread, so that events keep their order, and a machine that is busy (a
snapshot is being saved) makes their sender wait and not the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from vdisk.errors import InvalidRequestError, VdiskError, from_os_error
from vdisk.listening import stop_listening
from vdisk.vm.devices.keycodes import keys_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Self

    from vdisk.vm.display.base import InputSink

log = logging.getLogger("vdisk.vm.serving")

KEY_PAUSE = 0.01
PATIENCE = 10.0
"""Seconds for a guest to take a key."""


class Address(NamedTuple):
    """A TCP port of a host, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, base: int = 0, default_host: str = "localhost") -> Address:
    """``HOST:NUMBER``, ``:NUMBER``, ``[IPv6]:NUMBER`` or ``unix:PATH``.

    ``base`` is added to the number: 5900 for displays of VNC.
    """
    if text.startswith("unix:"):
        if text == "unix:":
            raise InvalidRequestError("unix: needs the path of a socket")
        return Address(path=text.removeprefix("unix:"))
    host, colon, number = text.rpartition(":")
    if not colon or not (number.isascii() and number.isdigit()):
        raise InvalidRequestError(f"{text!r} is no address: HOST:NUMBER or unix:PATH")
    if int(number) + base > 0xFFFF:
        raise InvalidRequestError(f"{text!r}: there is no port {int(number) + base}")
    host = host.removeprefix("[").removesuffix("]")
    return Address(host or default_host, int(number) + base)


async def listen(
    address: Address,
    connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    limit: int = 1 << 16,
) -> asyncio.Server:
    """Accept connections; ``limit``: bytes that are read ahead of one."""
    try:
        if address.path:
            return await asyncio.start_unix_server(connected, address.path, limit=limit)
        return await asyncio.start_server(connected, address.host, address.port, limit=limit)
    except OSError as error:
        raise from_os_error(error, path=str(address), operation="listen") from error


def bound_address(server: asyncio.Server) -> Address:
    """Where a server listens: a port that was 0 is known now."""
    where = server.sockets[0].getsockname()
    return (
        Address(path=os.fsdecode(where)) if isinstance(where, (str, bytes)) else Address(*where[:2])
    )


class Connection(Protocol):
    """One client of a server: ``peer`` is what messages call it."""

    @property
    def peer(self) -> object: ...

    async def run(self) -> None:
        """Serve until the client leaves; VdiskError if it broke the protocol."""


C = TypeVar("C", bound=Connection)


class ConnectionServer(Generic[C]):
    """Serves connections, each in a task, while its ``async with`` block runs.

    ``connect`` makes one of a client's streams; ``most`` are served at once.
    """

    def __init__(
        self, connect: Callable[[asyncio.StreamReader, asyncio.StreamWriter], C], most: int
    ) -> None:
        self._connect = connect
        self._most = most
        self._servers: list[asyncio.Server] = []
        self.connections: dict[C, asyncio.Task[None] | None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def listen(self, address: Address) -> Address:
        """Accept clients; where they find the server."""
        server = await listen(address, self._connected)
        self._servers.append(server)
        return bound_address(server)

    def stop_listening(self) -> None:
        """Serve those that are connected, and nobody else."""
        while self._servers:
            server = self._servers.pop()
            for listener in server.sockets:
                stop_listening(listener)
            server.close()

    async def close(self) -> None:
        """Stop listening and end all connections."""
        self.stop_listening()
        tasks = [task for task in self.connections.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.connections) >= self._most:
            log.warning("refused a client: %d are connected", len(self.connections))
            writer.transport.abort()
            return
        connection = self._connect(reader, writer)
        self.connections[connection] = asyncio.current_task()
        try:
            await connection.run()
        except VdiskError as error:
            log.warning("%s: %s", connection.peer, error)
        except (OSError, EOFError, TimeoutError) as error:
            log.info("%s: connection lost (%s)", connection.peer, error or type(error).__name__)
        except asyncio.CancelledError:
            pass  # the server is closing, or another client wants it for itself
        finally:
            del self.connections[connection]
            with contextlib.suppress(OSError):
                writer.close()


class InputThread:
    """The one thread in which a keyboard and mouse are worked."""

    def __init__(self, sink: InputSink) -> None:
        self.sink = sink
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vdisk-input")

    async def keys(self, events: Iterable[tuple[str, bool]]) -> None:
        """Press and release keys, in order."""
        events = list(events)
        if events:
            await self._run(lambda: self._press(events))

    def _press(self, events: list[tuple[str, bool]]) -> None:
        for qcode, down in events:
            self.sink.key(qcode, down)

    async def type(self, text: str) -> None:
        """Type characters on a US keyboard, as fast as the guest takes them; others are left out.

        A guest that takes no keys for :data:`PATIENCE` seconds is not typed for any more.
        """
        await self._run(lambda: self._type(text))

    def _type(self, text: str) -> None:
        for character in text:
            try:
                keys = keys_for(character)
            except KeyError:
                continue
            for qcode, down in [(key, True) for key in keys] + [(key, False) for key in keys[::-1]]:
                if not self._has_room():
                    return
                self.sink.key(qcode, down)

    def _has_room(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not self.sink.ready():
            if self._closed or time.monotonic() > deadline:
                return False
            time.sleep(KEY_PAUSE)
        return True

    async def pointer(self, dx: int, dy: int, wheel: int, buttons: int | None) -> None:
        """Move, and say which buttons are down (None: as before)."""

        def act() -> None:
            if dx or dy or wheel:
                self.sink.move_pointer(dx, dy, wheel)
            if buttons is not None:
                self.sink.set_buttons(buttons)

        await self._run(act)

    async def _run(self, act: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def close(self) -> None:
        """Do not wait for a machine that is busy."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
