"""What :class:`~vdisk.vm.cpu.python_builder.PythonBuilder` calls for x87, by mnemonic.

SDM volume 1, chapter 8; volume 2 by name.  An operation takes one or two values (80 bits, or those
of its memory operand: ``_m32``) and the control word; it gives one or two values and the status
word, of which only exceptions and condition codes mean something.  Stack and tags are
:mod:`~vdisk.vm.cpu.semantics.x87`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from vdisk.vm.cpu import python_transcendental as real
from vdisk.vm.cpu import softfloat
from vdisk.vm.cpu.builder import signed
from vdisk.vm.cpu.python_x87_functions import FUNCTIONS, SPLITTING_FUNCTIONS
from vdisk.vm.cpu.softfloat import (
    BEFORE,
    EXTENDED,
    FLOAT32,
    FLOAT64,
    IE,
    PE,
    TRUNCATE,
    ZE,
    Environment,
    Kind,
    Number,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Arithmetic: TypeAlias = Callable[[softfloat.Format, Environment, Number, Number], int]

C0, C1, C2, C3 = 0x100, 0x200, 0x400, 0x4000
PRECISIONS = (24, 64, 53, 64)
"""Bits of a significand by the control word's PC; 1 is reserved."""
REMAINDER_REACH = 64
"""Exponents that FPREM takes away in one execution."""
PARTIAL_STEP = 63
FARTHEST_SCALE = 1 << 17
BCD_DIGITS = 18
BCD_INDEFINITE = 0xFFFF_C000_0000_0000_0000
MEMORY = {"m32": FLOAT32, "m64": FLOAT64}


def environment(control: int, *, controlled: bool = False) -> Environment:
    """What the control word says; ``controlled``: precision control counts."""
    precision = PRECISIONS[control >> 8 & 3] if controlled else 64
    return Environment(control >> 10 & 3, control & softfloat.ALL, precision=precision, x87=True)


def _operand(name: str, memory: str, encoding: int) -> Number:
    """The second operand: a register, or memory's as its name says."""
    if not memory:
        return EXTENDED.decode(encoding)
    if name.startswith("fi"):
        value = signed(encoding, int(memory[1:]))
        return EXTENDED.decode(softfloat.from_integer(EXTENDED, Environment(), value))
    return MEMORY[memory].decode(encoding)


# -- arithmetic --------------------------------------------------------------------------------


def _reversed(function: Arithmetic) -> Arithmetic:
    return lambda format, env, a, b: function(format, env, b, a)


ARITHMETIC: dict[str, Arithmetic] = {
    "add": softfloat.add,
    "mul": softfloat.multiply,
    "sub": softfloat.subtract,
    "subr": _reversed(softfloat.subtract),
    "div": softfloat.divide,
    "divr": _reversed(softfloat.divide),
}
_CODES: dict[int | None, int] = {-1: C0, 0: C3, 1: 0, None: C0 | C2 | C3}


def _round_to_integral(env: Environment, a: Number) -> int:
    env.denormal(a)
    return softfloat.round_to_integral(EXTENDED, env, a, env.rounding)


def _scale(env: Environment, a: Number, b: Number) -> int:
    """FSCALE: ST(0) times two to the power of ST(1), cut to an integer."""
    found = env.nan(EXTENDED, a, b)
    if found is not None:
        return found
    if b.kind == Kind.INFINITE:
        if a.kind == (Kind.INFINITE if b.sign else Kind.ZERO):
            return env.invalid(EXTENDED)
        env.denormal(a)
        return EXTENDED.zero(a.sign) if b.sign else EXTENDED.infinity(a.sign)
    env.denormal(a, b)
    if a.kind != Kind.FINITE:
        return EXTENDED.infinity(a.sign) if a.kind == Kind.INFINITE else EXTENDED.zero(a.sign)
    distance = 0
    if b.kind == Kind.FINITE:
        clipped = min(b.top, FARTHEST_SCALE.bit_length())
        magnitude = softfloat.shorten(0, b.significand, b.top - b.exponent - clipped, TRUNCATE)[0]
        distance = -magnitude if b.sign else magnitude
    return softfloat.round_to(EXTENDED, env, a.sign, a.significand, a.exponent + distance)


def _remainder(env: Environment, a: Number, b: Number, *, nearest: bool) -> tuple[int, int]:
    """FPREM, FPREM1: (value, condition codes); the quotient's low bits are in C0, C3, C1."""
    found = env.nan(EXTENDED, a, b)
    if found is not None:
        return found, 0
    if a.kind == Kind.INFINITE or b.kind == Kind.ZERO:
        return env.invalid(EXTENDED), 0
    env.denormal(a, b)
    if a.kind == Kind.ZERO:
        return EXTENDED.zero(a.sign), 0
    if b.kind == Kind.INFINITE:
        return softfloat.round_to(EXTENDED, env, a.sign, a.significand, a.exponent), 0
    exponent = min(a.exponent, b.exponent)
    left, right = a.significand << a.exponent - exponent, b.significand << b.exponent - exponent
    if a.top - b.top >= REMAINDER_REACH:
        right <<= a.top - b.top - PARTIAL_STEP
        return _remainder_of(env, a.sign, left % right, exponent), C2
    quotient, rest = divmod(left, right)
    sign = a.sign
    if nearest and (2 * rest > right or (2 * rest == right and quotient & 1)):
        quotient, rest, sign = quotient + 1, right - rest, sign ^ 1
    if not rest:
        sign = a.sign
    codes = C1 * (quotient & 1) | C3 * (quotient >> 1 & 1) | C0 * (quotient >> 2 & 1)
    return _remainder_of(env, sign, rest, exponent), codes


