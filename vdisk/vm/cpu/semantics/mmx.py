"""MMX (SDM volume 1, chapter 9; volume 2 by name).

MMX registers are the 64-bit significands of x87 registers; their instructions are those of SSE on
the low half, with operands arranged where halves matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.integer import RDI
from vdisk.vm.cpu.semantics.sse import (
    available,
    begin_exceptions,
    element,
    end_exceptions,
    name_of,
    set_xmm,
    source,
)
from vdisk.vm.cpu.semantics.x87_host import in_state

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value


def mmx_available(c: Context) -> None:
    """#UD, #NM, #MF as for x87; then every register counts as valid and TOP is 0."""
    b = c.b
    in_state(c)
    with b.if_(b.get("mmx_fault").ne(0), unlikely=True):
        b.set("fault_vector", b.get("mmx_fault"))
        b.set("fault_error", 0)
        b.fault()
    with b.if_((b.get("fpu_status") & 0x80).ne(0), unlikely=True):
        c.raise_(faults.MF)


def mmx_used(c: Context) -> None:
    c.b.set("fpu_top", 0)
    c.b.set("fpu_tag", 0)


def set_mmx(c: Context, index: int, value: Value) -> None:
    """A register's significand; its exponent becomes all ones."""
    mmx_used(c)
    c.b.store_state(c.register(index), value.zext("i128") | (0xFFFF << 64))


def _narrow(c: Context, index: int) -> Value:
    return source(c, index, c.size if c.kind(index) == "m" else 64)


@semantic("mmx")
def mmx(c: Context) -> None:
    """An instruction whose lanes are independent: SSE's on the low half."""
    mmx_available(c)
    name, immediate = name_of(c.shape.variant)
    result = c.b.sse(name, immediate, _narrow(c, 0), _narrow(c, 1))
    set_mmx(c, 0, result.trunc("i64"))


@semantic("mmx_shift")
def mmx_shift(c: Context) -> None:
    """A shift of an MMX register by an immediate."""
    mmx_available(c)
    name, immediate = name_of(c.shape.variant)
    result = c.b.sse_shift(name, immediate or 0, _narrow(c, 0))
    set_mmx(c, 0, result.trunc("i64"))


@semantic("mmx_joined")
def mmx_joined(c: Context) -> None:
    """PACK…, PHADD…: the destination below, the source above, and SSE's low half."""
    mmx_available(c)
    name, _ = name_of(c.shape.variant)
    both = _narrow(c, 0) | (_narrow(c, 1) << 64)
    set_mmx(c, 0, c.b.sse(name, None, both, both).trunc("i64"))


@semantic("mmx_high")
def mmx_high(c: Context) -> None:
    """PUNPCKH…: the upper half of what SSE's PUNPCKL… makes."""
    mmx_available(c)
    name, _ = name_of(c.shape.variant)
    result = c.b.sse(name.replace("punpckh", "punpckl"), None, _narrow(c, 0), _narrow(c, 1))
    set_mmx(c, 0, (result >> 64).trunc("i64"))


@semantic("mmx_pshufb")
def mmx_pshufb(c: Context) -> None:
    mmx_available(c)
    control = _narrow(c, 1) & 0x8787_8787_8787_8787
    set_mmx(c, 0, c.b.sse("pshufb", None, _narrow(c, 0), control).trunc("i64"))


@semantic("mmx_palignr")
def mmx_palignr(c: Context) -> None:
    mmx_available(c)
    _, immediate = name_of(c.shape.variant)
    both = _narrow(c, 1) | (_narrow(c, 0) << 64)
    count = 8 * (immediate or 0)
    result = both >> count if count < 128 else c.b.const("i128", 0)
    set_mmx(c, 0, result.trunc("i64"))


@semantic("mmx_move")
def mmx_move(c: Context) -> None:
    """MOVQ, MOVD, MOVNTQ between MMX registers, memory and general registers."""
    mmx_available(c)
    if c.kind(0) == "w":
        set_mmx(c, 0, source(c, 1, c.size).trunc("i64"))
        return
    c.write(0, c.b.load_state(c.register(1), c.type))
    mmx_used(c)


