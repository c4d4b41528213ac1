"""Flush barriers: a flush begins when every write submitted before it has finished.

Time is cut into epochs by the flushes that had to wait.  A write belongs to the epoch it was
submitted in; a flush waits at the end of its own, and may begin when that epoch and all before
it hold no write any more::

    w1 w2 w3 F1 | w4 F2 | w5 …        F1 waits for w1-w3, F2 for w1-w4, w5 for nobody
    epoch 0       epoch 1  epoch 2
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.emu_block.requests import Request


class Epoch:
    """The time between two waiting flushes: writes that are not finished, and who waits."""

    __slots__ = ("flushes", "writes")

    def __init__(self) -> None:
        self.writes = 0
        self.flushes: list[Request] = []


class Barrier:
    """Which flush may begin; used with the lock of the disk held."""

    def __init__(self) -> None:
        self._epochs: deque[Epoch] = deque([Epoch()])

    def begin_write(self, request: Request) -> None:
        """A write was submitted."""
        epoch = request.epoch = self._epochs[-1]
        epoch.writes += 1

    def hold_flush(self, request: Request) -> bool:
        """A flush was submitted: does it have to wait (:meth:`end_write` then gives it back)?"""
        last = self._epochs[-1]
        if len(self._epochs) == 1 and not last.writes:
            return False
        last.flushes.append(request)
        self._epochs.append(Epoch())
        return True

    def end_write(self, request: Request) -> list[Request]:
        """A write is finished, for good or ill: the flushes that may begin now."""
        assert request.epoch is not None
        request.epoch.writes -= 1
        request.epoch = None
        ready: list[Request] = []
        while len(self._epochs) > 1 and not self._epochs[0].writes:
            ready += self._epochs.popleft().flushes
        return ready
