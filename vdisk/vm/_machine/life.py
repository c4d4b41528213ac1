"""The life of a machine: power, pausing, resets, and what its chips ask for.

::

    PRELAUNCH --start--> RUNNING <--pause, resume--> PAUSED
                            |
                            +-- the guest turns itself off, stop() --> SHUTDOWN

What a chip asks of the whole machine (a reset, say) is carried out by a thread of its own, because
no processor can wait for itself to stand still.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.vm._machine.board import Requests
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.monitor.control import MachineEvent, RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from vdisk.vm._machine.console import SerialConsole
    from vdisk.vm._machine.drives import Drives
    from vdisk.vm._machine.processor import Processor
    from vdisk.vm._machine.running import Running
    from vdisk.vm._machine.sleeping import Sleep
    from vdisk.vm.bus import Bus


SIGNAL_SECONDS = 0.5
"""Python handles a signal when its main thread runs on.  One that comes just before that thread
waits, or to another thread, does not wake it, and Ctrl-C would be lost: it looks now and then."""


class Life:
    """The base of :class:`~vdisk.vm.machine.Machine`, which makes the parts named here."""

    bus: Bus
    drives: Drives
    running: Running
    serial: list[SerialConsole]
    sleep: Sleep

    def __init__(self, *, reboot: bool, stay: bool) -> None:
        self.error = ""
        """Why the machine cannot go on."""
        self.exit_status: int | None = None
        """What the guest wrote to the debug exit port, if it did."""
        self._reboot, self._stay = reboot, stay
        self._state = RunState.PRELAUNCH
        self._control = threading.RLock()  # one command at a time
        self._ended = threading.Event()
        self._subscribers: list[Callable[[MachineEvent], None]] = []
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._supervisor: threading.Thread | None = None
        self._closers: list[Callable[[], None]] = []

    def _power_on(self) -> None:
        """RESET# to all; the bus lock is held, the processors stand still."""
        raise NotImplementedError

    @property
    def state(self) -> RunState:
        """What the machine is doing; one that sleeps (S3) is running but for that."""
        asleep = self._state is RunState.RUNNING and self.sleep.asleep
        return RunState.SUSPENDED if asleep else self._state

    def start(self) -> None:
        """Power on; does nothing to a machine that runs."""
        with self._control:
            if self._state is RunState.PRELAUNCH:
                self._supervisor = threading.Thread(
                    target=self._supervise, name="vdisk-machine", daemon=True
                )
                self._supervisor.start()
                self._go()

    def pause(self) -> None:
        """Return when processors and the guest's time stand still."""
        with self._control:
            if self._state is RunState.RUNNING:
                self._halt(RunState.PAUSED)

    def resume(self) -> None:
        """Go on; failed requests that were kept are tried again."""
        with self._control:
            if self._state is RunState.PRELAUNCH:
                self.start()
            elif self._state in {RunState.PAUSED, RunState.IO_ERROR}:
                self._go()
            elif self._state is not RunState.RUNNING:
                raise InvalidRequestError(f"the machine cannot go on: it is {self._state.value}")

    def reset(self) -> None:
        """The reset button."""
        self._reset(guest=False)

    def press_power_button(self) -> None:
        """The guest may shut itself down."""
        self.running.stimulate("power")
        self._emit(MachineEvent("POWERDOWN"))

    def wake_up(self) -> None:
        """End the guest's sleep (S3); raises :class:`InvalidRequestError` if it does not sleep."""
        with self.bus.lock:
            self.sleep.check()
        self.running.stimulate("wake")

    def stop(self) -> None:
        """Turn it off without asking the guest."""
        with self._control:
            if self._state is not RunState.SHUTDOWN:
                self._turn_off(guest=False, reason="host-qmp-quit")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the machine is off (or cannot go on); False after ``timeout`` seconds."""
        if timeout is not None:
            return self._ended.wait(timeout)
        while not self._ended.wait(SIGNAL_SECONDS):
            pass
        return True

    def is_over(self) -> bool:
        """True if the guest does nothing more unless somebody resets it."""
        return self._state in {RunState.SHUTDOWN, RunState.INTERNAL_ERROR}

    def close(self) -> None:
        """Turn it off and release everything; raises what closing the images raises."""
        with self._control:
            if self._state is not RunState.SHUTDOWN:
                self.stop()
            self._orders.put(None)
            self._close_parts()
        if self._supervisor is not None and self._supervisor is not threading.current_thread():
            self._supervisor.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _close_parts(self) -> None:
        running = getattr(self, "running", None)
        if running is not None:
            running.close()
        self._wake_readers()
        while self._closers:
            self._closers.pop()()

    def _go(self) -> None:
        resumed = self._state is not RunState.PRELAUNCH
        self._state = RunState.RUNNING
        self.drives.resume()
        self.running.resume()
        if resumed:
            self._emit(MachineEvent("RESUME"))

    def _halt(self, state: RunState) -> None:
        self.running.pause()
        self.drives.drain()
        self._state = state
        self._emit(MachineEvent("STOP"))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let processors stand still for a moment; nobody is told."""
        with self._control:
            running = self._state is RunState.RUNNING
            if running:
                self.running.pause()
            try:
                yield
            finally:
                if running:
                    self.running.resume()

    @contextlib.contextmanager
    def _standing_still(self, state: RunState) -> Iterator[None]:
        """While the machine is saved or loaded; an :attr:`error` met on the way stays."""
        with self._control:
            before, self.error = self._state, ""
            if before is RunState.RUNNING:
                self.running.pause()
                self.drives.drain()
            self._state = state
            try:
                with self.bus.lock:
                    yield
            finally:
                self._state = RunState.INTERNAL_ERROR if self.error else before
                if self._state is RunState.RUNNING:
                    self.running.resume()

    def _reset(self, *, guest: bool) -> None:
        with self._control:
            was_running = self._state is RunState.RUNNING
            self._ended.clear()
            self.running.pause()
            with self.bus.lock:
                self._power_on()
            reason = "guest-reset" if guest else "host-qmp-system-reset"
            if not guest:
                self.running.note("reset")
            self._emit(MachineEvent("RESET", {"guest": guest, "reason": reason}))
            if was_running:
                self.running.resume()
            elif self._state in {RunState.INTERNAL_ERROR, RunState.SHUTDOWN}:
                self._state = RunState.PAUSED

    def _reset_between_turns(self) -> None:
        """A reset that a journal repeats: nothing runs, and the bus lock is held."""
        self._power_on()
        self._emit(MachineEvent("RESET", {"guest": False, "reason": "host-qmp-system-reset"}))

    def _turn_off(self, *, guest: bool, reason: str) -> None:
        self.running.pause()
        self.drives.drain()
        self._state = RunState.SHUTDOWN
        self._emit(MachineEvent("SHUTDOWN", {"guest": guest, "reason": reason}))
        if not (guest and self._stay):
            self._ended.set()
        self._wake_readers()

    def _wake_readers(self) -> None:
        for console in self.serial:
            console.wake()

    # -- what chips and processors ask for -------------------------------------------------------

    def _supervise(self) -> None:
        """Carry out orders that no processor's thread could."""
        while (order := self._orders.get()) is not None:
            with self._control:
                if not self._ended.is_set():
                    order()
                self.running.thaw()

    def _order(self, order: Callable[[], None]) -> None:
        """Let processors stop at once, and the order be carried out."""
        self.running.freeze()
        self._orders.put(order)

    def _request_reset(self) -> None:
        if self._reboot:
            self._order(lambda: self._reset(guest=True))
        else:
            self._order(lambda: self._turn_off(guest=True, reason="guest-reset"))

    def _request_power_off(self) -> None:
        self._order(lambda: self._turn_off(guest=True, reason="guest-shutdown"))

    def _requests(self) -> Requests:
        return Requests(
            self._request_reset,
            self._request_power_off,
            self._request_suspend,
            self._request_debug_exit,
        )

    def _request_suspend(self) -> None:
        self._order(self._suspend)

    def _suspend(self) -> None:
        self.running.pause()
        self.sleep.begin()
        if self._state is RunState.RUNNING:  # nobody has paused it meanwhile
            self.running.resume()

    def _request_debug_exit(self, status: int) -> None:
        self.exit_status = status
        self._order(lambda: self._turn_off(guest=True, reason="guest-shutdown"))

    def _request_io_stop(self) -> None:
        self._order(lambda: self._halt(RunState.IO_ERROR))

    def _stuck(self, processor: Processor, why: VcpuExit) -> None:
        """A processor cannot go on; called in its thread with the bus lock held."""
        if why is VcpuExit.SHUTDOWN:
            self._request_reset()
            return
        self._failed(f"processor {processor.index}: {processor.vcpu.error}")

    def _failed(self, why: str) -> None:
        self.error = why
        self._order(self._give_up)

    def _give_up(self) -> None:
        self._halt(RunState.INTERNAL_ERROR)
        self._ended.set()
        self._wake_readers()

    # -- events ----------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for every event, in any thread; gives what ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def _emit(self, event: MachineEvent) -> None:
        for callback in list(self._subscribers):
            callback(event)
