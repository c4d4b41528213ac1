"""Run cases on an accelerator as a program of ring 3, where :mod:`~tests.tools.host_cpu` runs
them as a process: the same addresses, rights, selectors and page attributes.

::

    0x1000  page tables    they map all this at SYSTEM, for supervisors, and the arena at ARENA
    0x7000  GDT (as Linux has it), LDT (16-bit segments of the arena), TSS, IDT
    0xA000  a stub of HLT for each vector
    0x10000 top of the ring 0 stack
    0x100000 the arena

A case's last HLT is a #GP in ring 3, which like every exception ends in its vector's stub, whose
HLT makes :meth:`Vcpu.run` come back.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.tools.cpu_state import (
    ARENA,
    ARENA_SIZE,
    CODE,
    CODE_SIZE,
    DATA,
    DATA_SIZE,
    HLT,
    IF,
    LONGEST_CODE,
    PAGE,
    READ_ONLY,
    RF,
    WINDOW,
    WINDOW_SIZE,
    WITH_ERROR_CODE,
    Outcome,
    State,
    base_of,
    ended,
)
from vdisk.vm.accel.base import (
    DescriptorTable,
    Registers,
    Segment,
    SystemRegisters,
    VcpuExit,
)
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tools.cpu_state import Case
    from vdisk.vm.accel.base import Accelerator

MEMORY_SIZE = 0x20_0000
SYSTEM = 0x6000_0000
"""Linear address of guest physical address 0: where no case looks, for a host has nothing there."""
PML4, PDPT, DIRECTORY, ARENA_TABLE = range(0x1000, 0x5000, 0x1000)
GDT, LDT, TSS, IDT, STUBS, STACK = 0x7000, 0x7800, 0x7C00, 0x8000, 0xA000, 0x1_0000
ARENA_GPA = 0x10_0000

PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 1, 2, 4, 0x80, 1 << 63
CR0 = 0x8005_0033  # PG AM WP NE ET MP PE
CR4 = 0x620  # OSXMMEXCPT OSFXSR PAE
EFER = 0xD01  # NXE LMA LME SCE
BUDGET = 20_000
"""Instructions until a case is taken to loop; the longest REP is far below."""

KERNEL_CODE, KERNEL_DATA = (
    Segment(0x10, 0, 0xFFFFFFFF, 0xA09B),
    Segment(0x18, 0, 0xFFFFFFFF, 0xC093),
)
USER_DATA = Segment(0x2B, 0, 0xFFFFFFFF, 0xC0F3)
CODES = {
    64: Segment(0x33, 0, 0xFFFFFFFF, 0xA0FB),
    32: Segment(0x23, 0, 0xFFFFFFFF, 0xC0FB),
    16: Segment(0x07, ARENA, 0xFFFF, 0x00FB),
}
DATA16 = Segment(0x0F, ARENA, 0xFFFF, 0x00F3)
DATAS = {64: USER_DATA, 32: USER_DATA, 16: DATA16}
TASK = Segment(0x40, SYSTEM + TSS, 0x67, 0x008B)
LOCAL = Segment(0x50, SYSTEM + LDT, 15, 0x0082)
NOTHING = Segment(0, 0, 0xFFFFFFFF, 0xC0F3)
"""FS and GS: null selectors."""


def descriptor(segment: Segment) -> bytes:
    """Its eight bytes in a table."""
    limit, attributes = segment.limit, segment.attributes
    if attributes & 0x8000:
        limit >>= 12
    word = limit & 0xFFFF | (segment.base & 0xFFFFFF) << 16 | (attributes & 0xF0FF) << 40
    return (word | (limit >> 16 & 0xF) << 48 | (segment.base >> 24 & 0xFF) << 56).to_bytes(
        8, "little"
    )


def system_descriptor(segment: Segment) -> bytes:
    """The sixteen bytes of a TSS or LDT in long mode."""
    return descriptor(segment) + (segment.base >> 32).to_bytes(8, "little")


def gate(offset: int, selector: int, dpl: int) -> bytes:
    """A 64-bit interrupt gate."""
    low, middle, high = offset & 0xFFFF, offset >> 16 & 0xFFFF, offset >> 32
    return struct.pack("<HHBBHII", low, selector, 0, 0x8E | dpl << 5, middle, high, 0)


class GuestCpu:
    """One vCPU of an accelerator with a small system around it."""

    def __init__(self, make: Callable[[GuestMemory, Bus], Accelerator]) -> None:
        self.memory = GuestMemory(MEMORY_SIZE)
        self._map_pages()
        self._fill_tables()
        self.accelerator = make(self.memory, Bus())
        self.vcpu = self.accelerator.vcpu(0)
        self._systems = {mode: self._system(mode) for mode in CODES}

    def close(self) -> None:
        """Release the accelerator."""
        self.vcpu.close()
        self.accelerator.close()

    # -- the system --------------------------------------------------------------------------

    def _entry(self, table: int, index: int, value: int) -> None:
        self.memory.write(table + 8 * index, value.to_bytes(8, "little"))

    def _map_pages(self) -> None:
        table = PRESENT | WRITABLE | USER
        self._entry(PML4, 0, PDPT | table)
        self._entry(PDPT, ARENA >> 30, DIRECTORY | table)
        self._entry(DIRECTORY, SYSTEM >> 21 & 511, PRESENT | WRITABLE | LARGE)
        self._entry(DIRECTORY, ARENA >> 21 & 511, ARENA_TABLE | table)
        self._map(CODE, CODE_SIZE, table)
        self._map(DATA, DATA_SIZE, table | NO_EXECUTE)
        self._map(READ_ONLY, PAGE, PRESENT | USER | NO_EXECUTE)
        self.memory.write(ARENA_GPA + CODE, bytes([HLT]) * CODE_SIZE)

    def _map(self, start: int, size: int, attributes: int) -> None:
        for offset in range(start, start + size, PAGE):
            page = (ARENA + offset) >> 12 & 511
            self._entry(ARENA_TABLE, page, ARENA_GPA + offset | attributes)

    def _fill_tables(self) -> None:
        write = self.memory.write
        for segment in (KERNEL_CODE, KERNEL_DATA, CODES[32], USER_DATA, CODES[64]):
            write(GDT + (segment.selector & ~7), descriptor(segment))
        for segment in (TASK, LOCAL):
            write(GDT + segment.selector, system_descriptor(segment))
        for segment in (CODES[16], DATA16):
            write(LDT + (segment.selector & ~7), descriptor(segment))
        write(TSS + 4, (SYSTEM + STACK).to_bytes(8, "little"))
        write(TSS + 102, (0x68).to_bytes(2, "little"))  # no I/O permission bitmap
        for vector in range(256):
            stub = SYSTEM + STUBS + 16 * vector
            write(IDT + 16 * vector, gate(stub, 0x10, 3 if vector in {3, 4} else 0))
            write(STUBS + 16 * vector, bytes([HLT]))

    def _system(self, mode: int) -> SystemRegisters:
        data = DATAS[mode]
        system = self.vcpu.get_system_registers()
        system.es = system.ss = system.ds = data
        system.cs = CODES[mode]
        system.fs = system.gs = NOTHING
        system.tr, system.ldtr = TASK, LOCAL
        system.gdt = DescriptorTable(SYSTEM + GDT, 0x5F)
        system.idt = DescriptorTable(SYSTEM + IDT, 0xFFF)
        system.cr0, system.cr3, system.cr4, system.efer = CR0, PML4, CR4, EFER
        return system

    # -- cases -------------------------------------------------------------------------------

    def run_one(self, case: Case) -> Outcome:
        """Execute a case; RuntimeError if the vCPU comes back in a way that no case explains."""
        registers = case.state.registers
        offset = registers.rip + base_of(case.mode) - ARENA
        room = min(LONGEST_CODE, CODE + CODE_SIZE - offset)
        write = self.memory.write
        write(ARENA_GPA + offset, case.code.ljust(LONGEST_CODE, bytes([HLT]))[:room])
        write(ARENA_GPA + WINDOW, case.state.memory)
        vcpu = self.vcpu
        vcpu.set_system_registers(self._systems[case.mode])
        vcpu.set_fpu(case.state.fpu)
        vcpu.set_registers(
            Registers(list(registers.gprs), registers.rip, registers.rflags | IF | 2)
        )
        result = vcpu.run(BUDGET)
        outcome = self._outcome(case, result)
        write(ARENA_GPA + offset, bytes([HLT]) * room)
        return outcome

    def _outcome(self, case: Case, result: VcpuExit) -> Outcome:
        registers = self.vcpu.get_registers()
        memory = self.memory.read(ARENA_GPA + WINDOW, WINDOW_SIZE)
        state = State(registers, self.vcpu.get_fpu(), memory)
        vector = (registers.rip - 1 - SYSTEM - STUBS) // 16
        if result is not VcpuExit.HLT or not 0 <= vector < 256:
            if result is VcpuExit.INTERRUPTED:
                return Outcome(state, timed_out=True)
            raise RuntimeError(f"{result} at {registers.rip:#x} ({self.vcpu.error})")
        error = self._unwind(registers, vector)
        if vector == 13 and ended(case, registers.rip):
            return Outcome(state)
        address = self.vcpu.get_system_registers().cr2 if vector == 14 else 0
        return Outcome(state, vector, error, address)

    def _unwind(self, registers: Registers, vector: int) -> int:
        """Take the interrupted registers from the stack; gives the error code."""
        size = 48 if vector in WITH_ERROR_CODE else 40
        frame = self.memory.read(registers.gprs[4] - SYSTEM, size)
        error = int.from_bytes(frame[:8], "little") if size == 48 else 0
        rip, _, flags, rsp, _ = struct.unpack("<5Q", frame[-40:])
        registers.rip, registers.rflags, registers.gprs[4] = rip, flags & ~(RF | IF), rsp
        return error


assert ARENA_GPA + ARENA_SIZE <= MEMORY_SIZE
