"""String instructions (SDM volume 2: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with REP).

One record does one element and, with a REP prefix, comes back to itself: registers are right
after each element, so a fault or an interrupt in the middle leaves them as the manual says.  REP
MOVS and REP STOS do as many elements at once as stay within pages that the TLB knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.flags import Family
from vdisk.vm.cpu.semantics.integer import RAX, RCX, RDI, RSI
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value

REP, REPNE, BY_ELEMENT = 1, 2, 4
"""Variants; BY_ELEMENT, beside one of the others: elements are never done many at once."""
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


LEAST_RUN = 32
"""Bytes; a shorter run is done element by element."""


def _run(c: Context, s: _String, *pages: Value) -> Value:
    """How many elements a repeated instruction can do at once, upwards and within these pages."""
    b, shift = c.b, (c.size // 8).bit_length() - 1
    most = b.variable("i64", c.gpr(RCX, s.kind).zext("i64"))
    for linear in pages:
        room = (b.const("i64", 0x1000) - (linear & 0xFFF)) >> shift
        most.set(b.select(room.ult(most.get()), room, most.get()))
    upwards = b.get("direction").eq(1)
    return b.select(upwards, most.get(), b.const("i64", 0))


def _finish_run(c: Context, s: _String, count: Value, *numbers: int) -> None:
    """Registers after ``count`` elements, and on with the rest."""
    for number in numbers:
        moved = (count * (c.size // 8)).to(s.kind)
        c.set_gpr(number, c.gpr(number, s.kind) + moved)
    left = c.gpr(RCX, s.kind) - count.to(s.kind)
    c.set_gpr(RCX, left)
    with c.b.if_(left.ne(0)):
        c.b.again(count)
    c.b.next()


def _copy_run(c: Context, s: _String) -> None:
    """REP MOVS from page to page where both are in the TLB and do not overlap."""
    b = c.b
    source, target = s.source(), s.destination(write=True)
    count = _run(c, s, source, target)
    length = count * (c.size // 8)
    with b.if_(length.uge(LEAST_RUN)):
        start, end = c.host_page(source, write=False), c.host_page(target, write=True)
        with b.if_(start.ne(0) & end.ne(0)):
            first, second = start + source, end + target
            with b.if_((second - first).uge(length) & (first - second).uge(length)):
                b.copy_host(second, first, length)
                _finish_run(c, s, count, RSI, RDI)


def _fill_run(c: Context, s: _String) -> None:
    """REP STOS within a page, where all bytes of the value are one."""
    b = c.b
    target = s.destination(write=True)
    count = _run(c, s, target)
    length = count * (c.size // 8)
    byte = c.gpr(RAX, "i8")
    repeated = byte.zext(c.type) * (((1 << c.size) - 1) // 0xFF)
    with b.if_(length.uge(LEAST_RUN) & repeated.eq(c.gpr(RAX))):
        end = c.host_page(target, write=True)
        with b.if_(end.ne(0)):
            b.fill_host(end + target, byte, length)
            _finish_run(c, s, count, RDI)


@semantic("movs", ends=True)
def movs(c: Context) -> None:
    s = _String(c)
    s.begin()
    if c.shape.variant and not c.shape.variant & BY_ELEMENT:
        _copy_run(c, s)
    value = c.load(s.source(), c.type)
    c.store(s.destination(write=True), value)
    s.advance(RSI, RDI)
    s.end()


@semantic("stos", ends=True)
def stos(c: Context) -> None:
    s = _String(c)
    s.begin()
    if c.shape.variant and not c.shape.variant & BY_ELEMENT:
        _fill_run(c, s)
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
    s.end(equal if c.shape.variant & REP else ~equal)


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
