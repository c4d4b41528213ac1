"""String instructions (SDM volume 2: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with REP).

One record does one element and, with a REP prefix, comes back to itself: registers are right
after each element, so a fault or an interrupt in the middle leaves them as the manual says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.flags import Family
from vdisk.vm.cpu.semantics.integer import RAX, RCX, RDI, RSI
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

REP, REPNE = 1, 2
ES_BASE = FIELDS["es_base"].offset


class _String:
    """The addresses and counts of one string instruction."""

    def __init__(self, c: Context) -> None:
        self.c, self.b = c, c.b
        self.kind = f"i{c.shape.address[:2]}"
        self.step = (self.b.get("direction") * (c.size // 8)).to(self.kind)

    def source(self) -> Value:
        """DS:rSI, or another segment; linear."""
        offset = self.c.gpr(RSI, self.kind).zext("i64")
        return self.c.segmented(offset, self.c.size // 8, write=False)

    def destination(self, *, write: bool) -> Value:
        """ES:rDI; no prefix changes the segment."""
        c = self.c
        offset = c.gpr(RDI, self.kind).zext("i64")
        if "c" in c.shape.address:
            return c.checked(self.b.const("i64", ES_BASE), offset, c.size // 8, write)
        return offset

    def advance(self, *numbers: int) -> None:
        """Move rSI or rDI."""
        for number in numbers:
            self.c.set_gpr(number, self.c.gpr(number, self.kind) + self.step)

    def begin(self) -> None:
        """With REP: nothing is done where the count is zero."""
        if self.c.shape.variant:
            with self.b.if_(self.c.gpr(RCX, self.kind).eq(0), unlikely=True):
                self.b.next()

    def end(self, go_on: Value | None = None) -> None:
        """With REP: count, and come back while there is more to do."""
        if not self.c.shape.variant:
            self.b.next()
            return
        count = self.c.gpr(RCX, self.kind) - 1
        self.c.set_gpr(RCX, count)
        more = count.ne(0)
        with self.b.if_(more if go_on is None else more & go_on):
            self.b.again()
        self.b.next()


@semantic("movs", ends=True)
def movs(c: Context) -> None:
    s = _String(c)
    s.begin()
    value = c.load(s.source(), c.type)
    c.store(s.destination(write=True), value)
    s.advance(RSI, RDI)
    s.end()


@semantic("stos", ends=True)
def stos(c: Context) -> None:
    s = _String(c)
    s.begin()
    c.store(s.destination(write=True), c.gpr(RAX))
    s.advance(RDI)
    s.end()


@semantic("lods", ends=True)
def lods(c: Context) -> None:
    s = _String(c)
    s.begin()
    c.set_gpr(RAX, c.load(s.source(), c.type))
    s.advance(RSI)
    s.end()


def _compare_and_end(c: Context, s: _String, left: Value, right: Value) -> None:
    c.flags(Family.SUB, left, right)
    equal = left.eq(right)
    s.end(equal if c.shape.variant == REP else ~equal)


@semantic("scas", ends=True)
def scas(c: Context) -> None:
    s = _String(c)
    s.begin()
    right = c.load(s.destination(write=False), c.type)
    s.advance(RDI)
    _compare_and_end(c, s, c.gpr(RAX), right)


@semantic("cmps", ends=True)
def cmps(c: Context) -> None:
    s = _String(c)
    s.begin()
    left = c.load(s.source(), c.type)
    right = c.load(s.destination(write=False), c.type)
    s.advance(RSI, RDI)
    _compare_and_end(c, s, left, right)
