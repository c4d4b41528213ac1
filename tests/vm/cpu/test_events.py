"""What stands between two instructions is saved with a machine, and NMIs wait their turn."""

from __future__ import annotations

import pytest

from tests.tools.engines import ENGINES
from vdisk.errors import CorruptImageError
from vdisk.vm._machine.state import load_vcpu, save_vcpu
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory, PageKind

CODE, HANDLER, NMI_HANDLER = 0x1000, 0x2000, 0x3000
VECTOR = 0x20
STI, NOP, HLT, IRET = 0xFB, 0x90, 0xF4, 0xCF
INC_AX, INC_BX = 0x40, 0x43


class Pending:
    """An interrupt source that waits for once."""

    def __init__(self) -> None:
        self.waits = False

    def pending(self) -> bool:
        return self.waits

    def acknowledge(self) -> int:
        self.waits = False
        return VECTOR


class Rig:
    """A processor in real mode at CODE, with handlers of one interrupt and of NMI."""

    def __init__(self, engine, code: bytes) -> None:
        self.memory = GuestMemory(1 << 20)
        for vector, handler in ((VECTOR, HANDLER), (2, NMI_HANDLER)):
            self.memory.write(4 * vector, handler.to_bytes(4, "little"))
        self.memory.write(CODE, code)
        self.memory.write(HANDLER, bytes([INC_BX, IRET]))
        self.memory.write(NMI_HANDLER, bytes([INC_AX, NOP, NOP, NOP, IRET]))
        self.accelerator = engine.make(self.memory, Bus())
        self.vcpu = self.accelerator.vcpu(0)
        self.vcpu.reset()
        self.vcpu.interrupts = self.source = Pending()
        system = self.vcpu.get_system_registers()
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(system, name)
            segment.selector = segment.base = 0
        self.vcpu.set_system_registers(system)
        registers = self.vcpu.get_registers()
        registers.gprs, registers.rip, registers.rflags = [0] * 16, CODE, 2
        registers.gprs[4] = 0x8000
        self.vcpu.set_registers(registers)

    def step(self, count: int = 1) -> None:
        """Instructions one by one: a breakpoint that is never met has the processor look out."""
        system = self.vcpu.get_system_registers()
        system.dr[0], system.dr[7] = 0xF_FFFF, 0x401
        extra = self.vcpu.get_extra()
        self.vcpu.set_system_registers(system)
        self.vcpu.set_extra(extra)
        for _ in range(count):
            assert self.vcpu.run(1) is VcpuExit.INTERRUPTED

    @property
    def gprs(self) -> list[int]:
        return self.vcpu.get_registers().gprs

    @property
    def rip(self) -> int:
        return self.vcpu.get_registers().rip

    def close(self) -> None:
        self.vcpu.close()
        self.accelerator.close()


@pytest.fixture(params=ENGINES[:3], ids=str)
def make(request):
    """Makes rigs of one engine."""
    rigs = []

    def made(code: bytes = bytes([NOP] * 16 + [HLT])) -> Rig:
        rigs.append(Rig(request.param, code))
        return rigs[-1]

    yield made
    for rig in rigs:
        rig.close()


def moved(old: Rig, new: Rig) -> Rig:
    """The machine saved and loaded."""
    new.memory.write(0, old.memory.read(0, 1 << 16))
    load_vcpu(new.vcpu, save_vcpu(old.vcpu))
    new.source.waits = old.source.waits
    return new


def test_the_shadow_of_sti(make):
    rig = make(bytes([STI, NOP, NOP, HLT]))
    rig.step()
    rig.source.waits = True
    rig = moved(rig, make(bytes([STI, NOP, NOP, HLT])))
    assert rig.vcpu.run(1) is VcpuExit.INTERRUPTED
    assert rig.rip == CODE + 2 and rig.source.waits, "one instruction, and no interrupt yet"
    assert rig.vcpu.run(10) is VcpuExit.HLT
    assert rig.gprs[3] == 1


