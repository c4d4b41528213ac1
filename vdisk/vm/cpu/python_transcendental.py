"""Sine, logarithm and their kin to hundreds of bits, in fixed point.

A fixed-point number is an integer that counts units of ``2**-PLACES``.  Arguments reach from
``SMALLEST`` (a power of two) up; what is smaller, callers approximate by the first term.  So
relative errors stay below ``2**-300``, far below the 64 bits that x87 results are rounded to.
"""

from __future__ import annotations

import math

PLACES = 640
ONE = 1 << PLACES
SMALLEST = -256
HALVINGS = 3
"""How often an arctangent's argument is halved before its series."""


def fixed(significand: int, exponent: int) -> int:
    """``significand * 2**exponent`` in fixed point; lower bits are cut off."""
    shift = exponent + PLACES
    return significand << shift if shift >= 0 else significand >> -shift


def _odd_powers(x: int, *, alternating: bool) -> int:
    """x + x**3/3 + x**5/5 + …, or with alternating signs."""
    square, power, total, n = x * x >> PLACES, x, 0, 1
    while abs(power) > 1:
        total += power // n
        power = power * square >> PLACES
        if alternating:
            power = -power
        n += 2
    return total


def _arctangent_of_inverse(n: int) -> int:
    return _odd_powers(ONE // n, alternating=True)


PI = 16 * _arctangent_of_inverse(5) - 4 * _arctangent_of_inverse(239)  # Machin
_PI_CUT = PI.bit_length() - 66
ANGLE_PI = PI >> _PI_CUT << _PI_CUT
"""The pi that x87 takes multiples of from angles: 66 bits of it (SDM volume 1, section 8.3.8)."""
LN2 = 2 * _odd_powers(ONE // 3, alternating=False)


def sine_and_cosine(x: int) -> tuple[int, int]:
    """Of at most a quarter of pi, either sign."""
    sums = [0, 0]
    term, n = ONE, 0
    while abs(term) > 1:
        sums[n & 1] += -term if n & 2 else term
        n += 1
        term = (term * x >> PLACES) // n
    return sums[1], sums[0]


def quadrant(x: int) -> tuple[int, int]:
    """(q, rest) with ``x = q * pi/2 + rest`` and rest at most a quarter of pi."""
    number = (2 * x + ANGLE_PI // 2) // ANGLE_PI
    return number, x - number * ANGLE_PI // 2


def sine_cosine_of_any(x: int) -> tuple[int, int]:
    """Of any angle."""
    number, rest = quadrant(x)
    sine, cosine = sine_and_cosine(rest)
    return ((sine, cosine), (cosine, -sine), (-sine, -cosine), (-cosine, sine))[number & 3]


def exponential_minus_one(x: int) -> int:
    """e**x - 1 for at most a few units."""
    term, n, total = x, 1, 0
    while abs(term) > 1:
        total += term
        n += 1
        term = (term * x >> PLACES) // n
    return total


def logarithm_of_one_plus(x: int) -> int:
    """ln(1 + x) for x between -1/2 and 1."""
    return 2 * _odd_powers((x << PLACES) // (2 * ONE + x), alternating=False)


def arctangent(x: int) -> int:
    """Of 0 to 1."""
    for _ in range(HALVINGS):
        x = (x << PLACES) // (ONE + math.isqrt((ONE << PLACES) + x * x))
    return _odd_powers(x, alternating=True) << HALVINGS
