"""A write log: everything a driver sends down, in order, so that every cut can be replayed.

Between two flushes a disk may keep, of each sector, any of the versions it was given, or the
one from before: power fails, caches reorder, a long write is torn.  From a log,
:class:`Cuts` builds the disks that a cut can leave behind::

    log      w1 w2 FLUSH w3 w4 w5 FLUSH w6 …
                     '--- a cut here keeps w1, w2 and, sector by sector, any of w3 to w5

Sectors are 512 bytes: what disks promise to write whole.  Several devices may share one log, so
that a cut comes at the same moment for all of them; a flush is of its own device only.
"""

from __future__ import annotations

import enum
import itertools
import math
import threading
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import BlockDevice
from vdisk.stores.memory import MemoryStore
from vdisk.units import round_down

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from vdisk.block import Extent

SECTOR = 512


class Operation(enum.Enum):
    """What was sent down."""

    WRITE = "write"
    WRITE_ZEROES = "write zeroes"
    DISCARD = "discard"
    TRUNCATE = "truncate"
    FLUSH = "flush"
    MARK = "mark"


class Entry(NamedTuple):
    """One request. ``length``: bytes (the new size of a truncate); ``data``: of a write.

    ``label``: what :meth:`WriteLog.mark` was told.  ``device``: which of those that share a log.
    """

    operation: Operation
    offset: int = 0
    length: int = 0
    data: bytes = b""
    label: object = None
    device: str = ""


