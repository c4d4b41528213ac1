"""Interrupts that wait while generated code runs: taken behind the block, by it or by Python."""

from __future__ import annotations

import struct
from collections import deque

import pytest

from tests.tools.engines import ENGINES
from vdisk.vm.accel.base import DescriptorTable, Registers, Segment, VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

CODE, GDT, IDT, STACK = 0x1000, 0x3000, 0x4000, 0x9000
HANDLER, OTHER_HANDLER, NOT_PRESENT_HANDLER = 0x2000, 0x2100, 0x2200
PML4, PDPT, DIRECTORY = 0x10000, 0x11000, 0x12000
VECTOR, OTHER, NOT_PRESENT = 0x30, 0x41, 11
PORT = 0x80
INTERRUPT_GATE, TRAP_GATE, ABSENT_GATE = 0x8E, 0x8F, 0x0E
TIMES = 500
IF = 1 << 9
OUT, HLT = "e680", "f4"
LOOP = "b9f4010000 e680 ffc3 ffc9 75f8 fa f4"  # 500 times: OUT, INC EBX, DEC ECX; then CLI, HLT
RETURN = {32: "cf", 64: "48cf"}
COUNT = "ffc2"  # INC EDX


class Source:
    """What waits for the processor, in order; it is told as a local APIC would tell it."""

    def __init__(self, vcpu) -> None:
        self.vcpu = vcpu
        self.waiting: deque[int] = deque()

    def pending(self) -> bool:
        return bool(self.waiting)

    def acknowledge(self) -> int:
        return self.waiting.popleft()

    def send(self, *vectors: int) -> None:
        self.waiting.extend(vectors)
        self.vcpu.kick()


class Rig:
    """A processor in ring 0 with flat segments, in 32-bit or 64-bit code; OUT calls ``on_out``."""

    def __init__(self, engine, bits: int, code: str) -> None:
        engine.require()
        self.bits = bits
        self.memory = memory = GuestMemory(2 << 20)
        self.bus = Bus()
        self.accelerator = engine.make(memory, self.bus)
        self.vcpu = self.accelerator.vcpu(0)
        self.vcpu.interrupts = self.source = Source(self.vcpu)
        self.on_out = lambda: self.source.send(VECTOR)
        self.bus.ports.map(PORT, 1, lambda *_: 0, lambda *_: self.on_out(), "test")
        self.write(CODE, code)
        self.write(HANDLER, COUNT + RETURN[bits])
        wide = 0xAF9B if bits == 64 else 0xCF9B
        memory.write(GDT + 8, struct.pack("<HHBHB", 0xFFFF, 0, 0, wide, 0))
        memory.write(GDT + 16, struct.pack("<HHBHB", 0xFFFF, 0, 0, 0xCF93, 0))
        memory.write(PML4, struct.pack("<Q", PDPT | 3))
        memory.write(PDPT, struct.pack("<Q", DIRECTORY | 3))
        memory.write(DIRECTORY, struct.pack("<Q", 0x83))  # 2 MiB where they are
        self._set_registers()

    def write(self, where: int, code: str) -> None:
        self.memory.write(where, bytes.fromhex(code))

    def gate(self, vector: int, handler: int, kind: int = INTERRUPT_GATE) -> None:
        width = self.bits // 4
        entry = struct.pack("<HHHH", handler, 8, kind << 8, 0).ljust(width, b"\0")
        self.memory.write(IDT + width * vector, entry)

    def _set_registers(self) -> None:
        system = self.vcpu.get_system_registers()
        data = Segment(16, 0, 0xFFFF_FFFF, 0xC093)
        system.es = system.ss = system.ds = system.fs = system.gs = data
        system.cs = Segment(8, 0, 0xFFFF_FFFF, 0xA09B if self.bits == 64 else 0xC09B)
        system.gdt, system.idt = DescriptorTable(GDT, 0x17), DescriptorTable(IDT, 0xFFF)
        system.cr0 = 0x33
        if self.bits == 64:
            system.cr0, system.cr3, system.cr4, system.efer = 0x8000_0033, PML4, 0x20, 0x500
        self.vcpu.set_system_registers(system)
        registers = Registers(rip=CODE, rflags=IF | 2)
        registers.gprs[4] = STACK
        self.vcpu.set_registers(registers)

    @property
    def gprs(self) -> list[int]:
        return self.vcpu.get_registers().gprs

    def close(self) -> None:
        self.vcpu.close()
        self.accelerator.close()


