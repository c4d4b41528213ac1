"""How much a disk was used: requests, bytes and time by kind, and what failed."""

from __future__ import annotations

from vdisk.emu_block.requests import Operation


class Statistics:
    """Counters since the machine was made; each list has a place for every :class:`Operation`.

    ``nanoseconds``: between submission and completion, summed.  ``failed``: what the storage
    failed; ``invalid``: what was refused because it could never work.  ``at_once``: requests that
    were done before their submission returned, of all.
    """

    def __init__(self) -> None:
        kinds = len(Operation)
        self.operations = [0] * kinds
        self.bytes = [0] * kinds
        self.nanoseconds = [0] * kinds
        self.failed = [0] * kinds
        self.invalid = [0] * kinds
        self.at_once = 0

    def add(self, operation: int, size: int, nanoseconds: int) -> None:
        """A request succeeded."""
        self.operations[operation] += 1
        self.bytes[operation] += size
        self.nanoseconds[operation] += nanoseconds

    def as_dict(self) -> dict[str, dict[str, int]]:
        """{"read": {"operations": …, "bytes": …, "nanoseconds": …, "failed": …, "invalid": …}…}."""
        return {
            operation.name.lower(): {
                "operations": self.operations[operation],
                "bytes": self.bytes[operation],
                "nanoseconds": self.nanoseconds[operation],
                "failed": self.failed[operation],
                "invalid": self.invalid[operation],
            }
            for operation in Operation
        }
