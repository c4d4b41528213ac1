"""Registers as lanes, for SSE in Python: lane 0 is the lowest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.builder import signed

if TYPE_CHECKING:
    from collections.abc import Iterable

REGISTER = 128


def lanes(value: int, width: int, count: int | None = None) -> list[int]:
    """The lanes of a register, unsigned."""
    mask = (1 << width) - 1
    return [value >> width * n & mask for n in range(count or REGISTER // width)]


def signed_lanes(value: int, width: int, count: int | None = None) -> list[int]:
    """The lanes of a register as two's complement."""
    return [signed(lane, width) for lane in lanes(value, width, count)]


def joined(values: Iterable[int], width: int) -> int:
    """A register of lanes, each wrapped to its width."""
    mask = (1 << width) - 1
    return sum((value & mask) << width * n for n, value in enumerate(values))


def with_lowest(left: int, lane: int, width: int) -> int:
    """``left`` with another lane 0: what scalar instructions leave."""
    return left >> width << width | lane
