"""The language that semantics are written in: typed values, state, memory, structured control.

A semantic function is Python that runs once for each shape of an instruction and *writes code*
through a :class:`Builder`: LLVM IR (:mod:`~vdisk.vm.cpu.llvm_builder`) or Python source
(:mod:`~vdisk.vm.cpu.python_builder`).  So there is one description of each operation, and every
engine is generated from it::

    total = left + right                 # Values have operators; ints are constants
    with b.if_(total.eq(0)):             # structured control flow
        b.set("cc_src", left.zext("i64"))

Types are LLVM's names: ``i1 i8 i16 i32 i64 i128``, ``float double x86_fp80``, ``<4 x i32>``….
Comparisons give ``i1``.  Integers are unsigned unless an operation says otherwise (``sdiv``,
``slt``, ``sext``, ``ashr``).  Shift counts must be below the width, as in LLVM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def bits(kind: str) -> int:
    """Width of an integer type."""
    return int(kind[1:])


def mask(kind: str) -> int:
    """All ones of an integer type."""
    return (1 << int(kind[1:])) - 1


class Value:
    """Something computed: a name in the generated code, or a constant."""

    __slots__ = ("b", "const", "text", "type")

    def __init__(self, b: Builder, kind: str, text: str, const: int | None = None) -> None:
        self.b, self.type, self.text, self.const = b, kind, text, const

    def __add__(self, other: Value | int) -> Value:
        return self.b.binary("add", self, other)

    def __sub__(self, other: Value | int) -> Value:
        return self.b.binary("sub", self, other)

    def __mul__(self, other: Value | int) -> Value:
        return self.b.binary("mul", self, other)

    def __and__(self, other: Value | int) -> Value:
        return self.b.binary("and", self, other)

    def __or__(self, other: Value | int) -> Value:
        return self.b.binary("or", self, other)

    def __xor__(self, other: Value | int) -> Value:
        return self.b.binary("xor", self, other)

    def __invert__(self) -> Value:
        return self.b.binary("xor", self, -1)

    def __neg__(self) -> Value:
        return self.b.binary("sub", self.b.const(self.type, 0), self)

    def __lshift__(self, other: Value | int) -> Value:
        return self.b.binary("shl", self, other)

    def __rshift__(self, other: Value | int) -> Value:
        """A logical shift: zeroes come in."""
        return self.b.binary("lshr", self, other)

    def ashr(self, other: Value | int) -> Value:
        """An arithmetic shift: the sign comes in."""
        return self.b.binary("ashr", self, other)

    def udiv(self, other: Value | int) -> Value:
        return self.b.binary("udiv", self, other)

    def urem(self, other: Value | int) -> Value:
        return self.b.binary("urem", self, other)

    def sdiv(self, other: Value | int) -> Value:
        return self.b.binary("sdiv", self, other)

    def srem(self, other: Value | int) -> Value:
        return self.b.binary("srem", self, other)

    def eq(self, other: Value | int) -> Value:
        return self.b.compare("eq", self, other)

    def ne(self, other: Value | int) -> Value:
        return self.b.compare("ne", self, other)

    def ult(self, other: Value | int) -> Value:
        return self.b.compare("ult", self, other)

    def ule(self, other: Value | int) -> Value:
        return self.b.compare("ule", self, other)

    def ugt(self, other: Value | int) -> Value:
        return self.b.compare("ugt", self, other)

    def uge(self, other: Value | int) -> Value:
        return self.b.compare("uge", self, other)

    def slt(self, other: Value | int) -> Value:
        return self.b.compare("slt", self, other)

    def sle(self, other: Value | int) -> Value:
        return self.b.compare("sle", self, other)

    def sgt(self, other: Value | int) -> Value:
        return self.b.compare("sgt", self, other)

    def sge(self, other: Value | int) -> Value:
        return self.b.compare("sge", self, other)

    def zext(self, kind: str) -> Value:
        """The same number in a type that is at least as wide."""
        return self if kind == self.type else self.b.cast("zext", self, kind)

    def sext(self, kind: str) -> Value:
        """The same signed number in a type that is at least as wide."""
        return self if kind == self.type else self.b.cast("sext", self, kind)

    def trunc(self, kind: str) -> Value:
        """The low bits."""
        return self if kind == self.type else self.b.cast("trunc", self, kind)

    def to(self, kind: str) -> Value:
        """Zero-extended or truncated, whichever it takes."""
        if bits(kind) > bits(self.type):
            return self.zext(kind)
        return self.trunc(kind)

    def bit(self, number: int) -> Value:
        """One bit, as ``i1``."""
        return (self >> number).trunc("i1") if number else self.trunc("i1")

    def __bool__(self) -> bool:
        raise TypeError("a Value is not known while code is being written; use if_ or select")


class Variable(ABC):
    """A value that control flow changes."""

    type: str

    @abstractmethod
    def get(self) -> Value: ...

    @abstractmethod
    def set(self, value: Value | int) -> None: ...


_FOLD: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul": lambda a, b, n: a * b,
    "and": lambda a, b, n: a & b,
    "or": lambda a, b, n: a | b,
    "xor": lambda a, b, n: a ^ b,
    "shl": lambda a, b, n: a << b if b < n else 0,
    "lshr": lambda a, b, n: a >> b if b < n else 0,
    "ashr": lambda a, b, n: signed(a, n) >> min(b, n - 1),
}

_COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "ult": lambda a, b: a < b,
    "ule": lambda a, b: a <= b,
    "ugt": lambda a, b: a > b,
    "uge": lambda a, b: a >= b,
}

_NEUTRAL = {"add": 0, "sub": 0, "or": 0, "xor": 0, "shl": 0, "lshr": 0, "ashr": 0}


def signed(value: int, width: int) -> int:
    """The number that ``width`` bits mean in two's complement."""
    return value - (1 << width) if value >> (width - 1) & 1 else value


