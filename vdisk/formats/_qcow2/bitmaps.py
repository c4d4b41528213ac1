"""Persistent dirty bitmaps: which chunks of the disk were written since some point in time.

::

    header extension --> bitmap directory --> bitmap table, for each bitmap
                         (bitmap_directory)   +----------+
                                              | offset   | --> a cluster of bits
                                              | 0        |     all clear
                                              | 1        |     all set
                                              +----------+

**Recording.**  The image calls :attr:`Bitmaps.record` with every range the guest changes, before
it changes it.  The first call marks the enabled ("auto") bitmaps in_use on the disk; from then on
one :class:`Marks` of their finest granularity takes all of them down, and what it holds is merged
into each when the bitmaps are saved: by :meth:`Bitmaps.save`, which the image calls when it is
closed, and by every change below.  A crash in between leaves them marked in_use: inconsistent,
good for nothing but being removed.

**Changing.**  New data, tables and directory are written to new clusters; one write of the header
switches to them; then the old clusters are freed.  The directory is written in place only to set
in_use, which a cut cannot tear.

**Hooks** for the rest of the format::

    record      None, or to be called with (offset, length) inside ``gate.shared``
    resizing    around whatever changes the disk's size, or its content behind the guest's back
    save        before the image's last ``settle``
    forget      for a repair: there are no bitmaps (any more)

An image whose bitmaps autoclear bit is unset was written by a program that knows no bitmaps: its
extension is taken for absent and not written again, as QEMU does.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import (
    AlreadyExistsError,
    CorruptImageError,
    InvalidRequestError,
    NotFoundError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedFeatureError,
)
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.bitmap_bits import Marks, bit_runs, combine, joined
from vdisk.formats._qcow2.bitmap_data import BitmapData, Change
from vdisk.formats._qcow2.overlap import check_guest_data
from vdisk.formats._qcow2.text import encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from vdisk.formats._qcow2.bitmap_directory import Entry
    from vdisk.formats._qcow2.core import Core

    Entries = dict[str, Entry]

_WINDOW = 256 << 10
"""Bytes of a bitmap looked at in one step of :meth:`Bitmaps.dirty_ranges`."""
_DEFAULT_GRANULARITY = (4096, 65536)
"""A cluster, but not less or more than this, unless the user says otherwise."""


class BitmapInfo(NamedTuple):
    """What a listing says of a bitmap; ``flags``: "in-use" (inconsistent), "auto" (enabled)."""

    name: str
    granularity: int
    flags: tuple[str, ...]


class Bitmaps:
    """The dirty bitmaps of one open image."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._data = BitmapData(core)
        self._lock = threading.RLock()
        """Guards the fields below; taken after the gate and the flush lock, before core.lock."""
        self._known: Entries | None = None
        """The directory as this handle sees it: in_use only where that was found on the disk."""
        self._marks: Marks | None = None
        header = core.header
        if header.bitmaps is None or not header.autoclear_features & layout.BITMAPS:
            header.bitmaps = None
            header.autoclear_features &= ~layout.BITMAPS
        self.record: Callable[[int, int], None] | None = None
        self._expect_writes()

    def _entries(self) -> Entries:
        with self._lock:
            if self._known is None:
                if self._core.header.bitmaps is None:
                    self._known = {}
                else:
                    from vdisk.formats._qcow2 import bitmap_directory

                    self._known = bitmap_directory.read(self._core)
            return self._known

    def infos(self) -> list[BitmapInfo]:
        """All bitmaps, in the directory's order; raises :class:`CorruptImageError`."""
        return [
            BitmapInfo(entry.name, entry.granularity, _flag_names(entry.flags))
            for entry in self._entries().values()
        ]

    # -- recording -------------------------------------------------------------------------------

    def _expect_writes(self) -> None:
        """Nothing is recorded yet; the next write is the first."""
        self._marks = None
        expected = not self._core.readonly and self._core.header.bitmaps is not None
        self.record = self._record_first if expected else None

    def _record_first(self, offset: int, length: int) -> None:
        """The first write since the bitmaps were saved: they are out of date from here on."""
        with self._lock:
            if self._marks is None:
                enabled = [e.name for e in self._entries().values() if _is_recorded(e)]
                self._set_in_use(enabled)
                self._start_recording(enabled)
            marks = self._marks
        if marks is not None:
            marks.add(offset, length)

    def _start_recording(self, enabled: list[str]) -> None:
        entries = self._entries()
        for name in enabled:
            if _obstacle(entries[name], self._core.header.size):
                # Its changes cannot be recorded, so it stays as inconsistent as it is on the disk.
                entries[name] = _with_flags(entries[name], layout.BITMAP_IN_USE)
        shifts = [entry.granularity_bits for entry in entries.values() if _is_recorded(entry)]
        if shifts:
            self._marks = Marks(self._core.header.size, min(shifts))
            self.record = self._marks.add
        else:
            self.record = None

    def _set_in_use(self, names: Collection[str]) -> None:
        """Mark bitmaps in_use on the disk, all other bytes of the directory left as they are."""
        core = self._core
        if not names or core.header.bitmaps is None:
            return
        from vdisk.formats._qcow2 import bitmap_directory

        chosen = frozenset(names)
        data = bitmap_directory.build(
            _with_flags(entry, layout.BITMAP_IN_USE) if entry.name in chosen else entry
            for entry in self._entries().values()
        )
        _count, size, offset = core.header.bitmaps
        check_guest_data(core, offset, size)
        core.write(offset, data)
        core.barrier()

    def save(self) -> None:
        """Store what was recorded; the bitmaps are consistent on the disk until the next write."""
        if self._marks is not None and not self._core.readonly:
            self._update(lambda _change, entries: entries)

    # -- reading ---------------------------------------------------------------------------------

    def dirty_ranges(
        self, name: str, start: int = 0, length: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """(start, length) of the runs of the disk whose bits are set, in order, none adjoining.

        Only what lies in [start, start + length) counts.  Each step shows the bitmap as it is at
        that moment, what was just recorded included.
        """
        size = self._core.header.size
        end = size if length is None else start + length
        if not 0 <= start <= end <= size:
            raise OutOfRangeError(
                f"[{start}, {end}) is not a range of a disk of {size} bytes",
                path=self._core.file.name,
            )
        self._usable(self._entries(), name)
        runs = joined(self._runs(name, start, end), start, end)
        return ((first, last - first) for first, last in runs)

    def _runs(self, name: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        position = start
        while position < end:
            with self._lock:
                entry = self._usable(self._entries(), name)
                shift = entry.granularity_bits
                first = position >> (shift + 3)
                last = min(first + _WINDOW, entry.bytes_for(min(end, self._core.header.size)))
                data = self._content(entry, first, last) if first < last else b""
            base = first * 8
            for low, high in bit_runs(data):
                yield (base + low) << shift, (base + high) << shift
            position = (first + _WINDOW) << (shift + 3)

    def _content(self, entry: Entry, first: int, end: int) -> bytes:
        """Bytes [first, end) of the bitmap, with what was recorded."""
        stored = self._data.content(entry, first, end)
        if self._marks is not None and _is_recorded(entry):
            return combine(stored, self._marks.coarse(first, end, entry.granularity_bits))
        return stored

    # -- changing --------------------------------------------------------------------------------

    def add(self, name: str, granularity: int | None, enabled: bool) -> None:
        """Add a bitmap with no bit set; ``granularity``: bytes a bit, None for the usual."""
        core = self._core
        if granularity is None:
            smallest, largest = _DEFAULT_GRANULARITY
            granularity = min(max(core.cluster_size, smallest), largest)
        if core.header.version < 3:
            raise UnsupportedFeatureError(
                "version 2 images have no bitmaps (amend compat=1.1)", path=core.file.name
            )
        from vdisk.formats._qcow2.bitmap_directory import Entry

        _check_name(name)
        flags = layout.BITMAP_AUTO if enabled else 0
        new = Entry(name, 0, 0, flags, _granularity_bits(granularity))
        self._check_size(new, core.header.size)

        def edit(change: Change, entries: Entries) -> Entries:
            if name in entries:
                raise AlreadyExistsError(f"bitmap {name!r} exists already", path=core.file.name)
            if len(entries) >= layout.MAX_BITMAPS:
                raise InvalidRequestError(
                    f"an image holds at most {layout.MAX_BITMAPS} bitmaps", path=core.file.name
                )
            return {**entries, name: self._data.empty(change, new)}

        self._update(edit)

    def remove(self, name: str) -> None:
        """Remove a bitmap, whatever state it is in."""

        def edit(change: Change, entries: Entries) -> Entries:
            self._data.release(change, self._existing(entries, name))
            return {other: entry for other, entry in entries.items() if other != name}

        self._update(edit)

    def clear(self, name: str) -> None:
        """Unset every bit."""

        def edit(change: Change, entry: Entry) -> Entry:
            self._data.release(change, entry)
            return self._data.empty(change, entry)

        self._replace(name, edit)

    def enable(self, name: str) -> None:
        """Record what is written from now on."""
        self._replace(name, lambda _change, entry: _with_flags(entry, layout.BITMAP_AUTO))

    def disable(self, name: str) -> None:
        """Record no more."""
        self._replace(
            name, lambda _change, entry: entry._replace(flags=entry.flags & ~layout.BITMAP_AUTO)
        )

    def merge(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Set the bits of every chunk that one of the (start, length) ranges touches."""
        size = self._core.header.size

        def edit(change: Change, entry: Entry) -> Entry:
            marks = Marks(size, entry.granularity_bits)
            for start, length in ranges:
                if start < 0 or length < 0 or start + length > size:
                    raise OutOfRangeError(
                        f"the range of {length} bytes at {start} is not inside the disk",
                        path=self._core.file.name,
                    )
                marks.add(start, length)
            return self._data.merged(change, entry, marks)

        self._replace(name, edit)

    def forget(self) -> None:
        """Drop all bitmaps, readable or not, without freeing what they occupy."""
        core = self._core
        with core.gate.alone, core.flush_lock, self._lock, core.lock:
            with core.header_file.changing() as header:
                header.bitmaps = None
                header.autoclear_features &= ~layout.BITMAPS
            self._known = {}
            self._expect_writes()

    @contextmanager
    def resizing(self, size: int, *, replaced: bool = False) -> Iterator[None]:
        """Around a change of the disk's size to ``size``; bits of new bytes are unset.

        ``replaced``: all of the disk's content may change too, and enabled bitmaps say so.
        The bitmaps are marked in_use meanwhile, and have the size that the disk has at the end.
        """
        if self._core.header.bitmaps is None:
            yield
            return
        with self._core.gate.alone:
            old = self._core.header.size
            self.save()
            names = self._prepare_resize(size)
            try:
                yield
            finally:
                if not self._core.readonly and self._core.failure is None:
                    self._finish_resize(names, old, replaced)

    def _prepare_resize(self, size: int) -> list[str]:
        """See that every bitmap can have the new size, and mark them in_use."""
        with self._lock:
            entries = self._entries()
            names = [e.name for e in entries.values() if not e.flags & layout.BITMAP_IN_USE]
            for name in names:
                self._check_size(self._usable(entries, name), size)
            self._set_in_use(names)
            for name in names:
                entries[name] = _with_flags(entries[name], layout.BITMAP_IN_USE)
        return names

    def _finish_resize(self, names: list[str], old_size: int, replaced: bool) -> None:
        def edit(change: Change, entries: Entries) -> Entries:
            entries = dict(entries)
            for name in names:
                flags = entries[name].flags & ~layout.BITMAP_IN_USE
                entry = self._data.resized(change, entries[name]._replace(flags=flags), old_size)
                if replaced and _is_recorded(entry):
                    entry = self._data.filled(change, entry)
                entries[name] = entry
            return entries

        self._update(edit)

    def _replace(self, name: str, edit: Callable[[Change, Entry], Entry]) -> None:
        """Put an edited bitmap in the place of a usable one."""
        self._update(
            lambda change, entries: {
                **entries,
                name: edit(change, self._usable(entries, name)),
            }
        )

    def _update(self, edit: Callable[[Change, Entries], Entries]) -> None:
        """Save what was recorded and what ``edit`` makes of it: all of it or nothing."""
        core = self._core
        if core.readonly:
            raise ReadOnlyError("opened read-only", path=core.file.name, operation="bitmap")
        with core.gate.alone, core.flush_lock, self._lock:
            before, marks = self._entries(), self._marks
            with Change(core) as change:
                entries = before
                if marks is not None:
                    entries = {
                        name: self._data.merged(change, entry, marks)
                        if _is_recorded(entry)
                        else entry
                        for name, entry in before.items()
                    }
                entries = edit(change, entries)
                if entries == before and marks is None:
                    return
                change.switch(entries)
            self._known = entries
            self._expect_writes()
            change.release_old()

    # -- looking up ------------------------------------------------------------------------------

    def _existing(self, entries: Entries, name: str) -> Entry:
        try:
            return entries[name]
        except KeyError:
            raise NotFoundError(f"no bitmap {name!r}", path=self._core.file.name) from None

    def _usable(self, entries: Entries, name: str) -> Entry:
        entry = self._existing(entries, name)
        if entry.flags & layout.BITMAP_IN_USE:
            raise CorruptImageError(
                f"bitmap {name!r} was not saved when the image was last written to: "
                "it is inconsistent and can only be removed",
                path=self._core.file.name,
            )
        obstacle = _obstacle(entry, self._core.header.size)
        if obstacle is not None:
            raise UnsupportedFeatureError(
                f"bitmap {name!r} cannot be used: {obstacle}", path=self._core.file.name
            )
        return entry

    def _check_size(self, entry: Entry, size: int) -> None:
        """Refuse a disk that a bitmap cannot describe."""
        if not size:
            raise InvalidRequestError(
                "a disk of 0 bytes has no bitmaps: remove them first", path=self._core.file.name
            )
        if entry.bits_for(size) > layout.MAX_BITMAP_BITS:
            raise InvalidRequestError(
                f"bitmap {entry.name!r} would have more than {layout.MAX_BITMAP_BITS} bits: "
                "use a larger granularity",
                path=self._core.file.name,
            )


def _flag_names(flags: int) -> tuple[str, ...]:
    names = ((layout.BITMAP_IN_USE, "in-use"), (layout.BITMAP_AUTO, "auto"))
    return tuple(name for bit, name in names if flags & bit)


def _with_flags(entry: Entry, flags: int) -> Entry:
    return entry._replace(flags=entry.flags | flags)


def _is_recorded(entry: Entry) -> bool:
    """Enabled, and not inconsistent already."""
    return entry.flags & (layout.BITMAP_AUTO | layout.BITMAP_IN_USE) == layout.BITMAP_AUTO


def _obstacle(entry: Entry, size: int) -> str | None:
    """What keeps this library from using a bitmap that it can list; None if nothing does."""
    if entry.type != layout.DIRTY_TRACKING_BITMAP:
        return f"its type {entry.type} is unknown"
    if entry.flags & ~layout.KNOWN_BITMAP_FLAGS:
        return f"its flags {entry.flags:#x} are unknown"
    if entry.extra_data and not entry.flags & layout.BITMAP_EXTRA_DATA_COMPATIBLE:
        return "it has extra data that must be understood"
    bits = entry.granularity_bits
    if not layout.MIN_GRANULARITY_BITS <= bits <= layout.MAX_GRANULARITY_BITS:
        return f"its granularity is 1 << {bits} (1 << 9 to 1 << 31 are supported)"
    if entry.bits_for(size) > layout.MAX_BITMAP_BITS:
        return f"it has more than {layout.MAX_BITMAP_BITS} bits"
    return None


def _check_name(name: str) -> None:
    size = len(encoded(name))
    if not 0 < size <= layout.MAX_BITMAP_NAME:
        raise InvalidRequestError(f"a bitmap name has 1 to {layout.MAX_BITMAP_NAME} bytes")


def _granularity_bits(granularity: int) -> int:
    bits = granularity.bit_length() - 1
    smallest, largest = layout.MIN_GRANULARITY_BITS, layout.MAX_GRANULARITY_BITS
    if not smallest <= bits <= largest or granularity != 1 << bits:
        raise InvalidRequestError(
            f"a granularity of {granularity} bytes is not a power of two from 512 to 2G"
        )
    return bits
