"""Integer arithmetic, logic and moves (SDM volume 2; the operations of volume 1, section 7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.flags import Family

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
DIVIDE_ERROR = 0
INVALID_OPCODE = 6


# -- ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC, DEC, NEG, NOT ---------------------------


@semantic("add")
def add(c: Context) -> None:
    right = c.read(1)
    _, result = c.modify(0, lambda left: left + right)
    c.flags(Family.ADD, result, right)


@semantic("adc")
def adc(c: Context) -> None:
    right, carry = c.read(1), c.carry().zext(c.type)
    _, result = c.modify(0, lambda left: left + right + carry)
    c.flags(Family.ADC, result, right, carry)


@semantic("sub")
def sub(c: Context) -> None:
    right = c.read(1)
    left, _ = c.modify(0, lambda left: left - right)
    c.flags(Family.SUB, left, right)


@semantic("sbb")
def sbb(c: Context) -> None:
    right, borrow = c.read(1), c.carry().zext(c.type)
    left, _ = c.modify(0, lambda left: left - right - borrow)
    c.flags(Family.SBB, left, right, borrow)


@semantic("cmp")
def cmp(c: Context) -> None:
    left = c.read(0)
    c.flags(Family.SUB, left, c.read(1))


@semantic("and", "or", "xor")
def logic(c: Context) -> None:
    right, operation = c.read(1), c.shape.operation
    _, result = c.modify(0, lambda left: c.b.binary(operation, left, right))
    c.flags(Family.LOGIC, result)


@semantic("zero")
def zero(c: Context) -> None:
    """XOR or SUB of a register with itself."""
    result = c.const(0)
    c.write(0, result)
    c.flags(Family.LOGIC, result)


@semantic("test")
def test(c: Context) -> None:
    left = c.read(0)
    c.flags(Family.LOGIC, left & c.read(1))


@semantic("inc", "dec")
def inc_dec(c: Context) -> None:
    up = c.shape.operation == "inc"
    _, result = c.modify(0, lambda old: old + (1 if up else -1))
    if c.shape.flags:
        if not c.shape.variant:  # variant 1: nobody looks at CF any more
            c.b.call("save_carry")
        c.flags(Family.INC if up else Family.DEC, result)


@semantic("neg")
def neg(c: Context) -> None:
    old, _ = c.modify(0, lambda old: -old)
    c.flags(Family.SUB, c.const(0), old)


@semantic("not")
def not_(c: Context) -> None:
    c.modify(0, lambda old: ~old)


# -- MOV, MOVZX, MOVSX, LEA, XCHG, BSWAP, XADD, CMPXCHG ---------------------------------------


@semantic("mov")
def mov(c: Context) -> None:
    c.write(0, c.read(1))


@semantic("mov_wide")
def mov_wide(c: Context) -> None:
    """MOV r64, imm64."""
    c.write(0, c.b.param("wide"))


@semantic("movzx")
def movzx(c: Context) -> None:
    c.write(0, c.read(1, c.shape.variant).zext(c.type))


@semantic("movsx")
def movsx(c: Context) -> None:
    c.write(0, c.read(1, c.shape.variant).sext(c.type))


@semantic("lea")
def lea(c: Context) -> None:
    c.write(0, c.offset().to(c.type))


@semantic("xchg")
def xchg(c: Context) -> None:
    """XCHG; with memory it is atomic even without LOCK."""
    other = 1 - c.shape.operands.index("m") if "m" in c.shape.operands else 1
    value = c.read(other)
    old, _ = c.modify(1 - other, lambda _: value)
    c.write(other, old)


@semantic("bswap")
def bswap(c: Context) -> None:
    """Of 16 bits it is undefined; processors give zero."""
    if c.size == 16:
        c.write(0, c.const(0))
        return
    c.write(0, c.b.unary("bswap", c.read(0)))


@semantic("movbe")
def movbe(c: Context) -> None:
    c.write(0, c.b.unary("bswap", c.read(1)))


@semantic("xadd")
def xadd(c: Context) -> None:
    right = c.read(1)
    left, result = c.modify(0, lambda left: left + right)
    if c.kind(0) == "r":  # the destination is written last where both are one register
        c.write(1, left)
        c.write(0, result)
    else:
        c.write(1, left)
    c.flags(Family.ADD, result, right)


@semantic("cmpxchg")
def cmpxchg(c: Context) -> None:
    """What is not exchanged is not written, not even a register's upper half."""
    b, new, expected = c.b, c.read(1), c.gpr(RAX)
    if c.kind(0) == "m":
        old, _ = c.modify(0, lambda old: b.select(old.eq(expected), new, old))
    else:
        old = c.read(0)
        with b.if_(old.eq(expected)):
            c.write(0, new)
    with b.if_(old.ne(expected)):
        c.set_gpr(RAX, old)
    c.flags(Family.SUB, expected, old)


