"""A software vCPU: runs generated code, and does in Python what that code leaves to it.

:meth:`Core.run` enters generated code, looks at why it came back, and goes on: it delivers
exceptions and interrupts, carries out system instructions, and asks the engine for translations.
How generated code is entered is the engine's matter (native or interpreted): a subclass says.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING

from iced_x86 import OpKind

from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.cpu import (
    debug,
    faults,
    flags,
    fpu_state,
    instruction,
    interrupts,
    modes,
    monitor,
    mtrr,
    registers,
    system,
    system_control,
    system_segments,
)
from vdisk.vm.cpu.decode import FLAT_MODE
from vdisk.vm.cpu.events import KICK, Events, TripleFaultError
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.semantics import sse
from vdisk.vm.cpu.stacks import current_stack
from vdisk.vm.cpu.state import TLB_SUPERVISOR, TLB_USER, CpuState

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.accel.base import FpuState, Registers, SystemRegisters
    from vdisk.vm.bus import Bus
    from vdisk.vm.cpu.decode import Mode

EFER_LMA = 1 << 10
REGISTERED = (fpu_state, monitor, system_control, system_segments)
"""Modules whose instructions are there because they are imported."""
BUDGET_MASK = (1 << 64) - 1
FOREVER = 1 << 62
"""A budget that no run uses up."""


class Core(Events):
    """State and behaviour that all software engines share."""

    def __init__(self, index: int, bus: Bus) -> None:
        self.index, self.bus = index, bus
        self.watched: monitor.WatchedLine | None = None
        self.count = 1  # processors of the machine; the accelerator knows
        self.state = CpuState()
        self.iret = False
        self.watched_ports: list[tuple[int, int, int]] = []
        self.mtrrs = mtrr.reset()
        self._bus_wanted = False  # the next instruction is one that needs the bus for itself
        self._device_error: BaseException | None = None
        self.instructions = 0
        self._end: int | None = None  # what ``instructions`` would be, were the budget used up
        self.reset()

    # -- what an engine provides --------------------------------------------------------------

    @abstractmethod
    def enter(self) -> None:
        """Run generated code from ``rip`` until it leaves."""

    @abstractmethod
    def _translate(self) -> None:
        """Make code for ``rip``; raises :class:`GuestFault` where it cannot be fetched."""

    @abstractmethod
    def _mode_changed(self, mode: Mode) -> None:
        """Point the state at the tables of a mode."""

    @abstractmethod
    def walk(self, linear: int, access: int, *, user: bool) -> int:
        """The physical address; raises :class:`GuestFault`."""

    @abstractmethod
    def _load(self, tlb_set: int, linear: int, size: int) -> int: ...

    @abstractmethod
    def _store(self, tlb_set: int, linear: int, size: int, value: int) -> None: ...

    @abstractmethod
    def store_run(self, linear: int, data: bytes) -> bool:
        """Store bytes within a page at once; False where that is not RAM.

        Raises :class:`GuestFault`, like the next one.
        """

    @abstractmethod
    def load_run(self, linear: int, length: int) -> bytes | None:
        """The counterpart of :meth:`store_run`."""

    @abstractmethod
    def check_write(self, linear: int, size: int) -> None:
        """Raise :class:`GuestFault` if a store there would."""

    @abstractmethod
    def ram(self, physical: int, length: int) -> memoryview | None:
        """Guest RAM at a physical address; None where that is not all RAM."""

    @abstractmethod
    def load_pdptes(self, cr3: int) -> bool:
        """Take the PDPTEs of PAE paging from memory; False if they are not well-formed."""

    @abstractmethod
    def arithmetic_flags(self) -> int:
        """The six arithmetic flags as in EFLAGS."""

    @abstractmethod
    def pointers(self) -> dict[str, int]:
        """The fields of the state that lead to the engine's tables."""

    @abstractmethod
    def fetch_code(self, linear: int) -> bytes:
        """Up to 15 bytes of code; raises :class:`GuestFault` if not even one can be fetched."""

    @abstractmethod
    def timestamp(self) -> int:
        """The time-stamp counter."""

    @abstractmethod
    def set_timestamp(self, value: int) -> None: ...

    # -- memory ------------------------------------------------------------------------------

    def load(self, linear: int, size: int, *, supervisor: bool = False, alignment: int = 0) -> int:
        """Guest memory at a linear address; raises :class:`GuestFault`.

        ``supervisor``: a table of the system's.  ``alignment``: what alignment checks ask for, by
        default the size (SDM volume 3, table 6-7).
        """
        if not supervisor:
            self.check_alignment(linear, alignment or size)
        tlb_set = TLB_SUPERVISOR if supervisor else self.state.tlb_current
        value = self._load(tlb_set, linear, size)
        self._raise_pending()
        return value

    def store(
        self, linear: int, size: int, value: int, *, supervisor: bool = False, alignment: int = 0
    ) -> None:
        """The counterpart of :meth:`load`."""
        if not supervisor:
            self.check_alignment(linear, alignment or size)
        tlb_set = TLB_SUPERVISOR if supervisor else self.state.tlb_current
        self._store(tlb_set, linear, size, value & ((1 << 8 * size) - 1))
        self._raise_pending()

    def check_alignment(self, linear: int, size: int) -> None:
        """#AC(0) for an operand that is not aligned, in modes that ask for it."""
        if linear & size - 1 and modes.checks_alignment(self.state):
            raise GuestFault(faults.AC)

    def _raise_pending(self) -> None:
        state = self.state
        if state.pending:
            state.pending = 0
            vector = state.fault_vector
            if vector == faults.NON_CANONICAL:
                vector = faults.GP
            raise GuestFault(vector, state.fault_error, state.fault_address)

    def wrap_linear(self, linear: int) -> int:
        """An address as wide as linear addresses are."""
        return linear & (0xFFFF_FFFF_FFFF_FFFF if self.long_mode else 0xFFFF_FFFF)

    @staticmethod
    def canonical(address: int) -> bool:
        """True if bits 47-63 are all alike."""
        return address >> 47 in (0, 0x1FFFF)

    def port_in(self, port: int, size: int) -> int:
        """Read an I/O port."""
        if self.watched_ports:
            debug.port_accessed(self, port, size)
        with self.bus.lock:
            return self.bus.ports.read(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write an I/O port."""
        if self.watched_ports:
            debug.port_accessed(self, port, size)
        with self.bus.lock:
            self.bus.ports.write(port, size, value)

    def port_in_many(self, port: int, size: int, count: int) -> bytes:
        """Read an I/O port again and again."""
        with self.bus.lock:
            return self.bus.ports.read_many(port, size, count)

    def port_out_many(self, port: int, size: int, data: bytes) -> None:
        """Write an I/O port again and again."""
        with self.bus.lock:
            self.bus.ports.write_many(port, size, data)

    def push(self, value: int, size: int) -> None:
        """Push on the present stack."""
        stack = current_stack(self)
        stack.push(size, value)
        stack.commit()

    def pop(self, size: int) -> int:
        """Pop from the present stack."""
        stack = current_stack(self)
        value = stack.pop(size)
        stack.commit()
        return value

    # -- modes -------------------------------------------------------------------------------

    @property
    def long_mode(self) -> bool:
        """True with EFER.LMA: 64-bit and compatibility mode."""
        return bool(self.state.efer & EFER_LMA)

    @property
    def virtual_8086(self) -> bool:
        return bool(self.state.eflags & flags.VM)

    def set_cpl(self, level: int) -> None:
        """The privilege level; it chooses the TLB set."""
        self.state.cpl = level
        self.state.tlb_current = TLB_USER if level == 3 else TLB_SUPERVISOR

    def set_stack_pointer(self, value: int, mask: int) -> None:
        """RSP, ESP or SP by the stack's width."""
        state = self.state
        if mask == 0xFFFF:
            state.rsp = state.rsp & ~0xFFFF | value & 0xFFFF
        else:
            state.rsp = value & mask

    def update_mode(self) -> None:
        """Work out what code now means, after segments, control registers or TF changed."""
        state = self.state
        mode = modes.present(state, alone=self.alone)
        state.mode = mode.code
        state.sse_fault, state.mmx_fault, state.x87_fault = modes.coprocessor_faults(state)
        state.flat = int(mode == FLAT_MODE)
        self.stepping, self.careful = mode.step, mode.careful
        state.careful = int(mode.careful)
        self._mode_changed(mode)

    # -- flags -------------------------------------------------------------------------------

    def flags_word(self) -> int:
        """EFLAGS, whole."""
        state = self.state
        down = flags.DF if state.direction >> 63 else 0
        return self.arithmetic_flags() | state.eflags | down | flags.ALWAYS

    def set_flags(self, word: int, size: int = 8, *, kept: int = 0) -> None:
        """Load EFLAGS from a word of ``size`` bytes; bits in ``kept`` stay as they are."""
        state = self.state
        if size == 2:
            kept |= 0xFFFF_0000
        word = (word & ~kept) | (self.flags_word() & kept)
        state.cc_op, state.cc_src = 0, word & flags.ARITHMETIC
        state.direction = -1 if word & flags.DF else 1
        known = flags.TF | flags.IF | flags.IOPL | flags.NT | flags.RF | flags.VM | flags.AC
        before = state.eflags
        state.eflags = word & (known | flags.VIF | flags.VIP | flags.ID)
        if (before ^ state.eflags) & (flags.TF | flags.VM | flags.AC):
            self.update_mode()

    # -- running -----------------------------------------------------------------------------

    def run(self, budget: int | None = None) -> VcpuExit:
        state = self.state
        allowance = FOREVER if budget is None else budget
        state.budget = allowance
        self._end = self.instructions + allowance
        self.thread = threading.get_ident()
        try:
            while True:
                if self._exit_requested:
                    self._exit_requested = False
                    return VcpuExit.INTERRUPTED
                shadowed = self.inhibit
                if shadowed:
                    debug.in_shadow(self)
                elif self._take_interrupt():
                    self.halted = None
                if self.halted is not None:
                    waits, self.halted = self.halted, None  # whoever runs it again has seen why
                    return waits
                if self._is_used_up():
                    return VcpuExit.INTERRUPTED
                if not shadowed:
                    self.step()
        except TripleFaultError:
            return VcpuExit.SHUTDOWN
        finally:
            self.thread = None
            self.instructions, self._end = self.executed(), None

    def _is_used_up(self) -> bool:
        """True if it is time to stop, by the same rule as generated code has: a block begins as
        long as the budget is not below 0.  Otherwise a run would show where that code was left for
        a reason that is not the guest's.  (Single steps are always left, so they stop at 0.)"""
        budget = self.state.budget
        return bool(budget >> 63) or (self.stepping and not budget)

    def executed(self) -> int:
        end, left = self._end, self.state.budget
        if end is None:
            return self.instructions
        return end - (left - (1 << 64) if left >> 63 else left)

    def step(self) -> None:
        """Enter generated code once, and do what it asks for."""
        if self.stepping:
            debug.one_instruction(self)
        else:
            self.holds_debug = False  # that was for an instruction before
            self.enter()
            if self.handle_exit() and self.state.debug_hits:
                debug.trap(self)  # a task with the T flag

    def enter_briefly(self, enter: Callable[[], None]) -> int:
        """Enter generated code for one block, or less; gives the instructions that it counted."""
        state = self.state
        budget, state.budget = state.budget, 0
        shift = budget if state.tsc_virtual else 0  # what the time-stamp counter counts down
        state.tsc_offset -= shift
        enter()
        counted = -state.budget & BUDGET_MASK
        state.budget, state.tsc_offset = budget - counted, state.tsc_offset + shift
        return counted

    def handle_exit(self) -> bool:
        """Do what generated code left for; True if that was the instruction at ``rip``."""
        state = self.state
        if self._device_error is not None:
            error, self._device_error = self._device_error, None
            raise error
        reason = state.exit_reason
        if reason == Exit.SYSTEM:
            return self._system_instruction()
        if reason == Exit.HALTED:
            self.halted = VcpuExit.HLT
        elif reason == Exit.PAUSED:
            self._paused()
        else:
            self._stopped(reason)
            return False
        return True

    def _stopped(self, reason: int) -> None:
        """Generated code has left before the instruction at ``rip``."""
        state = self.state
        if reason in (Exit.TRANSLATE, Exit.CROSSING):
            try:
                self._translate()
            except GuestFault as fault:
                state.exit_reason = Exit.FAULT
                state.budget -= 1
                self.raise_fault(fault)
        elif reason == Exit.BUS:
            self._bus_wanted = True
        elif reason == Exit.EXTERNAL:
            self._deliver(state.exit_argument, external=True)
        elif reason == Exit.FAULT:
            vector = state.fault_vector
            if vector == faults.NON_CANONICAL:
                vector = instruction.not_canonical(self)
            elif vector == faults.SIMD_RANGE:
                vector = self._simd_out_of_range()
            self.raise_fault(GuestFault(vector, state.fault_error, state.fault_address))
        else:
            state.kick = 0
            if not state.irq_pending and reason in (Exit.INTERRUPTED, Exit.IN_REGION):
                self._interrupted(state.exit_argument if reason == Exit.IN_REGION else 0)

    def _simd_out_of_range(self) -> int:
        """The exception of the SSE instruction at ``rip``, whose operands are as they were."""
        from vdisk.vm.cpu import python_sse  # large, and hardly any guest unmasks exceptions

        name, immediate = sse.name_of(self.state.exit_argument)
        n = instruction.fetch(self)
        size, right = n.size(1), 0
        if n.i.op_kind(1) == OpKind.MEMORY:
            for at in range(0, size, 8):
                right |= self.load(n.linear(size) + at, min(size, 8), alignment=1) << 8 * at
        else:
            right = n.read(1)
        return python_sse.out_of_range(self.state.view, name, (n.read(0, 16), right), immediate)

    def _interrupted(self, region: int) -> None:
        """Generated code has left because of a kick that was not for an interrupt.

        ``region``: of the second tier, by the address of its code, in which that was; or 0.
        """

    def _paused(self) -> None:
        """The guest spins."""

    def device_failed(self, error: BaseException) -> None:
        """An error met while generated code ran: raised when it has left."""
        self._device_error = self._device_error or error
        self.state.kick = KICK

    def _system_instruction(self) -> bool:
        """True if it was carried out, False if it ended in a fault or is another one by now."""
        state = self.state
        state.budget -= 1
        try:
            if not system.execute(self):
                state.budget += 1
                return False
            state.rip = self.next_rip
        except GuestFault as fault:
            state.exit_reason = Exit.FAULT
            self.raise_fault(fault)
            return False
        return True

    # -- Vcpu ----------------------------------------------------------------------------------

    def _through_gate(
        self, vector: int, *, error: int | None, software: bool, external: bool
    ) -> None:
        interrupts.deliver(self, vector, error=error, software=software, external=external)

    def reset(self) -> None:
        self._nmi = self._bus_wanted = False
        registers.reset(self)

    def get_registers(self) -> Registers:
        return registers.get_general(self)

    def set_registers(self, registers_: Registers) -> None:
        registers.set_general(self, registers_)

    def get_system_registers(self) -> SystemRegisters:
        return registers.get_system(self)

    def set_system_registers(self, registers_: SystemRegisters) -> None:
        registers.set_system(self, registers_)

    def get_fpu(self) -> FpuState:
        return registers.get_fpu(self)

    def set_fpu(self, state: FpuState) -> None:
        registers.set_fpu(self, state)

    def line_changed(self) -> bool:
        return self.watched is None or self.watched.changed()

    def get_extra(self) -> dict[str, int | bytes]:
        """And the line that MONITOR watches, if any."""
        extra, line = super().get_extra(), self.watched
        if line is not None:
            extra |= {"line": line.address, "line_seen": line.seen, "line_spent": int(line.spent)}
        return extra

    def set_extra(self, extra: dict[str, int | bytes]) -> None:
        super().set_extra(extra)
        self.watched = None
        if "line" in extra:
            self.watched = monitor.from_saved(self, extra)

    def get_msrs(self) -> dict[int, int]:
        return registers.get_msrs(self)

    def set_msrs(self, msrs: dict[int, int]) -> None:
        registers.set_msrs(self, msrs)
