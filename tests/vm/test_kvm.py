"""Small guests on /dev/kvm: real mode, ring 0, 64-bit ring 3; interrupts, kicks, memory slots."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.tools.patience import PATIENCE
from vdisk.errors import DeviceError
from vdisk.vm.accel.base import FpuState, Registers, Segment, SystemRegisters, VcpuExit
from vdisk.vm.accel.kvm import KvmAccelerator
from vdisk.vm.accel.kvm_vcpu import KvmVcpu
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory, PageKind

pytestmark = pytest.mark.skipif(
    not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened here"
)

CODE = 0x1000
"""Seconds until a guest that hangs is stopped, which then fails its test."""
MIB = 1 << 20


@dataclass
class Lines:
    """An interrupt controller of one vector."""

    waiting: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def pending(self) -> bool:
        return bool(self.waiting)

    def acknowledge(self) -> int:
        self.taken.append(self.waiting.pop(0))
        return self.taken[-1]


class Apic(Lines):
    """Just enough of a local APIC to see what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = 0xFEE0_0900
        self.task_priority = 0
        self.log: list[tuple[int, int, int]] = []

    def mmio_read(self, offset: int, size: int) -> int:
        return 0x12345678 if offset == 0x30 and size == 4 else 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))

    def read_msr(self, index: int) -> int | None:
        return self.base if index == 0x1B else None

    def write_msr(self, index: int, value: int) -> bool:
        if index == 0x1B:
            self.base = value
        return index == 0x1B


class Guest:
    """1 MiB and more of RAM, a port that records, and KVM."""

    def __init__(self, size: int = 4 * MIB) -> None:
        self.memory = GuestMemory(size)
        self.bus = Bus()
        self.out: list[tuple[int, int]] = []
        self.on_write: Callable[[], object] = lambda: None
        self.inputs = [0x11, 0x22, 0x33, 0x44]
        self.bus.ports.map(0x50, 4, self.read, self.write, "recorder")
        self.kvm = KvmAccelerator(self.memory, self.bus)
        self.vcpus: list[KvmVcpu] = []
        self.watchdog = threading.Timer(PATIENCE, self.give_up)
        self.watchdog.start()

    def give_up(self) -> None:
        for vcpu in self.vcpus:
            vcpu.request_exit()

    def read(self, _offset: int, _size: int) -> int:
        return self.inputs.pop(0)

    def write(self, _offset: int, size: int, value: int) -> None:
        self.out.append((size, value))
        self.on_write()

    def vcpu(self, code: str, *, at: int = CODE, apic: Apic | None = None) -> KvmVcpu:
        """A processor in real mode, its segments 0, about to execute ``code`` (hex)."""
        self.memory.write(at, bytes.fromhex(code))
        vcpu = self.kvm.vcpu(len(self.vcpus))
        self.vcpus.append(vcpu)
        vcpu.apic = vcpu.interrupts = apic
        vcpu.reset()
        system = vcpu.get_system_registers()
        system.cs = Segment(0, 0, 0xFFFF, 0x9B)
        vcpu.set_system_registers(system)
        registers = Registers(rip=at)
        registers.gprs[4] = 0x8000
        vcpu.set_registers(registers)
        return vcpu

    def close(self) -> None:
        self.watchdog.cancel()
        for vcpu in self.vcpus:
            vcpu.close()
        self.kvm.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def test_ports_of_every_size(guest: Guest) -> None:
    # in al,50h; out 50h,al; out 50h,ax; out 50h,eax; hlt
    vcpu = guest.vcpu("b8cdab e450 e650 e750 66e750 f4")
    assert vcpu.run() is VcpuExit.HLT
    assert guest.out == [(1, 0x11), (2, 0xAB11), (4, 0xAB11)]


def test_string_input_and_output(guest: Guest) -> None:
    # mov dx,50h; mov di,2000h; mov cx,4; rep insb; mov si,2000h; mov cx,2; rep outsw; hlt
    vcpu = guest.vcpu("ba5000 bf0020 b90400 f36c be0020 b90200 f36f f4")
    assert vcpu.run() is VcpuExit.HLT
    assert guest.memory.read(0x2000, 4) == bytes([0x11, 0x22, 0x33, 0x44])
    assert guest.out == [(2, 0x2211), (2, 0x4433)]


