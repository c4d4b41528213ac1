r"""How fast a device or an export may be used: requests and bytes a second, by leaky buckets.

A request is let in while no bucket overflows, and then fills them by what it costs; they empty
at the rate that was set.  A bucket holds a tenth of a second's worth, so a client that was
quiet may have a short burst, and one request larger than that simply makes the next wait::

    level ^  *    *    *         * a request comes in
          |  |\   |\   |\          slope: the rate
          +--+-\--+-\--+-\---> time
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from vdisk.block import close_all
from vdisk.errors import InvalidRequestError
from vdisk.filters.passing import Between
from vdisk.options import OptionBag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vdisk.block import BlockDevice

BURST_SECONDS = 0.1
"""How much of a second's worth may come at once: small beside what people notice."""
SHORTEST_WAIT = 1e-6
"""Seconds: what is left of a wait by rounding would be too short for the clock to move on."""


class Bucket:
    """One rate, in units a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._room = rate * BURST_SECONDS
        self._level = 0.0
        self._at = 0.0

    def delay(self, now: float) -> float:
        """Seconds until the next request may come in."""
        self._level = max(self._level - (now - self._at) * self._rate, 0.0)
        self._at = now
        return max(self._level - self._room, 0.0) / self._rate

    def fill(self, amount: float) -> None:
        self._level += amount


class Throttle:
    """``iops``: requests a second; ``bps``: bytes a second, read or written.  0: any."""

    def __init__(self, *, iops: float = 0, bps: float = 0) -> None:
        if iops < 0 or bps < 0:
            raise InvalidRequestError("a rate is not negative")
        self._requests = Bucket(iops) if iops else None
        self._bytes = Bucket(bps) if bps else None

    def delay(self, now: float) -> float:
        """Seconds until the next request may come in, by every rate."""
        buckets = (self._requests, self._bytes)
        return max((bucket.delay(now) for bucket in buckets if bucket), default=0.0)

    def admit(self, size: int) -> None:
        """A request of ``size`` bytes came in."""
        if self._requests:
            self._requests.fill(1)
        if self._bytes:
            self._bytes.fill(size)


class Throttled(Between):
    """``inner``, used no faster than ``limits`` allow; a request waits until it may begin.

    ``limits``: throttles and the kinds of requests, "read" or "write", that each is about.
    """

    def __init__(
        self,
        inner: BlockDevice,
        limits: Iterable[tuple[frozenset[str], Throttle]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._limits = list(limits)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()

    def _wait(self, kind: str, size: int) -> None:
        mine = [throttle for kinds, throttle in self._limits if kind in kinds]
        while True:
            with self._lock:
                now = self._clock()
                delay = max((throttle.delay(now) for throttle in mine), default=0.0)
                if not delay:
                    for throttle in mine:
                        throttle.admit(size)
                    return
            self._sleep(max(delay, SHORTEST_WAIT))

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._wait("read", len(view))
        self.inner.read_into(offset, view)

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        self._wait("read", sum(map(len, views)))
        self.inner.readv(offset, views)

    def _write(self, offset: int, view: memoryview) -> None:
        self._wait("write", len(view))
        self.inner.write(offset, view)

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self._wait("write", sum(map(len, views)))
        self.inner.writev(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._wait("write", length)
        self.inner.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        self._wait("write", length)
        self.inner.discard(offset, length)


def parse_limits(given: Mapping[str, object], owner: str) -> list[tuple[frozenset[str], Throttle]]:
    """The limits of :class:`Throttled` from options: ``{"iops-total": …, "bps-write": …}``.

    ``owner``: whose options they are, for the error about one that does not exist.
    """
    bag = OptionBag(given, owner)
    limits = []
    for key, kinds in _DIRECTIONS.items():
        iops, bps = bag.size(f"iops-{key}") or 0, bag.size(f"bps-{key}") or 0
        limits.append((kinds, Throttle(iops=iops, bps=bps)))
    bag.finish()
    return limits


class ThrottleDriver:
    """``{"driver": "throttle", "limits": {"iops-total": …, "bps-write": …}, "file": …}``."""

    children = ("file",)
    images: frozenset[str] = frozenset()

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> Throttled:
        try:
            given = options.take("limits", {})
            if not isinstance(given, dict):
                raise InvalidRequestError(f"{options.owner}: 'limits' holds iops-total and others")
            limits = parse_limits(given, f"{options.owner}: limits")
            options.finish()
            return Throttled(children["file"], limits)
        except BaseException:
            close_all(*children.values())
            raise


_DIRECTIONS = {
    "total": frozenset({"read", "write"}),
    "read": frozenset({"read"}),
    "write": frozenset({"write"}),
}

FILTER = ThrottleDriver()
