"""Which x87 mnemonic is which operation (SDM volume 1, section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Mnemonic, OpCodeOperandKind, Register

from vdisk.vm.cpu.lowering import LOWER, Lowering
from vdisk.vm.cpu.lowering import lower as on
from vdisk.vm.cpu.semantics.x87_host import host_code
from vdisk.vm.cpu.semantics.x87_stack import POP_ONCE, POP_TWICE, TO_OTHER, UNCHECKED, number_of

if TYPE_CHECKING:
    from vdisk.vm.cpu.decode import Pattern


def _host(d: Lowering, index: int = 0) -> int:
    """The instruction itself, as a part of ``variant``; ``index`` of ST(i), where it has one."""
    code = d.op_code
    if code.op_code_len == 1:
        return host_code(code.op_code, code.group_index << 3)
    kinds = [code.op_kind(n) for n in range(code.op_count)]
    low = code.op_code & 0xFF | (index if OpCodeOperandKind.STI_OPCODE in kinds else 0)
    return host_code(code.op_code >> 8, low)


def _with_memory(d: Lowering, operation: str, size: int, variant: int) -> list[Pattern]:
    op = d.op(operation, size, variant=variant | _host(d))
    d.memory(op)
    op.shape = op.shape._replace(operands="m")
    return [*d.before, op]


def _stack_index(d: Lowering, operand: int) -> int:
    return d.register(operand) - Register.ST0


def _on_stack(d: Lowering, operation: str, index: int, variant: int = 0) -> list[Pattern]:
    op = d.op(operation, 80, variant=variant | _host(d, index))
    op.imm = index
    return [op]


def _plain(name: str, operation: str, variant: int) -> None:
    def function(d: Lowering) -> list[Pattern]:
        return [d.op(operation, 80, variant=variant | _host(d))]

    LOWER[getattr(Mnemonic, name)] = function


BINARY = ("FADD", "FMUL", "FSUB", "FSUBR", "FDIV", "FDIVR")
for _name in BINARY:

    def _binary(d: Lowering, name: str = _name.lower()) -> list[Pattern]:
        if d.has_memory():
            return _with_memory(d, "f_memory", d.memory_size, number_of(f"{name}_m{d.memory_size}"))
        to_other = d.register(0) != Register.ST0
        index = _stack_index(d, 0) or _stack_index(d, 1)
        variant = number_of(name) | (TO_OTHER if to_other else 0)
        return _on_stack(d, "f_binary", index, variant)

    def _popping(d: Lowering, name: str = _name.lower()) -> list[Pattern]:
        return _on_stack(d, "f_binary", _stack_index(d, 0), number_of(name) | TO_OTHER | POP_ONCE)

    def _integer(d: Lowering, name: str = _name.lower()) -> list[Pattern]:
        size = d.memory_size
        return _with_memory(d, "f_memory", size, number_of(f"fi{name[1:]}_m{size}"))

    LOWER[getattr(Mnemonic, _name)] = _binary
    LOWER[getattr(Mnemonic, _name + "P")] = _popping
    LOWER[getattr(Mnemonic, "FI" + _name[1:])] = _integer

for _name in ("FSQRT", "FRNDINT", "F2XM1", "FSIN", "FCOS"):
    _plain(_name, "f_unary", number_of(_name.lower()))
for _name in ("FSCALE", "FPREM", "FPREM1", "FPATAN", "FYL2X", "FYL2XP1"):
    _plain(_name, "f_two", number_of(_name.lower()))
for _name in ("FXTRACT", "FSINCOS", "FPTAN"):
    _plain(_name, "f_split", number_of(_name.lower()))
for _name in ("FLD1", "FLDL2T", "FLDL2E", "FLDPI", "FLDLG2", "FLDLN2", "FLDZ"):
    _plain(_name, "fld_constant", number_of(_name.lower()))
for _name, _operation, _variant in (
    ("FCHS", "f_sign", 0),
    ("FABS", "f_sign", 1),
    ("FXAM", "fxam", 0),
    ("FTST", "f_compare", number_of("ftst")),
    ("FNOP", "f_stack", 0),
    ("FINCSTP", "f_stack", 1),
    ("FDECSTP", "f_stack", 7),
    ("WAIT", "fwait", 0),
    ("FNCLEX", "fnclex", 0),
    ("FNINIT", "fninit", 0),
    ("FNENI", "nop", 0),
    ("FNDISI", "nop", 0),
    ("FNSETPM", "nop", 0),
):
    _plain(_name, _operation, _variant)


@on("FLD", "FILD", "FBLD")
def _fld(d: Lowering) -> list[Pattern]:
    if not d.has_memory():
        return _on_stack(d, "fld_register", _stack_index(d, 0))
    size = d.memory_size
    if d.mnemonic == Mnemonic.FLD and size == 80:
        return _with_memory(d, "fld80", 80, 0)
    stem = {Mnemonic.FLD: "fld", Mnemonic.FILD: "fild"}.get(d.mnemonic, "fbld")
    return _with_memory(d, "fld", size, number_of(f"{stem}_m{size}"))


_STORES = {
    "FST": ("fst", 0),
    "FSTP": ("fst", POP_ONCE),
    "FSTPNCE": ("fst", POP_ONCE | UNCHECKED),
    "FIST": ("fist", 0),
    "FISTP": ("fist", POP_ONCE),
    "FISTTP": ("fistt", POP_ONCE),
    "FBSTP": ("fbst", POP_ONCE),
}
for _name, (_stem, _pops) in _STORES.items():

    def _fst(d: Lowering, stem: str = _stem, pops: int = _pops) -> list[Pattern]:
        if not d.has_memory():
            return _on_stack(d, "fst_register", _stack_index(d, 0), pops)
        size = d.memory_size
        if stem == "fst" and size == 80:
            return _with_memory(d, "fst80", 80, pops)
        return _with_memory(d, "fst", size, number_of(f"{stem}_m{size}") | pops)

    LOWER[getattr(Mnemonic, _name)] = _fst


@on("FXCH")
def _fxch(d: Lowering) -> list[Pattern]:
    return _on_stack(d, "fxch", _stack_index(d, 0) or _stack_index(d, 1))


@on("FFREE", "FFREEP")
def _ffree(d: Lowering) -> list[Pattern]:
    pops = POP_ONCE if d.mnemonic == Mnemonic.FFREEP else 0
    return _on_stack(d, "ffree", _stack_index(d, 0), pops)


_MOVES = {"B": 2, "NB": 3, "E": 4, "NE": 5, "BE": 6, "NBE": 7, "U": 10, "NU": 11}
for _suffix, _code in _MOVES.items():

    def _fcmov(d: Lowering, code: int = _code) -> list[Pattern]:
        return _on_stack(d, "fcmov", _stack_index(d, 1), code)

    LOWER[getattr(Mnemonic, f"FCMOV{_suffix}")] = _fcmov

_COMPARES = {
    "FCOM": ("fcom", 0),
    "FCOMP": ("fcom", POP_ONCE),
    "FUCOM": ("fucom", 0),
    "FUCOMP": ("fucom", POP_ONCE),
    "FICOM": ("ficom", 0),
    "FICOMP": ("ficom", POP_ONCE),
}
for _name, (_stem, _pops) in _COMPARES.items():

    def _fcom(d: Lowering, stem: str = _stem, pops: int = _pops) -> list[Pattern]:
        if d.has_memory():
            size = d.memory_size
            return _with_memory(d, "f_compare", size, number_of(f"{stem}_m{size}") | pops)
        index = _stack_index(d, d.op_count - 1)
        return _on_stack(d, "f_compare", index, number_of(stem) | pops)

    LOWER[getattr(Mnemonic, _name)] = _fcom


@on("FCOMPP", "FUCOMPP")
def _fcompp(d: Lowering) -> list[Pattern]:
    name = "fcom" if d.mnemonic == Mnemonic.FCOMPP else "fucom"
    return _on_stack(d, "f_compare", 1, number_of(name) | POP_TWICE)


for _name, _stem, _pops in (
    ("FCOMI", "fcom", 0),
    ("FCOMIP", "fcom", POP_ONCE),
    ("FUCOMI", "fucom", 0),
    ("FUCOMIP", "fucom", POP_ONCE),
):

    def _fcomi(d: Lowering, stem: str = _stem, pops: int = _pops) -> list[Pattern]:
        return _on_stack(d, "f_compare_flags", _stack_index(d, 1), number_of(stem) | pops)

    LOWER[getattr(Mnemonic, _name)] = _fcomi


@on("FLDCW", "FNSTCW")
def _control(d: Lowering) -> list[Pattern]:
    name = "fldcw" if d.mnemonic == Mnemonic.FLDCW else "fnstcw"
    return _with_memory(d, name, 16, 0)


@on("FXSAVE", "FXSAVE64", "FXRSTOR", "FXRSTOR64")
def _fxsave(d: Lowering) -> list[Pattern]:
    saves = d.mnemonic in (Mnemonic.FXSAVE, Mnemonic.FXSAVE64)
    return _with_memory(d, "fxsave" if saves else "fxrstor", 512 * 8, 0)


@on("LDMXCSR", "STMXCSR")
def _mxcsr(d: Lowering) -> list[Pattern]:
    loads = d.mnemonic == Mnemonic.LDMXCSR
    return _with_memory(d, "ldmxcsr" if loads else "stmxcsr", 32, 0)


@on("FNSTSW")
def _fnstsw(d: Lowering) -> list[Pattern]:
    return [*d.before, d.with_operands("fnstsw", 16, (0,))]
