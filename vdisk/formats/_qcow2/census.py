"""How often each host cluster is referred to, counted in memory while an image is checked.

The counts are digits in base 256, one *plane* of bytes a digit, so that a run of clusters is
counted, compared or searched by one operation on bytes::

    cluster     0   1   2   3   4   5
    plane 0     1   1   1  44   0   1        cluster 3: 1 * 256 + 44 = 300 references
    plane 1     0   0   0   1   0   0        (made when it is first needed)

A plane is memory of the system's that takes room only where it was written: a sparse file with
few references costs little, whatever its length.
"""

from __future__ import annotations

import mmap
import re
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from vdisk.block import ZERO_CHUNK, ZEROES
from vdisk.errors import UnsupportedFeatureError, from_os_error
from vdisk.formats._qcow2.refcounts import unpack_counts
from vdisk.formats._qcow2.tables import words_from_bytes

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

MAX_CLUSTERS = (1 << 31) - 1
"""Host clusters of the largest file that is checked (QEMU's limit): 2 GiB of memory at worst."""

_NONZERO = re.compile(rb"[^\0]")
_PLUS = [bytes((old + digit) & 255 for old in range(256)) for digit in range(256)]
_CARRY = [bytes(old + digit >> 8 for old in range(256)) for digit in range(256)]
_PLUS_SATURATED = [bytes(min(old + more, 255) for old in range(256)) for more in range(256)]


def _plane(length: int) -> memoryview:
    """``length`` zero bytes that take memory only where they are written."""
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return memoryview(mmap.mmap(-1, length, flags=flags))
        return memoryview(mmap.mmap(-1, length))
    except OSError as error:
        raise from_os_error(error, path="memory", operation="count references") from error


class Census:
    """References to host clusters 0 … ``clusters`` - 1.

    ``owned``, ``shared``: how many entries of the active tables refer to the cluster with and
    without the COPIED flag; 255 stands for 255 and more.
    """

    def __init__(self, clusters: int) -> None:
        if clusters > MAX_CLUSTERS:
            raise UnsupportedFeatureError(
                f"a file of {clusters} clusters cannot be checked (at most {MAX_CLUSTERS})"
            )
        self.clusters = clusters
        self.planes = [_plane(clusters)]

    @cached_property
    def owned(self) -> memoryview:
        return _plane(self.clusters)

    @cached_property
    def shared(self) -> memoryview:
        return _plane(self.clusters)

    def add(self, first: int, end: int, references: int = 1) -> None:
        """Count more references to each of the clusters [first, end), all inside the file."""
        self._add(0, first, end, references)

    def _add(self, level: int, first: int, end: int, digits: int) -> None:
        if level == len(self.planes):
            self.planes.append(_plane(self.clusters))
        plane, digit = self.planes[level], digits & 255
        old = bytes(plane[first:end])
        plane[first:end] = old.translate(_PLUS[digit])
        position = first
        for carry, group in _runs(old.translate(_CARRY[digit])):
            if (digits >> 8) + carry:
                self._add(level + 1, position, position + group, (digits >> 8) + carry)
            position += group

    def mark(self, first: int, end: int, entries: int, copied: bool) -> None:
        """As many active entries refer to each cluster of [first, end), with that COPIED flag."""
        plane = self.owned if copied else self.shared
        marked = bytes(plane[first:end]).translate(_PLUS_SATURATED[min(entries, 255)])
        plane[first:end] = marked

    def count(self, cluster: int) -> int:
        """References to one cluster."""
        return sum(plane[cluster] << 8 * level for level, plane in enumerate(self.planes))

    def digits(self, first: int, end: int) -> list[bytes]:
        """The counts of [first, end), clusters past the end of the file included: a digit each.

        As many items as there are planes, least significant first.
        """
        length = end - first
        return [bytes(plane[first:end]).ljust(length, b"\0") for plane in self.planes]

    def counts(self, first: int, length: int) -> array[int]:
        """The counts of ``length`` clusters as numbers."""
        return join_digits(self.digits(first, first + length))

    def used(self) -> Iterator[int]:
        """The clusters with references, in order."""
        for start in range(0, self.clusters, ZERO_CHUNK):
            parts = [bytes(plane[start : start + ZERO_CHUNK]) for plane in self.planes]
            cells: set[int] = set()
            for part in parts:
                if not ZEROES.startswith(part):
                    cells.update(match.start() for match in _NONZERO.finditer(part))
            for cell in sorted(cells):
                yield start + cell

    def end(self) -> int:
        """The first cluster behind all that are referred to."""
        return max(map(_end_of_use, self.planes))


def _runs(cells: bytes) -> Iterator[tuple[int, int]]:
    """(value, length) of the runs of equal bytes."""
    if cells.count(cells[:1]) == len(cells):
        yield cells[0], len(cells)
    else:
        for value, group in groupby(cells):
            yield value, sum(1 for _ in group)


def _end_of_use(plane: memoryview) -> int:
    for start in range((len(plane) - 1) // ZERO_CHUNK * ZERO_CHUNK, -1, -ZERO_CHUNK):
        used = bytes(plane[start : start + ZERO_CHUNK]).rstrip(b"\0")
        if used:
            return start + len(used)
    return 0


def join_digits(planes: list[bytes]) -> array[int]:
    """Numbers from their digits in base 256, least significant plane first."""
    cells = bytearray(8 * len(planes[0]))
    for level, plane in enumerate(planes):
        cells[7 - level :: 8] = plane
    return words_from_bytes(cells)


def split_digits(block: bytes, bits: int) -> list[bytes]:
    """The counts in a refcount block of ``bits`` a count: digits, least significant first."""
    if bits < 8:
        return [unpack_counts(block, bits).tobytes()]
    width = bits // 8
    return [block[width - 1 - level :: width] for level in range(width)]
