"""x87: arithmetic and comparing (SDM volume 1, sections 8.3.5 to 8.3.7; volume 2 by name)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.x87 import memory
from vdisk.vm.cpu.semantics.x87_host import compare_on_host, load_on_host, run_on_host
from vdisk.vm.cpu.semantics.x87_stack import (
    C0,
    C1,
    C2,
    C3,
    CONDITIONS,
    DE,
    IE,
    INDEFINITE,
    SF,
    TO_OTHER,
    Fpu,
    Result,
    name_of,
)

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value


@semantic("f_binary")
def f_binary(c: Context) -> None:
    """FADD … FDIVR of ST(0) and ST(i)."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    target = index if c.shape.variant & TO_OTHER else b.const("i32", 0)
    source = b.const("i32", 0) if c.shape.variant & TO_OTHER else index
    with b.if_(fpu.empty(0) | fpu.empty(index)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(target, b.const("i128", INDEFINITE))
            fpu.finish()
    with b.else_():
        result = fpu.compute(name_of(c), fpu.read(target), fpu.read(source))
        with b.if_(result.settle()):
            fpu.write(target, result.value)
            fpu.finish()


@semantic("f_memory")
def f_memory(c: Context) -> None:
    """FADD m32 … FIDIVR m32: ST(0) and memory."""
    if load_on_host(c, c.size):
        return
    fpu = Fpu(c)
    b, value = c.b, memory(c, c.size)
    with b.if_(fpu.empty(0)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(0, b.const("i128", INDEFINITE))
    with b.else_():
        result = fpu.compute(name_of(c), fpu.read(0), value)
        with b.if_(result.settle()):
            fpu.write(0, result.value)


@semantic("f_unary")
def f_unary(c: Context) -> None:
    """FSQRT, FRNDINT, F2XM1, FSIN, FCOS: ST(0)."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, name = c.b, name_of(c)
    codes = C1 | C2 if name in {"fsin", "fcos"} else C1
    with b.if_(fpu.empty(0)):
        fpu.conditions(0, codes)
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(0, b.const("i128", INDEFINITE))
    with b.else_():
        result = fpu.compute(name, fpu.read(0))
        with b.if_(result.settle(codes)):
            fpu.write(0, result.value)


@semantic("f_sign")
def f_sign(c: Context) -> None:
    """FCHS (variant 0), FABS (1): exact, whatever stands there."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, sign = c.b, 1 << 79
    with b.if_(fpu.empty(0)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(0, b.const("i128", INDEFINITE))
    with b.else_():
        fpu.conditions(0, C1)
        old = fpu.read(0)
        fpu.write(0, old & ~sign if c.shape.variant & 1 else old ^ sign)


@semantic("f_two")
def f_two(c: Context) -> None:
    """FSCALE, FPREM, FPREM1 (ST(0) by ST(1)); FPATAN, FYL2X, FYL2XP1, which pop."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, name = c.b, name_of(c)
    pops = name in {"fpatan", "fyl2x", "fyl2xp1"}
    target = 1 if pops else 0
    with b.if_(fpu.empty(0) | fpu.empty(1)):
        if name in {"fprem", "fprem1"}:
            fpu.conditions(0, C2)
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(target, b.const("i128", INDEFINITE))
            if pops:
                fpu.pop()
    with b.else_():
        result = fpu.compute(name, fpu.read(0), fpu.read(1))
        with b.if_(result.settle(_remainder_codes(result) if name in {"fprem", "fprem1"} else C1)):
            fpu.write(target, result.value)
            if pops:
                fpu.pop()


def _remainder_codes(result: Result) -> Value:
    """The condition codes that FPREM writes: of the quotient only if there is one."""
    b = result.fpu.b
    result.fpu.conditions(0, C1 | C2)
    is_nan = ((result.value >> 64) & 0x7FFF).eq(0x7FFF)
    stopped = (result.status & ~b.get("fpu_control") & (IE | DE)).ne(0)
    return b.select(is_nan | stopped, 0, b.const("i32", CONDITIONS))


@semantic("f_split")
def f_split(c: Context) -> None:
    """FXTRACT, FSINCOS, FPTAN: ST(0) becomes two values; C2 set: nothing was done."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, name = c.b, name_of(c)
    indefinite = b.const("i128", INDEFINITE)
    with b.if_(fpu.empty(0) | ~fpu.empty(7)):
        full = ~fpu.empty(7)
        with b.if_(fpu.empty(0)):
            fpu.conditions(0, C1)
        with b.else_():
            fpu.conditions(b.select(full, C1, b.const("i32", 0)), C1)
        if name != "fxtract":
            fpu.conditions(0, C2)
        with b.if_(fpu.raised(b.const("i32", IE | SF)).eq(0)):
            fpu.write(0, indefinite)
            fpu.push(indefinite)
    with b.else_():
        result = fpu.compute(name, fpu.read(0))
        with b.if_(result.settle(C1 if name == "fxtract" else C1 | C2)):
            with b.if_((result.status & (C2 if name != "fxtract" else 0)).eq(0)):
                fpu.write(0, result.other)
                fpu.push(result.value)


# -- comparing ---------------------------------------------------------------------------------


@semantic("f_compare")
def f_compare(c: Context) -> None:
    """FCOM, FUCOM of ST(0) with ST(i), FTST, or (operand m) with memory: C0, C2, C3."""
    if load_on_host(c, c.size) if "m" in c.shape.operands else run_on_host(c):
        return
    fpu = Fpu(c)
    b, name = c.b, name_of(c)
    if "m" in c.shape.operands:
        other = memory(c, c.size)
        absent = fpu.empty(0)
    elif name == "ftst":
        absent, other = fpu.empty(0), b.const("i128", 0)
    else:
        index = b.param("imm").trunc("i32")
        absent, other = fpu.empty(0) | fpu.empty(index), fpu.read(index)
    with b.if_(absent):
        fpu.conditions(C0 | C2 | C3)
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.finish()
    with b.else_():
        result = fpu.compute(name, fpu.read(0), other)
        fpu.conditions(0, C1)
        with b.if_(result.settle(C0 | C2 | C3)):
            fpu.finish()


@semantic("f_compare_flags")
def f_compare_flags(c: Context) -> None:
    """FCOMI, FUCOMI: ZF, PF, CF like C3, C2, C0; OF, SF, AF clear."""
    if compare_on_host(c):
        return
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    with b.if_(fpu.empty(0) | fpu.empty(index)):
        c.set_flags_word(b.const("i64", 0x45))
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.finish()
    with b.else_():
        result = fpu.compute(name_of(c), fpu.read(0), fpu.read(index))
        c.set_flags_word((result.status.zext("i64") >> 8) & 0x45)
        with b.if_(result.settle(0)):
            fpu.finish()


@semantic("fxam")
def fxam(c: Context) -> None:
    """The class of ST(0): unsupported 000, NaN 001, normal 010, infinity 011, zero 100, empty 101,
    denormal 110 (C3, C2, C0); C1: its sign."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, value = c.b, fpu.read(0)
    exponent = (value >> 64).trunc("i32") & 0x7FFF
    fraction = value.trunc("i64")
    integer = fraction.slt(0)
    found = b.variable("i32", 0)
    with b.if_(exponent.eq(0)):
        found.set(b.select(fraction.eq(0), C3, b.const("i32", C3 | C2)))
    with b.else_():
        with b.if_(integer):
            rest = (fraction << 1).eq(0)
            special = b.select(rest, C2 | C0, b.const("i32", C0))
            found.set(b.select(exponent.eq(0x7FFF), special, b.const("i32", C2)))
    with b.if_(fpu.empty(0)):
        found.set(C3 | C0)
    sign = ((value >> 79).trunc("i32") & 1) << 9
    fpu.conditions(found.get() | sign)
