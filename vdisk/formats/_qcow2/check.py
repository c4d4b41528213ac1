"""Is the image consistent?  What refers to each cluster, against what the image says of it.

::

    survey      every table is read; references to host clusters are counted (census)
    compare     census against the stored refcounts: too low is corruption, too high a leak;
                COPIED flags against the refcounts: set where, and only where, they are 1
    repair      see ``repair``; then both once more

The numbers are those of ``qemu-img check`` (tests/interop/test_check.py lists every exception
by name), except that one wrong thing counts once: an entry of a table that several others
share, an entry past the end of the file whose COPIED flag is then wrong as well.  Things that
QEMU does not look at count too: refcounts that hold, but for a cluster of the active L1 table
which something else uses; the COPIED flag without a cluster; zero clusters in version 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.census import join_digits, split_digits
from vdisk.formats._qcow2.findings import CheckResult, Finding
from vdisk.formats._qcow2.survey import Survey

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Collection, Iterator

    from vdisk.formats.qcow2 import Qcow2Image

__all__ = ["REPAIRS", "CheckResult", "Comparison", "Finding", "check", "examine"]

REPAIRS = frozenset({"leaks", "errors"})

_MARKS = layout.DIRTY | layout.CORRUPT
"""What an image says of itself that a successful repair makes untrue."""

_UNCOUNTED_STEP = 1 << 16
"""Clusters compared at once behind those that the refcount table describes."""

_IS_ONE = bytes(255 * (cell == 1) for cell in range(256))
_IS_NOT_ONE = bytes(255 * (cell != 1) for cell in range(256))
_IS_NOT_ZERO = bytes(255 * (cell != 0) for cell in range(256))


def check(
    image: Qcow2Image,
    repair: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Check an image and, if asked, repair it; see :meth:`Qcow2Image.check`."""
    if not REPAIRS.issuperset(repair):
        raise InvalidRequestError(f"repairs are {', '.join(sorted(REPAIRS))}; not {repair!r}")
    core = image._core
    with core.gate.alone:
        if not core.readonly:
            core.settle()
        comparison = examine(image, progress)
        result = comparison.result()
        marked = core.header.incompatible_features & _MARKS
        if not repair or (result.clean and not marked and not comparison.counts_past_end):
            return result
        from vdisk.formats._qcow2.repair import Repair

        Repair(image, comparison, repair).run()
        after = examine(image, progress).result()
        if not after.corruptions and not after.check_errors:
            with core.header_file.changing() as header:
                header.incompatible_features &= ~_MARKS
            core.stale_counts = False
        return after._replace(
            corruptions_fixed=max(result.corruptions - after.corruptions, 0),
            leaks_fixed=max(result.leaks - after.leaks, 0),
            findings=result.findings,
            remaining=after.findings,
        )


