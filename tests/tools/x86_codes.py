"""Which instructions there are, and what each leaves undefined.

iced-x86 names every encoding of every instruction a *Code* (``ADD_RM32_R32``) and knows its
operands, CPUID feature and undefined flags; here is what of that can be compared with another
processor, and what iced does not know.  Sources: the SDM's volume 2, per instruction.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

from iced_x86 import Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeInfo, RflagsBits

from tests.tools.cpu_state import AF, CF, OF, PF, SF, ZF

Enumerator: TypeAlias = Any
"""A Code, Register, OpKind …: an int; iced's stubs disagree about its type."""


def members(kind: Any) -> dict[str, Any]:
    """The names and values of one of iced's enumerations (modules, with stubs of classes)."""
    return {k: v for k, v in vars(kind).items() if isinstance(v, int) and not k.startswith("_")}


def words(text: str) -> frozenset[str]:
    """A set of names."""
    return frozenset(text.split())


SUPPORTED = words(
    "INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 CMOV CX8 CMPXCHG16B "
    "FPU FPU287 FPU387 MMX SSE SSE2 SSE3 SSSE3 SSE4_1 SSE4_2 AES PCLMULQDQ POPCNT LZCNT BMI1 BMI2 "
    "MOVBE ADX MULTIBYTENOP PAUSE FXSR CLFSH PREFETCHW"
)
"""The CPUID features of the processor under test, under iced's names."""

GROUPS: dict[str, frozenset[str]] = {
    "integer": words(
        "INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 CMOV CX8 CMPXCHG16B POPCNT LZCNT "
        "BMI1 BMI2 MOVBE ADX MULTIBYTENOP PAUSE CLFSH PREFETCHW"
    ),
    "x87": frozenset({"FPU", "FPU287", "FPU387", "CMOV", "SSE3"}),
    "mmx": frozenset({"MMX"}),
    "sse": frozenset({"SSE", "SSE2", "SSE3", "FXSR"}),
    "sse4": frozenset({"SSSE3", "SSE4_1", "SSE4_2"}),
    "crypto": frozenset({"AES", "PCLMULQDQ"}),
}
"""Features by the part of the processor; a Code is of the first group that has all of its own."""

NOT_COMPARED = (
    # depend on the processor or on the time
    # hypervisors report the wrong RIP
    "INT1",
    *("CPUID", "RDTSC", "RDPMC", "RDMSR", "WRMSR", "XGETBV"),
    # enter or leave the kernel, or depend on descriptor tables (tests/vm/cpu/programs has them)
    *("SYSCALL", "SYSENTER", "SYSEXIT", "SYSRET", "IRET", "RETFW", "RETFD", "RETFQ"),
    *("CALL_PTR", "CALL_M16", "JMP_PTR", "JMP_M16", "LAR", "LSL", "VERR", "VERW", "ARPL"),
    *("LDS", "LES", "LFS", "LGS", "LSS", "MOV_SREG", "POPW_CS", "POPW_DS", "POPW_ES", "POPW_SS"),
    *("POPW_FS", "POPW_GS", "POPD_CS", "POPD_DS", "POPD_ES", "POPD_SS", "POPD_FS", "POPD_GS"),
    *("POPQ_FS", "POPQ_GS"),
    # Linux carries them out for the program where the processor refuses them (UMIP)
    *("SGDT", "SIDT", "SLDT", "STR_", "SMSW"),
    # Intel: no operation; AMD: #UD where there is no memory operand
    "RESERVEDNOP_RM16_R16_0F0D",
    "RESERVEDNOP_RM32_R32_0F0D",
    "RESERVEDNOP_RM64_R64_0F0D",
)
"""Beginnings of names of Codes that a host process cannot be the truth about."""

APPROXIMATE = frozenset(
    getattr(Mnemonic, name)
    for name in words(
        "RCPSS RCPPS RSQRTSS RSQRTPS FSIN FCOS FSINCOS FPTAN FPATAN F2XM1 FYL2X FYL2XP1"
    )
)
"""Instructions whose last bits are the processor's own affair."""

