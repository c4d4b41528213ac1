"""Sizes as people write them: ``10G``, ``1.5T``, ``64k`` in, ``1.5 TiB`` out.

Suffixes are powers of 1024, as in qemu-img: ``b`` bytes, ``k`` ``m`` ``g`` ``t`` ``p`` ``e``
in either case.
"""

import re

from vdisk.errors import InvalidRequestError

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_SUFFIXES = "bkmgtpe"
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?|\.\d+)([bkmgtpeBKMGTPE]?)", re.ASCII)
_LARGEST_SIZE = (1 << 63) - 1  # an off_t


def parse_size(text: str, *, what: str = "size") -> int:
    """Bytes meant by ``text`` ("64k", "1.5G", "0x200", "512"); parts of a byte need a suffix.

    Raises :class:`InvalidRequestError` for anything else and for more than 2**63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError(f"{what} {text!r} is not a number with an optional suffix kMGTPE")
    number, suffix = match.groups()
    shift = 10 * _SUFFIXES.index(suffix.lower() or "b")
    if not shift and number.partition(".")[2].strip("0"):
        raise InvalidRequestError(f"{what} {text!r} is not a whole number of bytes")
    value = _scaled(number, shift)
    if value > _LARGEST_SIZE:
        raise InvalidRequestError(f"{what} {text!r} is larger than 8 EiB - 1")
    return value


def _scaled(number: str, shift: int) -> int:
    """``number`` (decimal with an optional fraction, or hexadecimal) times 2**shift, exactly."""
    if number[:2] in ("0x", "0X"):
        return int(number, 16) << shift
    whole, _, fraction = number.partition(".")
    value = int(whole or "0") << shift
    if fraction:
        value += (int(fraction) << shift) // 10 ** len(fraction)
    return value


def format_size(size: int) -> str:
    """``size`` bytes for a person, three significant digits: "512 B", "1.5 GiB"."""
    if size < 1000:
        return f"{size} B"
    value, power = size / 1024, 0
    while value >= 1000 and power < len("KMGTPE") - 1:
        value, power = value / 1024, power + 1
    return f"{value:.3g} {'KMGTPE'[power]}iB"


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of ``unit`` (> 0) that is not below ``value``."""
    return -(-value // unit) * unit


def round_down(value: int, unit: int) -> int:
    """The largest multiple of ``unit`` (> 0) that is not above ``value``."""
    return value // unit * unit
