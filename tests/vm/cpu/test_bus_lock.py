"""LOCK on a device's memory: nothing comes between its read and its write."""

from __future__ import annotations

import threading
import time

import pytest

from tests.tools.engines import ENGINES
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

TOP = 1 << 20
CODE = 0x1000
COUNT = 50
REAL_DATA = 0xFFFF
"""A segment that reaches over the end of memory, where the device is."""
PROGRAM = bytes.fromhex(
    f"b9 {COUNT:02x} 00"  # mov cx, COUNT
    "66 f0 ff 06 10 00"  # again: lock inc dword [0x10]
    "e2 f8"  # loop again
    "f4"  # hlt
)


class Register:
    """A device's register, which takes its time."""

    def __init__(self) -> None:
        self.value = 0

    def read(self, _offset: int, _size: int) -> int:
        found = self.value
        time.sleep(1e-4)
        return found

    def write(self, _offset: int, _size: int, value: int) -> None:
        time.sleep(1e-4)
        self.value = value


@pytest.mark.parametrize("engine", ENGINES[:3], ids=str)
def test_two_processors_count_in_a_register(engine):
    memory, bus, register = GuestMemory(TOP), Bus(), Register()
    memory.write(CODE, PROGRAM)
    bus.mmio.map(TOP, 0x1000, register.read, register.write, "register")
    accelerator = engine.make(memory, bus)
    vcpus = [accelerator.vcpu(index) for index in range(2)]
    results: list[VcpuExit] = []
    for vcpu in vcpus:
        vcpu.reset()
        system = vcpu.get_system_registers()
        system.cs.selector = system.cs.base = 0
        system.ds.selector, system.ds.base = REAL_DATA, REAL_DATA << 4
        vcpu.set_system_registers(system)
        registers = vcpu.get_registers()
        registers.rip = CODE
        vcpu.set_registers(registers)
    threads = [threading.Thread(target=lambda v=v: results.append(v.run())) for v in vcpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [VcpuExit.HLT] * 2
    assert register.value == 2 * COUNT
    for vcpu in vcpus:
        vcpu.close()
    accelerator.close()
