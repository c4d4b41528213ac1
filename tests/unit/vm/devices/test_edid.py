"""What the monitor tells: a block that is whole, for every size; drivers find it in BAR 2."""

from __future__ import annotations

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.vm.devices.edid import ESTABLISHED, PREFERRED, SIZES, best, edid, timing

MIB = 1 << 20


@pytest.mark.parametrize("size", [*SIZES, *ESTABLISHED, (1368, 768), (2560, 1600)], ids=str)
def test_a_block_is_whole_and_names_its_size(size: tuple[int, int]) -> None:
    block = edid(size, 16 * MIB)
    assert len(block) == 128 and sum(block) % 256 == 0
    first = block[54:72]
    assert (first[2] | first[4] >> 4 << 8, first[5] | first[7] >> 4 << 8) == size
    width, height = first[12] | first[14] >> 4 << 8, first[13] | (first[14] & 15) << 8
    assert abs(width / height - size[0] / size[1]) < 0.02


@pytest.mark.parametrize(
    ("size", "mhz", "lines"),
    [
        ((1280, 800), 71.0, 823),
        ((1024, 768), 56.0, 790),
        ((1920, 1080), 138.5, 1111),
        ((1920, 1200), 154.0, 1235),
    ],
    ids=str,
)
def test_timings_are_those_of_cvt_with_reduced_blanking(
    size: tuple[int, int], mhz: float, lines: int
) -> None:
    found = timing(*size)
    assert (found.clock, found.lines) == (mhz * 1e6, lines)


def test_what_video_memory_has_no_room_for_is_not_offered() -> None:
    assert best(*PREFERRED, 16 * MIB) == PREFERRED
    assert best(1920, 1080, 4 * MIB) == (1280, 800)
    assert best(1920, 1080, MIB) == (640, 480)
    assert edid((640, 480), MIB)[38:54] == b"\1" * 16
    for size in ((0, 480), (640, 1601), (2568, 480), (1366, 768)):
        with pytest.raises(InvalidRequestError):
            best(*size, 16 * MIB)
