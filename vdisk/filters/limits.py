"""The limits of a picky device: whole blocks only, and requests that are not too large.

What is asked for is cut and rounded until it keeps to them::

    read            whole blocks, of which the part that was wanted is given
    write           the edges are read, changed and written back
    write zeroes    edges that are too small to be zeroed are written
    discard         edges smaller than a block are forgotten: it is advice

The names are those of the options of QEMU's ``blkdebug``, under which the device below sees the
same requests as there.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.block import ZERO_CHUNK, ZEROES
from vdisk.errors import InvalidRequestError
from vdisk.filters.passing import Between
from vdisk.stores.alignment import Part, parts
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vdisk.block import BlockDevice
    from vdisk.options import OptionBag

UNLIMITED: Final = 0
"""Of a limit: there is none."""

MAX_LIMIT: Final = (1 << 31) - 1
"""Bytes; QEMU's limits are signed 32-bit numbers."""


class Limits(NamedTuple):
    """Bytes, each a multiple of ``align``, which is a power of two; 0: no limit.

    ``opt_write_zero``: what is no multiple of it is not zeroed but written.  ``opt_discard``:
    requests are cut at its multiples.
    """

    align: int = 1
    max_transfer: int = UNLIMITED
    opt_write_zero: int = UNLIMITED
    max_write_zero: int = UNLIMITED
    opt_discard: int = UNLIMITED
    max_discard: int = UNLIMITED

    @classmethod
    def take(cls, bag: OptionBag) -> Limits:
        """Those in the options of blkdebug; raises :class:`InvalidRequestError`."""
        align = bag.size("align") or 1
        if align & (align - 1) or align > MAX_LIMIT:
            raise InvalidRequestError(f"{bag.owner}: 'align' is no power of two: {align}")
        found = {"align": align}
        for name in cls._fields[1:]:
            unit = max(align, found.get(name.replace("max_", "opt_"), 0))
            key, value = name.replace("_", "-"), bag.size(name.replace("_", "-")) or UNLIMITED
            if value % unit or value > MAX_LIMIT:
                raise InvalidRequestError(f"{bag.owner}: {key!r} is no multiple of {unit}: {value}")
            found[name] = value
        return cls(**found)


class Limited(Between):
    """``inner``, which sees only requests that keep to ``limits``."""

    def __init__(self, inner: BlockDevice, limits: Limits) -> None:
        super().__init__(inner)
        self.limits = limits
        self._busy = _Busy()

    # -- reading ---------------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        align = self.limits.align
        start = round_down(offset, align)
        end = min(round_up(offset + len(view), align), self.size)
        whole = start == offset and end == offset + len(view)
        buffer = view if whole else memoryview(bytearray(end - start))
        for at, size in _pieces(start, end, self.limits.max_transfer):
            self.inner.read_into(at, buffer[at - start : at - start + size])
        if not whole:
            view[:] = buffer[offset - start :][: len(view)]

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self._read_into(offset, view)
            offset += len(view)

    # -- writing ---------------------------------------------------------------------------------

    def _write(self, offset: int, view: memoryview) -> None:
        end, align = offset + len(view), self.limits.align
        with self._busy.until_free(round_down(offset, align), round_up(end, align)):
            if self._is_whole(offset, end):
                self._write_whole(offset, view)
                return
            for part in parts(offset, len(view), self.limits.align):
                data = view[part.start - offset : part.end - offset]
                if self._is_whole(part.start, part.end):
                    self._write_whole(part.start, data)
                else:
                    self._change(part, data)

    def _is_whole(self, start: int, end: int) -> bool:
        align = self.limits.align
        return not start % align and (not end % align or end == self.size)

    def _change(self, part: Part, data: memoryview) -> None:
        """Read the block that a part lies in, and write it back with it."""
        edges = [
            *(["head"] if part.start > part.block else []),
            *(["tail"] if part.end < part.block_end else []),
        ]
        for edge in edges:
            self.inner.note(f"pwritev_rmw_{edge}")
        block = bytearray(min(part.block_end, self.size) - part.block)
        self._read_into(part.block, memoryview(block))
        for edge in edges:
            self.inner.note(f"pwritev_rmw_after_{edge}")
        block[part.start - part.block : part.end - part.block] = data
        self._write_whole(part.block, memoryview(block))

    def _write_whole(self, offset: int, view: memoryview) -> None:
        for at, size in _pieces(offset, offset + len(view), self.limits.max_transfer):
            self.inner.write(at, view[at - offset : at - offset + size])

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self._write(offset, views[0] if len(views) == 1 else memoryview(b"".join(views)))

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        unit = max(self.limits.align, self.limits.opt_write_zero)
        for part in parts(offset, length, unit):
            if part.whole:
                with self._busy.until_free(part.start, part.end):
                    for at, size in _pieces(part.start, part.end, self.limits.max_write_zero):
                        self.inner.write_zeroes(at, size, unmap=unmap)
            else:
                for at, size in _pieces(part.start, part.end, ZERO_CHUNK):
                    self._write(at, memoryview(ZEROES)[:size])

    def _discard(self, offset: int, length: int) -> None:
        align = self.limits.align
        start, end = round_up(offset, align), offset + length
        end = end if end == self.size else round_down(end, align)
        for part in parts(start, max(end - start, 0), max(align, self.limits.opt_discard)):
            with self._busy.until_free(part.start, part.end):
                for at, size in _pieces(part.start, part.end, self.limits.max_discard):
                    self.inner.discard(at, size)


class _Busy:
    """The ranges that writes are at work in: those that overlap wait for one another."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def until_free(self, start: int, end: int) -> Iterator[None]:
        """Have the range to oneself: whole blocks, for a block may be written back as a whole."""

        def is_free() -> bool:
            return all(end <= first or last <= start for first, last in self._ranges)

        with self._changed:
            self._changed.wait_for(is_free)
            self._ranges.append((start, end))
        try:
            yield
        finally:
            with self._changed:
                self._ranges.remove((start, end))
                self._changed.notify_all()


def _pieces(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """Offset and length of requests of ``most`` bytes at most, or of one."""
    step = most or max(end - start, 1)
    for at in range(start, end, step):
        yield at, min(step, end - at)
