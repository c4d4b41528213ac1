"""QEMU's whole machine, without help of the host's processor, as something to compare ours with::

with qemu_machine.running("-m", "64", "-hda", image) as machine:
    machine.wait_for_text("boot:")
    width, height, pixels = machine.picture()
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tools import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT, CELLS = 0xB8000, 80 * 25
LOOK_SECONDS = 0.05


class Monitor:
    """A QMP connection, as far as a test needs one, over a socket that is connected."""

    def __init__(self, connected: socket.socket, folder: Path) -> None:
        self._file = connected.makefile("rw")
        self._folder = folder
        self._file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while "return" not in (answer := json.loads(self._file.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def picture(self) -> tuple[int, int, bytes]:
        """Width, height and pixels of three bytes."""
        path = self._folder / "screen.ppm"
        self.ask("screendump", filename=str(path))
        magic, size, largest, pixels = path.read_bytes().split(b"\n", 3)
        assert (magic, largest) == (b"P6", b"255")
        width, height = map(int, size.split())
        return width, height, pixels

    def memory(self, address: int, length: int) -> bytes:
        path = self._folder / "memory"
        self.ask("pmemsave", val=address, size=length, filename=str(path))
        return path.read_bytes()

    def cells(self) -> bytes:
        """Characters and attributes of the text screen."""
        return self.memory(TEXT, 2 * CELLS)

    def wait_for(self, seen: Callable[[], bool], timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not seen():
            assert time.monotonic() < deadline, self.cells()[::2].decode("cp437")
            time.sleep(LOOK_SECONDS)

    def wait_for_text(self, text: str, timeout: float = 60) -> None:
        self.wait_for(lambda: text in self.cells()[::2].decode("cp437"), timeout)


@contextlib.contextmanager
def listening(
    folder: Path,
) -> Iterator[tuple[list[str], Callable[[], contextlib.AbstractContextManager[Monitor]]]]:
    """The words that make a QEMU connect its monitor, and what takes it when it has started."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/qmp")
        listener.listen()
        listener.settimeout(peers.TIMEOUT)

        @contextlib.contextmanager
        def connect() -> Iterator[Monitor]:
            connection = listener.accept()[0]
            with connection:
                connection.settimeout(peers.TIMEOUT)
                yield Monitor(connection, folder)

        yield ["-qmp", f"unix:{folder}/qmp"], connect


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[Monitor]:
    """A machine with QEMU's firmware and these arguments; gives its monitor."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vdisk-")))
        monitor_words, connect = stack.enter_context(listening(folder))
        words = ["-accel", "tcg", "-nodefaults", "-vga", "std", "-display", "none"]
        words += [*monitor_words, *map(str, arguments)]
        process = subprocess.Popen(peers.command("qemu-system-x86_64", *words))
        try:
            yield stack.enter_context(connect())
        finally:
            process.kill()
            process.wait()
