"""The host's sockets of a network, or its TAP: a thread waits, and calls with the bus's lock held.

Whoever holds the lock may watch and forget sockets; the thread alone touches the selector and
closes sockets, so that no number of a socket is used again behind its back.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from vdisk.listening import stop_listening

if TYPE_CHECKING:
    from collections.abc import Callable


class Watched(Protocol):
    """A socket, or another file that can be waited for."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Watch(NamedTuple):
    """What to call when a socket can be read, or written; None: it is not asked."""

    readable: Callable[[], None] | None
    writable: Callable[[], None] | None

    @property
    def events(self) -> int:
        """For the selector."""
        found = selectors.EVENT_READ if self.readable else 0
        return found | (selectors.EVENT_WRITE if self.writable else 0)


class Reactor:
    """``lock``: of the bus."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._wake = socket.socketpair()
        self._wake_end.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._watches: dict[Watched, Watch] = {}
        self._changed: set[Watched] = set()
        self._leaving: list[Watched] = []
        self._applied = threading.Condition(lock)
        self._closed = False
        self._thread: threading.Thread | None = None

    def watch(
        self,
        sock: Watched,
        readable: Callable[[], None] | None = None,
        writable: Callable[[], None] | None = None,
    ) -> None:
        """Call these from now on; the socket does not block."""
        wanted = Watch(readable, writable)
        before = self._watches.get(sock)
        self._watches[sock] = wanted
        if before is None or before.events != wanted.events:
            self._changed.add(sock)
            self._notify()

    def close_socket(self, sock: Watched) -> None:
        """Call nothing for it any more, and close it."""
        self._watches.pop(sock, None)
        self._leaving.append(sock)
        self._notify()

    def settle(self) -> None:
        """Return when sockets that were given to :meth:`close_socket` are closed.

        The lock, which is held, is let go meanwhile.
        """
        self._applied.wait_for(lambda: not self._leaving)

    def _notify(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="vdisk-net", daemon=True)
            self._thread.start()
        if threading.current_thread() is not self._thread:
            with suppress(BlockingIOError):  # it is going to wake up as it is
                self._wake.send(b"x")

    def _run(self) -> None:
        while True:
            with self._lock:
                self._apply()
                if self._closed:
                    return
            ready = self._selector.select()
            with self._lock:
                for key, events in ready:
                    self._call(cast("Watched", key.fileobj), events)

    def _call(self, sock: Watched, events: int) -> None:
        if sock is self._wake_end:
            with suppress(BlockingIOError):
                self._wake_end.recv(4096)
            return
        watch = self._watches.get(sock)
        if watch is None:
            return
        if events & selectors.EVENT_READ and watch.readable is not None:
            watch.readable()
        if events & selectors.EVENT_WRITE and self._watches.get(sock) is watch and watch.writable:
            watch.writable()

    def _apply(self) -> None:
        """Let the selector know what has changed."""
        for sock in self._changed:
            watch = self._watches.get(sock)
            self._forget(sock)
            if watch is not None and watch.events:
                self._selector.register(sock, watch.events)
        self._changed.clear()
        for sock in self._leaving:
            self._forget(sock)
            if isinstance(sock, socket.socket):
                stop_listening(sock)
            sock.close()
        self._leaving.clear()
        self._applied.notify_all()

    def _forget(self, sock: Watched) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def close(self) -> None:
        """Close every socket and end the thread; without the lock held by the caller."""
        with self._lock:
            self._closed = True
            self._leaving += self._watches
            self._watches.clear()
            self._changed.clear()
            thread = self._thread
            self._notify()
        if thread is not None:
            thread.join()
        else:
            with self._lock:
                self._apply()
        self._selector.close()
        self._wake.close()
        self._wake_end.close()


class HostSocket:
    """A TCP socket as :class:`~vdisk.vm.net.tcp.HostSide` has it."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.on_readable: Callable[[], None] = lambda: None
        self.on_writable: Callable[[], None] = lambda: None
        self._reactor = reactor
        self._open = True

    def send(self, data: memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def receive(self, limit: int) -> bytes | None:
        if limit <= 0:
            return None
        try:
            return self.sock.recv(limit)
        except BlockingIOError:
            return None

    def shut_down(self) -> None:
        with suppress(OSError):  # the other end was faster
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, abort: bool = False) -> None:
        if self._open:
            self._open = False
            if abort:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._reactor.close_socket(self.sock)

    def want(self, *, read: bool, write: bool) -> None:
        if self._open:
            self._reactor.watch(
                self.sock,
                self.on_readable if read else None,
                self.on_writable if write else None,
            )
