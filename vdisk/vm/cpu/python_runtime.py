"""The names that generated Python uses (see :mod:`vdisk.vm.cpu.python_builder`)."""

from __future__ import annotations

from typing import Any

from vdisk.vm.cpu.builder import signed


def load(buffer: memoryview, offset: int, size: int) -> int:
    """``size`` bytes, little-endian."""
    return int.from_bytes(buffer[offset : offset + size], "little")


def store(buffer: memoryview, offset: int, size: int, value: int) -> None:
    """The counterpart of :func:`load`; ``i1`` counts as a byte."""
    buffer[offset : offset + size] = int(value).to_bytes(size, "little")


def udiv(a: int, b: int, width: int) -> int:
    return a // b


def urem(a: int, b: int, width: int) -> int:
    return a % b


def sdiv(a: int, b: int, width: int) -> int:
    """Division that rounds towards zero, as processors do."""
    left, right = signed(a, width), signed(b, width)
    quotient = abs(left) // abs(right)
    return (quotient if (left < 0) == (right < 0) else -quotient) & ((1 << width) - 1)


def srem(a: int, b: int, width: int) -> int:
    left, right = signed(a, width), signed(b, width)
    rest = abs(left) % abs(right)
    return (rest if left >= 0 else -rest) & ((1 << width) - 1)


def bswap(value: int, width: int) -> int:
    return int.from_bytes(value.to_bytes(width // 8, "little"), "big")


def ctpop(value: int, width: int) -> int:
    return value.bit_count()


def ctlz(value: int, width: int) -> int:
    return width - value.bit_length()


def cttz(value: int, width: int) -> int:
    return (value & -value).bit_length() - 1 if value else width


NAMES: dict[str, Any] = {
    function.__name__: function
    for function in (load, store, signed, udiv, urem, sdiv, srem, bswap, ctpop, ctlz, cttz)
}