@pytest.fixture(params=[(e, bits) for e in ENGINES[:3] for bits in (32, 64)], ids=str)
def make(request):
    """Makes a rig of each engine and width for some code."""
    rigs = []

    def made(code: str) -> Rig:
        rigs.append(Rig(*request.param, code))
        return rigs[-1]

    yield made
    for rig in rigs:
        rig.close()


def test_each_is_taken_where_it_came(make):
    rig = make(LOOP)
    rig.gate(VECTOR, HANDLER)
    seen = []
    rig.on_out = lambda: (seen.append(rig.gprs[2]), rig.source.send(VECTOR))
    assert rig.vcpu.run() is VcpuExit.HLT
    assert seen == list(range(TIMES))
    assert rig.gprs[2] == rig.gprs[3] == TIMES


def test_native_code_is_not_left_for_it(make, monkeypatch):
    rig = make(LOOP)
    rig.gate(VECTOR, HANDLER)
    entered = []
    execute = rig.vcpu.execute
    monkeypatch.setattr(rig.vcpu, "execute", lambda r: (entered.append(r), execute(r)))
    assert rig.vcpu.run() is VcpuExit.HLT
    assert rig.gprs[2] == TIMES
    native = rig.accelerator.name == "llvm"
    assert not native or len(entered) < TIMES // 4  # some for code that is new


def test_a_handler_that_is_not_there(make):
    """What is out of the ordinary is Python's, the vector having been taken already."""
    rig = make(LOOP)
    rig.gate(VECTOR, HANDLER, ABSENT_GATE)
    rig.gate(NOT_PRESENT, NOT_PRESENT_HANDLER)
    rig.write(NOT_PRESENT_HANDLER, HLT)
    assert rig.vcpu.run() is VcpuExit.HLT
    registers, word = rig.vcpu.get_registers(), rig.bits // 8
    assert registers.rip == NOT_PRESENT_HANDLER + 1
    frame = rig.memory.read(registers.gprs[4], 2 * word)
    assert int.from_bytes(frame[:word], "little") == VECTOR << 3 | 3  # of the IDT, external
    assert int.from_bytes(frame[word:], "little") == CODE + 7  # behind OUT
    assert not rig.source.pending()


def test_who_wants_the_processor_comes_first(make):
    rig = make(LOOP)
    rig.gate(VECTOR, HANDLER)
    rig.on_out = lambda: (rig.vcpu.request_exit(), rig.source.send(VECTOR))
    for times in range(3):
        assert rig.vcpu.run() is VcpuExit.INTERRUPTED
        assert rig.source.pending()
        assert rig.gprs[2:4] == [times, times]


def test_behind_a_trap_gate_the_next_one_is_taken(make):
    rig = make(f"{OUT} {HLT}")
    rig.gate(VECTOR, HANDLER, TRAP_GATE)
    rig.gate(OTHER, OTHER_HANDLER)
    rig.write(HANDLER, "eb00 ffc2 f4")  # JMP to what follows: a block ends, and one begins
    rig.write(OTHER_HANDLER, "89d6 81c600100000" + RETURN[rig.bits])  # ESI = EDX + 1000h
    rig.on_out = lambda: rig.source.send(VECTOR, OTHER)
    assert rig.vcpu.run() is VcpuExit.HLT
    assert rig.gprs[6] == 0x1000, "before the first one's handler got anywhere"
    assert rig.gprs[2] == 1
