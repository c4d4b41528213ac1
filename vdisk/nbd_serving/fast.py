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

Where all of them are reads of one length, even the headers stand there beforehand.  Reads from
128 KiB on are sent by the kernel (``sendfile``).  Whatever is not plain, not valid, not in the page
cache or fails is handed to the state machine, as the bytes it came as: then this path need not
know how to refuse, and a client cannot tell which path answered.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.nbd.bulk import BulkParser
from vdisk.nbd_serving.fast_reads import FastReads
from vdisk.nbd_serving.fast_writes import FastWrites
from vdisk.nbd_serving.pace import Depth, Lookout, Pace
from vdisk.nbd_serving.sending import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.gate import Gate
    from vdisk.nbd.session import Session
    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.outbox import Outbox
    from vdisk.nbd_serving.sending import SendBuffer

TURN: Final = 0.002
"""Seconds that one client is served before the others are asked: a hundred requests."""

DISTRUST: Final = 0.01
"""Seconds during which a client is not waited for that let us wait in vain, for some of them."""

OVERLAP_FROM: Final = 16
"""Reads received at once from which on half are answered, and sent off, before the rest: enough
of a rest to last until the client, if it slept, has its processor and those replies.  (Writes
gain nothing: their replies are short, and the client has its data at hand.)"""

RECEIVED_AT_ONCE: Final = (1 << 20) + (4 << 10)
"""Bytes received at once: as large a write as is made here, or sixteen of 64 KiB."""

LOOKED_AT: Final = 8 << 10
"""Bytes that are looked at before they are received: a queue of reads, or a small write."""


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
        self.header_size = self._parser.header_size
        self._export = export
        self._channel = outbox.channel
        self._outgoing = Outgoing(session.headers, buffer, outbox)
        self._reads = FastReads(self._parser, export, self._outgoing, self._give)
        self._writes = FastWrites(self._parser, export, self._outgoing, self._give)
        self.send = self._outgoing.send
        self._pace = pace
        self._lookout = Lookout()
        self._depth = Depth()
        self._hand_over = hand_over
        self._alone = alone
        self._no_waiting_until = 0.0
        self._short, self._looked = True, False
        self.handed_over = False
        """Whether the machine was given something since this was set."""

    def exchange(self, buffer: memoryview) -> tuple[int, int]:
        """Receive and answer until something is left over for others.

        What was received last: the bytes taken, of all the bytes; none at the end of the input.
        Raises ``BlockingIOError`` when there is nothing to receive, ``OSError``.
        """
        channel, pace = self._channel, self._pace
        answer_one, send, each = self._reads.answer_one, self.send, self.header_size
        began = monotonic()
        try:
            while True:
                free = pace.processors_are_free()
                waited = not (free and channel.waits and self._lookout.look(channel.readable))
                count = self._receive(buffer, looks=free and waited)
                view = buffer[:count]
                if count == each and answer_one(view):
                    used = count
                else:
                    used = self._take_all(view, waited) if free else self.take(view)
                more = not self.handed_over and send()
                if self._looked:
                    channel.take(view)
                if more and used < count:
                    used, count = self._complete(buffer, used, count)
                    more = not self.handed_over and send()
                if not more or used < count or not count or monotonic() - began > TURN:
                    break
                if not channel.waits and self._may_wait(began):
                    channel.start_waiting()
        except BlockingIOError:
            if channel.waits:
                self._no_waiting_until = monotonic() + DISTRUST
            raise
        finally:
            channel.stop_waiting()
        return used, count

    def _receive(self, buffer: memoryview, *, looks: bool) -> int:
        """Receive, or only look at what there is, unless it is too much to be received twice.

        A client that let us wait for its requests is about to fall asleep until the replies come.
        Receiving would wake it before there is one; so the requests are received when there is.
        """
        self._looked = False
        if looks and self._short and self._channel.receiving_wakes:
            count = self._channel.look_into(buffer[:LOOKED_AT])
            if count < LOOKED_AT:
                self._looked = True
                return count
        count = self._channel.recv_into(buffer[:RECEIVED_AT_ONCE])
        self._short = count < LOOKED_AT
        return count

    def _complete(self, buffer: memoryview, used: int, count: int) -> tuple[int, int]:
        """Receive what is missing of a long write at ``used``, if it comes at once, and make it.

        If the machine got the beginning, it would have to copy that to a buffer of its own.
        """
        end = count + self._writes.missing(buffer[used:count])
        if not count < end <= len(buffer):
            return used, count
        began = monotonic()
        if not self._channel.waits and self._may_wait(began):
            self._channel.start_waiting()
        try:
            while received := self._channel.recv_into(buffer[count:end]):
                count += received
                if count == end or monotonic() - began > TURN:
                    break
        except BlockingIOError:
            pass
        return used + self.take(buffer[used:count]) if count == end else used, count

    def _may_wait(self, now: float) -> bool:
        """Whether to wait for the client's next requests right in ``recv``.

        A client sends them in answer to our replies.  Where nobody else is there to be served,
        waiting a moment for it costs a third of a turn of the event loop.
        """
        if now < self._no_waiting_until or not self._channel.can_wait:
            return False
        return not self._export.jobs and self._alone()

    def _take_all(self, view: memoryview, waited: bool) -> int:
        """What :meth:`take` does; reads so that the client can work while the last are made.

        That is, where the whole of the client's queue is here, and not the half that it was sent
        replies to while we made those to the other.  ``waited``: nothing was here at first.
        """
        count = len(view) // self.header_size
        if count < OVERLAP_FROM or self._parser.kind(view) != self._parser.read_kind:
            return self.take(view)
        take = self._reads.take
        if not self._depth.is_whole(count, waited=waited) or not self._alone():
            return take(view)
        used = take(view[: count // 2 * self.header_size])
        if not used or self.handed_over or not self.send():
            return used
        return used + take(view[used:])

    def take(self, view: memoryview) -> int:
        """Answer the plain requests at the front of ``view``; the bytes they took."""
        kind = self._parser.kind(view)
        if kind == self._parser.read_kind:
            return self._reads.take(view)
        return self._writes.take(view) if kind in self._parser.write_kinds else 0

    def incomplete(self, view: memoryview) -> bool:
        """Whether it is better to wait for more than to let the machine begin with ``view``."""
        return self._writes.incomplete(view)

    def _give(self, view: memoryview) -> None:
        """To the machine."""
        self.handed_over = True
        self._hand_over(view)
