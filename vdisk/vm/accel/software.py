"""What the software engines share: a vCPU over translated records, and the translations.

An engine says how records are executed (:meth:`SoftwareVcpu.execute`), how routines of the run-time
are called, and what a handler is (:meth:`SoftwareAccelerator.handlers`).

Several vCPUs execute the same records at the same time, each in a thread of its own; what makes
that right:

* ``lock`` guards what Python knows of the translations.  It is taken with the bus's lock held (DMA
  that hits code), never the other way round.  The arena has a lock of its own for the routines that
  make and drop blocks, and for Python while it clears the tables they read; whoever has it takes no
  other.
* Records are written before the code array or the link that leads to them, and none is used again
  while anybody may execute it.  Dropping a block overwrites its records' handlers, one aligned
  word each: a vCPU in the middle of it ends its instruction and looks the next one up.
* A vCPU's TLB belongs to its thread.  Others ask for a flush (:meth:`SoftwareVcpu.request_flush`),
  which happens before the vCPU enters generated code again; that it leaves soon, a kick sees to.
  The one exception only ever makes entries useless (``drop_write_entries``).
* Code and its writers: a translation marks the page first, takes the write tags from all TLBs
  next, and only then reads the code.  A store without a write tag looks at the marks afterwards,
  and a new write tag is taken back where the page is marked (``fill``, ``stored``).  What remains
  is a store whose thread stands still, between its look at the tag and the store itself, for as
  long as the translation takes; a guest that relies on that has no ordering of its own either.
* A locked access that the host's LOCK does not reach has the bus for itself (``bus_owned``): all
  other vCPUs are outside of generated code, and Python does not access memory for them.
* When the arena is full, :meth:`SoftwareAccelerator.start_over` waits until no vCPU is in
  generated code (``inside``).
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vdisk.errors import CorruptImageError
from vdisk.vm.accel.base import Accelerator
from vdisk.vm.accel.spinning import Spinning
from vdisk.vm.cpu import known, mmu
from vdisk.vm.cpu.arena import Arena, ArenaFullError
from vdisk.vm.cpu.core import FOREVER, Core
from vdisk.vm.cpu.cpuid import APIC_ENABLED
from vdisk.vm.cpu.events import KICK
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.semantics.machine import stale_shape
from vdisk.vm.cpu.translate import Translator
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vdisk.vm.accel.base import VcpuExit
    from vdisk.vm.bus import Bus
    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.memory import GuestMemory, Range

IN_PAGE = PAGE_SIZE - 1
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
    def routine(self, name: str, *arguments: int) -> int:
        """Call a routine of the run-time (:mod:`vdisk.vm.cpu.routines`)."""

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
        physical = self.walk(linear, mmu.EXECUTE, user=state.cpl == 3)
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
        first = self.walk(linear, mmu.EXECUTE, user=user)
        second = self.walk(following, mmu.EXECUTE, user=user)
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
                self.walk(following, mmu.EXECUTE, user=self.state.cpl == 3)
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
        physical = self.walk(linear, mmu.EXECUTE, user=user)
        left = PAGE_SIZE - (linear & IN_PAGE)
        code = self.engine.code_bytes(physical, min(left, known.LONGEST))
        if left < known.LONGEST:
            try:
                second = self.walk(self.wrap_linear(linear + left), mmu.EXECUTE, user=user)
            except GuestFault:
                return code
            code += self.engine.code_bytes(second, known.LONGEST - left)
        return code

    # -- runs of bytes in one page -----------------------------------------------------------------

    def store_run(self, linear: int, data: bytes) -> bool:
        physical = self.walk(linear, mmu.WRITE, user=self.state.cpl == 3)
        memory = self.engine.memory
        if not memory.is_ram(physical, len(data)):
            return False
        memory.view(physical, len(data))[:] = data
        self.engine.dirtied([(physical, len(data))], self)
        return True

    def load_run(self, linear: int, length: int) -> bytes | None:
        physical = self.walk(linear, mmu.READ, user=self.state.cpl == 3)
        memory = self.engine.memory
        return memory.read(physical, length) if memory.is_ram(physical, length) else None

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
                return self.apic.mmio_read(physical & IN_PAGE, size)
            return self.bus.mmio.read(physical, size)

    def _is_apic(self, physical: int) -> bool:
        base = self.state.apic_base
        return base & APIC_ENABLED != 0 and physical & ~IN_PAGE == base & ~IN_PAGE

    def mmio_write(self, physical: int, size: int, value: int) -> None:
        """The counterpart of :meth:`mmio_read`."""
        with self.bus.lock:
            if self.apic is not None and self._is_apic(physical):
                self.apic.mmio_write(physical & IN_PAGE, size, value)
            else:
                self.bus.mmio.write(physical, size, value)


class SoftwareAccelerator(Accelerator):
    """The translations of one machine, and its vCPUs."""

    counts_instructions = True

    def __init__(self, memory: GuestMemory, bus: Bus) -> None:
        self.memory, self.bus = memory, bus
        self.arena = Arena(memory)
        self.translator = Translator(self.arena, self.handlers, self.code_bytes, self._protect)
        self.vcpus: list[SoftwareVcpu] = []
        self.lock = threading.RLock()
        self._a20 = True
        self.stopping = False
        self._fence = threading.Lock()
        self._restart = threading.Lock()  # held while no vCPU may enter generated code
        self._stale = self.handlers([stale_shape()])[stale_shape()]
        memory.on_dirtied(self.dirtied)
        memory.on_change(self._memory_changed)

    @abstractmethod
    def handlers(self, shapes: Iterable[Shape]) -> dict[Shape, int]:
        """Make sure that these handlers exist; what a record holds for each shape."""

    def add(self, vcpu: SoftwareVcpu) -> None:
        """One more processor; each knows how many there are."""
        self.vcpus.append(vcpu)
        for each in self.vcpus:
            each.count = each.state.processors = len(self.vcpus)
            each.state.bus_owned = int(each.count == 1)
        self._configure()

    @property
    def direct(self) -> bool:
        """True if generated code may translate by itself."""
        return True

    def _configure(self) -> None:
        count = len(self.vcpus)
        self.arena.configure(stale=self._stale, processors=count, direct=self.direct)

    @property
    def a20(self) -> bool:
        return self._a20

    @a20.setter
    def a20(self, enabled: bool) -> None:
        if enabled != self._a20:
            self._a20 = enabled
            self._flush_tlbs()

    @property
    def a20_mask(self) -> int:
        """What A20M# leaves of a physical address."""
        return (1 << 64) - 1 if self._a20 else ~(1 << 20)

    def _memory_changed(self, start: int, length: int) -> None:
        """Physical pages have become another kind of memory."""
        self.dirtied([(start, length)])
        self._flush_tlbs()

    def _flush_tlbs(self) -> None:
        for vcpu in self.vcpus:
            vcpu.request_flush()

    # -- starting over -----------------------------------------------------------------------------

    def await_start(self) -> None:
        """Wait while all translations are being dropped."""
        with self._restart:
            pass

    def start_over(self, generation: int) -> None:
        """Drop all translations, unless somebody has done so since ``generation``.

        Called from outside generated code, without locks: a vCPU inside may need any of them
        before it leaves.
        """
        with self._restart, ExitStack() as outside:
            if self.arena.generation != generation:
                return
            self.stopping = True
            try:
                for vcpu in self.vcpus:
                    vcpu.sample()
                    outside.enter_context(vcpu.inside)
                with self.lock:
                    self.arena.clear()
                    self.started_over()
                for vcpu in self.vcpus:
                    vcpu.forget_code()
            finally:
                self.stopping = False

    @contextmanager
    def bus_owned(self, owner: SoftwareVcpu) -> Iterator[None]:
        """While inside, no other vCPU accesses memory: what LOCK means where the host's does not
        reach, across two pages and on the bus.  Called like :meth:`start_over`.
        """
        with self._restart, ExitStack() as outside:
            self.stopping = True
            try:
                for vcpu in self.vcpus:
                    if vcpu is not owner:
                        vcpu.sample()
                        outside.enter_context(vcpu.inside)
                owner.state.bus_owned = 1
                yield
            finally:
                owner.state.bus_owned = int(owner.count == 1)
                self.stopping = False

    def started_over(self) -> None:
        """Every translation is gone."""

    # -- translation -------------------------------------------------------------------------------

    def code_bytes(self, physical: int, length: int) -> bytes:
        """Bytes to decode; where there is neither RAM nor ROM, ones."""
        if physical >= self.memory.top or self.memory.kind(physical) is PageKind.MMIO:
            return b"\xff" * length
        return self.memory.read(physical, length)

    def translate(self, vcpu: SoftwareVcpu, physical: int, mode: Mode) -> bool:
        """Translate the block at a physical address; False if it begins with a crossing one."""
        with self.lock:
            done = self.translator.translate(vcpu, physical, mode) != 0
            if done:
                self.translated(physical, mode)
            return done

    def translated(self, physical: int, mode: Mode) -> None:
        """There is a new block."""

    def translate_crossing(self, vcpu: SoftwareVcpu, first: int, second: int, mode: Mode) -> bool:
        """The block at ``first`` is an instruction that goes on at ``second``; False if the one
        that is there already was made with another second page."""
        with self.lock:
            number, following = self.translator.mode_number(mode), second >> PAGE_SHIFT
            pages = [first >> PAGE_SHIFT, following]
            codes, other = (vcpu.routine("code_array", page, number) for page in pages)
            if not codes or not other:
                raise ArenaFullError
            guard = self.arena.base + other
            present = self.arena.entry(codes, first & IN_PAGE)
            if present:
                return self.arena.wide(present) == guard
            for page in pages:
                self._protect(page)
            code = self.code_bytes(first, PAGE_SIZE - (first & IN_PAGE))
            code += self.code_bytes(second, known.LONGEST - len(code))
            self.translator.translate_crossing(vcpu, code, (first, following), mode, guard)
            return True

    def translate_once(self, vcpu: SoftwareVcpu, code: bytes, offset: int, mode: Mode) -> int:
        """A block of one instruction that is not entered in any code array."""
        with self.lock:
            return self.translator.translate_once(vcpu, code, offset, mode)

    def _protect(self, page_number: int) -> None:
        """Have writes to a page noticed from now on."""
        before = self.arena.mask(page_number)
        self.arena.mark_page(page_number)
        with self._fence:  # the mark is seen before the code is read: a lock is a fence
            pass
        if not before:
            for vcpu in self.vcpus:
                vcpu.drop_write_entries(page_number)

    def dirtied(self, ranges: Sequence[Range], writer: SoftwareVcpu | None = None) -> None:
        """Memory was written, by a vCPU or by a device: drop what was translated from it."""
        touched = self.arena.touches_code(ranges)
        if touched:
            with self.lock:
                for page, start, end in touched:
                    self._drop(page, start, end, writer)

    def _drop(self, page: int, start: int, end: int, writer: SoftwareVcpu | None) -> None:
        self.arena.give_back(page, start, end)
        vcpu = writer or self.vcpus[0]
        if vcpu.routine("drop_code", page, start, end):
            self.dropped(page, writer)

    def dropped(self, page_number: int, writer: SoftwareVcpu | None) -> None:
        """Something that was translated from a page is gone."""
