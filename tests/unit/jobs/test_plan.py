"""Plans cover the disk in whole units; batches are bounded."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from vdisk.block import Extent, Kind
from vdisk.jobs.plan import MAX_BATCH, Action, Step, batches, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

S, Z, C = Action.SKIP, Action.ZERO, Action.COPY


def decided(*parts: tuple[int, Action]) -> Iterator[tuple[Extent, Action]]:
    """Extents of these lengths in a row, and what to do with each."""
    start = 0
    for length, action in parts:
        yield Extent(start, length, Kind.HOLE), action
        start += length


def summary(steps: Iterator[Step]) -> list[tuple[int, int, Action]]:
    return [(step.start, step.end, step.action) for step in steps]


def test_extents_on_the_edges_of_units_stay_as_they_are() -> None:
    assert summary(plan(decided((8, C), (16, S), (4, Z)), 4)) == [
        (0, 8, C),
        (8, 24, S),
        (24, 28, Z),
    ]


def test_a_unit_with_different_wishes_is_copied() -> None:
    assert summary(plan(decided((6, S), (3, C), (11, S)), 4)) == [
        (0, 4, S),
        (4, 8, C),
        (8, 12, C),
        (12, 20, S),
    ]


def test_a_unit_whose_parts_agree_is_not_copied() -> None:
    assert summary(plan(decided((1, S), (1, S), (2, S), (1, Z), (3, Z)), 4)) == [
        (0, 4, S),
        (4, 8, Z),
    ]


def test_zero_and_skip_in_one_unit_are_copied_which_is_always_right() -> None:
    assert summary(plan(decided((2, Z), (2, S)), 4)) == [(0, 4, C)]


_PARTS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([S, Z, C])), min_size=1, max_size=20
)


@given(parts=_PARTS, unit=st.sampled_from([1, 2, 8, 16]))
def test_steps_cover_the_map_in_whole_units_and_lose_no_wish(
    parts: list[tuple[int, Action]], unit: int
) -> None:
    size = sum(length for length, _ in parts)
    wishes = [action for length, action in parts for _ in range(length)]
    position = 0
    for step in plan(decided(*parts), unit):
        assert step.start == position
        assert step.end % unit == 0 or step.end == size
        assert sum(extent.length for extent in step.extents) == step.length
        inside = set(wishes[step.start : step.end])
        assert inside == {step.action} or (step.action is C and step.length <= unit)
        position = step.end
    assert position == size


@given(parts=_PARTS, size=st.sampled_from([16, 32]))
def test_batches_copy_at_most_their_size_and_keep_the_order(
    parts: list[tuple[int, Action]], size: int
) -> None:
    steps = list(plan(decided(*parts), 8))
    work = list(batches(steps, size))
    done = [step for batch in work for step in batch]
    assert all(sum(s.length for s in batch if s.action is C) <= size for batch in work)
    assert all(first.end <= second.start for first, second in pairwise(done))
    wanted = sum(step.length for step in steps if step.action is not S)
    assert sum(step.length for step in done) == wanted


def test_long_copies_are_cut_at_multiples_of_the_size() -> None:
    long = plan(decided((8, S), (60, C)), 4)
    assert [summary(iter(batch)) for batch in batches(long, 32)] == [
        [(8, 32, C)],
        [(32, 64, C)],
        [(64, 68, C)],
    ]


def test_long_zeroes_are_one_step() -> None:
    assert [len(batch) for batch in batches(plan(decided((1 << 50, Z)), 4), 32)] == [1]


def test_a_batch_has_a_bounded_number_of_steps() -> None:
    steps = plan(decided(*[(4, Z), (4, S)] * (2 * MAX_BATCH)), 4)
    assert [len(batch) for batch in batches(steps, 1 << 20)] == [MAX_BATCH, MAX_BATCH]
