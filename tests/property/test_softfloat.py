"""IEEE 754 laws of the integer arithmetic, beside exact fractions and Python's floats."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.cpu import softfloat
from vdisk.vm.cpu.softfloat import (
    DOWN,
    EXTENDED,
    FLOAT32,
    FLOAT64,
    NEAREST,
    OE,
    PE,
    TRUNCATE,
    UE,
    UP,
    Environment,
    Format,
    Kind,
)

FORMATS = {"binary32": FLOAT32, "binary64": FLOAT64, "extended": EXTENDED}
MODES = (NEAREST, DOWN, UP, TRUNCATE)
EXACT = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
}
EXTREMES = (0, 1, 2, 3)
NEAR = 70


def encodings(format: Format) -> st.SearchStrategy[int]:
    """Finite numbers: any, and those whose exponents are close to each other's or extreme."""
    top = 2 * format.bias
    exponents = st.one_of(
        st.sampled_from((*EXTREMES, *(top - n for n in EXTREMES))),
        st.integers(format.bias - NEAR, format.bias + NEAR),
        st.integers(0, top),
    )
    fractions = st.one_of(
        st.sampled_from((0, 1, (1 << format.fraction_bits) - 1)),
        st.integers(0, (1 << format.fraction_bits) - 1),
    )
    return st.builds(
        lambda sign, exponent, fraction: format.pack(
            sign, exponent, fraction | (bool(exponent) << format.fraction_bits)
        ),
        st.integers(0, 1),
        exponents,
        fractions,
    )


def exact(format: Format, encoding: int) -> Fraction:
    number = format.decode(encoding)
    value = Fraction(number.significand) * Fraction(2) ** number.exponent
    return -value if number.sign else value


def as_float(encoding: int) -> float:
    return struct.unpack("<d", encoding.to_bytes(8, "little"))[0]


