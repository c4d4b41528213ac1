"""The other end of a guest's TCP connection (RFC 9293), over a wire inside this machine.

What a guest sends goes to a socket of the host, what the socket gives goes to the guest::

    guest  --- segments --->  [ to_host ]  --- send --->  socket
           <-- segments ----  [ to_guest ]  <-- recv ---

Both buffers are bounded, and both sides are held back when one is full: the guest by our window,
the socket by not being read.  The wire loses a segment only when the guest's ring is full, so
there is no congestion to avoid: what was not acknowledged in time is sent again from there on.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol

from vdisk.vm.net.packets import ACK, FIN, MTU, PSH, RST, SYN

if TYPE_CHECKING:
    from vdisk.vm.net.packets import Segment

TO_GUEST: Final = 256 << 10
"""Bytes that wait for the guest to acknowledge them."""
TO_HOST: Final = 256 << 10
"""Bytes that wait for the socket, and the window that the guest is shown."""
OUR_SCALE: Final = 3
IPV4_HEADERS, IPV6_HEADERS = 40, 60
SMALLEST_MSS: Final = 88

FIRST_TIMEOUT: Final = 200_000_000
LONGEST_TIMEOUT: Final = 10_000_000_000
MAX_RETRIES: Final = 10
"""Nanoseconds, and how often: about a minute until a guest that says nothing is given up."""

_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 1 << 31


class HostSide(Protocol):
    """A socket that does not block."""

    def send(self, data: memoryview) -> int:
        """How many bytes it took; 0: none now.  Raises ``OSError``."""

    def receive(self, limit: int) -> bytes | None:
        """Bytes; none at the end; None: not now.  Raises ``OSError``."""

    def shut_down(self) -> None:
        """There is no more to send."""

    def close(self, *, abort: bool = False) -> None:
        """The connection is over; ``abort``: in the middle."""

    def want(self, *, read: bool, write: bool) -> None:
        """What to be told of."""


class Wire(Protocol):
    """Where segments go, and how long the guest's adapter lets them be."""

    def largest_segment(self, connection: Connection) -> int:
        """Bytes of payload that the adapter takes at once, and cuts into segments."""

    @property
    def room(self) -> bool:
        """Whether the guest's adapter takes more."""

    def send(
        self,
        connection: Connection,
        sequence: int,
        flags: int,
        payload: bytes = b"",
        options: bytes = b"",
    ) -> None:
        """Send a segment with what the connection acknowledges and its window."""

    def finished(self, connection: Connection) -> None:
        """The connection is no more."""