class Builder(ABC):
    """Writes one function.  Subclasses choose the language."""

    # -- values ------------------------------------------------------------------------------

    @abstractmethod
    def const(self, kind: str, number: int) -> Value:
        """A constant; wrapped to the type."""

    def value(self, kind: str, item: Value | int) -> Value:
        """``item`` itself, or the constant it is."""
        if isinstance(item, Value):
            assert item.type == kind, f"{item.type} where {kind} is meant"
            return item
        return self.const(kind, item)

    def binary(self, operation: str, left: Value, right: Value | int) -> Value:
        """Arithmetic of two values of one type; constants are folded."""
        kind = left.type
        other = self.value(kind, right)
        if other.const is not None:
            if left.const is not None and operation in _FOLD:
                folded = _FOLD[operation](left.const, other.const, bits(kind))
                return self.const(kind, folded)
            if other.const == _NEUTRAL.get(operation, -1):
                return left
            if operation == "and" and other.const == mask(kind):
                return left
        return self._binary(operation, left, other)

    def compare(self, relation: str, left: Value, right: Value | int) -> Value:
        """An ``i1``."""
        other = self.value(left.type, right)
        if left.const is not None and other.const is not None and relation in _COMPARE:
            return self.const("i1", int(_COMPARE[relation](left.const, other.const)))
        return self._compare(relation, left, other)

    def cast(self, how: str, value: Value, kind: str) -> Value:
        """``zext``, ``sext`` or ``trunc``."""
        if value.type == kind:
            return value
        if value.const is not None:
            number = signed(value.const, bits(value.type)) if how == "sext" else value.const
            return self.const(kind, number)
        return self._cast(how, value, kind)

    @abstractmethod
    def _binary(self, operation: str, left: Value, right: Value) -> Value: ...

    @abstractmethod
    def _compare(self, relation: str, left: Value, right: Value) -> Value: ...

    @abstractmethod
    def _cast(self, how: str, value: Value, kind: str) -> Value: ...

    @abstractmethod
    def select(self, condition: Value, then: Value | int, otherwise: Value) -> Value:
        """One of two values of the type of ``otherwise``."""

    @abstractmethod
    def unary(self, operation: str, value: Value) -> Value:
        """``bswap``, ``ctpop``, ``ctlz`` or ``cttz`` (of zero: the width)."""

    @abstractmethod
    def divide_128(self, dividend: Value, divisor: Value) -> tuple[Value, Value]:
        """Unsigned quotient and remainder of 128 by 64 bits; the quotient must fit in 64."""

    # -- SSE -----------------------------------------------------------------------------------
    #
    # Instructions by their lower-case mnemonic, on registers as ``i128``.

    @abstractmethod
    def sse(self, name: str, immediate: int | None, left: Value, right: Value) -> Value:
        """What ``name left, right (, immediate)`` makes of the register ``left``."""

    @abstractmethod
    def sse_shift(self, name: str, immediate: int, value: Value) -> Value:
        """A shift by an immediate."""

    @abstractmethod
    def sse_blend(self, name: str, left: Value, right: Value, choice: Value) -> Value:
        """PBLENDVB and its kin, with what XMM0 holds."""

    @abstractmethod
    def sse_flags(self, name: str, left: Value, right: Value) -> Value:
        """The arithmetic flags that an instruction leaves, as in EFLAGS (``i64``)."""

    @abstractmethod
    def sse_string(
        self,
        name: str,
        immediate: int,
        operands: tuple[Value, Value],
        lengths: tuple[Value, Value],
    ) -> tuple[Value, Value]:
        """PCMPxSTRx: (ECX or XMM0 as ``i128``, flags)."""

    @abstractmethod
    def sse_to_register(self, name: str, kind: str, value: Value) -> Value:
        """A conversion or mask into a general register."""

    @abstractmethod
    def sse_from_register(self, name: str, left: Value, value: Value) -> Value:
        """A conversion from a general register."""

    @abstractmethod
    def x87(self, name: str, first: Value, second: Value) -> tuple[Value, Value, Value]:
        """One x87 operation on 80-bit values (``i128``) with the guest's control word.

        (result, second result, status word as ``i32``): exceptions and condition codes of this
        operation alone.  Memory operands and results have their own format.
        """

    # Where native code keeps the guest's x87 registers in the host's; ``code``: two bytes.

    holds_x87 = False
    """True for a builder that has these operations."""

    def elsewhere(self) -> bool:
        """End here and have another tier carry out the instruction, if there is one that can."""
        return False

    def x87_host(self, code: bytes, place: Value | str | None = None) -> None:
        """An instruction; its operand at a host address, or in a field of the state."""
        raise NotImplementedError

    def x87_host_if(self, index: int, condition: Value) -> None:
        """ST(0) becomes ST(index) if the condition holds."""
        raise NotImplementedError

    def x87_host_flags(self, code: bytes) -> Value:
        """A comparison that sets EFLAGS; the arithmetic flags as they stand there (``i64``)."""
        raise NotImplementedError

    def x87_host_status(self) -> Value:
        """The status word, ``i16``."""
        raise NotImplementedError

    # -- control -----------------------------------------------------------------------------

    @abstractmethod
    def variable(self, kind: str, start: Value | int = 0) -> Variable:
        """A local variable."""

    @abstractmethod
    def if_(
        self, condition: Value, *, unlikely: bool = False, likely: bool = False
    ) -> AbstractContextManager[None]:
        """What is written inside happens where ``condition`` is true."""

    @abstractmethod
    def else_(self) -> AbstractContextManager[None]:
        """Directly after an ``if_``."""

    @abstractmethod
    def loop(self) -> AbstractContextManager[None]:
        """What is written inside happens again and again."""

    @abstractmethod
    def break_if(self, condition: Value) -> None:
        """Leave the innermost loop."""

    @abstractmethod
    def call(self, routine: str, *arguments: Value) -> Value:
        """A routine of the run-time (:mod:`~vdisk.vm.cpu.routines`); gives what it returns."""

    @abstractmethod
    def return_(self, value: Value | None = None) -> None:
        """End of a routine."""

    # -- state, records, memory --------------------------------------------------------------

    @abstractmethod
    def load_state(self, offset: Value | int, kind: str) -> Value:
        """A field of the vCPU's state."""

    @abstractmethod
    def store_state(self, offset: Value | int, value: Value) -> None: ...

    @abstractmethod
    def get(self, field: str) -> Value:
        """A named field of the state (:data:`~vdisk.vm.cpu.state.FIELDS`)."""

    @abstractmethod
    def set(self, field: str, value: Value | int) -> None: ...

    @abstractmethod
    def poll(self, field: str) -> Value:
        """A field that another thread may change."""

    @abstractmethod
    def callback(self, field: str, kind: str, *arguments: Value) -> Value:
        """Call what the state's ``field`` leads to: Python, with the bus behind it."""

    @abstractmethod
    def param(self, name: str) -> Value:
        """What the present record holds (:mod:`~vdisk.vm.cpu.records`)."""

    @abstractmethod
    def load_host(self, address: Value, kind: str) -> Value:
        """Guest RAM at a host address (an ``i64`` that the TLB gave)."""

    @abstractmethod
    def store_host(self, address: Value, value: Value) -> None: ...

    @abstractmethod
    def copy_host(self, to: Value, source: Value, length: Value) -> None:
        """Copy guest RAM, from the lowest byte up; what is read is not written before."""

    @abstractmethod
    def fill_host(self, address: Value, byte: Value, length: Value) -> None:
        """Set each byte of a run of guest RAM."""

    @abstractmethod
    def exchange_host(self, address: Value, expected: Value, value: Value) -> tuple[Value, Value]:
        """Atomic compare and exchange: (what was there, whether it was exchanged)."""

    @abstractmethod
    def fence(self) -> None:
        """What was stored before is seen by everybody before anything after it is loaded."""

    @abstractmethod
    def load_table(self, table: str, index: Value, kind: str) -> Value:
        """An element of a table that the state points to (``kinds``, ``code_masks``…)."""

    @abstractmethod
    def arena_load(self, where: Value | int, kind: str) -> Value:
        """A field of the arena's mapping (:mod:`vdisk.vm.cpu.arena`)."""

    @abstractmethod
    def arena_store(self, where: Value | int, value: Value) -> None: ...

    @abstractmethod
    def copy_code(self, where: int, physical: Value, length: Value) -> None:
        """Copy guest memory into the arena's mapping."""

    @abstractmethod
    def acquire(self) -> None:
        """Take the arena's lock.  Whoever has it waits for nothing."""

    @abstractmethod
    def release(self) -> None:
        """Give the arena's lock back."""

    # -- ends of a record ---------------------------------------------------------------------

    @abstractmethod
    def tlb(self) -> Value:
        """Offset of the present TLB set in the state."""

    @abstractmethod
    def next(self) -> None:
        """Go on with the next record."""

    @abstractmethod
    def again(self, spent: Value | int = 1) -> None:
        """Execute the present record once more (a repeated string instruction).

        ``spent``: what was done so far counts as this many instructions.
        """

    @abstractmethod
    def fault(self) -> None:
        """The fault that the state describes happens to the present instruction."""

    @abstractmethod
    def goto(self, linear: Value, *, executed: bool = True, tlb: Value | None = None) -> None:
        """Go on at another linear address (end of a block).

        ``executed``: the present instruction counts as done.  ``tlb``: the TLB set from now on.
        """

    @abstractmethod
    def timestamp(self) -> Value:
        """The time-stamp counter."""

    @abstractmethod
    def fill_state(self, offset: int, length: int, byte: int) -> None:
        """Set a run of the state's bytes."""

    @abstractmethod
    def follow(self) -> None:
        """Go on at the record that the present one links to (end of a block)."""

    @abstractmethod
    def leave(self, reason: int, argument: Value | int = 0, *, after: bool = False) -> None:
        """Back to Python: the present instruction not executed, or (``after``) executed."""
