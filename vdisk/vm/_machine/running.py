"""How the processors get to run: each in a thread of its own, or all in turn in virtual time.

Both start, pause and go on at the machine's command; while they are paused no processor is between
two calls of the bus, and no timer fires.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from vdisk.vm.accel.base import VcpuExit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm._machine.processor import Processor
    from vdisk.vm.bus import Bus
    from vdisk.vm.clock import RealClock

    Report = Callable[[Processor, VcpuExit], None]


class Running(Protocol):
    """What lets the processors run."""

    def resume(self) -> None:
        """Let time pass and processors execute."""

    def pause(self) -> None:
        """Return when everything stands still.  Not for threads that hold the bus lock."""

    def freeze(self) -> None:
        """Let no processor go on, without waiting; the bus lock is held.  :meth:`pause` follows."""

    def thaw(self) -> None:
        """What :meth:`freeze` was for has been done."""

    def stimulate(self, kind: str, *arguments: Any) -> None:
        """Let something from outside (a key, a serial byte) happen; by the name of its handler."""

    def note(self, kind: str) -> None:
        """Remember, for a later repetition, what was done to a machine that stands still."""

    def close(self) -> None:
        """Pause, and end the threads."""


class Threads:
    """A thread for each processor; guest time is the host's.

    ``report(processor, exit)``: called, in the processor's thread, for SHUTDOWN and ERROR; the
    processor then stands still until the machine is paused and goes on.
    """

    def __init__(
        self,
        processors: Sequence[Processor],
        bus: Bus,
        clock: RealClock,
        report: Report,
        handlers: dict[str, Callable[..., object]],
    ) -> None:
        self._processors = processors
        self._lock = bus.lock
        self._clock = clock
        self._report = report
        self._handlers = handlers
        self._still = threading.Condition(bus.lock)
        self._running = self._closing = False
        self._waiting = set(processors)
        self._stuck: set[Processor] = set()
        self._threads: list[threading.Thread] = []

    def resume(self) -> None:
        with self._lock:
            if self._running:
                return
            self._running = True
            self._stuck.clear()
            if not self._threads:
                self._start_threads()
            for processor in self._processors:
                processor.wake.notify()
        self._clock.start()

    def _start_threads(self) -> None:
        for processor in self._processors:
            name = f"vdisk-cpu{processor.index}"
            thread = threading.Thread(target=self._loop, args=(processor,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stimulate(self, kind: str, *arguments: Any) -> None:
        self._handlers[kind](*arguments)

    def thaw(self) -> None:
        """Nobody has waited for this."""

    def note(self, kind: str) -> None:
        """Runs on the host's clock are not repeated."""

    def freeze(self) -> None:
        self._running = False
        for processor in self._processors:
            processor.vcpu.request_exit()

    def pause(self) -> None:
        with self._lock:
            self.freeze()
            self._still.wait_for(lambda: len(self._waiting) == len(self._processors))
        self._clock.stop()

    def close(self) -> None:
        self.pause()
        with self._lock:
            self._closing = True
            for processor in self._processors:
                processor.wake.notify()
        for thread in self._threads:
            thread.join()

    def _loop(self, processor: Processor) -> None:
        while (result := self._work(processor)) is not None:
            if result in {VcpuExit.SHUTDOWN, VcpuExit.ERROR}:
                with self._lock:
                    self._stuck.add(processor)
                    self._report(processor, result)

    def _work(self, processor: Processor) -> VcpuExit | None:
        """Wait for work and do it; None when all is over."""
        try:
            return processor.execute() if self._await_work(processor) else None
        except Exception as error:  # a mistake of ours must not leave a machine that hangs
            return processor.failed(error)

    def _await_work(self, processor: Processor) -> bool:
        """Wait until the processor may run and has to; False when all is over."""
        with self._lock:
            while not (self._may_run(processor) and processor.prepare()):
                if self._closing:
                    return False
                self._waiting.add(processor)
                self._still.notify_all()
                processor.wake.wait(processor.patience() if self._running else None)
            self._waiting.discard(processor)
        return True

    def _may_run(self, processor: Processor) -> bool:
        return self._running and processor not in self._stuck and processor.ready()
