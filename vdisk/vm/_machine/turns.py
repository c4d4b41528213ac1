"""Deterministic running: processors in turn, and a clock that counts their instructions.

::

    time ---->   | CPU0: SLICE instructions | CPU1 | CPU0 | idle: time jumps to the next timer | …

One thread does everything.  An instruction takes :data:`NS_PER_INSTRUCTION`; a turn ends early at
the next timer, so the same run happens each time, bit for bit.  What comes from outside (a key, a
byte on a serial line) is a *stimulus*: it takes effect between two turns, and is written into a
journal, from which a later run repeats it at the same time.

An accelerator that tells ``Vcpu.instructions`` while it runs gives devices a finer time.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import FormatError, InvalidRequestError, VdiskError, from_os_error
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.clock import Timer, VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm._machine.processor import Processor
    from vdisk.vm._machine.running import Report
    from vdisk.vm.accel.base import Vcpu
    from vdisk.vm.bus import Bus

    Handler = Callable[..., object]

NS_PER_INSTRUCTION = 10
"""A processor of 100 MIPS: firmware that waits by looking at a clock does not look too often."""
SLICE = 10_000
"""Instructions of a turn: 100 µs, the time that processors may be apart."""
LARGEST_JOURNAL = 64 << 20


class TurnClock(VirtualClock):
    """Virtual time that goes on with the instructions of the processor whose turn it is."""

    def __init__(self) -> None:
        super().__init__()
        self._vcpu: Vcpu | None = None
        self._counted = 0
        self._end = 0

    def now(self) -> int:
        if self._vcpu is None:
            return self._now
        return self._now + (self._vcpu.instructions - self._counted) * NS_PER_INSTRUCTION

    def begin_turn(self, vcpu: Vcpu) -> int:
        """A processor runs from now on; gives how many instructions it may execute."""
        deadline = self.next_deadline()
        allowed = SLICE
        if deadline is not None:
            allowed = max(min(SLICE, (deadline - self._now) // NS_PER_INSTRUCTION), 1)
        self._vcpu, self._counted = vcpu, vcpu.instructions
        self._end = self._now + allowed * NS_PER_INSTRUCTION
        return allowed

    def end_turn(self) -> None:
        """The processor's turn is over: fire what is due."""
        now = self.now()
        self._vcpu = None
        self.advance(now)

    def schedule(self, timer: Timer) -> None:
        super().schedule(timer)
        if self._vcpu is not None and (timer.deadline or 0) < self._end:
            self._vcpu.request_exit()

    def skip_to_deadline(self) -> bool:
        """Nobody runs: jump to the next timer; False if there is none."""
        deadline = self.next_deadline()
        if deadline is None:
            return False
        self.advance(deadline)
        return True


class Stimulus(NamedTuple):
    """Something from outside: ``time`` in ns, the name of its handler, JSON arguments."""

    time: int
    kind: str
    arguments: list[Any]


class Journal:
    """The stimuli of a run: written while it runs, or repeated from an earlier run."""

    def __init__(self, recorded: Sequence[Stimulus] | None = None) -> None:
        self.stimuli: list[Stimulus] = []
        self._left = deque(recorded or ())
        self.replaying = recorded is not None

    def due(self, now: int) -> list[Stimulus]:
        """What was recorded for a time that has come."""
        found = []
        while self._left and self._left[0].time <= now:
            found.append(self._left.popleft())
        return found

    def next_time(self) -> int | None:
        """When the next recorded stimulus is due."""
        return self._left[0].time if self._left else None

    def save(self, path: str) -> None:
        """Write it as a line of JSON for each stimulus."""
        try:
            with open(path, "w", encoding="ascii") as file:
                file.writelines(json.dumps(stimulus) + "\n" for stimulus in self.stimuli)
        except OSError as error:
            raise from_os_error(error, path=path, operation="write") from error


