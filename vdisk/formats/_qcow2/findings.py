"""What a check found, in numbers and in words."""

from __future__ import annotations

from typing import NamedTuple

MAX_FINDINGS = 1000
"""Findings kept as text; the numbers count all of them."""


class Finding(NamedTuple):
    """One thing that is wrong.

    ``kind``: "corruption" (a rule of the format is broken, data are at risk), "leak" (room that
    nothing uses is marked as used) or "error" (something could not be checked).  ``offset``:
    bytes, in the image's file, of what is wrong or of the cluster it concerns.
    """

    kind: str
    message: str
    offset: int | None = None

    def __str__(self) -> str:
        where = "" if self.offset is None else f"offset {self.offset:#x}: "
        return f"{self.kind}: {where}{self.message}"


class CheckResult(NamedTuple):
    """The outcome of a check, by the names of QEMU's ImageCheck.

    The numbers are those after a repair; ``corruptions_fixed`` and ``leaks_fixed`` say what it
    achieved.  ``findings``: in words, the first :data:`MAX_FINDINGS` of them; after a repair,
    of what was found before it.  ``remaining``: the same of what is left.
    """

    image_end_offset: int
    check_errors: int
    corruptions: int
    leaks: int
    corruptions_fixed: int
    leaks_fixed: int
    total_clusters: int
    allocated_clusters: int
    fragmented_clusters: int
    compressed_clusters: int
    findings: tuple[Finding, ...] = ()
    remaining: tuple[Finding, ...] = ()

    @property
    def clean(self) -> bool:
        """Nothing is wrong (any more)."""
        return not (self.check_errors or self.corruptions or self.leaks)


class Report:
    """Collects findings and their numbers."""

    def __init__(self) -> None:
        self.corruptions = 0
        self.leaks = 0
        self.errors = 0
        self.findings: list[Finding] = []

    @property
    def full(self) -> bool:
        """No more findings are kept, so nobody need put them in words."""
        return len(self.findings) >= MAX_FINDINGS

    def corruption(self, message: str, offset: int | None = None, count: int = 1) -> None:
        """``count`` broken rules, told in one message."""
        self.corruptions += count
        self._keep(Finding("corruption", message, offset))

    def leak(self, message: str, offset: int, count: int) -> None:
        """``count`` leaked clusters, told in one message."""
        self.leaks += count
        self._keep(Finding("leak", message, offset))

    def error(self, message: str, offset: int | None = None) -> None:
        """Something could not be checked."""
        self.errors += 1
        self._keep(Finding("error", message, offset))

    def _keep(self, finding: Finding) -> None:
        if not self.full:
            self.findings.append(finding)
