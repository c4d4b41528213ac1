"""Many requests under way in one connection, without a thread of its own.

A thread sends its request and then needs the answer.  The first one that waits becomes the
*receiver*: it receives for everybody until its own answer has come, and then promotes another
that waits::

    thread A   send ---- receive ------ (B's answer: wake B) --- (mine) -- promote C
    thread B      send -- sleep ............................ go on
    thread C        send -- sleep .......................................... receive ---

So a thread that is alone sends and receives by itself, with no hand-over, and bytes that were
read go from the socket right into its buffer.

Locks, outermost first: ``sending`` (whose requests go out as wholes, in order) and ``_state``
(the machine and who waits; never held while waiting for the network).
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

from vdisk.errors import ClosedError
from vdisk.nbd.client_transmission import ClientTransmission
from vdisk.nbd.errors import LocalProtocolError, RemoteProtocolError
from vdisk.nbd.events import ReplyDone, StatusReceived
from vdisk.nbd.wire import ErrorValue
from vdisk.stores._nbd.channel import ConnectionLostError
from vdisk.stores._nbd.requests import FLUSH, READ, Request, failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.errors import VdiskError
    from vdisk.stores._nbd.handshake import Opened

RECEIVE_SIZE = 1 << 16
"""Bytes received at once where it is not known whose they are: dozens of small replies.  What is
left of a payload after that comes straight into the buffer of the request."""

_SPARE_SIZE = 1 << 10
"""Bytes received beyond such a payload: the headers of what follows."""


class Connection:
    """One connection in the transmission phase.

    ``acknowledged``: called with each request that succeeded, in the order of the answers.
    ``lost``: why the connection is of no use any more; its unanswered requests are in
    ``unanswered``, for somebody to send again or to fail.
    """

    def __init__(self, opened: Opened, acknowledged: Callable[[Request], None]) -> None:
        self.name = opened.channel.name
        self.session = opened.session
        self.sending = threading.Lock()
        self.unanswered: dict[int, Request] = {}
        self.lost: VdiskError | None = None
        self._acknowledged = acknowledged
        self._channel = opened.channel
        self._machine = ClientTransmission(opened.session)
        self._machine.receive_data(opened.trailing)
        self._state = threading.Lock()
        self._receiving = False
        self._heir: Request | None = None
        """Whose thread was promoted, and has not begun to receive."""
        self._sleepers: dict[Request, None] = {}
        self._watchers: dict[Request, int] = {}
        self._inbox = memoryview(bytearray(RECEIVE_SIZE))
        self._spare = memoryview(bytearray(_SPARE_SIZE))

    def set_timeout(self, seconds: float | None) -> None:
        """How long the server may be silent while it owes an answer."""
        self._channel.set_timeout(seconds)

    # -- sending -----------------------------------------------------------------------------

    def send(self, request: Request) -> bool:
        """Send a request; false, and nothing happened, if the connection is lost.

        A connection that is lost while sending keeps the request among the unanswered.  Call
        it with ``sending`` held.
        """
        with self._state:
            if self.lost is not None:
                return False
            try:
                cookie, buffers = request.start(self._machine)
            except LocalProtocolError as error:
                error.path = self.name
                raise
            self.unanswered[cookie] = request
            request.connection = self
            request.sent += 1
        try:
            self._channel.send(buffers, self._receive_meanwhile)
        except BaseException as error:
            self._give_up(error)
        return True

    def _give_up(self, error: BaseException) -> None:
        """What is left halfway, by the network or by an interrupt, cannot be gone on with."""
        if not isinstance(error, ConnectionLostError | RemoteProtocolError):
            self.lose(ConnectionLostError("interrupted", path=self.name, errno=errno.EINTR))
            raise error
        self.lose(error)

    def _receive_meanwhile(self) -> bool:
        """There is no room to send: take what the server has to say, unless somebody does."""
        with self._state:
            if self._receiving or self.lost is not None:
                return False
            self._receiving = True
        try:
            while self._receive(wait=False):
                pass
        finally:
            self._pass_on()
        return True

    def make_room(self, depth: int) -> None:
        """Return when fewer than ``depth`` requests are under way; 1 waits for all of them."""
        with self._state:
            if len(self.unanswered) < depth or self.lost is not None:
                return
            watcher = Request(FLUSH)  # never sent: it stands for the answer to some other
            self._watchers[watcher] = depth
        self.wait(watcher)

    # -- alone -------------------------------------------------------------------------------

    def talk(self, request: Request) -> bool:
        """Send a request and receive its answer, where nobody else uses the connection.

        The shortest road for a thread with one small request at a time: the data of a read come
        right into its buffer, and the usual reply is recognised without taking it apart.  False:
        nothing happened.  Afterwards :meth:`wait`, for what became of it.
        """
        if not self._channel.receives_apart or not self.sending.acquire(blocking=False):
            return False
        try:
            with self._state:
                if self._receiving or not self._machine.at_boundary:
                    return False
                self._receiving = True
            try:
                sent = self.send(request)
            except BaseException:
                self._pass_on()
                raise
            cookie = next(iter(self.unanswered), 0)
        finally:
            self.sending.release()
        if sent:
            self._receive_for(request, cookie)
        else:
            self._pass_on()
        return sent

    def _receive_plain(self, request: Request, cookie: int) -> None:
        """Receive once, what is probably the usual reply to the only request."""
        replies = self._machine.plain_replies(cookie)
        if request.command is not READ:
            count = self._channel.receive_into(self._inbox) or 0
            with self._state:
                if self._inbox[:count] in replies:
                    self._answered_plainly(request, cookie)
                else:
                    self._machine.receive_data(self._inbox[:count])
                    self._take_events()
            return
        view, head = request.view, self._inbox[: len(replies[0])]
        assert view is not None
        count = self._channel.receive_apart(head, view, self._spare) - len(head)
        beyond = self._spare[: max(count - len(view), 0)]
        with self._state:
            if count >= len(view) and head == replies[0]:
                self._answered_plainly(request, cookie)
                if not len(beyond):
                    return
            else:
                self._machine.receive_data(head[: count + len(head)] if count < 0 else head)
                self._machine.receive_data(bytes(view[: max(count, 0)]))
            self._machine.receive_data(beyond)
            self._take_events()

    def _answered_plainly(self, request: Request, cookie: int) -> None:
        self._machine.answered(cookie)
        self._done(request, cookie)

    # -- receiving ---------------------------------------------------------------------------

    def wait(self, request: Request) -> bool:
        """Return when the request has its answer; false if the connection was lost before."""
        while not request.done and self.lost is None:
            if self._take_turn(request):
                self._receive_for(request)
            elif request.waiting is not None:
                self._sleep(request, request.waiting)
        return request.done

    def _sleep(self, request: Request, waiting: threading.Lock) -> None:
        try:
            waiting.acquire()
        except BaseException:  # an interrupt: this thread will not receive for anybody
            with self._state:
                self._sleepers.pop(request, None)
                chosen = self._heir is request
            if chosen:
                self._pass_on()
            raise

    def _take_turn(self, request: Request) -> bool:
        """Become the receiver; false: sleep on ``request.waiting``, or there is an answer."""
        with self._state:
            if self._heir is request:
                self._heir = None
                return True
            request.waiting = None
            if request.done or self.lost is not None:
                return False
            if not self._receiving:
                self._receiving = True
                return True
            request.waiting = threading.Lock()
            request.waiting.acquire()
            self._sleepers[request] = None
            return False

    def _receive_for(self, request: Request, cookie: int = 0) -> None:
        """Receive until it is answered; ``cookie``: of a request that is the only one."""
        try:
            if cookie and self.lost is None:
                self._receive_plain(request, cookie)
            while not request.done and self.lost is None:
                self._receive(wait=True)
        except BaseException as error:
            self._give_up(error)
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Stop receiving; another that waits takes over."""
        with self._state:
            self._heir = None
            self._receiving = bool(self._sleepers) and self.lost is None
            if self._receiving:
                self._heir = next(iter(self._sleepers))
                self._wake(self._heir)

    def _wake(self, request: Request) -> None:
        del self._sleepers[request]
        assert request.waiting is not None
        request.waiting.release()

    def _receive(self, *, wait: bool) -> bool:
        """Receive once, and answer the requests that this completes; false: nothing was there."""
        target = self._machine.payload_buffer
        if target is None:
            count = self._channel.receive_into(self._inbox, wait=wait)
            if count is None:
                return False
            with self._state:
                self._machine.receive_data(self._inbox[:count])
                self._take_events()
        elif wait:
            self._take_payload(target, self._channel.receive_apart(target, self._spare))
        else:
            count = self._channel.receive_into(target, wait=False)
            if count is None:
                return False
            self._take_payload(target, count)
        return True

    def _take_payload(self, target: memoryview, count: int) -> None:
        """``count`` bytes came: into ``target``, then into the spare buffer."""
        inside = min(count, len(target))
        with self._state:
            self._machine.payload_received(inside)
            if count > inside:
                self._machine.receive_data(self._spare[: count - inside])
            self._take_events()

    def _take_events(self) -> None:
        while (event := self._machine.next_event()) is not None:
            if isinstance(event, ReplyDone):
                self._answer(event)
            elif isinstance(event, StatusReceived):
                self.unanswered[event.cookie].status.append(event)

    def _answer(self, reply: ReplyDone) -> None:
        if reply.error is not None and reply.error.value is ErrorValue.NBD_ESHUTDOWN:
            # Not done, and nothing will be: the request is one of a lost connection.
            raise ConnectionLostError(
                "the server is shutting down", path=self.name, errno=errno.ESHUTDOWN
            )
        request = self.unanswered[reply.cookie]
        if reply.error is not None:
            request.error = failure(request, reply.error, self.name)
        self._done(request, reply.cookie)

    def _done(self, request: Request, cookie: int) -> None:
        """A request has its answer, ``error`` if that is one."""
        del self.unanswered[cookie]
        if request.error is None:
            self._acknowledged(request)
        self._finish(request)
        for watcher, depth in list(self._watchers.items()):
            if len(self.unanswered) < depth:
                del self._watchers[watcher]
                self._finish(watcher)

    def _finish(self, request: Request) -> None:
        request.done = True
        if request in self._sleepers:
            self._wake(request)

    # -- its end -----------------------------------------------------------------------------

    def lose(self, error: VdiskError) -> None:
        """Give the connection up: nobody waits for it any longer."""
        with self._state:
            if self.lost is None:
                error.path = error.path or self.name
                self.lost = error
            if self._heir is not None:  # it will not begin
                self._heir, self._receiving = None, False
            for request in list(self._sleepers):
                self._wake(request)
        self._channel.shut_down()

    def retire(self) -> None:
        """Let the requests under way be answered, take no others, and leave."""
        with self.sending:
            self.make_room(1)
            self._leave()

    def disconnect(self) -> None:
        """Leave, whatever is under way."""
        if self.sending.acquire(timeout=GOODBYE_TIMEOUT):
            try:
                self._leave()
            finally:
                self.sending.release()
        self.lose(ClosedError("the connection was closed"))

    def _leave(self) -> None:
        """Say goodbye (NBD_CMD_DISC), and close."""
        if self.lost is None:
            try:
                with self._state:
                    buffers = self._machine.disconnect()
                self._channel.set_timeout(GOODBYE_TIMEOUT)
                self._channel.send(buffers, self._receive_meanwhile)
            except BaseException as error:
                self._give_up(error)
        self.lose(ClosedError("the connection was closed"))
        self._await_receiver()
        self._channel.close()

    def _await_receiver(self) -> None:
        """Whoever receives has been told; until it stops, a buffer of a request may change."""
        deadline = time.monotonic() + GOODBYE_TIMEOUT
        while self._receiving and time.monotonic() < deadline:
            time.sleep(0.001)


GOODBYE_TIMEOUT = 5.0
"""Seconds that a server which reads nothing may hold up a client that leaves."""
