"""Which code is worth the second tier, and making it while the guest goes on.

A sampler interrupts the vCPUs every now and then and looks where they are: a block that is met
:data:`THRESHOLD` times is hot, or once while hardly anything waits to be compiled.  So code that
nobody compiles pays nothing, not even a counter.
A worker takes the one that has been met most often by now, gathers the region around it, has LLVM
compile it (in another process), and makes it the handler of its entries' first records.

A region is compiled quickly first, in a quarter of the time that its best code would take, of
which it has two thirds of the speed: while much is hot at once, that gets most of it soon.  Those
that go on being met are compiled again as well as LLVM can.

Regions are kept: where an earlier run compiled one for the same bytes, it is used as soon as one of
its entries is translated (:meth:`Hotspots.recall`), and made better if that one had no time for it.

When there are no regions to compile, the worker has handlers that were compiled roughly made fine,
for later runs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from vdisk.vm.cpu.arena import MARKED, MOST_DROPS, ArenaFullError, entries_of
from vdisk.vm.cpu.compiler import CompilerProcess, Level
from vdisk.vm.cpu.hot import REGION_LIMIT
from vdisk.vm.cpu.orders import HandlersOrder, RegionOrder, RuntimeOrder
from vdisk.vm.cpu.region_store import KeptRegion, RegionStore
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from vdisk.vm.accel.llvm import LlvmAccelerator
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.cpu.orders import CompiledRegion, Order

EAGER_LIMIT = 16
"""Instructions of a region where each new block begins one."""
THRESHOLD = 2
FEW = 4
"""Blocks that wait to be compiled: as long as there are no more, each that is met is hot."""
COVERED_THRESHOLD = 16
"""For a block that is in a region, but was met in the first tier: mostly it will not stay there."""
WORTH_BEST = 4
"""How often a quick region has to be met for its best code to be worth LLVM's time …"""
QUICK_FIRST = 8
"""… and how often for each time that a block was met that has no region yet: making one for that
takes a quarter of the time, and spares more of the guest's."""
PERIOD = 0.001
"""Seconds between samples: an interruption costs some ten microseconds."""
IDLE_PERIOD = 0.01
CALM = 1.0
"""Seconds without a sample that tells anything new until samples become rare; and without a change
of a page until it may have regions again: kernels patch their code many times, but in one go."""
MOST_REGIONS = 20_000
"""Compiled code is never given back; this many are some hundred megabytes."""


MOST_WAITING = 1000
"""Each with a copy of its page, and of its code array: 20 KiB."""
MOST_COUNTED = 100_000
"""Blocks that were met but are not hot yet."""


HotBlock = tuple[tuple[int, "Mode"], bytes, bytes]
"""A block, and what was in its page when it became hot: the bytes, and the code array."""
QuickRegion = tuple[KeptRegion, int]
"""And the number of a page that it is used in."""


