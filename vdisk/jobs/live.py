"""Jobs on a disk that is written to meanwhile: stream, commit, mirror and backup.

Each sees the changes that are made while it works, through an
:class:`~vdisk.filters.attended.Attended` in front of the image whose ``around`` is the job's::

    guest --> Attended --> image            the job, in a thread of its own
                 |                             |
                 '--- around(offset, length) --'

    Stream     a change waits while the job brings something up from the backing files
    Follow     a change is noted; the job copies that part once more (mirror, commit)
    Backup     what stands there is copied before it is changed

What they do is bounded: pieces of :data:`PIECE` bytes, between which :meth:`Pace.went` may wait
(for a rate, or because it was told to) or end the job by :class:`CancelledError`.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vdisk.block import Kind
from vdisk.errors import CancelledError, VdiskError
from vdisk.jobs.copying import SPARSE_SIZE
from vdisk.jobs.dirty import DirtyParts
from vdisk.jobs.encoding import Sparse
from vdisk.jobs.plan import Action, plan
from vdisk.jobs.rebase import what_to_keep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.block import BlockDevice, Extent
    from vdisk.formats.qcow2 import Qcow2Image

    Choose = Callable[[Extent], Action]

PIECE: Final = 1 << 20
"""Bytes moved at once: half a millisecond, for which a guest's write may have to wait."""

WINDOW: Final = 64 << 20
"""Bytes whose map is looked at together; it is old by the time that they are copied."""


class Pace:
    """How far a job is, and how fast it may go; told and asked from any thread.

    ``length``: bytes to deal with; a job that has to do things twice lets it grow.  ``offset``:
    of these, what is done.  ``speed``: bytes a second that may be moved; 0: any number.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.offset = 0
        self._speed = 0
        self._due = 0.0
        self._paused = self._cancelled = self._hurried = False
        self._changed = threading.Condition()

    @property
    def speed(self) -> int:
        return self._speed

    @speed.setter
    def speed(self, value: int) -> None:
        with self._changed:
            self._speed, self._due = value, 0.0
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        with self._changed:
            self._paused = value
            self._changed.notify_all()

    def cancel(self) -> None:
        """Let the next :meth:`went` end the job."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def hurry(self) -> None:
        """Let it wait no more, for anything: its end is near, and somebody waits for that."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def went(self, count: int, moved: int = 0) -> None:
        """``count`` bytes are dealt with, ``moved`` of them cost something; wait as is due."""
        with self._changed:
            self.offset += count
            now = time.monotonic()
            if self._speed:
                self._due = max(self._due, now) + moved / self._speed
            while not (self._cancelled or self._hurried) and (self._paused or self._due > now):
                self._changed.wait(None if self._paused else self._due - now)
                now = time.monotonic()
            if self._cancelled:
                raise CancelledError("the job was cancelled")


class Stream:
    """Brings into ``image`` what it shows of its backing files, down to ``base`` (None: all).

    Afterwards the image reads the same with ``base`` as its backing file (None: with none).
    """

    def __init__(self, image: Qcow2Image, base: BlockDevice | None, pace: Pace) -> None:
        self._image, self._base, self._pace = image, base, pace
        self._lock = threading.Lock()

    @contextmanager
    def around(self, _offset: int, _length: int) -> Iterator[None]:
        """A change of the image."""
        with self._lock:
            yield

    def run(self) -> None:
        image, unit = self._image, self._image.subcluster_size
        with image.backing_about_to_change():
            for start in range(0, image.size, WINDOW):
                end = min(start + WINDOW, image.size)
                for step in plan(list(what_to_keep(image, self._base, start, end)), unit):
                    if step.action is Action.SKIP:
                        self._pace.went(step.length)
                    else:
                        self._bring(step.start, step.end)

    def _bring(self, start: int, end: int) -> None:
        for at in range(start, end, PIECE):
            length = min(PIECE, end - at)
            with self._lock:
                for extent in list(self._image.map(at, length)):
                    if extent.depth == 0 and extent.kind is not Kind.HOLE:
                        continue  # written meanwhile
                    if extent.reads_zero:
                        self._image.write_zeroes(extent.start, extent.length)
                    else:
                        data = self._image.read(extent.start, extent.length)
                        self._image.write(extent.start, data)
            self._pace.went(length, length)


class Follow:
    """Makes ``target`` hold what ``source`` does, and go on doing so.

    ``first`` and ``again``: what to do about an extent when it is met first, and after a change.
    """

    def __init__(
        self, source: BlockDevice, target: BlockDevice, pace: Pace, first: Choose, again: Choose
    ) -> None:
        self._source, self._target, self._pace = source, target, pace
        self._first, self._again = first, again
        self.dirty = DirtyParts(source.size)

    @contextmanager
    def around(self, offset: int, length: int) -> Iterator[None]:
        """A change of the source: whatever was copied while it happened is copied again."""
        try:
            yield
        finally:
            self.dirty.mark(offset, length)

    def run(self) -> None:
        """Copy everything once, and what was changed meanwhile."""
        size = self._source.size
        for start in range(0, size, WINDOW):
            self._copy(start, min(WINDOW, size - start), self._first)
        self.catch_up()

    def catch_up(self) -> None:
        """Copy what was changed.  While nothing changes it, the target is then the same."""
        while (taken := self.dirty.take(0, self._source.size, PIECE)) is not None:
            self._pace.length += taken[1]
            try:
                self._copy(*taken, self._again)
            except BaseException:
                self.dirty.mark(*taken)
                raise

    def _copy(self, start: int, length: int, choose: Choose) -> None:
        _copy(self._source, self._target, start, length, choose, self._pace.went)


def mirror(
    source: BlockDevice, target: BlockDevice, pace: Pace, *, top_only: bool, target_is_zero: bool
) -> Follow:
    """Copy all of ``source``; ``top_only``: the target's backing file shows what its does."""
    again = _everything(False)
    first = _top if top_only else _everything(target_is_zero)
    return Follow(source, target, pace, first, again)


