"""The recompiler: guest code becomes threaded native code (docs/how-the-recompiler-works.md)."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

from vdisk.vm.accel.base import Accelerator
from vdisk.vm.cpu import mmu
from vdisk.vm.cpu.arena import Arena
from vdisk.vm.cpu.codegen import native_code
from vdisk.vm.cpu.core import Core
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.semantics.machine import stale_shape
from vdisk.vm.cpu.translate import Translator
from vdisk.vm.memory import PAGE_SHIFT, PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vdisk.vm.bus import Bus
    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Mode
    from vdisk.vm.memory import GuestMemory

_U64 = ctypes.c_uint64
MMIO_READ = ctypes.CFUNCTYPE(_U64, _U64, _U64, _U64)
MMIO_WRITE = ctypes.CFUNCTYPE(None, _U64, _U64, _U64, _U64)
CODE_WRITTEN = ctypes.CFUNCTYPE(None, _U64, _U64, _U64)

APIC_PAGE = 0xFFF
LONGEST_INSTRUCTION = 15


class LlvmVcpu(Core):
    """A vCPU whose code is native."""

    def __init__(self, engine: LlvmAccelerator, index: int) -> None:
        self.engine = engine
        self._scratch: dict[tuple[bytes, int, Mode], int] = {}
        self._tsc_base = -time.perf_counter_ns()
        super().__init__(index, engine.bus)

    def pointers(self) -> dict[str, int]:
        engine = self.engine
        table = {} if self.mode is None else {"code_table": engine.arena.table_address(self.mode)}
        return {
            **table,
            "memory": engine.memory.host_address,
            "memory_top": engine.memory.top,
            "kinds": engine.memory.kinds_address,
            "code_masks": engine.arena.masks_address,
            "arena": engine.arena.address,
            "vcpu": self.index,
            **engine.callbacks,
        }

    def _enter(self) -> None:
        self.engine.native.enter(self.state.address)

    def _mode_changed(self, mode: Mode) -> None:
        if mode != self.mode:
            self.mode = mode
            self.state.code_table = self.engine.arena.table_address(mode)
            self.flush_code_entries()

    mode: Mode | None = None

    def flush_code_entries(self) -> None:
        """Forget which code arrays pages have: they are a mode's."""
        self.state.flush_tlb()

    def _translate(self) -> None:
        state = self.state
        linear = self.wrap_linear(state.rip + state.cs_base)
        physical = self.walk(linear, mmu.EXECUTE, user=state.cpl == 3)
        assert self.mode is not None
        if not self.engine.translate(physical, self.mode):
            self._translate_crossing(linear)

    def fetch_code(self, linear: int) -> bytes:
        user = self.state.cpl == 3
        physical = self.walk(linear, mmu.EXECUTE, user=user)
        left = PAGE_SIZE - (linear & 0xFFF)
        code = self.engine.code_bytes(physical, min(left, LONGEST_INSTRUCTION))
        if left < LONGEST_INSTRUCTION:
            try:
                second = self.walk(self.wrap_linear(linear + left), mmu.EXECUTE, user=user)
            except GuestFault:
                return code
            code += self.engine.code_bytes(second, LONGEST_INSTRUCTION - left)
        return code

    # -- routines ------------------------------------------------------------------------------

    def walk(self, linear: int, access: int, *, user: bool) -> int:
        physical: int = self.engine.native.routines["walk"](
            self.state.address, linear, access, int(user)
        )
        self._raise_pending()
        return physical

    def _load(self, tlb_set: int, linear: int, size: int) -> int:
        value: int = self.engine.native.routines["slow_load"](
            self.state.address, tlb_set, linear, size
        )
        return value

    def _store(self, tlb_set: int, linear: int, size: int, value: int) -> None:
        self.engine.native.routines["slow_store"](self.state.address, tlb_set, linear, size, value)

    def check_write(self, linear: int, size: int) -> None:
        state = self.state
        self.engine.native.routines["check_write"](state.address, state.tlb_current, linear, size)
        self._raise_pending()

    def arithmetic_flags(self) -> int:
        word: int = self.engine.native.routines["arithmetic_flags"](self.state.address)
        return word

    def timestamp(self) -> int:
        return (time.perf_counter_ns() + self._tsc_base) & 0xFFFF_FFFF_FFFF_FFFF

    def set_timestamp(self, value: int) -> None:
        self._tsc_base = value - time.perf_counter_ns()

    # -- callbacks -----------------------------------------------------------------------------

    def mmio_read(self, physical: int, size: int) -> int:
        """Memory-mapped I/O, of the local APIC or the bus."""
        with self.bus.lock:
            apic, state = self.apic, self.state
            if apic is not None and physical & ~APIC_PAGE == state.apic_base & ~APIC_PAGE:
                return apic.mmio_read(physical & APIC_PAGE, size)
            return self.bus.mmio.read(physical, size)

    def mmio_write(self, physical: int, size: int, value: int) -> None:
        """The counterpart of :meth:`mmio_read`."""
        with self.bus.lock:
            apic, state = self.apic, self.state
            if apic is not None and physical & ~APIC_PAGE == state.apic_base & ~APIC_PAGE:
                apic.mmio_write(physical & APIC_PAGE, size, value)
            else:
                self.bus.mmio.write(physical, size, value)

    # -- instructions in two pages ---------------------------------------------------------------

    def _translate_crossing(self, linear: int) -> None:
        """Execute one instruction that reaches into the next page.

        Its translation is kept by its bytes, which are read each time: what is behind the
        second page may change without notice.
        """
        code = self.fetch_code(linear)
        state, offset = self.state, linear & 0xFFF
        assert self.mode is not None
        key = (code, offset, self.mode)
        record = self._scratch.get(key)
        if record is None:
            left = PAGE_SIZE - offset
            if len(code) <= left:  # it ends in a page that cannot be fetched: fault there
                self.walk(self.wrap_linear(linear + left), mmu.EXECUTE, user=state.cpl == 3)
            record = self._scratch[key] = self.engine.translate_once(code, offset, self.mode)
        state.code_page = linear & ~0xFFF
        self.engine.native.enter_at(state.address, self.engine.arena.record_address(record))
        self._handle_exit()

    def drop_write_entries(self, page_number: int) -> None:
        """Have writes to a physical page noticed from now on."""
        host = self.engine.memory.host_address + (page_number << PAGE_SHIFT)
        self.engine.native.routines["drop_write_entries"](self.state.address, host)