def examine(image: Qcow2Image, progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Survey the image and compare, without changing anything."""
    comparison = Comparison(Survey(image._core, progress).run())
    comparison.run()
    return comparison


class Comparison:
    """Holds the census of a survey against the stored refcounts, a refcount block at a time.

    ``wrong_blocks``: numbers of the refcount blocks that hold (or lack) a wrong count.
    ``copied_wrong``: a COPIED flag disagrees with its refcount.
    ``counts_past_end``: clusters behind the end of the file are counted.  As in QEMU that is no
    leak yet, but it becomes one when the file grows, so that a repair unsets these counts.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.report = survey.report
        self.census = survey.census
        self.bits = survey.header.refcount_bits
        self.block_entries = survey.cluster_size * 8 // self.bits
        self.wrong_blocks: list[int] = []
        self.copied_wrong = False
        self.counts_past_end = False
        self._end = 0

    def run(self) -> None:
        """Report what does not agree."""
        self._end = self.census.end()
        for index, offset in enumerate(self.survey.refcount_blocks):
            first = index * self.block_entries
            if first >= self.survey.clusters:
                break
            self._compare(first, self._clipped(first, self.block_entries), self.stored(offset))
            self.survey.step()
        behind = len(self.survey.refcount_blocks) * self.block_entries
        for first in range(behind, self.survey.clusters, _UNCOUNTED_STEP):
            self._compare(first, self._clipped(first, _UNCOUNTED_STEP), [])
        self._check_active_l1()
        if not self.report.corruptions:  # an entry may still refer to something there
            self._look_past_end()

    def _look_past_end(self) -> None:
        clusters, blocks, seen = self.survey.clusters, self.survey.refcount_blocks, {0}
        for index in range(clusters // self.block_entries, len(blocks)):
            if blocks[index] in seen:
                continue
            seen.add(blocks[index])
            inside = max(clusters - index * self.block_entries, 0)
            if any(digit[inside:].strip(b"\0") for digit in self.stored(blocks[index])):
                self.counts_past_end = True
                if index not in self.wrong_blocks:
                    self.wrong_blocks.append(index)

    def _clipped(self, first: int, count: int) -> int:
        return min(count, self.survey.clusters - first)

    def stored(self, offset: int) -> list[bytes]:
        """The counts in the refcount block at ``offset``, as digits; none if there is no block."""
        if offset:
            block = self.survey.read("refcount block", offset, self.survey.cluster_size)
            if block is not None:
                return split_digits(block, self.bits)
        return []

    def _compare(self, first: int, count: int, stored: list[bytes]) -> None:
        found = self.census.digits(first, first + count)
        zeroes = bytes(count)
        stored = [digit[:count] for digit in stored] or [zeroes]
        if any(digit != zeroes for digit in stored):
            tail = [len(digit.rstrip(b"\0")) for digit in stored]
            self._end = max(self._end, first + max(tail))
        found += [zeroes] * (len(stored) - len(found))
        stored += [zeroes] * (len(found) - len(stored))
        if found != stored:
            self.wrong_blocks.append(first // self.block_entries)
            self._report_counts(first, join_digits(stored), join_digits(found))
        self._check_copied(first, count, stored)

    def _report_counts(self, first: int, stored: array[int], found: array[int]) -> None:
        for index, length in _equal_pairs(stored, found):
            self._report_run(first + index, length, stored[index], found[index])

    def _report_run(self, cluster: int, length: int, stored: int, found: int) -> None:
        if stored == found:
            return
        offset = cluster << self.survey.cluster_bits
        which = "1 cluster" if length == 1 else f"{length} clusters"
        text = f"{which} from cluster {cluster} on: refcount {stored}, but {found} references"
        if stored < found:
            self.report.corruption(text, offset, length)
        else:
            self.report.leak(text, offset, length)

    def _check_copied(self, first: int, count: int, stored: list[bytes]) -> None:
        """The flags of active entries that refer to these clusters, against the stored counts."""
        owned = bytes(self.census.owned[first : first + count])
        shared = bytes(self.census.shared[first : first + count])
        if owned.count(0) == shared.count(0) == count:
            return
        several = 0
        for digit in stored[1:]:
            several |= int.from_bytes(digit.translate(_IS_NOT_ZERO), "big")
        one = int.from_bytes(stored[0].translate(_IS_ONE), "big") & ~several
        not_one = int.from_bytes(stored[0].translate(_IS_NOT_ONE), "big") | several
        self._report_flags(first, int.from_bytes(owned, "big") & not_one, count, "set", stored)
        self._report_flags(first, int.from_bytes(shared, "big") & one, count, "unset", stored)

    def _report_flags(
        self, first: int, wrong: int, count: int, state: str, stored: list[bytes]
    ) -> None:
        """``wrong``: a byte a cluster, how many entries refer to it with the wrong flag."""
        if not wrong:
            return
        self.copied_wrong = True
        refcounts = join_digits(stored)
        for index, entries in enumerate(wrong.to_bytes(count, "big")):
            if entries:
                self.report.corruption(
                    f"the COPIED flag is {state} in {entries} table entries that refer to cluster "
                    f"{first + index}, whose refcount is {refcounts[index]}",
                    (first + index) << self.survey.cluster_bits,
                    entries,
                )

    def _check_active_l1(self) -> None:
        """The active L1 table is written in place, so nothing else may stand in its clusters."""
        active = (table for table in self.survey.l1_tables.values() if table.active)
        for cluster in (c for table in active for c in self.survey.shared_clusters(table)):
            stored = self.stored_count(cluster)
            references = self.census.count(cluster)
            self.report.corruption(
                f"cluster {cluster} of the active L1 table has {references - 1} other uses",
                cluster << self.survey.cluster_bits,
                count=int(stored == references),  # else it is counted already
            )

    def stored_count(self, cluster: int) -> int:
        """The stored refcount of one cluster."""
        index, within = divmod(cluster, self.block_entries)
        blocks = self.survey.refcount_blocks
        digits = self.stored(blocks[index]) if index < len(blocks) else []
        return sum(digit[within] << 8 * level for level, digit in enumerate(digits))

    def result(self) -> CheckResult:
        """All numbers."""
        survey, report, scanner = self.survey, self.report, self.survey.scanner
        return CheckResult(
            image_end_offset=self._end << survey.cluster_bits,
            check_errors=report.errors,
            corruptions=report.corruptions,
            leaks=report.leaks,
            corruptions_fixed=0,
            leaks_fixed=0,
            total_clusters=-(-survey.header.size // survey.cluster_size),
            allocated_clusters=scanner.allocated,
            fragmented_clusters=scanner.fragmented,
            compressed_clusters=scanner.compressed,
            findings=tuple(report.findings),
        )


def _equal_pairs(stored: array[int], found: array[int]) -> Iterator[tuple[int, int]]:
    """(index, length) of the runs in which both numbers stay the same."""
    start, previous = 0, (stored[0], found[0])
    for index, pair in enumerate(zip(stored, found, strict=True)):
        if pair != previous:
            yield start, index - start
            start, previous = index, pair
    yield start, len(stored) - start
