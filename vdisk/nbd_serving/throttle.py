r"""How fast an export may be used: requests and bytes a second, by leaky buckets.

A request is let in while no bucket overflows, and then fills them by what it costs; they empty
at the rate that was set.  A bucket holds a tenth of a second's worth, so a client that was
quiet may have a short burst, and one request larger than that simply makes the next wait::

    level ^  *    *    *         * a request comes in
          |  |\   |\   |\          slope: the rate
          +--+-\--+-\--+-\---> time
"""

from __future__ import annotations

from vdisk.errors import InvalidRequestError

BURST_SECONDS = 0.1
"""How much of a second's worth may come at once: small beside what people notice."""


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
