"""x87: loading, storing and moving registers (SDM volume 1, section 8.3.3; volume 2 by name)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.x87_host import (
    load_on_host,
    loaded_on_host,
    move_on_host,
    run_on_host,
    store_on_host,
    stored_on_host,
)
from vdisk.vm.cpu.semantics.x87_stack import (
    C1,
    IE,
    INDEFINITE,
    OE,
    UE,
    UNCHECKED,
    Fpu,
    name_of,
)

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value


def memory(c: Context, size: int) -> Value:
    """A memory operand, for an instruction that the host has not carried out already."""
    value = c.load(c.linear(size), f"i{size}")
    loaded_on_host(c, value)
    return value.zext("i128")


def _push_checked(fpu: Fpu, value: Value) -> None:
    """Push; a full stack is #IS, and the masked answer the indefinite value."""
    b = fpu.b
    with b.if_(fpu.empty(7)):
        fpu.conditions(0, C1)
        fpu.push(value)
    with b.else_():
        masked = fpu.stack_fault(overflow=True)
        with b.if_(masked):
            fpu.push(b.const("i128", INDEFINITE))


@semantic("fld")
def fld(c: Context) -> None:
    """FLD m32, m64; FILD, FBLD: converted.  Variant: which."""
    if load_on_host(c, c.size):
        return
    fpu = Fpu(c)
    value = memory(c, c.size)
    b = fpu.b
    with b.if_(fpu.empty(7)):
        result = fpu.compute(name_of(c), b.const("i128", 0), value)
        fpu.conditions(0, C1)
        with b.if_(result.settle(0, stops=IE)):
            fpu.push(result.value)
    with b.else_():
        with b.if_(fpu.stack_fault(overflow=True)):
            fpu.push(b.const("i128", INDEFINITE))


@semantic("fld80")
def fld80(c: Context) -> None:
    if load_on_host(c, 80):
        return
    fpu = Fpu(c)
    _push_checked(fpu, memory(c, 80))


@semantic("fld_register")
def fld_register(c: Context) -> None:
    """FLD ST(i); an empty source is #IS too."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    with b.if_(fpu.empty(index)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.push(b.const("i128", INDEFINITE))
    with b.else_():
        _push_checked(fpu, fpu.read(index))


@semantic("fld_constant")
def fld_constant(c: Context) -> None:
    """FLD1, FLDPI …: rounded as the control word says."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    result = fpu.compute(name_of(c), c.b.const("i128", 0))
    _push_checked(fpu, result.value)


@semantic("fst")
def fst(c: Context) -> None:
    """FST, FSTP, FIST, FISTP, FISTTP, FBSTP to memory: converted."""
    if store_on_host(c, c.size):
        return
    fpu = Fpu(c)
    b, name, kind = c.b, name_of(c), c.type
    linear = c.linear(c.size, write=True)
    c.check_write(linear, c.size // 8)
    stored_on_host(c, linear, kind)
    value = b.variable("i128", fpu.read(0))
    store = b.variable("i1", 1)
    with b.if_(fpu.empty(0)):
        store.set(fpu.stack_fault(overflow=False))
        value.set(b.const("i128", STORED_INDEFINITE[name]))
    with b.else_():
        result = fpu.compute(name, value.get())
        result.withhold(IE | OE | UE)
        store.set(result.settle(stops=IE | OE | UE))
        value.set(result.value)
    with b.if_(store.get()):
        c.store(linear, value.get().trunc(kind))
        fpu.finish()


STORED_INDEFINITE = {
    "fst_m32": 0xFFC0_0000,
    "fst_m64": 0xFFF8_0000_0000_0000,
    **dict.fromkeys(("fist_m16", "fistt_m16"), 0x8000),
    **dict.fromkeys(("fist_m32", "fistt_m32"), 0x8000_0000),
    **dict.fromkeys(("fist_m64", "fistt_m64"), 1 << 63),
    "fbst_m80": 0xFFFF_C000_0000_0000_0000,
}


@semantic("fst80")
def fst80(c: Context) -> None:
    """FSTP m80: as it stands."""
    if store_on_host(c, 80):
        return
    fpu = Fpu(c)
    b = c.b
    linear = c.linear(80, write=True)
    c.check_write(linear, 10)
    stored_on_host(c, linear, "i80")
    value, store = b.variable("i128", fpu.read(0)), b.variable("i1", 1)
    with b.if_(fpu.empty(0)):
        store.set(fpu.stack_fault(overflow=False))
        value.set(b.const("i128", INDEFINITE))
    with b.else_():
        fpu.conditions(0, C1)
    with b.if_(store.get()):
        c.store(linear, value.get().trunc("i80"))
        fpu.finish()


@semantic("fst_register")
def fst_register(c: Context) -> None:
    """FST ST(i), FSTP ST(i); FSTPNCE, which only pops where there is nothing to copy."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    with b.if_(fpu.empty(0)):
        if c.shape.variant & UNCHECKED:
            fpu.conditions(0, C1)
            fpu.finish()
        else:
            with b.if_(fpu.stack_fault(overflow=False)):
                fpu.write(index, b.const("i128", INDEFINITE))
                fpu.finish()
    with b.else_():
        fpu.conditions(0, C1)
        fpu.write(index, fpu.read(0))
        fpu.finish()


@semantic("fxch")
def fxch(c: Context) -> None:
    """Empty registers become indefinite first."""
    if run_on_host(c):
        return
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    go_on = b.variable("i1", 1)
    indefinite = b.const("i128", INDEFINITE)
    fpu.conditions(0, C1)
    either = fpu.empty(0) | fpu.empty(index)
    with b.if_(either):
        masked = fpu.stack_fault(overflow=False)
        go_on.set(masked)
        with b.if_(masked):
            for place in (b.const("i32", 0), index):
                with b.if_(fpu.empty(place)):
                    fpu.write(place, indefinite)
    with b.if_(go_on.get()):
        top, other = fpu.read(0), fpu.read(index)
        fpu.write(0, other)
        fpu.write(index, top)


@semantic("fcmov")
def fcmov(c: Context) -> None:
    """Variant: the condition, of Jcc."""
    taken = c.condition(c.shape.variant & 15)
    if move_on_host(c, taken):
        return
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    with b.if_(fpu.empty(0) | fpu.empty(index)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(0, b.const("i128", INDEFINITE))
    with b.else_():
        with b.if_(taken):
            fpu.write(0, fpu.read(index))
