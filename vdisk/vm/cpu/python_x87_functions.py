"""The x87's transcendental functions in Python (SDM volume 1, section 8.3.9; volume 2 by name).

Zeroes, infinities and the like follow the tables of the instructions' pages; all else is computed
to hundreds of bits (:mod:`~vdisk.vm.cpu.python_transcendental`) and rounded once.  Processors are
allowed an error of one unit in the last place, so last bits may differ from theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from vdisk.vm.cpu import python_transcendental as real
from vdisk.vm.cpu import softfloat
from vdisk.vm.cpu.softfloat import EXTENDED, PE, UE, ZE, Environment, Kind, Number

if TYPE_CHECKING:
    from collections.abc import Callable

    Function: TypeAlias = Callable[[Environment, Number, Number], int | None]
    Splitting: TypeAlias = Callable[[Environment, Number], tuple[int, int] | None]

ANGLE_LIMIT = 63
"""Angles of this exponent or more are out of range: C2."""
MARGIN = 80
"""Bits beyond a significand's, in which a value may differ from a nearly equal one."""
ONE, MINUS_ONE = (EXTENDED.pack(sign, EXTENDED.bias, 1 << 63) for sign in (0, 1))


def _rounded(env: Environment, value: int, exponent: int = -real.PLACES) -> int:
    """A value of which lower bits have been cut off."""
    return softfloat.round_to(EXTENDED, env, int(value < 0), abs(value) << 1 | 1, exponent - 1)


def _just_below(env: Environment, a: Number) -> int:
    """Next to ``a``, on the side of zero."""
    significand = (a.significand << MARGIN) - 1
    return softfloat.round_to(EXTENDED, env, a.sign, significand, a.exponent - MARGIN)


def _itself(env: Environment, a: Number) -> int:
    """``a``, from which the result differs by far less than its last bit."""
    env.flags |= PE | (UE if a.top < EXTENDED.lowest else 0)
    return softfloat.round_to(EXTENDED, env, a.sign, a.significand, a.exponent)


def _is_small(a: Number) -> bool:
    return a.top < real.SMALLEST


def _fixed(a: Number) -> int:
    value = real.fixed(a.significand, a.exponent)
    return -value if a.sign else value


def _in_both(found: int) -> tuple[int, int]:
    return found, found


# -- angles ------------------------------------------------------------------------------------


def _special_angle(env: Environment, a: Number) -> int | None:
    """The result for NaNs and infinities."""
    found = env.nan(EXTENDED, a)
    if found is None and a.kind == Kind.INFINITE:
        return env.invalid(EXTENDED)
    return found


def _out_of_range(a: Number) -> bool:
    return a.kind == Kind.FINITE and a.top >= ANGLE_LIMIT


def _sine_of(env: Environment, a: Number) -> int:
    if a.kind == Kind.ZERO:
        return EXTENDED.zero(a.sign)
    if _is_small(a):
        return _just_below(env, a)
    return _rounded(env, real.sine_cosine_of_any(_fixed(a))[0])


def _cosine_of(env: Environment, a: Number) -> int:
    if a.kind == Kind.ZERO:
        return ONE
    if _is_small(a):
        return _just_below(env, EXTENDED.decode(ONE))
    return _rounded(env, real.sine_cosine_of_any(_fixed(a))[1])


