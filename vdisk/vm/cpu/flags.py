"""Lazy arithmetic flags: which operation left them, and how each is computed from it.

An operation stores its family and width (``cc_op``) and its operands; most results are
overwritten before anybody looks.  Families, and what ``cc_dst`` and ``cc_src`` hold:

======  ==========================  ===========================================
EFLAGS  (none)                      the flags themselves
ADD     result                      right operand
ADC     result                      right operand; ``cc_src2``: carry in
SUB     left operand                right operand (also CMP, NEG: 0 - x)
SBB     left operand                right operand; ``cc_src2``: borrow in
LOGIC   result                      (none)
INC     result                      (none); (CF is that of ``cf_op``, ``cf_dst``, …)
DEC     result                      (none)
BITS    result                      CF in bit 0, OF in bit 1, AF in bit 2
======  ==========================  ===========================================

``cc_op`` is the family times 4 plus 0, 1, 2, 3 for 8, 16, 32, 64 bits.  Values are zero-extended.
SDM volume 1, section 3.4.3; conditions: volume 1, appendix B.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value

CF, PF, AF, ZF, SF, OF = 0x001, 0x004, 0x010, 0x040, 0x080, 0x800
ARITHMETIC = CF | PF | AF | ZF | SF | OF
TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP, ID = (
    *(0x100, 0x200, 0x400, 0x3000, 0x4000),
    *(0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000),
)
ALWAYS = 0x2  # bit 1 reads as one
SHIFTS = {CF: 0, PF: 2, AF: 4, ZF: 6, SF: 7, OF: 11}


class Family(enum.IntEnum):
    """Which operation left the flags."""

    EFLAGS = 0
    ADD = 1
    ADC = 2
    SUB = 3
    SBB = 4
    LOGIC = 5
    INC = 6
    DEC = 7
    BITS = 8


SIZE_CODES = {8: 0, 16: 1, 32: 2, 64: 3}


def cc_op(family: Family, size: int) -> int:
    """What ``cc_op`` holds; EFLAGS has no width."""
    return 0 if family is Family.EFLAGS else 4 * family + SIZE_CODES[size]


ALL_CC_OPS = [
    (Family.EFLAGS, 64),
    *((family, size) for family in list(Family)[1:] for size in (8, 16, 32, 64)),
]


class Lazy:
    """The flags that one family of one width leaves, each written when it is asked for."""

    def __init__(self, b: Builder, family: Family, size: int, prefix: str = "cc") -> None:
        self.b, self.family, self.size, self.prefix = b, family, size, prefix
        self.type = f"i{size}"

    def _field(self, name: str) -> Value:
        return self.b.get(f"{self.prefix}_{name}").trunc(self.type)

    @property
    def dst(self) -> Value:
        return self._field("dst")

    @property
    def src(self) -> Value:
        return self._field("src")

    @property
    def carry_in(self) -> Value:
        return self._field("src2")

    def result(self) -> Value:
        """The result, of which ZF, SF and PF speak."""
        if self.family is Family.SUB:
            return self.dst - self.src
        if self.family is Family.SBB:
            return self.dst - self.src - self.carry_in
        return self.dst

    def _left(self) -> Value:
        """The left operand."""
        if self.family is Family.ADD:
            return self.dst - self.src
        if self.family is Family.ADC:
            return self.dst - self.src - self.carry_in
        return self.dst

    def _stored(self, flag: int) -> Value:
        return self.b.get(f"{self.prefix}_src").bit(SHIFTS[flag])

    def zf(self) -> Value:
        if self.family is Family.EFLAGS:
            return self._stored(ZF)
        if self.family is Family.SUB:
            return self.dst.eq(self.src)
        return self.result().eq(0)

    def sf(self) -> Value:
        if self.family is Family.EFLAGS:
            return self._stored(SF)
        return self.result().slt(0)

    def pf(self) -> Value:
        if self.family is Family.EFLAGS:
            return self._stored(PF)
        low = self.result().trunc("i8")
        return ~self.b.unary("ctpop", low).trunc("i1")

    def cf(self) -> Value:
        match self.family:
            case Family.EFLAGS:
                return self._stored(CF)
            case Family.BITS:
                return self.src.bit(0)
            case Family.LOGIC:
                return self.b.const("i1", 0)
            case Family.ADD:
                return self.dst.ult(self.src)
            case Family.SUB:
                return self.dst.ult(self.src)
            case Family.ADC:
                carry = self.carry_in.trunc("i1")
                return self.dst.ult(self.src) | (carry & self.dst.eq(self.src))
            case Family.SBB:
                borrow = self.carry_in.trunc("i1")
                return self.dst.ult(self.src) | (borrow & self.dst.eq(self.src))
            case _:
                return self.b.call("saved_carry").trunc("i1")

    def of(self) -> Value:
        match self.family:
            case Family.EFLAGS:
                return self._stored(OF)
            case Family.BITS:
                return self.src.bit(1)
            case Family.LOGIC:
                return self.b.const("i1", 0)
            case Family.INC:
                return self.dst.eq(1 << (self.size - 1))
            case Family.DEC:
                return self.dst.eq((1 << (self.size - 1)) - 1)
            case Family.ADD | Family.ADC:
                left = self._left()
                return ((left ^ self.dst) & (self.src ^ self.dst)).slt(0)
            case _:
                return ((self.dst ^ self.src) & (self.dst ^ self.result())).slt(0)

    def af(self) -> Value:
        match self.family:
            case Family.EFLAGS:
                return self._stored(AF)
            case Family.BITS:
                return self.src.bit(2)
            case Family.LOGIC:
                return self.b.const("i1", 0)
            case Family.INC:
                return (self.dst & 15).eq(0)
            case Family.DEC:
                return (self.dst & 15).eq(15)
            case _:
                return (self._left() ^ self.src ^ self.result()).bit(4)

    def word(self) -> Value:
        """All six as they stand in EFLAGS."""
        if self.family is Family.EFLAGS:
            return self.b.get(f"{self.prefix}_src")
        total = self.b.const("i64", 0)
        for flag, value in (
            (CF, self.cf()),
            (PF, self.pf()),
            (AF, self.af()),
            (ZF, self.zf()),
            (SF, self.sf()),
            (OF, self.of()),
        ):
            total = total | (value.zext("i64") << SHIFTS[flag])
        return total

    def condition(self, code: int) -> Value:
        """Condition ``code`` of Jcc, SETcc, CMOVcc (0: O … 15: G), as ``i1``."""
        value = self._condition(code >> 1)
        return ~value if code & 1 else value

    def _condition(self, pair: int) -> Value:
        left_and_right = self.family is Family.SUB
        match pair:
            case 0:
                return self.of()
            case 1:
                return self.cf()
            case 2:
                return self.zf()
            case 3:
                return self.dst.ule(self.src) if left_and_right else self.cf() | self.zf()
            case 4:
                return self.sf()
            case 5:
                return self.pf()
            case 6:
                return self.dst.slt(self.src) if left_and_right else self.sf() ^ self.of()
            case _:
                if left_and_right:
                    return self.dst.sle(self.src)
                return self.zf() | (self.sf() ^ self.of())


def flags_read_by_condition(code: int) -> int:
    """The flags that a condition looks at."""
    return (OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF)[code >> 1]
