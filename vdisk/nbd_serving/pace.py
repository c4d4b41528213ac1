"""Whether the event loop's thread has a processor to itself.

Where it has, a client works on its first replies while the last are being made, and neither side
ever sleeps.  Where processors are scarce, the client that is woken takes ours::

    free    server  |answers 24|send|answers 8|send|receives 24 …
            client              |takes 24, asks 24|
    scarce  server  |answers 24|send|                 |answers 8|send|            |
            client                   |takes 24, asks 24|              |takes 8, …|
"""

from __future__ import annotations

from typing import Final

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
