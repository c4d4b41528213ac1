"""From a map to a plan of work: what to skip, what to zero and what to copy.

A target has a granularity, ``unit``: its clusters, or the blocks of its file system.  Extents of
the source end where they like; a plan is made of whole units, so that each unit of the target is
written once.  A unit that several extents share is copied if they ask for different things::

    source      |  DATA  |   HOLE    |D|            HOLE             |
    units       |      |      |      |      |      |      |      |      |
    plan        | COPY | COPY | SKIP | COPY | SKIP                     |

Pure: nothing here reads or writes.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vdisk.block import Extent


class Action(enum.Enum):
    """What to do with a range of the target."""

    SKIP = "skip"
    ZERO = "zero"
    COPY = "copy"


class Step(NamedTuple):
    """One action on a range, and the extents of the source that cover it exactly."""

    action: Action
    extents: tuple[Extent, ...]

    @property
    def start(self) -> int:
        return self.extents[0].start

    @property
    def end(self) -> int:
        return self.extents[-1].end

    @property
    def length(self) -> int:
        return self.end - self.start


def plan(decided: Iterable[tuple[Extent, Action]], unit: int) -> Iterator[Step]:
    """Steps that cover a map in order; all but the last end on a multiple of ``unit``.

    ``decided``: the map's extents, each with what would be done with it if it stood alone.
    """
    shared: list[tuple[Extent, Action]] = []
    for extent, action in decided:
        start = extent.start
        if shared:
            start = min(round_up(shared[0][0].start + 1, unit), extent.end)
            shared.append((extent.clipped(extent.start, start), action))
            if start % unit:
                continue
            yield _shared_step(shared)
            shared = []
        edge = round_down(extent.end, unit)
        if edge > start:
            yield Step(action, (extent.clipped(start, edge),))
            start = edge
        if extent.end > start:
            shared = [(extent.clipped(start, extent.end), action)]
    if shared:
        yield _shared_step(shared)


def _shared_step(parts: list[tuple[Extent, Action]]) -> Step:
    """The step for a unit that these extents share."""
    actions = {action for _, action in parts}
    action = actions.pop() if len(actions) == 1 else Action.COPY
    return Step(action, tuple(extent for extent, _ in parts))


def batches(steps: Iterable[Step], size: int) -> Iterator[list[Step]]:
    """The steps that need work, in order, in groups that copy ``size`` bytes at most.

    A group is what one thread does at a time: large enough to be worth a hand-over, small
    enough for its buffer.  Steps to skip are dropped; long steps are cut at multiples of ``size``.
    """
    batch: list[Step] = []
    room = size
    for step in steps:
        if step.action is Action.SKIP:
            continue
        for part in _cut(step, size) if step.action is Action.COPY else (step,):
            cost = part.length if part.action is Action.COPY else 0
            if cost > room or len(batch) == MAX_BATCH:
                yield batch
                batch, room = [], size
            batch.append(part)
            room -= cost
    if batch:
        yield batch


MAX_BATCH = 512
"""Steps in one batch: bounds what is lost, and held, when a map is one of small fragments."""


def _cut(step: Step, size: int) -> Iterator[Step]:
    """The step in parts that end on multiples of ``size``."""
    if step.start // size == (step.end - 1) // size:
        yield step
        return
    for extent_start in range(round_down(step.start, size), step.end, size):
        first, last = max(extent_start, step.start), min(extent_start + size, step.end)
        inside = (
            extent.clipped(first, last)
            for extent in step.extents
            if extent.start < last and extent.end > first
        )
        yield Step(step.action, tuple(inside))
