"""Guest time: a clock that devices read, and timers that fire on it.

Time is nanoseconds since power-on and is an argument of everything that needs it, so a machine
can run on the host's clock (:class:`RealClock`) or on the count of executed instructions
(:class:`VirtualClock`): then the same run happens each time, bit for bit.

Callbacks run with the lock of the bus held, and never earlier than their deadline.
"""

from __future__ import annotations

import heapq
import threading
import time
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000_000
LONGEST_WAIT = 3600 * SECOND
"""A guest may arm a timer for the end of time, which is more than a host can wait for."""
SMALLEST_ROOM = 64
"""Entries that the queue may hold before it is looked through for such as mean nothing."""


class Timer:
    """One alarm of a clock: armed for a deadline, or not."""

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self.callback = callback
        self.deadline: int | None = None

    def arm(self, deadline: int) -> None:
        """Fire once at ``deadline`` (ns of the clock), instead of any earlier arrangement."""
        self.deadline = deadline
        self._clock.schedule(self)

    def cancel(self) -> None:
        """Do not fire."""
        self.deadline = None


class Clock:
    """The queue of timers, and what time it is."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, Timer]] = []
        self._order = count()
        self._room = SMALLEST_ROOM

    def now(self) -> int:
        """Nanoseconds since power-on."""
        raise NotImplementedError

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer that calls ``callback()``; not armed yet."""
        return Timer(self, callback)

    def schedule(self, timer: Timer) -> None:
        """Called by :meth:`Timer.arm`."""
        assert timer.deadline is not None
        heapq.heappush(self._queue, (timer.deadline, next(self._order), timer))
        if len(self._queue) > self._room:
            self._tidy()

    def _tidy(self) -> None:
        """Drop what was cancelled or armed anew: a guest may arm as often as it likes."""
        latest: dict[Timer, tuple[int, int, Timer]] = {}
        for entry in sorted(self._queue, key=lambda entry: entry[:2]):
            if entry[2].deadline == entry[0]:
                latest.setdefault(entry[2], entry)
        self._queue[:] = latest.values()  # sorted, which a heap may be
        self._room = max(2 * len(self._queue), SMALLEST_ROOM)

    def restore(self, now: int) -> None:
        """Go on from a saved time; nothing runs meanwhile, and devices arm their timers anew."""
        raise NotImplementedError

    def next_deadline(self) -> int | None:
        """When the next timer fires; None if none is armed."""
        queue = self._queue
        while queue and queue[0][2].deadline != queue[0][0]:  # cancelled, or armed anew
            heapq.heappop(queue)
        return queue[0][0] if queue else None

    def fire(self) -> None:
        """Call back every timer that is due; the lock of the bus is held."""
        while (deadline := self.next_deadline()) is not None and deadline <= self.now():
            timer = heapq.heappop(self._queue)[2]
            timer.deadline = None
            timer.callback()


class VirtualClock(Clock):
    """Time that only :meth:`advance` moves: deterministic runs, and tests of devices."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0

    def now(self) -> int:
        return self._now

    def restore(self, now: int) -> None:
        self._now = now

    def advance(self, until: int) -> None:
        """Move to ``until``, firing each timer on the way at its own time."""
        while (deadline := self.next_deadline()) is not None and deadline <= until:
            self._now = max(self._now, deadline)
            self.fire()
        self._now = max(self._now, until)


class RealClock(Clock):
    """The host's monotonic clock, which stops while the machine is paused.

    A thread of its own fires the timers, holding ``lock``.  It wakes when it is told to or when the
    timer was due that was the first when it fell asleep, whatever has become of that: guests move
    their next tick to and fro, and waking a thread costs more than looking at the time in vain.
    """

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__()
        self._lock = lock
        self._wake = threading.Condition(lock)
        self._base = 0
        self._started: int | None = None
        self._thread: threading.Thread | None = None
        self._wakes_at = 0
        """When the thread, asleep, will look again; 0: it is awake."""

    def now(self) -> int:
        if self._started is None:
            return self._base
        return self._base + time.monotonic_ns() - self._started

    def schedule(self, timer: Timer) -> None:
        with self._wake:
            super().schedule(timer)
            if (timer.deadline or 0) < self._wakes_at:
                self._wake.notify()

    def restore(self, now: int) -> None:
        with self._wake:
            if self._started is not None:
                self._started = time.monotonic_ns()
            self._base = now
            self._wake.notify()

    def start(self) -> None:
        """Let time pass."""
        with self._wake:
            if self._started is None:
                self._started = time.monotonic_ns()
                self._thread = threading.Thread(target=self._run, name="vdisk-clock", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Let time stand still; returns once no callback is running."""
        with self._wake:
            self._base, self._started = self.now(), None
            thread, self._thread = self._thread, None
            self._wake.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        with self._wake:
            while self._started is not None and self._thread is threading.current_thread():
                self.fire()
                deadline, now = self.next_deadline(), self.now()
                latest = now + LONGEST_WAIT
                self._wakes_at = latest if deadline is None else min(deadline, latest)
                self._wake.wait(max(self._wakes_at - now, 0) / SECOND)
                self._wakes_at = 0
