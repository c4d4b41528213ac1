"""x87 in the reference interpreter: constants, functions beside Python's, exact remainders."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.tools.cpu_compare import close, extended
from vdisk.vm.cpu.python_x87 import x87
from vdisk.vm.cpu.softfloat import EXTENDED, FLOAT64, Environment, convert

CONTROL, DOWNWARDS = 0x37F, 0x77F
IE, ZE, PE, C0, C1, C2, C3 = 1, 4, 0x20, 0x100, 0x200, 0x400, 0x4000
ONE, MINUS_ONE = 0x3FFF << 64 | 1 << 63, 0xBFFF << 64 | 1 << 63
INFINITY = 0x7FFF << 64 | 1 << 63
INDEFINITE = 0xFFFF << 64 | 3 << 62
PI = 0x4000 << 64 | 0xC90F_DAA2_2168_C235
TOLERANCE = 2.0**-50


def encoded(value: float) -> int:
    bits = int.from_bytes(struct.pack("<d", value), "little")
    return convert(EXTENDED, Environment(), FLOAT64.decode(bits))


def value_of(name: str, *operands: float) -> float:
    given = [encoded(operand) for operand in operands]
    result, _, status = x87(name, CONTROL, given[0], given[1] if len(given) > 1 else 0)
    assert not status & IE
    return extended(result)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("fld1", 1.0),
        ("fldz", 0.0),
        ("fldpi", math.pi),
        ("fldl2t", math.log2(10)),
        ("fldl2e", math.log2(math.e)),
        ("fldlg2", math.log10(2)),
        ("fldln2", math.log(2)),
    ],
)
def test_constants(name, wanted):
    value, _, status = x87(name, CONTROL, 0, 0)
    assert close(extended(value), wanted, TOLERANCE)
    assert status == 0


def test_constants_are_rounded_as_the_control_word_says():
    assert x87("fldpi", CONTROL, 0, 0)[0] == PI
    assert x87("fldpi", DOWNWARDS, 0, 0)[0] == PI - 1


@given(st.floats(-1000, 1000))
def test_angles(angle):
    sine, cosine = value_of("fsin", angle), value_of("fcos", angle)
    assert math.isclose(sine, math.sin(angle), rel_tol=TOLERANCE, abs_tol=1e-15)
    assert math.isclose(cosine, math.cos(angle), rel_tol=TOLERANCE, abs_tol=1e-15)
    top, below, _ = x87("fsincos", CONTROL, encoded(angle), 0)
    assert (extended(top), extended(below)) == (cosine, sine)
    one, tangent, _ = x87("fptan", CONTROL, encoded(angle), 0)
    assert one == ONE
    assert close(extended(tangent), sine / cosine, 2.0**-48)


@pytest.mark.parametrize("name", ["fsin", "fcos", "fsincos", "fptan"])
def test_angles_out_of_range_are_left_alone(name):
    value, _, status = x87(name, CONTROL, encoded(2.0**63), 0)
    assert (value, status) == (encoded(2.0**63), C2)
    assert x87(name, CONTROL, INFINITY, 0)[::2] == (INDEFINITE, IE)


@given(y=st.floats(allow_nan=False), x=st.floats(allow_nan=False))
def test_arctangents(y, x):
    wanted = math.atan2(y, x)
    assume(not 0 < abs(wanted) < 1e-300)
    got = x87("fpatan", CONTROL, encoded(x), encoded(y))[0]
    assert close(extended(got), wanted, TOLERANCE)
    assert bool(got >> 79) == (math.copysign(1, wanted) < 0)


@given(x=st.floats(1e-300, 1e300), y=st.floats(-1000, 1000))
def test_logarithms(x, y):
    assume(y == 0 or abs(y) > 1e-300)
    assert math.isclose(value_of("fyl2x", x, y), y * math.log2(x), rel_tol=2.0**-45, abs_tol=1e-300)


@given(x=st.floats(-0.29, 0.29), y=st.floats(1, 1000))
def test_logarithms_near_one(x, y):
    assume(x == 0 or abs(x) > 1e-290)
    wanted = y * math.log1p(x) / math.log(2)
    assert close(value_of("fyl2xp1", x, y), wanted, 2.0**-49)


@given(st.floats(-1, 1))
def test_powers(x):
    assume(x == 0 or abs(x) > 1e-290)
    wanted = math.expm1(x * math.log(2))
    assert close(value_of("f2xm1", x), wanted, 2.0**-49)


def test_powers_of_one_are_exact():
    assert x87("f2xm1", CONTROL, ONE, 0)[0] == ONE
    assert x87("f2xm1", CONTROL, MINUS_ONE, 0)[0] == encoded(-0.5)


def test_the_logarithm_of_zero_divides_by_zero():
    assert x87("fyl2x", CONTROL, 0, ONE)[::2] == (INFINITY | 1 << 79, ZE)
    assert x87("fyl2x", CONTROL, 0, 0)[::2] == (INDEFINITE, IE)
    assert x87("fyl2x", CONTROL, MINUS_ONE, ONE)[::2] == (INDEFINITE, IE)


@given(x=st.floats(-1e18, 1e18), y=st.floats(1, 1e6))
def test_remainders(x, y):
    value, _, status = x87("fprem", CONTROL, encoded(x), encoded(y))
    if status & C2:
        assert abs(extended(value)) < abs(x)
        return
    assert extended(value) == math.fmod(x, y)
    assert extended(x87("fprem1", CONTROL, encoded(x), encoded(y))[0]) == math.remainder(x, y)


@pytest.mark.parametrize(("x", "codes"), [(0.5, 0), (1.5, C1), (2.5, C3), (4.5, C0), (7, 0x4300)])
def test_a_remainder_tells_the_low_bits_of_the_quotient(x, codes):
    assert x87("fprem", CONTROL, encoded(x), ONE)[2] == codes


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_decimals_come_back(number):
    packed = (number < 0) << 79 | int(str(abs(number)), 16)
    value, _, status = x87("fbld_m80", CONTROL, 0, packed)
    assert status == 0
    assert x87("fbst_m80", CONTROL, value, 0) == (packed, 0, 0)


def test_a_decimal_too_large_is_invalid():
    value, _, status = x87("fbst_m80", CONTROL, encoded(1e18), 0)
    assert (value, status) == (0xFFFF_C000_0000_0000_0000, IE)


@given(st.floats(min_value=2.0**-1000, max_value=2.0**1000))
def test_an_extract_and_a_scale_are_inverse(x):
    significand, exponent, status = x87("fxtract", CONTROL, encoded(x), 0)
    assert status == 0
    assert x87("fscale", CONTROL, significand, exponent)[0] == encoded(x)


def test_precision_control_shortens_results():
    third = x87("fdiv", 0x07F, ONE, encoded(3.0))[0]
    assert third & (1 << 40) - 1 == 0
    assert x87("fdiv", CONTROL, ONE, encoded(3.0))[0] & 0xFF


def test_an_overflow_that_is_not_masked_wraps():
    largest = EXTENDED.largest(0, 64)
    value, _, status = x87("fadd", CONTROL & ~8, largest, largest)
    assert status == 8
    assert value == (0x7FFF - 0x6000) << 64 | (1 << 64) - 1
