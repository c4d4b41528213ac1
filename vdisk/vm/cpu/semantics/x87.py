"""The x87 FPU (SDM volume 1, chapter 8; volume 2 by name).

Arithmetic is the host's own, with the guest's rounding and precision, all exceptions masked; what
was raised comes back with the result.  Ours are the register stack, the tags, the condition codes,
and what unmasked exceptions mean: operands of an invalid, denormal or zero-divide exception stay,
and the next waiting instruction takes #MF.

``fpu_top`` is TOP, ``fpu_status`` the status word without it; ``fpu_tag`` has two bits for each
physical register, of which only 3 (empty) means something until the tag word is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

ST = FIELDS["st0"].offset
IE, DE, ZE, OE, UE, PE, SF, ES = 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80
BUSY = 0x8000
C0, C1, C2, C3 = 0x100, 0x200, 0x400, 0x4000
CONDITIONS = C0 | C1 | C2 | C3
INDEFINITE = 0xFFFF_C000_0000_0000_0000
_BINARY = ("fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr")
NAMES = (
    *_BINARY,
    *(f"{name}_m{size}" for name in (*_BINARY, "fcom") for size in (32, 64)),
    *(f"fi{name[1:]}_m{size}" for name in (*_BINARY, "fcom") for size in (16, 32)),
    *("fsqrt", "frndint", "f2xm1", "fsin", "fcos", "fscale", "fprem", "fprem1", "fpatan"),
    *("fyl2x", "fyl2xp1", "fxtract", "fsincos", "fptan", "ftst", "fcom", "fucom"),
    *("fld1", "fldl2t", "fldl2e", "fldpi", "fldlg2", "fldln2", "fldz"),
    *("fld_m32", "fld_m64", "fild_m16", "fild_m32", "fild_m64", "fbld_m80"),
    *("fst_m32", "fst_m64", "fist_m16", "fist_m32", "fist_m64"),
    *("fistt_m16", "fistt_m32", "fistt_m64", "fbst_m80"),
)
"""Operations by number; with their memory operand's size where they have one."""
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


def number_of(name: str) -> int:
    """The number of an operation, for ``variant``."""
    return _NUMBERS[name]


def name_of(c: Context) -> str:
    return NAMES[c.shape.variant & 0xFFF]


POP_ONCE, POP_TWICE, TO_OTHER, UNCHECKED = 1 << 12, 1 << 13, 1 << 14, 1 << 15
"""Bits of ``variant``: pop after it; the destination is ST(i), not ST(0); an empty source is no
fault."""


class Fpu:
    """The register stack during one instruction."""

    def __init__(self, c: Context, *, waits: bool = True) -> None:
        self.c, self.b = c, c.b
        b = c.b
        with b.if_(b.get("x87_fault").ne(0), unlikely=True):
            b.set("fault_vector", b.get("x87_fault"))
            b.set("fault_error", 0)
            b.fault()
        if waits:
            with b.if_((b.get("fpu_status") & ES).ne(0), unlikely=True):
                c.raise_(faults.MF)
            b.set("fpu_ip", b.get("code_page") + b.param("off"))

    def number(self, index: Value | int) -> Value:
        """The physical number of ST(index), ``i32``."""
        return (self.b.get("fpu_top") + index) & 7

    def offset(self, index: Value | int) -> Value:
        """Where ST(index) stands in the state."""
        return self.number(index).zext("i64") * 16 + ST

    def read(self, index: Value | int) -> Value:
        """ST(index), its 80 bits in an ``i128``."""
        return self.b.load_state(self.offset(index), "i128") & ((1 << 80) - 1)

    def empty(self, index: Value | int) -> Value:
        shift = self.number(index) * 2
        return ((self.b.get("fpu_tag") >> shift) & 3).eq(3)

    def write(self, index: Value | int, value: Value) -> None:
        """Set ST(index), which is not empty then."""
        b = self.b
        b.store_state(self.offset(index), value)
        shift = self.number(index) * 2
        b.set("fpu_tag", b.get("fpu_tag") & ~(b.const("i32", 3) << shift))

    def free(self, index: Value | int) -> None:
        b = self.b
        shift = self.number(index) * 2
        b.set("fpu_tag", b.get("fpu_tag") | (b.const("i32", 3) << shift))

    def pop(self) -> None:
        self.free(0)
        self.b.set("fpu_top", (self.b.get("fpu_top") + 1) & 7)

    def push(self, value: Value) -> None:
        self.b.set("fpu_top", (self.b.get("fpu_top") - 1) & 7)
        self.write(0, value)

    # -- status ----------------------------------------------------------------------------------

    def conditions(self, bits: Value | int, mask: Value | int = CONDITIONS) -> None:
        """Set condition codes."""
        b = self.b
        chosen, status = b.value("i32", mask), b.get("fpu_status")
        b.set("fpu_status", (status & ~chosen) | (b.value("i32", bits) & chosen))

    def raised(self, flags: Value) -> Value:
        """Note exceptions (``i32``); gives those of them that are unmasked."""
        b = self.b
        unmasked = flags & ~b.get("fpu_control") & 0x3F
        summary = b.select(unmasked.ne(0), ES | BUSY, b.const("i32", 0))
        b.set("fpu_status", b.get("fpu_status") | flags | summary)
        return unmasked

    def stack_fault(self, *, overflow: bool) -> Value:
        """#IS; true if it is masked."""
        self.conditions(C1 if overflow else 0, C1)
        return self.raised(self.b.const("i32", IE | SF)).eq(0)

    def compute(self, name: str, first: Value, second: Value | None = None) -> _Result:
        """One operation of the host."""
        other = self.b.const("i128", 0) if second is None else second
        return _Result(self, *self.b.x87(name, first, other))

    def finish(self) -> None:
        """The pops that the variant asks for."""
        if self.c.shape.variant & (POP_ONCE | POP_TWICE):
            self.pop()
        if self.c.shape.variant & POP_TWICE:
            self.pop()


