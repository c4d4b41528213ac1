"""Progress of a job, and its way to be stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    ProgressCallback = Callable[[int, int], None]
    """Called with (done, total), in bytes; stops the job by raising ``CancelledError``."""

_LARGEST_STEP = 16 << 20
"""Bytes between two calls at most: at the speed of a disk, a tenth of a second."""


class Progress:
    """Calls a callback often enough to be stopped by it, and seldom enough to cost nothing."""

    def __init__(self, total: int, callback: ProgressCallback | None) -> None:
        self.total = total
        self._callback = callback
        self._step = min(max(total // 1000, 1), _LARGEST_STEP)
        self._next = 0
        self.done = 0
        self.reach(0)

    def reach(self, done: int) -> None:
        """The job has dealt with the first ``done`` bytes; never goes back."""
        if done < self._next:
            return
        self.done = done
        self._next = done + self._step
        if self._callback is not None:
            self._callback(done, self.total)

    def advance(self, count: int) -> None:
        """The job has dealt with ``count`` more bytes."""
        self.done += count
        if self.done >= self._next:
            self.reach(self.done)

    def finish(self) -> None:
        """Everything is done: the callback sees (total, total)."""
        self._next = 0
        self.reach(self.total)
