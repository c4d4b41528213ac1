"""The hot path of reads: from the page cache into the send buffer, many at a time.

What is not in the page cache, or in no file, or fails, is left to the machine and to workers.
"""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.errors import VdiskError
from vdisk.nbd_serving.outbox import DeviceRange, cached, file_pieces
from vdisk.nbd_serving.sending import (
    SEND_BUFFER,
    SHEET_LENGTHS,
    SHEET_REPLIES,
    SINGLE_LENGTHS,
)
from vdisk.stores.places import FILE_MASK, PAGE_BITS, PAGE_MASK, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.bulk import BulkParser, PlainRead, ReadSheet
    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.sending import Outgoing

SENDFILE_FROM: Final = 128 << 10
"""Bytes from which the kernel's own way from a file to a socket costs less than copying twice: it
takes four system calls, and what is copied leaves together with the replies around it."""

INLINE_READ: Final = 256 << 10
"""Bytes of the longest read that is copied here, where the kernel cannot send it (TLS)."""

READS_AT_ONCE: Final = SHEET_REPLIES
"""Reads answered before the first reply leaves: about a millisecond's work."""

SHEET_FROM: Final = 4
"""Reads received at once from which on prepared replies pay."""

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)


class FastReads:
    """Of one connection.  ``give(bytes)``: to the machine."""

    def __init__(
        self,
        parser: BulkParser,
        export: Export,
        outgoing: Outgoing,
        give: Callable[[memoryview], None],
    ) -> None:
        self._parser = parser
        self._header_size = parser.header_size
        self._statistics = export.statistics.reads
        self._device = export.device
        self._prompt = export.prompt
        self._places = export.places
        self._moves = not isinstance(export.device.hold(), nullcontext)
        self._outgoing = outgoing
        self._sends_files = outgoing.outbox.channel.sends_files
        self._longest_copy = SENDFILE_FROM - 1 if self._sends_files else INLINE_READ
        self._give = give
        self._nowait = _NOWAIT

    def take(self, view: memoryview) -> int:
        """Answer the plain reads at the front of ``view``; the bytes they took."""
        if not self._moves:
            return self._take(view)
        with self._device.hold():
            self._places.refresh()
            return self._take(view)

    def _take(self, view: memoryview) -> int:
        if len(view) >= SHEET_FROM * self._header_size:
            used = self._answer_alike(view)
            if used:
                return used
        reads, _used = self._parser.reads(view, READS_AT_ONCE)
        return self._answer(reads, view) if reads else 0

    # -- one, and many of one length -------------------------------------------------------------

    def answer_one(self, view: memoryview) -> bool:
        """Answer the only request that was received, if it is a small read from the page cache.

        This is where a client without a queue spends its time, until its reply has left.
        """
        read = self._parser.read(view)
        if read is None:
            return False
        if not self._moves:
            return self._answer_one(*read)
        with self._device.hold():
            self._places.refresh()
            return self._answer_one(*read)

    def _answer_one(self, cookie: int, offset: int, length: int) -> bool:
        outgoing = self._outgoing
        if length not in SINGLE_LENGTHS or outgoing.filled:
            return False
        began = monotonic()
        reply, target = outgoing.singles[length]
        outgoing.pack_read(reply, 0, cookie, offset, length)
        try:
            found = self._places.find(offset, length)
            if found is None or os.preadv(found[0], target, found[1], self._nowait) != length:
                return False
        except (VdiskError, OSError):
            return False
        outgoing.outbox.send_now(reply)
        self._statistics.add(1, length, monotonic() - began)
        return True

    def _answer_alike(self, view: memoryview) -> int:
        """Answer the reads in ``view``, and send, if it holds nothing else, of one length."""
        each = self._header_size
        whole = min(len(view) // each, READS_AT_ONCE) * each
        length, offsets = self._parser.alike(view[:whole])
        if length not in SHEET_LENGTHS or length > self._longest_copy:
            return 0
        began = monotonic()
        sheet = self._outgoing.sheets[length]
        count = self._fill(sheet, offsets, length)
        if not count:
            return 0
        self._outgoing.send()
        used = count * each
        self._outgoing.outbox.send_now(sheet.replies(view[:used], count))
        self._statistics.add(count, count * length, (monotonic() - began) / count)
        return used

    def _fill(self, sheet: ReadSheet, offsets: list[int], length: int) -> int:
        """Read data of that length from the page cache to their places; how many.

        This is where a busy server spends its time.
        """
        preadv, nowait = os.preadv, self._nowait
        places = self._places
        page_of, files, find = places.pages.get, places.files, places.find
        within_unit, unit_bits = places.unit - 1, places.unit_bits
        page_shift = unit_bits + PAGE_BITS
        last = places.unit - length
        done = 0
        try:
            if places.undivided and (found := find(offsets[0], length)) is not None:
                descriptor, start = found[0], found[1] - offsets[0]
                for offset, target in zip(offsets, sheet.targets, strict=False):
                    if preadv(descriptor, target, start + offset, nowait) != length:
                        break
                    done += 1
                return done
            for offset, target in zip(offsets, sheet.targets, strict=False):
                word = page_of(offset >> page_shift, UNKNOWN)[offset >> unit_bits & PAGE_MASK]
                within = offset & within_unit
                if word and within <= last:
                    file = word & FILE_MASK
                    descriptor, host = files[file], word - file + within
                elif (found := find(offset, length)) is not None:
                    descriptor, host = found
                else:
                    break
                if preadv(descriptor, target, host, nowait) != length:
                    break
                done += 1
        except VdiskError:
            pass  # the machine gets this request too, and its reply says why
        except OSError as error:
            self._failed(error)
        return done

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.EOPNOTSUPP:  # by a file system without RWF_NOWAIT
            self._nowait = 0

    # -- any reads -------------------------------------------------------------------------------

    def _answer(self, reads: list[PlainRead], view: memoryview) -> int:
        """Answer reads until the client should fetch some; the bytes of the requests."""
        began = monotonic()
        each, answered, size, count = self._header_size, 0, 0, 0
        while count < len(reads) and not self._outgoing.outbox.crowded:
            copied = self._copy(reads[count:] if count else reads)
            answered += len(copied)
            size += sum(copied)
            count += len(copied)
            if count == len(reads):
                break
            if self._answer_unusual(*reads[count]):
                size += reads[count][2]
                answered += 1
            else:
                self._give(view[count * each : (count + 1) * each])
            count += 1
        if answered:
            self._statistics.add(answered, size, (monotonic() - began) / answered)
        return count * each

    def _copy(self, reads: list[PlainRead]) -> list[int]:
        """Answer small reads from the page cache, until one is not; their lengths."""
        outgoing = self._outgoing
        out, pack, position = outgoing.buffer, outgoing.pack_read, outgoing.filled
        find, preadv, nowait = self._places.find, os.preadv, self._nowait
        longest, full = self._longest_copy, SEND_BUFFER - outgoing.read_header
        done: list[int] = []
        try:
            for cookie, offset, length in reads:
                if length > longest or position + length > full:
                    break
                start = pack(out, position, cookie, offset, length)
                end = start + length
                found = find(offset, length)
                if found is None or preadv(found[0], (out[start:end],), found[1], nowait) != length:
                    break
                position = end
                done.append(length)
        except VdiskError:
            pass  # the machine gets this request too, and its reply says why
        except OSError as error:
            self._failed(error)
        outgoing.filled = position
        return done

    def _answer_unusual(self, cookie: int, offset: int, length: int) -> bool:
        """Answer one read that is not the usual one; False where that would wait or fail."""
        if length >= SENDFILE_FROM and self._sends_files:
            return self._send_range(cookie, offset, length)
        if length > INLINE_READ:
            return False
        if self._outgoing.filled + self._outgoing.read_header + length > SEND_BUFFER:
            self._outgoing.send()
            return bool(self._copy([(cookie, offset, length)]))
        return self._answer_zeroes(cookie, offset, length)

    def _answer_zeroes(self, cookie: int, offset: int, length: int) -> bool:
        """Answer a read that no file holds in one piece, if it is all zeroes."""
        if not self._prompt:
            return False
        try:
            if not all(extent.reads_zero for extent in self._device.map(offset, length)):
                return False
        except VdiskError:
            return False
        outgoing = self._outgoing
        start = outgoing.pack_read(outgoing.buffer, outgoing.filled, cookie, offset, length)
        outgoing.filled = start + length
        outgoing.buffer[start : outgoing.filled] = bytes(length)
        return True

    def _send_range(self, cookie: int, offset: int, length: int) -> bool:
        """Send a read's reply with its data from the page cache; False where that would wait."""
        try:
            pieces = file_pieces(self._device, offset, length)
        except VdiskError:
            return False
        if pieces is None or not cached(pieces):
            return False
        outgoing = self._outgoing
        outgoing.make_room(outgoing.read_header)
        filled = outgoing.pack_read(outgoing.buffer, outgoing.filled, cookie, offset, length)
        outgoing.filled = 0
        outgoing.outbox.send_now(outgoing.buffer[:filled], more=True)
        data = DeviceRange(self._device, offset, length, pieces)
        outgoing.outbox.push_range(data)
        if not outgoing.outbox.send():
            data.forget_pieces()
        return True