class WriteLog(BlockDevice):
    """Passes everything on to ``inner`` and remembers what changed it in :attr:`entries`.

    The log is kept in memory, as large as what was written: for tests and for looking into a
    driver, not for serving.  ``entries``: a log to go on with, shared by several devices;
    ``device``: what this one is called in it.
    """

    def __init__(
        self, inner: BlockDevice, *, entries: list[Entry] | None = None, device: str = ""
    ) -> None:
        self.inner = inner
        self.device = device
        self.name = inner.name
        self.readonly = inner.readonly
        self.growable = inner.growable
        self.zeroes_fast = inner.zeroes_fast
        self.entries = [] if entries is None else entries
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self.inner.size

    def mark(self, label: object) -> None:
        """Note a moment of the caller's own, such as "the guest's flush returned"."""
        self._note(Entry(Operation.MARK, label=label))

    def _note(self, entry: Entry) -> None:
        with self._lock:
            self.entries.append(entry._replace(device=self.device))

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.inner.read_into(offset, view)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        return self.inner.map(start, length)

    def _write(self, offset: int, view: memoryview) -> None:
        self._note(Entry(Operation.WRITE, offset, len(view), bytes(view)))
        self.inner.write(offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self._write(offset, memoryview(b"".join(views)))

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._note(Entry(Operation.WRITE_ZEROES, offset, length))
        self.inner.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        self._note(Entry(Operation.DISCARD, offset, length))
        self.inner.discard(offset, length)

    def _truncate(self, size: int) -> None:
        self._note(Entry(Operation.TRUNCATE, length=size))
        self.inner.truncate(size)

    def _flush(self) -> None:
        self.inner.flush()
        self._note(Entry(Operation.FLUSH))

    def _close(self) -> None:
        self.inner.close()


class Cuts:
    """The disks that a cut of power can leave of ``initial`` and a log.

    A discard may or may not have zeroed its range, like any other write.  ``device``: whose
    entries of a shared log.
    """

    def __init__(self, initial: bytes, entries: Sequence[Entry], device: str = "") -> None:
        self._stable = bytearray(initial)
        self._entries = entries
        self._device = device
        self._position = 0
        self._pending: list[Entry] = []

    @property
    def pending(self) -> int:
        """How many changes are in flight at the present position."""
        return len(self._pending)

    def advance(self, position: int) -> None:
        """Let the first ``position`` entries of the log happen (never backwards)."""
        for entry in self._entries[self._position : position]:
            if entry.operation is Operation.MARK or entry.device != self._device:
                continue
            if entry.operation is Operation.FLUSH:
                for done in self._pending:
                    _apply(self._stable, done)
                self._pending.clear()
            else:
                self._pending.append(entry)
        self._position = max(self._position, position)

    def whole(self, kept: Sequence[bool] | None = None) -> MemoryStore:
        """A disk with the changes in flight that ``kept`` says, each whole (None: all)."""
        disk = bytearray(self._stable)
        for number, entry in enumerate(self._pending):
            if kept is None or kept[number]:
                _apply(disk, entry)
        return MemoryStore(disk, name="cut")

    def torn(self, rng: random.Random) -> MemoryStore:
        """A disk that kept any version of each sector, by chance."""
        pieces = [piece for entry in self._pending for piece in _sectors(entry)]
        rng.shuffle(pieces)
        share = rng.choice([0.1, 0.5, 0.9])
        return self._with(piece for piece in pieces if rng.random() < share)

    def all(self, most: int) -> list[MemoryStore] | None:
        """Every disk that a cut here can leave; None where there are more than ``most``.

        Of each sector every version is tried with every version of the others.
        """
        if any(entry.operation in _ABOUT_THE_SIZE for entry in self._pending):
            return None if self._pending[1:] or most < 2 else [self.whole([False]), self.whole()]
        sectors: dict[int, list[Entry]] = {}
        for entry in self._pending:
            for piece in _sectors(entry):
                sectors.setdefault(piece.offset // SECTOR, []).append(piece)
        if len(sectors) > most.bit_length():  # each has two versions or more
            return None
        choices = [_orders(pieces, most) for pieces in sectors.values()]
        if math.prod(map(len, choices)) > most:
            return None
        return [
            self._with(itertools.chain.from_iterable(chosen))
            for chosen in itertools.product(*choices)
        ]

    def some(self, rng: random.Random, most: int) -> list[MemoryStore]:
        """Disks by chance: all kept, nothing kept, all but one, only one, and torn ones."""
        count = self.pending
        if not count:
            return [self.whole()]
        disks = [self.whole(), self.whole([False] * count)]
        one = rng.randrange(count)
        disks.append(self.whole([number == one for number in range(count)]))
        disks.append(self.whole([number != one for number in range(count)]))
        disks += [self.torn(rng) for _ in range(most - len(disks))]
        return disks[:most]

    def _with(self, pieces: Iterable[Entry]) -> MemoryStore:
        disk = bytearray(self._stable)
        for piece in pieces:
            _apply(disk, piece)
        return MemoryStore(disk, name="cut")


_ABOUT_THE_SIZE = (Operation.TRUNCATE, Operation.DISCARD)
"""What has another outcome before a write that makes the file longer than after it."""


def _orders(pieces: list[Entry], most: int) -> list[tuple[Entry, ...]]:
    """The changes of one sector: any of them, in any order, once each by what comes out.

    As soon as there are more than ``most`` the rest is left out.
    """
    found: dict[bytes, tuple[Entry, ...]] = {}
    for length in range(len(pieces) + 1):
        for chosen in itertools.permutations(pieces, length):
            sector, touched = bytearray(SECTOR), bytearray(SECTOR)
            for piece in chosen:
                within = slice(piece.offset % SECTOR, piece.offset % SECTOR + piece.length)
                sector[within] = piece.data or bytes(piece.length)
                touched[within] = b"\1" * piece.length
            found.setdefault(bytes(sector + touched), chosen)
            if len(found) > most:
                return list(found.values())
    return list(found.values())


def _apply(disk: bytearray, entry: Entry) -> None:
    if entry.operation is Operation.TRUNCATE:
        del disk[entry.length :]
        disk.extend(bytes(entry.length - len(disk)))
        return
    end = entry.offset + entry.length
    if entry.operation is Operation.DISCARD:
        end = min(end, len(disk))
    if end > len(disk):
        disk.extend(bytes(end - len(disk)))
    data = entry.data or bytes(max(end - entry.offset, 0))
    disk[entry.offset : end] = data


def _sectors(entry: Entry) -> Iterator[Entry]:
    """The change cut at sector boundaries."""
    if entry.operation is Operation.TRUNCATE:
        yield entry
        return
    position, end = entry.offset, entry.offset + entry.length
    while position < end:
        stop = min(round_down(position, SECTOR) + SECTOR, end)
        data = entry.data[position - entry.offset : stop - entry.offset]
        yield entry._replace(offset=position, length=stop - position, data=data)
        position = stop
