"""The host's own instructions for each x87 operation, as inline assembly (AT&T syntax).

``$1`` and ``$2`` point to the operands, ``$3`` and ``$4`` to where results go; the status word of
the operation alone is left in AX.  Names: :mod:`vdisk.vm.cpu.semantics.x87_stack`.
"""

from __future__ import annotations

STATUS = ["fnstsw %ax", "fnclex"]
"""What was raised; without the second no unmasked exception is raised at the next instruction."""
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
        if stem == "fst":  # an unmasked overflow or underflow would hold back the pop
            return ["fldt ($1)", "fnclex", f"fst{letter} ($3)", *STATUS, "fstp %st(0)"]
        return ["fldt ($1)", "fnclex", f"{stem}p{letter} ($3)", "fnstsw %ax"]
    end = [*STATUS, "fstpt ($3)"]
    if memory:
        operation = f"{stem}{suffix[memory]} ($2)"
        return ["fldt ($1)", "fnclex", operation, *end]
    if stem in _BINARY:
        operation = f"{stem} %st(1), %st"
        return ["fldt ($2)", "fldt ($1)", "fnclex", operation, *end, "fstp %st(0)"]
    if stem in _COMPARING:
        pops = ["fstp %st(0)", "fstp %st(0)"]
        return ["fldt ($2)", "fldt ($1)", "fnclex", f"{stem} %st(1)", *STATUS, *pops]
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
    split = ["fldt ($1)", "fnclex", stem, *STATUS, "fstpt ($3)"]
    if stem == "fxtract":
        return [*split, "fstpt ($4)"]
    return [*split, "testb $$4, %ah", "jnz 1f", "fstpt ($4)", "1:"]