def test_memory_mapped_registers(guest: Guest) -> None:
    log: list[tuple[int, int, int]] = []
    guest.memory.set_kind(0xA0000, 0x20000, PageKind.MMIO)
    guest.bus.mmio.map(
        0xA0000, 0x20000, lambda offset, size: offset + size, lambda *a: log.append(a), "screen"
    )
    # mov ax,A000h; mov ds,ax; mov ax,[10h]; mov [4],al; mov [8],ax; hlt
    vcpu = guest.vcpu("b800a0 8ed8 a11000 a20400 a30800 f4")
    assert vcpu.run() is VcpuExit.HLT
    assert log == [(4, 1, 0x12), (8, 2, 0x12)]


def test_a_rom_is_read_and_ignores_writes(guest: Guest) -> None:
    guest.memory.load_rom(0xF0000, b"BIOS" * 1024)
    # mov ax,F000h; mov ds,ax; mov byte [0],'x'; mov al,[0]; out 50h,al; hlt
    vcpu = guest.vcpu("b800f0 8ed8 c606000078 a00000 e650 f4")
    assert vcpu.run() is VcpuExit.HLT
    assert guest.out == [(1, ord("B"))]
    assert guest.memory.read(0xF0000, 4) == b"BIOS"


def test_a_rom_that_becomes_ram_keeps_its_bytes(guest: Guest) -> None:
    guest.memory.load_rom(0xF0000, b"BIOS" * 1024)
    vcpu = guest.vcpu("b800f0 8ed8 c606000078 a00000 e650 f4 ebf6")
    guest.memory.set_kind(0xF0000, 0x10000, PageKind.RAM)
    assert vcpu.run() is VcpuExit.HLT
    assert guest.out == [(1, ord("x"))]
    assert guest.memory.read(0xF0000, 4) == b"xIOS"


def test_changes_elsewhere_leave_the_slots_in_use_alone(guest: Guest) -> None:
    before = set(guest.kvm._slots)
    guest.memory.set_kind(0xF0000, 0x10000, PageKind.ROM)
    kept = before & set(guest.kvm._slots)
    assert {slot.start for slot in kept} >= {0, 0xA0000, 0xC0000, MIB, 2 * MIB}


def test_a_closed_a20_gate_wraps_at_one_megabyte(guest: Guest) -> None:
    guest.memory.write(0x500, b"\x01")
    guest.memory.write(MIB + 0x500, b"\x02")
    # mov ax,FFFFh; mov ds,ax; mov al,[510h]; out 50h,al; hlt; jmp to the mov al
    vcpu = guest.vcpu("b8ffff 8ed8 a01005 e650 f4 ebf8")
    for enabled, expected in ((False, 1), (True, 2), (False, 1)):
        guest.kvm.a20 = enabled
        assert vcpu.run() is VcpuExit.HLT
        assert guest.out.pop() == (1, expected)


def handler(guest: Guest, vector: int) -> None:
    """An interrupt handler that says its vector to the port."""
    address = 0x3000 + vector * 8
    guest.memory.write(vector * 4, address.to_bytes(4, "little"))
    guest.memory.write(address, bytes([0x50, 0xB0, vector, 0xE6, 0x50, 0x58, 0xCF]))


def test_interrupts_wait_for_the_flag(guest: Guest) -> None:
    handler(guest, 0x20)
    lines = Lines([0x20])
    # mov al,1; out 50h,al; sti; nop; mov al,2; out 50h,al; nop; mov al,3; out 50h,al; hlt
    vcpu = guest.vcpu("b001 e650 fb 90 b002 e650 90 b003 e650 f4")
    vcpu.interrupts = lines
    assert vcpu.run() is VcpuExit.HLT
    values = [value for _, value in guest.out]
    # A KVM that emulates looks between two exits only.
    assert values in ([1, 0x20, 2, 3], [1, 2, 0x20, 3])
    assert lines.taken == [0x20]


def test_one_interrupt_after_the_other(guest: Guest) -> None:
    for vector in (0x20, 0x21):
        handler(guest, vector)
    vcpu = guest.vcpu("fb f4 ebfd")  # sti; hlt; again
    vcpu.interrupts = Lines([0x20, 0x21])
    while len(guest.out) < 2:
        assert vcpu.run() is VcpuExit.HLT
    assert [value for _, value in guest.out] == [0x20, 0x21]


