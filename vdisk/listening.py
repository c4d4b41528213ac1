"""What servers have in common about the sockets that they listen on."""

from __future__ import annotations

import contextlib
import socket


def stop_listening(listener: socket.socket) -> None:
    """Refuse whoever comes from now on, and let others have the address; to be closed then.

    Closing alone is not enough: a child process that is being started has a copy of the descriptor
    from ``fork`` until ``exec``, and for as long the port would be in use, and clients would be let
    in that nobody serves.  Not for a socket that was handed over: its owner goes on listening.
    Of a socket that does not listen nothing changes.
    """
    with contextlib.suppress(OSError):  # a system that can only close it
        if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listener.shutdown(socket.SHUT_RDWR)
