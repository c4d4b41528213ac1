"""One processor of the machine: a vCPU, and the states in which it does not run.

::

               RESET#, bootstrap               HLT, MWAIT
    +---------+                     +---------+ ------> +--------+
    | wait    | ------------------> | running |         | halted |
    | for SIPI|   start-up IPI      +---------+ <------ +--------+
    +---------+ <----- INIT ------ (all states)  interrupt, NMI; store to MWAIT's line

(SDM volume 3, section 9.4.)  What the local APIC reports (:class:`ApicCore`) is noted, with the bus
lock held, and carried out by whoever runs the vCPU, between two calls of :meth:`Vcpu.run`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vdisk.vm.accel.base import VcpuExit

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.accel.base import LocalApic, Vcpu
    from vdisk.vm.bus import Bus
    from vdisk.vm.devices.base import State
    from vdisk.vm.devices.lapic import Lapic
    from vdisk.vm.irq import InterruptSource

EFER = 0xC000_0080
FIRST_LOOK, LONGEST_LOOK = 25e-6, 5e-3
"""At the line of MWAIT, in seconds, the time between two looks doubling: a wait of microseconds is
over soon, and one without end takes half a percent of a host's core."""
MOST_LOOKS = 200
"""A second, about; then MWAIT ends: a store of what was there before is one, too."""


class Processor:
    """Processor ``index``; 0 is the bootstrap processor.

    ``lapic``: None in a machine without local APICs; then ``interrupts`` is the 8259 pair, and
    only processor 0 gets interrupts.
    """

    def __init__(self, vcpu: Vcpu, bus: Bus) -> None:
        self.index = vcpu.index
        self.vcpu = vcpu
        self.lapic: Lapic | None = None
        self.wake = threading.Condition(bus.lock)
        self.halted = False
        self.waiting_for_startup = False
        self.asleep = False
        """Suspended with the whole machine; only RESET# ends it."""
        self._interruptible = False  # while halted: mostly RFLAGS.IF
        self._watching = False  # halted by MWAIT
        self._looks = 0  # at its line, so far
        self._init = False
        self._startup: int | None = None
        self._deferred: Callable[[], None] | None = None

    def connect(self, interrupts: InterruptSource, apic: LocalApic | None) -> None:
        """Say where interrupts come from, before the first run."""
        self.vcpu.interrupts = interrupts
        self.vcpu.apic = apic

    def reset(self) -> None:
        """RESET#: the bootstrap processor runs, the others wait for a start-up IPI."""
        self.halted = self._init = self.asleep = False
        self._startup = self._deferred = None
        self.waiting_for_startup = self.index != 0
        self.vcpu.reset()

    def defer(self, change: Callable[[], None]) -> None:
        """Carry out a change of registers before the next instruction but a few."""
        self._deferred = change
        self.vcpu.request_exit()

    # -- what the local APIC reports -------------------------------------------------------------

    def interrupt(self) -> None:
        if self.halted or self.waiting_for_startup:
            self.wake.notify()
        else:
            self.vcpu.kick()

    def nmi(self) -> None:
        if not self.waiting_for_startup:
            self.vcpu.inject_nmi()
            self.wake.notify()

    def init(self) -> None:
        self._init = True
        self._startup = None
        self.vcpu.request_exit()
        self.wake.notify()

    def startup(self, vector: int) -> None:
        if self.waiting_for_startup or self._init:
            self._startup = vector
            self.wake.notify()

    # -- running -----------------------------------------------------------------------------------

    def ready(self) -> bool:
        """True if there is something to execute; the bus lock is held."""
        if self.asleep:
            return False
        if self._init or self._deferred is not None:
            return True
        if self.waiting_for_startup:
            return self._startup is not None
        if not self.halted or self.vcpu.nmi_waits:
            return True
        if self._watching and self.vcpu.line_changed():
            return True
        interrupts = self.vcpu.interrupts
        return self._interruptible and interrupts is not None and interrupts.pending()

    def patience(self) -> float | None:
        """How many seconds to wait, with nothing to execute, before looking again; None: until
        :attr:`wake` is notified.  The bus lock is held."""
        if not (self.halted and self._watching) or self.waiting_for_startup or self.asleep:
            return None
        self._looks += 1
        if self._looks > MOST_LOOKS:
            self.stir()
            return 0.0
        return min(FIRST_LOOK * (1 << self._looks), LONGEST_LOOK)

    def stir(self) -> None:
        """Something has happened: let MWAIT end, which may end at any time."""
        if self._watching:
            self.halted = False

    def prepare(self) -> bool:
        """Carry out INIT and start-up; False if it waits then.  The bus lock is held."""
        if self._deferred is not None:
            change, self._deferred = self._deferred, None
            change()
        if self._init:
            self._init = False
            self._carry_out_init()
        if self.waiting_for_startup:
            if self._startup is None:
                return False
            self._begin_at(self._startup)
        self.halted = False
        return True

    def _carry_out_init(self) -> None:
        """What INIT leaves as it is: floating point and most MSRs (SDM 3, table 9-1)."""
        vcpu = self.vcpu
        fpu, msrs = vcpu.get_fpu(), vcpu.get_msrs()
        if self.lapic is not None:
            self.lapic.init()
        vcpu.reset()
        vcpu.set_fpu(fpu)
        vcpu.set_msrs({index: value for index, value in msrs.items() if index != EFER})
        self.halted = False
        self.waiting_for_startup = self.index != 0

    def _begin_at(self, vector: int) -> None:
        """Real mode at vector * 4 KiB (SDM 3, 9.4.4.2)."""
        system = self.vcpu.get_system_registers()
        system.cs.selector, system.cs.base = vector << 8, vector << 12
        self.vcpu.set_system_registers(system)
        registers = self.vcpu.get_registers()
        registers.rip = 0
        self.vcpu.set_registers(registers)
        self.waiting_for_startup, self._startup = False, None

    def execute(self, budget: int | None = None) -> VcpuExit:
        """Run the vCPU; the bus lock is not held."""
        result = self.vcpu.run(budget)
        if result in {VcpuExit.HLT, VcpuExit.MWAIT}:
            # Not yet visible to interrupt(): what arrives before is seen by ready() afterwards.
            self._watching, self._looks = result is VcpuExit.MWAIT, 0
            masked_too = self._watching and self.vcpu.masked_interrupts_wake
            self._interruptible = masked_too or self.vcpu.interruptible
            self.halted = True
        return result

    def failed(self, error: Exception) -> VcpuExit:
        """An accelerator or a chip raised what it never should: the machine stops and says so."""
        self.vcpu.error = f"{type(error).__name__}: {error}"
        return VcpuExit.ERROR

    # -- saving ------------------------------------------------------------------------------------

    def save_state(self) -> State:
        """The states above; the processor's registers are saved beside it."""
        return {
            "halted": self.halted,
            "interruptible": self._interruptible,
            "watching": self._watching,
            "waiting_for_startup": self.waiting_for_startup,
            "asleep": self.asleep,
            "init": self._init,
            "startup": -1 if self._startup is None else self._startup,
        }

    def load_state(self, state: State) -> None:
        """Become what was saved."""
        self.halted = bool(state["halted"])
        self._interruptible = bool(state["interruptible"])
        self._watching, self._looks = bool(state["watching"]), 0
        self.waiting_for_startup = bool(state["waiting_for_startup"])
        self.asleep = bool(state["asleep"])
        self._init = bool(state["init"])
        vector = int(state["startup"])
        self._startup = vector if 0 <= vector <= 0xFF else None
