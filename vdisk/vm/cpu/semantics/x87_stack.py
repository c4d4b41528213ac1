"""The x87 FPU in the state (SDM volume 1, chapter 8): the register stack during one instruction.

Arithmetic is the builder's (the host's instruction, or Python's integers) with the guest's
rounding and precision; what was raised comes back with the result.  Ours are the register stack,
the tags, the condition codes, and what unmasked exceptions mean: operands of an invalid, denormal
or zero-divide exception stay, and the next waiting instruction takes #MF.

``fpu_top`` is TOP, ``fpu_status`` the status word without it; ``fpu_tag`` has two bits for each
physical register, of which only 3 (empty) means something until the tag word is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import faults
from vdisk.vm.cpu.semantics.x87_host import note_pointer
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value
    from vdisk.vm.cpu.context import Context

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


def set_status(b: Builder, status: Value, control: Value) -> None:
    """A status word that was loaded, or meets another control word: ES and B follow from both."""
    pending = (status & ~control & 0x3F).ne(0)
    summary = b.select(pending, ES | BUSY, b.const("i32", 0))
    b.set("fpu_status", (status & ~(ES | BUSY)) | summary)


class Fpu:
    """The register stack during one instruction."""

    def __init__(self, c: Context, *, waits: bool = True, notes: bool = True) -> None:
        self.c, self.b = c, c.b
        b = c.b
        with b.if_(b.get("x87_fault").ne(0), unlikely=True):
            b.set("fault_vector", b.get("x87_fault"))
            b.set("fault_error", 0)
            b.fault()
        if waits:
            with b.if_((b.get("fpu_status") & ES).ne(0), unlikely=True):
                c.raise_(faults.MF)
        if waits and notes:
            note_pointer(c)

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

    def compute(self, name: str, first: Value, second: Value | None = None) -> Result:
        """One operation of the host."""
        other = self.b.const("i128", 0) if second is None else second
        return Result(self, *self.b.x87(name, first, other))

    def finish(self) -> None:
        """The pops that the variant asks for."""
        if self.c.shape.variant & (POP_ONCE | POP_TWICE):
            self.pop()
        if self.c.shape.variant & POP_TWICE:
            self.pop()


class Result:
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
