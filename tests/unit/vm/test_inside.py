"""What monitors show of a processor: its registers, and memory by its own addresses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vdisk.errors import OutOfRangeError
from vdisk.vm._machine import inside
from vdisk.vm.accel.base import FpuState, Registers, Segment, SystemRegisters
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

PRESENT, LARGE = 1, 1 << 7
CODE_32, CODE_64 = 0xC09B, 0xA09B


def processor(system: SystemRegisters, fpu: FpuState | None = None) -> Any:
    general = Registers(gprs=list(range(0x1_0000_0000, 0x1_0000_0010)), rip=0x40_1000, rflags=0x247)
    vcpu = SimpleNamespace(
        get_registers=lambda: general,
        get_system_registers=lambda: system,
        get_fpu=lambda: fpu or FpuState(),
    )
    return SimpleNamespace(vcpu=vcpu, halted=False)


def long_mode() -> SystemRegisters:
    code = Segment(selector=0x33, limit=0xFFFFFFFF, attributes=CODE_64 | 0x60)
    return SystemRegisters(cs=code, cr0=0x8000_0011, cr3=0x1000, cr4=0x20, efer=0x500)


def test_registers_of_a_32_bit_processor() -> None:
    system = SystemRegisters(cs=Segment(selector=8, base=0x1000, attributes=CODE_32), cr0=0x11)
    lines = inside.registers_text(processor(system)).splitlines()
    assert lines[0] == "EAX=00000000 EBX=00000003 ECX=00000001 EDX=00000002"
    assert lines[2] == "EIP=00401000 EFL=00000247 [---Z-PC] CPL=0 HLT=0"
    assert lines[4] == "CS =0008 00001000 0000ffff 00c09b00"
    assert lines[11] == "GDT=     00000000 0000ffff"
    assert sum("XMM" in line for line in lines) == 4
    found = inside.state(processor(system))
    assert (found.bits, found.code) == (32, 0x40_2000)
    assert found.registers["pc"] == 0x40_2000
    assert found.registers["ax"] == found.registers["eax"] == 0
    assert found.registers["rbx"] == 0x1_0000_0003


def test_registers_of_a_64_bit_processor() -> None:
    fpu = FpuState(status=0x3800, tag=0x3FFF, mxcsr=0x1FA0)
    fpu.st[0] = 0x3FFF_8000_0000_0000_0000
    fpu.xmm[15] = 0x1122334455667788_99AABBCCDDEEFF00
    lines = inside.registers_text(processor(long_mode(), fpu)).splitlines()
    assert lines[0].startswith("RAX=0000000100000000 RBX=0000000100000003")
    assert lines[2].startswith("R8 =0000000100000008")
    assert "CPL=3" in lines[4]
    assert "EFER=0000000000000500" in lines
    assert "FCW=037f FSW=3800 [ST=7] FTW=80 MXCSR=00001fa0" in lines
    assert "FPR6=0000000000000000 0000 FPR7=8000000000000000 3fff" in lines
    assert lines[-1].endswith("XMM15=1122334455667788 99aabbccddeeff00")
    assert inside.state(processor(long_mode())).bits == 64


def test_memory_by_the_processors_own_addresses() -> None:
    memory, bus = GuestMemory(4 << 20), Bus()
    for table, entry in ((0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)):
        memory.write(table, (entry | PRESENT).to_bytes(8, "little"))
    for page, frame in ((0, 0x9000), (1, 0x5000)):
        memory.write(0x4000 + 8 * page, (frame | PRESENT).to_bytes(8, "little"))
    memory.write(0x3008, (0x20_0000 | PRESENT | LARGE).to_bytes(8, "little"))
    memory.write(0x9FFE, b"ab")
    memory.write(0x5000, b"cd")
    memory.write(0x20_0010, b"ef")
    cpu = processor(long_mode())
    assert inside.read_virtual(cpu, memory, bus, 0xFFE, 4) == b"abcd"
    assert inside.read_virtual(cpu, memory, bus, 0x20_0010, 2) == b"ef"
    for address in (0x2000, 0x1FFF, 1 << 40):  # not present, partly, at all
        with pytest.raises(OutOfRangeError, match="cannot access"):
            inside.read_virtual(cpu, memory, bus, address, 2)
    assert inside.read_virtual(processor(SystemRegisters()), memory, bus, 0x5000, 2) == b"cd"
