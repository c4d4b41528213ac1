"""nbdkit as a context manager; written against nbdkit 1.32."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tools import peers
from tests.tools.qemu import wait_for_server

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    Argument = str | os.PathLike[str]


class Running:
    """A running nbdkit: ``uri`` of its default export, and ``path`` of its unix socket."""

    def __init__(self, path: Path, words: list[str]) -> None:
        self.path = path
        self.uri = f"nbd+unix:///?socket={path}"
        self._words = words
        self.start()

    def start(self) -> None:
        """Start it, or start it once more after :meth:`kill`."""
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self._words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_for_server(self.process, self.path)

    def kill(self) -> None:
        """kill -9, as the system does to a server that takes too much memory."""
        self.process.kill()
        self.process.communicate(timeout=peers.TIMEOUT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=peers.TIMEOUT)


@contextlib.contextmanager
def nbdkit(*arguments: Argument) -> Iterator[Running]:
    """A running ``nbdkit`` with these arguments (filters, plugin, parameters)."""
    with tempfile.TemporaryDirectory(prefix="vdisk-") as folder:
        path = Path(folder, "nbd.sock")
        running = Running(path, peers.command("nbdkit", "-f", "-U", path, *arguments))
        try:
            yield running
        finally:
            running.stop()
