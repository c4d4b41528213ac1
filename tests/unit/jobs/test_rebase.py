"""rebase: the disk stays the same, whatever the new backing file holds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools.named_images import content, make
from vdisk.errors import (
    CancelledError,
    ImageLockedError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
)
from vdisk.jobs.rebase import rebase

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def backing_of(path: str) -> tuple[str | None, str | None]:
    with vdisk.open(path, format="qcow2") as image:
        header = image.header  # type: ignore[attr-defined]
        return header.backing_file, header.backing_format


def allocated(path: str) -> int:
    """Bytes that the image itself holds."""
    with vdisk.open(path, format="qcow2") as image:
        return sum(e.length for e in image.map() if e.depth == 0 and e.kind.value != "hole")


@pytest.fixture
def old(tmp_path: Path) -> str:
    return make(tmp_path / "old", 4 * MIB, (0, b"same" * 65536), (MIB, b"old" * 50000))


@pytest.fixture
def top(tmp_path: Path, old: str) -> str:
    options: dict[str, Any] = {"backing_file": old, "backing_format": "qcow2"}
    return make(tmp_path / "top", 4 * MIB, (3 * MIB, b"top" * 100), **options)


def test_onto_an_image_with_other_content(tmp_path: Path, top: str) -> None:
    new = make(tmp_path / "new", 4 * MIB, (0, b"same" * 65536), (2 * MIB, b"new" * 1000))
    before = content(top)
    result = rebase(top, new, backing_format="qcow2")
    assert backing_of(top) == (new, "qcow2")
    assert content(top) == before
    assert result.copied == 3 * 65536  # the clusters that only the old one has
    assert result.zeroed == 65536  # the cluster that only the new one has


def test_onto_a_copy_nothing_is_written(tmp_path: Path, top: str, old: str) -> None:
    copy = tmp_path / "copy.raw"
    copy.write_bytes(content(old))
    held, before = allocated(top), content(top)
    assert rebase(top, str(copy), backing_format="raw") == (0, 0)
    assert allocated(top) == held
    assert content(top) == before


def test_onto_nothing_flattens(top: str, old: str) -> None:
    before = content(top)
    rebase(top, "")
    os.unlink(old)
    assert backing_of(top) == (None, None)
    assert content(top) == before


def test_onto_an_image_of_another_length(tmp_path: Path, top: str) -> None:
    before = content(top)
    short = make(tmp_path / "short", MIB, (0, b"x" * MIB))
    rebase(top, short, backing_format="qcow2")
    assert content(top) == before
    long = make(tmp_path / "long", 8 * MIB, (0, b"y" * 8 * MIB))
    rebase(top, long, backing_format="qcow2")
    assert content(top) == before


def test_where_the_old_one_ended_the_new_one_does_not_show(tmp_path: Path) -> None:
    short = make(tmp_path / "short", MIB, (0, b"s" * MIB))
    options: dict[str, Any] = {"backing_file": short, "backing_format": "qcow2"}
    top = make(tmp_path / "top", 2 * MIB, **options)
    long = make(tmp_path / "long", 2 * MIB, (0, b"s" * MIB + b"l" * MIB))
    before = content(top)
    assert rebase(top, long, backing_format="qcow2") == (0, MIB)
    assert content(top) == before


def test_onto_the_base_of_the_old_one_copies_only_what_lies_between(tmp_path: Path) -> None:
    base = make(tmp_path / "base", 4 * MIB, (0, b"b" * 4 * MIB))
    middle = make(
        tmp_path / "middle", 4 * MIB, (MIB, b"m"), backing_file=base, backing_format="qcow2"
    )
    top = make(tmp_path / "top", 4 * MIB, backing_file=middle, backing_format="qcow2")
    before = content(top)
    assert rebase(top, base, backing_format="qcow2").copied == 65536
    assert content(top) == before


def test_relative_names_are_relative_to_the_image(
    tmp_path: Path, top: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "new", 4 * MIB)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = content(top)
    rebase(top, "new", backing_format="qcow2")
    assert backing_of(top) == ("new", "qcow2")
    assert content(top) == before


def test_unsafe_changes_the_name_only(top: str, old: str) -> None:
    os.unlink(old)
    held = allocated_alone(top)
    rebase(top, "moved", backing_format="qcow2", unsafe=True)
    assert allocated_alone(top) == held


def allocated_alone(path: str) -> int:
    return os.stat(path).st_blocks


def test_cancelled_or_refused_the_image_keeps_its_backing_file(
    tmp_path: Path, top: str, old: str
) -> None:
    new = make(tmp_path / "new", 4 * MIB)
    before = content(top)

    def cancel(done: int, _total: int) -> None:
        if done:
            raise CancelledError("cancelled by the test")

    with pytest.raises(CancelledError):
        rebase(top, new, backing_format="qcow2", progress=cancel)
    with pytest.raises(InvalidRequestError, match="format"):
        rebase(top, new)
    with pytest.raises(NotFoundError):
        rebase(top, "missing", backing_format="qcow2")
    with pytest.raises(ImageLockedError):
        rebase(top, top, backing_format="qcow2")
    assert backing_of(top) == (old, "qcow2")
    assert content(top) == before


def test_raw_images_have_no_backing_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(512))
    with pytest.raises(UnsupportedFeatureError):
        rebase(str(tmp_path / "raw"), "", format="raw")
