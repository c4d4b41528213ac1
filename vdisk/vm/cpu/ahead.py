"""What a first run makes ahead: the run-time and what most guests need, by processes beside it.

One by one, when a guest comes to need them, handlers cost three times as much, and the guest stands
still meanwhile; and so it is with what is known of instructions.  So a first run begins with what
:mod:`vdisk.vm.cpu.common` lists, in bulk: it waits for the handlers that kernels need (of as many
bits as the one that is booted), and for what is known of their instructions.  The others are made
while the guest begins, and so is the run-time, of which there is a rough one until then.  The first
run with a kernel of 32 bits waits for what is missing for these, others having gone before or not.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.vm.cpu.common import common_instructions, kernel_instructions, shapes_of
from vdisk.vm.cpu.compiler import CompilerProcess, Level
from vdisk.vm.cpu.orders import HandlersOrder, InstructionsOrder, RuntimeOrder, decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from vdisk.vm.cpu.codegen import NativeCode
    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.orders import Order

    Progress = Callable[[int, int], None]

FIRST = 1792
"""Of all common handlers: 64-bit kernels need them until they have a shell."""
BATCH = 32
"""Handlers of one order, so that all processes end at about the same time."""
FINE_BATCH = 8
"""And where they are made fine at once, which takes five times as long each."""
MOST_PROCESSES = 4
CHECK = 0.1
"""Seconds after which a process is missed that has ended."""


class Work(NamedTuple):
    """What one process does at a time."""

    order: Order
    take: Callable[[Any], object]
    """Gets what comes of it."""
    is_waited_for: bool


def missing(present: Collection[str]) -> list[Shape]:
    """The common shapes whose handlers are not there, by their symbols; first what is needed
    first."""
    shapes = shapes_of(common_instructions(), decoder)
    return [shape for shape in shapes if shape.symbol not in present]


def needed_first(bits: int) -> list[Shape]:
    """The common shapes that kernels of so many bits need until they have a shell."""
    lines = common_instructions()
    first = shapes_of(lines, decoder)[:FIRST]
    if bits == 64:
        return first
    narrow = shapes_of((line for line in lines if line.mode.code != 64), decoder)
    return list(dict.fromkeys([*narrow, *filter(_is_narrow, first)]))


def _is_narrow(shape: Shape) -> bool:
    """True if 32-bit code may have it."""
    return shape.size != 64 and not shape.address.startswith("64")


def executed_most() -> list[Shape]:
    """The common shapes in whose handlers a kernel spends nearly all of its first seconds."""
    lines = (line._replace(variants=line.often) for line in common_instructions() if line.often)
    return shapes_of(lines, decoder)


def works(native: NativeCode, present: Collection[str], bits: int) -> list[Work]:
    """What a first run with a kernel of so many bits needs that has some handlers already.

    What is executed most is made fine at once: the whole run goes by in a hundred handlers.
    """
    first = [shape for shape in needed_first(bits) if shape.symbol not in present]
    most = set(executed_most())
    fine = [shape for shape in first if shape in most]
    rough = [shape for shape in first if shape not in most]
    waited_for = set(first)
    others = [shape for shape in missing(present) if shape not in waited_for]
    learned, runtime = [], []
    if native.lacks_instructions(bits):
        order = InstructionsOrder(kernel_instructions(bits), native.directory, native.digest)
        take = partial(native.take_instructions, bits)
        learned = [Work(order, take, is_waited_for=True)]
    if native.lacks_runtime():
        runtime = [Work(RuntimeOrder(), native.take_runtime, is_waited_for=False)]
    return [
        *learned,
        *_batches(native, fine, Level.FINE, are_waited_for=True),
        *_batches(native, rough, are_waited_for=True),
        *runtime,
        *_batches(native, others, are_waited_for=False),
    ]


def _batches(
    native: NativeCode, shapes: list[Shape], level: Level = Level.ROUGH, *, are_waited_for: bool
) -> Iterator[Work]:
    size = BATCH if level is Level.ROUGH else FINE_BATCH
    for at in range(0, len(shapes), size):
        some = shapes[at : at + size]
        take = partial(native.take, [shape.symbol for shape in some], level=level)
        yield Work(HandlersOrder(some, level), take, are_waited_for)


class Ahead:
    """Has work done, in threads that wait for processes, until it is done or this is closed."""

    def __init__(
        self, works: list[Work], progress: Progress, finished: Callable[[], object]
    ) -> None:
        """``progress``: is told how many of the works that are waited for are done, and how many
        they are; ``finished``: called when all are.  Both, and what takes results, are called from
        any thread, one at a time.
        """
        self._progress, self._finished = progress, finished
        self._waiting, self._left, self._done = deque(works), len(works), 0
        self._first = sum(work.is_waited_for for work in works)
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
            result = process.carry_out(work.order)
            if result is None:  # it was ended
                break
            self._have(work, result)
        process.close()

    def _have(self, work: Work, result: object) -> None:
        with self._change:
            work.take(result)
            self._left -= 1
            if work.is_waited_for:
                self._done += 1
                self._progress(self._done, self._first)
            if not self._left:
                self._finished()
            self._change.notify_all()

    def wait(self) -> None:
        """Until what is waited for is done, or no more is coming; the rest gives way."""
        with self._change:
            while self._done < self._first and any(each.is_alive() for each in self._threads):
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
