"""An interrupt that waits is not taken between MOV SS or STI and the next instruction."""

from __future__ import annotations

import pytest

from tests.tools.engines import ENGINES
from vdisk.vm.accel.base import Registers, Segment, VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

CODE, HANDLER, STACK, VECTOR = 0x1000, 0x2000, 0x4000, 0x20


class Waiting:
    """One interrupt, from the beginning on."""

    def __init__(self) -> None:
        self.taken = False

    def pending(self) -> bool:
        return not self.taken

    def acknowledge(self) -> int:
        self.taken = True
        return VECTOR


@pytest.mark.parametrize("engine", ENGINES[:3], ids=str)
@pytest.mark.parametrize(
    ("code", "after", "pointer"),
    [
        ("90 fb 90 90 f4", 3, STACK),
        ("fb 8ed0 bc0030 90 f4", 6, 0x3000),  # STI, MOV SS, MOV SP: one shadow after the other
        ("fb 16 17 bc0030 90 f4", 2, STACK - 2),  # STI, PUSH SS: before POP SS
        ("fb f4", 2, STACK),  # HLT is executed, and ended at once
    ],
)
def test_one_instruction_comes_first(engine, code, after, pointer):
    engine.require()
    memory = GuestMemory(1 << 20)
    memory.write(CODE, bytes.fromhex(code))
    memory.write(HANDLER, b"\xf4")
    memory.write(4 * VECTOR, HANDLER.to_bytes(2, "little") + bytes(2))
    accelerator = engine.make(memory, Bus())
    vcpu = accelerator.vcpu(0)
    try:
        vcpu.interrupts = Waiting()
        system = vcpu.get_system_registers()
        system.cs = Segment(0, 0, 0xFFFF, 0x0093)
        vcpu.set_system_registers(system)
        registers = Registers(rip=CODE)
        registers.gprs[4] = STACK
        vcpu.set_registers(registers)
        results = [vcpu.run(1000)]
        if vcpu.get_registers().rip != HANDLER + 1:
            results.append(vcpu.run(1000))  # the first HLT was the program's
        assert set(results) == {VcpuExit.HLT}
        assert vcpu.get_registers().rip == HANDLER + 1
        assert vcpu.get_registers().gprs[4] == pointer - 6
        assert int.from_bytes(memory.read(pointer - 6, 2), "little") == CODE + after
    finally:
        vcpu.close()
        accelerator.close()
