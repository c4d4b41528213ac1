"""SSE's integer instructions in Python: arithmetic, comparisons, shifts, shuffles, packing.

SDM volume 2 by mnemonic.  Each is a function of both operands as 128-bit integers and of the
immediate; MMX instructions are the low halves of the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from vdisk.vm.cpu.builder import signed
from vdisk.vm.cpu.python_lanes import REGISTER, joined, lanes, signed_lanes

if TYPE_CHECKING:
    from collections.abc import Callable

    Element: TypeAlias = Callable[[int, int], int]
    Operation: TypeAlias = Callable[[int, int, int], int]

INTEGER: dict[str, Operation] = {}
"""By mnemonic: (left, right, immediate) to result."""
ALL_ONES = (1 << REGISTER) - 1
WIDTHS = {"b": 8, "w": 16, "d": 32, "q": 64}


def on(*names: str) -> Callable[[Operation], Operation]:
    """Register a function for mnemonics."""

    def register(function: Operation) -> Operation:
        for name in names:
            INTEGER[name] = function
        return function

    return register


def within(value: int, low: int, high: int) -> int:
    """Saturated."""
    return min(max(value, low), high)


def saturated(value: int, width: int) -> int:
    return within(value, -(1 << width - 1), (1 << width - 1) - 1)


def saturated_unsigned(value: int, width: int) -> int:
    return within(value, 0, (1 << width) - 1)


# -- lane by lane ------------------------------------------------------------------------------


def _each(name: str, width: int, function: Element, *, is_signed: bool = False) -> None:
    split = signed_lanes if is_signed else lanes

    def operation(left: int, right: int, _: int) -> int:
        pairs = zip(split(left, width), split(right, width), strict=True)
        return joined((function(a, b) for a, b in pairs), width)

    INTEGER[name] = operation


def _sign_of(a: int, b: int) -> int:
    """PSIGN: negated, cleared or kept as the other one's sign says."""
    return -a if b < 0 else a if b else 0


for _letter, _width in WIDTHS.items():
    _each(f"padd{_letter}", _width, lambda a, b: a + b)
    _each(f"psub{_letter}", _width, lambda a, b: a - b)
    _each(f"pcmpeq{_letter}", _width, lambda a, b: -(a == b))
    _each(f"pcmpgt{_letter}", _width, lambda a, b: -(a > b), is_signed=True)
for _letter, _width in (("b", 8), ("w", 16), ("d", 32)):
    _each(f"pmaxs{_letter}", _width, max, is_signed=True)
    _each(f"pmins{_letter}", _width, min, is_signed=True)
    _each(f"pmaxu{_letter}", _width, max)
    _each(f"pminu{_letter}", _width, min)
    _each(f"psign{_letter}", _width, _sign_of, is_signed=True)
    _each(f"pabs{_letter}", _width, lambda _, b: abs(b), is_signed=True)
for _letter, _width in (("b", 8), ("w", 16)):

    def _plus(a: int, b: int, width: int = _width) -> int:
        return saturated(a + b, width)

    def _minus(a: int, b: int, width: int = _width) -> int:
        return saturated(a - b, width)

    def _plus_unsigned(a: int, b: int, width: int = _width) -> int:
        return saturated_unsigned(a + b, width)

    def _minus_unsigned(a: int, b: int, width: int = _width) -> int:
        return saturated_unsigned(a - b, width)

    _each(f"padds{_letter}", _width, _plus, is_signed=True)
    _each(f"psubs{_letter}", _width, _minus, is_signed=True)
    _each(f"paddus{_letter}", _width, _plus_unsigned)
    _each(f"psubus{_letter}", _width, _minus_unsigned)
    _each(f"pavg{_letter}", _width, lambda a, b: a + b + 1 >> 1)
_each("pmullw", 16, lambda a, b: a * b)
_each("pmulld", 32, lambda a, b: a * b)
_each("pmulhw", 16, lambda a, b: a * b >> 16, is_signed=True)
_each("pmulhuw", 16, lambda a, b: a * b >> 16)
_each("pmulhrsw", 16, lambda a, b: (a * b >> 14) + 1 >> 1, is_signed=True)
_each("pmuludq", 64, lambda a, b: (a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF))
_each("pmuldq", 64, lambda a, b: signed(a & 0xFFFF_FFFF, 32) * signed(b & 0xFFFF_FFFF, 32))


# -- whole registers ---------------------------------------------------------------------------


@on("pand", "andps", "andpd")
def _and(left: int, right: int, _: int) -> int:
    return left & right


@on("pandn", "andnps", "andnpd")
def _and_not(left: int, right: int, _: int) -> int:
    return ~left & ALL_ONES & right


