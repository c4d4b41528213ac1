"""Acknowledged writes that no flush has covered yet.

A server may answer a write before it is stable, and then die.  Whoever connects to its successor
and flushes there is told "done" although the write is gone.  So that a flush means what
:meth:`~vdisk.block.BlockDevice.flush` says, this remembers what must not be forgotten:

* where lost connections are replaced without a word (``keep``), the writes themselves, to be
  written again through the new connection before anything else is.  Beyond :data:`MAX_BYTES` the
  next write has to wait for a flush;
* otherwise only that there were some: the flush after the loss then fails, once, as ``fsync`` does
  after a failed write-back.

Writes of the same bytes that were under way at once have no order, before a loss or after it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from vdisk.stores._nbd.requests import FLUSH, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 64 << 20
"""Bytes of data kept: two of the largest requests, and some tenths of a second of a fast disk."""

MAX_ENTRIES = 1 << 16
"""Requests kept: what an hour of writing zeroes may leave, in 20 MiB of small objects."""


class Journal:
    """Thread-safe.  ``lost``: something was forgotten that a flush should have covered."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._entries: deque[tuple[int, Request]] = deque()
        self._bytes = 0
        self._recorded = 0
        self._covered = 0
        self.lost = False

    @property
    def full(self) -> bool:
        return self._bytes > MAX_BYTES or len(self._entries) > MAX_ENTRIES

    def mark(self) -> int:
        """What a flush that is sent now will cover."""
        return self._recorded

    def acknowledged(self, request: Request) -> None:
        """The server has answered: a write is there to be remembered, a flush covers some."""
        with self._lock:
            if request.command is FLUSH:
                self._forget(request.mark)
            elif request.changes and not request.repeated and (self._entries or not request.fua):
                self._record(request)

    def _record(self, request: Request) -> None:
        self._recorded += 1
        if not self._keep:
            return
        data = None if request.view is None else memoryview(bytes(request.view))
        kept = Request(
            request.command, request.offset, request.length, data, no_hole=request.no_hole
        )
        self._entries.append((self._recorded, kept))
        self._bytes += 0 if data is None else len(data)

    def _forget(self, mark: int) -> None:
        self._covered = max(self._covered, mark)
        while self._entries and self._entries[0][0] <= mark:
            _, request = self._entries.popleft()
            self._bytes -= 0 if request.view is None else len(request.view)

    def connection_lost(self) -> None:
        """The server may have died: what no flush covered, and is not kept, may be lost."""
        with self._lock:
            if not self._keep and self._recorded > self._covered:
                self.lost = True
                self._covered = self._recorded

    def again(self) -> Iterator[Request]:
        """The writes to send again, in the order of their answers; they stay remembered."""
        for _, kept in list(self._entries):
            once_more = Request(
                kept.command, kept.offset, kept.length, kept.view, no_hole=kept.no_hole
            )
            once_more.repeated = True
            yield once_more
