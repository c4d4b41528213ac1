"""CPUID: what the processor says of itself, which is exactly what it has (SDM volume 2, CPUID)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import monitor

if TYPE_CHECKING:
    from vdisk.vm.cpu.core import Core

VENDOR = b"GenuineIntel"
BRAND = b"vdisk recompiled x86-64 processor"
SIGNATURE = 0x0000_06FB  # family 6, model 15, stepping 11: what software knows as a Core 2

APIC_ENABLED = 1 << 11
"""Of IA32_APIC_BASE."""

FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP = 0, 2, 3, 4, 5, 6, 8, 9, 11
MTRR, PGE, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2 = 12, 13, 15, 16, 17, 19, 23, 24, 25, 26
LEAF1_EDX = (
    *(FPU, DE, PSE, TSC, MSR, PAE, CX8, SEP, MTRR, PGE, CMOV, PAT, PSE36, CLFSH, MMX, FXSR),
    *(SSE, SSE2),
)
SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, SSE4_1, SSE4_2, MOVBE, POPCNT, AES = (
    *(0, 1, 9, 13, 19, 20, 22, 23, 25),
)
LEAF1_ECX = (SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, SSE4_1, SSE4_2, MOVBE, POPCNT, AES)
MONITOR = 3
"""Of leaf 1's ECX, while IA32_MISC_ENABLE says so."""
MWAIT_EXTENSIONS = 0b11
"""Leaf 5, ECX: the extensions are listed, and masked interrupts may wake."""
NO_MWAIT_STATES = 0
"""Leaf 5, EDX.  A store ends MWAIT when somebody looks, an interrupt ends HLT at once: systems that
find no C1 here wait with HLT, and wake each other by interrupts."""
LEAF7_EBX = (3, 8, 19)  # BMI1, BMI2, ADX
LEAF7_EDX = (29,)  # IA32_ARCH_CAPABILITIES
EXTENDED_EDX = (11, 20, 27, 29)  # SYSCALL, NX, RDTSCP, long mode
EXTENDED_ECX = (0, 5)  # LAHF in long mode, LZCNT


def _bits(numbers: tuple[int, ...]) -> int:
    return sum(1 << number for number in numbers)


def _text(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def leaf(core: Core, function: int, index: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX."""
    if function >= 0x8000_0000:
        return _extended(function)
    match function:
        case 0:
            ebx, edx, ecx = _text(VENDOR)
            return 7, ebx, ecx, edx
        case 1:
            has_apic = core.apic is not None and core.state.apic_base & APIC_ENABLED
            apic = 1 << APIC if has_apic else 0
            ebx = core.index << 24 | 8 << 8 | core.count << 16
            many = 1 << 28 if core.count > 1 else 0
            monitors = 1 << MONITOR if core.state.misc_enable & monitor.ENABLED else 0
            return SIGNATURE, ebx, _bits(LEAF1_ECX) | monitors, _bits(LEAF1_EDX) | apic | many
        case 5:
            return monitor.LINE, monitor.LINE, MWAIT_EXTENSIONS, NO_MWAIT_STATES
        case 7 if index == 0:
            return 0, _bits(LEAF7_EBX), 0, _bits(LEAF7_EDX)
        case _:
            return 0, 0, 0, 0


def _extended(function: int) -> tuple[int, int, int, int]:
    match function:
        case 0x8000_0000:
            return 0x8000_0008, 0, 0, 0
        case 0x8000_0001:
            return 0, 0, _bits(EXTENDED_ECX), _bits(EXTENDED_EDX)
        case 0x8000_0002 | 0x8000_0003 | 0x8000_0004:
            at = 16 * (function - 0x8000_0002)
            eax, ebx, ecx, edx = _text(BRAND.ljust(48, b"\0")[at : at + 16])
            return eax, ebx, ecx, edx
        case 0x8000_0008:
            return 40 | 48 << 8, 0, 0, 0
        case _:
            return 0, 0, 0, 0
