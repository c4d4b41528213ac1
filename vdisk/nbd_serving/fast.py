"""The hot path: many plain reads and writes answered at once, in the event loop's thread.

What costs time when disks are served from the page cache is not the copying but everything
around it, so requests are taken off the receive buffer many at a time, file data is read right
behind its header in the send buffer, and all of it leaves with one ``send``::

    received  | read | read | read | read | flush…          parsed with one iter_unpack
                  |      |      |      |
                  v      v      |      v
    to send   |hdr data|hdr data|hdr data|                  preadv(…, RWF_NOWAIT) each
                                |
                                '--> not in the page cache: to the machine, and a worker

Reads from 128 KiB on are sent by the kernel (``sendfile``).  Whatever is not plain, not valid, not
in the page cache or fails is handed to the state machine, as the bytes it came as: then this
path need not know how to refuse, and a client cannot tell which path answered.
"""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.errors import VdiskError
from vdisk.nbd.bulk import BulkParser, BulkReplies, PlainRead, PlainWrite
from vdisk.nbd_serving.outbox import DeviceRange, cached, file_pieces
from vdisk.nbd_serving.pace import Lookout, Pace
from vdisk.stores.file import FileStore
from vdisk.stores.places import FILE_MASK, PAGE_BITS, PAGE_MASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.gate import Gate
    from vdisk.nbd.session import Session
    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.outbox import Outbox

SEND_BUFFER: Final = 4 << 20
"""Bytes of replies collected before they are sent, shared by all clients of a server."""

SENDFILE_FROM: Final = 128 << 10
"""Bytes from which the kernel's own way from a file to a socket costs less than copying twice: it
takes four system calls, and what is copied leaves together with the replies around it."""

INLINE_READ: Final = 256 << 10
"""Bytes of the longest read that is copied here, where the kernel cannot send it (TLS)."""

INLINE_WRITE: Final = 128 << 10
"""Bytes of the longest write made here: some 30 microseconds for the page cache to take."""

TURN: Final = 0.002
"""Seconds that one client is served before the others are asked: a hundred requests."""

DISTRUST: Final = 0.01
"""Seconds during which a client is not waited for that let us wait in vain, for some of them."""

OVERLAP_FROM: Final = 16
"""Reads received at once from which on most are answered, and sent off, before the rest: enough
of a rest to last until the client, if it slept, has its processor and those replies.  (Writes
gain nothing: their replies are short, and the client has its data at hand.)"""

READS_AT_ONCE: Final = 256
WRITES_AT_ONCE: Final = 64
"""Requests answered before the first reply leaves: about a millisecond's work."""

LONGEST_RUN: Final = 1 << 20
"""Bytes of neighbouring writes that are made one."""

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)


