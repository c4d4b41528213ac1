"""Scatter lists: the pieces of guest memory that one transfer goes to or comes from.

A guest gives a buffer as pages wherever they are, and where two follow each other often as two
pieces all the same.  Each piece costs something (a look at what kind of memory it is, an entry of
``preadv``'s list, a look for code that was translated from it), so neighbours are joined::

    pieces  5000+1000  6000+1000  3000+1000  9000+800 9800+10
    ranges  5000+2000             3000+1000  9000+810
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.vm.memory import Range


def joined(pieces: Iterable[Range]) -> list[Range]:
    """The ranges that the pieces are, in their order; none is empty."""
    ranges: list[Range] = []
    end = -1
    for piece in pieces:
        gpa, length = piece
        if gpa == end:
            start, before = ranges[-1]
            ranges[-1] = start, before + length
            end += length
        elif length:
            ranges.append(piece)
            end = gpa + length
    return ranges
