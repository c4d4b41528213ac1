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

Reads from 32 KiB on are sent by the kernel (``sendfile``).  Whatever is not plain, not valid, not
in the page cache or fails is handed to the state machine, as the bytes it came as: then this
path need not know how to refuse, and a client cannot tell which path answered.
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.errors import VdiskError
from vdisk.nbd.bulk import BulkParser, BulkReplies, PlainRead, PlainWrite
from vdisk.nbd_serving.outbox import DeviceRange, cached, file_pieces
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.gate import Gate
    from vdisk.nbd.session import Session
    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.outbox import Outbox

SEND_BUFFER: Final = 4 << 20
"""Bytes of replies collected before they are sent, shared by all clients of a server."""

SENDFILE_FROM: Final = 32 << 10
"""Bytes from which a second system call costs less than copying twice."""

INLINE_READ: Final = 256 << 10
"""Bytes of the longest read that is copied here, where the kernel cannot send it (TLS)."""

INLINE_WRITE: Final = 128 << 10
"""Bytes of the longest write made here: some 30 microseconds for the page cache to take."""

ROUNDS: Final = 16
"""Times that one client is received from before the others have their turn."""

MOMENT: Final = 0.0001
"""Seconds to wait for a lone client: longer than it needs to send its next request, shorter
than anything else the event loop may have to do minds."""

READS_AT_ONCE: Final = 256
WRITES_AT_ONCE: Final = 64
"""Requests answered before the first reply leaves: about a millisecond's work."""

LONGEST_RUN: Final = 1 << 20
"""Bytes of neighbouring writes that are made one."""

FEW: Final = 2
"""Requests at once that a client without a queue sends."""

FD_SETSIZE: Final = 1024
"""The first descriptor that select cannot wait for.  (Its rivals count in milliseconds.)"""

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
        self._locate = export.device.locate
        self._moves = not isinstance(export.device.hold(), nullcontext)
        self._outbox = outbox
        self._sends_files = outbox.channel.sends_files
        self._longest_copy = SENDFILE_FROM - 1 if self._sends_files else INLINE_READ
        self._buffer = buffer.view
        self._filled = self._taken = 0
        self._hand_over = hand_over
        self._alone = alone
        self.handed_over = False
        """Whether the machine was given something since this was set."""
        self._nowait = _NOWAIT
        self._writes_here = export.prompt and not export.write_through and not export.read_only

    def exchange(self, buffer: memoryview) -> tuple[int, int]:
        """Receive and answer until something is left over for others.

        What was received last: the bytes taken, of all the bytes; none at the end of the input.
        Raises ``BlockingIOError`` when there is nothing to receive, ``OSError``.
        """
        receive = self._outbox.channel.recv_into
        for _ in range(ROUNDS):
            count = receive(buffer)
            used = self.take(buffer[:count])
            if used < count or self.handed_over:
                break
            self.send()
            if self._outbox or not self._wait_for_more():
                break
        return used, count

    def _wait_for_more(self) -> bool:
        """Whether it is worth to receive again, without asking the event loop first.

        A client with one request in flight sends the next in answer to our reply.  Where nobody
        else is connected, waiting a moment for it costs a third of a turn of the event loop.
        With more in flight, patience pays: what comes later comes together.
        """
        descriptor = self._outbox.channel.fileno()
        if self._taken > FEW or descriptor >= FD_SETSIZE or not self._alone():
            return True
        return bool(select.select((descriptor,), (), (), MOMENT)[0])

    def take(self, view: memoryview) -> int:
        """Answer the plain requests at the front of ``view``; the bytes they took."""
        reads, used = self._parser.reads(view, READS_AT_ONCE)
        if reads:
            self._taken = len(reads)
            if not self._moves:
                return self._answer_reads(reads, view)
            with self._device.hold():
                return self._answer_reads(reads, view)
        writes, used = self._parser.writes(view, WRITES_AT_ONCE)
        if writes:
            self._taken = len(writes)
            self._answer_writes(writes, view)
        return used

    def incomplete(self, view: memoryview) -> bool:
        """Whether it is better to wait for more than to let the machine begin with ``view``."""
        return self._parser.incomplete(view, INLINE_WRITE if self._writes_here else 0)

    def send(self) -> None:
        """Send the replies that were put together.  Raises ``OSError``."""
        if self._filled:
            filled, self._filled = self._filled, 0
            self._outbox.send_now(self._buffer[:filled])

    # -- reads -----------------------------------------------------------------------------------

    def _answer_reads(self, reads: list[PlainRead], view: memoryview) -> int:
        """Answer reads until the client should fetch some; the bytes of the requests."""
        began = monotonic()
        handed_over = count = size = 0
        while count < len(reads) and not self._outbox.crowded:
            done = self._copy_run(reads[count:] if count else reads)
            size += sum(read[2] for read in reads[count : count + done])
            count += done
            if count < len(reads):
                if self._answer_read(*reads[count]):
                    size += reads[count][2]
                else:
                    start = count * self.header_size
                    self._give(view[start : start + self.header_size])
                    handed_over += 1
                count += 1
        answered = count - handed_over
        if answered:
            seconds = (monotonic() - began) / answered
            self._export.statistics.reads.add(answered, size, seconds)
        return count * self.header_size

    def _copy_run(self, reads: list[PlainRead]) -> int:
        """Answer small reads from the page cache, until one is not; how many.

        This is where a busy server spends its time.
        """
        out, position, room = self._buffer, self._filled, self._room
        pack, locate, preadv, nowait = self._pack_read, self._locate, os.preadv, self._nowait
        longest, done = self._longest_copy, 0
        try:
            for cookie, offset, length in reads:
                if length > longest or position + room + length > SEND_BUFFER:
                    break
                start = pack(out, position, cookie, offset, length)
                end = start + length
                found = locate(offset, length)
                if found is None or type(found[0]) is not FileStore:
                    break
                if preadv(found[0].fileno(), (out[start:end],), found[1], nowait) != length:
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
        here = self._writes_here and began >= self._export.slow_until
        index = position = answered = size = 0
        while index < len(writes):
            count = _run_length(writes, index) if here else 1
            run = writes[index : index + count]
            data = [item[2] for item in run]
            length = sum(map(len, data))
            end = position + count * self.header_size + length
            if here and self._write(run, data):
                answered += count
                size += length
            else:
                self._give(view[position:end])
            index, position = index + count, end
        if answered:
            ended = monotonic()
            self._export.statistics.writes.add(answered, size, (ended - began) / answered)
            self._export.note_time(began, ended, answered)

    def _write(self, run: list[PlainWrite], data: list[memoryview]) -> bool:
        """Make a run of writes, put the replies in the buffer; False where it is not for here."""
        if run[0][3] or len(data[0]) > INLINE_WRITE:
            return False
        try:
            self._device.writev(run[0][1], data)
        except VdiskError:
            return False
        if self._filled + len(run) * self._replies.done > SEND_BUFFER:
            self.send()
        for cookie, offset, _data, _fua in run:
            self._filled = self._replies.pack_done(self._buffer, self._filled, cookie, offset)
        return True


def _run_length(writes: list[PlainWrite], index: int) -> int:
    """How many writes from ``index`` on lie one behind the other and can be made one."""
    _cookie, offset, data, fua = writes[index]
    count, start, end = 1, offset, offset + len(data)
    if fua:
        return 1
    for _cookie, offset, data, fua in writes[index + 1 :]:
        if offset != end or fua or end + len(data) - start > LONGEST_RUN:
            break
        if len(data) > INLINE_WRITE:
            break
        end += len(data)
        count += 1
    return count