def _remainder_of(env: Environment, sign: int, rest: int, exponent: int) -> int:
    if not rest:
        return EXTENDED.zero(sign)
    return softfloat.round_to(EXTENDED, env, sign, rest, exponent)


def _extract(env: Environment, a: Number) -> tuple[int, int]:
    """FXTRACT: (significand, exponent)."""
    found = env.nan(EXTENDED, a)
    if found is not None:
        return found, found
    if a.kind == Kind.ZERO:
        env.flags |= ZE
        return EXTENDED.zero(a.sign), EXTENDED.infinity(1)
    if a.kind == Kind.INFINITE:
        return EXTENDED.infinity(a.sign), EXTENDED.infinity(0)
    env.denormal(a)
    length = a.significand.bit_length() - 1
    significand = softfloat.round_to(EXTENDED, env, a.sign, a.significand, -length)
    return significand, softfloat.from_integer(EXTENDED, env, a.top)


# -- loading and storing -----------------------------------------------------------------------


def _load(env: Environment, name: str, memory: str, encoding: int) -> int:
    if name == "fbld":
        digits = sum((encoding >> 4 * n & 15) * 10**n for n in range(BCD_DIGITS))
        value = softfloat.from_integer(EXTENDED, env, digits)
        return value | (encoding >> 79 & 1) << 79
    number = _operand(name, memory, encoding)
    env.denormal(number)
    return softfloat.convert(EXTENDED, env, number)


def _store(env: Environment, name: str, memory: str, a: Number) -> int:
    if name == "fst":
        return softfloat.convert(MEMORY[memory], env, a)
    if name == "fbst":
        return _store_decimal(env, a)
    rounding = TRUNCATE if name == "fistt" else None
    return softfloat.to_integer(env, a, int(memory[1:]), rounding)


def _store_decimal(env: Environment, a: Number) -> int:
    """FBSTP: eighteen digits and a sign."""
    value = signed(softfloat.to_integer(env, a, 64), 64)
    if env.flags & IE or abs(value) >= 10**BCD_DIGITS:
        env.flags, env.rounded_up = IE, False
        return BCD_INDEFINITE
    return a.sign << 79 | int(str(abs(value)), 16)


_LN10 = 3 * real.LN2 + real.logarithm_of_one_plus(real.ONE // 4)
CONSTANTS = {
    "fld1": real.ONE,
    "fldz": 0,
    "fldpi": real.PI,
    "fldl2e": (real.ONE << real.PLACES) // real.LN2,
    "fldl2t": (_LN10 << real.PLACES) // real.LN2,
    "fldlg2": (real.LN2 << real.PLACES) // _LN10,
    "fldln2": real.LN2,
}


def _constant(env: Environment, name: str) -> int:
    """Rounded, but never inexact."""
    value = CONSTANTS[name]
    rounded = softfloat.round_to(EXTENDED, env, 0, value, -real.PLACES) if value else 0
    env.flags, env.rounded_up = 0, False
    return rounded


# -- the one entry -----------------------------------------------------------------------------


def _compare(env: Environment, name: str, a: Number, b: Number) -> int:
    return _CODES[softfloat.compare(env, a, b, signaling=name != "fucom")]


def _compute(
    env: Environment, name: str, memory: str, first: int, second: int
) -> tuple[int, int, int]:
    """(value, second value, condition codes)."""
    a = EXTENDED.decode(first)
    if name in CONSTANTS:
        return _constant(env, name), 0, 0
    if name in ("fld", "fild", "fbld"):
        return _load(env, name, memory, second), 0, 0
    if name in ("fst", "fist", "fistt", "fbst"):
        return _store(env, name, memory, a), 0, 0
    if name in ("fcom", "ficom", "fucom", "ftst"):
        b = Number(Kind.ZERO, 0) if name == "ftst" else _operand(name, memory, second)
        return 0, 0, _compare(env, name, a, b)
    if name == "fxtract":
        return *_extract(env, a), 0
    if name in SPLITTING_FUNCTIONS:
        made = SPLITTING_FUNCTIONS[name](env, a)
        return (first, 0, C2) if made is None else (*made, 0)
    b = _operand(name, memory, second)
    if name in ("fprem", "fprem1"):
        value, codes = _remainder(env, a, b, nearest=name == "fprem1")
        return value, 0, codes
    if name in FUNCTIONS:
        found = FUNCTIONS[name](env, a, b)
        return (first, 0, C2) if found is None else (found, 0, 0)
    return _arithmetic(env, name, a, b), 0, 0


def _arithmetic(env: Environment, name: str, a: Number, b: Number) -> int:
    if name == "fsqrt":
        return softfloat.square_root(EXTENDED, env, a)
    if name == "frndint":
        return _round_to_integral(env, a)
    if name == "fscale":
        return _scale(env, a, b)
    return ARITHMETIC[name.removeprefix("fi").removeprefix("f")](EXTENDED, env, a, b)


def x87(name: str, control: int, first: int, second: int) -> tuple[int, int, int]:
    """(value, second value, status word)."""
    stem, _, memory = name.partition("_")
    arithmetic = stem.removeprefix("fi").removeprefix("f")
    env = environment(control, controlled=arithmetic in ARITHMETIC or stem == "fsqrt")
    value, other, codes = _compute(env, stem, memory, first, second)
    if env.unmasked() & BEFORE:
        env.flags, env.rounded_up = env.flags & BEFORE, False
    if env.rounded_up and env.flags & PE:
        codes |= C1
    return value, other, env.flags | codes


NAMES: dict[str, Any] = {"x87": x87}
"""For the namespace that generated Python is executed in."""
