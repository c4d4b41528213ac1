"""SSE to SSE4.2, AES, CLMUL and MMX (SDM volume 2 by name; volume 1, chapters 9-12).

The host is an x86-64, so native code uses the very instruction on host registers: its results,
rounding and exception flags are the processor's.  What is ours is the frame around it: operands
and their alignment, which part of a register changes, #NM, #UD and unmasked exceptions.

An XMM register is an ``i128``.  MMX registers are the 64-bit significands of x87 registers; their
instructions are those of SSE on the low half, with operands arranged where halves matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.semantics.integer import RDI

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.vm.cpu.builder import Value

ALIGNED, UNALIGNED = 0, 1
NAMES: list[str] = []
"""Instructions by number: ``variant`` is the number, with an immediate in the bits above.

Numbers are part of what compiled code is kept by, so they do not depend on what a run meets
first: the table of mnemonics (:mod:`vdisk.vm.cpu.lowering_sse`) fills the list in once.
"""
IMMEDIATE_SHIFT = 16
HAS_IMMEDIATE = 1 << 24


def number_of(name: str) -> int:
    """The number of an instruction, for ``variant``."""
    return _NUMBERS[name]


_NUMBERS: dict[str, int] = {}


def define(names: Iterable[str]) -> None:
    """Give the instructions their numbers."""
    NAMES[:] = sorted(names)
    _NUMBERS.update({name: number for number, name in enumerate(NAMES)})


def variant_of(name: str, immediate: int | None = None) -> int:
    """The variant of an instruction with its immediate byte."""
    chosen = number_of(name)
    if immediate is not None:
        chosen |= HAS_IMMEDIATE | (immediate & 0xFF) << IMMEDIATE_SHIFT
    return chosen


def _name(c: Context) -> tuple[str, int | None]:
    variant = c.shape.variant
    immediate = variant >> IMMEDIATE_SHIFT & 0xFF if variant & HAS_IMMEDIATE else None
    return NAMES[variant & 0xFFFF], immediate


def available(c: Context) -> None:
    """#UD or #NM, as CR0 and CR4 say (``sse_fault`` of the state)."""
    with c.b.if_(c.b.get("sse_fault").ne(0), unlikely=True):
        c.b.set("fault_vector", c.b.get("sse_fault"))
        c.b.set("fault_error", 0)
        c.b.fault()


def align(c: Context, linear: Value) -> None:
    """#GP for an address that is not a multiple of 16."""
    with c.b.if_((linear & 15).ne(0), unlikely=True):
        c.raise_(faults.GP)


def source(c: Context, index: int, size: int, *, aligned: bool = False) -> Value:
    """A register or ``size`` bits of memory, as ``i128``."""
    if c.kind(index) == "m":
        linear = c.linear(size)
        if aligned and size == 128:
            align(c, linear)
        return c.load(linear, f"i{size}").zext("i128")
    if c.kind(index) == "x":
        return c.b.load_state(c.register(index), "i128")
    return c.b.load_state(c.register(index), f"i{size}").zext("i128")


def set_xmm(c: Context, index: int, value: Value) -> None:
    c.b.store_state(c.register(index), value)


def begin_exceptions(c: Context) -> None:
    """Where exceptions are unmasked, learn what this instruction alone raises …"""
    with c.b.if_(c.b.get("simd_unmasked").ne(0), unlikely=True):
        c.b.call("simd_begin")


def end_exceptions(c: Context) -> None:
    """… and raise #XM, before anything is written."""
    with c.b.if_(c.b.get("simd_unmasked").ne(0), unlikely=True):
        c.b.call("simd_end")
        c.check()


# -- one instruction on two operands -----------------------------------------------------------


@semantic("sse")
def sse(c: Context) -> None:
    """XMM register, XMM register or ``size`` bits of aligned memory (, immediate)."""
    available(c)
    name, immediate = _name(c)
    right = source(c, 1, c.size, aligned=name not in UNALIGNED_OPERANDS)
    left = c.b.load_state(c.register(0), "i128")
    set_xmm(c, 0, c.b.sse(name, immediate, left, right))


@semantic("sse_float")
def sse_float(c: Context) -> None:
    """The same for what can raise floating-point exceptions."""
    available(c)
    name, immediate = _name(c)
    right = source(c, 1, c.size, aligned=True)
    left = c.b.load_state(c.register(0), "i128")
    begin_exceptions(c)
    result = c.b.sse(name, immediate, left, right)
    end_exceptions(c)
    set_xmm(c, 0, result)


