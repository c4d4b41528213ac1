"""One connection: its handshake, its transmission phase, and every way it can end.

A client is driven by the event loop: its socket is readable, writable, a worker is done, a moment
has come.  Each of these ends in :meth:`Client._arrange`, which decides from the state alone
what to wait for next::

    handshake --SessionStarted--> transmission --Disconnected--> finishing --> closed
        ^  |                          |  ^
        |  '--TlsWanted--> TLS --.    '--'  receive, answer, send
        '------------------------'          whatever goes wrong --> closed
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Final

from vdisk.errors import VdiskError
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.events import (
    ExportsWanted,
    ExportWanted,
    NegotiationAborted,
    SessionStarted,
    TlsWanted,
)
from vdisk.nbd.server_negotiation import ServerNegotiation
from vdisk.nbd.wire import OptionReply
from vdisk.nbd_serving.channel import Channel, TlsChannel
from vdisk.nbd_serving.limits import Account
from vdisk.nbd_serving.outbox import Outbox
from vdisk.nbd_serving.transmission import Transmission

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from vdisk.nbd.events import ServerHandshakeEvent
    from vdisk.nbd.session import Session
    from vdisk.nbd_server import Server
    from vdisk.nbd_serving.access import Peer
    from vdisk.nbd_serving.execution import Job, Outcome
    from vdisk.nbd_serving.export import Export

log = logging.getLogger("vdisk.nbd_server")

ROUNDS: Final = 8
"""Times that one client is turned to before the others."""

HANDSHAKE_READ: Final = 1 << 14
"""Bytes received at once in the handshake: its messages are small."""


class Phase(Enum):
    HANDSHAKE = auto()
    TLS = auto()
    QUESTION = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


class Client:
    """One connection of ``server``; lives in the thread of its event loop."""

    def __init__(self, server: Server, connection: socket.socket, peer: Peer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._account = Account(server.budget)
        self._channel = Channel(connection)
        self._outbox = Outbox(self._channel, self._account)
        self._negotiation = ServerNegotiation(tls=server.tls.mode)
        self._transmission: Transmission | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading = self._writing = False
        self._draining = False
        self.peer = peer
        self.phase = Phase.HANDSHAKE
        self.export: Export | None = None
        self.since = self._progress = monotonic()
        self._step(self._negotiate)

    # -- what the server asks --------------------------------------------------------------------

    def drain(self) -> None:
        """Take no more requests; end when those in flight are answered."""
        self._draining = True
        if self.phase is Phase.TRANSMISSION:
            self._step(self._continue)
        else:
            self.end("the server is ending")

    def end(self, reason: str, level: int = logging.INFO) -> None:
        """Close the connection now; what workers still do for it is dropped."""
        if self.phase is Phase.CLOSED:
            return
        served = self.phase is Phase.TRANSMISSION
        self.phase = Phase.CLOSED
        self._watch(reading=False, writing=False)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._channel.close()
        self._account.close()
        log.log(level, "%s: %s", self.peer, reason)
        self._server.client_ended(self, served=served)

    def overdue(self, now: float) -> str | None:
        """Why the client has had its time, or None."""
        limits = self._server.limits
        if self.phase is not Phase.TRANSMISSION:
            late = limits.handshake_seconds and now - self.since > limits.handshake_seconds
            return f"no handshake within {limits.handshake_seconds:g} s" if late else None
        assert self._transmission is not None
        waited = now - self._progress
        stuck = self._writing or (self._reading and self._transmission.in_message)
        if stuck and limits.stall_seconds and waited > limits.stall_seconds:
            side = "fetched nothing of its replies" if self._writing else "stopped in a request"
            return f"the client {side} for {limits.stall_seconds:g} s"
        idle = self._reading and not self._transmission.in_flight
        if idle and limits.idle_seconds and waited > limits.idle_seconds:
            return f"idle for {limits.idle_seconds:g} s"
        return None

    # -- events ----------------------------------------------------------------------------------

    def _step(self, action: Callable[[], None]) -> None:
        """Do something that may meet the end of the connection, and decide what to wait for."""
        if self.phase is Phase.CLOSED:
            return
        try:
            action()
            self._arrange()
        except RemoteProtocolError as error:
            self.end(f"broke the protocol: {error.message}", logging.WARNING)
        except VdiskError as error:
            self.end(f"a reply could not be finished: {error}", logging.ERROR)
        except ssl.SSLError as error:
            self.end(f"TLS failed: {error.reason or error}", logging.WARNING)
        except OSError as error:
            self.end(f"connection lost: {error.strerror or error}")

    def _arrange(self) -> None:
        """Wait for what is needed next, as the state says."""
        if self.phase is Phase.CLOSED:
            return
        writing = bool(self._outbox)
        if self.phase is Phase.TRANSMISSION:
            assert self._transmission is not None
            over = self._transmission.ended or self._draining
            if over and not writing and not self._transmission.in_flight:
                self.end("the server is ending" if self._draining else "disconnected")
                return
            self._watch(
                reading=not (over or self._transmission.must_wait or self._timer), writing=writing
            )
        elif self.phase is not Phase.TLS:
            self._watch(reading=self.phase is Phase.HANDSHAKE and not writing, writing=writing)

    def _watch(self, *, reading: bool, writing: bool) -> None:
        """Have the event loop tell when the socket is readable, or writable."""
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._progress = monotonic()
                self._loop.add_reader(self._channel.fileno(), self._step, self._readable)
            else:
                self._loop.remove_reader(self._channel.fileno())
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._progress = monotonic()
                self._loop.add_writer(self._channel.fileno(), self._step, self._writable)
            else:
                self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        self._progress = monotonic()
        match self.phase:
            case Phase.HANDSHAKE:
                self._receive_options()
            case Phase.TLS:
                self._shake_hands()
            case Phase.TRANSMISSION:
                self._serve()

    def _writable(self) -> None:
        self._progress = monotonic()
        if self.phase is Phase.TLS:
            self._shake_hands()
        elif self._outbox.send():
            if self.phase is Phase.TRANSMISSION:
                self._continue()
            elif self.phase is Phase.HANDSHAKE:
                self._negotiate()

    # -- handshake -------------------------------------------------------------------------------

    def _receive_options(self) -> None:
        buffer = self._server.receive_buffer[:HANDSHAKE_READ]
        try:
            count = self._channel.recv_into(buffer)
        except BlockingIOError:
            return
        if count:
            self._negotiation.receive_data(buffer[:count])
        else:
            self._negotiation.receive_eof()
        self._negotiate()

    def _negotiate(self) -> None:
        """Answer options until input, an answer, or room in the socket is missing."""
        while self.phase is Phase.HANDSHAKE and not self._outbox:
            event = self._negotiation.next_event()
            data = self._negotiation.data_to_send()
            if data:
                self._outbox.push([data])
                self._outbox.send()
            if event is not None:
                self._answer(event)
            elif not data:
                return

    def _answer(self, event: ServerHandshakeEvent) -> None:
        match event:
            case ExportWanted(name=name):
                self._begin_task(self._find_export(name))
            case ExportsWanted():
                self._begin_task(self._list_exports())
            case TlsWanted():
                self._start_tls()
            case SessionStarted(session=session):
                self._start_transmission(session)
            case NegotiationAborted(reason=reason):
                self.end(f"left in the handshake: {reason}", logging.DEBUG)

    def _begin_task(self, work: Coroutine[None, None, None]) -> None:
        """Answer a question of the machine, now or when images have been opened for it."""
        self.phase = Phase.QUESTION
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._question_answered)

    def _question_answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or self.phase is Phase.CLOSED:
            return
        task.result()
        self.phase = Phase.HANDSHAKE
        self._step(self._negotiate)

    async def _find_export(self, name: str) -> None:
        try:
            found = await self._server.lease(self, name)
        except VdiskError as error:
            log.warning("%s: export %r cannot be opened: %s", self.peer, name, error)
            self._negotiation.refuse(OptionReply.NBD_REP_ERR_UNKNOWN, "it cannot be opened")
            return
        if found is None:
            log.info("%s: there is no export %r for it", self.peer, name)
            self._negotiation.refuse(
                OptionReply.NBD_REP_ERR_UNKNOWN, f"export {name!r} not present"
            )
            return
        self._negotiation.send_export(found.info(name, self._server.limits.largest_request))

    async def _list_exports(self) -> None:
        self._negotiation.send_exports(await self._server.list_for(self.peer))

    # -- TLS -------------------------------------------------------------------------------------

    def _start_tls(self) -> None:
        context = self._server.tls.context
        assert context is not None
        if self._outbox:
            raise RemoteProtocolError("does not read the answer to NBD_OPT_STARTTLS")
        self.phase = Phase.TLS
        self._watch(reading=False, writing=False)
        self._channel = TlsChannel(self._channel, context)
        self._outbox.channel = self._channel
        self._shake_hands()

    def _shake_hands(self) -> None:
        assert isinstance(self._channel, TlsChannel)
        waits_to_write = self._channel.shake_hands()
        if waits_to_write is not None:
            self._watch(reading=not waits_to_write, writing=waits_to_write)
            return
        self._watch(reading=False, writing=False)
        self.peer = self.peer.with_certificate(self._channel.certificate())
        self.phase = Phase.HANDSHAKE
        self._negotiation.tls_started()
        # The first options may have come with the end of TLS's own handshake.
        self._receive_options()

    # -- transmission ----------------------------------------------------------------------------

    def _start_transmission(self, session: Session) -> None:
        assert self.export is not None
        self.phase = Phase.TRANSMISSION
        self._transmission = Transmission(
            session,
            self.export,
            limits=self._server.limits,
            account=self._account,
            outbox=self._outbox,
            buffer=self._server.send_buffer,
            pace=self._server.pace,
            payloads=self._server.payloads,
            submit=self._submit,
            alone=self._server.has_one_client,
            fast=self._server.fast,
        )
        how = [session.headers.value, "TLS" if session.tls else "plain"]
        log.info("%s: uses export %r (%s)", self.peer, self.export.name, ", ".join(how))
        self._transmission.received(memoryview(self._negotiation.trailing_data))
        self._transmission.end_of_wakeup()
        self._serve()

    def _serve(self) -> None:
        """Receive and answer, until there is nothing more or it is somebody else's turn."""
        transmission = self._transmission
        assert transmission is not None
        try:
            for _ in range(ROUNDS):
                if transmission.must_wait or self._draining:
                    break
                transmission.receive(self._server.receive_buffer)
                transmission.end_of_wakeup()
            else:
                self._loop.call_soon(self._step, self._continue)
        except BlockingIOError:
            pass
        self._delay(transmission)

    def _continue(self) -> None:
        """Something that was waited for has come: go on with what was held back."""
        transmission = self._transmission
        assert transmission is not None
        self._outbox.send()
        if transmission.halted and not self._outbox and not self._draining:
            transmission.resume()
            transmission.end_of_wakeup()
        self._serve()

    def _delay(self, transmission: Transmission) -> None:
        """Let the throttle's time pass before anything else is received."""
        seconds = transmission.delay(monotonic())
        if (seconds or transmission.throttled) and self._timer is None:
            self._timer = self._loop.call_later(seconds, self._step, self._delay_over)

    def _delay_over(self) -> None:
        self._timer = None
        self._continue()

    def _submit(self, job: Job, done: Callable[[list[Outcome]], None]) -> None:
        """Run a job in a worker thread; ``done`` is called with what it returns."""

        def finished() -> None:
            job.export.jobs -= 1
            try:
                outcomes = future.result()
            except BaseException:
                self.end("a defect of the server, please report it", logging.ERROR)
                raise
            finally:
                self._server.job_ended(job.export)
            if self.phase is not Phase.CLOSED:
                done(outcomes)
                self._step(self._continue)

        job.export.jobs += 1
        future = self._server.workers.submit(job.run)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(finished))
