"""Guest memory: what devices may touch, one range or many at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import OutOfRangeError
from vdisk.vm.memory import EXTENDED, PAGE_SIZE, GuestMemory, PageKind

SIZE = EXTENDED + 16 * PAGE_SIZE


@pytest.fixture
def memory():
    return GuestMemory(SIZE)


def test_views_are_the_memory_in_the_order_of_the_ranges(memory):
    memory.write(0x1000, b"ab")
    memory.write(EXTENDED, b"cd")
    assert b"".join(memory.views([(EXTENDED, 2), (0x1000, 2)])) == b"cdab"
    memory.views([(0x1000, 1)])[0][0] = ord("x")
    assert memory.read(0x1000, 2) == b"xb"
    assert memory.views([]) == []


@pytest.mark.parametrize("start", [0x4000, EXTENDED, EXTENDED + 0x4000, SIZE - PAGE_SIZE])
@pytest.mark.parametrize("kind", [PageKind.MMIO, PageKind.ROM])
def test_no_view_reaches_into_what_is_no_ram(memory, start, kind):
    around = [(start - 16, 16), (start + PAGE_SIZE, 16)] if start + PAGE_SIZE < SIZE else []
    inside = [(start, 1), (start - 1, 2), (start + PAGE_SIZE - 1, 1), (start, PAGE_SIZE)]
    memory.views(around + inside[:-1])
    memory.set_kind(start, PAGE_SIZE, kind)
    assert len(memory.views(around)) == len(around)
    for one in inside:
        assert not memory.is_ram(*one)
        with pytest.raises(OutOfRangeError):
            memory.views([*around, one])
    memory.set_kind(start, PAGE_SIZE, PageKind.RAM)
    assert len(memory.views(inside)) == len(inside)


@pytest.mark.parametrize(
    "wrong", [(SIZE, 1), (SIZE - 1, 2), (1 << 40, 16), (-1, 2), (EXTENDED + 2, -1), (0x1000, -1)]
)
def test_no_view_reaches_past_the_end(memory, wrong):
    with pytest.raises(OutOfRangeError):
        memory.views([(0x1000, 1), wrong])
    with pytest.raises(OutOfRangeError):
        memory.view(*wrong)


@given(
    holes=st.lists(st.integers(240, 271), max_size=3),
    gpa=st.integers(238 * PAGE_SIZE, SIZE + 2),
    length=st.integers(0, 5 * PAGE_SIZE),
)
def test_ram_is_what_all_pages_of_a_range_are(holes, gpa, length):
    memory = GuestMemory(SIZE)
    for page in holes:
        memory.set_kind(page * PAGE_SIZE, PAGE_SIZE, PageKind.MMIO)
    pages = range(gpa // PAGE_SIZE, (gpa + max(length, 1) - 1) // PAGE_SIZE + 1)
    expected = all(memory.kind(page * PAGE_SIZE) is PageKind.RAM for page in pages)
    if length or gpa != SIZE:  # nothing, at the very end, is inside as well
        assert memory.is_ram(gpa, length) is expected


def test_listeners_hear_of_all_ranges_at_once(memory):
    told = []
    memory.on_dirtied(told.append)
    memory.all_dirtied([(0x3000, 16), (0x8000, 1)])
    memory.dirtied(0x2000, 5)
    memory.write(0x1000, b"abc")
    assert [list(each) for each in told] == [
        [(0x3000, 16), (0x8000, 1)],
        [(0x2000, 5)],
        [(0x1000, 3)],
    ]
