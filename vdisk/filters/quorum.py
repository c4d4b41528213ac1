"""Several disks that should be one: written alike, read by vote.

::

    read      A     A     B        two of three say A: that is read, and where it is asked for
    becomes   A     A     A  <---  the third is written anew ("rewrite-corrupted")

A request succeeds when it does on as many children as the threshold says; a read also needs so
many of them to agree.  The options are those of QEMU's ``quorum``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import BlockDevice, Extent, Kind, close_all, merged
from vdisk.errors import DeviceError, InvalidRequestError, VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vdisk.options import OptionBag

READ_PATTERNS = ("quorum", "fifo")

VOTED_AT_ONCE = 1 << 20
"""Bytes that are read of every child before they are compared: bounds what is held in memory."""


class QuorumSettings(NamedTuple):
    """How votes are held.

    ``threshold``: children that must succeed, and agree.  ``fifo``: the first child that can be
    read is believed.  ``blkverify``: the two children must agree about everything.  ``rewrite``:
    children that were outvoted are written anew.
    """

    threshold: int
    fifo: bool = False
    blkverify: bool = False
    rewrite: bool = False

    def check(self, children: int) -> None:
        """Raise :class:`InvalidRequestError` where so many children cannot keep to it."""
        if children < 1:
            raise InvalidRequestError("a quorum needs children: children.0, children.1, …")
        if not 1 <= self.threshold <= children:
            raise InvalidRequestError(
                f"vote-threshold is between 1 and the number of children, {children}"
            )
        if self.blkverify and (children != 2 or self.threshold != 2):
            raise InvalidRequestError(
                "blkverify=on can only be set if there are exactly two files and vote-threshold "
                "is 2"
            )
        if self.rewrite and (self.blkverify or self.fifo):
            raise InvalidRequestError(
                "rewrite-corrupted=on needs votes: no blkverify=on, no read-pattern=fifo"
            )


class Quorum(BlockDevice):
    """``children`` of one size, owned.

    ``failures``: requests that failed, by child, though others may have succeeded.  ``outvoted``:
    reads in which a child was in the minority.
    """

    def __init__(self, children: Sequence[BlockDevice], settings: QuorumSettings) -> None:
        settings.check(len(children))
        sizes = {child.size for child in children}
        if len(sizes) > 1:
            listed = ", ".join(f"{child.name}: {child.size}" for child in children)
            raise InvalidRequestError(f"the children of a quorum have different sizes ({listed})")
        self.children = tuple(children)
        self.settings = settings
        self.name = "quorum:" + ",".join(child.name for child in children)
        self.readonly = any(child.readonly for child in children)
        self.zeroes_fast = all(child.zeroes_fast for child in children)
        self.failures: Counter[int] = Counter()
        self.outvoted: Counter[int] = Counter()
        self._size = sizes.pop()

    @property
    def size(self) -> int:
        return self._size

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        return self, offset

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        return merged(self._common(start, length))

    def _common(self, start: int, length: int) -> Iterator[Extent]:
        """Zero is what all call zero; the rest is read here, by vote."""
        maps = [child.map(start, length) for child in self.children]
        current = [next(each) for each in maps] if length else []
        end = start + length
        while start < end:
            stop = min(extent.end for extent in current)
            zero = all(extent.reads_zero for extent in current)
            hole = all(extent.kind is Kind.HOLE for extent in current)
            if zero:
                yield Extent(start, stop - start, Kind.HOLE if hole else Kind.ZERO)
            else:
                yield Extent(start, stop - start, Kind.DATA, self, start)
            if stop < end:
                current = [
                    next(each) if extent.end == stop else extent
                    for each, extent in zip(maps, current, strict=True)
                ]
            start = stop

    # -- reading ---------------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        if self.settings.fifo:
            self._read_first(offset, view)
            return
        for start in range(0, len(view), VOTED_AT_ONCE):
            self._vote(offset + start, view[start : start + VOTED_AT_ONCE])

    def _vote(self, offset: int, view: memoryview) -> None:
        contents: dict[int, bytes] = {}

        def read(number: int) -> None:
            contents[number] = self.children[number].read(offset, len(view))

        self._on_all(read)
        votes = Counter(contents.values())
        winner, count = votes.most_common(1)[0]
        if len(votes) > 1:
            self._count_votes(offset, contents, winner, count)
        view[:] = winner

    def _count_votes(
        self, offset: int, contents: Mapping[int, bytes], winner: bytes, count: int
    ) -> None:
        """Refuse what too few agree on; the others are noted, and written anew."""
        if self.settings.blkverify:
            raise DeviceError(
                "the two children differ", path=self.name, offset=offset, operation="read"
            )
        if count < self.settings.threshold:
            raise DeviceError(
                f"only {count} of {len(self.children)} children agree, and "
                f"{self.settings.threshold} have to",
                path=self.name,
                offset=offset,
                operation="read",
            )
        for number, content in contents.items():
            if content == winner:
                continue
            self.outvoted[number] += 1
            if self.settings.rewrite and not self.children[number].readonly:
                try:
                    self.children[number].write(offset, winner)
                except VdiskError:  # what was read is right all the same
                    self.failures[number] += 1

    def _read_first(self, offset: int, view: memoryview) -> None:
        for number, child in enumerate(self.children):
            try:
                child.read_into(offset, view)
            except VdiskError:
                self.failures[number] += 1
                if number == len(self.children) - 1:
                    raise
            else:
                return

    # -- writing ---------------------------------------------------------------------------------

    def _write(self, offset: int, view: memoryview) -> None:
        self._on_all(lambda number: self.children[number].write(offset, view))

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._on_all(lambda number: self.children[number].write_zeroes(offset, length, unmap=unmap))

    def _flush(self) -> None:
        self._on_all(lambda number: self.children[number].flush())

    # Discards are not passed on: each child may read as something else afterwards.

    def _on_all(self, action: Callable[[int], None]) -> None:
        """Do it to every child; raise the commonest error where too few succeed."""
        errors: list[VdiskError] = []
        for number in range(len(self.children)):
            try:
                action(number)
            except VdiskError as error:
                self.failures[number] += 1
                errors.append(error)
        if len(self.children) - len(errors) < self.settings.threshold:
            kinds = Counter(error.errno for error in errors)
            commonest = kinds.most_common(1)[0][0]
            raise next(error for error in errors if error.errno == commonest)

    def _close(self) -> None:
        close_all(*self.children)


class QuorumDriver:
    """``{"driver": "quorum", "children": [{…}, …], "vote-threshold": …}``."""

    children = ("children",)
    images = frozenset({"children"})

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> Quorum:
        try:
            threshold = options.size("vote-threshold")
            if threshold is None:
                raise InvalidRequestError(f"{options.owner} needs the option 'vote-threshold'")
            settings = QuorumSettings(
                threshold,
                fifo=options.choice("read-pattern", READ_PATTERNS, "quorum") == "fifo",
                blkverify=options.boolean("blkverify"),
                rewrite=options.boolean("rewrite-corrupted"),
            )
            options.finish()
            return Quorum(tuple(children.values()), settings)
        except BaseException:
            close_all(*children.values())
            raise


FILTER = QuorumDriver()
