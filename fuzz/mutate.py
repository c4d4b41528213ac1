"""Changing inputs: a few fields of a valid one, by what they mean.

A :class:`Field` is a big-endian number of an input and what kind of number it is; a format's
own module finds them (:mod:`fuzz.qcow2_fields`, :mod:`fuzz.wire_fields`).  The values tried are
those at which code goes wrong: nothing, one more, one less, the largest, somebody else's place.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

MOST_CHANGES = 6


class Means(enum.Enum):
    """What a number is, and so which other values are interesting."""

    OFFSET = "offset"
    COUNT = "count"
    FLAGS = "flags"
    BYTES = "bytes"


class Field(NamedTuple):
    """A number of ``size`` bytes at ``offset`` of the input."""

    offset: int
    size: int
    means: Means


Groups = "Mapping[str, Sequence[Field]]"
"""Fields by the structure they are in: a structure is chosen first, however few its fields."""


def change_fields(
    data: bytearray, groups: Mapping[str, Sequence[Field]], rng: random.Random, unit: int
) -> None:
    """Change one field, seldom more.  ``unit``: what offsets are multiples of."""
    names = [name for name, fields in groups.items() if fields]
    for _ in range(_how_many(rng)):
        if not names:
            return
        field = rng.choice(groups[rng.choice(names)])
        if field.offset + field.size > len(data):
            continue
        place = slice(field.offset, field.offset + field.size)
        old = int.from_bytes(data[place], "big")
        new = _value(field, old, len(data), rng, unit)
        data[place] = (new % (1 << 8 * field.size)).to_bytes(field.size, "big")


def _how_many(rng: random.Random) -> int:
    return rng.choice([1, 1, 1, 1, 2, 2, 3, MOST_CHANGES])


def _value(field: Field, old: int, length: int, rng: random.Random, unit: int) -> int:
    top = 1 << 8 * field.size
    match field.means:
        case Means.OFFSET:
            return _offset(old, length, rng, unit)
        case Means.COUNT:
            near = [old + 1, old - 1, old * 2, old // 2, old + unit]
            return rng.choice([*near, 0, 1, top - 1, top // 2, top // 2 - 1, rng.randrange(top)])
        case Means.FLAGS:
            return rng.choice([old ^ (1 << rng.randrange(8 * field.size)), 0, old | 1, top - 1])
        case Means.BYTES:
            return rng.randrange(top)


def _offset(old: int, length: int, rng: random.Random, unit: int) -> int:
    """Another place, with the old flags around it, or other flags around the old place."""
    flags, place = old & ~0x00FF_FFFF_FFFF_FE00, old & 0x00FF_FFFF_FFFF_FE00
    inside = rng.randrange(max(length, 1)) // unit * unit
    other = rng.choice(
        [
            *[inside] * 4,
            *[place, place + unit, place - unit, place + 512, 0],
            *[length // unit * unit, length + 64 * unit, 1 << 40, 1 << 55, (1 << 56) - unit],
        ]
    )
    if rng.random() < 0.4:
        flags ^= 1 << rng.choice([63, 63, 62, 62, 0, 0, rng.randrange(64)])
    return (other | flags) if rng.random() < 0.9 else rng.randrange(1 << 64)


def change_bytes(data: bytearray, rng: random.Random, unit: int) -> None:
    """Change what has no fields: single bytes, whole units, the end."""
    if not data:
        data += rng.randbytes(rng.randrange(1, 80))
        return
    position = rng.randrange(len(data))
    match rng.randrange(7):
        case 0 | 1 | 2:
            data[position] ^= 1 << rng.randrange(8)
        case 3:
            data[position] = rng.choice([0, 255, rng.randrange(256)])
        case 4:
            del data[position:]
        case 5:
            start, source = position // unit * unit, rng.randrange(len(data)) // unit * unit
            piece = data[source : source + unit]
            data[start : start + len(piece)] = piece
        case 6:
            data[position:position] = rng.randbytes(rng.randrange(1, 9))
