"""The name server of a guest's network: it asks the host's, or the host's resolver."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from vdisk.vm.net import dns

if TYPE_CHECKING:
    from vdisk.vm.net.udp import Address, Deliver

MAX_NAMES: Final = 32
"""Questions about names that wait for the host's resolver."""


class Names:
    """``ask(guest, server, query)``: leads a query to the host's name server; None: there is none.

    ``answer(server, guest, data)``: how the guest is told.  ``restrict``: no name is known.
    Everything is called with ``lock``, the bus's, held.
    """

    def __init__(
        self, lock: threading.RLock, ask: Deliver | None, answer: Deliver, *, restrict: bool
    ) -> None:
        self._lock = lock
        self._ask, self._answer = ask, answer
        self._restrict = restrict
        self._waiting: deque[tuple[Address, Address, dns.Question]] = deque()
        self._resolver: threading.Thread | None = None

    def ask(self, guest: Address, server: bytes, query: bytes) -> None:
        """A datagram for the name server."""
        asked = (server, dns.PORT)
        if self._ask is not None:
            self._ask(guest, asked, query)
            return
        question = dns.parse(query)
        if question is None or len(self._waiting) >= MAX_NAMES:
            return
        if self._restrict:
            self._answer(asked, guest, dns.response(question, dns.NAME_ERROR, []))
            return
        self._waiting.append((guest, asked, question))
        if self._resolver is None:
            self._resolver = threading.Thread(target=self._resolve, name="vdisk-dns", daemon=True)
            self._resolver.start()

    def _resolve(self) -> None:
        """In a thread of its own: answer what waits, then end."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._resolver = None
                    return
                guest, asked, question = self._waiting.popleft()
            answer = dns.resolve(question)
            with self._lock:
                self._answer(asked, guest, answer)

    def clear(self) -> None:
        """Nobody waits any more."""
        self._waiting.clear()
