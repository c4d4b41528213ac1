"""PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM in Python (SDM volume 2, section 4.1).

The immediate says how the strings are compared::

    bit  0     elements are words, not bytes
         1     elements are signed
         3:2   equal any, ranges, equal each, equal ordered
         5:4   polarity: 1 negates the result, 3 only where the right string has elements
         6     index: of the last element; mask: of whole elements
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.vm.cpu.builder import signed
from vdisk.vm.cpu.python_lanes import joined, lanes, signed_lanes

CF, ZF, SF, OF = 1, 0x40, 0x80, 0x800
EQUAL_ANY, RANGES, EQUAL_EACH, EQUAL_ORDERED = range(4)


@dataclass(frozen=True, slots=True)
class Text:
    """The elements of a register; ``length`` of them are valid."""

    elements: list[int]
    length: int


def _text(value: int, immediate: int, given: int | None) -> Text:
    """``given``: its length in a 32-bit register; None: it ends at a zero."""
    width = 16 if immediate & 1 else 8
    elements = signed_lanes(value, width) if immediate & 2 else lanes(value, width)
    count = len(elements)
    if given is None:
        return Text(elements, elements.index(0) if 0 in elements else count)
    return Text(elements, min(abs(signed(given, 32)), count))


def _equal_any(left: Text, right: Text, place: int) -> bool:
    return place < right.length and right.elements[place] in left.elements[: left.length]


def _ranges(left: Text, right: Text, place: int) -> bool:
    if place >= right.length:
        return False
    bounds = left.elements[: left.length & ~1]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return any(low <= right.elements[place] <= high for low, high in pairs)


def _equal_each(left: Text, right: Text, place: int) -> bool:
    valid = place < left.length, place < right.length
    if not all(valid):
        return not any(valid)
    return left.elements[place] == right.elements[place]


def _equal_ordered(left: Text, right: Text, place: int) -> bool:
    """Does the left string, or what of it the register's end leaves, begin here?"""
    needed = min(left.length, len(right.elements) - place)
    if needed and place + needed > right.length:
        return False
    return right.elements[place : place + needed] == left.elements[:needed]


_AGGREGATIONS = (_equal_any, _ranges, _equal_each, _equal_ordered)


def _found(immediate: int, left: Text, right: Text) -> int:
    """IntRes2: a bit for each element of the right string."""
    aggregation = _AGGREGATIONS[immediate >> 2 & 3]
    count = len(right.elements)
    bits = sum(aggregation(left, right, place) << place for place in range(count))
    negated = {1: count, 3: right.length}.get(immediate >> 4 & 3, 0)
    return bits ^ (1 << negated) - 1


def compare(
    name: str, immediate: int, left: int, right: int, left_length: int, right_length: int
) -> tuple[int, int]:
    """(index or mask, arithmetic flags); lengths count for PCMPESTRx only."""
    explicit = name.startswith("pcmpe")
    a = _text(left, immediate, left_length if explicit else None)
    b = _text(right, immediate, right_length if explicit else None)
    bits, count = _found(immediate, a, b), len(b.elements)
    flags = CF * (bits != 0) | ZF * (b.length < count) | SF * (a.length < count) | OF * (bits & 1)
    last = bool(immediate & 0x40)
    if name.endswith("m"):
        whole = joined((-(bits >> n & 1) for n in range(count)), 128 // count)
        return (whole if last else bits), flags
    if not bits:
        return count, flags
    return (bits.bit_length() if last else (bits & -bits).bit_length()) - 1, flags