def load_journal(path: str) -> Journal:
    """A run to repeat; raises :class:`FormatError` for a file that is no journal."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_JOURNAL + 1)
    except OSError as error:
        raise from_os_error(error, path=path, operation="open") from error
    if len(data) > LARGEST_JOURNAL:
        raise FormatError("too large for a journal", path=path)
    try:
        return Journal([_stimulus(json.loads(line)) for line in data.splitlines()])
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"not a journal of a machine: {error}", path=path) from error


def _stimulus(value: Any) -> Stimulus:
    time, kind, arguments = value
    if type(time) is not int or not isinstance(kind, str) or not isinstance(arguments, list):
        raise ValueError(f"{value!r} is no stimulus")
    return Stimulus(time, kind, arguments)


@dataclass
class _Waiting:
    """A stimulus that somebody waits for."""

    kind: str
    arguments: list[Any]
    done: bool = False
    error: VdiskError | None = None


class Turns:
    """All processors in one thread; see the module.

    ``handlers``: of stimuli, by kind.  ``fail(why)``: told when a journal cannot be repeated.
    """

    def __init__(
        self,
        processors: Sequence[Processor],
        bus: Bus,
        clock: TurnClock,
        report: Report,
        handlers: dict[str, Handler],
        journal: Journal,
        fail: Callable[[str], None],
    ) -> None:
        self._processors = processors
        self._lock = bus.lock
        self._clock = clock
        self._report = report
        self._handlers = handlers
        self.journal = journal
        self._fail = fail
        self._waiting: deque[_Waiting] = deque()
        self._change = threading.Condition(bus.lock)
        self._running = self._closing = False
        self._still = True
        self._frozen = False  # an order is about to be carried out, before anything else happens
        self._stuck: set[Processor] = set()
        self._thread: threading.Thread | None = None

    def stimulate(self, kind: str, *arguments: Any) -> None:
        """Something from outside, between two turns; raises what its handler raises.

        Raises :class:`InvalidRequestError` while a run is repeated.
        """
        if self.journal.replaying:
            raise InvalidRequestError("a run that is repeated takes no other input")
        waiting = _Waiting(kind, list(arguments))
        with self._change:
            self._waiting.append(waiting)
            if self._still and not self._frozen:
                self._take_stimuli()
            self._change.notify_all()
            self._change.wait_for(lambda: waiting.done)
        if waiting.error is not None:
            raise waiting.error

    def note(self, kind: str) -> None:
        """Write into the journal what was just done to a machine that stands still."""
        if not self.journal.replaying:
            self.journal.stimuli.append(Stimulus(self._clock.now(), kind, []))

    def resume(self) -> None:
        with self._change:
            self._running = True
            self._stuck.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="vdisk-turns", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def freeze(self) -> None:
        self._running, self._frozen = False, True
        for processor in self._processors:
            processor.vcpu.request_exit()

    def thaw(self) -> None:
        with self._change:
            self._frozen = False
            if self._still:
                self._take_stimuli()

    def pause(self) -> None:
        with self._change:
            self._running = False
            self._change.notify_all()
            self._change.wait_for(lambda: self._still)

    def close(self) -> None:
        self.pause()
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        while self._await_permission():
            if not self._round():
                self._idle()

    def _await_permission(self) -> bool:
        with self._change:
            while not self._running:
                if self._closing:
                    return False
                self._still = True
                self._change.notify_all()
                self._change.wait()
            self._still = False
            self._take_stimuli()
        return True

    def _take_stimuli(self) -> None:
        now = self._clock.now()
        for stimulus in self.journal.due(now):
            try:
                self._handle(stimulus)
            except (VdiskError, TypeError, ValueError, LookupError) as error:
                self._running = False
                self._fail(f"the journal's {stimulus.kind!r} at {stimulus.time} ns: {error}")
        while self._waiting:
            waiting = self._waiting.popleft()
            stimulus = Stimulus(now, waiting.kind, waiting.arguments)
            try:
                self._handle(stimulus)
                self.journal.stimuli.append(stimulus)
            except VdiskError as error:
                waiting.error = error
            waiting.done = True
            self._change.notify_all()

    def _handle(self, stimulus: Stimulus) -> None:
        handler = self._handlers.get(stimulus.kind)
        if handler is None:
            raise FormatError("there is no such stimulus")
        handler(*stimulus.arguments)

    def _round(self) -> bool:
        """A turn for each processor that has something to do; False if none has."""
        ran = False
        for processor in self._processors:
            with self._lock:
                if processor in self._stuck or not (processor.ready() and processor.prepare()):
                    continue
                if not self._running:
                    return True
                budget = self._clock.begin_turn(processor.vcpu)
            try:
                result = processor.execute(budget)
            except Exception as error:
                result = processor.failed(error)
            ran = True
            with self._lock:
                self._clock.end_turn()
                if result in {VcpuExit.SHUTDOWN, VcpuExit.ERROR}:
                    self._stuck.add(processor)
                    self._report(processor, result)
        return ran

    def _idle(self) -> None:
        """Nobody has anything to do before the next timer or stimulus."""
        with self._change:
            if self._waiting or not self._running:
                return
            recorded, deadline = self.journal.next_time(), self._clock.next_deadline()
            if recorded is not None and (deadline is None or recorded < deadline):
                self._clock.advance(recorded)
            elif self._clock.skip_to_deadline():
                for processor in self._processors:
                    processor.stir()
            else:
                self._change.wait()
