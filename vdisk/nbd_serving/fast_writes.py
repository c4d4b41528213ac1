"""The hot path of writes: they are made at once, where they were received.

Runs of neighbours are one write.  On local files through the page cache that takes less time than
it takes to wake another thread; where it turns out to wait for the disk, it is left to the workers
for a while (:meth:`Export.note_time <vdisk.nbd_serving.export.Export.note_time>`).
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.errors import VdiskError
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.bulk import BulkParser, PlainWrite
    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.sending import Outgoing

INLINE_WRITE: Final = 1 << 20
"""Bytes of the longest write made in the event loop's thread: a quarter of a millisecond for the
page cache to take, where another thread would have to fetch it from this processor's cache."""

KEPT_WRITE: Final = 128 << 10
"""Bytes of the longest write whose beginning is kept until the rest is received, with what follows
it.  Of a longer one the rest is waited for: that costs less than copying what is there."""

WAITED_FOR: Final = range(KEPT_WRITE + 1, INLINE_WRITE + 1)

WRITES_AT_ONCE: Final = 64
"""Writes made before the first reply leaves: about a millisecond's work."""

LONGEST_RUN: Final = 1 << 20
"""Bytes of neighbouring writes that are made one."""

APART_FROM: Final = 32 << 10
"""Bytes of an image's clusters from which on to look up each one that a write touches, and write
it, costs less than to plan for those that lie together."""


class FastWrites:
    """Of one connection.  ``give(bytes)``: to the machine."""

    def __init__(
        self,
        parser: BulkParser,
        export: Export,
        outgoing: Outgoing,
        give: Callable[[memoryview], None],
    ) -> None:
        self._parser = parser
        self._export = export
        self._device = export.device
        self._locate = export.device.locate_to_write
        self._unit = export.device.locate_unit
        self._outgoing = outgoing
        self._give = give
        self._here = export.prompt and not export.write_through and not export.read_only

    def take(self, view: memoryview) -> int:
        """Make the plain writes at the front of ``view``; the bytes they took."""
        here = self._here and monotonic() >= self._export.slow_until
        if here:
            one = self._parser.write(view)
            if one is not None and self._write_one(*one):
                return len(view)
        writes, used = self._parser.writes(view, WRITES_AT_ONCE)
        if not writes:
            return 0
        if here:
            with self._device.hold_to_write():
                self._answer(writes, view)
        else:
            self._give_all(writes, view)
        return used

    def incomplete(self, view: memoryview) -> bool:
        """Whether it is better to wait for more than to let the machine begin with ``view``."""
        return self._parser.incomplete(view, KEPT_WRITE if self._here else 0)

    def missing(self, view: memoryview) -> int:
        """Bytes that are missing of a long write at the front of ``view`` that is made here."""
        here = self._here and monotonic() >= self._export.slow_until
        return self._parser.missing(view, WAITED_FOR) if here else 0

    def _write_one(self, cookie: int, offset: int, data: memoryview) -> bool:
        """Make the only write that was received, if it overwrites one piece of a file.

        This is where a client without a queue spends its time, until its reply has left.
        """
        began = monotonic()
        with self._device.hold_to_write():
            if not self._overwrite(offset, data):
                return False  # tried again in the usual way, which knows whom to tell
            ended = monotonic()
            outgoing = self._outgoing
            outgoing.make_room(outgoing.done)
            outgoing.filled = outgoing.pack_done(outgoing.buffer, outgoing.filled, cookie, offset)
            outgoing.send()
        self._export.statistics.writes.add(1, len(data), ended - began)
        self._export.note_time(began, ended, 1)
        return True

    def _overwrite(self, offset: int, data: memoryview) -> bool:
        length = len(data)
        if length > INLINE_WRITE:
            return False
        try:
            place = self._place(offset, length)
            return place is not None and os.pwrite(place[0], data, place[1]) == length
        except (VdiskError, OSError):
            return False

    def _place(self, offset: int, length: int) -> tuple[int, int] | None:
        """(descriptor, host offset) of a range that can be overwritten in one piece of a file."""
        found = self._locate(offset, length)
        if found is None or type(found[0]) is not FileStore:
            return None
        return found[0].fileno(), found[1]

    def _overwrite_pieces(self, run: list[PlainWrite]) -> bool:
        """Make a run of writes unit by unit, if each of those overwrites one piece of a file.

        That is so where an image's clusters lie apart in its file.
        """
        if self._unit < APART_FROM:
            return False
        pieces: list[tuple[int, int, list[memoryview]]] = []
        behind = None
        for _cookie, start, data, _fua in run:
            done = 0
            while done < len(data):
                offset = start + done
                length = min(len(data) - done, self._unit - offset % self._unit)
                if (place := self._place(offset, length)) is None:
                    return False
                if place != behind:
                    pieces.append((*place, []))
                pieces[-1][2].append(data[done : done + length])
                behind = place[0], place[1] + length
                done += length
        return all(
            os.pwritev(file, parts, host) == sum(map(len, parts)) for file, host, parts in pieces
        )

    def _answer(self, writes: list[PlainWrite], view: memoryview) -> None:
        began = monotonic()
        position = size = 0
        made: list[PlainWrite] = []
        for run in _runs(writes) if len(writes) > 1 else [writes]:
            length = sum([len(write[2]) for write in run]) if len(run) > 1 else len(run[0][2])
            end = position + len(run) * self._parser.header_size + length
            if self._write(run, length):
                made += run
                size += length
            else:
                self._give_all(run, view[position:end])
            position = end
        if made:
            ended = monotonic()
            self._export.statistics.writes.add(len(made), size, (ended - began) / len(made))
            self._export.note_time(began, ended, len(made))
            self._reply(made)

    def _reply(self, made: list[PlainWrite]) -> None:
        """Put the replies in the buffer."""
        outgoing = self._outgoing
        outgoing.make_room(len(made) * outgoing.done)
        out, filled, pack = outgoing.buffer, outgoing.filled, outgoing.pack_done
        for cookie, offset, _data, _fua in made:
            filled = pack(out, filled, cookie, offset)
        outgoing.filled = filled

    def _give_all(self, writes: list[PlainWrite], view: memoryview) -> None:
        """To the machine, one by one: each of its payloads is a buffer of its own."""
        position = 0
        for write in writes:
            end = position + self._parser.header_size + len(write[2])
            self._give(view[position:end])
            position = end

    def _write(self, run: list[PlainWrite], length: int) -> bool:
        """Make a run of writes; False where it is not for here."""
        _cookie, offset, first, fua = run[0]
        if fua or len(first) > INLINE_WRITE:
            return False
        try:
            place = self._place(offset, length)
            if place is not None:
                if len(run) == 1:
                    return os.pwrite(place[0], first, place[1]) == length
                return os.pwritev(place[0], [write[2] for write in run], place[1]) == length
            if not self._overwrite_pieces(run):
                self._device.writev(offset, [write[2] for write in run])
        except (VdiskError, OSError):
            return False  # the machine gets these requests too, and its replies say why
        return True


def _runs(writes: list[PlainWrite]) -> list[list[PlainWrite]]:
    """The writes, in their order, those together that lie one behind the other and can be one."""
    runs: list[list[PlainWrite]] = []
    end = room = -1
    for write in writes:
        _cookie, offset, data, fua = write
        length = len(data)
        joins = not fua and length <= INLINE_WRITE
        if joins and offset == end and length <= room:
            runs[-1].append(write)
            room -= length
        else:
            runs.append([write])
            room = LONGEST_RUN - length if joins else -1
        end = offset + length
    return runs