C0, C1, C2, C3 = 0x100, 0x200, 0x400, 0x4000
_ALL_CONDITIONS = frozenset(
    getattr(Mnemonic, name)
    for name in words(
        "FCOM FCOMP FCOMPP FUCOM FUCOMP FUCOMPP FICOM FICOMP FTST FXAM FPREM FPREM1 FRSTOR FLDENV "
        "FXRSTOR FXRSTOR64 FNINIT FINIT FNSAVE FSAVE FNSTSW FSTSW FXSAVE FXSAVE64"
    )
)
_C2_DEFINED = frozenset(getattr(Mnemonic, name) for name in words("FSIN FCOS FSINCOS FPTAN"))

_FROM_RFLAGS_BITS = (
    (RflagsBits.OF, OF),
    (RflagsBits.SF, SF),
    (RflagsBits.ZF, ZF),
    (RflagsBits.AF, AF),
    (RflagsBits.CF, CF),
    (RflagsBits.PF, PF),
)
SHIFTS = {
    getattr(Mnemonic, name): name for name in words("SHL SAL SHR SAR ROL ROR RCL RCR SHLD SHRD")
}


CODE_NAMES: dict[Enumerator, str] = {value: name for name, value in members(Code).items()}
_FEATURE_NAMES = {value: name for name, value in members(CpuidFeature).items()}


def features_of(code: Enumerator) -> frozenset[str]:
    """The CPUID features that a Code needs."""
    instruction = Instruction()
    instruction.code = code
    return frozenset(_FEATURE_NAMES[feature] for feature in instruction.cpuid_features())


def group_of(code: Enumerator) -> str | None:
    """The part of the processor (a key of GROUPS) a Code belongs to; None: not ours."""
    needed = features_of(code)
    if "FPU" in needed or needed & {"FPU287", "FPU387"}:
        return "x87" if needed <= GROUPS["x87"] else None
    return next((name for name, features in GROUPS.items() if needed <= features), None)


@functools.cache
def codes(mode: int, features: frozenset[str] = SUPPORTED) -> tuple[Enumerator, ...]:
    """Every Code that unprivileged software may try in a mode (16, 32, 64) and compare."""
    return tuple(
        code
        for code, name in CODE_NAMES.items()
        if not name.startswith(NOT_COMPARED)
        and _is_of_mode(OpCodeInfo(code), mode)
        and features_of(code) <= features
        and (OpCodeInfo(code).encoding == EncodingKind.LEGACY or group_of(code) == "integer")
    )


def _is_of_mode(info: OpCodeInfo, mode: int) -> bool:
    """True for instructions that Intel's and AMD's processors know alike."""
    if not info.is_instruction or info.encoding not in {EncodingKind.LEGACY, EncodingKind.VEX}:
        return False
    decoders = {
        16: info.intel_decoder16 and info.amd_decoder16,
        32: info.intel_decoder32 and info.amd_decoder32,
        64: info.intel_decoder64 and info.amd_decoder64,
    }
    return decoders[mode]


def undefined_flags(instruction: Instruction, count: int | None, bits: int) -> int:
    """The flags that the instruction leaves undefined.

    ``count``: of a shift or rotate, masked as the processor does; ``bits``: its operand's size.
    """
    name = SHIFTS.get(instruction.mnemonic)
    if name is None or count is None:
        undefined = instruction.rflags_undefined
        return sum(flag for bit, flag in _FROM_RFLAGS_BITS if undefined & bit)
    if count == 0:
        return 0
    flags = 0 if count == 1 else OF
    if name in {"SHL", "SAL", "SHR", "SAR", "SHLD", "SHRD"}:
        flags |= AF
    if name in {"SHL", "SAL", "SHR"} and count >= bits:
        flags |= CF
    return flags


def undefined_status(instruction: Instruction) -> int:
    """The bits of the x87 status word that the instruction leaves undefined."""
    if instruction.mnemonic in _ALL_CONDITIONS:
        return 0
    if instruction.mnemonic in _C2_DEFINED:
        return C0 | C3
    if "FPU" in {_FEATURE_NAMES[feature][:3] for feature in instruction.cpuid_features()}:
        return C0 | C2 | C3
    return 0