@on("por", "orps", "orpd")
def _or(left: int, right: int, _: int) -> int:
    return left | right


@on("pxor", "xorps", "xorpd")
def _xor(left: int, right: int, _: int) -> int:
    return left ^ right


@on("pslldq")
def _shift_bytes_left(left: int, count: int, _: int) -> int:
    return left << 8 * min(count, 16) & ALL_ONES


@on("psrldq")
def _shift_bytes_right(left: int, count: int, _: int) -> int:
    return left >> 8 * min(count, 16)


@on("palignr")
def _align(left: int, right: int, immediate: int) -> int:
    return (left << REGISTER | right) >> 8 * min(immediate, 32) & ALL_ONES


# -- shifts ------------------------------------------------------------------------------------


def _shift(name: str, width: int, function: Element, *, is_signed: bool = False) -> None:
    """All lanes by one count, the low half of the right operand; at most the width counts."""
    split = signed_lanes if is_signed else lanes

    def operation(left: int, right: int, _: int) -> int:
        count = min(right & (1 << 64) - 1, width)
        return joined((function(lane, count) for lane in split(left, width)), width)

    INTEGER[name] = operation


for _letter, _width in (("w", 16), ("d", 32), ("q", 64)):
    _shift(f"psll{_letter}", _width, lambda a, count: a << count)
    _shift(f"psrl{_letter}", _width, lambda a, count: a >> count)
    _shift(f"psra{_letter}", _width, lambda a, count: a >> count, is_signed=True)


# -- sums across lanes -------------------------------------------------------------------------


def _pairs(values: list[int]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _horizontal(name: str, width: int, function: Element) -> None:
    def operation(left: int, right: int, _: int) -> int:
        values = signed_lanes(left, width) + signed_lanes(right, width)
        return joined((function(a, b) for a, b in _pairs(values)), width)

    INTEGER[name] = operation


_horizontal("phaddw", 16, lambda a, b: a + b)
_horizontal("phaddd", 32, lambda a, b: a + b)
_horizontal("phaddsw", 16, lambda a, b: saturated(a + b, 16))
_horizontal("phsubw", 16, lambda a, b: a - b)
_horizontal("phsubd", 32, lambda a, b: a - b)
_horizontal("phsubsw", 16, lambda a, b: saturated(a - b, 16))


@on("pmaddwd")
def _multiply_and_add(left: int, right: int, _: int) -> int:
    pairs = zip(signed_lanes(left, 16), signed_lanes(right, 16), strict=True)
    return joined((a + b for a, b in _pairs([a * b for a, b in pairs])), 32)


@on("pmaddubsw")
def _multiply_unsigned_and_add(left: int, right: int, _: int) -> int:
    products = [a * b for a, b in zip(lanes(left, 8), signed_lanes(right, 8), strict=True)]
    return joined((saturated(a + b, 16) for a, b in _pairs(products)), 16)


def _distance(left: list[int], right: list[int]) -> int:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True))


@on("psadbw")
def _sum_of_differences(left: int, right: int, _: int) -> int:
    a, b = lanes(left, 8), lanes(right, 8)
    return joined((_distance(a[n : n + 8], b[n : n + 8]) for n in (0, 8)), 64)


@on("mpsadbw")
def _multiple_sums(left: int, right: int, immediate: int) -> int:
    """Eight windows of four bytes of the left operand beside one of the right."""
    start, block = immediate & 4, 4 * (immediate & 3)
    a, b = lanes(left, 8), lanes(right, 8)[block : block + 4]
    return joined((_distance(a[start + n : start + n + 4], b) for n in range(8)), 16)


@on("phminposuw")
def _minimum(_: int, right: int, __: int) -> int:
    values = lanes(right, 16)
    smallest = min(values)
    return smallest | values.index(smallest) << 16


# -- shuffles ----------------------------------------------------------------------------------


def _chosen(values: list[int], immediate: int) -> list[int]:
    """Four times one of four."""
    return [values[immediate >> 2 * n & 3] for n in range(4)]


@on("pshufd")
def _shuffle_doublewords(_: int, right: int, immediate: int) -> int:
    return joined(_chosen(lanes(right, 32), immediate), 32)


@on("pshuflw")
def _shuffle_low_words(_: int, right: int, immediate: int) -> int:
    values = lanes(right, 16)
    return joined(_chosen(values[:4], immediate) + values[4:], 16)


@on("pshufhw")
def _shuffle_high_words(_: int, right: int, immediate: int) -> int:
    values = lanes(right, 16)
    return joined(values[:4] + _chosen(values[4:], immediate), 16)


@on("shufps")
def _shuffle_singles(left: int, right: int, immediate: int) -> int:
    low, high = _chosen(lanes(left, 32), immediate), _chosen(lanes(right, 32), immediate)
    return joined(low[:2] + high[2:], 32)