class LlvmAccelerator(Accelerator):
    """The recompiler for one machine."""

    name = "llvm"
    counts_instructions = True

    def __init__(self, memory: GuestMemory, bus: Bus, *, hot: bool = True) -> None:
        self.memory, self.bus, self.hot = memory, bus, hot
        self.native = native_code()
        self.arena = Arena(memory)
        self.translator = Translator(self.arena, self._handlers)
        self._lock = threading.RLock()
        self._vcpus: list[LlvmVcpu] = []
        self._a20 = True
        self._keep: list[object] = []
        self.callbacks = self._make_callbacks()
        self._stale = self._handlers([stale_shape()])[stale_shape()]
        memory.on_dirtied(self._dirtied)
        memory.on_change(lambda *_: self._flush_all())

    def vcpu(self, index: int) -> LlvmVcpu:
        vcpu = LlvmVcpu(self, index)
        self._vcpus.append(vcpu)
        for other in self._vcpus:
            other.count = len(self._vcpus)
        return vcpu

    @property
    def a20(self) -> bool:
        return self._a20

    @a20.setter
    def a20(self, enabled: bool) -> None:
        if enabled != self._a20:
            self._a20 = enabled
            for vcpu in self._vcpus:
                vcpu.state.a20_mask = (1 << 64) - 1 if enabled else ~(1 << 20)
            self._flush_all()

    def _flush_all(self) -> None:
        for vcpu in self._vcpus:
            vcpu.state.flush_tlb()

    # -- callbacks -----------------------------------------------------------------------------

    def _make_callbacks(self) -> dict[str, int]:
        made = {
            "mmio_read": MMIO_READ(self._guard(lambda v, a, s: v.mmio_read(a, s), 0)),
            "mmio_write": MMIO_WRITE(self._guard(lambda v, a, s, x: v.mmio_write(a, s, x), None)),
            "port_read": MMIO_READ(self._guard(lambda v, p, s: v.port_in(p, s), 0)),
            "port_write": MMIO_WRITE(self._guard(lambda v, p, s, x: v.port_out(p, s, x), None)),
            "code_written": CODE_WRITTEN(self._guard(lambda v, a, s: self._dirtied(a, s), None)),
        }
        self._keep.extend(made.values())
        return {
            name: ctypes.cast(function, ctypes.c_void_p).value or 0
            for name, function in made.items()
        }

    def _guard(self, call: Callable[..., object], otherwise: object) -> Callable[..., object]:
        """An error of a device must not be lost in native code: the vCPU raises it at its exit."""

        def guarded(index: int, *arguments: int) -> object:
            vcpu = self._vcpus[index]
            try:
                return call(vcpu, *arguments)
            except Exception as error:
                vcpu.device_failed(error)
                return otherwise

        return guarded

    # -- translation ---------------------------------------------------------------------------

    def _handlers(self, shapes: Iterable[Shape]) -> dict[Shape, int]:
        self.native.prepare(shapes)
        return self.native.handlers

    def code_bytes(self, physical: int, length: int) -> bytes:
        """Bytes to decode; where there is neither RAM nor ROM, ones."""
        if self.memory.kind(physical) is PageKind.MMIO:
            return b"\xff" * length
        return self.memory.read(physical, length)

    def translate(self, physical: int, mode: Mode) -> bool:
        """Translate the block at a physical address; False if it begins with a crossing one."""
        page_number, offset = physical >> PAGE_SHIFT, physical & 0xFFF
        with self._lock:
            code = self.code_bytes(page_number << PAGE_SHIFT, PAGE_SIZE)
            done = self.translator.translate(code, page_number, offset, mode)
            if done and self.arena.mark_code(page_number, offset, self.translator.last_end):
                for vcpu in self._vcpus:
                    vcpu.drop_write_entries(page_number)
            return done

    def translate_once(self, code: bytes, offset: int, mode: Mode) -> int:
        """A block of one instruction that is not entered in any code array."""
        with self._lock:
            return self.translator.translate_once(code, offset, mode)

    def _dirtied(self, gpa: int, length: int) -> None:
        """Memory was written: drop what was translated from it."""
        with self._lock:
            for page in self.arena.touches_code(gpa, length):
                self.arena.drop(page, self._stale)


def accelerator(memory: GuestMemory, bus: Bus) -> LlvmAccelerator:
    """The recompiler as a machine takes it."""
    return LlvmAccelerator(memory, bus)
