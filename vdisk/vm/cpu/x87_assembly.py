"""The host's own instructions for each x87 operation, as inline assembly (AT&T syntax).

``$1`` and ``$2`` point to the operands, ``$3`` and ``$4`` to where results go; the status word of
the operation alone is left in AX.  Operations are named as in :mod:`vdisk.vm.cpu.semantics.x87`.
"""

from __future__ import annotations

_SPLITTING = {"fxtract", "fsincos", "fptan"}
_COMPARING = {"fcom", "fucom"}
_POPPING = {"fpatan", "fyl2x", "fyl2xp1"}
_TWO = {"fscale", "fprem", "fprem1"}
_BINARY = {"fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr"}


def x87_assembly(name: str) -> list[str]:
    """The host's instructions for an operation: $1 and $2 operands, $3 and $4 results."""
    stem, _, memory = name.partition("_")
    integer = stem.startswith("fi")
    suffix = {"m16": "s", "m32": "l" if integer else "s", "m64": "ll" if integer else "l"}
    if stem in {"fld", "fild", "fbld"} and memory:
        letter = "" if stem == "fbld" else suffix[memory]
        return ["fnclex", f"{stem}{letter} ($2)", "fnstsw %ax", "fstpt ($3)"]
    if stem in {"fst", "fist", "fistt", "fbst"}:
        letter = "" if stem == "fbst" else suffix[memory]
        store = f"{'fistt' if stem == 'fistt' else stem}p{letter} ($3)"
        return ["fldt ($1)", "fnclex", store, "fnstsw %ax"]
    end = ["fnstsw %ax", "fstpt ($3)"]
    if memory:
        operation = f"{stem}{suffix[memory]} ($2)"
        return ["fldt ($1)", "fnclex", operation, *end]
    if stem in _BINARY:
        operation = f"{stem} %st(1), %st"
        return ["fldt ($2)", "fldt ($1)", "fnclex", operation, *end, "fstp %st(0)"]
    if stem in _COMPARING:
        pops = ["fstp %st(0)", "fstp %st(0)"]
        return ["fldt ($2)", "fldt ($1)", "fnclex", f"{stem} %st(1)", "fnstsw %ax", *pops]
    if stem in _TWO:
        return ["fldt ($2)", "fldt ($1)", "fnclex", stem, *end, "fstp %st(0)"]
    if stem in _POPPING:
        return ["fldt ($2)", "fldt ($1)", "fnclex", stem, *end]
    if stem in _SPLITTING:
        return _split_assembly(stem)
    if stem == "ftst":
        return ["fldt ($1)", "fnclex", "ftst", "fnstsw %ax", "fstp %st(0)"]
    if stem in _CONSTANTS:
        return ["fnclex", stem, *end]
    return ["fldt ($1)", "fnclex", stem, *end]


_CONSTANTS = {"fld1", "fldl2t", "fldl2e", "fldpi", "fldlg2", "fldln2", "fldz"}


def _split_assembly(stem: str) -> list[str]:
    """Two results; FSINCOS and FPTAN leave one where the operand is out of range (C2)."""
    split = ["fldt ($1)", "fnclex", stem, "fnstsw %ax", "fstpt ($3)"]
    if stem == "fxtract":
        return [*split, "fstpt ($4)"]
    return [*split, "testb $$4, %ah", "jnz 1f", "fstpt ($4)", "1:"]
