"""dd: blocks counted and skipped as dd(1) does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.jobs.dd import dd
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = bytes(range(256)) * 40  # 10240 bytes


@pytest.mark.parametrize(
    ("block_size", "count", "skip", "first", "last"),
    [
        (512, None, 0, 0, 10240),
        (1024, 3, 0, 0, 3072),
        (1024, None, 7, 7168, 10240),
        (1024, 2, 3, 3072, 5120),
        (4096, 100, 2, 8192, 10240),
        (1 << 30, 1, 0, 0, 10240),
    ],
)
def test_copies_the_blocks(
    tmp_path: Path, block_size: int, count: int | None, skip: int, first: int, last: int
) -> None:
    target = tmp_path / "target"
    source = MemoryStore(CONTENT)
    result = dd(source, str(target), block_size=block_size, count=count, skip=skip)
    assert result == (last - first, False)
    assert target.read_bytes() == CONTENT[first:last]


def test_odd_block_sizes_are_rounded_up_to_sectors(tmp_path: Path) -> None:
    target = tmp_path / "target"
    dd(MemoryStore(CONTENT), str(target), block_size=10, count=10, skip=3)
    assert target.read_bytes()[:100] == CONTENT[30:130]
    assert target.stat().st_size in (100, 512)


def test_skipping_everything_makes_an_empty_disk(tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert dd(MemoryStore(CONTENT), str(target), skip=1000) == (0, True)
    assert target.stat().st_size == 0


@pytest.mark.parametrize("block_size", [0, 1 << 31])
def test_refused_block_sizes(tmp_path: Path, block_size: int) -> None:
    with pytest.raises(InvalidRequestError):
        dd(MemoryStore(CONTENT), str(tmp_path / "target"), block_size=block_size)
    assert not os.listdir(tmp_path)