@semantic("sse_shift")
def sse_shift(c: Context) -> None:
    """A shift by an immediate."""
    available(c)
    name, immediate = _name(c)
    set_xmm(c, 0, c.b.sse_shift(name, immediate or 0, c.b.load_state(c.register(0), "i128")))


@semantic("mmx_shift")
def mmx_shift(c: Context) -> None:
    """A shift of an MMX register by an immediate."""
    mmx_available(c)
    name, immediate = _name(c)
    result = c.b.sse_shift(name, immediate or 0, _narrow(c, 0))
    set_mmx(c, 0, result.trunc("i64"))


UNALIGNED_OPERANDS = {"pcmpistrm", "pcmpestrm", "lddqu"}


@semantic("sse_blend")
def sse_blend(c: Context) -> None:
    """PBLENDVB, BLENDVPS, BLENDVPD: XMM0 chooses."""
    available(c)
    name, _ = _name(c)
    right = source(c, 1, 128, aligned=True)
    left = c.b.load_state(c.register(0), "i128")
    set_xmm(c, 0, c.b.sse_blend(name, left, right, c.b.get("xmm0")))


@semantic("sse_flags")
def sse_flags(c: Context) -> None:
    """COMISS, UCOMISD …, PTEST: EFLAGS."""
    available(c)
    name, _ = _name(c)
    right = source(c, 1, c.size, aligned=c.size == 128)
    left = c.b.load_state(c.register(0), "i128")
    begin_exceptions(c)
    word = c.b.sse_flags(name, left, right)
    end_exceptions(c)
    c.set_flags_word(word)


@semantic("sse_string")
def sse_string(c: Context) -> None:
    """PCMPESTRI and its kin: RCX or XMM0, and EFLAGS."""
    available(c)
    name, immediate = _name(c)
    wide = "i64" if c.size == 64 else "i32"
    right = source(c, 1, 128)
    left = c.b.load_state(c.register(0), "i128")
    lengths = _length(c, 0, wide), _length(c, 2, wide)
    result, word = c.b.sse_string(name, immediate or 0, (left, right), lengths)
    if name.endswith("i"):
        c.b.store_state(8, result.trunc("i64"))
    else:
        c.b.set("xmm0", result)
    c.set_flags_word(word)


def _length(c: Context, number: int, wide: str) -> Value:
    """RAX or RDX as a length; with 64 bits, saturated to what 32 bits tell apart."""
    b = c.b
    if wide == "i32":
        return c.gpr(number, "i32")
    value = c.gpr(number, "i64")
    narrow = value.trunc("i32").sext("i64").eq(value)
    limit = b.select(value.slt(0), b.const("i64", -17), b.const("i64", 17))
    return b.select(narrow, value, limit).trunc("i32")


@semantic("sse_to_register")
def sse_to_register(c: Context) -> None:
    """CVTSD2SI …, MOVMSKPS, PMOVMSKB; ``size`` is the register's, the source's in the name."""
    available(c)
    name, _ = _name(c)
    size = 32 if "ss2si" in name else 64 if "sd2si" in name else 128
    value = source(c, 1, size)
    begin_exceptions(c)
    result = c.b.sse_to_register(name, c.type, value)
    end_exceptions(c)
    c.write(0, result)


@semantic("sse_from_register")
def sse_from_register(c: Context) -> None:
    """CVTSI2SD, CVTSI2SS."""
    available(c)
    name, _ = _name(c)
    value = c.read(1)
    left = c.b.load_state(c.register(0), "i128")
    begin_exceptions(c)
    result = c.b.sse_from_register(name, left, value)
    end_exceptions(c)
    set_xmm(c, 0, result)


# -- moves -------------------------------------------------------------------------------------


@semantic("sse_move")
def sse_move(c: Context) -> None:
    """Whole registers and 128 bits of memory; variant UNALIGNED: anywhere."""
    available(c)
    aligned = c.shape.variant != UNALIGNED
    if c.kind(0) == "m":
        linear = c.linear(128, write=True)
        if aligned:
            align(c, linear)
        c.store(linear, c.b.load_state(c.register(1), "i128"))
    else:
        set_xmm(c, 0, source(c, 1, 128, aligned=aligned))


@semantic("sse_move_scalar")
def sse_move_scalar(c: Context) -> None:
    """MOVSS, MOVSD: from memory the rest becomes zero, from a register it stays."""
    available(c)
    if c.kind(0) == "m":
        c.store(c.linear(c.size, write=True), c.b.load_state(c.register(1), c.type))
    elif c.kind(1) == "m":
        set_xmm(c, 0, source(c, 1, c.size))
    else:
        c.b.store_state(c.register(0), c.b.load_state(c.register(1), c.type))


