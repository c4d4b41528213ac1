"""The reference interpreter: the same translations, with handlers in Python.

It is slow (some ten thousand instructions a second) and simple: what native code does wrongly, it
shows.  Addresses in the state are offsets here: guest memory and the arena begin at 0.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vdisk.vm.accel.software import SoftwareAccelerator
from vdisk.vm.accel.software_vcpu import SoftwareVcpu
from vdisk.vm.cpu import paging, python_runtime, python_sse, python_x87
from vdisk.vm.cpu.builder import Value
from vdisk.vm.cpu.context import Shape, write_handler
from vdisk.vm.cpu.exits import Exit
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.native import KNOWN
from vdisk.vm.cpu.python_builder import PythonBuilder
from vdisk.vm.cpu.routines import ROUTINES
from vdisk.vm.cpu.semantics import load_all
from vdisk.vm.cpu.state import CODE_TLB, TLB_ENTRIES, TLB_ENTRY, TLB_NOTES
from vdisk.vm.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

SIGN = 1 << 63
_compiled: dict[str, CodeType] = {}
"""Of all handlers and routines so far, by name: the same for every machine."""


class _Left(Exception):
    """A handler leaves to Python."""


def _define(name: str, parameters: str, body: str) -> CodeType:
    code = _compiled.get(name)
    if code is None:
        text = f"def {name}({parameters}):\n{body}\n"
        code = _compiled[name] = compile(text, f"<{name}>", "exec")
    return code


def _routine_code(name: str) -> CodeType:
    called = ROUTINES[name]
    b = PythonBuilder(KNOWN)
    arguments = [Value(b, kind, f"a{number}") for number, kind in enumerate(called.arguments)]
    called.write(b, *arguments)
    return _define(name, ", ".join(["S", *(item.text for item in arguments)]), b.body())


def _handler_code(shape: Shape) -> CodeType:
    b = PythonBuilder(KNOWN)
    write_handler(b, shape)
    return _define(shape.symbol, "S, ins", b.body())


class InterpVcpu(SoftwareVcpu):
    """A vCPU that Python executes.  It is also the ``E`` that handlers call."""

    engine: InterpAccelerator

    def __init__(self, engine: InterpAccelerator, index: int) -> None:
        memory = engine.memory
        self.names: dict[str, Any] = {
            **python_runtime.NAMES,
            **python_sse.NAMES,
            **python_x87.NAMES,
            "M": memory.everything(),
            "A": engine.arena.bytes,
            "E": _Engine(self),
        }
        for name in ROUTINES:
            exec(_routine_code(name), self.names)
        self.names["find_code_page"] = self._find_for_handler
        self._handlers: dict[int, Callable[[memoryview, int], int]] = {}
        super().__init__(engine, index)

    def pointers(self) -> dict[str, int]:
        return {**super().pointers(), "memory": 0, "arena": self.engine.arena.base}

    def routine(self, name: str, *arguments: int | bytes) -> int:
        return self.names[name](self.state.view, *arguments) or 0

    def remember_code_page(self, linear: int) -> None:
        self.find_code_page(linear)

    # -- running ---------------------------------------------------------------------------------

    def execute(self, record: int) -> None:
        """Only one vCPU executes a record at a time, so whatever is in one is atomic."""
        view, arena, turn = self.state.view, self.engine.arena, self.engine.turn
        self.state.simd_unmasked = python_sse.unmasked(self.state.mxcsr)
        try:
            if not record:
                state = self.state
                record = self.goto(self.wrap_code(state.rip + state.cs_base), 0)
            while True:
                number = int.from_bytes(arena.bytes[record : record + 8], "little")
                handler = self._handlers.get(number) or self._make(number)
                with turn:
                    record = handler(view, record)
        except _Left:
            return

    def _make(self, number: int) -> Callable[[memoryview, int], int]:
        shape = self.engine.shapes[number]
        exec(_handler_code(shape), self.names)
        made: Callable[[memoryview, int], int] = self.names[shape.symbol]
        self._handlers[number] = made
        return made

    def wrap_code(self, linear: int) -> int:
        """A code address as wide as the mode's instruction pointers."""
        return linear & (0xFFFF_FFFF_FFFF_FFFF if self.state.mode == 64 else 0xFFFF_FFFF)

    # -- ends of records, as in vdisk.vm.cpu.native ------------------------------------------------

    def _exit(self, linear: int, reason: int) -> None:
        state = self.state
        state.rip = self.wrap_code(linear - state.cs_base)
        state.exit_reason = reason
        raise _Left

    def _field(self, record: int, offset: int, size: int) -> int:
        return int.from_bytes(
            self.engine.arena.bytes[record + offset : record + offset + size], "little"
        )

    def linear_of(self, record: int) -> int:
        """The linear address of a record's instruction."""
        return self.state.code_page + self._field(record, 24, 2)

    def spend(self, count: int) -> bool:
        """Count instructions; True if it is time to leave."""
        state = self.state
        state.budget -= count
        return bool((state.budget | state.kick) & SIGN)

    def goto(self, linear: int, spent: int) -> int:
        """Find the record for a linear address."""
        if self.spend(spent):
            self._exit(linear, Exit.INTERRUPTED)
        try:
            codes = self.find_code_page(linear)
        except GuestFault as fault:
            self._describe(fault)
            self.state.budget -= 1
            self._exit(linear, Exit.FAULT)
        arena = self.engine.arena
        entry = arena.entry(codes, linear & 0xFFF) if codes else 0
        record = arena.record_address(entry)
        if not entry:
            record = self.routine("translate_here", self.state.tlb_current, linear)
        if not record:
            self._exit(linear, Exit.TRANSLATE)
        self.state.code_page = linear & ~0xFFF
        return record

    def _describe(self, fault: GuestFault) -> None:
        state = self.state
        state.fault_vector, state.fault_error = fault.vector, fault.error
        state.fault_address = fault.address

    def _find_for_handler(self, _state: memoryview, _tlb: int, linear: int) -> int:
        """As the routine of this name in native code: ``pending`` is set where it faults."""
        try:
            return self.find_code_page(linear)
        except GuestFault as fault:
            self._describe(fault)
            self.state.pending = 1
            return 0

    def find_code_page(self, linear: int) -> int:
        """Where the page's code array is (0: none), kept in the TLB."""
        state, page = self.state, linear & ~0xFFF
        place = state.tlb_current + CODE_TLB + ((linear >> 12) % TLB_ENTRIES) * TLB_ENTRY
        if int.from_bytes(state.view[place : place + 8], "little") == page:
            return int.from_bytes(state.view[place + 8 : place + 16], "little")
        physical = self.walk(linear, paging.EXECUTE, user=state.cpl == 3)
        arena, mode = self.engine.arena, self.mode
        assert mode is not None
        outside = physical >= self.engine.memory.top
        codes = 0 if outside else arena.codes(physical >> PAGE_SHIFT, mode)
        if not codes:
            return 0
        state.tlb_made = TLB_NOTES + 1
        state.view[place : place + 8] = page.to_bytes(8, "little")
        state.view[place + 8 : place + 16] = codes.to_bytes(8, "little")
        return codes


