"""SSE's floating-point instructions in Python, on :mod:`~vdisk.vm.cpu.softfloat`.

SDM volume 1, chapter 11; volume 2 by mnemonic.  Each is a function of MXCSR's view (which it adds
exception flags to), both operands as 128-bit integers and the immediate.  Mnemonics end in the
lanes they work on: ``ps``, ``pd`` (all), ``ss``, ``sd`` (the lowest; the others stay).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from vdisk.vm.cpu import softfloat
from vdisk.vm.cpu.builder import signed
from vdisk.vm.cpu.python_lanes import joined, lanes, signed_lanes, with_lowest
from vdisk.vm.cpu.softfloat import FLOAT32, FLOAT64, PE, Environment, Format, Kind, Number

if TYPE_CHECKING:
    from collections.abc import Callable

    Element: TypeAlias = Callable[[Format, Environment, int, int, int], int]
    Arithmetic: TypeAlias = Callable[[Format, Environment, Number, Number], int]
    Operation: TypeAlias = Callable[[Environment, int, int, int], int]

FLOAT: dict[str, Operation] = {}
"""By mnemonic: (environment, left, right, immediate) to result."""
FORMATS = {"s": FLOAT32, "d": FLOAT64}


def environment(mxcsr: int) -> Environment:
    """What MXCSR says about rounding and exceptions."""
    return Environment(
        rounding=mxcsr >> 13 & 3,
        masks=mxcsr >> 7 & softfloat.ALL,
        denormals_are_zero=bool(mxcsr & 0x40),
        flush_to_zero=bool(mxcsr & 0x8000),
    )


# -- lane by lane ------------------------------------------------------------------------------


def _packed(format: Format, element: Element) -> Operation:
    width = format.width

    def operation(env: Environment, left: int, right: int, immediate: int) -> int:
        pairs = zip(lanes(left, width), lanes(right, width), strict=True)
        return joined([element(format, env, a, b, immediate) for a, b in pairs], width)

    return operation


def _scalar(format: Format, element: Element) -> Operation:
    width = format.width

    def operation(env: Environment, left: int, right: int, immediate: int) -> int:
        a, b = lanes(left, width, 1)[0], lanes(right, width, 1)[0]
        return with_lowest(left, element(format, env, a, b, immediate), width)

    return operation


def _all_four(name: str, element: Element) -> None:
    for letter, format in FORMATS.items():
        FLOAT[f"{name}p{letter}"] = _packed(format, element)
        FLOAT[f"{name}s{letter}"] = _scalar(format, element)


def _on_numbers(function: Arithmetic) -> Element:
    def element(format: Format, env: Environment, a: int, b: int, _: int) -> int:
        return function(format, env, env.operand(format, a), env.operand(format, b))

    return element


ADD, SUBTRACT, MULTIPLY, DIVIDE = map(
    _on_numbers, (softfloat.add, softfloat.subtract, softfloat.multiply, softfloat.divide)
)


def _square_root(format: Format, env: Environment, _: int, b: int, __: int) -> int:
    return softfloat.square_root(format, env, env.operand(format, b))


def _extremum(*, larger: bool) -> Element:
    def element(format: Format, env: Environment, a: int, b: int, _: int) -> int:
        x, y = env.operand(format, a), env.operand(format, b)
        second = softfloat.takes_second(env, x, y, larger=larger)
        chosen, encoding = (y, b) if second else (x, a)
        return format.zero(chosen.sign) if chosen.kind == Kind.ZERO else encoding

    return element


LESS, LESS_OR_EQUAL = 1, 2
_HOLDS: tuple[tuple[int | None, ...], ...] = ((0,), (-1,), (-1, 0), (None,))
"""Orders for which CMPPS's predicates hold: equal, less, less or equal, unordered; 4 more: the
opposite."""


def _compare(format: Format, env: Environment, a: int, b: int, immediate: int) -> int:
    signaling = immediate & 3 in (LESS, LESS_OR_EQUAL)
    x, y = env.operand(format, a), env.operand(format, b)
    found = softfloat.compare(env, x, y, signaling=signaling)
    holds = (found in _HOLDS[immediate & 3]) != bool(immediate & 4)
    return (1 << format.width) - 1 if holds else 0


def _round(format: Format, env: Environment, _: int, b: int, immediate: int) -> int:
    """ROUNDPS: bits 1:0 are the mode unless bit 2 says MXCSR's; bit 3: never inexact."""
    mode = env.rounding if immediate & 4 else immediate & 3
    before = env.flags
    result = softfloat.round_to_integral(format, env, env.operand(format, b), mode)
    if immediate & 8:
        env.flags = env.flags & ~PE | before
    return result


