"""Which code is worth the second tier, and making it while the guest goes on.

A sampler interrupts the vCPUs every now and then and looks where they are: a block that is met
:data:`THRESHOLD` times is hot.  So code that nobody compiles pays nothing, not even a counter.
A worker takes the one that has been met most often by now, gathers the region around it, has LLVM
compile it (in another process), and makes it the handler of the block's first record.  Regions are
kept: where an earlier run compiled one for the same bytes, it is used as soon as its first block is
translated (:meth:`Hotspots.recall`).

When there are no regions to compile, the worker has handlers that were compiled roughly made fine,
for later runs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from vdisk.vm.cpu.arena import MOST_DROPS, HotRegion
from vdisk.vm.cpu.compiler import CompilerProcess, Level
from vdisk.vm.cpu.orders import HandlersOrder, RegionOrder, RuntimeOrder
from vdisk.vm.cpu.region_store import KeptRegion, RegionStore
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from vdisk.vm.accel.llvm import LlvmAccelerator
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.cpu.orders import CompiledRegion, Order

THRESHOLD = 2
PERIOD = 0.001
"""Seconds between samples: an interruption costs some ten microseconds."""
IDLE_PERIOD = 0.01
CALM = 1.0
"""Seconds without a newly hot block until samples become rare."""
MOST_REGIONS = 20_000
"""Compiled code is never given back; this many are some hundred megabytes."""


MOST_COUNTED = 100_000
"""Blocks that were met but are not hot yet."""


class Hotspots:
    """The second tier of one machine.

    ``eager`` (for tests): every block is hot when it has been translated, and compiled at once.
    """

    def __init__(self, engine: LlvmAccelerator, *, eager: bool = False) -> None:
        self.engine, self.eager = engine, eager
        self.compiled = self.recalled = 0
        native = engine.native
        self.store = RegionStore(native.memory, None, "") if eager else native.regions
        self._lock = threading.Lock()  # of what is known and counted
        self._new: list[tuple[int, Mode]] | None = None
        self._counts: Counter[tuple[int, Mode]] = Counter()
        self._known: set[tuple[int, Mode]] = set()
        self._of_page: dict[int, list[tuple[int, Mode]]] = {}
        self._waiting: Counter[tuple[int, Mode]] = Counter()
        """What is hot and not compiled yet, and how often it was met."""
        self._found_one = threading.Condition(self._lock)
        self._last_found = time.monotonic()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._compiler: CompilerProcess | None = None

    def start(self) -> None:
        """Begin to look and to compile; does nothing the second time."""
        if self._threads or self.eager:
            return
        for name, target in (("vdisk-sampler", self._sample), ("vdisk-compiler", self._work)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End both threads."""
        with self._starting:
            self._stopped.set()
        with self._found_one:
            self._found_one.notify()
        if self._compiler is not None:
            self._compiler.close()  # the worker waits for its answer
        for thread in self._threads:
            thread.join()

    # -- looking ---------------------------------------------------------------------------------

    def _sample(self) -> None:
        while not self._stopped.is_set():
            calm = time.monotonic() - self._last_found > CALM
            time.sleep(IDLE_PERIOD if calm else PERIOD)  # half of what waiting for an event costs
            for vcpu in self.engine.vcpus:
                vcpu.sample()

    def found(self, physical: int, mode: Mode) -> None:
        """A vCPU is about to execute the block at a physical address."""
        key = (physical, mode)
        with self._lock:
            if key in self._waiting:
                self._waiting[key] += 1
            if key in self._known or self.compiled >= MOST_REGIONS:
                return
            if self.engine.arena.dropped(physical >> PAGE_SHIFT) > MOST_DROPS:
                return
            if len(self._counts) >= MOST_COUNTED:
                self._counts.clear()
            self._counts[key] += 1
            if self._counts[key] < THRESHOLD:
                return
            self._waiting[key] = self._counts.pop(key)
            self._known.add(key)
            self.engine.arena.watch(physical >> PAGE_SHIFT)
            self._of_page.setdefault(physical >> PAGE_SHIFT, []).append(key)
            self._last_found = time.monotonic()
            self._found_one.notify()

    def forget(self, page_number: int) -> None:
        """What was made from a page is gone: it may become hot again."""
        with self._lock:
            for key in self._of_page.pop(page_number, ()):
                self._known.discard(key)
                self._waiting.pop(key, None)
            if page_number not in self.engine.arena.regions:
                self.engine.arena.watch(page_number, False)

    def forget_all(self) -> None:
        """Nothing is left of what was translated."""
        with self._lock:
            self._known.clear()
            self._waiting.clear()
            self._of_page.clear()
            self._counts.clear()

    # -- compiling -------------------------------------------------------------------------------

    def _work(self) -> None:
        more_to_refine = True
        while not self._stopped.is_set():
            hottest = self._hottest(wait=not more_to_refine)
            if hottest is not None:
                self.compile(*hottest)
            more_to_refine = hottest is not None or self._refine()

    def _hottest(self, *, wait: bool) -> tuple[int, Mode] | None:
        """The block that is waiting and was met most often; None: there is none (yet)."""
        with self._found_one:
            if wait:
                self._found_one.wait_for(lambda: self._waiting or self._stopped.is_set())
            if not self._waiting:
                return None
            key = max(self._waiting, key=self._waiting.__getitem__)
            del self._waiting[key]
            return key

    def _refine(self) -> bool:
        """Make what is rough fine, the run-time first; False if nothing is left."""
        native = self.engine.native
        if native.lacks_runtime():
            code = self._carry_out(RuntimeOrder())
            if code:
                native.take_runtime(code)
        shapes = native.next_rough()
        if shapes:
            code = self._carry_out(HandlersOrder(shapes))
            if code:
                native.keep([shape.symbol for shape in shapes], code, Level.FINE)
        return bool(shapes)

    def compile(self, physical: int, mode: Mode) -> bool:
        """Compile the region around a block; False where there is none (any more)."""
        engine, arena = self.engine, self.engine.arena
        page_number, offset = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
        with engine.lock:
            codes, dropped = arena.codes(page_number, mode), arena.dropped(page_number)
            if not codes or dropped > MOST_DROPS or mode.step:
                return False
            generation = arena.generation
            if not self.eager and self._recall(physical, mode):
                return True
            content = engine.code_bytes(page_number << PAGE_SHIFT, PAGE_SIZE)
            entries = arena.entries(codes)
        order = RegionOrder(mode, offset, content, entries)
        compiled: CompiledRegion | None = self._carry_out(order)
        if compiled is None:
            return False
        kept = self.store.keep(KeptRegion.of(order, compiled))
        engine.translator.expect(mode, offset, content[offset])
        with engine.lock:
            base = kept.base(content)
            if base is None or arena.generation != generation:
                return False
            if not self._install(page_number, dropped, kept, base):
                return False
            self.compiled += 1
        return True

    def _carry_out(self, order: Order) -> Any:
        """What comes of an order; None where that is nothing, or the machine is closing."""
        if not self._threads:
            return self.engine.native.carry_out(order)
        compiler = self._started()
        return None if compiler is None else compiler.carry_out(order)

    def _started(self) -> CompilerProcess | None:
        """The process that compiles, begun when there is something to do; None: too late."""
        with self._starting:
            if self._compiler is None and not self._stopped.is_set():
                self._compiler = CompilerProcess()
                self._compiler.give_way()
            return self._compiler

    def _install(self, page_number: int, dropped: int, kept: KeptRegion, base: int) -> bool:
        """Let a region be the handler of its first record.

        False if there is no room for it, or if more than ``dropped`` times something in its page
        was dropped.
        """
        arena, address = self.engine.arena, self.store.address(kept, base)
        codes = arena.codes(page_number, kept.mode)
        entry = arena.entry(codes, kept.head)
        if not address or not entry:
            return False
        arena.watch(page_number)
        region = HotRegion(entry, arena.handler(entry), kept.spans)
        element = codes + kept.head * 4
        if not self.engine.replace_handler(page_number, dropped, element, entry, address):
            return False
        arena.regions.setdefault(page_number, []).append(region)
        return True

    # -- what earlier runs compiled ----------------------------------------------------------------

    def use(self, store: RegionStore) -> None:
        """Have generated code ask for a translation where a region may be known for it."""
        self.store = store
        for mode, head, first in store.known:
            self.engine.translator.expect(mode, head, first)

    def recall(self, physical: int, mode: Mode) -> None:
        """There is a new block: use the region that is known for it, if there is one.

        The engine's lock is held.  Blocks of the region that are not there yet are translated,
        so that a store to any of its bytes is noticed; they may have regions of their own.
        """
        if self._new is not None:
            self._new.append((physical, mode))
            return
        self._new = [(physical, mode)]
        try:
            while self._new:
                self._recall(*self._new.pop())
        finally:
            self._new = None

    def _recall(self, physical: int, mode: Mode) -> bool:
        """Use a region that is known; False if none is."""
        offset, start = physical & (PAGE_SIZE - 1), physical & ~(PAGE_SIZE - 1)
        engine, arena, page_number = self.engine, self.engine.arena, physical >> PAGE_SHIFT
        for kept in self.store.candidates(mode, offset, engine.code_bytes(physical, 1)[0]):
            dropped = arena.dropped(page_number)
            present = engine.code_bytes(start, PAGE_SIZE)
            if dropped > MOST_DROPS or kept.base(present) is None:
                continue
            codes = arena.codes(page_number, mode)
            for place, _ in kept.spans:
                if not arena.entry(codes, place):
                    engine.translate(engine.vcpus[0], start + place, mode)
            # All of it is watched now, so what it is now counts.
            base = kept.base(engine.code_bytes(start, PAGE_SIZE))
            if base is not None:
                self._use(physical, dropped, kept, base)
                return True
        return False

    def _use(self, physical: int, dropped: int, kept: KeptRegion, base: int) -> None:
        page_number, key = physical >> PAGE_SHIFT, (physical, kept.mode)
        if self._install(page_number, dropped, kept, base):
            self.recalled += 1
            with self._lock:
                self._known.add(key)
                self._of_page.setdefault(page_number, []).append(key)
