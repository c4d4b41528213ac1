"""A stream to a server: sends that never wait for the server to read, receives that wait.

One thread may send while another receives.  A server may stop reading until somebody reads what
it wants to send; a client that then waits for room in the socket would wait forever.  So when a
send finds no room, :meth:`Channel.send` asks its caller to receive meanwhile::

    send -> no room -> receive_meanwhile()          True: it received, or let go of the receiving
                    -> wait until there is room     False: another thread receives

:class:`TlsChannel` encrypts in memory (``ssl.SSLObject``), so that all waiting is on the plain
socket, and a lock, never held while waiting, keeps its two directions apart: an SSL object may be
used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import math
import selectors
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, cast

from vdisk.errors import AuthenticationError, DeviceError, from_os_error
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.tls import apart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.errors import VdiskError
    from vdisk.nbd.replies import Buffer
    from vdisk.stores._nbd.tls import TlsSettings

_IOV_MAX = 1024
_TLS_CHUNK = 1 << 18
"""Bytes encrypted at a time: what a large write takes in memory beside itself."""


class ConnectionLostError(DeviceError):
    """The connection ended, or the server fell silent; requests under way have no answer.

    ``silent``: nobody ended it, the server does not answer in time.  It may still carry out what
    it was sent.
    """

    kind = "connection-lost"

    def __init__(
        self, message: str, *, path: str, errno: int | None = None, silent: bool = False
    ) -> None:
        super().__init__(message, path=path, errno=errno, operation="wait for the server")
        self.silent = silent


def repeated(error: VdiskError, suffix: str = "") -> VdiskError:
    """The error that ended a connection once more, for another request that it was to answer."""
    message, path = error.message + suffix, error.path
    found: VdiskError
    if isinstance(error, ConnectionLostError):
        found = ConnectionLostError(
            message, path=path or "", errno=error.errno, silent=error.silent
        )
    elif isinstance(error, RemoteProtocolError):
        found = RemoteProtocolError(message, path=path, errno=error.errno)
    else:
        found = DeviceError(message, path=path, errno=error.errno)
    found.__cause__ = error
    return found


class Channel:
    """A connected socket, which it owns.  ``name``: of the server, for errors.

    Receiving waits in ``recv`` itself (SO_RCVTIMEO is its time-out), and sending never does
    (MSG_DONTWAIT), so that neither takes a system call more than it must.
    ``send`` and ``receive_into`` raise :class:`ConnectionLostError`.
    """

    receives_apart = hasattr(socket.socket, "recvmsg_into")
    """Whether one receive can fill several buffers."""

    def __init__(self, connected: socket.socket, name: str) -> None:
        self.name = name
        self._socket = connected
        connected.settimeout(None)
        self.set_timeout(None)
        self._selector = selectors.DefaultSelector()
        self._selector.register(connected, selectors.EVENT_WRITE)

    def set_timeout(self, seconds: float | None) -> None:
        """How long a receive waits."""
        self._timeout = math.inf if seconds is None else max(seconds, 0.001)
        whole, part = (0, 0) if seconds is None else divmod(round(self._timeout * 1e6), 10**6)
        limit = struct.pack("ll", whole, part)  # struct timeval; zero: none
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    @property
    def timeout(self) -> float:
        """How long a receive waits, seconds; may be infinite."""
        return self._timeout

    # -- sending -----------------------------------------------------------------------------

    def send(self, buffers: Sequence[Buffer], receive_meanwhile: Callable[[], bool]) -> None:
        """Send all of the buffers; one thread at a time."""
        rest = [memoryview(buffer) for buffer in buffers]
        while rest:
            try:
                count = self._socket.sendmsg(rest[:_IOV_MAX], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait_for_room(receive_meanwhile)
            except OSError as error:
                raise self._lost(error) from error
            else:
                rest = _after(rest, count)

    def _wait_for_room(self, receive_meanwhile: Callable[[], bool]) -> None:
        """Return when it is worth trying to send again."""
        deadline = time.monotonic() + self._timeout
        while True:
            receiving = receive_meanwhile()
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if receiving else 0)
            self._selector.modify(self._socket, events)
            # Another thread may stop receiving without a word: look again before long.
            ready = self._selector.select(min(self._timeout, 1.0 if receiving else 0.01))
            if any(mask & selectors.EVENT_WRITE for _, mask in ready):
                return
            if ready:
                deadline = time.monotonic() + self._timeout
            elif time.monotonic() > deadline:
                raise self._silent()

    # -- receiving ---------------------------------------------------------------------------

    def receive_into(self, target: memoryview, *, wait: bool = True) -> int | None:
        """Receive some bytes, at least one; None where there are none and ``wait`` is false."""
        try:
            count = self._socket.recv_into(target, 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError as error:
            if wait:
                raise self._silent() from error
            return None
        except OSError as error:
            raise self._lost(error) from error
        if not count:
            raise self._ended()
        return count

    def receive_apart(self, *targets: memoryview) -> int:
        """Receive into one target after the other; some bytes, at least one."""
        if not self.receives_apart:
            return self.receive_into(targets[0]) or 0
        try:
            count = self._socket.recvmsg_into(targets)[0]
        except BlockingIOError as error:
            raise self._silent() from error
        except OSError as error:
            raise self._lost(error) from error
        if not count:
            raise self._ended()
        return count

    # -- its end -----------------------------------------------------------------------------

    def _silent(self) -> ConnectionLostError:
        return ConnectionLostError(
            f"the server was silent for {self._timeout:g} s",
            path=self.name,
            errno=errno.ETIMEDOUT,
            silent=True,
        )

    def _ended(self) -> ConnectionLostError:
        return ConnectionLostError(
            "the server closed the connection", path=self.name, errno=errno.ECONNRESET
        )

    def _lost(self, error: OSError) -> ConnectionLostError:
        reason = from_os_error(error, path=self.name, operation="talk to the server")
        silent = not isinstance(error, ConnectionError)  # ETIMEDOUT, EHOSTUNREACH…
        return ConnectionLostError(
            reason.message, path=self.name, errno=reason.errno, silent=silent
        )

    def shut_down(self) -> None:
        """End the stream: whoever waits in ``receive_into`` learns of it."""
        with contextlib.suppress(OSError):  # the server was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._selector.close()
        self._socket.close()

    def detach(self) -> socket.socket:
        """The socket, blocking, for somebody else to use; the channel is of no use any more."""
        self.set_timeout(None)
        self._selector.close()
        return self._socket

    def secured(self, settings: TlsSettings) -> Channel:
        """The same stream inside TLS, after a handshake; raises :class:`AuthenticationError`."""
        return TlsChannel(self._socket, self.name, settings, self)


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers when ``count`` bytes of them are gone."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


class TlsChannel(Channel):
    """A channel inside TLS; made by :meth:`Channel.secured`."""

    receives_apart = False

    def __init__(
        self, connected: socket.socket, name: str, settings: TlsSettings, plain: Channel
    ) -> None:
        assert settings.context is not None
        plain._selector.close()
        super().__init__(connected, name)
        self.set_timeout(None if plain.timeout == math.inf else plain.timeout)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._lock = threading.Lock()
        self._received = memoryview(bytearray(_TLS_CHUNK))
        self._tls = settings.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=settings.hostname
        )
        try:
            self._shake_hands()
        except BaseException:
            self.close()
            raise

    def _shake_hands(self) -> None:
        while True:
            try:
                apart(self._tls.do_handshake)
            except ssl.SSLWantReadError:
                super().send([self._outgoing.read()], _nothing_to_receive)
                self._incoming.write(self._received[: super().receive_into(self._received) or 0])
            except ssl.SSLError as error:
                super().send([self._outgoing.read()], _nothing_to_receive)  # the alert
                raise AuthenticationError(
                    f"TLS failed: {_reason(error)}", path=self.name, operation="connect"
                ) from error
            else:
                super().send([self._outgoing.read()], _nothing_to_receive)
                return

    def send(self, buffers: Sequence[Buffer], receive_meanwhile: Callable[[], bool]) -> None:
        for buffer in buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), _TLS_CHUNK):
                with self._lock:
                    apart(self._tls.write, view[start : start + _TLS_CHUNK])
                    encrypted = self._outgoing.read()
                super().send([encrypted], receive_meanwhile)

    def receive_into(self, target: memoryview, *, wait: bool = True) -> int | None:
        while True:
            count = self._decrypt_into(target)
            if count is not None:
                return count
            received = super().receive_into(self._received, wait=wait)
            if received is None:
                return None
            with self._lock:
                self._incoming.write(self._received[:received])

    def _decrypt_into(self, target: memoryview) -> int | None:
        """Bytes of what has arrived; None where more must arrive first."""
        with self._lock:
            try:
                count = cast("int", apart(self._tls.read, len(target), target))
            except ssl.SSLWantReadError:
                return None
            except ssl.SSLZeroReturnError as error:
                raise self._ended() from error
            except ssl.SSLError as error:
                reason = f"TLS failed: {_reason(error)}"
                raise ConnectionLostError(reason, path=self.name) from error
        if not count:
            raise self._ended()
        return count

    def detach(self) -> socket.socket:
        raise DeviceError("a connection inside TLS cannot be handed over", path=self.name)


def _nothing_to_receive() -> bool:
    """During a handshake each side waits for the other: nothing arrives while we send."""
    return False


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused: {error.verify_message}"
    return str(error.reason or error).replace("_", " ").lower()