def test_a_kick_lets_a_busy_guest_take_an_interrupt(guest: Guest) -> None:
    handler(guest, 0x20)
    lines = Lines()
    # sti; loop: cmp byte [flag],0; jz loop; hlt, where the handler's port write sets the flag
    vcpu = guest.vcpu("fb 803e006000 74f9 f4")
    guest.on_write = lambda: guest.memory.write(0x6000, b"\x01")
    vcpu.interrupts = lines

    def interrupt() -> None:
        lines.waiting.append(0x20)
        vcpu.kick()

    timer = threading.Timer(0.1, interrupt)
    timer.start()
    assert vcpu.run() is VcpuExit.HLT
    timer.join()
    assert lines.taken == [0x20]


def test_request_exit_from_another_thread_and_beforehand(guest: Guest) -> None:
    vcpu = guest.vcpu("ebfe")
    vcpu.request_exit()
    assert vcpu.run() is VcpuExit.INTERRUPTED
    for _ in range(20):
        timer = threading.Timer(0.005, vcpu.request_exit)
        timer.start()
        assert vcpu.run() is VcpuExit.INTERRUPTED
        timer.join()


def test_an_exit_on_request_completes_the_input(guest: Guest) -> None:
    vcpu = guest.vcpu("e450 f4")  # in al,50h; hlt
    guest.inputs = [0x77]
    read = guest.read

    def read_and_leave(offset: int, size: int) -> int:
        vcpu.request_exit()
        return read(offset, size)

    guest.bus.ports.unmap(guest.bus.ports.ranges()[0])
    guest.bus.ports.map(0x50, 1, read_and_leave, guest.write, "leaving")
    assert vcpu.run() is VcpuExit.INTERRUPTED
    registers = vcpu.get_registers()
    assert (registers.rip, registers.gprs[0] & 0xFF) == (CODE + 2, 0x77)
    assert vcpu.run() is VcpuExit.HLT


def test_a_storm_of_kicks_loses_nothing(guest: Guest) -> None:
    # mov cx,2000; loop: in al,50h; dec cx; jnz; hlt
    vcpu = guest.vcpu("b9d007 e450 49 75fb f4")
    guest.inputs = list(range(250)) * 8
    stop = threading.Event()

    def kick() -> None:
        while not stop.is_set():
            vcpu.kick()
            time.sleep(0.0002)

    kicker = threading.Thread(target=kick)
    kicker.start()
    assert vcpu.run() is VcpuExit.HLT
    stop.set()
    kicker.join()
    assert guest.inputs == []


def test_a_non_maskable_interrupt_ends_a_halt(guest: Guest) -> None:
    handler(guest, 2)
    vcpu = guest.vcpu("fa f4 b005 e650 f4")  # cli; hlt; mov al,5; out 50h,al; hlt
    assert vcpu.run() is VcpuExit.HLT
    vcpu.inject_nmi()
    assert vcpu.run() is VcpuExit.HLT
    assert [value for _, value in guest.out] == [2, 5]