@semantic("cmpxchg_pair")
def cmpxchg_pair(c: Context) -> None:
    """CMPXCHG8B and CMPXCHG16B; ``size`` is the width of half the operand."""
    b, half = c.b, c.size
    wide = f"i{2 * half}"
    low, high = c.gpr(RAX), c.gpr(RDX)
    expected = low.zext(wide) | (high.zext(wide) << half)
    new = c.gpr(RBX).zext(wide) | (c.gpr(RCX).zext(wide) << half)
    linear = c.linear(2 * half, write=True)
    if half == 64:
        with b.if_((linear & 15).ne(0), unlikely=True):
            c.raise_(13)
    c.check_write(linear, half // 4)
    old = b.variable(wide)
    entry = b.tlb() + ((linear >> 7) & 0x1FE0)
    page = linear + (half // 4 - 1) & ~0xFFF
    with b.if_(b.load_state(entry + 8, "i64").eq(page)):
        host = linear + b.load_state(entry + 16, "i64")
        found, _ = b.exchange_host(host, expected, new)
        old.set(found)
    with b.else_():
        size = b.const("i64", half // 4)
        host = b.call("locked_address", b.tlb(), linear, size)
        with b.if_(host.ne(0)):
            found, _ = b.exchange_host(host, expected, new)
            old.set(found)
            b.call("stored", host - b.get("memory"), size)
        with b.else_():
            if c.shape.lock:
                c.own_bus()
            found = c.load(linear, wide)
            old.set(found)
            c.store(linear, b.select(found.eq(expected), new, found))
    same = old.get().eq(expected)
    with b.if_(~same):
        c.set_gpr(RAX, old.get().trunc(c.type))
        c.set_gpr(RDX, (old.get() >> half).trunc(c.type))
    c.set_flags(ZF=same)


# -- sign extension in the accumulator ---------------------------------------------------------


@semantic("extend_accumulator")
def extend_accumulator(c: Context) -> None:
    """CBW, CWDE, CDQE: ``size`` is the width of the result."""
    c.set_gpr(RAX, c.gpr(RAX, f"i{c.size // 2}").sext(c.type))


@semantic("extend_into_rdx")
def extend_into_rdx(c: Context) -> None:
    """CWD, CDQ, CQO."""
    c.set_gpr(RDX, c.gpr(RAX).ashr(c.size - 1))


# -- MUL, IMUL, DIV, IDIV ----------------------------------------------------------------------


def _set_product(c: Context, product: Value) -> None:
    """The double-width product to AX or rDX:rAX."""
    if c.size == 8:
        c.b.store_state(0, product)
        return
    c.set_gpr(RAX, product.trunc(c.type))
    c.set_gpr(RDX, (product >> c.size).trunc(c.type))


@semantic("mul", "imul1")
def multiply(c: Context) -> None:
    extend = "sext" if c.shape.operation == "imul1" else "zext"
    wide = f"i{2 * c.size}"
    left, right = c.gpr(RAX), c.read(0)
    product = c.b.cast(extend, left, wide) * c.b.cast(extend, right, wide)
    _set_product(c, product)
    low = product.trunc(c.type)
    overflow = product.ne(c.b.cast(extend, low, wide))
    c.bits(low, overflow, overflow)


@semantic("imul")
def imul(c: Context) -> None:
    """IMUL with two or three operands: the last two are multiplied."""
    wide = f"i{2 * c.size}"
    count = len(c.shape.operands)
    product = c.read(count - 2).sext(wide) * c.read(count - 1).sext(wide)
    low = product.trunc(c.type)
    c.write(0, low)
    overflow = product.ne(low.sext(wide))
    c.bits(low, overflow, overflow)


@semantic("mulx")
def mulx(c: Context) -> None:
    """MULX high, low, source: rDX times the source, no flags."""
    wide = f"i{2 * c.size}"
    product = c.gpr(RDX).zext(wide) * c.read(2).zext(wide)
    c.write(1, product.trunc(c.type))
    c.write(0, (product >> c.size).trunc(c.type))


@semantic("div", "idiv")
def divide(c: Context) -> None:
    is_signed = c.shape.operation == "idiv"
    divisor = c.read(0)
    with c.b.if_(divisor.eq(0), unlikely=True):
        c.raise_(DIVIDE_ERROR)
    if c.size == 64:
        quotient, remainder = _divide_128(c, divisor, is_signed)
    else:
        quotient, remainder = _divide_narrow(c, divisor, is_signed)
    if c.size == 8:
        both = quotient.zext("i16") | (remainder.zext("i16") << 8)
        c.b.store_state(0, both)
    else:
        c.set_gpr(RAX, quotient)
        c.set_gpr(RDX, remainder)


def _divide_narrow(c: Context, divisor: Value, is_signed: bool) -> tuple[Value, Value]:
    """Up to 64 bits by up to 32: the host's own division of 64 bits."""
    extend = "sext" if is_signed else "zext"
    if c.size == 8:
        dividend = c.b.cast(extend, c.gpr(RAX, "i16"), "i64")
    else:
        twice = f"i{2 * c.size}"
        both = c.gpr(RAX).zext(twice) | (c.gpr(RDX).zext(twice) << c.size)
        dividend = c.b.cast(extend, both, "i64")
    wide = c.b.cast(extend, divisor, "i64")
    if is_signed:  # the one division that overflows 64 bits would trap on the host
        lowest = c.b.const("i64", 1 << 63)
        with c.b.if_(dividend.eq(lowest) & wide.eq(-1), unlikely=True):
            c.raise_(DIVIDE_ERROR)
    quotient = dividend.sdiv(wide) if is_signed else dividend.udiv(wide)
    narrow = quotient.trunc(c.type)
    with c.b.if_(c.b.cast(extend, narrow, "i64").ne(quotient), unlikely=True):
        c.raise_(DIVIDE_ERROR)
    rest = dividend - quotient * wide
    return narrow, rest.trunc(c.type)


def _divide_128(c: Context, divisor: Value, is_signed: bool) -> tuple[Value, Value]:
    """rDX:rAX by 64 bits; signed division by way of magnitudes."""
    b = c.b
    dividend = c.gpr(RAX, "i64").zext("i128") | (c.gpr(RDX, "i64").zext("i128") << 64)
    if not is_signed:
        with b.if_(c.gpr(RDX, "i64").uge(divisor), unlikely=True):
            c.raise_(DIVIDE_ERROR)
        return b.divide_128(dividend, divisor)
    negative, opposite = dividend.slt(0), divisor.slt(0)
    size = b.select(negative, -dividend, dividend)
    by = b.select(opposite, -divisor, divisor)
    with b.if_((size >> 64).trunc("i64").uge(by), unlikely=True):
        c.raise_(DIVIDE_ERROR)
    quotient, rest = b.divide_128(size, by)
    flip = negative ^ opposite
    largest = b.select(flip, b.const("i64", 1 << 63), b.const("i64", (1 << 63) - 1))
    with b.if_(quotient.ugt(largest), unlikely=True):
        c.raise_(DIVIDE_ERROR)
    return b.select(flip, -quotient, quotient), b.select(negative, -rest, rest)


# -- conditions --------------------------------------------------------------------------------


@semantic("setcc")
def setcc(c: Context) -> None:
    c.write(0, c.condition(c.shape.variant).zext("i8"))


@semantic("cmovcc")
def cmovcc(c: Context) -> None:
    """The source is read and a 32-bit destination's upper half cleared in any case."""
    source, old = c.read(1), c.read(0)
    c.write(0, c.b.select(c.condition(c.shape.variant), source, old))


# -- flags -------------------------------------------------------------------------------------


@semantic("set_carry")
def set_carry(c: Context) -> None:
    """CLC (variant 0), STC (1), CMC (2)."""
    if c.shape.variant == 2:
        c.set_flags(CF=~c.carry())
    else:
        c.set_flags(CF=c.const(c.shape.variant, "i1"))


@semantic("lahf")
def lahf(c: Context) -> None:
    c.b.store_state(1, (c.arithmetic_flags() & 0xD5 | 2).trunc("i8"))


@semantic("sahf")
def sahf(c: Context) -> None:
    kept = c.arithmetic_flags() & 0x800
    c.set_flags_word(kept | (c.b.load_state(1, "i8").zext("i64") & 0xD5))


@semantic("set_direction")
def set_direction(c: Context) -> None:
    """CLD (variant 0), STD (1)."""
    c.b.set("direction", -1 if c.shape.variant else 1)


@semantic("nop")
def nop(c: Context) -> None:
    """NOP, prefetches, ENDBR; LFENCE and SFENCE, since memory is ordered as the host's is."""


@semantic("mfence")
def mfence(c: Context) -> None:
    """Loads behind it wait for the stores before it: in what the host executes, too."""
    c.b.fence()


# -- decimal adjustment (not in 64-bit mode) ---------------------------------------------------


@semantic("daa", "das")
def decimal_adjust(c: Context) -> None:
    b = c.b
    down = c.shape.operation == "das"
    word, al = c.arithmetic_flags(), c.gpr(RAX, "i8")
    low = (al & 15).ugt(9) | word.bit(4)
    high = al.ugt(0x99) | word.bit(0)
    amount = b.select(low, 6, b.const("i8", 0)) + b.select(high, 0x60, b.const("i8", 0))
    result = al - amount if down else al + amount
    # DAS also borrows when the low digit's correction goes below zero
    carry = high | (low & al.ult(6)) if down else high
    b.store_state(0, result)
    c.bits(result, carry, None, low)


@semantic("aaa", "aas")
def ascii_adjust(c: Context) -> None:
    b = c.b
    ax = c.gpr(RAX, "i16")
    adjust = (ax & 15).ugt(9) | c.arithmetic_flags().bit(4)
    step = b.select(adjust, 0x106, b.const("i16", 0))
    result = (ax - step if c.shape.operation == "aas" else ax + step) & 0xFF0F
    b.store_state(0, result)
    c.bits(result.trunc("i8"), adjust, None, adjust)


@semantic("aam")
def aam(c: Context) -> None:
    base, al = c.b.param("imm").trunc("i8"), c.gpr(RAX, "i8")
    with c.b.if_(base.eq(0), unlikely=True):
        c.raise_(DIVIDE_ERROR)
    rest = al.urem(base)
    c.b.store_state(0, rest)
    c.b.store_state(1, al.udiv(base))
    c.flags(Family.LOGIC, rest)


@semantic("aad")
def aad(c: Context) -> None:
    base = c.b.param("imm").trunc("i8")
    result = c.gpr(RAX, "i8") + c.b.load_state(1, "i8") * base
    c.b.store_state(0, result.zext("i16"))
    c.flags(Family.LOGIC, result)


@semantic("touch")
def touch(c: Context) -> None:
    """A shift by an immediate of zero: nothing changes, but the operand is written."""
    c.modify(0, lambda old: old)
