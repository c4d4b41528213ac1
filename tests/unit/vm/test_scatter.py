"""Scatter lists: neighbours are joined, and the order of the transfer is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.scatter import joined


def test_the_picture_of_the_module():
    pieces = [(0x5000, 0x1000), (0x6000, 0x1000), (0x3000, 0x1000), (0x9000, 0x800), (0x9800, 16)]
    assert joined(pieces) == [(0x5000, 0x2000), (0x3000, 0x1000), (0x9000, 0x810)]


def test_nothing_is_nothing():
    assert joined([]) == joined([(0x1000, 0), (0, 0)]) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=20))
def test_ranges_are_the_memory_that_was_given_and_no_neighbours(pieces):
    ranges = joined(pieces)
    in_order = [gpa + at for gpa, length in pieces for at in range(length)]
    assert [gpa + at for gpa, length in ranges for at in range(length)] == in_order
    assert all(length > 0 for _, length in ranges)
    ends = [gpa + length for gpa, length in ranges]
    assert not any(end == gpa for end, (gpa, _) in zip(ends, ranges[1:], strict=False))
