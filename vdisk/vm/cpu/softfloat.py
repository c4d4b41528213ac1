"""IEEE 754 arithmetic on integers: binary32, binary64 and the x87's 80-bit format.

SDM volume 1, sections 4.2.2, 4.8 (formats, NaNs, rounding), 8.5 and 11.5 (exceptions).  A value is
its encoding, an integer::

    binary32   sign 31, exponent 30-23, fraction 22-0
    binary64   sign 63, exponent 62-52, fraction 51-0
    extended   sign 79, exponent 78-64, integer bit 63, fraction 62-0

An operation decodes its operands (:meth:`Format.decode`), computes exactly, or exactly enough to
round, on ``significand * 2**exponent``, and rounds once (:func:`round_to`).  How it rounds and
which exceptions it found is in the :class:`Environment`: MXCSR's or the x87 control word's view.

What differs between SSE and x87 is in the environment too: which NaN survives, denormals that are
zero, precision control, and results whose exponent wraps when an exception is not masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

IE, DE, ZE, OE, UE, PE = (1 << bit for bit in range(6))
"""Invalid, denormal operand, division by zero, overflow, underflow, precision (inexact): the same
bits in MXCSR and in the x87 status word; the masks stand in the same order."""
ALL = 0x3F
BEFORE = IE | DE | ZE
"""Exceptions found before anything is computed; one that is not masked hides the others."""

NEAREST, DOWN, UP, TRUNCATE = range(4)
"""Rounding modes as MXCSR.RC and the control word's RC have them."""

WRAP = 0x6000
"""Added to or taken from an extended exponent where UE or OE is not masked (section 8.5.4)."""
NAN_BITS = 64
QUIET = 1 << 62
"""NaNs keep their significands as the extended format has them, so that they travel."""


class Kind(IntEnum):
    """Classes of values (section 4.8.3)."""

    ZERO = 0
    FINITE = 1
    INFINITE = 2
    QUIET_NAN = 3
    SIGNALING_NAN = 4
    UNSUPPORTED = 5
    """Of the extended format: an integer bit that contradicts the exponent (section 8.2.2)."""


@dataclass(frozen=True, slots=True)
class Number:
    """A decoded value: ``significand * 2**exponent`` if it is finite."""

    kind: Kind
    sign: int
    significand: int = 0
    exponent: int = 0
    denormal: bool = False

    @property
    def is_nan(self) -> bool:
        return self.kind in (Kind.QUIET_NAN, Kind.SIGNALING_NAN)

    @property
    def top(self) -> int:
        """Exponent of the leading bit."""
        return self.exponent + self.significand.bit_length() - 1

    def negated(self) -> Number:
        """The same with the other sign."""
        return Number(self.kind, self.sign ^ 1, self.significand, self.exponent, self.denormal)


