"""What happens to a processor between two instructions: interrupts, NMIs, exceptions.

SDM volume 3, chapter 6.  :class:`Events` decides what is taken when and what becomes a double or a
triple fault; how a vector is delivered, :mod:`~vdisk.vm.cpu.interrupts` and native code know.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError
from vdisk.vm.accel.base import Vcpu
from vdisk.vm.cpu import debug, faults, flags
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.state import FIELDS, TLB_SUPERVISOR

if TYPE_CHECKING:
    from vdisk.vm.accel.base import VcpuExit
    from vdisk.vm.bus import Bus
    from vdisk.vm.cpu.state import CpuState

CR0_PE = 1
KICK = (1 << 64) - 1
NO_VECTOR = 256
_SIGNALS = FIELDS["kick"].offset
_SAVED = (slice(0, _SIGNALS), slice(_SIGNALS + 16, TLB_SUPERVISOR))
"""What a fault on the way restores: everything but the TLB, and but ``kick`` and ``irq_pending``,
which others set at any time."""


class TripleFaultError(Exception):
    """The guest's exceptions cannot be delivered any more."""


class Events(Vcpu):
    """The part of :class:`~vdisk.vm.cpu.core.Core` that knows of them."""

    state: CpuState
    bus: Bus
    thread: int | None = None  # the one that is in run()
    next_rip = 0
    halted: VcpuExit | None = None  # run() comes back with this: HLT, MWAIT
    inhibit = False  # STI, MOV SS: no interrupt before the next instruction is done
    holds_debug = False  # MOV SS, POP SS: no debug exception behind them
    alone = False  # the next instruction is executed by itself
    traced = False  # the present instruction began with TF set
    stepping = careful = False  # as Mode.step and Mode.careful
    _exit_requested = False
    _nmi = False

    @abstractmethod
    def update_mode(self) -> None:
        """Work out what code now means, after segments, control registers or TF changed."""

    @abstractmethod
    def _through_gate(
        self, vector: int, *, error: int | None, software: bool, external: bool
    ) -> None:
        """Enter a vector's handler as the interrupt table says; raises :class:`GuestFault`."""

    def kick(self) -> None:
        """From its own thread, with IF clear, it need not leave: setting IF looks for it."""
        state = self.state
        state.irq_pending = 1
        if state.eflags & flags.IF or self.thread != threading.get_ident():
            state.kick = KICK

    @property
    def interruptible(self) -> bool:
        return bool(self.state.eflags & flags.IF)

    def request_exit(self) -> None:
        self._exit_requested = True
        self.state.kick = KICK

    def inject_nmi(self) -> None:
        self._nmi = True
        self.state.kick = KICK

    @property
    def nmi_waits(self) -> bool:
        return self._nmi and not self.state.nmi_blocked

    def _take_interrupt(self) -> bool:
        """Deliver an NMI or an external interrupt, if one may be taken now."""
        state = self.state
        if self.nmi_waits:
            self._nmi = False
            state.nmi_blocked = 1
            self._deliver(faults.NMI, external=True)
            return True
        vector = self._acknowledge()
        if vector == NO_VECTOR:
            return False
        if not self.stepping:
            state.eflags &= ~flags.RF  # long since executed: only single steps clear it in time
        self._deliver(vector, external=True)
        return True

    def _acknowledge(self) -> int:
        """Take an external interrupt if there is one and IF lets it in: its vector."""
        state, source = self.state, self.interrupts
        if source is None:
            return NO_VECTOR
        with self.bus.lock:
            pending = source.pending()
            if not pending or not state.eflags & flags.IF:
                state.irq_pending = int(pending)
                return NO_VECTOR
            vector = source.acknowledge()
            state.irq_pending = int(source.pending())
        return vector

    def interrupt_waits(self) -> bool:
        """True if there is an interrupt or NMI, to be taken if the guest lets it."""
        source = self.interrupts
        with self.bus.lock:
            return self.nmi_waits or (source is not None and source.pending())

    def raise_fault(self, fault: GuestFault) -> None:
        """Deliver an exception of the instruction at ``rip``."""
        if fault.vector == faults.PF:
            self.state.cr2 = fault.address
        if fault.vector == faults.DB:
            self.state.dr7 &= ~debug.GD
        elif fault.vector not in (faults.BP, faults.OF):
            self.state.eflags |= flags.RF
        error = fault.error if fault.vector in faults.WITH_ERROR_CODE else None
        real = not self.state.cr0 & CR0_PE
        self._deliver(fault.vector, error=None if real else error)

    def _deliver_fast(self, vector: int, error: int | None) -> bool:
        """Deliver without further ado, if the engine has a way and the case is an usual one."""
        return False

    def _deliver(self, vector: int, *, error: int | None = None, external: bool = False) -> None:
        """Deliver; a fault on the way becomes #DF, and another one ends the guest."""
        self.halted = None
        if not self.careful and self._deliver_fast(vector, error):
            return
        try:
            self._through_table(vector, error=error, external=external)
        except GuestFault as second:
            self._second_fault(vector, second, external=external)
        else:
            debug.trap_task(self)

    def _second_fault(self, first: int, second: GuestFault, *, external: bool) -> None:
        if second.vector == faults.PF:
            self.state.cr2 = second.address
        if first == faults.DF:
            raise TripleFaultError
        if not external and faults.is_double(first, second.vector):
            second = GuestFault(faults.DF)
        self._deliver(
            second.vector,
            error=second.error if second.vector in faults.WITH_ERROR_CODE else None,
        )

    def _through_table(
        self, vector: int, *, error: int | None = None, software: bool = False, external: bool
    ) -> None:
        """Deliver a vector; the state is as before if a fault is raised."""
        state = self.state
        self.next_rip = state.rip
        saved = [bytes(state.view[part]) for part in _SAVED]
        hits = state.debug_hits
        try:
            self._through_gate(vector, error=error, software=software, external=external)
        except GuestFault:
            for part, before in zip(_SAVED, saved, strict=True):
                state.view[part] = before
            self.update_mode()
            raise
        state.rip = self.next_rip
        state.debug_hits = hits | state.debug_hits & debug.BT  # delivery meets no breakpoint
        self.update_mode()

    def software_interrupt(self, vector: int, *, checked: bool = True) -> None:
        """INT n, INT3, INTO (gates ``checked`` against CPL) and INT1: behind the instruction."""
        state = self.state
        before, state.rip = state.rip, self.next_rip
        try:
            self._through_table(vector, software=checked, external=False)
        except GuestFault:
            state.rip = before
            raise
        self.traced = False

    # -- a saved machine -----------------------------------------------------------------------

    def get_extra(self) -> dict[str, int | bytes]:
        """Events under way: what stands between two instructions and in no register."""
        return {
            "interrupt_shadow": int(self.inhibit),
            "debug_shadow": int(self.holds_debug),
            "nmi_pending": int(self._nmi),
            "nmi_blocked": self.state.nmi_blocked,
        }

    def set_extra(self, extra: dict[str, int | bytes]) -> None:
        found = [extra.get(name) for name in Events.get_extra(self)]
        if any(value not in (0, 1) for value in found):
            raise CorruptImageError(f"the saved events of processor {self.index}: {found}")
        self.inhibit, self.holds_debug, self._nmi, blocked = map(bool, found)
        self.state.nmi_blocked = int(blocked)
