"""Suspended to RAM (ACPI's S3): processors stand still while time and the RTC go on.

::

    SLP_EN --> the supervisor lets processors sleep --> an event --> RESET#, all but RAM
                                                                         |
               the system goes on <-- FACS's waking vector <-- firmware -+

What wakes the machine may come from any thread and before it sleeps; the bus lock is held then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.acpi_pm import STS_PWRBTN
from vdisk.vm.monitor.control import MachineEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm._machine.board import Board
    from vdisk.vm._machine.processor import Processor


class Sleep:
    """``emit``: tells of events."""

    def __init__(
        self, board: Board, processors: Sequence[Processor], emit: Callable[[MachineEvent], None]
    ) -> None:
        self._board, self._processors, self._emit = board, processors, emit
        board.power.wake_up = self._wake

    @property
    def asleep(self) -> bool:
        """True until something wakes the machine."""
        return self._processors[0].asleep

    def begin(self) -> None:
        """Fall asleep, if the guest wants to; the processors are between two calls."""
        with self._board.bus.lock:
            if self.asleep or not self._board.power.sleeping:
                return
            for processor in self._processors:
                processor.asleep = True
            self._emit(MachineEvent("SUSPEND"))
            if self._board.power.wakers:
                self._wake()

    def _wake(self) -> None:
        if not self.asleep:
            return
        self._board.wake()
        for processor in self._processors:
            processor.reset()
            processor.wake.notify()
        self._emit(MachineEvent("WAKEUP"))

    def wake_by_hand(self) -> bool:
        """As the power button does; False if the machine does not sleep."""
        return self._board.power.wake(STS_PWRBTN)

    def check(self) -> None:
        """Raise :class:`InvalidRequestError` where there is nobody to be woken."""
        if not self._board.power.sleeping:
            raise InvalidRequestError("Unable to wake up: guest is not in suspended state")
