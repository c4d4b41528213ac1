"""Which code is worth the second tier, and making it while the guest goes on.

A sampler interrupts the vCPUs every now and then and looks where they are: a block that is met
:data:`THRESHOLD` times is hot.  So code that nobody compiles pays nothing, not even a counter.
A worker gathers the region around a hot block, has LLVM compile it (which does not hold the GIL),
and makes it the handler of the block's first record.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from vdisk.vm.cpu.arena import HotRegion
from vdisk.vm.cpu.compiler import CompilerProcess
from vdisk.vm.cpu.hot import Region, region_module
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from vdisk.vm.accel.llvm import LlvmAccelerator
    from vdisk.vm.cpu.decode import Mode

THRESHOLD = 2
PERIOD = 0.001
"""Seconds between samples: an interruption costs some ten microseconds."""
IDLE_PERIOD = 0.01
CALM = 1.0
"""Seconds without a newly hot block until samples become rare."""
MOST_DROPS = 32
"""A page whose code was changed more often stays with the first tier."""
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
        self.compiled = 0
        self._counts: Counter[tuple[int, Mode]] = Counter()
        self._known: set[tuple[int, Mode]] = set()
        self._of_page: dict[int, list[tuple[int, Mode]]] = {}
        self._orders: queue.SimpleQueue[tuple[int, Mode] | None] = queue.SimpleQueue()
        self._last_found = time.monotonic()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # of what is known and counted
        self._compiler: CompilerProcess | None = None

    def start(self) -> None:
        """Begin to look and to compile; does nothing the second time."""
        if self._threads or self.eager:
            return
        self._compiler = CompilerProcess()
        for name, target in (("vdisk-sampler", self._sample), ("vdisk-compiler", self._work)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End both threads."""
        self._stopped.set()
        self._orders.put(None)
        if self._compiler is not None:
            self._compiler.close()  # the worker waits for its answer
        for thread in self._threads:
            thread.join()

    # -- looking ---------------------------------------------------------------------------------

    def _sample(self) -> None:
        while True:
            calm = time.monotonic() - self._last_found > CALM
            if self._stopped.wait(IDLE_PERIOD if calm else PERIOD):
                return
            for vcpu in self.engine.vcpus:
                vcpu.sample()

    def found(self, physical: int, mode: Mode) -> None:
        """A vCPU is about to execute the block at a physical address."""
        key = (physical, mode)
        with self._lock:
            if key in self._known or self.compiled >= MOST_REGIONS:
                return
            if len(self._counts) >= MOST_COUNTED:
                self._counts.clear()
            self._counts[key] += 1
            if self._counts[key] < THRESHOLD:
                return
            self._known.add(key)
            self._of_page.setdefault(physical >> PAGE_SHIFT, []).append(key)
        self._last_found = time.monotonic()
        self._orders.put(key)

    def forget(self, page_number: int) -> None:
        """What was made from a page is gone: it may become hot again."""
        with self._lock:
            for key in self._of_page.pop(page_number, ()):
                self._known.discard(key)

    def forget_all(self) -> None:
        """Nothing is left of what was translated."""
        with self._lock:
            self._known.clear()
            self._of_page.clear()
            self._counts.clear()

    # -- compiling -------------------------------------------------------------------------------

    def _work(self) -> None:
        while (order := self._orders.get()) is not None and not self._stopped.is_set():
            self.compile(*order)

    def compile(self, physical: int, mode: Mode) -> bool:
        """Compile the region around a block; False where there is none (any more)."""
        engine, arena = self.engine, self.engine.arena
        page_number, offset = physical >> PAGE_SHIFT, physical & (PAGE_SIZE - 1)
        with engine.lock:
            page = arena.pages.get(page_number)
            if page is None or mode not in page.arrays or page.dropped > MOST_DROPS or mode.step:
                return False
            codes, dropped = page.arrays[mode], page.dropped
            region = Region(arena, engine.translator.decoder(mode), mode, codes, offset)
            if not region.gather(engine.code_bytes(page_number << PAGE_SHIFT, PAGE_SIZE)):
                return False
            entry = arena.entry(codes, offset)
            symbol = f"hot_{page_number:x}_{offset:x}_{self.compiled}"
            text = region_module(region, symbol)
        address = self._make(text, symbol)
        if not address:
            return False
        with engine.lock:
            if page.dropped != dropped or arena.entry(codes, offset) != entry:
                return False
            spans = tuple((plan.offset, plan.end) for plan in region.blocks.values())
            page.regions.append(HotRegion(entry, arena.handler(entry), spans))
            arena.set_handler(entry, address)
            self.compiled += 1
        return True

    def _make(self, text: str, symbol: str) -> int:
        """Compile and load a region; 0 where that is not possible (the machine is closing)."""
        native = self.engine.native
        if self._compiler is None:
            return native.compile_region(text, symbol)
        code = self._compiler.compile(text)
        return native.link_region(code, symbol) if code else 0