def test_no_shadow_without_sti(make):
    rig = make(bytes([STI, NOP, NOP, HLT]))
    rig.step(2)
    rig.source.waits = True
    rig = moved(rig, make(bytes([STI, NOP, NOP, HLT])))
    rig.vcpu.run(1)
    assert not rig.source.waits


def test_a_pending_nmi(make):
    rig = make()
    rig.vcpu.inject_nmi()
    rig = moved(rig, make())
    assert rig.vcpu.run(100) is VcpuExit.HLT
    assert rig.gprs[0] == 1


def test_an_nmi_waits_for_iret(make):
    rig = make()
    rig.vcpu.inject_nmi()
    rig.step()
    assert NMI_HANDLER < rig.rip < NMI_HANDLER + 4
    rig = moved(rig, make())
    rig.vcpu.inject_nmi()
    rig.step()
    assert rig.gprs[0] == 1, "the handler has not begun again"
    assert rig.vcpu.run(100) is VcpuExit.HLT
    assert rig.gprs[0] == 2


def test_another_nmi_after_iret(make):
    rig = make()
    for expected in (1, 2, 3):
        rig.vcpu.inject_nmi()
        rig.vcpu.run(20)
        assert rig.gprs[0] == expected
        registers = rig.vcpu.get_registers()
        registers.rip = CODE
        rig.vcpu.set_registers(registers)


def test_the_time_stamp_counter_goes_on(make):
    rig = make()
    rig.vcpu.set_timestamp(1 << 60)
    rig = moved(rig, make())
    assert 0 <= rig.vcpu.timestamp() - (1 << 60) < 1 << 40


MONITOR, MWAIT = bytes([0x0F, 0x01, 0xC8]), bytes([0x0F, 0x01, 0xC9])
WATCHED = bytes([*MONITOR, *MWAIT, NOP, HLT])


def test_a_watched_line(make):
    rig = make(WATCHED)
    rig.step()
    rig = moved(rig, make(WATCHED))
    assert rig.vcpu.run(10) is VcpuExit.MWAIT
    rig = moved(rig, make(WATCHED))
    assert not rig.vcpu.line_changed()
    rig.memory.write(0x3F, b"x")
    assert rig.vcpu.line_changed()


def test_a_watched_line_is_waited_for_once(make):
    rig = make(bytes([*MONITOR, *MWAIT, *MWAIT, HLT]))
    assert rig.vcpu.run(10) is VcpuExit.MWAIT
    rig = moved(rig, make(bytes([*MONITOR, *MWAIT, *MWAIT, HLT])))
    assert rig.vcpu.run(10) is VcpuExit.HLT


def test_a_line_that_is_no_ram_is_not_watched(make):
    rig = make(bytes([0x66, 0xB8, 0, 0, 0xA, 0, 0x67, *MONITOR, *MWAIT, HLT]))  # at A0000h
    system = rig.vcpu.get_system_registers()
    system.ds.limit = 0xFFFF_FFFF
    rig.vcpu.set_system_registers(system)
    rig.memory.set_kind(0xA_0000, 0x1000, PageKind.MMIO)
    assert rig.vcpu.run(10) is VcpuExit.HLT


@pytest.mark.parametrize(
    ("name", "value"),
    [("line", 1), ("line", 1 << 40), ("line_seen", b""), ("line_seen", 0), ("line_spent", 2)],
)
def test_a_damaged_line_is_refused(make, name, value):
    rig = make(WATCHED)
    rig.vcpu.run(10)
    with pytest.raises(CorruptImageError):
        rig.vcpu.set_extra({**rig.vcpu.get_extra(), name: value})


@pytest.mark.parametrize("name", ["interrupt_shadow", "nmi_blocked", "nmi_pending", "timestamp"])
@pytest.mark.parametrize("value", [None, 2, "x", b"1"])
def test_a_damaged_state_is_refused(make, name, value):
    rig = make()
    extra = rig.vcpu.get_extra()
    if name == "timestamp" and value == 2:
        pytest.skip("any number is a time")
    extra[name] = value
    with pytest.raises(CorruptImageError):
        rig.vcpu.set_extra(extra)
