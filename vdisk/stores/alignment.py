"""Requests that a minimum block size does not allow, made of such that it does.

::

    request            |..............|
    blocks       |-----|-----|-----|-----|
                 head   middle       tail       head and tail: read, change, write

Between reading a block and writing it back nobody else may write to it, or his bytes are undone:
such writes have the device to themselves, while those of whole blocks go on side by side.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterator


class Part(NamedTuple):
    """``start`` to ``end`` of a request; the whole blocks that hold it begin at ``block``."""

    start: int
    end: int
    block: int
    block_end: int

    @property
    def whole(self) -> bool:
        return (self.start, self.end) == (self.block, self.block_end)


def parts(offset: int, length: int, unit: int) -> list[Part]:
    """A request cut into head, middle and tail, those that there are."""
    end = offset + length
    first, last = round_up(offset, unit), round_down(end, unit)
    if first > last:  # inside one block
        return [Part(offset, end, last, first)]
    found = [
        Part(offset, first, first - unit, first),
        Part(first, last, first, last),
        Part(last, end, last, last + unit),
    ]
    return [part for part in found if part.start < part.end]


class SharedLock:
    """Held by any number who share it, or by one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing = 0
        self._alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._condition:
                self._sharing -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._alone = True  # from here on nobody begins to share
            self._condition.wait_for(lambda: not self._sharing)
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()