def test_two_processors_at_the_same_time(guest: Guest) -> None:
    # mov cx,3000; loop: lock inc word [2000h]; dec cx; jnz; hlt
    code = "b9b80b f0ff060020 49 75f8 f4"
    vcpus = [guest.vcpu(code), guest.vcpu(code)]
    results: list[VcpuExit] = []
    threads = [
        threading.Thread(target=lambda vcpu=vcpu: results.append(vcpu.run())) for vcpu in vcpus
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [VcpuExit.HLT] * 2
    assert int.from_bytes(guest.memory.read(0x2000, 2), "little") == 6000


def protected_mode(vcpu: KvmVcpu) -> None:
    """32-bit code, flat segments, no interrupt table."""
    system = vcpu.get_system_registers()
    system.cs = Segment(8, 0, 0xFFFF_FFFF, 0xC09B)
    system.ds = system.ss = system.es = Segment(16, 0, 0xFFFF_FFFF, 0xC093)
    system.cr0 |= 1
    system.idt.limit = 0
    vcpu.set_system_registers(system)


def test_a_triple_fault_shuts_down_and_reset_starts_anew(guest: Guest) -> None:
    guest.memory.set_kind(MIB - 0x1000, 0x1000, PageKind.RAM)
    vcpu = guest.vcpu("0f0b")  # ud2 with an IDT of limit 0
    protected_mode(vcpu)
    assert vcpu.run() is VcpuExit.SHUTDOWN
    vcpu.reset()
    registers, system = vcpu.get_registers(), vcpu.get_system_registers()
    assert (system.cs.base + registers.rip, system.cs.selector) == (0xFFFF_FFF0, 0xF000)
    assert system.idt.limit == 0xFFFF


def test_register_sets_come_back(guest: Guest) -> None:
    vcpu = guest.vcpu("f4")
    registers = Registers(list(range(100, 116)), 0x1234, 0x246)
    vcpu.set_registers(registers)
    assert vcpu.get_registers() == registers
    fpu = FpuState(st=[1 << 63 | 0x3FFF << 64] * 8, tag=0, xmm=list(range(16)), mxcsr=0x1FA0)
    vcpu.set_fpu(fpu)
    assert vcpu.get_fpu() == fpu
    msrs = vcpu.get_msrs()
    assert 0x10 in msrs and 0x174 in msrs
    vcpu.set_msrs({0x174: 0x10, 0xC000_0082: 0xFFFF_8000_0000_1000})
    assert vcpu.get_msrs()[0xC000_0082] == 0xFFFF_8000_0000_1000
    extra = vcpu.get_extra()
    vcpu.set_extra(extra)
    assert vcpu.get_extra() == extra
    with pytest.raises(DeviceError, match="without xsave"):
        vcpu.set_extra({"xcrs": extra["xcrs"]})


def test_the_local_apic_is_ours(guest: Guest) -> None:
    apic = Apic()
    # mov eax,[FEE00030h]; mov [FEE00080h],eax; hlt
    vcpu = guest.vcpu("a13000e0fe a38000e0fe f4", apic=apic)
    protected_mode(vcpu)
    assert vcpu.run() is VcpuExit.HLT
    assert apic.log == [(0x80, 4, 0x12345678)]


def long_mode(guest: Guest, vcpu: KvmVcpu, *, ring: int) -> None:
    """64-bit mode with the first 2 MiB mapped one to one for everybody."""
    for table, entry in ((0x10000, 0x11007), (0x11000, 0x12007), (0x12000, 0x87)):
        guest.memory.write(table, entry.to_bytes(8, "little"))
    data = Segment(0x18 | ring, 0, 0xFFFF_FFFF, 0xC093 | ring << 5)
    system = SystemRegisters(
        cs=Segment(0x20 | ring, 0, 0xFFFF_FFFF, 0xA09B | ring << 5),
        ss=data, ds=data, es=data, fs=data, gs=data,
    )  # fmt: skip
    system.tr = Segment(0x30, 0x14000, 0x67, 0x8B)
    system.cr0, system.cr3, system.cr4 = 0x8001_0011, 0x10000, 0x220
    system.efer = 0xD01  # NXE, LMA, LME, SCE
    system.idt.limit = system.gdt.limit = 0
    vcpu.set_system_registers(system)


def test_a_64_bit_program_in_ring_3_calls_its_kernel(guest: Guest) -> None:
    # mov rcx,100000; loop: add rax,rcx; dec rcx; jnz loop; syscall
    vcpu = guest.vcpu("48c7c1a0860100 4801c8 48ffc9 75f8 0f05")
    guest.memory.write(0x5000, bytes.fromhex("48a30020000000000000 e650 ebfe"))
    long_mode(guest, vcpu, ring=3)
    vcpu.set_msrs({0xC000_0081: 0x13 << 48 | 8 << 32, 0xC000_0082: 0x5000, 0xC000_0084: 0})
    guest.on_write = vcpu.request_exit  # paravirtual KVMs refuse HLT after a SYSCALL
    assert vcpu.run() is VcpuExit.INTERRUPTED, vcpu.error
    expected = sum(range(1, 100001))
    assert int.from_bytes(guest.memory.read(0x2000, 8), "little") == expected
    assert guest.out == [(1, expected & 0xFF)]


def test_the_probe_agrees_with_itself() -> None:
    from vdisk.vm.accel import kvm_probe

    assert kvm_probe.available() == (kvm_probe.problem() is None)
