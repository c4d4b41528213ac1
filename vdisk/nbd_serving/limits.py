"""How much clients can make the server hold and wait: every bound, and why it is that large.

What one client has in flight is counted in its :class:`Account`, what all have in the
:class:`Budget`.  A client at a bound is not read from until some of its requests are answered.
The total never stops a client that has nothing in flight, so however much the others hold, each
gets on, one request at a time.  The server's memory is thus bounded by::

    total_bytes + connections x (largest_request + 2 MiB of buffers)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from vdisk.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of one server; times are in seconds, 0 meaning no bound."""

    connections: int = 256
    """Clients at once.  When one more comes, the oldest unfinished handshake is ended for it."""
    client_requests: int = 1024
    """Unanswered requests of one client: the deepest queue of any known client (fio's)."""
    client_bytes: int = 64 << 20
    """Data of the unanswered requests of one client: two of the largest QEMU and libnbd send."""
    total_requests: int = 1 << 14
    """Unanswered requests of all clients: 16 with the deepest queues."""
    total_bytes: int = 512 << 20
    """Data of the unanswered requests of all clients: eight with all they may have."""
    largest_request: int = 32 << 20
    """Data of one request, advertised to clients: the specification's default."""
    handshake_seconds: float = 30
    """From the connection to the first request's turn: TLS and a few small messages."""
    stall_seconds: float = 60
    """How long a client may stay in the middle of a message, its own or one sent to it."""
    idle_seconds: float = 0
    """How long a client may ask for nothing.  Unbounded: a mounted disk may well be quiet."""
    drain_seconds: float = 10
    """How long a server that is ending waits for answers to be fetched."""
    workers: int = 16
    """Threads that wait for disks: what keeps one busy, without slowing the others."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name.endswith("seconds")
            if value < 0 or (value == 0 and not may_be_zero):
                raise InvalidRequestError(f"the limit {field.name} cannot be {value}")
        if not 4096 <= self.largest_request < 1 << 32:
            raise InvalidRequestError(
                f"the largest request, {self.largest_request}, is not between 4096 and 2^32-1"
            )


class Budget:
    """What the requests in flight of all clients hold."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self.requests = 0
        self.bytes = 0


class Account:
    """What the requests in flight of one client hold."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.requests = 0
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether the client must wait for one of its own requests to be answered."""
        limits = self._budget.limits
        return (
            self.requests >= limits.client_requests
            or self.bytes >= limits.client_bytes
            or (self._budget.bytes >= limits.total_bytes and self.bytes > 0)
            or (self._budget.requests >= limits.total_requests and self.requests > 0)
        )

    def charge(self, size: int, requests: int = 0) -> None:
        self.requests += requests
        self.bytes += size
        self._budget.requests += requests
        self._budget.bytes += size

    def release(self, size: int, requests: int = 0) -> None:
        self.charge(-size, -requests)

    def close(self) -> None:
        """Give back everything that is still charged."""
        self.release(self.bytes, self.requests)
