"""``[ CMD ARGS ]``: an NBD server that runs as long as the command that uses it.

The server inherits a listening unix socket as descriptor 3, and is told so as systemd's "socket
activation" does: LISTEN_FDS=1 and LISTEN_PID, its own number.  qemu-nbd, nbdkit and
``vdisk-nbd serve`` understand that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FIRST = 3  # SD_LISTEN_FDS_START


@contextlib.contextmanager
def served(words: Sequence[str]) -> Iterator[str]:
    """Start a server; gives the URI of its socket, and ends it."""
    import shutil

    if not words:
        raise InvalidRequestError("[ ] holds the command of a server")
    program = shutil.which(words[0])
    if program is None:
        raise NotFoundError(f"there is no program {words[0]!r}", operation="start a server")
    with tempfile.TemporaryDirectory(prefix="vdisk-nbd-") as folder:
        path = os.path.join(folder, "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(16)
            child = os.fork()
            if child == 0:
                _become(program, words, listener)
        try:
            yield f"nbd+unix:///?socket={path}"
        finally:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


def _become(program: str, words: Sequence[str], listener: socket.socket) -> None:
    """In the child: turn into the server; never returns."""
    try:
        if listener.fileno() == _FIRST:
            os.set_inheritable(_FIRST, True)
        else:
            os.dup2(listener.fileno(), _FIRST)
        activation = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
        os.execve(program, list(words), {**os.environ, **activation})
    finally:
        os._exit(127)
