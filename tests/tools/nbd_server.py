"""Our NBD server beside the test: in a thread of its process, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tools import peers
from tests.tools.qemu import wait_for_server
from vdisk.nbd_server import Server

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    Argument = str | os.PathLike[str]


class Running:
    """A server in a thread; ``path`` is its unix socket."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self.server = server
        self.path = path
        self._loop = loop

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.path}"

    def uri_of(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.path}"

    def call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` in the server's thread, a coroutine function to its end."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        future: Future[Any] = asyncio.run_coroutine_threadsafe(run(), self._loop)
        return future.result(peers.TIMEOUT)


@contextlib.contextmanager
def running(make: Callable[[], Server]) -> Iterator[Running]:
    """The server that ``make`` makes, listening on a unix socket until the block ends."""
    started: Future[Running] = Future()
    with tempfile.TemporaryDirectory(prefix="vdisk-") as folder:
        path = Path(folder, "nbd.sock")
        stop = asyncio.Event()

        async def main() -> None:
            async with make() as server:
                await server.listen_unix(path)
                started.set_result(Running(server, asyncio.get_running_loop(), path))
                await stop.wait()

        def thread() -> None:
            try:
                asyncio.run(main())
            except BaseException as error:
                failures.append(error)
                if not started.done():
                    started.set_exception(error)

        failures: list[BaseException] = []
        runner = threading.Thread(target=thread)
        runner.start()
        try:
            yield (server := started.result(peers.TIMEOUT))
        finally:
            if started.exception() is None:
                server._loop.call_soon_threadsafe(stop.set)
            runner.join(peers.TIMEOUT)
            assert not runner.is_alive(), "the server did not end"
        if failures:
            raise failures[0]


def words(*arguments: Argument) -> list[str]:
    """The command line of ``vdisk-nbd serve`` with these arguments."""
    return [sys.executable, "-m", "vdisk.cli.nbd", "serve", *map(str, arguments)]


@contextlib.contextmanager
def process(
    *arguments: Argument, ends_well: bool = True
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A running ``vdisk-nbd serve`` with these arguments: its unix socket, the process."""
    with tempfile.TemporaryDirectory(prefix="vdisk-") as folder:
        path = Path(folder, "nbd.sock")
        server = subprocess.Popen(
            words("-k", path, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with server:
            try:
                wait_for_server(server, path)
                yield path, server
            finally:
                server.terminate()
                said, _nothing = server.communicate(timeout=peers.TIMEOUT)
        if ends_well:
            assert server.returncode == 0, said.decode()


def tcp_port(server: subprocess.Popen[bytes]) -> int:
    """Where a server that was given port 0 (``-p 0``) listens: its log tells."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(rb"listening on nbds?://\S+:(\d+)", line):
            return int(found[1])
    raise AssertionError("the server ended")