class _Engine:
    """What handlers call by the name ``E``."""

    def __init__(self, vcpu: InterpVcpu) -> None:
        self.vcpu = vcpu
        self.goto = vcpu.goto
        self.timestamp = vcpu.timestamp

    def follow(self, record: int, spent: int) -> int:
        if self.vcpu.spend(spent):
            self.vcpu._exit(self.vcpu.linear_of(record), Exit.INTERRUPTED)
        return record

    def again(self, record: int, spent: int) -> int:
        before = self.vcpu._field(record, 30, 1) - 1  # a new block would begin here
        if self.vcpu.spend(spent + before):
            self.vcpu._exit(self.vcpu.linear_of(record), Exit.INTERRUPTED)
        self.vcpu.state.budget += before
        return record

    def fault(self, record: int) -> None:
        vcpu = self.vcpu
        vcpu.state.pending = 0
        vcpu.state.budget -= vcpu._field(record, 30, 1)
        vcpu._exit(vcpu.linear_of(record), Exit.FAULT)

    def leave(self, record: int, after: bool) -> None:
        vcpu = self.vcpu
        vcpu.state.budget -= vcpu._field(record, 30, 1) - (not after)
        length = vcpu._field(record, 26, 1) if after else 0
        vcpu._exit(vcpu.linear_of(record) + length, vcpu.state.exit_reason)

    def kinds(self, page: int) -> int:
        return int(self.vcpu.engine.memory.kind(page << PAGE_SHIFT))

    def code_masks(self, page: int) -> int:
        return self.vcpu.engine.arena.mask(page)

    def acquire(self) -> None:
        self.vcpu.engine.arena_lock.acquire()

    def release(self) -> None:
        self.vcpu.engine.arena_lock.release()

    def mmio_read(self, _: int, physical: int, size: int) -> int:
        return self.vcpu.mmio_read(physical, size)

    def mmio_write(self, _: int, physical: int, size: int, value: int) -> None:
        self.vcpu.mmio_write(physical, size, value)

    def port_read(self, _: int, port: int, size: int) -> int:
        return self.vcpu.port_in(port, size)

    def port_write(self, _: int, port: int, size: int, value: int) -> None:
        self.vcpu.port_out(port, size, value)

    def code_written(self, _: int, physical: int, size: int) -> None:
        self.vcpu.engine.dirtied([(physical, size)], self.vcpu)


class InterpAccelerator(SoftwareAccelerator):
    """The interpreter for one machine."""

    name = "interp"

    def __init__(self, memory: GuestMemory, bus: Bus) -> None:
        load_all()
        self._numbers: dict[Shape, int] = {}
        self.shapes: list[Shape] = [Shape("undefined")]
        self.turn = threading.Lock()
        self.arena_lock = threading.Lock()
        super().__init__(memory, bus)
        self.arena.base = 0

    def vcpu(self, index: int) -> InterpVcpu:
        vcpu = InterpVcpu(self, index)
        self.add(vcpu)
        return vcpu

    def handlers(self, shapes: Iterable[Shape]) -> dict[Shape, int]:
        """Handlers are numbers here; each vCPU has its own functions for them."""
        for shape in shapes:
            if shape not in self._numbers:
                self._numbers[shape] = len(self.shapes)
                self.shapes.append(shape)
        return self._numbers
