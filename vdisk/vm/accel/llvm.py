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
        self._start_at = 0  # the record of such a translation, when it is to be executed
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
            "tsc_offset": -time.perf_counter_ns(),
            **engine.callbacks,
        }

    def _enter(self) -> None:
        if self._start_at:
            start, self._start_at = self._start_at, 0
            self.engine.native.enter_at(self.state.address, start)
        else:
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

    def _deliver_fast(self, vector: int, error: int | None) -> bool:
        if self.state.mode != 64:
            return False
        done: int = self.engine.native.routines["deliver_long"](
            self.state.address, vector, error or 0, int(error is not None)
        )
        return bool(done)

    def timestamp(self) -> int:
        state = self.state
        passed = -state.budget if state.tsc_virtual else time.perf_counter_ns()
        return (state.tsc_offset + passed) & 0xFFFF_FFFF_FFFF_FFFF

    def set_timestamp(self, value: int) -> None:
        state = self.state
        passed = -state.budget if state.tsc_virtual else time.perf_counter_ns()
        state.tsc_offset = value - passed

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
        """Make code for an instruction that reaches into the next page.

        It begins with a record that compares the second page's code array with the one it was
        made for; where that fails (the TLB has forgotten the page, or another one is there now)
        native code comes back here.
        """
        assert self.mode is not None
        user, following = self.state.cpl == 3, self.wrap_linear((linear | 0xFFF) + 1)
        first = self.walk(linear, mmu.EXECUTE, user=user)
        second = self.walk(following, mmu.EXECUTE, user=user)
        if self.engine.translate_crossing(first, second, self.mode):
            self.engine.native.routines["find_code_page"](
                self.state.address, self.state.tlb_current, following
            )
            return
        code = self.fetch_code(linear)
        offset = linear & 0xFFF
        key = (code, offset, self.mode)
        record = self._scratch.get(key)
        if record is None:
            record = self._scratch[key] = self.engine.translate_once(code, offset, self.mode)
        self.state.code_page = linear & ~0xFFF
        self._start_at = self.engine.arena.record_address(record)

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
            if done:
                self._protect(page_number, offset, self.translator.last_end)
            return done

    def translate_crossing(self, first: int, second: int, mode: Mode) -> bool:
        """The block at ``first`` is an instruction that goes on at ``second``; False if the one
        that is there already was made with another second page."""
        with self._lock:
            page_number, offset = first >> PAGE_SHIFT, first & 0xFFF
            codes = self.arena.codes(page_number, mode)
            guard = self.arena.codes_address(self.arena.codes(second >> PAGE_SHIFT, mode))
            present = self.arena.entry(codes, offset)
            if present:
                return self.arena.wide(present) == guard
            code = self.code_bytes(first, PAGE_SIZE - offset)
            code += self.code_bytes(second, LONGEST_INSTRUCTION - len(code))
            block = self.translator.translate_crossing(
                code, (page_number, second >> PAGE_SHIFT), offset, mode, guard
            )
            self._protect(page_number, offset, PAGE_SIZE)
            self._protect(second >> PAGE_SHIFT, 0, max(block - PAGE_SIZE, 1))
            return True

    def _protect(self, page_number: int, start: int, end: int) -> None:
        """Have writes to these bytes of a page noticed from now on."""
        if self.arena.mark_code(page_number, start, end):
            for vcpu in self._vcpus:
                vcpu.drop_write_entries(page_number)

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
