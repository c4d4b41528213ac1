"""KVM's register structures, to and from those of ``accel/base.py``."""

from __future__ import annotations

from vdisk.vm.accel import kvm_abi as abi
from vdisk.vm.accel.base import DescriptorTable, FpuState, Registers, Segment, SystemRegisters

_KVM_TO_ENCODING = (0, 3, 1, 2, 6, 7, 4, 5, *range(8, 16))
"""kvm_regs has rax rbx rcx rdx rsi rdi rsp rbp; the encoding rax rcx rdx rbx rsp rbp rsi rdi."""

PRESENT = 1 << 7
_CONTROL_NAMES = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
_TABLE_NAMES = ("gdt", "idt")


def registers_from(data: bytes | bytearray) -> Registers:
    """The general registers of a kvm_regs."""
    *values, rip, rflags = abi.REGS.unpack(data)
    gprs = [0] * 16
    for place, number in enumerate(_KVM_TO_ENCODING):
        gprs[number] = values[place]
    return Registers(gprs, rip, rflags)


def registers_to(registers: Registers) -> bytes:
    """A kvm_regs."""
    values = (registers.gprs[number] for number in _KVM_TO_ENCODING)
    return abi.REGS.pack(*values, registers.rip, registers.rflags)


def segment_from(data: bytes | bytearray, offset: int) -> Segment:
    """One kvm_segment, its rights put together again."""
    base, limit, selector, kind, present, dpl, db, s, long, g, avl, _ = abi.SEGMENT.unpack_from(
        data, offset
    )
    low = kind | s << 4 | dpl << 5 | present << 7
    return Segment(selector, base, limit, low | avl << 12 | long << 13 | db << 14 | g << 15)


def segment_to(segment: Segment) -> bytes:
    """A kvm_segment; one that is not present is unusable, as VMX wants it."""
    rights = segment.attributes
    present = rights >> 7 & 1
    return abi.SEGMENT.pack(
        segment.base,
        segment.limit,
        segment.selector,
        rights & 0xF,
        present,
        rights >> 5 & 3,
        rights >> 14 & 1,
        rights >> 4 & 1,
        rights >> 13 & 1,
        rights >> 15 & 1,
        rights >> 12 & 1,
        1 - present,
    )


def system_from(data: bytes | bytearray, debug: bytes | bytearray) -> SystemRegisters:
    """The system registers of a kvm_sregs and a kvm_debugregs."""
    system = SystemRegisters()
    for place, name in enumerate(abi.SREGS_SEGMENTS):
        setattr(system, name, segment_from(data, place * abi.SEGMENT.size))
    for place, name in enumerate(_TABLE_NAMES):
        offset = abi.SREGS_TABLES_OFFSET + place * abi.DTABLE.size
        setattr(system, name, DescriptorTable(*abi.DTABLE.unpack_from(data, offset)))
    control = abi.SREGS_CONTROL.unpack_from(data, abi.SREGS_CONTROL_OFFSET)
    for name, value in zip(_CONTROL_NAMES, control, strict=False):
        setattr(system, name, value)
    *db, dr6, dr7, _flags = abi.DEBUGREGS.unpack(debug)
    system.dr = [*db, 0, 0, dr6, dr7]
    return system


def system_to(system: SystemRegisters) -> tuple[bytes, bytes]:
    """A kvm_sregs (no interrupt waiting) and a kvm_debugregs."""
    segments = (segment_to(getattr(system, name)) for name in abi.SREGS_SEGMENTS)
    tables = (getattr(system, name) for name in _TABLE_NAMES)
    control = (getattr(system, name) for name in _CONTROL_NAMES)
    data = b"".join(segments)
    data += b"".join(abi.DTABLE.pack(table.base, table.limit) for table in tables)
    data += abi.SREGS_CONTROL.pack(*control, 0, 0, 0, 0)
    return data, abi.DEBUGREGS.pack(*system.dr[:4], system.dr[6], system.dr[7], 0)


def fpu_from(xsave: bytes | bytearray) -> FpuState:
    """The floating-point state of a kvm_xsave; its tag word is FXSAVE's abridged one."""
    control, status, abridged, opcode, ip, dp, mxcsr, st, xmm = abi.FXSAVE.unpack_from(xsave)
    registers = [int.from_bytes(st[16 * i : 16 * i + 10], "little") for i in range(8)]
    return FpuState(
        st=registers,
        control=control,
        status=status,
        tag=full_tag(abridged, registers, status >> 11 & 7),
        opcode=opcode,
        instruction_pointer=ip,
        data_pointer=dp,
        xmm=[int.from_bytes(xmm[16 * i : 16 * i + 16], "little") for i in range(16)],
        mxcsr=mxcsr,
    )


def put_fpu(state: FpuState, xsave: bytearray) -> None:
    """Write ``state`` into a kvm_xsave, which keeps what else it holds."""
    abi.FXSAVE.pack_into(
        xsave,
        0,
        state.control,
        state.status,
        abridged_tag(state.tag),
        state.opcode,
        state.instruction_pointer,
        state.data_pointer,
        state.mxcsr,
        b"".join(value.to_bytes(16, "little") for value in state.st),
        b"".join(value.to_bytes(16, "little") for value in state.xmm),
    )
    (present,) = abi.XSTATE_BV.unpack_from(xsave, abi.XSTATE_BV_OFFSET)
    abi.XSTATE_BV.pack_into(xsave, abi.XSTATE_BV_OFFSET, present | abi.XSTATE_X87_SSE)


def abridged_tag(tag: int) -> int:
    """A bit a physical register: 1 where it is not empty (FXSAVE)."""
    return sum(1 << i for i in range(8) if tag >> 2 * i & 3 != 3)


def full_tag(abridged: int, st: list[int], top: int) -> int:
    """Two bits a physical register: 0 valid, 1 zero, 2 special, 3 empty (SDM 1, 8.1.7)."""
    tag = 0
    for physical in range(8):
        value = st[physical - top & 7]
        kind = _tag_of(value) if abridged >> physical & 1 else 3
        tag |= kind << 2 * physical
    return tag


def _tag_of(value: int) -> int:
    exponent, significand = value >> 64 & 0x7FFF, value & (1 << 64) - 1
    if exponent == 0 and significand == 0:
        return 1
    normal = exponent not in (0, 0x7FFF) and significand >> 63
    return 0 if normal else 2
