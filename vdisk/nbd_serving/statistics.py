"""What an export did: requests, bytes, errors and latencies of each command.

Plain numbers, changed by the event loop's thread alone, and once for a whole batch of requests.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from vdisk.nbd.wire import Command

LATENCY_BOUNDS: Final = (
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the histogram's buckets, seconds; from the page cache to a failing disk."""


class CommandStatistics:
    """Of one command; ``latencies[i]``: requests up to ``LATENCY_BOUNDS[i]``, the last: longer."""

    __slots__ = ("bytes", "errors", "latencies", "requests", "seconds")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        self.errors = 0
        self.seconds = 0.0
        self.latencies = [0] * (len(LATENCY_BOUNDS) + 1)

    def add(self, requests: int, size: int, seconds: float, errors: int = 0) -> None:
        """``requests`` of ``size`` bytes together took ``seconds`` each."""
        self.requests += requests
        self.bytes += size
        self.errors += errors
        self.seconds += seconds * requests
        self.latencies[bisect_left(LATENCY_BOUNDS, seconds)] += requests


class Statistics:
    """Of one export, by command; ``refused``: requests that were not valid."""

    def __init__(self) -> None:
        self.commands: dict[int, CommandStatistics] = {
            command: CommandStatistics()
            for command in Command
            if command is not Command.NBD_CMD_DISC
        }
        self.reads = self.commands[Command.NBD_CMD_READ]
        self.writes = self.commands[Command.NBD_CMD_WRITE]
        self.refused = 0

    @property
    def requests(self) -> int:
        """Requests answered, of every command."""
        return sum(command.requests for command in self.commands.values())