def commit(source: BlockDevice, base: BlockDevice, depth: int, pace: Pace) -> Follow:
    """Write what stands above ``base`` into it, which is ``depth`` backing files down."""

    def choose(extent: Extent) -> Action:
        if extent.depth >= depth:
            return Action.SKIP
        return Action.ZERO if extent.reads_zero else Action.COPY

    return Follow(source, base, pace, choose, choose)


class Backup:
    """Makes ``target`` what ``source`` is when the job begins, however it changes then."""

    def __init__(
        self,
        source: BlockDevice,
        target: BlockDevice,
        pace: Pace,
        *,
        top_only: bool,
        target_is_zero: bool,
    ) -> None:
        self._source, self._target, self._pace = source, target, pace
        self._choose = _top if top_only else _everything(target_is_zero)
        self._todo = DirtyParts(source.size, everything=True)
        self._lock = threading.Lock()
        self._error: VdiskError | None = None

    @contextmanager
    def around(self, offset: int, length: int) -> Iterator[None]:
        """A change of the source: what is there comes first.

        If that cannot be kept it is the job that fails, not the change.
        """
        if length and self._error is None:
            try:
                while self._save(offset, offset + length):
                    pass
            except VdiskError as error:
                self._error = error
        yield

    def run(self) -> None:
        while moved := self._save(0, self._source.size):
            self._pace.went(0, moved)
        if self._error is not None:
            raise self._error

    def _save(self, start: int, end: int) -> int:
        """Copy the next piece inside a range that was not copied yet; 0: there is none."""
        with self._lock:
            taken = None if self._error else self._todo.take(start, end, PIECE)
            if taken is None:
                return 0
            moved = 0

            def went(count: int, cost: int = 0) -> None:
                nonlocal moved
                self._pace.offset += count
                moved += cost

            _copy(self._source, self._target, *taken, self._choose, went)
            return max(moved, 1)


def _everything(target_is_zero: bool) -> Choose:
    zero = Action.SKIP if target_is_zero else Action.ZERO
    return lambda extent: zero if extent.reads_zero else Action.COPY


def _top(extent: Extent) -> Action:
    """What stands in backing files shows through at the target too, and so do holes."""
    if extent.depth > 0 or extent.kind is Kind.HOLE:
        return Action.SKIP
    return Action.ZERO if extent.reads_zero else Action.COPY


def _copy(
    source: BlockDevice,
    target: BlockDevice,
    start: int,
    length: int,
    choose: Choose,
    went: Callable[[int, int], None],
) -> None:
    """Copy a range by its map of this moment, and say how far it is after each piece."""
    for extent in list(source.map(start, length)):
        action = choose(extent)
        if action is Action.ZERO:
            target.write_zeroes(extent.start, extent.length)
        if action is not Action.COPY:
            went(extent.length, 0)
            continue
        for at in range(extent.start, extent.end, PIECE):
            size = min(PIECE, extent.end - at)
            _copy_piece(source, target, at, size)
            went(size, size)


def _copy_piece(source: BlockDevice, target: BlockDevice, offset: int, length: int) -> None:
    """Through the source, not through its map: what the map said may be old."""
    buffer = bytearray(length)
    source.read_into(offset, buffer)
    for write in _ENCODE(buffer, 0, offset, length):
        if write.data is None:
            target.write_zeroes(write.offset, write.length)
        else:
            target.write(write.offset, write.data)


_ENCODE = Sparse(SPARSE_SIZE, target_is_zero=False)
