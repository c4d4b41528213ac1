"""Scatter lists: ranges keep the order, runs are the same memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import OutOfRangeError
from vdisk.vm.memory import PAGE_SIZE, GuestMemory, PageKind
from vdisk.vm.scatter import ScatterList


def test_the_picture_of_the_module():
    downwards = [(0x5000, 0x1000), (0x4000, 0x1000), (0x3000, 0x1000)]
    found = ScatterList([*downwards, (0x9000, 0x800), (0x9800, 16)])
    assert found.ranges == [*downwards, (0x9000, 0x810)]
    assert found.runs == [(0x3000, 0x3000), (0x9000, 0x810)]


def test_pages_downwards_are_one_run():
    pages = [(0x8000 - PAGE_SIZE * number, PAGE_SIZE) for number in range(8)]
    found = ScatterList(pages)
    assert found.ranges == pages
    assert found.runs == [(0x1000, 8 * PAGE_SIZE)]


def test_nothing_is_nothing():
    assert ScatterList([(0x1000, 0), (0, 0)]).ranges == ScatterList().runs == []


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=20))
def test_both_are_the_memory_that_was_given(pieces):
    found = ScatterList(pieces)
    in_order = [gpa + at for gpa, length in pieces for at in range(length)]
    assert [gpa + at for gpa, length in found.ranges for at in range(length)] == in_order
    assert {gpa + at for gpa, length in found.runs for at in range(length)} == set(in_order)
    assert all(length > 0 for _, length in found.ranges + found.runs)


def test_views_are_the_memory_in_order():
    memory = GuestMemory(16 * PAGE_SIZE)
    memory.write(0x1000, b"ab")
    memory.write(0x3000, b"cd")
    assert b"".join(ScatterList([(0x3000, 2), (0x1000, 2)]).views(memory)) == b"cdab"


def test_a_run_that_reaches_into_what_is_no_ram_is_refused():
    memory = GuestMemory(16 * PAGE_SIZE)
    memory.set_kind(0x4000, PAGE_SIZE, PageKind.MMIO)
    for pieces in ([(0x3000, PAGE_SIZE), (0x4000, 16)], [(0x5000, 16), (0x4FF0, 16)]):
        with pytest.raises(OutOfRangeError):
            ScatterList(pieces).views(memory)
    with pytest.raises(OutOfRangeError):
        ScatterList([(1 << 40, 16)]).views(memory)


def test_dirtied_tells_of_runs():
    memory, told = GuestMemory(16 * PAGE_SIZE), []
    memory.on_dirtied(lambda *each: told.append(each))
    ScatterList([(0x3000, 16), (0x2FF0, 16), (0x8000, 1)]).dirtied(memory)
    assert told == [(0x2FF0, 32), (0x8000, 1)]