@dataclass(frozen=True)
class Format:
    """An interchange format; ``explicit``: its integer bit is stored."""

    exponent_bits: int
    fraction_bits: int
    explicit: bool = False

    @cached_property
    def precision(self) -> int:
        """Bits of a significand."""
        return self.fraction_bits + 1

    @cached_property
    def stored(self) -> int:
        """Bits of a significand that are stored."""
        return self.fraction_bits + self.explicit

    @cached_property
    def width(self) -> int:
        return 1 + self.exponent_bits + self.stored

    @cached_property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1

    @cached_property
    def lowest(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    def pack(self, sign: int, biased: int, significand: int) -> int:
        """An encoding; the integer bit is dropped where it is implied."""
        significand &= (1 << self.stored) - 1
        return sign << self.width - 1 | biased << self.stored | significand

    def zero(self, sign: int) -> int:
        return sign << self.width - 1

    def infinity(self, sign: int) -> int:
        return self.pack(sign, 2 * self.bias + 1, 1 << self.fraction_bits)

    def largest(self, sign: int, precision: int) -> int:
        """The largest finite number of so many bits."""
        ones = (1 << precision) - 1 << self.precision - precision
        return self.pack(sign, 2 * self.bias, ones)

    def nan(self, number: Number) -> int:
        """A NaN in this format, quiet; low bits that have no place are lost."""
        significand = (number.significand | QUIET) >> NAN_BITS - self.precision
        return self.pack(number.sign, 2 * self.bias + 1, significand)

    @cached_property
    def indefinite(self) -> int:
        """The NaN of an invalid operation."""
        return self.pack(1, 2 * self.bias + 1, 3 << self.fraction_bits - 1)

    def decode(self, encoding: int) -> Number:
        """Any encoding."""
        sign = encoding >> self.width - 1 & 1
        biased = encoding >> self.stored & 2 * self.bias + 1
        significand = encoding & (1 << self.stored) - 1
        if not self.explicit and biased:
            significand |= 1 << self.fraction_bits
        if biased == 2 * self.bias + 1:
            return self._special(sign, significand)
        if biased and not significand >> self.fraction_bits:
            return Number(Kind.UNSUPPORTED, sign)
        if not significand:
            return Number(Kind.ZERO, sign)
        exponent = max(biased, 1) - self.bias - self.fraction_bits
        return Number(Kind.FINITE, sign, significand, exponent, denormal=not biased)

    def _special(self, sign: int, significand: int) -> Number:
        if not significand >> self.fraction_bits:
            return Number(Kind.UNSUPPORTED, sign)
        wide = significand << NAN_BITS - self.precision
        if wide == 1 << NAN_BITS - 1:
            return Number(Kind.INFINITE, sign)
        return Number(Kind.QUIET_NAN if wide & QUIET else Kind.SIGNALING_NAN, sign, wide)


FLOAT32 = Format(8, 23)
FLOAT64 = Format(11, 52)
EXTENDED = Format(15, 63, explicit=True)


@dataclass(slots=True)
class Environment:
    """Rounding and masks on the way in; ``flags`` and ``rounded_up`` on the way out.

    ``masks``: exceptions that are masked.  ``precision``: bits that results of arithmetic have at
    most (x87 precision control).  ``x87``: its rules for NaNs and for exceptions not masked.
    ``rounded_up``: the last rounding made the magnitude larger (C1).  ``earlier``: flags of the
    steps before, in an operation of several.
    """

    rounding: int = NEAREST
    masks: int = ALL
    denormals_are_zero: bool = False
    flush_to_zero: bool = False
    precision: int = 64
    x87: bool = False
    flags: int = 0
    rounded_up: bool = False
    earlier: int = 0

    def operand(self, format: Format, encoding: int) -> Number:
        """A decoded operand; a denormal one may be zero."""
        number = format.decode(encoding)
        if self.denormals_are_zero and number.denormal:
            return Number(Kind.ZERO, number.sign)
        return number

    def invalid(self, format: Format) -> int:
        """The result of an invalid operation."""
        self.flags |= IE
        return format.indefinite

    def nan(self, format: Format, *operands: Number) -> int | None:
        """The result if an operand is a NaN or unsupported, else None (section 4.8.3.5)."""
        if any(number.kind == Kind.UNSUPPORTED for number in operands):
            return self.invalid(format)
        nans = [number for number in operands if number.is_nan]
        if not nans:
            return None
        if any(number.kind == Kind.SIGNALING_NAN for number in nans):
            self.flags |= IE
        return format.nan(max(nans, key=_x87_order) if self.x87 else nans[0])

    def denormal(self, *operands: Number) -> None:
        """Note that an operand is denormal."""
        if any(number.denormal for number in operands):
            self.flags |= DE

    def unmasked(self) -> int:
        """Exceptions found that are not masked."""
        return self.flags & ~self.masks

    def next_step(self) -> bool:
        """Go on to another step of the operation; False if the last one ends it with an exception
        that is not masked."""
        if self.unmasked():
            return False
        self.earlier, self.flags = self.earlier | self.flags, 0
        return True

    def all_flags(self) -> int:
        """Of all steps.  An exception found before the computation that is not masked hides those
        of the computation (SDM volume 1, section 11.5.3)."""
        found = self.flags & BEFORE if self.unmasked() & BEFORE else self.flags
        return self.earlier | found


def _x87_order(number: Number) -> tuple[bool, int, int]:
    """Of two NaNs the quiet one wins, then the larger significand, then the positive one."""
    return number.kind == Kind.QUIET_NAN, number.significand, -number.sign


# -- rounding ----------------------------------------------------------------------------------


def shorten(sign: int, significand: int, drop: int, rounding: int) -> tuple[int, bool, bool]:
    """Without its ``drop`` low bits: (rounded, whether it is inexact, whether it grew)."""
    if drop <= 0:
        return significand << -drop, False, False
    kept, rest = significand >> drop, significand & (1 << drop) - 1
    if not rest:
        return kept, False, False
    half = 1 << drop - 1
    if rounding == NEAREST:
        grows = rest > half or (rest == half and bool(kept & 1))
    else:
        grows = rounding == (DOWN if sign else UP)
    return kept + grows, True, grows


def round_to(format: Format, env: Environment, sign: int, significand: int, exponent: int) -> int:
    """The encoding of ``significand * 2**exponent``, which is not zero.

    Where the value was cut off before, the significand's lowest bit must be 1 and far below the
    result's precision.
    """
    precision = min(format.precision, env.precision)
    lowest = exponent + significand.bit_length() - precision
    rounded, inexact, grew = shorten(sign, significand, lowest - exponent, env.rounding)
    top, shift = lowest + rounded.bit_length() - 1, 0
    if top > format.bias:
        env.flags |= OE
        if env.masks & OE:
            return _overflow(format, env, sign, precision)
        shift = -WRAP
    elif top < format.lowest and not env.masks & UE:
        env.flags |= UE
        shift = WRAP
    elif top < format.lowest:  # tiny after rounding
        if env.flush_to_zero:
            env.flags |= UE | PE
            return format.zero(sign)
        lowest = format.lowest - precision + 1
        rounded, inexact, grew = shorten(sign, significand, lowest - exponent, env.rounding)
        env.flags |= UE if inexact else 0
    env.flags |= PE if inexact else 0
    env.rounded_up = grew
    if shift and not _wraps(format, env, top + shift):
        return _beyond(format, env, sign, is_large=shift < 0)
    return _assemble(format, sign, rounded, lowest + shift)


def _wraps(format: Format, env: Environment, top: int) -> bool:
    """Does a result whose exception is not masked have its exponent wrapped?  Of x87's, those that
    fit in after it (FSCALE can go farther); of SSE's none, since there is no result."""
    return env.x87 and format == EXTENDED and format.lowest <= top <= format.bias


def _beyond(format: Format, env: Environment, sign: int, *, is_large: bool) -> int:
    """Infinity or zero, in whatever rounding mode (section 8.5.4)."""
    env.flags |= PE if env.x87 else 0
    env.rounded_up = is_large
    return format.infinity(sign) if is_large else format.zero(sign)


def _assemble(format: Format, sign: int, significand: int, exponent: int) -> int:
    """A significand that is not too long, normalized as far as the format goes."""
    if not significand:
        return format.zero(sign)
    up = format.precision - significand.bit_length()
    up = min(up, exponent - (format.lowest - format.fraction_bits))
    significand = significand << up if up >= 0 else significand >> -up
    biased = exponent - up + format.fraction_bits + format.bias
    if not significand >> format.fraction_bits:
        biased = 0
    return format.pack(sign, biased, significand)


def _overflow(format: Format, env: Environment, sign: int, precision: int) -> int:
    """Infinity, or the largest number, as the rounding mode has it (table 4-10)."""
    env.flags |= PE
    env.rounded_up = env.rounding in (NEAREST, DOWN if sign else UP)
    if env.rounded_up:
        return format.infinity(sign)
    return format.largest(sign, precision)


# -- arithmetic --------------------------------------------------------------------------------


def add(format: Format, env: Environment, a: Number, b: Number) -> int:
    """a + b."""
    found = env.nan(format, a, b)
    if found is not None:
        return found
    if Kind.INFINITE in (a.kind, b.kind):
        if a.kind == b.kind and a.sign != b.sign:
            return env.invalid(format)
        env.denormal(a, b)
        return format.infinity(a.sign if a.kind == Kind.INFINITE else b.sign)
    env.denormal(a, b)
    exponent = min((number.exponent for number in (a, b) if number.significand), default=0)
    total = _aligned(a, exponent) + _aligned(b, exponent)
    if total:
        return round_to(format, env, int(total < 0), abs(total), exponent)
    if not a.significand and not b.significand and a.sign == b.sign:
        return format.zero(a.sign)
    return format.zero(int(env.rounding == DOWN))


def _aligned(number: Number, exponent: int) -> int:
    """The signed significand for another exponent, that is not larger."""
    if not number.significand:
        return 0
    magnitude = number.significand << number.exponent - exponent
    return -magnitude if number.sign else magnitude


def subtract(format: Format, env: Environment, a: Number, b: Number) -> int:
    """a - b; a NaN keeps its sign."""
    return add(format, env, a, b if b.is_nan else b.negated())


def multiply(format: Format, env: Environment, a: Number, b: Number) -> int:
    """a * b."""
    found = env.nan(format, a, b)
    if found is not None:
        return found
    kinds, sign = (a.kind, b.kind), a.sign ^ b.sign
    if Kind.INFINITE in kinds and Kind.ZERO in kinds:
        return env.invalid(format)
    env.denormal(a, b)
    if Kind.INFINITE in kinds:
        return format.infinity(sign)
    if Kind.ZERO in kinds:
        return format.zero(sign)
    return round_to(format, env, sign, a.significand * b.significand, a.exponent + b.exponent)


def divide(format: Format, env: Environment, a: Number, b: Number) -> int:
    """a / b."""
    found = env.nan(format, a, b)
    if found is not None:
        return found
    sign = a.sign ^ b.sign
    if a.kind == b.kind and a.kind in (Kind.ZERO, Kind.INFINITE):
        return env.invalid(format)
    if b.kind == Kind.ZERO and a.kind != Kind.INFINITE:
        env.flags |= ZE
        return format.infinity(sign)
    env.denormal(a, b)
    if a.kind == Kind.INFINITE:
        return format.infinity(sign)
    if Kind.ZERO in (a.kind, b.kind) or b.kind == Kind.INFINITE:
        return format.zero(sign)
    more = max(format.precision + 3 + b.significand.bit_length() - a.significand.bit_length(), 0)
    quotient, rest = divmod(a.significand << more, b.significand)
    return round_to(
        format, env, sign, quotient << 1 | (rest != 0), a.exponent - b.exponent - more - 1
    )


def square_root(format: Format, env: Environment, a: Number) -> int:
    """The square root; of -0 it is -0."""
    found = env.nan(format, a)
    if found is not None:
        return found
    if a.kind == Kind.ZERO:
        return format.zero(a.sign)
    if a.sign:
        return env.invalid(format)
    if a.kind == Kind.INFINITE:
        return format.infinity(0)
    env.denormal(a)
    more = max(2 * (format.precision + 3) - a.significand.bit_length(), 0)
    more += (a.exponent - more) & 1
    radicand = a.significand << more
    root = math.isqrt(radicand)
    inexact = root * root != radicand
    return round_to(format, env, 0, root << 1 | inexact, (a.exponent - more) // 2 - 1)


# -- comparisons -------------------------------------------------------------------------------


def order(a: Number, b: Number) -> int:
    """-1, 0 or 1: two numbers that are no NaNs compared exactly."""
    if Kind.INFINITE in (a.kind, b.kind):
        left, right = ((1 - 2 * n.sign) * (n.kind == Kind.INFINITE) for n in (a, b))
    else:
        exponent = min(a.exponent, b.exponent)
        left, right = _aligned(a, exponent), _aligned(b, exponent)
    return (left > right) - (left < right)


def compare(env: Environment, a: Number, b: Number, *, signaling: bool) -> int | None:
    """:func:`order`, or None if unordered; ``signaling``: quiet NaNs are invalid too."""
    if any(number.is_nan or number.kind == Kind.UNSUPPORTED for number in (a, b)):
        if signaling or any(number.kind >= Kind.SIGNALING_NAN for number in (a, b)):
            env.flags |= IE
        return None
    env.denormal(a, b)
    return order(a, b)


def takes_second(env: Environment, a: Number, b: Number, *, larger: bool) -> bool:
    """MINSS and MAXSS: is the result the second operand?  It is unless the first one is strictly
    smaller (larger)."""
    found = compare(env, a, b, signaling=True)
    return found != (1 if larger else -1)


# -- conversions -------------------------------------------------------------------------------


def convert(format: Format, env: Environment, a: Number) -> int:
    """A value in another format."""
    found = env.nan(format, a)
    if found is not None:
        return found
    if a.kind == Kind.INFINITE:
        return format.infinity(a.sign)
    if a.kind == Kind.ZERO:
        return format.zero(a.sign)
    return round_to(format, env, a.sign, a.significand, a.exponent)


def from_integer(format: Format, env: Environment, value: int) -> int:
    """A signed integer in a format."""
    if not value:
        return format.zero(0)
    return round_to(format, env, int(value < 0), abs(value), 0)


def to_integer(env: Environment, a: Number, bits: int, rounding: int | None = None) -> int:
    """A signed integer's ``bits`` in two's complement; the indefinite integer if it has none."""
    indefinite = 1 << bits - 1
    if a.kind not in (Kind.ZERO, Kind.FINITE):
        env.flags |= IE
        return indefinite
    mode = env.rounding if rounding is None else rounding
    if a.kind == Kind.FINITE and a.top >= bits:
        env.flags |= IE
        return indefinite
    magnitude, inexact, grew = shorten(a.sign, a.significand, -a.exponent, mode)
    value = -magnitude if a.sign else magnitude
    if not -indefinite <= value < indefinite:
        env.flags |= IE
        return indefinite
    env.flags |= PE if inexact else 0
    env.rounded_up = grew
    return value & 2 * indefinite - 1


def round_to_integral(format: Format, env: Environment, a: Number, rounding: int) -> int:
    """A value without its fraction, in the same format (ROUNDSS, FRNDINT)."""
    found = env.nan(format, a)
    if found is not None:
        return found
    if a.kind == Kind.INFINITE:
        return format.infinity(a.sign)
    magnitude, inexact, grew = shorten(a.sign, a.significand, max(-a.exponent, 0), rounding)
    env.flags |= PE if inexact else 0
    env.rounded_up = grew
    return _assemble(format, a.sign, magnitude, max(a.exponent, 0))
