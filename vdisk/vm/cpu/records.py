"""Threaded code: what one record holds, and how it is packed.

A translated block is an array of 32-byte records in one arena; a handler does its work and goes
on with the next record's::

    0        8     10    12    14     16        20        24   26   27     28      30     31
    +--------+-----+-----+-----+------+---------+---------+----+----+------+-------+------+------+
    |handler | r0  | r1  | base|index | disp    | imm     | off|len |scale | segment|count| r2   |
    +--------+-----+-----+-----+------+---------+---------+----+----+------+-------+------+------+
                                      | link or imm64     |

r0, r1, base, index, segment are offsets in the state; r2 is such an offset divided by 8.  off is
the instruction's place in its page, len its length, count how many instructions of the block end
with it.  link: address of another record.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

RECORD = Struct("<QHHHHiiHBBHBB")
WIDE_RECORD = Struct("<QHHHHqHBBHBB")
RECORD_SIZE = RECORD.size
assert RECORD_SIZE == WIDE_RECORD.size == 32

HANDLER_OFFSET = 0
LINK_OFFSET = 16


class Param(NamedTuple):
    """Where a parameter stands in a record, and the value a semantic function gets for it."""

    offset: int
    type: str
    to: str
    signed: bool = False
    scaled: int = 1


PARAMS = {
    "r0": Param(8, "i16", "i64"),
    "r1": Param(10, "i16", "i64"),
    "base": Param(12, "i16", "i64"),
    "index": Param(14, "i16", "i64"),
    "disp": Param(16, "i32", "i64", signed=True),
    "imm": Param(20, "i32", "i64", signed=True),
    "wide": Param(16, "i64", "i64"),
    "link": Param(16, "i64", "i64"),
    "off": Param(24, "i16", "i64"),
    "len": Param(26, "i8", "i64"),
    "scale": Param(27, "i8", "i64"),
    "segment": Param(28, "i16", "i64"),
    "count": Param(30, "i8", "i64"),
    "r2": Param(31, "i8", "i64", scaled=8),
}
