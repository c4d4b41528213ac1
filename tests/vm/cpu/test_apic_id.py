"""The local APIC's ID is read without asking the APIC each time, and is right all the same."""

from __future__ import annotations

import pytest

from tests.tools.engines import ENGINES
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

TOP = 1 << 20
CODE = 0x1000
APIC = 0xFEE0_0000
READ_EAX, READ_ECX, READ_EDI = "66 a1 20 00", "66 8b 0e 20 00", "66 8b 3e 20 00"
PROGRAM = bytes.fromhex(
    f"{READ_EAX} {READ_EAX} 66 89 c3"  # into EBX
    "66 c7 06 20 00 00 00 00 05"  # mov dword [0x20], 0x05000000
    f"{READ_ECX} {READ_ECX} 66 89 ce"  # into ESI
    "66 b9 1b 00 00 00 66 b8 00 09 e1 fe 66 31 d2 0f 30"  # IA32_APIC_BASE := FEE10900h
    f"{READ_EDI} f4"
)


class Apic:
    """Nothing but an ID register."""

    task_priority = 0

    def __init__(self) -> None:
        self.value, self.reads = 0x0300_0000, 0

    def mmio_read(self, offset: int, size: int) -> int:
        assert (offset, size) == (0x20, 4)
        self.reads += 1
        return self.value

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        assert (offset, size) == (0x20, 4)
        self.value = value

    def write_msr(self, _index: int, _value: int) -> bool:
        return True


@pytest.mark.parametrize("engine", ENGINES[:3], ids=str)
def test_the_id_is_what_was_written_and_where_the_apic_is(engine):
    memory, bus, apic = GuestMemory(TOP), Bus(), Apic()
    memory.write(CODE, PROGRAM)
    bus.mmio.map(APIC, 0x1000, lambda *_: 0x77, lambda *_: None, "what is behind it")
    accelerator = engine.make(memory, bus)
    vcpu = accelerator.vcpu(0)
    vcpu.apic = apic
    vcpu.reset()
    system = vcpu.get_system_registers()
    system.cs.selector = system.cs.base = 0
    system.ds.base = APIC
    vcpu.set_system_registers(system)
    registers = vcpu.get_registers()
    registers.rip = CODE
    vcpu.set_registers(registers)
    assert vcpu.run() == VcpuExit.HLT
    found = vcpu.get_registers().gprs
    assert (found[3], found[6], found[7]) == (0x0300_0000, 0x0500_0000, 0x77)
    assert apic.reads == 2
    vcpu.close()
    accelerator.close()
