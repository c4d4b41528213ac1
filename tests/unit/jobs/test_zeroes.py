"""Zero detection is exact, wherever the bytes stand in the buffer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vdisk.block import ZERO_CHUNK
from vdisk.jobs.zeroes import is_zero, zero_runs

_PIECES = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([b"\0", b"\0", b"x"])), min_size=1, max_size=12
)


@given(pieces=_PIECES, block=st.sampled_from([1, 4, 16, 64]), start=st.integers(0, 9))
def test_runs_cover_the_range_alternate_and_tell_the_truth(
    pieces: list[tuple[int, bytes]], block: int, start: int
) -> None:
    content = b"".join(length * byte for length, byte in pieces)
    buffer = bytearray(b"!" * start + content + b"!" * 70)
    position, before = start, None
    for first, length, zero in zero_runs(buffer, start, len(content), block):
        assert first == position
        assert zero is not before
        for at in range(first, first + length, block):
            end = min(at + block, first + length)
            assert (buffer[at:end].count(0) == end - at) is zero
        position, before = first + length, zero
    assert position == start + len(content)


def test_blocks_larger_than_the_zeroes_at_hand() -> None:
    buffer = bytearray(4 * ZERO_CHUNK)
    buffer[-1] = 1
    block = 2 * ZERO_CHUNK
    assert list(zero_runs(buffer, 0, len(buffer), block)) == [
        (0, block, True),
        (block, block, False),
    ]


def test_is_zero_sees_the_last_byte_and_not_the_one_after() -> None:
    buffer = bytearray(2 * ZERO_CHUNK + 10)
    buffer[-1] = 1
    assert is_zero(buffer, 0, len(buffer) - 1)
    assert not is_zero(buffer, 0, len(buffer))
    assert is_zero(buffer, 5, 0)