class SendBuffer:
    """Where replies are put together; one for a server, used during one wake-up at a time."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(SEND_BUFFER))


class FastPath:
    """Of one connection.  ``hand_over(bytes)``: to the machine, which stands at a boundary."""

    def __init__(
        self,
        session: Session,
        gate: Gate,
        export: Export,
        outbox: Outbox,
        buffer: SendBuffer,
        pace: Pace,
        hand_over: Callable[[memoryview], None],
        alone: Callable[[], bool],
    ) -> None:
        self._parser = BulkParser(session, gate)
        self._replies = BulkReplies(session.headers)
        self._pack_read = self._replies.pack_read
        self._room = self._replies.read_header
        self.header_size = self._parser.header_size
        self._export = export
        self._device = export.device
        self._places = export.places
        self._locate_to_write = export.device.locate_to_write
        self._moves = not isinstance(export.device.hold(), nullcontext)
        self._outbox = outbox
        self._sends_files = outbox.channel.sends_files
        self._longest_copy = SENDFILE_FROM - 1 if self._sends_files else INLINE_READ
        self._buffer = buffer.view
        self._pace = pace
        self._lookout = Lookout()
        self._filled = 0
        self._hand_over = hand_over
        self._alone = alone
        self._can_wait = outbox.channel.can_wait
        self._no_waiting_until = 0.0
        self.handed_over = False
        """Whether the machine was given something since this was set."""
        self._nowait = _NOWAIT
        self._writes_here = export.prompt and not export.write_through and not export.read_only

    def exchange(self, buffer: memoryview) -> tuple[int, int]:
        """Receive and answer until something is left over for others.

        What was received last: the bytes taken, of all the bytes; none at the end of the input.
        Raises ``BlockingIOError`` when there is nothing to receive, ``OSError``.
        """
        channel = self._outbox.channel
        receive, take = channel.recv_into, self.take
        long = OVERLAP_FROM * self.header_size
        began = monotonic()
        try:
            while True:
                count = receive(buffer)
                used = take(buffer[:count]) if count < long else self._take_many(buffer[:count])
                if used < count or self.handed_over or not count:
                    break
                if not self.send() or monotonic() - began > TURN:
                    break
                if not channel.waits and self._may_wait(began):
                    channel.start_waiting()
                if channel.waits and self._pace.processors_are_free():
                    self._lookout.look(channel.readable)
        except BlockingIOError:
            if channel.waits:
                self._no_waiting_until = monotonic() + DISTRUST
            raise
        finally:
            channel.stop_waiting()
        return used, count

    def _may_wait(self, now: float) -> bool:
        """Whether to wait for the client's next requests right in ``recv``.

        A client sends them in answer to our replies.  Where nobody else is there to be served,
        waiting a moment for it costs a third of a turn of the event loop.
        """
        if now < self._no_waiting_until or not self._can_wait:
            return False
        return not self._export.jobs and self._alone()

    def _take_many(self, view: memoryview) -> int:
        """What :meth:`take` does; reads so that the client can work while the last are made."""
        if (
            not self._parser.begins_with_read(view)
            or not self._pace.processors_are_free()
            or not self._alone()
        ):
            return self.take(view)
        used = self.take(view[: len(view) * 3 // 4])
        if not used or self.handed_over or not self.send():
            return used
        return used + self.take(view[used:])

    def take(self, view: memoryview) -> int:
        """Answer the plain requests at the front of ``view``; the bytes they took."""
        if len(view) == self.header_size:
            read = self._parser.read(view)
            if read is not None and self._answer_one(*read):
                return self.header_size
        reads, used = self._parser.reads(view, READS_AT_ONCE)
        if reads:
            if not self._moves:
                return self._answer_reads(reads, view)
            with self._device.hold():
                self._places.refresh()
                return self._answer_reads(reads, view)
        writes, used = self._parser.writes(view, WRITES_AT_ONCE)
        if writes:
            if self._writes_here and monotonic() >= self._export.slow_until:
                with self._device.hold_to_write():
                    self._answer_writes(writes, view)
            else:
                self._give_writes(writes, view)
        return used

    def incomplete(self, view: memoryview) -> bool:
        """Whether it is better to wait for more than to let the machine begin with ``view``."""
        return self._parser.incomplete(view, INLINE_WRITE if self._writes_here else 0)

    def send(self) -> bool:
        """Send the replies that were put together; True when nothing is left.

        Raises ``OSError``.
        """
        if not self._filled:
            return not self._outbox
        filled, self._filled = self._filled, 0
        return self._outbox.send_now(self._buffer[:filled])

    # -- reads -----------------------------------------------------------------------------------

    def _answer_reads(self, reads: list[PlainRead], view: memoryview) -> int:
        """Answer reads until the client should fetch some; the bytes of the requests."""
        began = monotonic()
        before = self._filled
        count = answered = self._copy_run(reads)
        size = self._filled - before - count * self._room
        while count < len(reads) and not self._outbox.crowded:
            if self._answer_read(*reads[count]):
                size += reads[count][2]
                answered += 1
            else:
                start = count * self.header_size
                self._give(view[start : start + self.header_size])
            count += 1
            if count < len(reads):
                before = self._filled
                done = self._copy_run(reads[count:])
                size += self._filled - before - done * self._room
                count += done
                answered += done
        if answered:
            seconds = (monotonic() - began) / answered
            self._export.statistics.reads.add(answered, size, seconds)
        return count * self.header_size

    def _answer_one(self, cookie: int, offset: int, length: int) -> bool:
        """Answer the only read that was received, if it is small and in the page cache.

        This is where a client without a queue spends its time.
        """
        filled = self._filled
        if length > self._longest_copy or filled + self._room + length > SEND_BUFFER:
            return False
        began = monotonic()
        if not self._moves:
            done = self._copy(cookie, offset, length)
        else:
            with self._device.hold():
                self._places.refresh()
                done = self._copy(cookie, offset, length)
        if done:
            seconds = monotonic() - began
            self.send()  # the client waits for this, and nothing else
            self._export.statistics.reads.add(1, length, seconds)
        return done

    def _copy(self, cookie: int, offset: int, length: int) -> bool:
        """What :meth:`_copy_run` does, with one read that fits."""
        start = self._pack_read(self._buffer, self._filled, cookie, offset, length)
        end = start + length
        try:
            found = self._places.find(offset, length)
            if found is None:
                return False
            if os.preadv(found[0], (self._buffer[start:end],), found[1], self._nowait) != length:
                return False
        except (VdiskError, OSError):
            return False
        self._filled = end
        return True

    def _copy_run(self, reads: list[PlainRead]) -> int:
        """Answer small reads from the page cache, until one is not; how many.

        This is where a busy server spends its time.
        """
        out, position = self._buffer, self._filled
        pack, preadv, nowait = self._pack_read, os.preadv, self._nowait
        places = self._places
        page_of, files, find = places.pages.get, places.files, places.find
        unit, unit_bits, page_shift = places.unit, places.unit_bits, places.unit_bits + PAGE_BITS
        longest = self._longest_copy
        full = SEND_BUFFER - self._room
        done = 0
        try:
            for cookie, offset, length in reads:
                if length > longest or position + length > full:
                    break
                start = pack(out, position, cookie, offset, length)
                end = start + length
                within = offset & (unit - 1)
                page = page_of(offset >> page_shift)
                word = page[offset >> unit_bits & PAGE_MASK] if page else 0
                if word and within + length <= unit:
                    descriptor, host = files[word & FILE_MASK], (word & ~FILE_MASK) + within
                elif (found := find(offset, length)) is not None:
                    descriptor, host = found
                else:
                    break
                if preadv(descriptor, (out[start:end],), host, nowait) != length:
                    break
                position = end
                done += 1
        except VdiskError:
            pass  # the machine gets this request too, and its reply says why
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # by a file system without RWF_NOWAIT
                self._nowait = 0
        self._filled = position
        return done

    def _answer_read(self, cookie: int, offset: int, length: int) -> bool:
        """Answer one read that is not the usual one; False where that would wait or fail."""
        if length >= SENDFILE_FROM and self._sends_files:
            return self._send_range(cookie, offset, length)
        if length > INLINE_READ:
            return False
        if self._filled + self._room + length > SEND_BUFFER:
            self.send()
            return self._copy_run([(cookie, offset, length)]) == 1
        return self._answer_zeroes(cookie, offset, length)

    def _answer_zeroes(self, cookie: int, offset: int, length: int) -> bool:
        """Answer a read that no file holds in one piece, if it is all zeroes."""
        if not self._export.prompt:
            return False
        try:
            if not all(extent.reads_zero for extent in self._device.map(offset, length)):
                return False
        except VdiskError:
            return False
        start = self._pack_read(self._buffer, self._filled, cookie, offset, length)
        self._filled = start + length
        self._buffer[start : self._filled] = bytes(length)
        return True

    def _give(self, view: memoryview) -> None:
        """To the machine."""
        self.handed_over = True
        self._hand_over(view)

    def _send_range(self, cookie: int, offset: int, length: int) -> bool:
        """Send a read's reply with its data from the page cache; False where that would wait."""
        try:
            pieces = file_pieces(self._device, offset, length)
        except VdiskError:
            return False
        if pieces is None or not cached(pieces):
            return False
        if self._filled + self._room > SEND_BUFFER:
            self.send()
        self._filled = self._pack_read(self._buffer, self._filled, cookie, offset, length)
        filled, self._filled = self._filled, 0
        self._outbox.send_now(self._buffer[:filled], more=True)
        data = DeviceRange(self._device, offset, length, pieces)
        self._outbox.push_range(data)
        if not self._outbox.send():
            data.forget_pieces()
        return True

    # -- writes ----------------------------------------------------------------------------------

    def _answer_writes(self, writes: list[PlainWrite], view: memoryview) -> None:
        began = monotonic()
        position = answered = size = 0
        for run in _runs(writes) if len(writes) > 1 else [writes]:
            length = sum([len(write[2]) for write in run])
            end = position + len(run) * self.header_size + length
            if self._write(run, length):
                answered += len(run)
                size += length
            else:
                self._give_writes(run, view[position:end])
            position = end
        if answered:
            ended = monotonic()
            if len(writes) == 1:
                self.send()  # the client waits for this, and nothing else
            self._export.statistics.writes.add(answered, size, (ended - began) / answered)
            self._export.note_time(began, ended, answered)

    def _give_writes(self, writes: list[PlainWrite], view: memoryview) -> None:
        """To the machine, one by one: each of its payloads is a buffer of its own."""
        position = 0
        for write in writes:
            end = position + self.header_size + len(write[2])
            self._give(view[position:end])
            position = end

    def _write(self, run: list[PlainWrite], length: int) -> bool:
        """Make a run of writes, put the replies in the buffer; False where it is not for here."""
        _cookie, offset, first, fua = run[0]
        if fua or len(first) > INLINE_WRITE:
            return False
        data = [write[2] for write in run]
        try:
            found = self._locate_to_write(offset, length)
            if found is None or type(found[0]) is not FileStore:
                self._device.writev(offset, data)
            elif os.pwritev(found[0].fileno(), data, found[1]) != length:
                return False
        except (VdiskError, OSError):
            return False  # the machine gets these requests too, and its replies say why
        if self._filled + len(run) * self._replies.done > SEND_BUFFER:
            self.send()
        filled, pack = self._filled, self._replies.pack_done
        for cookie, offset, _data, _fua in run:
            filled = pack(self._buffer, filled, cookie, offset)
        self._filled = filled
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
