"""What the software engines share: the translations of a machine, for all its vCPUs.

An engine says what a handler is (:meth:`SoftwareAccelerator.handlers`); its vCPUs are in
:mod:`vdisk.vm.accel.software_vcpu`.

Several vCPUs execute the same records at the same time, each in a thread of its own; what makes
that right:

* ``lock`` guards what Python knows of the translations.  It is taken with the bus's lock held (DMA
  that hits code), never the other way round.  The arena has a lock of its own for the routines that
  make and drop blocks, and for Python while it clears the tables they read; whoever has it takes no
  other.
* Records are written before the code array or the link that leads to them, and none is used again
  while anybody may execute it.  Dropping a block overwrites its records' handlers, one aligned
  word each: a vCPU in the middle of it ends its instruction and looks the next one up.
* A vCPU's TLB belongs to its thread.  Others ask for a flush (``request_flush``), which happens
  before the vCPU enters generated code again; that it leaves soon, a kick sees to.  The one
  exception only ever makes entries useless (``drop_write_entries``).
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
from abc import abstractmethod
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vdisk.vm.accel.base import Accelerator
from vdisk.vm.cpu import known
from vdisk.vm.cpu.arena import Arena, ArenaFullError
from vdisk.vm.cpu.semantics.machine import stale_shape
from vdisk.vm.cpu.translate import Translator
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE, PageKind
from vdisk.vm.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vdisk.vm.accel.software_vcpu import SoftwareVcpu
    from vdisk.vm.bus import Bus
    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.memory import GuestMemory
    from vdisk.vm.ranges import Range


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
            vcpu.routine("lock_arena")  # another vCPU may be making one
            codes, other = (vcpu.routine("code_array", page, number) for page in pages)
            vcpu.routine("unlock_arena")
            if not codes or not other:
                raise ArenaFullError
            guard = self.arena.base + other
            present = self.arena.entry(codes, first & (PAGE_SIZE - 1))
            if present:
                return self.arena.wide(present) == guard
            for page in pages:
                self._protect(page)
            code = self.code_bytes(first, PAGE_SIZE - (first & (PAGE_SIZE - 1)))
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
        if type(ranges) is Ranges and not self.may_touch_code(ranges):
            return
        touched = self.arena.touches_code(ranges)
        if touched:
            with self.lock:
                for page, start, end in touched:
                    self._drop(page, start, end, writer)

    def may_touch_code(self, _ranges: Ranges) -> bool:
        """False if nothing was translated from the pages of many ranges, where that can be told
        faster than by looking at them one by one."""
        return True

    def _drop(self, page: int, start: int, end: int, writer: SoftwareVcpu | None) -> None:
        self.arena.give_back(page, start, end)
        vcpu = writer or self.vcpus[0]
        if vcpu.routine("drop_code", page, start, end):
            self.dropped(page, writer)

    def dropped(self, page_number: int, writer: SoftwareVcpu | None) -> None:
        """Something that was translated from a page is gone."""
