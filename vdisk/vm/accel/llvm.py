"""The recompiler: guest code becomes threaded native code (docs/how-the-recompiler-works.md)."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from struct import Struct
from typing import TYPE_CHECKING

from vdisk.vm.accel.hotspots import Hotspots
from vdisk.vm.accel.keeper import Keeper
from vdisk.vm.accel.software import SoftwareAccelerator
from vdisk.vm.accel.software_vcpu import SoftwareVcpu
from vdisk.vm.cpu import paging
from vdisk.vm.cpu.codegen import native_code
from vdisk.vm.cpu.compiler import Level
from vdisk.vm.cpu.events import NO_VECTOR
from vdisk.vm.cpu.gather import TOTALS
from vdisk.vm.cpu.known_store import InstructionStore
from vdisk.vm.memory import Gathered
from vdisk.vm.ranges import LANE, Ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Progress = Callable[[int, int], None]

    from vdisk.vm.accel.base import VcpuExit
    from vdisk.vm.bus import Bus
    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.memory import GuestMemory


MOST_GATHERED = 1024
"""Descriptors of one table: as many as devices take."""
_TOTALS = Struct("<QQ")
_U64 = ctypes.c_uint64
MMIO_READ = ctypes.CFUNCTYPE(_U64, _U64, _U64, _U64)
MMIO_WRITE = ctypes.CFUNCTYPE(None, _U64, _U64, _U64, _U64)
ACKNOWLEDGE = ctypes.CFUNCTYPE(_U64, _U64)
CODE_WRITTEN = ctypes.CFUNCTYPE(None, _U64, _U64, _U64)


class LlvmVcpu(SoftwareVcpu):
    """A vCPU whose code is native."""

    engine: LlvmAccelerator

    def pointers(self) -> dict[str, int]:
        engine = self.engine
        return {
            **super().pointers(),
            "memory": engine.memory.host_address,
            "kinds": engine.memory.kinds_address,
            "code_masks": engine.arena.masks_address,
            "arena": engine.arena.base,
            **engine.callbacks,
        }

    def execute(self, record: int) -> None:
        if record:
            self.engine.native.enter_at(self.state.address, record)
        else:
            self.engine.native.enter(self.state.address)

    def _interrupted(self, region: int) -> None:
        hotspots, state = self.engine.hotspots, self.state
        if hotspots is not None and not hotspots.eager and self.mode is not None:
            linear = self.wrap_linear(state.rip + state.cs_base)
            physical = self.routine("walk", linear, paging.EXECUTE, int(state.cpl == 3))
            if state.pending:
                state.pending = 0  # the fault will come when the code is executed
            else:
                hotspots.found(physical, self.mode, region)

    def run(self, budget: int | None = None) -> VcpuExit:
        self.engine.start()
        return super().run(budget)

    def routine(self, name: str, *arguments: int | bytes) -> int:
        return self.engine.native.routines[name](self.state.address, *arguments) or 0

    def remember_code_page(self, linear: int) -> None:
        self.routine("find_code_page", self.state.tlb_current, linear)


class LlvmAccelerator(SoftwareAccelerator):
    """The recompiler for one machine."""

    name = "llvm"

    def __init__(
        self,
        memory: GuestMemory,
        bus: Bus,
        *,
        hot: bool = True,
        eager: bool = False,
        level: Level = Level.BEST,
        progress: Progress | None = None,
        bits: int = 64,
    ) -> None:
        """``hot``: with the second tier; ``eager`` (for tests): with nothing but it, at ``level``.

        ``progress``: in a first run, is told how much of how much is compiled that it waits for.
        ``bits``: of the guest's kernel, as far as that is known: what is compiled ahead.
        """
        self.native = native_code(progress, bits)
        self.hotspots = Hotspots(self, eager=level if eager else None) if hot or eager else None
        self._keep: list[object] = []
        room = ctypes.create_string_buffer(TOTALS + 2 * MOST_GATHERED * LANE)
        self._gathered, self._gathered_at = memoryview(room).cast("B"), ctypes.addressof(room)
        self.callbacks = self._make_callbacks()
        super().__init__(memory, bus)
        memory.gather = self._gather
        store = InstructionStore(self.native.directory, self.native.digest)
        store.load(self.translator)
        self._keeper = Keeper(store, self.translator, self.lock)
        if self.hotspots is not None:
            self.hotspots.use(self.hotspots.store)

    def vcpu(self, index: int) -> LlvmVcpu:
        vcpu = LlvmVcpu(self, index)
        self.add(vcpu)
        return vcpu

    def handlers(self, shapes: Iterable[Shape]) -> dict[Shape, int]:
        self.native.prepare(shapes)
        return self.native.handlers

    def may_touch_code(self, ranges: Ranges) -> bool:
        return self.vcpus[0].routine("touches_code", ranges.data, len(ranges)) != 0

    def _gather(self, table: int, count: int) -> Gathered | None:
        if count > MOST_GATHERED:
            return None
        memory, room = self.memory, self._gathered
        place, end = memory.host_address + table, memory.whole_to
        found = self.vcpus[0].routine("gather", place, count, self._gathered_at, end)
        if not found:
            return None
        total, written = _TOTALS.unpack_from(room)
        read, size = (found - 1) * LANE, count * LANE
        lanes = bytes(room[TOTALS : TOTALS + 2 * size])
        readable = Ranges(lanes[:read], total - written, lanes[size : size + read])
        writable = Ranges(lanes[read:size], written, lanes[size + read :])
        return Gathered(readable, writable, total)

    @property
    def direct(self) -> bool:
        return self.hotspots is None or not self.hotspots.eager

    def translated(self, physical: int, mode: Mode) -> None:
        if self.hotspots is None:
            return
        if self.hotspots.eager:
            self.hotspots.compile(physical, mode)
        else:
            self.hotspots.recall(physical, mode)

    @contextmanager
    def arena_locked(self) -> Iterator[None]:
        """Have native code wait for what Python does to the tables: a few assignments, no more."""
        vcpu = self.vcpus[0]
        vcpu.routine("lock_arena")
        try:
            yield
        finally:
            vcpu.routine("unlock_arena")

    def dropped(self, page_number: int, writer: SoftwareVcpu | None) -> None:
        for vcpu in self.vcpus:
            vcpu.state.code_dropped = 1
            if vcpu is not writer:  # which looks after its store
                vcpu.sample()
        if self.hotspots is not None:
            self.hotspots.forget(page_number)

    def started_over(self) -> None:
        if self.hotspots is not None:
            self.hotspots.forget_all()

    def start(self) -> None:
        """Begin with what goes on beside the guest; does nothing the second time."""
        with self.lock:
            self._keeper.start()
            if self.hotspots is not None:
                self.hotspots.start()

    def close(self) -> None:
        if self.hotspots is not None:
            self.hotspots.close()
        self._keeper.close()

    def _make_callbacks(self) -> dict[str, int]:
        made = {
            "mmio_read": MMIO_READ(self._guard(LlvmVcpu.mmio_read, 0)),
            "mmio_write": MMIO_WRITE(self._guard(LlvmVcpu.mmio_write, None)),
            "port_read": MMIO_READ(self._guard(LlvmVcpu.port_in, 0)),
            "port_write": MMIO_WRITE(self._guard(LlvmVcpu.port_out, None)),
            "acknowledge": ACKNOWLEDGE(self._guard(LlvmVcpu.acknowledge, NO_VECTOR)),
            "code_written": CODE_WRITTEN(
                self._guard(lambda v, a, s: self.dirtied([(a, s)], v), None)
            ),
        }
        self._keep.extend(made.values())
        return {
            name: ctypes.cast(function, ctypes.c_void_p).value or 0
            for name, function in made.items()
        }

    def _guard(self, call: Callable[..., object], otherwise: object) -> Callable[..., object]:
        """An error of a device must not be lost in native code: the vCPU raises it at its exit."""

        def guarded(index: int, *arguments: int) -> object:
            vcpu = self.vcpus[index]
            try:
                return call(vcpu, *arguments)
            except Exception as error:
                vcpu.device_failed(error)
                return otherwise

        return guarded
