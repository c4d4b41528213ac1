"""The transmission phase of one connection: what is received becomes replies.

Bytes go the hot path (:mod:`~vdisk.nbd_serving.fast`) where they can, else through the state
machine; requests from there are collected during a wake-up, and at its end handed in batches to
worker threads, whose outcomes come back to the event loop's thread as replies::

    received --fast--> replies
        |
        '--machine--> requests --workers--> outcomes --machine--> replies

Nothing is taken in while the client has not fetched its replies, has as much in flight as it
may, or is faster than the export's throttle allows.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.nbd.events import Disconnected, InvalidRequest, Request
from vdisk.nbd.limits import Limits
from vdisk.nbd.server_transmission import ServerTransmission
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import Command
from vdisk.nbd_serving.execution import MAX_STATUS_EXTENTS, Job, Outcome, reply
from vdisk.nbd_serving.fast import FastPath
from vdisk.nbd_serving.fast_writes import INLINE_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd.session import Session
    from vdisk.nbd_serving.export import Export
    from vdisk.nbd_serving.limits import Account, ServerLimits
    from vdisk.nbd_serving.outbox import Outbox
    from vdisk.nbd_serving.pace import Pace
    from vdisk.nbd_serving.payloads import PayloadBuffers
    from vdisk.nbd_serving.sending import SendBuffer

JOBS_AT_ONCE: Final = 8
"""Into how many parts a wake-up's requests are split, to keep a disk's queue filled."""

STATUS_CHARGE: Final = 16 * MAX_STATUS_EXTENTS
"""Bytes that a block status is counted as: the longest reply there is to one."""

Submit = "Callable[[Job, Callable[[list[Outcome]], None]], None]"


class Transmission:
    """Of one connection.  ``submit(job, done)`` runs a job and calls ``done(outcomes)``.

    ``fast`` False leaves everything to the machine.
    """

    def __init__(
        self,
        session: Session,
        export: Export,
        *,
        limits: ServerLimits,
        account: Account,
        outbox: Outbox,
        buffer: SendBuffer,
        pace: Pace,
        payloads: PayloadBuffers,
        submit: Callable[[Job, Callable[[list[Outcome]], None]], None],
        alone: Callable[[], bool],
        fast: bool = True,
    ) -> None:
        self.export = export
        self._session = session
        self._account = account
        self._outbox = outbox
        self._channel = outbox.channel
        self._submit = submit
        self._payloads = payloads
        self._machine = ServerTransmission(
            session,
            limits=Limits(
                payload=limits.largest_request,
                requests_in_flight=limits.client_requests,
                status_descriptors=MAX_STATUS_EXTENTS,
            ),
            allocate=payloads.take,
        )
        self._fast: FastPath | None = None
        if fast and export.throttle is None:
            self._fast = FastPath(
                session, self._machine.gate, export, outbox, buffer, pace, self._hand_over, alone
            )
        self._can_split = session.headers is not HeaderStyle.SIMPLE
        self._batch: list[Request] = []
        self._stash = b""
        self._halted = False
        self.ended = False
        """No more requests will come."""

    # -- what the connection asks ----------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return self._machine.unanswered

    @property
    def in_message(self) -> bool:
        """Whether the client has sent a part of a request and not the rest."""
        return bool(self._stash) or not self._machine.at_boundary

    @property
    def must_wait(self) -> bool:
        """Whether nothing may be received now."""
        return self._halted or bool(self._outbox) or self._account.full or self.ended

    @property
    def halted(self) -> bool:
        """Whether something that was received has not been looked at: call :meth:`resume`."""
        return self._halted

    @property
    def throttled(self) -> bool:
        """Whether only time can let in what was received and held back."""
        limited = self.export.throttle is not None
        return limited and self._halted and not (self._outbox or self._account.full)

    def delay(self, now: float) -> float:
        """Seconds until the throttle lets the next request in."""
        throttle = self.export.throttle
        return 0.0 if throttle is None else throttle.delay(now)

    # -- receiving -------------------------------------------------------------------------------

    def receive(self, buffer: memoryview) -> None:
        """Receive, and look at what has come.

        Raises ``BlockingIOError`` when there is nothing, RemoteProtocolError, ``OSError``.
        """
        if self._stash:
            kept = len(self._stash)
            buffer[:kept] = self._stash
            count = self._channel.recv_into(buffer[kept:])
            if count:
                self._stash = b""
                self.received(buffer[: kept + count])
        elif self._fast is not None and self._machine.at_boundary:
            used, count = self._fast.exchange(buffer)
            if used < count:
                self.received(buffer[used:count])
        elif (target := self._machine.payload_buffer) is not None:
            count = self._channel.recv_into(target)
            if count:
                self._machine.payload_received(count)
                self._take_events()
        else:
            count = self._channel.recv_into(buffer)
            self.received(buffer[:count])
        if not count:
            self._receive_eof()

    def received(self, view: memoryview) -> None:
        """Look at bytes from the client.  Raises RemoteProtocolError, OSError."""
        while view and not self._halted:
            used = self._take(view)
            if not used:
                break
            view = view[used:]
            self._halted = self._halted or self._outbox.crowded
        self._stash = bytes(view)

    def resume(self) -> None:
        """Look at what was received and held back, as far as that is possible now."""
        self._halted = False
        self._take_events()
        stash = self._stash
        if not self._halted:
            self.received(memoryview(stash))

    def _receive_eof(self) -> None:
        """The client will send no more.  Raises RemoteProtocolError in the midst of a request."""
        self._machine.receive_data(self._stash)
        self._stash = b""
        self._machine.receive_eof()
        self._take_events()

    def _take(self, view: memoryview) -> int:
        """Take something off the front of ``view``; 0 if it is better to wait for more."""
        length = len(view)
        if self._machine.at_boundary and self._fast is not None:
            used = self._fast.take(view)
            if used:
                return used
            if self._fast.incomplete(view):
                return 0
            length = min(length, self._fast.header_size)
        elif self._machine.payload_wanted:
            length = min(length, self._machine.payload_wanted)
        self._hand_over(view[:length])
        return length

    def _hand_over(self, view: memoryview) -> None:
        self._machine.receive_data(view)
        self._take_events()

    # -- requests --------------------------------------------------------------------------------

    def _take_events(self) -> None:
        while not (self._account.full or self._outbox.crowded or self.delay(monotonic())):
            event = self._machine.next_event()
            match event:
                case None:
                    return
                case Request():
                    self._admit(event)
                case InvalidRequest(request, error, message):
                    self.export.statistics.refused += 1
                    self._outbox.push(self._machine.reply_error(request, error, message))
                case Disconnected():
                    self.ended = True
        self._halted = True

    def _admit(self, request: Request) -> None:
        self._account.charge(_reply_size(request) + len(request.data), 1)
        if self.export.throttle is not None:
            moves = request.command in (Command.NBD_CMD_READ, Command.NBD_CMD_WRITE)
            self.export.throttle.admit(request.length if moves else 0)
        self._batch.append(request)

    def end_of_wakeup(self) -> None:
        """Send what was answered at once, and let workers begin with the rest."""
        if self._fast is not None:
            self._fast.send()
            self._fast.handed_over = False
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        parts = min(len(batch), JOBS_AT_ONCE)
        for number in range(parts):
            self._start(batch[number::parts])

    def _start(self, requests: list[Request]) -> None:
        began = monotonic()
        job = Job(self.export, self._session.meta_contexts, requests, self._can_split)
        if self._may_run_here(requests, began):
            self._finished(requests, job.run(), began)
            self.export.note_time(began, monotonic(), len(requests))
            return
        self._submit(job, lambda outcomes: self._finished(requests, outcomes, began))

    def _may_run_here(self, requests: list[Request], now: float) -> bool:
        """Whether it costs less to write at once than to have another thread do it."""
        export = self.export
        return (
            self._fast is not None
            and export.prompt
            and now >= export.slow_until
            and not export.write_through
            and all(
                request.command == Command.NBD_CMD_WRITE
                and not request.flags
                and request.length <= INLINE_WRITE
                for request in requests
            )
        )

    def _finished(self, requests: list[Request], outcomes: list[Outcome], began: float) -> None:
        seconds = monotonic() - began
        for request, outcome in zip(requests, outcomes, strict=True):
            size = _reply_size(request)
            self._account.release(len(request.data), 1)
            self._payloads.give(request.data)
            self.export.statistics.commands[request.command].add(
                1, request.length, seconds, errors=outcome.error is not None
            )
            self._outbox.push(reply(self._machine, request, outcome), charge=size)


def _reply_size(request: Request) -> int:
    """Bytes that a request's reply holds until it is sent."""
    if request.command == Command.NBD_CMD_READ:
        return request.length
    return STATUS_CHARGE if request.command == Command.NBD_CMD_BLOCK_STATUS else 0
