"""Finding the zeroes in a buffer.

``bytearray.startswith`` is a memcmp at an offset, without a copy: 12 GiB/s over zeroes, and done
at the first byte that differs over data.  (Comparing memoryviews goes byte by byte.)
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from vdisk.block import ZERO_CHUNK, ZEROES

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_zero(buffer: bytearray, start: int, length: int) -> bool:
    """True if ``length`` bytes of ``buffer`` from ``start`` on are all zero."""
    end = start + length
    while end - start >= ZERO_CHUNK:
        if not buffer.startswith(ZEROES, start):
            return False
        start += ZERO_CHUNK
    return buffer.startswith(ZEROES[: end - start], start)


def zero_runs(
    buffer: bytearray, start: int, length: int, block: int
) -> Iterator[tuple[int, int, bool]]:
    """Runs of blocks that are all zero, and of blocks that are not: (start, length, zero).

    Blocks of ``block`` bytes are counted from ``start``; the last may be shorter.
    """
    end = start + length
    whole = length // block
    if block <= ZERO_CHUNK:
        zeroes, starts_with = ZEROES[:block], buffer.startswith
        flags = [starts_with(zeroes, at) for at in range(start, start + whole * block, block)]
    else:
        flags = [is_zero(buffer, start + index * block, block) for index in range(whole)]
    if whole * block < length:
        flags.append(is_zero(buffer, start + whole * block, length - whole * block))
    if length and True not in flags:  # as most data are: nothing to group
        yield start, length, False
        return
    for zero, run in groupby(flags):
        stop = min(start + block * sum(1 for _ in run), end)
        yield start, stop - start, zero
        start = stop
