"""Rewriting the header so that a cut of power leaves the former one or the new one.

A disk writes one sector whole or not at all, and the header may have several: the fixed fields
and extensions from byte 0 on, the backing file name behind them.  What changes one sector only is
one write.  Anything else is done in steps, with a barrier behind each::

    1 the backing file name, if it changes ... where nothing is yet
    2 sector 0, without the feature names .... the extensions end here: the new header holds
    3 the other sectors ...................... which nothing refers to just now
    4 sector 0 with the feature names

The feature names, which only explain what a program does not know, are the one extension that
fills sectors.  Where the others do not fit into sector 0 without them either (a data file's name
of some 350 bytes), or clusters of 1 or 2 KiB have no room for the old backing file name and the
new one, the header is one write, which a cut can tear.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vdisk.errors import VdiskError
from vdisk.formats._qcow2 import layout
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.formats._qcow2.core import Core
    from vdisk.formats._qcow2.header import Header

Step = tuple[int, bytes]
"""What is written: (offset, content)."""

SECTOR = layout.SECTOR


class HeaderFile:
    """The header of an open image as it stands in the file; all of it under the core's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stored = b""
        """The first cluster as it is in the file; empty until it is needed."""
        self._undo: list[Step] = []
        """What was where a step of the change under way wrote."""

    def forget(self) -> None:
        """The file was changed underneath."""
        self._stored = b""

    @contextmanager
    def changing(self) -> Iterator[Header]:
        """Change the header's fields inside: at the end they are on the disk, behind a barrier."""
        with self.restoring() as header:
            yield header
            self.save()

    @contextmanager
    def restoring(self) -> Iterator[Header]:
        """Change and save the header inside; left by an error, all of it is as before.

        A write that failed may have arrived all the same, so what was there before is written
        over it, step by step from the last, before anything that only the new header names is
        given back; where even that fails, so does the handle.
        """
        core = self._core
        with core.lock:
            core.check_usable()
            before, done = dict(vars(core.header)), len(self._undo)
            try:
                yield core.header
            except BaseException:
                vars(core.header).update(before)
                self._go_back(done)
                raise
            if not done:
                self._undo.clear()

    def _go_back(self, done: int) -> None:
        """Undo all but the first ``done`` steps, if the device still can be written."""
        if self._core.failure is not None:
            return
        try:
            while len(self._undo) > done:
                self._write(self._undo.pop())
        except VdiskError as error:
            self._core.fail(error)

    def save(self) -> None:
        """Write the header as its fields are now; it is then on the disk, behind a barrier.

        Raises :class:`InvalidRequestError` if it does not fit into the first cluster.
        """
        core = self._core
        if not self._stored:
            size = min(core.cluster_size, core.file.size)
            self._stored = core.file.read(0, size).ljust(core.cluster_size, b"\0")
        steps = self._steps()
        for offset, data in steps:
            self._undo.append((offset, self._stored[offset : offset + len(data)]))
            self._write((offset, data))
        if not steps:
            core.barrier()

    def _write(self, step: Step) -> None:
        offset, data = step
        self._core.write(offset, data)
        self._core.barrier()
        self._stored = self._stored[:offset] + data + self._stored[offset + len(data) :]

    # -- planning --------------------------------------------------------------------------------

    def _steps(self) -> list[Step]:
        """What is to be written, each step behind the barrier of the one before."""
        header, old = self._core.header, self._stored
        new = header.to_bytes()
        changed = _changed(old, new)
        if len(changed) < 2:
            return [(start, new[start : start + SECTOR]) for start in changed]
        brief = header.to_bytes(names=False)
        if _extensions_end(brief) > SECTOR or not self._place_name(new):
            return [(0, new)]
        new, brief = header.to_bytes(), header.to_bytes(names=False)
        steps: list[Step] = []
        start, length = _name_of(new)
        if old[start : start + length] != new[start : start + length]:
            steps.append((start, new[start : start + length]))
        steps.append((0, brief[:SECTOR]))
        if rest := [start for start in _changed(old, new) if start]:
            first, end = rest[0], rest[-1] + SECTOR
            steps.append((first, new[first:end]))
        if brief[:SECTOR] != new[:SECTOR]:
            steps.append((0, new[:SECTOR]))
        return steps

    def _place_name(self, new: bytes) -> bool:
        """See that the backing file name is put where the old header has nothing.

        Without changing its text it may stay.  False: there is no such place.
        """
        old, header = self._stored, self._core.header
        start, length = _name_of(new)
        header.name_offset = start
        if not length or ((start, length) == _name_of(old) and _text(old) == _text(new)):
            return True
        taken = [(0, _extensions_end(old)), _name_of(old)]
        behind = max(first + size for first, size in [*taken, (0, _extensions_end(new))])
        for place in (start, round_up(behind, 8)):
            free = all(place + length <= first or first + size <= place for first, size in taken)
            if free and place + length <= len(old):
                header.name_offset = place
                return True
        return False


def _changed(old: bytes, new: bytes) -> list[int]:
    """Where the sectors begin in which two versions of the first cluster differ."""
    return [
        start
        for start in range(0, len(new), SECTOR)
        if old[start : start + SECTOR] != new[start : start + SECTOR]
    ]


def _name_of(cluster: bytes) -> tuple[int, int]:
    """Where the backing file name stands: (offset, length)."""
    offset, length = struct.unpack_from(">QI", cluster, 8)
    return (offset, length) if offset else (0, 0)


def _text(cluster: bytes) -> bytes:
    start, length = _name_of(cluster)
    return cluster[start : start + length]


def _extensions_end(cluster: bytes) -> int:
    """Where the header extensions of a header that was parsed before end, the mark included."""
    version, length = cluster[7], int.from_bytes(cluster[100:104], "big")
    position = length if version > 2 else layout.V2_HEADER_LENGTH
    while position + 8 <= len(cluster):
        kind, size = struct.unpack_from(">II", cluster, position)
        position += 8
        if kind == layout.EXT_END:
            break
        position += round_up(size, 8)
    return position
