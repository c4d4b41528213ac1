"""Waiting for what must happen, however slow the machine is that the tests run on.

A limit here only ends a test that hangs: nothing may fail because it took a second or ten.  How
long something takes is told by benchmarks, and whether it waits for something by events.
"""

from __future__ import annotations

import os
import random
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60
"""Seconds until something counts as never happening."""


def eventually(
    condition: Callable[[], object], seconds: float = PATIENCE, *, pause: float = 0.01
) -> bool:
    """Wait until ``condition()`` is true; whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def connected_to(place: str | os.PathLike[str] | tuple[str, int]) -> socket.socket:
    """A connection to a server that was started: to its unix socket, or a host and port.

    That a socket is in the file system is not enough: its server may not listen yet.
    """
    family = socket.AF_INET if isinstance(place, tuple) else socket.AF_UNIX
    deadline = time.monotonic() + PATIENCE
    while True:
        client = socket.socket(family)
        client.settimeout(PATIENCE)
        try:
            client.connect(place if isinstance(place, tuple) else os.fspath(place))
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return client


def free_place() -> tuple[str, int]:
    """A host and a port for a server that cannot choose by itself, or not say what it chose.

    The address is this machine's own, and no other test's: at 127.0.0.1 somebody else might be
    given the port before the server takes it.
    """
    host = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
    with socket.create_server((host, 0)) as free:
        return host, int(free.getsockname()[1])
