"""SSE to SSE4.2, AES and CLMUL (SDM volume 2 by name; volume 1, chapters 10-12).

The host is an x86-64, so native code uses the very instruction on host registers: its results,
rounding and exception flags are the processor's.  What is ours is the frame around it: operands
and their alignment, which part of a register changes, #NM, #UD and unmasked exceptions.

An XMM register is an ``i128``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.context import Context, semantic
from vdisk.vm.cpu.softfloat import ALL

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


def name_of(variant: int) -> tuple[str, int | None]:
    """An instruction and its immediate byte by the variant."""
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


def aligned_linear(c: Context, *, write: bool = False) -> Value:
    """The address of 16 aligned bytes; processors look at that before the segment's limit."""
    if "c" in c.shape.address:
        align(c, c.offset() + c.b.load_state(c.b.param("segment"), "i64"))
        return c.linear(128, write=write)
    linear = c.linear(128, write=write)
    align(c, linear)
    return linear


def source(c: Context, index: int, size: int, *, aligned: bool = False) -> Value:
    """A register or ``size`` bits of memory, as ``i128``."""
    if c.kind(index) == "m":
        linear = aligned_linear(c) if aligned and size == 128 else c.linear(size)
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


STEPS = {"dpps", "dppd"}
"""What computes in several steps, of which an exception that is not masked ends the others."""


def end_arithmetic(c: Context, name: str) -> None:
    """The same for results that may be out of range: Python is told what was to be computed.  It
    also works out in which step an exception has come."""
    b = c.b
    with b.if_(b.get("simd_unmasked").ne(0), unlikely=True):
        b.call("simd_end")
        with b.if_(b.get("pending").ne(0)):
            b.set("exit_argument", c.shape.variant)
            if name in STEPS:
                before = b.call("read_mxcsr") & ~ALL | b.get("simd_flags")
                b.call("write_mxcsr", before)
                b.set("fault_vector", faults.SIMD_RANGE)
            b.fault()


# -- one instruction on two operands -----------------------------------------------------------


@semantic("sse")
def sse(c: Context) -> None:
    """XMM register, XMM register or ``size`` bits of aligned memory (, immediate)."""
    available(c)
    name, immediate = name_of(c.shape.variant)
    right = source(c, 1, c.size, aligned=name not in UNALIGNED_OPERANDS)
    left = c.b.load_state(c.register(0), "i128")
    set_xmm(c, 0, c.b.sse(name, immediate, left, right))


@semantic("sse_float")
def sse_float(c: Context) -> None:
    """The same for what can raise floating-point exceptions."""
    available(c)
    name, immediate = name_of(c.shape.variant)
    right = source(c, 1, c.size, aligned=True)
    left = c.b.load_state(c.register(0), "i128")
    begin_exceptions(c)
    result = c.b.sse(name, immediate, left, right)
    end_arithmetic(c, name)
    set_xmm(c, 0, result)


@semantic("sse_shift")
def sse_shift(c: Context) -> None:
    """A shift by an immediate."""
    available(c)
    name, immediate = name_of(c.shape.variant)
    set_xmm(c, 0, c.b.sse_shift(name, immediate or 0, c.b.load_state(c.register(0), "i128")))


UNALIGNED_OPERANDS = {"pcmpistrm", "pcmpestrm", "lddqu"}


@semantic("sse_blend")
def sse_blend(c: Context) -> None:
    """PBLENDVB, BLENDVPS, BLENDVPD: XMM0 chooses."""
    available(c)
    name, _ = name_of(c.shape.variant)
    right = source(c, 1, 128, aligned=True)
    left = c.b.load_state(c.register(0), "i128")
    set_xmm(c, 0, c.b.sse_blend(name, left, right, c.b.get("xmm0")))


@semantic("sse_flags")
def sse_flags(c: Context) -> None:
    """COMISS, UCOMISD …, PTEST: EFLAGS."""
    available(c)
    name, _ = name_of(c.shape.variant)
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
    name, immediate = name_of(c.shape.variant)
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
    name, _ = name_of(c.shape.variant)
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
    name, _ = name_of(c.shape.variant)
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
        linear = aligned_linear(c, write=True) if aligned else c.linear(128, write=True)
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


# -- single elements ---------------------------------------------------------------------------


@semantic("sse_extract")
def sse_extract(c: Context) -> None:
    """PEXTRB … EXTRACTPS: element ``imm`` of ``variant`` bits, zero-extended."""
    available(c)
    width = c.shape.variant
    place = element(c, 2, 128 // width) * (width // 8)
    value = c.b.load_state(c.register(1) + place, f"i{width}")
    c.write(0, value if c.kind(0) == "m" else value.zext(c.type))


@semantic("sse_insert")
def sse_insert(c: Context) -> None:
    """PINSRB …: element ``imm`` of ``variant`` bits."""
    available(c)
    width = c.shape.variant
    place = element(c, 2, 128 // width) * (width // 8)
    value = c.read(1, width)
    c.b.store_state(c.register(0) + place, value)


def element(c: Context, index: int, count: int) -> Value:
    assert c.kind(index) == "i"
    return c.b.param("imm") & (count - 1)
