"""Bits as runs, clipped, coarsened and recorded, against counting them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdisk.formats._qcow2 import bitmap_bits
from vdisk.formats._qcow2.bitmap_bits import Marks


def naive_runs(data: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for bit in range(len(data) * 8):
        if data[bit // 8] >> bit % 8 & 1:
            if found and found[-1][1] == bit:
                found[-1] = found[-1][0], bit + 1
            else:
                found.append((bit, bit + 1))
    return found


BITMAPS = st.lists(
    st.tuples(st.sampled_from([b"\0", b"\xff", b"\x01", b"\x80", b"\xa5"]), st.integers(1, 5000)),
    max_size=6,
).map(lambda pieces: b"".join(byte * count for byte, count in pieces))


@given(st.one_of(BITMAPS, st.binary(max_size=100)))
def test_runs_are_those_that_counting_bits_finds(data: bytes) -> None:
    end = len(data) * 8
    assert list(bitmap_bits.joined(bitmap_bits.bit_runs(data), 0, end)) == naive_runs(data)


@given(st.binary(min_size=8, max_size=8), st.integers(0, 64), st.integers(0, 64))
def test_runs_are_clipped(data: bytes, one: int, other: int) -> None:
    start, end = sorted((one, other))
    wanted = {bit for run in naive_runs(data) for bit in range(*run)} & set(range(start, end))
    found = list(bitmap_bits.joined(bitmap_bits.bit_runs(data), start, end))
    assert {bit for run in found for bit in range(*run)} == wanted
    assert all(first < last for first, last in found)


@given(
    size=st.integers(1, 1 << 20),
    writes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1 << 20)), max_size=20),
    shift=st.integers(9, 12),
    steps=st.integers(0, 6),
)
def test_marks_are_a_set_of_chunks_at_any_coarser_granularity(
    size: int, writes: list[tuple[float, int]], shift: int, steps: int
) -> None:
    marks = Marks(size, shift)
    wanted = set()
    for where, length in writes:
        offset = int(where * (size - 1))
        clipped = min(length, size - offset)
        marks.add(offset, clipped)
        if clipped:
            end = offset + clipped - 1
            wanted |= set(range(offset >> shift + steps, (end >> shift + steps) + 1))
    total = -(-size // (8 << shift + steps))
    data = marks.coarse(0, total, shift + steps)
    assert len(data) == total
    assert {bit for run in naive_runs(data) for bit in range(*run)} == wanted
