"""Shifts and rotates (SDM volume 2: SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD; BMI2's SHLX…).

Counts are masked to 5 bits (6 for 64-bit operands).  A count of zero changes no flag, so a shift
by CL keeps what was there.  OF is defined for a count of one; for others it gets the same
formula's value.  The second operand of a shift is an immediate or (variant 1) CL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.integer import RCX

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.cpu.builder import Value

    Flags = Callable[[Value, Value], None]

BY_CL = 1


def _count(c: Context) -> Value:
    """The masked count, as wide as the operation is carried out."""
    raw = c.gpr(RCX, "i8") if c.shape.variant == BY_CL else c.b.param("imm").trunc("i8")
    return (raw & (63 if c.size == 64 else 31)).zext("i64")


def _unless_zero(c: Context, count: Value, write: Callable[[], None]) -> None:
    """Leave flags only for counts that are not zero (immediates of zero are not translated)."""
    if not c.shape.flags:
        return
    if c.shape.variant == BY_CL:
        with c.b.if_(count.ne(0)):
            write()
    else:
        write()


@semantic("shl", "shr", "sar")
def shift(c: Context) -> None:
    """Carried out in 64 bits, so that counts up to 31 are in range for each narrower width."""
    count, operation = _count(c), c.shape.operation

    def change(old: Value) -> Value:
        if operation == "shl":
            return (old.zext("i64") << count).trunc(c.type)
        if operation == "shr":
            return (old.zext("i64") >> count).trunc(c.type)
        return old.sext("i64").ashr(count).trunc(c.type)

    old, result = c.modify(0, change)

    def leave_flags() -> None:
        before = (count - 1) & 63
        if operation == "shl":
            carry = _carry_of_shl(c, old, count, before)
            c.bits(result, carry, carry ^ result.slt(0))
        elif operation == "shr":
            c.bits(result, (old.zext("i64") >> before).trunc("i1"), old.slt(0))
        else:
            c.bits(result, old.sext("i64").ashr(before).trunc("i1"))

    _unless_zero(c, count, leave_flags)


def _carry_of_shl(c: Context, old: Value, count: Value, before: Value) -> Value:
    """The last bit that went out."""
    if c.size == 64:
        return (old << before).slt(0)
    return ((old.zext("i64") << count) >> c.size).trunc("i1")


@semantic("rol", "ror")
def rotate(c: Context) -> None:
    left = c.shape.operation == "rol"
    count = _count(c)
    turns = (count & (c.size - 1)).trunc(c.type)
    back = (c.const(0) - turns) & (c.size - 1)

    def change(old: Value) -> Value:
        if left:
            return (old << turns) | (old >> back)
        return (old >> turns) | (old << back)

    _, result = c.modify(0, change)

    def leave_flags() -> None:
        if left:
            carry = result.trunc("i1")
            c.set_flags(CF=carry, OF=carry ^ result.slt(0))
        else:
            carry = result.slt(0)
            c.set_flags(CF=carry, OF=carry ^ (result << 1).slt(0))

    _unless_zero(c, count, leave_flags)


@semantic("rcl", "rcr")
def rotate_through_carry(c: Context) -> None:
    """A rotation of size + 1 bits, CF being the highest."""
    left = c.shape.operation == "rcl"
    masked = _count(c)
    count = masked.urem(c.size + 1) if c.size < 32 else masked
    carry_in, carry_out = c.carry(), c.b.variable("i1")
    wide = "i128" if c.size == 64 else "i64"

    def change(old: Value) -> Value:
        ring = old.zext(wide) | (carry_in.zext(wide) << c.size)
        forward = count.to(wide)
        back = c.b.const(wide, c.size + 1) - forward
        turned = (ring << forward) | (ring >> back) if left else (ring >> forward) | (ring << back)
        carry_out.set(turned.bit(c.size))
        return turned.trunc(c.type)

    _, result = c.modify(0, change)

    def leave_flags() -> None:
        carry = carry_out.get()
        other = carry if left else (result << 1).slt(0)
        c.set_flags(CF=carry, OF=other ^ result.slt(0))

    _unless_zero(c, masked, leave_flags)


@semantic("shld", "shrd")
def double_shift(c: Context) -> None:
    """Bits of the second operand come in; for 16 bits, counts above 16 are undefined."""
    left = c.shape.operation == "shld"
    count = _count(c)
    wide = f"i{2 * max(c.size, 32)}"
    other = c.read(1)

    def change(old: Value) -> Value:
        n = count.to(wide)
        if left:
            ring = (old.zext(wide) << c.size) | other.zext(wide)
            if c.size == 16:  # counts above 16 go on with the destination's own bits
                ring = (ring << 16) | old.zext(wide)
                return ((ring << n) >> 32).trunc(c.type)
            return ((ring << n) >> c.size).trunc(c.type)
        ring = old.zext(wide) | (other.zext(wide) << c.size)
        if c.size == 16:
            ring = ring | (old.zext(wide) << 32)
        return (ring >> n).trunc(c.type)

    old, result = c.modify(0, change)

    def leave_flags() -> None:
        before = (count - 1) & 63
        if left:
            out = (old.zext("i64") << before).bit(c.size - 1)
        else:
            out = (old.zext("i64") >> before).trunc("i1")
        c.bits(result, out, (old ^ result).slt(0))

    _unless_zero(c, count, leave_flags)


@semantic("shlx", "shrx", "sarx")
def shift_without_flags(c: Context) -> None:
    count = c.read(2) & (c.size - 1)
    operation = {"shlx": "shl", "shrx": "lshr", "sarx": "ashr"}[c.shape.operation]
    c.write(0, c.b.binary(operation, c.read(1), count))


@semantic("rorx")
def rorx(c: Context) -> None:
    count = (c.b.param("imm") & (c.size - 1)).trunc(c.type)
    value = c.read(1)
    c.write(0, (value >> count) | (value << ((c.const(0) - count) & (c.size - 1))))
