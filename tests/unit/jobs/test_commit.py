"""commit: what the top holds goes into the base, and the disk in the top stays the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools.named_images import content, make
from vdisk.block import Kind
from vdisk.errors import (
    CancelledError,
    ImageLockedError,
    InvalidRequestError,
    NotFoundError,
)
from vdisk.jobs.commit import commit

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def over(backing: str, format: str = "qcow2") -> dict[str, Any]:
    return {"backing_file": backing, "backing_format": format}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return make(tmp_path / "base", 4 * MIB, (0, b"base" * 65536), (2 * MIB, b"old!" * 1000))


@pytest.fixture
def top(tmp_path: Path, base: str) -> str:
    path = make(tmp_path / "top", 4 * MIB, (100, b"top"), (3 * MIB, b"new" * 9999), **over(base))
    with vdisk.open(path, "r+", format="qcow2") as image:
        image.write_zeroes(2 * MIB, MIB // 2)
    return path


def test_the_base_gets_what_the_top_holds_and_the_top_is_emptied(top: str, base: str) -> None:
    before = content(top)
    result = commit(top)
    assert result.emptied
    assert result.base == base
    assert result.zeroed == MIB // 2
    assert content(base) == before
    assert content(top) == before
    with vdisk.open(top, format="qcow2") as image:
        assert all(extent.depth == 1 for extent in image.map())


def test_without_emptying_the_top_still_holds_its_data(top: str, base: str) -> None:
    before = content(top)
    size = os.path.getsize(top)
    assert not commit(top, empty=False).emptied
    assert content(base) == before
    with vdisk.open(top, format="qcow2") as image:
        assert any(extent.depth == 0 for extent in image.map())
    assert os.path.getsize(top) == size


def test_into_a_raw_base(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"r" * MIB)
    top = make(tmp_path / "top", MIB, (5000, b"top"), **over(str(raw), "raw"))
    before = content(top)
    commit(top)
    assert raw.read_bytes() == before


def test_a_smaller_base_grows_and_a_larger_one_keeps_its_end(tmp_path: Path) -> None:
    small = make(tmp_path / "small", MIB, (0, b"s" * MIB))
    top = make(tmp_path / "top", 2 * MIB, (MIB, b"t" * 10), **over(small))
    before = content(top)
    commit(top)
    assert content(small) == before

    large = make(tmp_path / "large", 2 * MIB, (0, b"l" * 2 * MIB))
    short = make(tmp_path / "short", MIB, (0, b"s" * 10), **over(large))
    commit(short)
    assert content(large) == b"s" * 10 + b"l" * (2 * MIB - 10)


def test_into_a_deeper_base(tmp_path: Path, base: str) -> None:
    middle = make(tmp_path / "middle", 4 * MIB, (MIB, b"middle"), **over(base))
    top = make(tmp_path / "top", 4 * MIB, (0, b"top"), **over(middle))
    before = content(top)
    result = commit(top, base=base)
    assert result.base == base
    assert not result.emptied
    assert content(base) == before
    assert content(top) == before


def test_a_base_that_is_named_leaves_the_top_as_it_is(top: str, base: str) -> None:
    assert not commit(top, base=base).emptied


def test_a_base_is_found_beside_the_image_that_refers_to_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    make(tmp_path / "images/base", MIB)
    top = make(tmp_path / "images/top", MIB, (0, b"top"), **over("base"))
    assert commit(top, base="base").base == str(tmp_path / "images/base")
    assert content(str(tmp_path / "images/base"))[:3] == b"top"


def test_a_middle_shorter_than_its_base_hides_the_end_of_the_base(
    tmp_path: Path, base: str
) -> None:
    middle = make(tmp_path / "middle", MIB, **over(base))
    top = make(tmp_path / "top", 4 * MIB, **over(middle))
    before = content(top)
    assert before[MIB:] == bytes(3 * MIB)
    commit(top, base=base)
    assert content(base) == before
    assert content(top) == before


def test_a_base_outside_the_chain_is_refused(top: str, tmp_path: Path) -> None:
    stranger = make(tmp_path / "stranger", MIB)
    with pytest.raises(NotFoundError, match="in the backing chain"):
        commit(top, base=stranger)


def test_an_image_without_backing_file_is_refused(base: str) -> None:
    with pytest.raises(InvalidRequestError, match="no backing file"):
        commit(base)


def test_a_base_in_use_is_refused(top: str, base: str) -> None:
    before = content(base)
    with vdisk.open(base, format="qcow2"), pytest.raises(ImageLockedError):
        commit(top)
    assert content(base) == before


def test_a_cancelled_commit_leaves_the_disk_as_it_was(top: str) -> None:
    before = content(top)

    def cancel(done: int, _total: int) -> None:
        if done:
            raise CancelledError("cancelled by the test")

    with pytest.raises(CancelledError):
        commit(top, progress=cancel)
    assert content(top) == before
    with vdisk.open(top, format="qcow2") as image:
        assert any(e.depth == 0 and e.kind is not Kind.HOLE for e in image.map())
