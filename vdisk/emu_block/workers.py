"""Threads that wait for disks, so that a processor of the machine need not."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.emu_block.requests import Request


class Workers:
    """Up to ``most`` threads, started as they are needed, that call ``work(request)``.

    Used with the lock of the disk held, except inside the threads.
    """

    def __init__(self, most: int, work: Callable[[Request], None]) -> None:
        self._most = most
        self._work = work
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def put(self, request: Request, active: int) -> None:
        """Hand a request over; ``active``: how many are handed over and not done, this included."""
        if len(self._threads) < min(active, self._most):
            number = len(self._threads)
            thread = threading.Thread(target=self._run, name=f"vdisk-io-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(request)

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            self._work(request)

    def stop(self) -> list[threading.Thread]:
        """End the threads when the queue is empty; the caller joins them without the lock."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        return threads