class Hotspots:
    """The second tier of one machine.

    ``eager`` (for tests): every block is hot when it has been translated, and compiled at once, at
    this level.
    """

    def __init__(self, engine: LlvmAccelerator, *, eager: Level | None = None) -> None:
        self.engine, self.eager = engine, eager is not None
        self._level = Level.QUICK if eager is None else eager
        self.compiled = self.recalled = self.refined = 0
        native = engine.native
        self._limit = EAGER_LIMIT if self.eager else REGION_LIMIT
        self.store = RegionStore(native.memory, None, "") if self.eager else native.regions
        self._lock = threading.Lock()  # of what is known and counted
        self._new: list[tuple[int, Mode]] | None = None
        self._counts: Counter[tuple[int, Mode]] = Counter()
        self._known: set[tuple[int, Mode]] = set()
        self._of_page: dict[int, list[tuple[int, Mode]]] = {}
        self._restless: dict[int, tuple[int, float]] = {}
        """Pages that were met although they change often: how often, and since when no more."""
        self._changed: set[int] = set()
        """Pages of which something was dropped since the last sample."""
        self._waiting: Counter[tuple[int, Mode]] = Counter()
        """What is hot and not compiled yet, and how often it was met."""
        self._pages: dict[tuple[int, Mode], tuple[bytes, bytes]] = {}
        """What was in its page then, and its code array."""
        self._quick: Counter[KeptRegion] = Counter()
        """How often regions were met that may be made better."""
        self._quick_page: dict[KeptRegion, int] = {}
        """Where each was met last."""
        self._found_one = threading.Condition(self._lock)
        self._last_news = time.monotonic()
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
            calm = time.monotonic() - self._last_news > CALM
            time.sleep(IDLE_PERIOD if calm else PERIOD)  # half of what waiting for an event costs
            for vcpu in self.engine.vcpus:
                vcpu.sample()
            if self._changed:
                self._look_again()

    def found(self, physical: int, mode: Mode, region: int = 0) -> None:
        """A vCPU is about to execute the block at a physical address, in the first tier or in the
        region with its code at this address."""
        key = (physical, mode)
        region = region or self._region_at(physical, mode)
        with self._lock:
            if region:
                self._found_region(region, physical >> PAGE_SHIFT)
                return
            if key in self._waiting:
                self._waiting[key] += 1
            if key in self._known or self.compiled >= MOST_REGIONS:
                return
            if len(self._waiting) >= MOST_WAITING:
                return
            if self._is_restless(physical >> PAGE_SHIFT):
                return
            if len(self._counts) >= MOST_COUNTED:
                self._counts.clear()
            self._last_news = time.monotonic()
            self._counts[key] += 1
            if self._counts[key] < self._threshold(physical):
                return
            self._waiting[key] = self._counts.pop(key)
            self._pages[key] = self._look_at(*key)
            self._known.add(key)
            self.engine.arena.watch(physical >> PAGE_SHIFT)
            self._of_page.setdefault(physical >> PAGE_SHIFT, []).append(key)
            self._found_one.notify()

    def _is_restless(self, page_number: int) -> bool:
        """True if code of a page was changed too often, and not long ago for the last time."""
        arena, now = self.engine.arena, time.monotonic()
        dropped = arena.dropped(page_number)
        if dropped <= MOST_DROPS:
            return False
        before, since = self._restless.get(page_number, (0, now))
        if dropped != before:
            self._restless[page_number] = dropped, now
            return True
        if now - since < CALM:
            return True
        del self._restless[page_number]
        with self.engine.arena_locked():
            arena.forget_drops(page_number)
        return False

    def _region_at(self, physical: int, mode: Mode) -> int:
        """The address of the region that is entered by a block; 0: there is none."""
        arena, page_number = self.engine.arena, physical >> PAGE_SHIFT
        codes = arena.codes(page_number, mode)
        record = arena.entry(codes, physical & (PAGE_SIZE - 1)) if codes else 0
        regions = arena.regions.get(page_number, ()) if record else ()
        return arena.handler(record) if any(each.record == record for each in regions) else 0

    def _found_region(self, address: int, page_number: int) -> None:
        kept = self.store.quick.get(address)
        if kept is None:
            return  # it is as good as it gets
        self._last_news = time.monotonic()
        self._quick[kept] += 1
        self._quick_page[kept] = page_number
        if self._quick[kept] == WORTH_BEST:
            self._found_one.notify()

    def _threshold(self, physical: int) -> int:
        """How often a block has to be met to be hot."""
        if self._is_covered(physical):
            return COVERED_THRESHOLD
        return THRESHOLD if len(self._waiting) > FEW else 1

    def _is_covered(self, physical: int) -> bool:
        """True if there is a region with a block there."""
        offset = physical & (PAGE_SIZE - 1)
        regions = self.engine.arena.regions.get(physical >> PAGE_SHIFT, ())
        return any(region.touches(offset, offset + 1) for region in regions)

    def _look_at(self, physical: int, mode: Mode) -> tuple[bytes, bytes]:
        """The page of a block, and its code array: copies, as a vCPU stands still meanwhile."""
        arena, page_number = self.engine.arena, physical >> PAGE_SHIFT
        content = self._content(page_number)
        return content, arena.code_array(arena.codes(page_number, mode))

    def forget(self, page_number: int) -> None:
        """Something that was made from a page is gone: it may become hot again."""
        with self._lock:
            keys = self._of_page.pop(page_number, ())
            waiting = [key for key in keys if key in self._waiting]
            self._known.difference_update(keys)
            self._known.update(waiting)
            if waiting:
                self._of_page[page_number] = waiting
            self._changed.add(page_number)
            if page_number not in self.engine.arena.regions:
                self.engine.arena.watch(page_number, False)

    def forget_all(self) -> None:
        """Nothing is left of what was translated."""
        with self._lock:
            self._known.clear()
            self._waiting.clear()
            self._pages.clear()
            self._of_page.clear()
            self._restless.clear()
            self._changed.clear()
            self._counts.clear()
            self._quick.clear()
            self._quick_page.clear()

    # -- compiling -------------------------------------------------------------------------------

    def _work(self) -> None:
        more_to_refine = True
        while not self._stopped.is_set():
            region, hottest = self._most_urgent(wait=not more_to_refine)
            if region is not None:
                self._make_best(*region)
            elif hottest is not None:
                (physical, mode), content, code_array = hottest
                self._compile(physical, mode, content, code_array)
            more_to_refine = bool(region or hottest) or self._refine()

    def _most_urgent(self, *, wait: bool) -> tuple[QuickRegion | None, HotBlock | None]:
        """A region that is to be made better, or a block that is to have one; none (yet)."""
        with self._found_one:
            if wait:
                self._found_one.wait_for(
                    lambda: self._waiting or self._hottest_region() or self._stopped.is_set()
                )
            region = self._hottest_region()
            return (region, None) if region is not None else (None, self._hottest())

    def _hottest_region(self) -> QuickRegion | None:
        """The quick region that was met most often, if that is more urgent than any block."""
        kept = max(self._quick, key=self._quick.__getitem__, default=None)
        least = max(WORTH_BEST, QUICK_FIRST * max(self._waiting.values(), default=0))
        if kept is None or self._quick[kept] < least:
            return None
        return kept, self._quick_page[kept]

    def _hottest(self) -> HotBlock | None:
        """The block that is waiting and was met most often."""
        if not self._waiting:
            return None
        key = max(self._waiting, key=self._waiting.__getitem__)
        del self._waiting[key]
        return key, *self._pages.pop(key)

    def _make_best(self, kept: KeptRegion, page_number: int) -> bool:
        """Put the best code of a region in place of that which was made quickly."""
        for address in kept.addresses.values():
            self.store.quick.pop(address, None)
        with self._lock:
            self._quick.pop(kept, None)
            self._quick_page.pop(kept, None)
        with self.engine.lock:
            content, generation = self._content(page_number), self.engine.arena.generation
        if kept.base(content) is None:
            return False
        blocks = frozenset(start for start, _ in kept.spans)
        order = RegionOrder(
            kept.mode, kept.entries[0], content, blocks, level=Level.BEST, entries=kept.entries
        )
        used = self._carry_out_region(order, page_number, generation)
        self.refined += used
        return used

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
        with self.engine.lock:
            content, code_array = self._look_at(physical, mode)
        return self._compile(physical, mode, content, code_array)

    def _compile(self, physical: int, mode: Mode, content: bytes, code_array: bytes) -> bool:
        """Compile the region as it was when the block was found to be hot: if other code stands
        there by now, later runs can use it when they are as far."""
        engine, arena = self.engine, self.engine.arena
        page_number, offset = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
        with engine.lock:
            if arena.dropped(page_number) > MOST_DROPS or mode.step:
                return False
            generation = arena.generation
            if not self.eager and self._recall(physical, mode):
                return True
        order = RegionOrder(
            *(mode, offset, content, entries_of(code_array), self._limit, self._level),
            enter=self._is_covered(physical),
        )
        used = self._carry_out_region(order, page_number, generation)
        self.compiled += used
        return used

    def _carry_out_region(self, order: RegionOrder, page_number: int, generation: int) -> bool:
        """Have a region compiled, keep it, and use it if its code stands in the page."""
        engine = self.engine
        compiled: CompiledRegion | None = self._carry_out(order)
        if compiled is None:
            return False
        kept = self.store.keep(KeptRegion.of(order, compiled))
        for each in kept.places():
            engine.translator.expect(*each)
        with engine.lock:
            now = self._content(page_number)
            return engine.arena.generation == generation and self._use(page_number, kept, now)

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
        """Let a region be the handler of its entries' first records.

        False if there is no room for it, or if more than ``dropped`` times something in its page
        was dropped.
        """
        arena, address = self.engine.arena, self.store.address(kept, base)
        if not address:
            return False
        codes = arena.codes(page_number, kept.mode)
        arena.watch(page_number)
        with self.engine.arena_locked():
            entries = {entry: arena.entry(codes, entry) for entry in kept.entries}
            if arena.dropped(page_number) != dropped or not any(entries.values()):
                return False
            arena.use_region(page_number, filter(None, entries.values()), kept.spans, address)
        self._note_covered(page_number, kept)
        return True

    def _note_covered(self, page_number: int, kept: KeptRegion) -> None:
        """Its entries need no other region.  Its other blocks may be met again, on other ways, and
        so may be the one that it was made for."""
        start, mode = page_number << PAGE_SHIFT, kept.mode
        blocks = {(start + first, mode) for first, _ in kept.spans}
        entries = {(start + entry, mode) for entry in kept.entries}
        with self._lock:
            for key in blocks:
                self._counts.pop(key, None)
                if self._waiting.pop(key, None) is not None:
                    del self._pages[key]
            self._known.difference_update(key for key in blocks if not self._region_at(*key))
            self._known |= entries
            of_page = self._of_page.setdefault(page_number, [])
            of_page[:] = {key for key in of_page if key in self._known} | entries

    # -- what earlier runs compiled ----------------------------------------------------------------

    def use(self, store: RegionStore) -> None:
        """Have generated code ask for a translation where a region may be known for it."""
        self.store = store
        for place in store.known:
            self.engine.translator.expect(*place)

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
                self._recall_unless_entered(*self._new.pop())
        finally:
            self._new = None

    def _look_again(self) -> None:
        """Code was changed: a system that patches itself ends, mostly, with what an earlier run of
        it had, too, and only what was dropped is translated anew."""
        with self._lock:
            changed, self._changed = self._changed, set()
        arena = self.engine.arena
        for page_number in changed:
            with self.engine.lock:
                for mode in self.engine.translator.modes:
                    codes = arena.codes(page_number, mode)
                    for offset in arena.entries(codes):
                        self._recall_unless_entered((page_number << PAGE_SHIFT) + offset, mode)

    def _recall_unless_entered(self, physical: int, mode: Mode) -> None:
        arena, page_number = self.engine.arena, physical >> PAGE_SHIFT
        record = arena.entry(arena.codes(page_number, mode), physical & (PAGE_SIZE - 1))
        if all(region.record != record for region in arena.regions.get(page_number, ())):
            self._recall(physical, mode)

    def _recall(self, physical: int, mode: Mode) -> bool:
        """Use a region that is known; False if none is."""
        page_number, offset = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
        content = self._content(page_number)
        code = content[offset : offset + MARKED + 1]
        for kept in self.store.candidates(mode, offset, code):
            if self._use(page_number, kept, content):
                self.recalled += 1
                return True
        return False

    def _use(self, page_number: int, kept: KeptRegion, content: bytes) -> bool:
        """Use a region in a page with this content; False if other code stands there."""
        dropped = self.engine.arena.dropped(page_number)
        if dropped > MOST_DROPS or kept.base(content) is None:
            return False
        try:
            self._translate_all(page_number, kept)
        except ArenaFullError:  # a vCPU will meet it, and start over
            return False
        # All of it is watched now, so what it is now counts.
        base = kept.base(self._content(page_number))
        return base is not None and self._install(page_number, dropped, kept, base)

    def _content(self, page_number: int) -> bytes:
        return self.engine.code_bytes(page_number << PAGE_SHIFT, PAGE_SIZE)

    def _translate_all(self, page_number: int, kept: KeptRegion) -> None:
        engine, arena, mode = self.engine, self.engine.arena, kept.mode
        for place, _ in kept.spans:
            codes = arena.codes(page_number, mode)
            if not codes or not arena.entry(codes, place):
                engine.translate(engine.vcpus[0], (page_number << PAGE_SHIFT) + place, mode)
