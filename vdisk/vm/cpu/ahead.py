"""What a first run makes ahead: the run-time and what most guests need, by processes beside it.

One by one, when a guest comes to need them, handlers cost three times as much, and the guest stands
still meanwhile.  So a first run begins with those of :mod:`vdisk.vm.cpu.common`, in bulk: it waits
for :data:`FIRST` of them.  The others are made while firmware, boot loader and the beginning of a
kernel run, and so is the run-time, of which there is a rough one until then.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu.common import common_instructions, shapes_of
from vdisk.vm.cpu.compiler import CompilerProcess, Level
from vdisk.vm.cpu.orders import HandlersOrder, RuntimeOrder, decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vdisk.vm.cpu.context import Shape

    Progress = Callable[[int, int], None]

FIRST = 256
"""Handlers that a first run waits for: firmware needs them, and what it starts."""
BATCH = 32
"""Handlers of one order, so that all processes end at about the same time."""
MOST_PROCESSES = 4
CHECK = 0.1
"""Seconds after which a process is missed that has ended."""


class Work(NamedTuple):
    """What one process does at a time, and the names of what comes of it."""

    order: HandlersOrder | RuntimeOrder
    names: list[str]
    level: Level


def missing(present: Collection[str]) -> list[Shape]:
    """The common shapes whose handlers are not there, by their symbols; first what is needed
    first."""
    shapes = shapes_of(common_instructions(), decoder)
    return [shape for shape in shapes if shape.symbol not in present]


def handlers(shapes: list[Shape]) -> Work:
    """To make these."""
    names = [shape.symbol for shape in shapes]
    return Work(HandlersOrder(shapes, Level.ROUGH), names, Level.ROUGH)


class Ahead:
    """Has work done, in threads that wait for processes, until it is done or this is closed."""

    def __init__(
        self,
        shapes: list[Shape],
        runtime: str,
        take: Callable[[list[str], bytes, Level], object],
        progress: Progress,
        finished: Callable[[], object],
    ) -> None:
        """``shapes`` of handlers; ``runtime``: the name of the run-time; ``take``: gets the names
        of some of these and their packed code; ``progress``: is told how many handlers there are
        of those that are waited for, and how many these are; ``finished``: called when all is
        there.  All of them from any thread, one at a time.
        """
        self._take, self._progress, self._finished = take, progress, finished
        self._first = min(FIRST, len(shapes))
        batches = (range(0, self._first, BATCH), range(self._first, len(shapes), BATCH))
        first, others = (
            [handlers(shapes[at : min(at + BATCH, each.stop)]) for at in each] for each in batches
        )
        works = [*first, Work(RuntimeOrder(), [runtime], Level.BEST), *others]
        self._waiting, self._left, self._made = deque(works), len(works), 0
        self._change = threading.Condition()
        self._processes: list[CompilerProcess] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin."""
        atexit.register(self.close)
        for number in range(min(len(os.sched_getaffinity(0)), MOST_PROCESSES, self._left)):
            process = CompilerProcess()
            self._processes.append(process)
            thread = threading.Thread(
                target=self._work, args=(process,), name=f"vdisk-ahead-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _work(self, process: CompilerProcess) -> None:
        while True:
            try:
                work = self._waiting.popleft()
            except IndexError:
                break
            code = process.carry_out(work.order)
            if code is None:  # it was ended
                break
            self._have(work, code)
        process.close()

    def _have(self, work: Work, code: bytes) -> None:
        with self._change:
            self._take(work.names, code, work.level)
            self._left -= 1
            if work.level is Level.ROUGH and self._made < self._first:
                self._made += len(work.names)
                self._progress(min(self._made, self._first), self._first)
            if not self._left:
                self._finished()
            self._change.notify_all()

    def wait(self) -> None:
        """Until the first handlers are there, or no more are coming; the rest gives way."""
        with self._change:
            while self._made < self._first and any(each.is_alive() for each in self._threads):
                self._change.wait(CHECK)
        for process in self._processes:
            process.give_way()

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        atexit.unregister(self.close)
        self._waiting.clear()
        for process in self._processes:
            process.close()
        for thread in self._threads:
            thread.join()
