"""Many ranges as one number mean what they mean one by one."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.emu_block import scatter
from vdisk.errors import OutOfRangeError
from vdisk.vm.memory import EXTENDED, PAGE_SIZE, GuestMemory
from vdisk.vm.ranges import Ranges, Views

if TYPE_CHECKING:
    from pathlib import Path

ADDRESSES = st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 22)
LENGTHS = st.integers(0, (1 << 32) - 1) | st.integers(0, 2)
PAIRS = st.lists(st.tuples(ADDRESSES, LENGTHS), min_size=1, max_size=70)
BASE = 0x7FAB_CDE0_0000
MEMORY = GuestMemory(16 << 20)
SCATTERED = [(EXTENDED + number * 3 * PAGE_SIZE, PAGE_SIZE) for number in reversed(range(100))]


def ranges(pairs: list[tuple[int, int]]) -> Ranges:
    return Ranges(b"".join(struct.pack("<QQ", *pair) for pair in pairs))


def total(pairs: list[tuple[int, int]]) -> int:
    return sum(length for _, length in pairs)


@given(PAIRS, st.integers(0, 70), st.integers(0, 70))
def test_they_are_the_same_ranges(pairs: list[tuple[int, int]], start: int, stop: int) -> None:
    many = ranges(pairs)
    assert list(many) == pairs
    assert list(many[start:stop]) == pairs[start:stop]
    assert many[start:stop].total == total(pairs[start:stop])
    assert many.total == total(pairs)
    assert many[start:stop].total == total(pairs[start:stop])  # now it is told from that of all
    assert (many[0], many[-1], len(many)) == (pairs[0], pairs[-1], len(pairs))
    with pytest.raises(ValueError, match="gaps"):
        many[::2]
    with pytest.raises(IndexError):
        many[len(pairs)]


@given(PAIRS, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_where_they_lie(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    inside = all(start <= gpa and gpa + length <= end for gpa, length in pairs)
    assert lie_in(pairs, start, end) == inside
    low, high = min(gpa for gpa, _ in pairs), max(map(sum, pairs))
    if high < 1 << 63:
        assert lie_in(pairs, low, high)
        assert not lie_in(pairs, low + 1, high)
        assert not high or not lie_in(pairs, low, high - 1)


def lie_in(pairs: list[tuple[int, int]], start: int, end: int) -> bool:
    placed = ranges(pairs).placed(start, end, BASE)
    if placed is not None:
        assert list(Ranges(placed)) == [(BASE + gpa, length) for gpa, length in pairs]
    return placed is not None


def test_views_of_memory() -> None:
    views = MEMORY.views(ranges(SCATTERED))
    assert isinstance(views, Views)
    assert views.total == len(views) * PAGE_SIZE
    plain = MEMORY.views(SCATTERED)
    for number, (view, other) in enumerate(zip(views, plain, strict=True)):
        view[:4] = struct.pack("<I", number)
        assert bytes(other[:4]) == bytes(views[number][:4]) == struct.pack("<I", number)
    assert [bytes(view) for view in views[3:7]] == [bytes(view) for view in plain[3:7]]
    others, last = views.without_last()
    assert [bytes(view) for view in others] == [bytes(view) for view in plain[:-1]]
    assert (others.total, last) == (sum(map(len, plain[:-1])), plain[-1])
    assert others[:1].without_last()[1] == plain[0]
    assert others[:1].without_last()[0].total == 0


def test_memory_with_holes_is_looked_at_one_by_one() -> None:
    pairs = [*SCATTERED, (0x1000, 16)]
    assert [len(view) for view in MEMORY.views(ranges(pairs))] == [length for _, length in pairs]
    for wrong in ((MEMORY.size, 1), (MEMORY.size - 1, 2), (1 << 63, 1), ((1 << 64) - 1, 1)):
        with pytest.raises(OutOfRangeError):
            MEMORY.views(ranges([*SCATTERED, wrong]))


def test_a_file_is_read_into_all_of_them(tmp_path: Path) -> None:
    content = os.urandom(len(SCATTERED) * PAGE_SIZE)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        views = MEMORY.views(ranges(SCATTERED))
        assert scatter.preadv(file.fileno(), views, 0, 0) == len(content) == scatter.total(views)
        assert b"".join(views) == content
        short = scatter.preadv(file.fileno(), views, PAGE_SIZE + 1, 0)
        assert short == len(content) - PAGE_SIZE - 1
        assert b"".join(views)[:short] == content[PAGE_SIZE + 1 :]
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        scatter.preadv(1 << 20, views, 0, 0)


def test_without_the_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter, "_preadv2", lambda: None)
    test_a_file_is_read_into_all_of_them(tmp_path)
