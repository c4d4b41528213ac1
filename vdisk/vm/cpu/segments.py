"""Segmentation, as accesses in a checked mode go through it (SDM volume 3, sections 5.3-5.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.faults import GP, SS
from vdisk.vm.cpu.paging import is_set
from vdisk.vm.cpu.routines import raise_fault, routine
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value

LIMIT, ATTRIBUTES = 8, 12  # from a segment's base field
assert FIELDS["es_limit"].offset == FIELDS["es_base"].offset + LIMIT
assert FIELDS["es_attributes"].offset == FIELDS["es_base"].offset + ATTRIBUTES

WRITABLE, EXPAND_DOWN, CODE, PRESENT, BIG = 0x2, 0x4, 0x8, 0x80, 0x4000
"""Bits of ``attributes`` (a code segment's 0x2 means readable, its 0x4 conforming)."""


@routine("i64", "i64", "i64", "i64")
def segment_linear(b: Builder, segment: Value, offset: Value, how: Value) -> None:
    """The linear address of ``offset``; ``how`` is the access's size times 2, plus 1 for a write.

    #GP(0), or #SS(0) in the stack segment, where limit or rights forbid it.
    """
    attributes = b.load_state(segment + ATTRIBUTES, "i32")
    limit = b.load_state(segment + LIMIT, "i32").zext("i64")
    last = offset + (how >> 1) - 1
    wrong = b.variable("i1", ~is_set(attributes, PRESENT))
    is_code = is_set(attributes, CODE)
    down = is_set(attributes, EXPAND_DOWN) & ~is_code
    with b.if_(down):
        top = b.select(is_set(attributes, BIG), 0xFFFF_FFFF, b.const("i64", 0xFFFF))
        wrong.set(wrong.get() | offset.ule(limit) | last.ugt(top))
    with b.else_():
        wrong.set(wrong.get() | last.ugt(limit))
    writable = is_set(attributes, WRITABLE)
    with b.if_(how.trunc("i1")):
        wrong.set(wrong.get() | is_code | ~writable)
    with b.else_():
        wrong.set(wrong.get() | (is_code & ~writable))
    with b.if_(wrong.get(), unlikely=True):
        with b.if_(segment.eq(FIELDS["ss_base"].offset)):
            raise_fault(b, SS)
        with b.else_():
            raise_fault(b, GP)
        b.return_(b.const("i64", 0))
    b.return_((offset + b.load_state(segment, "i64")) & 0xFFFF_FFFF)