def _tangent_of(env: Environment, a: Number) -> int:
    if a.kind == Kind.ZERO:
        return EXTENDED.zero(a.sign)
    if _is_small(a):
        return _itself(env, a)
    sine, cosine = real.sine_cosine_of_any(_fixed(a))
    return _rounded(env, (sine << real.PLACES) // cosine)


def _of_angle(function: Callable[[Environment, Number], int]) -> Function:
    def whole(env: Environment, a: Number, _: Number) -> int | None:
        found = _special_angle(env, a)
        if found is not None or _out_of_range(a):
            return found
        env.denormal(a)
        return function(env, a)

    return whole


def _sine_and_cosine(env: Environment, a: Number) -> tuple[int, int] | None:
    """FSINCOS: (cosine, sine)."""
    found = _special_angle(env, a)
    if found is not None or _out_of_range(a):
        return None if found is None else _in_both(found)
    env.denormal(a)
    cosine = _cosine_of(env, a)
    return cosine, _sine_of(env, a)


def _tangent(env: Environment, a: Number) -> tuple[int, int] | None:
    """FPTAN: (1, tangent)."""
    found = _special_angle(env, a)
    if found is not None or _out_of_range(a):
        return None if found is None else _in_both(found)
    env.denormal(a)
    return ONE, _tangent_of(env, a)


# -- arctangent --------------------------------------------------------------------------------


def _angle(env: Environment, sign: int, eighths: int) -> int:
    """So many eighths of a full turn."""
    if not eighths:
        return EXTENDED.zero(sign)
    value = real.PI * eighths // 4
    return _rounded(env, -value if sign else value)


def _arctangent(env: Environment, x: Number, y: Number) -> int:
    """FPATAN: the angle of the point (ST(0), ST(1)), from -pi to pi."""
    found = env.nan(EXTENDED, x, y)
    if found is not None:
        return found
    env.denormal(x, y)
    if Kind.INFINITE in (x.kind, y.kind):
        if y.kind != Kind.INFINITE:
            return _angle(env, y.sign, 4 if x.sign else 0)
        if x.kind != Kind.INFINITE:
            return _angle(env, y.sign, 2)
        return _angle(env, y.sign, 3 if x.sign else 1)
    if y.kind == Kind.ZERO:
        return _angle(env, y.sign, 4 if x.sign else 0)
    if x.kind == Kind.ZERO:
        return _angle(env, y.sign, 2)
    return _arctangent_of_quotient(env, x, y)


def _arctangent_of_quotient(env: Environment, x: Number, y: Number) -> int:
    steep = y.top - x.top
    if steep < real.SMALLEST and not x.sign:
        small = (y.significand << 2 * MARGIN) // x.significand
        exponent = y.exponent - x.exponent - 2 * MARGIN
        return _rounded(env, -small if y.sign else small, exponent)
    limit = -real.SMALLEST
    distance = min(max(y.exponent - x.exponent, -limit - 64), limit + 64)
    above, below = y.significand << max(distance, 0), x.significand << max(-distance, 0)
    if above <= below:
        angle = real.arctangent((above << real.PLACES) // below)
    else:
        angle = real.PI // 2 - real.arctangent((below << real.PLACES) // above)
    if x.sign:
        angle = real.PI - angle
    return _rounded(env, -angle if y.sign else angle)


# -- powers and logarithms ---------------------------------------------------------------------


def _power(env: Environment, a: Number, _: Number) -> int:
    """F2XM1: 2**x - 1; beyond -1 and 1 anything may come: x itself, as on AMD's processors."""
    found = env.nan(EXTENDED, a)
    if found is not None:
        return found
    if a.kind == Kind.INFINITE:
        return MINUS_ONE if a.sign else EXTENDED.infinity(0)
    env.denormal(a)
    if a.kind == Kind.ZERO:
        return EXTENDED.zero(a.sign)
    if _is_small(a):
        return _rounded(
            env, (-1 if a.sign else 1) * a.significand * real.LN2, a.exponent - real.PLACES
        )
    env.flags |= PE
    if a.top >= 0 and softfloat.order(a, EXTENDED.decode(MINUS_ONE)):
        return EXTENDED.pack(a.sign, a.top + EXTENDED.bias, a.significand)
    return _rounded(env, real.exponential_minus_one(_fixed(a) * real.LN2 >> real.PLACES))


def _times_logarithm(env: Environment, y: Number, logarithm: int, exponent: int) -> int:
    """y times ``logarithm * 2**exponent`` (a natural one), by ln 2."""
    value = y.significand * ((logarithm << real.PLACES) // real.LN2)
    return _rounded(env, -value if y.sign else value, y.exponent + exponent)


def _logarithm(env: Environment, x: Number, y: Number) -> int:
    """FYL2X: ST(1) times the binary logarithm of ST(0)."""
    found = env.nan(EXTENDED, x, y)
    if found is not None:
        return found
    if x.sign and x.kind != Kind.ZERO:
        return env.invalid(EXTENDED)
    if x.kind == Kind.ZERO:
        return _logarithm_of_zero(env, y)
    if x.kind == Kind.INFINITE:
        if y.kind == Kind.ZERO:
            return env.invalid(EXTENDED)
        env.denormal(y)
        return EXTENDED.infinity(y.sign)
    compared = softfloat.order(x, EXTENDED.decode(ONE))
    if y.kind == Kind.INFINITE:
        if not compared:
            return env.invalid(EXTENDED)
        env.denormal(x)
        return EXTENDED.infinity(y.sign ^ (compared < 0))
    env.denormal(x, y)
    if y.kind == Kind.ZERO or not compared:
        return EXTENDED.zero(y.sign ^ (compared < 0))
    whole, rest = _logarithm_parts(real.fixed(x.significand, x.exponent - x.top), x.top)
    return _times_logarithm(env, y, whole * real.LN2 + rest, -real.PLACES)


def _logarithm_parts(mantissa: int, whole: int) -> tuple[int, int]:
    """Of ``mantissa * 2**whole``, mantissa from 1 to 2: (integer, natural logarithm of the rest),
    the rest between 3/4 and 3/2."""
    if mantissa > 3 * real.ONE // 2:
        mantissa, whole = mantissa // 2, whole + 1
    return whole, real.logarithm_of_one_plus(mantissa - real.ONE)


def _logarithm_of_zero(env: Environment, y: Number) -> int:
    if y.kind == Kind.ZERO:
        return env.invalid(EXTENDED)
    if y.kind != Kind.INFINITE:
        env.flags |= ZE
    return EXTENDED.infinity(y.sign ^ 1)


def _logarithm_of_one_plus(env: Environment, x: Number, y: Number) -> int:
    """FYL2XP1: ST(1) times the binary logarithm of ST(0) + 1."""
    found = env.nan(EXTENDED, x, y)
    if found is not None:
        return found
    if Kind.INFINITE in (x.kind, y.kind):
        return _infinite_logarithm(env, x, y)
    env.denormal(x, y)
    if Kind.ZERO in (x.kind, y.kind):
        return EXTENDED.zero(x.sign ^ y.sign)
    if _is_small(x):
        logarithm = x.significand << real.PLACES
        exponent = x.exponent - real.PLACES
        return _times_logarithm(env, y, -logarithm if x.sign else logarithm, exponent)
    one = real.ONE + _fixed(x)
    if one <= 0:  # anything may come: x itself, as on AMD's processors
        env.flags |= PE
        return softfloat.round_to(EXTENDED, env, x.sign, x.significand, x.exponent)
    top = one.bit_length() - 1
    mantissa = one << real.PLACES - top if top <= real.PLACES else one >> top - real.PLACES
    whole, rest = _logarithm_parts(mantissa, top - real.PLACES)
    if x.top < -1:
        whole, rest = 0, real.logarithm_of_one_plus(_fixed(x))
    return _times_logarithm(env, y, whole * real.LN2 + rest, -real.PLACES)


def _infinite_logarithm(env: Environment, x: Number, y: Number) -> int:
    if x.kind == Kind.INFINITE:
        if x.sign or y.kind == Kind.ZERO:
            return env.invalid(EXTENDED)
        env.denormal(y)
        return EXTENDED.infinity(y.sign)
    if x.kind == Kind.ZERO:
        return env.invalid(EXTENDED)
    env.denormal(x)
    return EXTENDED.infinity(x.sign ^ y.sign)


FUNCTIONS: dict[str, Function] = {
    "fsin": _of_angle(_sine_of),
    "fcos": _of_angle(_cosine_of),
    "fpatan": _arctangent,
    "f2xm1": _power,
    "fyl2x": _logarithm,
    "fyl2xp1": _logarithm_of_one_plus,
}
"""ST(0) and ST(1) to a value; None: the angle is out of range."""
SPLITTING_FUNCTIONS: dict[str, Splitting] = {"fsincos": _sine_and_cosine, "fptan": _tangent}
"""ST(0) to the new ST(0) and ST(1)."""