class _Result:
    """What an operation of the host gave: one or two values, and its status word."""

    def __init__(self, fpu: Fpu, value: Value, other: Value, status: Value) -> None:
        self.fpu, self.value, self.other, self.status = fpu, value, other, status

    def withhold(self, stops: int) -> None:
        """Where one of ``stops`` is unmasked, there is no result, and nothing to say of it."""
        b = self.fpu.b
        stopped = (self.status & ~b.get("fpu_control") & stops).ne(0)
        hidden = PE | C1 | ((OE | UE) & ~stops)
        self.status = b.select(stopped, self.status & ~hidden, self.status)

    def settle(self, conditions: Value | int = C1, stops: int = IE | DE | ZE) -> Value:
        """Take over condition codes and exceptions; true if the result is to be stored.

        ``stops``: the exceptions that, unmasked, leave the destination as it was.
        """
        self.withhold(IE | DE | ZE)
        self.fpu.conditions(self.status, conditions)
        early = self.fpu.raised(self.status & 0x3F) & stops
        return early.eq(0)


def _memory(c: Context, size: int) -> Value:
    return c.load(c.linear(size), f"i{size}").zext("i128")


# -- loading and storing -----------------------------------------------------------------------


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
    """FLD m32, m64; FILD: converted by the host.  Variant: which."""
    fpu = Fpu(c)
    value = _memory(c, c.size)
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
    fpu = Fpu(c)
    _push_checked(fpu, _memory(c, 80))


@semantic("fld_register")
def fld_register(c: Context) -> None:
    """FLD ST(i); an empty source is #IS too."""
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
    fpu = Fpu(c)
    result = fpu.compute(name_of(c), c.b.const("i128", 0))
    _push_checked(fpu, result.value)


