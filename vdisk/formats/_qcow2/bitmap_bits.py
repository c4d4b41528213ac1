"""Sets of equal chunks of a disk as bits: recording, finding runs, coarsening.

Chunk n of a bitmap is bit ``n % 8``, counted from the least significant, of byte ``n // 8``, in
memory as in the file.  Nothing here loops over bits where whole bytes are alike.
"""

from __future__ import annotations

import mmap
import re
import threading
from functools import cache
from typing import TYPE_CHECKING

from vdisk.block import ZERO_CHUNK, ZEROES
from vdisk.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Bits = bytes | bytearray

_BLOCK = 4096
"""Bytes compared with zeroes at once when looking for set bits."""
_SLICE = 64 << 10
"""Bytes of recorded bits set or coarsened at once."""
_ONES = b"\xff" * _SLICE
_NOT_ZERO = re.compile(rb"[^\x00]\xff*")


@cache
def _runs_of(byte: int) -> tuple[tuple[int, int], ...]:
    """The runs [first, end) of set bits in one byte."""
    edges = [bit for bit in range(9) if (byte >> bit & 1) != (byte << 1 >> bit & 1)]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


_ANY = (0, 1, 1, 1)
_PAIRS = bytes(
    _ANY[byte & 3] | _ANY[byte >> 2 & 3] << 1 | _ANY[byte >> 4 & 3] << 2 | _ANY[byte >> 6] << 3
    for byte in range(256)
)  # each pair of neighbouring bits becomes one bit
_PAIRS_HIGH = bytes(value << 4 for value in _PAIRS)


def bit_runs(data: Bits) -> Iterator[tuple[int, int]]:
    """Runs [first, end) of set bits, in order; a run may come in several adjoining pieces."""
    for block in range(0, len(data), _BLOCK):
        stop = min(block + _BLOCK, len(data))
        if ZEROES.startswith(data[block:stop]):
            continue
        for match in _NOT_ZERO.finditer(data, block, stop):
            at, end = match.span()
            for first, last in _runs_of(data[at]):
                yield at * 8 + first, at * 8 + last
            if end > at + 1:
                yield at * 8 + 8, end * 8


def joined(ranges: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ordered ranges [first, last) clipped to [start, end), adjoining ones made one."""
    pending, reached = start, start
    for first, last in ranges:
        if first > reached:
            if pending < reached:
                yield pending, reached
            pending = first
        reached = max(reached, min(last, end))
    if pending < reached:
        yield pending, reached


def combine(first: Bits, second: Bits) -> bytes:
    """The union of two bitmaps of the same length."""
    both = int.from_bytes(first, "little") | int.from_bytes(second, "little")
    return both.to_bytes(len(first), "little")


def coarsen(data: Bits) -> bytes:
    """The same set in chunks twice as large; ``data`` has an even length."""
    return combine(data[::2].translate(_PAIRS), data[1::2].translate(_PAIRS_HIGH))


def trim(data: Bits, bits: int) -> bytes:
    """``data`` (not longer than ``bits`` need), the bits from number ``bits`` on cleared."""
    spare = len(data) * 8 - bits
    if spare <= 0:
        return bytes(data)
    return bytes(data[:-1]) + bytes([data[-1] & 0xFF >> spare])


def is_zero(data: Bits) -> bool:
    """True if no bit is set."""
    return all(
        ZEROES.startswith(data[at : at + ZERO_CHUNK]) for at in range(0, len(data), ZERO_CHUNK)
    )


def _zeroes_on_demand(length: int) -> mmap.mmap:
    """Bytes of which only those that are written to take memory, where the system can do that."""
    private = hasattr(mmap, "MAP_PRIVATE")
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if private else {}
    try:
        return mmap.mmap(-1, length, **flags)
    except OSError as error:
        raise DeviceError(
            f"no memory for the {length} bytes of a bitmap", errno=error.errno
        ) from error


class Marks:
    """What was written to a disk of ``size`` bytes, in chunks of 1 << ``shift`` bytes.

    A bit is only ever set, so that a set one need not be looked at under the lock.
    """

    def __init__(self, size: int, shift: int) -> None:
        self.shift = shift
        self._bits = _zeroes_on_demand(max(-(-size // (8 << shift)), 1))
        self._lock = threading.Lock()

    def add(self, offset: int, length: int) -> None:
        """Bytes [offset, offset + length) of the disk, all inside it, were written."""
        if not length:
            return
        first, last = offset >> self.shift, (offset + length - 1) >> self.shift
        bits = self._bits
        low, high = first >> 3, last >> 3
        if first == last and bits[low] >> (first & 7) & 1:
            return
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
        with self._lock:
            if low == high:
                bits[low] |= head & tail
            else:
                bits[low] |= head
                for start in range(low + 1, high, _SLICE):
                    end = min(start + _SLICE, high)
                    bits[start:end] = _ONES[: end - start]
                bits[high] |= tail

    def coarse(self, first: int, end: int, shift: int) -> bytes:
        """Bytes [first, end) of the bitmap of the same set in chunks of 1 << ``shift`` bytes.

        ``shift`` is not smaller than that of the marks.
        """
        steps = shift - self.shift
        count = max(_SLICE >> steps, 1)
        return b"".join(
            self._coarse_slice(at, min(at + count, end), steps) for at in range(first, end, count)
        )

    def _coarse_slice(self, first: int, end: int, steps: int) -> bytes:
        data = self._bits[first << steps : end << steps]
        if is_zero(data):
            return bytes(end - first)
        data = data.ljust((end - first) << steps, b"\0")
        for _ in range(steps):
            data = coarsen(data)
        return data