_all_four("add", ADD)
_all_four("sub", SUBTRACT)
_all_four("mul", MULTIPLY)
_all_four("div", DIVIDE)
_all_four("sqrt", _square_root)
_all_four("min", _extremum(larger=False))
_all_four("max", _extremum(larger=True))
_all_four("cmp", _compare)
_all_four("round", _round)

# -- across lanes ------------------------------------------------------------------------------


def _alternating(format: Format) -> Operation:
    """ADDSUBPS: even lanes are subtracted, odd ones added."""

    def operation(env: Environment, left: int, right: int, _: int) -> int:
        pairs = zip(lanes(left, format.width), lanes(right, format.width), strict=True)
        return joined(
            [(ADD if n & 1 else SUBTRACT)(format, env, a, b, 0) for n, (a, b) in enumerate(pairs)],
            format.width,
        )

    return operation


def _horizontal(format: Format, element: Element) -> Operation:
    """HADDPS: neighbours of the left operand, then of the right one."""

    def operation(env: Environment, left: int, right: int, _: int) -> int:
        values = lanes(left, format.width) + lanes(right, format.width)
        pairs = zip(values[::2], values[1::2], strict=True)
        return joined([element(format, env, a, b, 0) for a, b in pairs], format.width)

    return operation


def _dot_product(format: Format) -> Operation:
    """DPPS, DPPD: bits 7:4 choose the products, bits 3:0 the lanes that get the sum.

    Multiplying is a step, and so is each round of additions: after one with an exception that is
    not masked there is no other.
    """

    def operation(env: Environment, left: int, right: int, immediate: int) -> int:
        width = format.width
        terms = [
            MULTIPLY(format, env, a, b, 0) if immediate >> 4 + n & 1 else 0
            for n, (a, b) in enumerate(zip(lanes(left, width), lanes(right, width), strict=True))
        ]
        while len(terms) > 1 and env.next_step():
            pairs = zip(terms[::2], terms[1::2], strict=True)
            terms = [ADD(format, env, a, b, 0) for a, b in pairs]
        return joined([terms[0] if immediate >> n & 1 else 0 for n in range(128 // width)], width)

    return operation


for _letter, _format in FORMATS.items():
    FLOAT[f"addsubp{_letter}"] = _alternating(_format)
    FLOAT[f"haddp{_letter}"] = _horizontal(_format, ADD)
    FLOAT[f"hsubp{_letter}"] = _horizontal(_format, SUBTRACT)
    FLOAT[f"dpp{_letter}"] = _dot_product(_format)

# -- conversions -------------------------------------------------------------------------------


def convert(env: Environment, source: Format, target: Format, encoding: int) -> int:
    """A lane in the other format; a denormal operand is noted."""
    number = env.operand(source, encoding)
    env.denormal(number)
    return softfloat.convert(target, env, number)


def to_integer(env: Environment, source: Format, encoding: int, bits: int, how: str) -> int:
    """A lane as an integer; ``how`` "cvtt…" truncates."""
    rounding = softfloat.TRUNCATE if how.startswith("cvtt") else None
    return softfloat.to_integer(env, env.operand(source, encoding), bits, rounding)


def _to_format(source: Format, target: Format) -> Operation:
    """CVTPS2PD, CVTPD2PS: two lanes; what is left over becomes zero."""

    def operation(env: Environment, _: int, right: int, __: int) -> int:
        values = [convert(env, source, target, lane) for lane in lanes(right, source.width, 2)]
        return joined(values, target.width)

    return operation


def _to_format_scalar(source: Format, target: Format) -> Operation:
    def operation(env: Environment, left: int, right: int, _: int) -> int:
        value = convert(env, source, target, lanes(right, source.width, 1)[0])
        return with_lowest(left, value, target.width)

    return operation


def _to_integers(name: str, source: Format) -> Operation:
    def operation(env: Environment, _: int, right: int, __: int) -> int:
        given = lanes(right, source.width)
        return joined([to_integer(env, source, lane, 32, name) for lane in given], 32)

    return operation


def _from_integers(target: Format) -> Operation:
    def operation(env: Environment, _: int, right: int, __: int) -> int:
        given = signed_lanes(right, 32, 128 // target.width)
        return joined([softfloat.from_integer(target, env, n) for n in given], target.width)

    return operation


FLOAT["cvtps2pd"] = _to_format(FLOAT32, FLOAT64)
FLOAT["cvtpd2ps"] = _to_format(FLOAT64, FLOAT32)
FLOAT["cvtss2sd"] = _to_format_scalar(FLOAT32, FLOAT64)
FLOAT["cvtsd2ss"] = _to_format_scalar(FLOAT64, FLOAT32)
FLOAT["cvtdq2ps"] = _from_integers(FLOAT32)
FLOAT["cvtdq2pd"] = _from_integers(FLOAT64)
for _name, _format in (("ps2dq", FLOAT32), ("pd2dq", FLOAT64)):
    FLOAT[f"cvt{_name}"] = _to_integers(f"cvt{_name}", _format)
    FLOAT[f"cvtt{_name}"] = _to_integers(f"cvtt{_name}", _format)

# -- approximations ----------------------------------------------------------------------------

ROOT_BITS = 64


def _quietly(function: Callable[[Environment, Number], int]) -> Element:
    """An approximation: no exceptions, its own rounding, no denormals in or out."""

    def element(format: Format, _: Environment, __: int, b: int, ___: int) -> int:
        env = Environment(denormals_are_zero=True, flush_to_zero=True)
        return function(env, env.operand(format, b))

    return element


def _reciprocal(env: Environment, b: Number) -> int:
    one = Number(Kind.FINITE, 0, 1, 0)
    return softfloat.divide(FLOAT32, env, one, b)


def _reciprocal_root(env: Environment, b: Number) -> int:
    """1 / sqrt(b), from an integer square root of a reciprocal with ``2 * ROOT_BITS`` bits."""
    if b.kind == Kind.ZERO:
        return FLOAT32.infinity(b.sign)
    if b.kind != Kind.FINITE or b.sign:
        infinite = b.kind == Kind.INFINITE and not b.sign
        return FLOAT32.zero(0) if infinite else softfloat.square_root(FLOAT32, env, b)
    significand, exponent = b.significand << (b.exponent & 1), b.exponent & ~1
    root = math.isqrt((1 << 2 * ROOT_BITS) // significand)
    return softfloat.round_to(FLOAT32, env, 0, root << 1 | 1, -exponent // 2 - ROOT_BITS - 1)


for _name, _function in (("rcp", _reciprocal), ("rsqrt", _reciprocal_root)):
    FLOAT[f"{_name}ps"] = _packed(FLOAT32, _quietly(_function))
    FLOAT[f"{_name}ss"] = _scalar(FLOAT32, _quietly(_function))

# -- flags and general registers ---------------------------------------------------------------

CF, PF, ZF = 1, 4, 0x40
_FLAGS: dict[int | None, int] = {-1: CF, 0: ZF, 1: 0, None: CF | PF | ZF}


def compare_flags(name: str, env: Environment, left: int, right: int) -> int:
    """COMISS, UCOMISD …: the arithmetic flags."""
    format = FORMATS[name[-1]]
    a, b = (env.operand(format, lanes(n, format.width, 1)[0]) for n in (left, right))
    return _FLAGS[softfloat.compare(env, a, b, signaling=name.startswith("comi"))]


def to_register(name: str, env: Environment, value: int, bits: int) -> int:
    """CVTSS2SI, CVTTSD2SI …."""
    format = FORMATS[name.removesuffix("2si")[-1]]
    return to_integer(env, format, lanes(value, format.width, 1)[0], bits, name)


def from_register(name: str, env: Environment, left: int, value: int, bits: int) -> int:
    """CVTSI2SS, CVTSI2SD."""
    format = FORMATS[name[-1]]
    lane = softfloat.from_integer(format, env, signed(value, bits))
    return with_lowest(left, lane, format.width)