@semantic("fst")
def fst(c: Context) -> None:
    """FST, FSTP, FIST, FISTP, FISTTP, FBSTP to memory: converted by the host."""
    fpu = Fpu(c)
    b, name, kind = c.b, name_of(c), c.type
    linear = c.linear(c.size, write=True)
    c.check_write(linear, c.size // 8)
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
    fpu = Fpu(c)
    b = c.b
    linear = c.linear(80, write=True)
    value, store = b.variable("i128", fpu.read(0)), b.variable("i1", 1)
    c.check_write(linear, 10)
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
    fpu = Fpu(c)
    b, index = c.b, c.b.param("imm").trunc("i32")
    taken = c.condition(c.shape.variant)
    with b.if_(fpu.empty(0) | fpu.empty(index)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(0, b.const("i128", INDEFINITE))
    with b.else_():
        with b.if_(taken):
            fpu.write(0, fpu.read(index))


# -- arithmetic --------------------------------------------------------------------------------


@semantic("f_binary")
def f_binary(c: Context) -> None:
    """FADD … FDIVR of ST(0) and ST(i)."""
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
    fpu = Fpu(c)
    b, value = c.b, _memory(c, c.size)
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
    fpu = Fpu(c)
    b, sign = c.b, 1 << 79
    with b.if_(fpu.empty(0)):
        with b.if_(fpu.stack_fault(overflow=False)):
            fpu.write(0, b.const("i128", INDEFINITE))
    with b.else_():
        fpu.conditions(0, C1)
        old = fpu.read(0)
        fpu.write(0, old & ~sign if c.shape.variant else old ^ sign)


@semantic("f_two")
def f_two(c: Context) -> None:
    """FSCALE, FPREM, FPREM1 (ST(0) by ST(1)); FPATAN, FYL2X, FYL2XP1, which pop."""
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


def _remainder_codes(result: _Result) -> Value:
    """The condition codes that FPREM writes: of the quotient only if there is one."""
    b = result.fpu.b
    result.fpu.conditions(0, C1 | C2)
    is_nan = ((result.value >> 64) & 0x7FFF).eq(0x7FFF)
    stopped = (result.status & ~b.get("fpu_control") & (IE | DE)).ne(0)
    return b.select(is_nan | stopped, 0, b.const("i32", CONDITIONS))


@semantic("f_split")
def f_split(c: Context) -> None:
    """FXTRACT, FSINCOS, FPTAN: ST(0) becomes two values; C2 set: nothing was done."""
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
    fpu = Fpu(c)
    b, name = c.b, name_of(c)
    if "m" in c.shape.operands:
        absent, other = fpu.empty(0), _memory(c, c.size)
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


# -- control -----------------------------------------------------------------------------------


@semantic("f_stack")
def f_stack(c: Context) -> None:
    """FINCSTP (variant 1), FDECSTP (7), FNOP (0)."""
    fpu = Fpu(c)
    if c.shape.variant:
        c.b.set("fpu_top", (c.b.get("fpu_top") + c.shape.variant) & 7)
        fpu.conditions(0, C1)


@semantic("ffree")
def ffree(c: Context) -> None:
    fpu = Fpu(c)
    fpu.free(c.b.param("imm").trunc("i32"))
    fpu.conditions(0, C1)
    fpu.finish()


@semantic("fwait")
def fwait(c: Context) -> None:
    """#NM only with both TS and MP; #MF where an unmasked exception waits."""
    b = c.b
    with b.if_((b.get("cr0") & 0xA).eq(0xA), unlikely=True):
        c.raise_(faults.NM)
    with b.if_((b.get("fpu_status") & ES).ne(0), unlikely=True):
        c.raise_(faults.MF)


@semantic("fldcw")
def fldcw(c: Context) -> None:
    """What is unmasked now may be pending already."""
    Fpu(c)
    b = c.b
    control = (c.load(c.linear(16), "i16").zext("i32") & 0x1F7F) | 0x40
    b.set("fpu_control", control)
    status = b.get("fpu_status")
    pending = (status & ~control & 0x3F).ne(0)
    summary = b.select(pending, ES | BUSY, b.const("i32", 0))
    b.set("fpu_status", (status & ~(ES | BUSY)) | summary)


@semantic("fnstcw")
def fnstcw(c: Context) -> None:
    Fpu(c, waits=False)
    c.store(c.linear(16, write=True), c.b.get("fpu_control").trunc("i16"))


@semantic("fnstsw")
def fnstsw(c: Context) -> None:
    """To memory, or to AX."""
    Fpu(c, waits=False)
    b = c.b
    word = (b.get("fpu_status") & ~0x3800) | (b.get("fpu_top") << 11)
    c.write(0, word.trunc("i16"))


@semantic("fnclex")
def fnclex(c: Context) -> None:
    Fpu(c, waits=False)
    c.b.set("fpu_status", c.b.get("fpu_status") & 0x7F00)


@semantic("fninit")
def fninit(c: Context) -> None:
    Fpu(c, waits=False)
    for name, value in (
        *(("fpu_control", 0x37F), ("fpu_status", 0), ("fpu_top", 0), ("fpu_tag", 0xFFFF)),
        *(("fpu_opcode", 0), ("fpu_ip", 0), ("fpu_dp", 0)),
    ):
        c.b.set(name, value)
