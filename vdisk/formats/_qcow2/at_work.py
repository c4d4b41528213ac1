"""Who is using the image: I/O that is still under way.

:class:`AtWork` hands out tickets: a cluster freed after ticket n was drawn may be used again once
no ticket up to n is still out.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.formats._gate import Gate


class Work:
    """One piece of I/O under way, as a context manager."""

    __slots__ = ("_log", "_ticket")

    def __init__(self, log: AtWork) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._ticket = self._log.begin()

    def __exit__(self, *_exception: object) -> None:
        self._log.end(self._ticket)


class AtWork:
    """Tickets of the I/O under way.

    A ticket is drawn before the mapping is looked up.  Whoever has drawn but not yet noted
    itself cannot have seen a mapping that was changed before: so neither call needs a lock,
    only that each operation on the set is atomic.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count(1)
        self._out: set[int] = set()
        self._left = threading.Condition()
        self._awaited = 0

    def begin(self) -> int:
        """Start a piece of I/O; its ticket."""
        ticket = next(self._tickets)
        self._out.add(ticket)
        return ticket

    def end(self, ticket: int) -> None:
        """That piece of I/O is over."""
        self._out.discard(ticket)
        if self._awaited:
            with self._left:
                self._left.notify_all()

    def now(self) -> int:
        """A ticket number higher than that of all I/O begun so far."""
        return next(self._tickets)

    def oldest(self) -> int:
        """The lowest ticket out; if none is, higher than all so far."""
        return min(tuple(self._out), default=0) or self.now()

    def wait(self) -> None:
        """Return when everything that was under way at the call is over."""
        now = self.now()
        with self._left:
            self._awaited += 1
            self._left.wait_for(lambda: self.oldest() > now)
            self._awaited -= 1


class Writing:
    """Guest data being written, as a context manager: the gate is shared, a ticket is out."""

    __slots__ = ("_gate", "_log", "_ticket")

    def __init__(self, gate: Gate, log: AtWork) -> None:
        self._gate = gate
        self._log = log

    def __enter__(self) -> None:
        self._gate.begin_sharing()
        self._ticket = self._log.begin()

    def __exit__(self, *_exception: object) -> None:
        self._log.end(self._ticket)
        self._gate.end_sharing()