def as_encoding(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


def neighbour(format: Format, encoding: int, *, up: bool) -> Fraction:
    """The next number towards one of the infinities."""
    steps = format.decode(encoding)
    if steps.kind == Kind.ZERO:
        least = Fraction(2) ** (format.lowest - format.fraction_bits)
        return least if up else -least
    value = exact(format, encoding)
    away = up == (value > 0)
    unit = Fraction(2) ** (max(steps.top, format.lowest) - format.fraction_bits)
    if not away and steps.significand == 1 << format.fraction_bits and steps.top > format.lowest:
        unit /= 2
    return value + unit if up else value - unit


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", EXACT)
@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_a_result_is_the_one_that_the_mode_chooses(name, operation, mode, data):
    format = FORMATS[name]
    a, b = data.draw(encodings(format)), data.draw(encodings(format))
    if operation == "divide" and not exact(format, b):
        return
    env = Environment(rounding=mode)
    function = getattr(softfloat, operation)
    result = function(format, env, format.decode(a), format.decode(b))
    wanted = EXACT[operation](exact(format, a), exact(format, b))
    assert format.decode(result).kind != Kind.INFINITE or env.flags & OE
    if env.flags & OE:
        largest = format.largest(int(wanted < 0), format.precision)
        assert abs(wanted) > abs(exact(format, largest))
        assert result == (format.infinity(int(wanted < 0)) if env.rounded_up else largest)
        assert env.rounded_up == (mode in (NEAREST, DOWN if wanted < 0 else UP))
        return
    got = exact(format, result)
    assert bool(env.flags & PE) == (got != wanted)
    assert env.rounded_up == (abs(got) > abs(wanted))
    is_tiny = abs(wanted) < Fraction(2) ** (format.lowest - 1)
    assert not (is_tiny and got != wanted and not env.flags & UE)
    below, above = (neighbour(format, result, up=up) for up in (False, True))
    if mode == NEAREST:
        assert abs(got - wanted) <= min(above - wanted, wanted - below)
    elif mode == DOWN or (mode == TRUNCATE and wanted > 0):
        assert got <= wanted < above
    else:
        assert below < wanted <= got


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
@given(
    a=st.one_of(encodings(FLOAT64), st.integers(0, 2**64 - 1)),
    b=st.one_of(encodings(FLOAT64), st.integers(0, 2**64 - 1)),
)
def test_binary64_is_what_python_computes(operation, a, b):
    x, y = as_float(a), as_float(b)
    if operation == "divide" and y == 0:
        return
    wanted = EXACT[operation](x, y)
    env = Environment()
    result = getattr(softfloat, operation)(FLOAT64, env, FLOAT64.decode(a), FLOAT64.decode(b))
    if math.isnan(wanted):
        assert FLOAT64.decode(result).is_nan
    else:
        assert result == as_encoding(wanted)


@given(a=st.floats(min_value=0))
def test_a_square_root_is_what_python_computes(a):
    result = softfloat.square_root(FLOAT64, Environment(), FLOAT64.decode(as_encoding(a)))
    assert result == as_encoding(math.sqrt(a))


@pytest.mark.parametrize("mode", MODES)
@given(encoding=encodings(EXTENDED))
def test_a_square_root_brackets_its_operand(mode, encoding):
    number = EXTENDED.decode(encoding & ~(1 << 79))
    if number.kind == Kind.ZERO:
        return
    env = Environment(rounding=mode)
    result = softfloat.square_root(EXTENDED, env, number)
    root, wanted = exact(EXTENDED, result), exact(EXTENDED, encoding & ~(1 << 79))
    assert bool(env.flags & PE) == (root * root != wanted)
    if mode == UP:
        assert neighbour(EXTENDED, result, up=False) ** 2 < wanted <= root**2
    elif mode == NEAREST:
        halves = [(root + neighbour(EXTENDED, result, up=up)) / 2 for up in (False, True)]
        assert halves[0] ** 2 < wanted < halves[1] ** 2
    else:
        assert root**2 <= wanted < neighbour(EXTENDED, result, up=True) ** 2


@given(encoding=encodings(FLOAT32))
def test_a_narrow_number_survives_wider_formats(encoding):
    env = Environment()
    for wide in (FLOAT64, EXTENDED):
        there = softfloat.convert(wide, env, FLOAT32.decode(encoding))
        assert softfloat.convert(FLOAT32, env, wide.decode(there)) == encoding
    assert not env.flags


@given(a=st.floats(), b=st.floats())
def test_orders_are_those_of_python(a, b):
    numbers = [FLOAT64.decode(as_encoding(value)) for value in (a, b)]
    found = softfloat.compare(Environment(), *numbers, signaling=False)
    assert (found == -1, found == 0, found == 1) == (a < b, a == b, a > b)


@pytest.mark.parametrize("bits", [16, 32, 64])
@given(value=st.integers(-(2**63), 2**63 - 1))
def test_integers_come_back_from_the_extended_format(bits, value):
    value = (value & (1 << bits) - 1 ^ 1 << bits - 1) - (1 << bits - 1)
    env = Environment()
    number = EXTENDED.decode(softfloat.from_integer(EXTENDED, env, value))
    assert softfloat.to_integer(env, number, bits) == value & (1 << bits) - 1
    assert not env.flags


@given(value=st.floats(-(2.0**62), 2.0**62))
def test_integers_are_rounded_as_python_rounds(value):
    number = FLOAT64.decode(as_encoding(value))
    how = {NEAREST: round, DOWN: math.floor, UP: math.ceil, TRUNCATE: math.trunc}
    for mode, function in how.items():
        env = Environment()
        wanted = function(value)
        assert softfloat.to_integer(env, number, 64, mode) == wanted & 2**64 - 1
        assert bool(env.flags & PE) == (wanted != value)
        whole = softfloat.round_to_integral(FLOAT64, env, number, mode)
        assert as_float(whole) == wanted