class Connection:
    """One connection.  ``guest``, ``remote``: (address, port) of both ends, as the guest sees them.

    ``now``: nanoseconds, given to whatever may start or look at the timer.
    """

    def __init__(
        self,
        wire: Wire,
        host: HostSide,
        guest: tuple[bytes, int],
        remote: tuple[bytes, int],
        sequence: int,
    ) -> None:
        self.guest = guest
        self.remote = remote
        self.last_active = 0
        self.deadline: int | None = None
        """When to send again what was not acknowledged."""
        self.closed = False
        self._wire = wire
        self._host = host
        self._una = self._next = self._highest = sequence & _MASK
        """What was not acknowledged, is to be sent next, and was never sent, begins here."""
        self._syn_pending = True
        """Our SYN was not acknowledged yet."""
        self._connected = False
        """The socket is connected, and our SYN has been sent."""
        self._active = False
        """We opened the connection to the guest, not the guest to us."""
        self._expected = 0
        self._window = 0
        self._scales = (0, 0)  # the guest's, ours
        self._our_mss = MTU - (IPV4_HEADERS if len(guest[0]) == 4 else IPV6_HEADERS)
        self._mss = 536
        self._out = bytearray()
        self._in = bytearray()
        self._host_ended = self._guest_ended = self._fin_sent = self._fin_acked = False
        self._shut_down = False
        self._shown_window = 0
        self._retries = 0
        self._timeout = FIRST_TIMEOUT

    # -- what a segment says -----------------------------------------------------------------

    @property
    def acknowledgment(self) -> int:
        """The next byte that we expect of the guest."""
        return self._expected

    @property
    def waits_for_host(self) -> bool:
        """The socket is not connected yet."""
        return not self._connected

    def window(self) -> int:
        """The window field: what :data:`TO_HOST` has room for."""
        self._shown_window = max(TO_HOST - len(self._in), 0)
        scale = 0 if self._syn_pending else self._scales[1]  # that of a SYN is never scaled
        return min(self._shown_window >> scale, 0xFFFF)

    # -- opening -----------------------------------------------------------------------------

    def answer(self, syn: Segment) -> None:
        """The guest opens the connection; it is answered when the socket is connected."""
        self._take_syn(syn)
        self._host.want(read=False, write=True)

    def call(self, now: int) -> None:
        """Open the connection to the guest, for a socket that is connected already."""
        self._active = self._connected = True
        self._send_syn(now)

    def _take_syn(self, syn: Segment) -> None:
        self._expected = (syn.sequence + 1) & _MASK
        self._mss = min(max(syn.mss or 536, SMALLEST_MSS), self._our_mss)
        self._scales = (0, 0) if syn.scale is None else (syn.scale, OUR_SCALE)
        self._window = syn.window  # that of a SYN is never scaled

    def _send_syn(self, now: int) -> None:
        options = struct.pack("!BBH", 2, 4, self._our_mss)
        if self._active or self._scales[1]:
            options += bytes([1, 3, 3, OUR_SCALE])
        self._wire.send(self, self._una, SYN if self._active else SYN | ACK, b"", options)
        self._next = self._highest = (self._una + 1) & _MASK
        self._arm(now)

    def connected(self, now: int) -> None:
        """The socket is connected to where the guest wants to go."""
        self._connected = True
        self._host.want(read=True, write=False)
        self._send_syn(now)

    def refused(self) -> None:
        """There is nobody where the guest wants to go."""
        self._wire.send(self, 0, RST | ACK)
        self._end(abort=False)

    # -- from the guest ----------------------------------------------------------------------

    def segment(self, segment: Segment, now: int) -> None:
        """A segment of the guest."""
        self.last_active = now
        if segment.flags & RST:
            self._end(abort=True)
        elif segment.flags & SYN:
            self._late_syn(segment, now)
        elif segment.flags & ACK and not (self._active and self._syn_pending):
            if not self._acknowledged(segment, now):
                return
            self._take(segment)
            self._pass_on()
            self.output(now)
            self._look_at_end()

    def _late_syn(self, segment: Segment, now: int) -> None:
        """The guest's answer to our SYN, or its own SYN once more."""
        wanted = (self._una + 1) & _MASK
        if self._active and self._syn_pending:
            if segment.flags & ACK and segment.acknowledgment == wanted:
                self._take_syn(segment)
                self._una, self._syn_pending = wanted, False
                self._disarm()
                self._wire.send(self, self._next, ACK)
                self._host.want(read=True, write=False)
        elif self._connected and self._syn_pending:
            self._send_syn(now)

    def _acknowledged(self, segment: Segment, now: int) -> bool:
        """Take the acknowledgment and the window; False for one of what was never sent."""
        count = (segment.acknowledgment - self._una) & _MASK
        if count > (self._highest - self._una) & _MASK:
            if count < _HALF:  # not an old one
                self._wire.send(self, self._next, ACK)
                return False
            count = 0
        self._window = segment.window << self._scales[0]
        if not count:
            return True
        self._una = (self._una + count) & _MASK
        if self._syn_pending:
            self._syn_pending = False
            count -= 1
        data = min(count, len(self._out))
        del self._out[:data]
        if count > data and self._host_ended:
            self._fin_sent = self._fin_acked = True
        if (self._next - self._una) & _MASK >= _HALF:  # sent again, and acknowledged meanwhile
            self._next = self._una
        self._retries, self._timeout = 0, FIRST_TIMEOUT
        if self._una == self._next:
            self._disarm()
        else:
            self._arm(now)
        self._read_more()
        return True

    def _take(self, segment: Segment) -> None:
        """Take the data that come next; tell the guest what is expected."""
        payload, fin = segment.payload, bool(segment.flags & FIN)
        if not payload and not fin:
            if segment.sequence != self._expected:  # a probe of our window, or whether we live
                self._wire.send(self, self._next, ACK)
            return
        skip = (self._expected - segment.sequence) & _MASK
        if skip < _HALF and skip <= len(payload) and not self._guest_ended:
            fresh = payload[skip:]
            taken = fresh[: TO_HOST - len(self._in)]
            self._in += taken
            self._expected = (self._expected + len(taken)) & _MASK
            if fin and len(taken) == len(fresh):
                self._expected = (self._expected + 1) & _MASK
                self._guest_ended = True
        self._pass_on()
        self._wire.send(self, self._next, ACK)

    def _pass_on(self) -> None:
        """Give the socket what the guest has sent."""
        if self.closed or not self._connected:
            return
        try:
            while self._in:
                with memoryview(self._in) as view:
                    count = self._host.send(view)
                if not count:
                    break
                del self._in[:count]
        except OSError:
            self._break()
            return
        if self._guest_ended and not self._in and not self._shut_down:
            self._shut_down = True
            self._host.shut_down()
        self._want()

    def _want(self) -> None:
        read = not self._host_ended and len(self._out) < TO_GUEST and not self._syn_pending
        self._host.want(read=read, write=bool(self._in))

    # -- from the socket ---------------------------------------------------------------------

    def writable(self) -> None:
        """The socket takes more."""
        self._pass_on()
        if not self.closed and self._shown_window < self._our_mss <= TO_HOST - len(self._in):
            self._wire.send(self, self._next, ACK)  # the window is open again
        self._look_at_end()

    def readable(self, now: int) -> None:
        """The socket has bytes, or its end."""
        self.last_active = now
        try:
            data = self._host.receive(TO_GUEST - len(self._out))
        except OSError:
            self._break()
            return
        if data is not None:
            self._out += data
            self._host_ended = not data
        self._want()
        self.output(now)
        self._look_at_end()

    def _read_more(self) -> None:
        if not self._host_ended and len(self._out) < TO_GUEST // 2:
            self._want()

    # -- to the guest ------------------------------------------------------------------------

    def output(self, now: int) -> None:
        """Send what the guest's window and its adapter have room for."""
        if self.closed or self._syn_pending:
            return
        largest = max(self._wire.largest_segment(self) // self._mss, 1) * self._mss
        while self._wire.room:
            flying = (self._next - self._una) & _MASK
            size = min(len(self._out) - flying, self._window - flying, largest)
            if size <= 0:
                break
            last = flying + size == len(self._out)
            payload = bytes(self._out[flying : flying + size])
            self._wire.send(self, self._next, ACK | PSH if last else ACK, payload)
            self._sent(size)
        flying = (self._next - self._una) & _MASK
        if self._host_ended and not self._fin_sent and flying == len(self._out):
            self._wire.send(self, self._next, FIN | ACK)
            self._sent(1)
            self._fin_sent = True
        if self.deadline is None and (self._next != self._una or self._out):
            self._arm(now)

    def _sent(self, size: int) -> None:
        self._next = (self._next + size) & _MASK
        if (self._next - self._highest) & _MASK < _HALF:
            self._highest = self._next

    def segment_size(self) -> int:
        """Payload bytes of one segment on the wire, where a longer one is cut by the adapter."""
        return self._mss

    def timer(self, now: int) -> None:
        """The deadline is over: send again, or probe a closed window."""
        if self.closed or self.deadline is None or now < self.deadline:
            return
        self._retries += 1
        if self._retries > MAX_RETRIES:
            self._break()
            return
        self._timeout = min(2 * self._timeout, LONGEST_TIMEOUT)
        self.deadline = None
        if self._syn_pending:
            self._send_syn(now)
            return
        self._next = self._una
        self._fin_sent = False
        if self._out and not self._window and self._wire.room:
            self._wire.send(self, self._una, ACK, bytes(self._out[:1]))
            self._sent(1)
        self.output(now)
        if self.deadline is None and not self.closed:
            self._arm(now)

    def _arm(self, now: int) -> None:
        self.deadline = now + self._timeout

    def _disarm(self) -> None:
        self.deadline = None

    # -- the end -----------------------------------------------------------------------------

    def _look_at_end(self) -> None:
        """Both sides have said all, and know it."""
        if not self.closed and self._guest_ended and not self._in and self._fin_acked:
            self._end(abort=False)

    def _break(self) -> None:
        """The socket, or the guest, is gone."""
        if not self.closed:
            self._wire.send(self, self._next, RST | ACK)
            self._end(abort=True)

    def abort(self) -> None:
        """Somebody else needs the place."""
        self._break()

    def _end(self, *, abort: bool) -> None:
        if not self.closed:
            self.closed = True
            self._disarm()
            self._host.close(abort=abort)
            self._wire.finished(self)