@on("shufpd")
def _shuffle_doubles(left: int, right: int, immediate: int) -> int:
    return joined((lanes(left, 64)[immediate & 1], lanes(right, 64)[immediate >> 1 & 1]), 64)


@on("pshufb")
def _shuffle_bytes(left: int, right: int, _: int) -> int:
    values = lanes(left, 8)
    return joined((0 if n & 0x80 else values[n & 15] for n in lanes(right, 8)), 8)


def _unpack(width: int, *, high: bool) -> Operation:
    half = REGISTER // width // 2 if high else 0

    def operation(left: int, right: int, _: int) -> int:
        a, b = lanes(left, width)[half:], lanes(right, width)[half:]
        woven = [value for pair in zip(a, b, strict=True) for value in pair]
        return joined(woven[: REGISTER // width], width)

    return operation


for _name, _width in (("bw", 8), ("wd", 16), ("dq", 32), ("qdq", 64)):
    INTEGER[f"punpckl{_name}"] = _unpack(_width, high=False)
    INTEGER[f"punpckh{_name}"] = _unpack(_width, high=True)
for _name, _width in (("ps", 32), ("pd", 64)):
    INTEGER[f"unpckl{_name}"] = _unpack(_width, high=False)
    INTEGER[f"unpckh{_name}"] = _unpack(_width, high=True)


def _pack(name: str, width: int, limit: Element) -> None:
    """Lanes of both operands, saturated to half their width."""

    def operation(left: int, right: int, _: int) -> int:
        values = signed_lanes(left, width) + signed_lanes(right, width)
        return joined((limit(value, width // 2) for value in values), width // 2)

    INTEGER[name] = operation


_pack("packsswb", 16, saturated)
_pack("packssdw", 32, saturated)
_pack("packuswb", 16, saturated_unsigned)
_pack("packusdw", 32, saturated_unsigned)


def _extend(name: str, small: int, wide: int, *, is_signed: bool) -> None:
    split = signed_lanes if is_signed else lanes

    def operation(_: int, right: int, __: int) -> int:
        return joined(split(right, small, REGISTER // wide), wide)

    INTEGER[name] = operation


for _name in ("bw", "bd", "bq", "wd", "wq", "dq"):
    _small, _wide = WIDTHS[_name[0]], WIDTHS[_name[1]]
    _extend(f"pmovsx{_name}", _small, _wide, is_signed=True)
    _extend(f"pmovzx{_name}", _small, _wide, is_signed=False)


@on("movshdup")
def _duplicate_odd(_: int, right: int, __: int) -> int:
    a = lanes(right, 32)
    return joined((a[1], a[1], a[3], a[3]), 32)


@on("movsldup")
def _duplicate_even(_: int, right: int, __: int) -> int:
    a = lanes(right, 32)
    return joined((a[0], a[0], a[2], a[2]), 32)


@on("movddup")
def _duplicate_double(_: int, right: int, __: int) -> int:
    low = lanes(right, 64)[0]
    return low | low << 64


# -- blends ------------------------------------------------------------------------------------


def _blend_by_immediate(width: int) -> Operation:
    def operation(left: int, right: int, immediate: int) -> int:
        both = enumerate(zip(lanes(left, width), lanes(right, width), strict=True))
        return joined((pair[immediate >> n & 1] for n, pair in both), width)

    return operation


INTEGER["blendps"] = _blend_by_immediate(32)
INTEGER["blendpd"] = _blend_by_immediate(64)
INTEGER["pblendw"] = _blend_by_immediate(16)
BLEND_WIDTHS = {"pblendvb": 8, "blendvps": 32, "blendvpd": 64}


def blend(name: str, left: int, right: int, choice: int) -> int:
    """PBLENDVB and its kin: the signs of ``choice`` take lanes of the right operand."""
    width = BLEND_WIDTHS[name]
    signs = [lane >> width - 1 for lane in lanes(choice, width)]
    both = zip(signs, lanes(left, width), lanes(right, width), strict=True)
    return joined((b if sign else a for sign, a, b in both), width)


@on("insertps")
def _insert_single(left: int, right: int, immediate: int) -> int:
    """An element of the right operand to a place of the left one; then zeroes."""
    values = lanes(left, 32)
    values[immediate >> 4 & 3] = lanes(right, 32)[immediate >> 6]
    return joined((0 if immediate >> n & 1 else lane for n, lane in enumerate(values)), 32)


def sign_mask(value: int, width: int) -> int:
    """A bit for the sign of each lane (MOVMSKPS, PMOVMSKB)."""
    return sum((lane >> width - 1) << n for n, lane in enumerate(lanes(value, width)))