@semantic("mmx_from_xmm")
def mmx_from_xmm(c: Context) -> None:
    """MOVDQ2Q."""
    mmx_available(c)
    set_mmx(c, 0, c.b.load_state(c.register(1), "i64"))


@semantic("mmx_to_xmm")
def mmx_to_xmm(c: Context) -> None:
    """MOVQ2DQ."""
    mmx_available(c)
    mmx_used(c)
    set_xmm(c, 0, c.b.load_state(c.register(1), "i64").zext("i128"))


@semantic("mmx_extract")
def mmx_extract(c: Context) -> None:
    """PEXTRW."""
    mmx_available(c)
    mmx_used(c)
    place = element(c, 2, 4) * 2
    c.write(0, c.b.load_state(c.register(1) + place, "i16").zext(c.type))


@semantic("mmx_insert")
def mmx_insert(c: Context) -> None:
    """PINSRW."""
    mmx_available(c)
    value = c.read(1, 16)
    shift = (element(c, 2, 4) * 16).zext("i64")
    kept = c.b.load_state(c.register(0), "i64") & ~(c.b.const("i64", 0xFFFF) << shift)
    set_mmx(c, 0, kept | (value.zext("i64") << shift))


@semantic("mmx_mask")
def mmx_mask(c: Context) -> None:
    """PMOVMSKB."""
    mmx_available(c)
    mmx_used(c)
    c.write(0, c.b.sse_to_register("pmovmskb", c.type, _narrow(c, 1)))


@semantic("mmx_convert_in")
def mmx_convert_in(c: Context) -> None:
    """CVTPI2PS, CVTPI2PD: two integers of an MMX register or memory."""
    available(c)
    if c.kind(1) == "w":
        mmx_available(c)
        mmx_used(c)
    name, _ = name_of(c.shape.variant)
    value = _narrow(c, 1)
    old = c.b.load_state(c.register(0), "i128")
    begin_exceptions(c)
    result = c.b.sse(name, None, old, value)
    end_exceptions(c)
    if name == "cvtdq2ps":
        c.b.store_state(c.register(0), result.trunc("i64"))
    else:
        set_xmm(c, 0, result)


@semantic("mmx_convert_out")
def mmx_convert_out(c: Context) -> None:
    """CVTPS2PI and its kin: two integers into an MMX register."""
    available(c)
    mmx_available(c)
    name, _ = name_of(c.shape.variant)
    value = source(c, 1, c.size, aligned=True)
    if c.size == 64:  # the upper half of a register must not raise anything
        value = value.trunc("i64").zext("i128")
    mmx_used(c)
    begin_exceptions(c)
    result = c.b.sse(name, None, value, value)
    end_exceptions(c)
    set_mmx(c, 0, result.trunc("i64"))


@semantic("sse_masked_store")
def sse_masked_store(c: Context) -> None:
    """MASKMOVDQU and MASKMOVQ: bytes whose mask's sign is set, to DS:rDI.

    Processors may look at the whole area first; then none is written before a fault.
    """
    b, count = c.b, c.shape.variant // 8
    if count == 8:
        mmx_available(c)
        mmx_used(c)
    else:
        available(c)
    offset = c.gpr(RDI, f"i{c.shape.address[:2]}").zext("i64")
    linear = c.segmented(offset, count, write=True)
    c.check_write(linear, count)
    value, mask = c.register(0), c.register(1)
    for place in range(count):
        with b.if_(b.load_state(mask + place, "i8").slt(0)):
            c.store(c.wrap(linear + place), b.load_state(value + place, "i8"))


@semantic("emms")
def emms(c: Context) -> None:
    mmx_available(c)
    c.b.set("fpu_top", 0)
    c.b.set("fpu_tag", 0xFFFF)
