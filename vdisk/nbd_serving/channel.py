"""A non-blocking connection, plain or through TLS.

Both raise ``BlockingIOError`` when they can neither receive nor send now, and ``OSError`` when
the connection is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

from vdisk.tls import apart

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

MSG_MORE = getattr(socket, "MSG_MORE", 0)
MSG_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)

_PATIENCE = struct.pack("ll", 0, 100)
"""What :meth:`Channel.start_waiting` waits for, a ``struct timeval`` of 0.1 ms: longer than a
client needs for its next request.  (The kernel rounds it up to a tick of its clock.)"""

_UNIX_SEND_BUFFER = 4 << 20
"""Bytes the kernel may hold for one unix socket: a few of the largest usual reads.  (TCP sizes
its buffers itself, unless they are set.)"""


_TLS_RECORD = 1 << 14
"""The most bytes of one TLS record (RFC 8446, section 5.1)."""


class Channel:
    """A plain socket.

    ``sends_files``: the kernel can send from a file by itself.  ``can_wait``: receiving may wait,
    when asked to, while sending does not.
    """

    sends_files = hasattr(os, "sendfile") and hasattr(os, "preadv")
    can_wait = bool(MSG_DONTWAIT) and hasattr(socket, "SO_RCVTIMEO") and hasattr(select, "poll")
    waits = False
    """Whether it was asked to."""
    receiving_wakes = False
    """Receiving wakes a peer that sleeps until it is sent something: on a unix socket who waits for
    that, and who waits for room to send, are in one queue."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BUFFER)
            self.receiving_wakes = bool(MSG_DONTWAIT)
        elif connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = connection
        self.recv_into: Callable[[memoryview], int] = connection.recv_into
        self._poller: select.poll | None = None

    def fileno(self) -> int:
        return self.socket.fileno()

    def look_into(self, view: memoryview) -> int:
        """What ``recv_into`` would do, but it is still to be received: see :meth:`take`."""
        return self.socket.recv_into(view, 0, socket.MSG_PEEK)

    def take(self, view: memoryview) -> None:
        """Receive all of ``view``, which was looked at, to the same place."""
        while view:
            try:
                count = self.socket.recv_into(view, 0, MSG_DONTWAIT)
            except BlockingIOError:
                count = 0
            if not count:  # urgent data between, which looking passes over
                raise ConnectionAbortedError(errno.ECONNABORTED, "cannot receive what was there")
            view = view[count:]

    def start_waiting(self) -> None:
        """From now on ``recv_into`` waits a moment before it raises ``BlockingIOError``."""
        if not self.waits:
            self.waits = True
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self.socket.setblocking(True)

    def readable(self) -> bool:
        """Whether there is something to receive, or the connection has ended."""
        if self._poller is None:
            self._poller = select.poll()
            self._poller.register(self.socket.fileno(), select.POLLIN)
        return bool(self._poller.poll(0))

    def stop_waiting(self) -> None:
        """Not any longer."""
        if self.waits:
            self.waits = False
            self.socket.setblocking(False)

    def send(self, data: memoryview, *, more: bool = False) -> int:
        """Send a beginning of ``data``; ``more``: something follows at once."""
        return self.socket.send(data, MSG_DONTWAIT | MSG_MORE if more else MSG_DONTWAIT)

    def send_all(self, buffers: Sequence[memoryview], *, more: bool = False) -> int:
        """Send a beginning of the buffers, one after the other."""
        return self.socket.sendmsg(buffers, (), MSG_DONTWAIT | MSG_MORE if more else MSG_DONTWAIT)

    def send_file(self, descriptor: int, offset: int, length: int) -> int:
        """Send bytes of a file; 0 at its end."""
        self.stop_waiting()
        return os.sendfile(self.socket.fileno(), descriptor, offset, length)

    def close(self) -> None:
        self.socket.close()


class TlsChannel(Channel):
    """TLS over the connection of a plain channel, which it replaces; begins with a handshake."""

    sends_files = False
    can_wait = False

    def __init__(self, plain: Channel, context: ssl.SSLContext) -> None:
        import ssl

        self._would_block = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self._tls = context.wrap_socket(
            plain.socket, server_side=True, do_handshake_on_connect=False
        )
        self.socket = self._tls
        self.recv_into = self._receive

    def shake_hands(self) -> bool | None:
        """One step: None when done, else whether it waits to write (and not to read)."""
        try:
            apart(self._tls.do_handshake)
        except self._would_block as error:
            return isinstance(error, self._would_block[1])
        return None

    def certificate(self) -> Mapping[str, Any] | None:
        """The client's certificate as Python's ssl describes it; None without a verified one."""
        return self._tls.getpeercert()

    def _receive(self, view: memoryview) -> int:
        try:
            return apart(self._tls.recv_into, view)
        except self._would_block as error:
            raise BlockingIOError from error

    def send(self, data: memoryview, *, more: bool = False) -> int:
        try:
            return apart(self._tls.send, data)
        except self._would_block as error:
            raise BlockingIOError from error

    def send_all(self, buffers: Sequence[memoryview], *, more: bool = False) -> int:
        """One record's worth: OpenSSL takes no more at once, and small buffers can share it."""
        if len(buffers) == 1 or len(buffers[0]) >= _TLS_RECORD:
            return self.send(buffers[0])
        record = bytearray()
        for buffer in buffers:
            record += buffer[: _TLS_RECORD - len(record)]
            if len(record) == _TLS_RECORD:
                break
        return self.send(memoryview(record))

    def close(self) -> None:
        # Say goodbye if that is possible at once; the client's own goodbye is not waited for.
        with contextlib.suppress(OSError, ValueError):
            apart(self._tls.unwrap)
        self._tls.close()
