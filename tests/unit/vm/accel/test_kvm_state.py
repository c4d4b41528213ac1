"""KVM's structures and ours hold the same; no /dev/kvm is needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.accel import kvm_abi as abi
from vdisk.vm.accel import kvm_cpuid, kvm_state
from vdisk.vm.accel.base import (
    GPR_NAMES,
    DescriptorTable,
    FpuState,
    Registers,
    Segment,
    SystemRegisters,
)

U64 = st.integers(0, (1 << 64) - 1)
SEGMENT = st.builds(
    Segment,
    st.integers(0, 0xFFFF),
    U64,
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF).map(lambda rights: rights & 0xF0FF),
)
TABLE = st.builds(DescriptorTable, U64, st.integers(0, 0xFFFF))


def test_request_numbers_are_those_of_the_header() -> None:
    assert abi.SET_USER_MEMORY_REGION == 0x4020AE46
    assert abi.GET_REGS == 0x8090AE81
    assert abi.GET_SREGS == 0x8138AE83
    assert abi.INTERRUPT_REQUEST == 0x4004AE86
    assert abi.GET_MSRS == 0xC008AE88
    assert abi.SET_CPUID2 == 0x4008AE90
    assert abi.GET_VCPU_EVENTS == 0x8040AE9F
    assert abi.SET_DEBUGREGS == 0x4080AEA2
    assert abi.GET_XSAVE == 0x9000AEA4
    assert abi.SET_XCRS == 0x4188AEA7


@given(st.lists(U64, min_size=16, max_size=16), U64, U64)
def test_general_registers(gprs: list[int], rip: int, rflags: int) -> None:
    registers = Registers(gprs, rip, rflags)
    assert kvm_state.registers_from(kvm_state.registers_to(registers)) == registers


def test_the_order_of_general_registers_differs() -> None:
    named = {name: 0x100 + place for place, name in enumerate(GPR_NAMES)}
    packed = kvm_state.registers_to(Registers(list(named.values())))
    order = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8")
    assert abi.REGS.unpack(packed)[:9] == tuple(named[name] for name in order)


@given(st.lists(SEGMENT, min_size=8, max_size=8), TABLE, TABLE, st.lists(U64, min_size=13))
def test_system_registers(
    segments: list[Segment], gdt: DescriptorTable, idt: DescriptorTable, values: list[int]
) -> None:
    system = SystemRegisters(*segments, gdt, idt, *values[:7])
    system.dr = [*values[7:11], 0, 0, *values[11:13]]
    assert kvm_state.system_from(*kvm_state.system_to(system)) == system


def test_a_segment_that_is_not_present_is_unusable() -> None:
    packed = kvm_state.segment_to(Segment(attributes=0x0013))
    assert abi.SEGMENT.unpack(packed)[-1] == 1


def test_floating_point_registers() -> None:
    one, infinity, denormal = 0x3FFF << 64 | 1 << 63, 0x7FFF << 64 | 1 << 63, 1
    state = FpuState(
        st=[one, 0, infinity, denormal, 0, 0, 0, 0],
        status=5 << 11,  # TOP = 5: ST0-ST2 are R5-R7, ST3 is R0
        tag=0b00_01_10_11_11_11_11_10 & 0xFFFF,
        xmm=[1 << 127 | number for number in range(16)],
        opcode=0x7FF,
        instruction_pointer=1 << 47,
        data_pointer=99,
    )
    state.tag = 0b10_01_00_11_11_11_11_10  # R7 special, R6 zero, R5 valid, R0 special
    xsave = bytearray(abi.XSAVE_SIZE)
    kvm_state.put_fpu(state, xsave)
    assert kvm_state.fpu_from(xsave) == state
    assert xsave[abi.XSTATE_BV_OFFSET] == abi.XSTATE_X87_SSE


def test_cpuid_promises_only_what_is_here() -> None:
    ones = 0xFFFF_FFFF
    supported = [
        kvm_cpuid.Leaf(function, 0, 0, ones, ones, ones, ones)
        for function in (0, 1, 7, 0xB, 0x4000_0000, 0x8000_0001, 0x8000_0008)
    ]
    leaves = {leaf.function: leaf for leaf in kvm_cpuid.for_vcpu(supported, 3, has_apic=True)}
    assert 0x4000_0000 not in leaves
    assert leaves[1].ebx == 3 << 24 | 1 << 16 | 0xFFFF
    absent = kvm_cpuid.X2APIC | kvm_cpuid.TSC_DEADLINE | kvm_cpuid.HYPERVISOR | kvm_cpuid.VMX
    assert leaves[1].ecx == ones & ~absent
    assert leaves[1].edx == ones & ~kvm_cpuid.HTT
    assert leaves[7] == supported[2]
    assert leaves[0xB].edx == 3
    assert supported[1].ecx == ones  # the table for the next vCPU is as it was
    (basic,) = kvm_cpuid.for_vcpu(supported[1:2], 0, has_apic=False)
    assert not basic.edx & kvm_cpuid.APIC
    assert kvm_cpuid.unpack(kvm_cpuid.pack(supported)) == supported
