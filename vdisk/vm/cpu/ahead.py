"""Handlers made ahead: what most guests need, compiled in bulk by processes beside this one.

One by one, when a guest comes to need them, handlers cost three times as much, and the guest stands
still meanwhile.  So a first run begins with those of :mod:`vdisk.vm.cpu.common`: it waits for the
first :data:`FIRST`, and the others are made while firmware, boot loader and the beginning of a
kernel run.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from vdisk.vm.cpu.common import common_instructions, shapes_of
from vdisk.vm.cpu.compiler import CompilerProcess, Level
from vdisk.vm.cpu.orders import HandlersOrder, decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vdisk.vm.cpu.context import Shape

    Progress = Callable[[int, int], None]

FIRST = 512
"""Handlers that a first run waits for: about as many as can be made while its run-time is."""
RUNTIME = 512
"""Handlers that take as long as the run-time does."""
BATCH = 64
"""Handlers of one order, so that all processes end at about the same time."""
MOST_PROCESSES = 4
CHECK = 0.1
"""Seconds after which a process is missed that has ended."""


def missing(present: Collection[str]) -> list[Shape]:
    """The common shapes whose handlers are not there, by their symbols; first what is needed
    first."""
    shapes = shapes_of(common_instructions(), decoder)
    return [shape for shape in shapes if shape.symbol not in present]


class Ahead:
    """Makes handlers, in threads that wait for processes, until all are there or it is closed."""

    def __init__(
        self,
        shapes: list[Shape],
        take: Callable[[list[str], bytes, Level], object],
        progress: Progress,
        finished: Callable[[], object],
    ) -> None:
        """``take``: gets the names of some handlers and their packed code; ``progress``: is told
        how many there are of those that are waited for, and how many these are, the run-time
        among them; ``finished``: called when all are there.  All of them from any thread, one at
        a time.
        """
        self._take, self._progress, self._finished = take, progress, finished
        self._waiting = deque(shapes[at : at + BATCH] for at in range(0, len(shapes), BATCH))
        self._left, self._first, self._made = len(shapes), min(FIRST, len(shapes)), 0
        self._runtime = 0
        self._change = threading.Condition()
        self._processes: list[CompilerProcess] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin."""
        if not self._left:
            self._finished()
        atexit.register(self.close)
        for number in range(min(len(os.sched_getaffinity(0)), MOST_PROCESSES, len(self._waiting))):
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
                shapes = self._waiting.popleft()
            except IndexError:
                break
            code = process.carry_out(HandlersOrder(shapes, Level.ROUGH))
            if code is None:  # it was ended
                break
            self._have(shapes, code)
        process.close()

    def _have(self, shapes: list[Shape], code: bytes) -> None:
        with self._change:
            self._take([shape.symbol for shape in shapes], code, Level.ROUGH)
            is_waited_for = self._made < self._first
            self._made += len(shapes)
            self._left -= len(shapes)
            if is_waited_for:
                self._tell()
            if not self._left:
                self._finished()
            self._change.notify_all()

    def _tell(self) -> None:
        done = min(self._made, self._first) + self._runtime
        self._progress(done, self._first + RUNTIME)

    def wait(self) -> None:
        """Until the first handlers are there as well, now that the run-time is, or no more are
        coming; the rest gives way to the guest."""
        with self._change:
            self._runtime = RUNTIME
            self._tell()
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
