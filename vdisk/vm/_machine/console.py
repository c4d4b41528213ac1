"""The far end of a serial line: what the guest wrote, kept for readers, and what it is sent.

Both directions are bounded.  Of the guest's output the newest :data:`KEPT` bytes stay; input waits
here until the UART has room.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.serial import Uart

KEPT = 1 << 20
"""Bytes of output to look back at: a boot's messages are a tenth of this."""
MOST_INPUT = 1 << 20
FEED_PAUSE = 5_000_000
"""ns of guest time until a UART whose guest does not read is looked at again."""


class SerialConsole:
    """A :class:`~vdisk.vm.devices.serial.Stream` that programs read and write.

    Positions count all bytes since power-on, so a reader notices what it has missed.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._start = 0  # position of the first byte kept
        self._change = threading.Condition()
        self._uart: Uart | None = None
        self._deliver: Callable[[bytes], None] | None = None
        self._taps: list[Callable[[bytes], None]] = []
        self._input = bytearray()
        self._read_position = 0

    def connect(self, uart: Uart, clock: Clock) -> None:
        """Say where input goes, and which clock tells when to look for room again."""
        self._uart, self._clock = uart, clock
        self._again = clock.timer(self._feed)
        uart.plug(self)

    def deliver_by(self, deliver: Callable[[bytes], None]) -> None:
        """Let :meth:`send` hand its bytes to ``deliver``, which calls :meth:`arrive` in time."""
        self._deliver = deliver

    # -- from the guest ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Called by the UART."""
        with self._change:
            self._kept += data
            excess = len(self._kept) - KEPT
            if excess > KEPT // 4:  # not for each byte
                del self._kept[:excess]
                self._start += excess
            self._change.notify_all()
        for tap in self._taps:
            tap(data)

    def tap(self, callback: Callable[[bytes], None]) -> None:
        """Call ``callback(data)`` for all further output, with the bus lock held."""
        self._taps.append(callback)

    @property
    def position(self) -> int:
        """Bytes written by the guest since power-on."""
        return self._start + len(self._kept)

    def output(self, since: int = 0) -> bytes:
        """What was written from position ``since`` on, as far as it is kept."""
        with self._change:
            return bytes(self._kept[max(since - self._start, 0) :])

    def read(self, timeout: float | None = 0) -> bytes:
        """All that came since the last read; waits for something up to ``timeout`` seconds."""
        with self._change:
            self._change.wait_for(lambda: self._read_position < self.position, timeout)
            data = bytes(self._kept[max(self._read_position - self._start, 0) :])
            self._read_position = self.position
            return data

    def wait_for(
        self, wanted: bytes, since: int, timeout: float | None, stopped: Callable[[], bool]
    ) -> int | None:
        """Wait until ``wanted`` was written after ``since``: the position behind it.

        None: it did not come within ``timeout`` seconds, or ``stopped()`` became true.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        searched = since
        with self._change:
            while True:
                begin = max(searched - self._start, 0)
                found = self._kept.find(wanted, begin)
                if found >= 0:
                    return self._start + found + len(wanted)
                searched = max(since, self.position - len(wanted) + 1)
                left = None if deadline is None else deadline - time.monotonic()
                if stopped() or (left is not None and left <= 0):
                    return None
                self._change.wait(left)

    def wake(self) -> None:
        """Let waiters look whether the machine has stopped."""
        with self._change:
            self._change.notify_all()

    # -- to the guest ------------------------------------------------------------------------------

    def send(self, data: bytes | str) -> None:
        """Type on the line; text is sent as UTF-8.

        Raises :class:`InvalidRequestError` where a guest that does not read has too much waiting.
        """
        if self._deliver is None:
            raise InvalidRequestError("this serial line leads to no machine")
        self._deliver(data.encode() if isinstance(data, str) else bytes(data))

    def arrive(self, data: bytes) -> None:
        """Take bytes for the guest; the bus lock is held."""
        if len(self._input) + len(data) > MOST_INPUT:
            raise InvalidRequestError("the guest does not read its serial line")
        self._input += data
        self._feed()

    def _feed(self) -> None:
        """Give the UART what it has room for; look again while something is left."""
        assert self._uart is not None
        room = self._uart.space()
        part = bytes(self._input[:room])
        del self._input[:room]
        if part:
            self._uart.feed(part)
        if self._input:
            self._again.arm(self._clock.now() + FEED_PAUSE)
