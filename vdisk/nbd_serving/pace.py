"""Whether the event loop's thread has a processor to itself, and what it does with it.

Where it has, a client works on one half of its replies while the other is being made, and neither
side waits.  Where processors are scarce, the client that is woken takes ours::

    free    server  |answers 16|send|answers 16|send|answers 16|send|answers 16 …
            client              |takes 16, asks 16| |takes 16, asks 16|
    scarce  server  |answers 16|send|                  |answers 16|send|            |
            client                  |takes 16, asks 16|                |takes 16, …|

To fall asleep and be woken takes longer than a quick client does for its next request, so on a
processor of our own that request is looked for a moment before sleeping: if it mostly comes then.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # not Linux: then nobody tells

    def _preemptions() -> int | None:
        return None
else:

    def _preemptions() -> int | None:
        """How often this thread lost its processor though it had something to do."""
        return getrusage(RUSAGE_THREAD).ru_nivcsw


LOOK_EVERY: Final = 64
"""Batches of requests between two looks: some milliseconds, and nothing of their cost."""

OFTEN: Final = LOOK_EVERY // 4
"""So many preemptions between two looks are more than an idle machine's: one in four batches."""

FORGETTING: Final = 0.9
"""How deep a client's queue was at its deepest is forgotten in some ten batches waited for."""

LOOK_SECONDS: Final = 20e-6
"""How long to look: what sleeping and waking cost both sides in a virtual machine."""

LOOKS_JUDGED: Final = 64
LOOKS_PAUSED: Final = 4096
"""Where half of so many looks were in vain, sleep at once for so many requests: looking costs a
client that is slow one part in a hundred."""


class Pace:
    """Of one thread, which makes it and asks it."""

    def __init__(self) -> None:
        self._seen = _preemptions()
        self._batches = 0
        self._free = False

    def processors_are_free(self) -> bool:
        """Whether two can work at the same time, for all we saw; asked before each batch."""
        self._batches += 1
        if self._batches >= LOOK_EVERY:
            self._batches = 0
            now = _preemptions()
            self._free = now is not None and self._seen is not None and now - self._seen < OFTEN
            self._seen = now
        return self._free


class Depth:
    """How many requests a client has in flight: the most that came at once.

    That is forgotten while the client lets us wait for requests, which it then has all replies to.
    """

    def __init__(self) -> None:
        self._deepest = 0.0

    def is_whole(self, count: int, *, waited: bool) -> bool:
        """Whether ``count`` requests, which just came, are all or most of those in flight.

        Else they are what the client asked for while others of it were answered.
        """
        self._deepest = max(count, self._deepest * FORGETTING if waited else self._deepest)
        return count * 4 > self._deepest * 3


class Lookout:
    """Looks for one client's next request, as long as that pays."""

    def __init__(self) -> None:
        self._looks = self._in_vain = self._pause = 0

    def look(self, readable: Callable[[], bool]) -> bool:
        """Return when ``readable()`` is true, or waiting for it is better done asleep.

        Whether it was true at once.
        """
        if self._pause:
            self._pause -= 1
            return False
        at_once = readable()
        if not at_once:
            end = monotonic() + LOOK_SECONDS
            while not readable():
                if monotonic() > end:
                    self._in_vain += 1
                    break
        self._looks += 1
        if self._looks == LOOKS_JUDGED:
            self._pause = LOOKS_PAUSED if self._in_vain > LOOKS_JUDGED // 2 else 0
            self._looks = self._in_vain = 0
        return at_once
