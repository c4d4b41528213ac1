"""A guest processor that waits in a loop with PAUSE gives the host's core to others.

Generated code comes back after a thousand PAUSEs (:func:`vdisk.vm.cpu.semantics.machine.pause`).
If that was a loop and nothing else, the thread first yields to whoever wants to run, and sleeps
when that goes on, for longer and longer: a lock that is held for microseconds is got without
delay, and waiting for milliseconds costs next to nothing.
"""

from __future__ import annotations

import os
import time

from vdisk.vm.cpu.semantics.machine import PAUSES

TIGHT = 64
"""Instructions for each PAUSE: with more between them, the guest does something else."""
YIELDS = 8
SHORTEST, LONGEST = 20e-6, 250e-6
"""Of a sleep, in seconds: an interrupt has to wait for the rest of it."""
DOUBLINGS = 4


class Spinning:
    """What one processor's waiting has come to."""

    def __init__(self) -> None:
        self._budget = 0
        self._times = 0

    def give_way(self, budget: int) -> None:
        """Another thousand PAUSEs; ``budget`` counts the instructions down."""
        executed, self._budget = self._budget - budget, budget
        if not 0 < executed <= TIGHT * PAUSES:
            self._times = 0
            return
        self._times += 1
        if self._times <= YIELDS:
            _yield()
        else:
            longer = min(self._times - YIELDS, DOUBLINGS)
            time.sleep(min(SHORTEST * 2**longer, LONGEST))


def _yield() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)
