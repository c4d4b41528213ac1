"""A vCPU of the software engines: it executes translated records, and has them made.

An engine says how records are executed (:meth:`SoftwareVcpu.execute`) and how routines of the
run-time are called.  What several of them may do at the same time is told in
:mod:`vdisk.vm.accel.software`.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError
from vdisk.vm.accel.spinning import Spinning
from vdisk.vm.cpu import known, paging
from vdisk.vm.cpu.arena import ArenaFullError
from vdisk.vm.cpu.core import FOREVER, Core
from vdisk.vm.cpu.cpuid import APIC_ENABLED
from vdisk.vm.cpu.events import KICK, NO_VECTOR
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from vdisk.vm.accel.base import VcpuExit
    from vdisk.vm.accel.software import SoftwareAccelerator
    from vdisk.vm.cpu.decode import Mode

IN_PAGE = PAGE_SIZE - 1
APIC_ID = 0x20
"""The local APIC's ID register (SDM vol. 3, 11.4.6)."""
MASK_64 = (1 << 64) - 1


class SoftwareVcpu(Core):
    """A vCPU that executes records."""

    mode: Mode | None = None

    def __init__(self, engine: SoftwareAccelerator, index: int) -> None:
        self.engine = engine
        self._scratch: dict[tuple[bytes, int, Mode], int] = {}
        self._tsc_shift = 0  # what was written to the counter, beside a machine's own time
        self._running = False
        self._start_at = 0  # the record of such a translation, when it is to be executed …
        self._start_generation = 0  # … and of which generation of the arena it is
        self._flush_wanted = False
        self.inside = threading.Lock()
        """Held while generated code runs, and while Python accesses memory for the guest."""
        self._spinning = Spinning()
        super().__init__(index, engine.bus)

    @abstractmethod
    def execute(self, record: int) -> None:
        """Execute records until one leaves: from an address on, or (0) from ``rip``."""

    @abstractmethod
    def routine(self, name: str, *arguments: int | bytes) -> int:
        """Call a routine of the run-time (:mod:`vdisk.vm.cpu.routines`).

        An address on the host may be given as the bytes themselves.
        """

    def pointers(self) -> dict[str, int]:
        engine = self.engine
        return {
            **({} if self.mode is None else self._tables(self.mode)),
            "memory_top": engine.memory.top,
            "vcpu": self.index,
            "processors": self.count,
            "bus_owned": int(self.count == 1),
            "tsc_offset": -time.perf_counter_ns(),
        }

    def _mode_changed(self, mode: Mode) -> None:
        if mode != self.mode:
            self.mode = mode
            for name, value in self._tables(mode).items():
                setattr(self.state, name, value)
            self.state.flush_tlb()  # code entries are of a mode

    def _tables(self, mode: Mode) -> dict[str, int]:
        with self.engine.lock:
            number = self.engine.translator.mode_number(mode)
        return {
            "code_table": self.engine.arena.base + self.engine.arena.table(mode),
            "mode_number": number,
        }

    # -- running ---------------------------------------------------------------------------------

    def enter(self) -> None:
        engine = self.engine
        if self._bus_wanted:
            with engine.bus_owned(self):
                self.enter_briefly(self._enter)
            self._bus_wanted = self.state.exit_reason in (Exit.TRANSLATE, Exit.CROSSING)
            return
        if engine.stopping:
            engine.await_start()
        self._enter()

    def _enter(self) -> None:
        engine = self.engine
        with self.inside:
            if self._flush_wanted:
                self._flush()
            start, self._start_at = self._start_at, 0
            if start and self._start_generation != engine.arena.generation:
                start = 0  # it is gone; what is at rip is looked up again
            self.execute(start)

    def acknowledge(self) -> int:
        """Called by generated code, which has taken the kick for an interrupt: its vector.

        ``NO_VECTOR`` where it has to leave all the same.  Whoever wants that says so first and
        kicks afterwards, so either it is seen here or the kick is still there.
        """
        wanted = self._exit_requested or self._nmi or self._flush_wanted or self.inhibit
        if wanted or self.engine.stopping or self._device_error is not None:
            return NO_VECTOR
        return self._acknowledge()

    def request_flush(self) -> None:
        """From any thread: forget what addresses were translated to, and take A20's mask."""
        if self.thread == threading.get_ident():
            self._flush()
        else:
            self._flush_wanted = True
            self.state.kick = KICK

    def _flush(self) -> None:
        self._flush_wanted = False
        self.state.a20_mask = self.engine.a20_mask
        self.state.flush_tlb()

    def forget_code(self) -> None:
        """Nothing is left of what was translated; this vCPU is not in generated code."""
        self._scratch.clear()
        self._flush_wanted = True

    # -- code ------------------------------------------------------------------------------------

    def _translate(self) -> None:
        generation = self.engine.arena.generation
        try:
            self._translate_block()
        except ArenaFullError:
            self.engine.start_over(generation)

    def _translate_block(self) -> None:
        state = self.state
        linear = self.wrap_linear(state.rip + state.cs_base)
        physical = self.walk(linear, paging.EXECUTE, user=state.cpl == 3)
        assert self.mode is not None
        engine = self.engine
        if physical >= engine.memory.top or engine.memory.kind(physical) is PageKind.MMIO:
            self._translate_alone(linear)
        elif state.exit_reason == Exit.CROSSING or not engine.translate(self, physical, self.mode):
            self._translate_crossing(linear)

    def _translate_crossing(self, linear: int) -> None:
        """Make code for an instruction that reaches into the next page.

        It begins with a record that compares the second page's code array with the one it was
        made for; where that fails (the TLB has forgotten the page, or another one is there now)
        generated code comes back here.
        """
        assert self.mode is not None
        user, following = self.state.cpl == 3, self.wrap_linear((linear | IN_PAGE) + 1)
        first = self.walk(linear, paging.EXECUTE, user=user)
        second = self.walk(following, paging.EXECUTE, user=user)
        top = self.engine.memory.top
        if second < top and self.engine.translate_crossing(self, first, second, self.mode):
            self.remember_code_page(following)
            return
        self._translate_alone(linear)

    def _translate_alone(self, linear: int) -> None:
        """Make code for one instruction, to be executed next, that is found by its bytes."""
        assert self.mode is not None
        code = self.fetch_code(linear)
        offset = linear & IN_PAGE
        generation = self.engine.arena.generation
        key = (code, offset, self.mode)
        record = self._scratch.get(key)
        if record is None:
            record = self.engine.translate_once(self, code, offset, self.mode)
            if not record:  # it goes on where nothing can be fetched
                following = self.wrap_linear((linear | IN_PAGE) + 1)
                self.walk(following, paging.EXECUTE, user=self.state.cpl == 3)
                return  # another processor has mapped the page meanwhile
            self._scratch[key] = record
        self.state.code_page = linear & ~IN_PAGE
        self._start_at = self.engine.arena.record_address(record)
        self._start_generation = generation

    @abstractmethod
    def remember_code_page(self, linear: int) -> None:
        """Put the code array of a page into the TLB's code entries."""

    def fetch_code(self, linear: int) -> bytes:
        user = self.state.cpl == 3
        physical = self.walk(linear, paging.EXECUTE, user=user)
        left = PAGE_SIZE - (linear & IN_PAGE)
        code = self.engine.code_bytes(physical, min(left, known.LONGEST))
        if left < known.LONGEST:
            try:
                second = self.walk(self.wrap_linear(linear + left), paging.EXECUTE, user=user)
            except GuestFault:
                return code
            code += self.engine.code_bytes(second, known.LONGEST - left)
        return code

    # -- runs of bytes in one page -----------------------------------------------------------------

    def store_run(self, linear: int, data: bytes) -> bool:
        physical = self.walk(linear, paging.WRITE, user=self.state.cpl == 3)
        memory = self.engine.memory
        if not memory.is_ram(physical, len(data)):
            return False
        memory.view(physical, len(data))[:] = data
        self.engine.dirtied([(physical, len(data))], self)
        return True

    def load_run(self, linear: int, length: int) -> bytes | None:
        physical = self.walk(linear, paging.READ, user=self.state.cpl == 3)
        memory = self.engine.memory
        return memory.read(physical, length) if memory.is_ram(physical, length) else None

    def ram(self, physical: int, length: int) -> memoryview | None:
        memory = self.engine.memory
        return memory.view(physical, length) if memory.is_ram(physical, length) else None

    # -- routines --------------------------------------------------------------------------------

    def walk(self, linear: int, access: int, *, user: bool) -> int:
        physical = self.routine("walk", linear, access, int(user))
        self._raise_pending()
        return physical

    def _load(self, tlb_set: int, linear: int, size: int) -> int:
        with self.inside:
            return self.routine("slow_load", tlb_set, linear, size)

    def _store(self, tlb_set: int, linear: int, size: int, value: int) -> None:
        with self.inside:
            self.routine("slow_store", tlb_set, linear, size, value)

    def check_write(self, linear: int, size: int) -> None:
        self.routine("check_write", self.state.tlb_current, linear, size)
        self._raise_pending()

    def load_pdptes(self, cr3: int) -> bool:
        return bool(self.routine("load_pdptes", cr3))

    def arithmetic_flags(self) -> int:
        return self.routine("arithmetic_flags")

    def _deliver_fast(self, vector: int, error: int | None) -> bool:
        how = "deliver_long" if self.state.mode == 64 else "deliver_flat"
        with self.inside:
            return bool(self.routine(how, vector, error or 0, int(error is not None)))

    def drop_write_entries(self, page_number: int) -> None:
        """Have writes to a physical page noticed from now on."""
        self.routine("drop_write_entries", self.state.memory + (page_number << PAGE_SHIFT))

    def _paused(self) -> None:
        if self.timestamp_source is None and not self.interrupt_waits():
            self._spinning.give_way(self.state.budget)

    def get_extra(self) -> dict[str, int | bytes]:
        """And how far the time-stamp counter is, or is from the machine's own time."""
        virtual = self.timestamp_source is not None
        counter = self._tsc_shift if virtual else self.timestamp()
        return {**super().get_extra(), "timestamp": counter & MASK_64}

    def set_extra(self, extra: dict[str, int | bytes]) -> None:
        super().set_extra(extra)
        counter = extra.get("timestamp")
        if not isinstance(counter, int):
            raise CorruptImageError(f"a saved processor {self.index} without its timestamp")
        if self.timestamp_source is None:
            self.set_timestamp(counter & MASK_64)
        else:
            self._tsc_shift = counter & MASK_64

    # -- time ------------------------------------------------------------------------------------

    def run(self, budget: int | None = None) -> VcpuExit:
        source, state = self.timestamp_source, self.state
        if source is None:
            return super().run(budget)
        # Code adds the instructions that it has executed; the budget counts them down.
        allowance = FOREVER if budget is None else budget
        state.tsc_virtual = 1
        state.tsc_offset = (source() + self._tsc_shift + allowance) & MASK_64
        self._running = True
        try:
            return super().run(allowance)
        finally:
            self._running = False

    def timestamp(self) -> int:
        if self.timestamp_source is None:
            return (self.state.tsc_offset + time.perf_counter_ns()) & MASK_64
        if self._running:
            return (self.state.tsc_offset - self.state.budget) & MASK_64
        return (self.timestamp_source() + self._tsc_shift) & MASK_64

    def set_timestamp(self, value: int) -> None:
        change = value - self.timestamp()
        self.state.tsc_offset = (self.state.tsc_offset + change) & MASK_64
        self._tsc_shift += change

    def sample(self) -> None:
        """From another thread: have :meth:`_interrupted` called soon."""
        self.state.kick = KICK

    # -- memory-mapped I/O -------------------------------------------------------------------------

    def mmio_read(self, physical: int, size: int) -> int:
        """Memory-mapped I/O, of the local APIC or the bus."""
        with self.bus.lock:
            if self.apic is not None and self._is_apic(physical):
                value = self.apic.mmio_read(physical & IN_PAGE, size)
                if physical & IN_PAGE == APIC_ID and size == 4:
                    self.state.apic_id_place, self.state.apic_id = physical, value
                return value
            return self.bus.mmio.read(physical, size)

    def _is_apic(self, physical: int) -> bool:
        base = self.state.apic_base
        return base & APIC_ENABLED != 0 and physical & ~IN_PAGE == base & ~IN_PAGE

    def mmio_write(self, physical: int, size: int, value: int) -> None:
        """The counterpart of :meth:`mmio_read`."""
        with self.bus.lock:
            if self.apic is not None and self._is_apic(physical):
                self.apic.mmio_write(physical & IN_PAGE, size, value)
                self.state.apic_id_place = 0
            else:
                self.bus.mmio.write(physical, size, value)