@semantic("sse_move_zero")
def sse_move_zero(c: Context) -> None:
    """MOVD and MOVQ to an XMM register: the rest becomes zero."""
    available(c)
    set_xmm(c, 0, source(c, 1, c.size))


@semantic("sse_move_out")
def sse_move_out(c: Context) -> None:
    """MOVD and MOVQ from an XMM register; MOVQ to an XMM register clears the rest."""
    available(c)
    value = c.b.load_state(c.register(1), c.type)
    if c.kind(0) == "x":
        set_xmm(c, 0, value.zext("i128"))
    else:
        c.write(0, value)


@semantic("sse_move_half")
def sse_move_half(c: Context) -> None:
    """MOVLPS, MOVHPD …; variant: the register's half (bit 0), the other one's (bit 1)."""
    available(c)
    mine, other = c.shape.variant & 1, c.shape.variant >> 1 & 1
    if c.kind(0) == "m":
        half = c.b.load_state(c.register(1) + 8 * mine, "i64")
        c.store(c.linear(64, write=True), half)
    elif c.kind(1) == "m":
        c.b.store_state(c.register(0) + 8 * mine, c.load(c.linear(64), "i64"))
    else:
        half = c.b.load_state(c.register(1) + 8 * other, "i64")
        c.b.store_state(c.register(0) + 8 * mine, half)


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


# -- single elements ---------------------------------------------------------------------------


@semantic("sse_extract")
def sse_extract(c: Context) -> None:
    """PEXTRB … EXTRACTPS: element ``imm`` of ``variant`` bits, zero-extended."""
    available(c)
    width = c.shape.variant
    place = _element(c, 2, 128 // width) * (width // 8)
    value = c.b.load_state(c.register(1) + place, f"i{width}")
    c.write(0, value if c.kind(0) == "m" else value.zext(c.type))


@semantic("sse_insert")
def sse_insert(c: Context) -> None:
    """PINSRB …: element ``imm`` of ``variant`` bits."""
    available(c)
    width = c.shape.variant
    place = _element(c, 2, 128 // width) * (width // 8)
    value = c.read(1, width)
    c.b.store_state(c.register(0) + place, value)


def _element(c: Context, index: int, count: int) -> Value:
    assert c.kind(index) == "i"
    return c.b.param("imm") & (count - 1)


# -- MMX ---------------------------------------------------------------------------------------


def mmx_available(c: Context) -> None:
    """#UD, #NM, #MF as for x87; then every register counts as valid and TOP is 0."""
    b = c.b
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
    name, immediate = _name(c)
    result = c.b.sse(name, immediate, _narrow(c, 0), _narrow(c, 1))
    set_mmx(c, 0, result.trunc("i64"))


@semantic("mmx_joined")
def mmx_joined(c: Context) -> None:
    """PACK…, PHADD…: the destination below, the source above, and SSE's low half."""
    mmx_available(c)
    name, _ = _name(c)
    both = _narrow(c, 0) | (_narrow(c, 1) << 64)
    set_mmx(c, 0, c.b.sse(name, None, both, both).trunc("i64"))


@semantic("mmx_high")
def mmx_high(c: Context) -> None:
    """PUNPCKH…: the upper half of what SSE's PUNPCKL… makes."""
    mmx_available(c)
    name, _ = _name(c)
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
    _, immediate = _name(c)
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
    place = _element(c, 2, 4) * 2
    c.write(0, c.b.load_state(c.register(1) + place, "i16").zext(c.type))


@semantic("mmx_insert")
def mmx_insert(c: Context) -> None:
    """PINSRW."""
    mmx_available(c)
    value = c.read(1, 16)
    shift = (_element(c, 2, 4) * 16).zext("i64")
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
    name, _ = _name(c)
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
    name, _ = _name(c)
    value = source(c, 1, c.size, aligned=True)
    if c.size == 64:  # the upper half of a register must not raise anything
        value = value.trunc("i64").zext("i128")
    mmx_used(c)
    begin_exceptions(c)
    result = c.b.sse(name, None, value, value)
    end_exceptions(c)
    set_mmx(c, 0, result.trunc("i64"))


@semantic("emms")
def emms(c: Context) -> None:
    mmx_available(c)
    c.b.set("fpu_top", 0)
    c.b.set("fpu_tag", 0xFFFF)
