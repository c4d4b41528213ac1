"""Backing files and data files: what an image names, and what is given instead."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import vdisk
from tests.tools.named_images import SIZE, qcow2
from vdisk.errors import (
    CorruptImageError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
)
from vdisk.opening import Backing, open_image
from vdisk.opening.creating import plan_creation
from vdisk.opening.nodes import MAX_CHAIN_DEPTH


def test_backing_files_lie_beside_the_image(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "base.raw").write_bytes(b"base" + bytes(SIZE - 4))
    qcow2(tmp_path / "dir" / "disk.qcow2", "base.raw")
    for directory, name in ((tmp_path, "dir/disk.qcow2"), (tmp_path / "dir", "disk.qcow2")):
        monkeypatch.chdir(directory)
        with open_image(name) as image:
            assert image.read(0, 4) == b"base"
            assert image.backing is not None
            assert image.backing.readonly


@pytest.mark.parametrize("format", ["raw", None])
def test_a_backing_file_without_a_format_is_recognised(
    tmp_path: Path, raw: str, format: str | None
) -> None:
    middle = qcow2(tmp_path / "middle.qcow2", raw, "raw")
    stored = None if format is None else "qcow2"
    top = qcow2(tmp_path / "top.qcow2", middle, stored)
    with open_image(top) as image:
        assert image.read(0, 4) == b"0123"


def test_backing_names_may_be_trees(tmp_path: Path, raw: str) -> None:
    for tree in (
        {"driver": "raw", "file": {"driver": "file", "filename": raw}},
        {"driver": "file", "filename": raw},
        {"file.filename": raw},
    ):
        top = qcow2(tmp_path / "top.qcow2", "json:" + json.dumps(tree))
        with open_image(top) as image:
            assert image.read(0, 4) == b"0123"


def test_options_replace_and_complete_the_backing_file(tmp_path: Path, raw: str) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(b"other" + bytes(SIZE - 5))
    top = qcow2(tmp_path / "top.qcow2", raw)
    with open_image(top, options={"backing": {"driver": "raw", "offset": 2}}) as image:
        assert image.read(0, 4) == b"2345"
    with open_image(top, options={"backing": {"file": {"filename": str(other)}}}) as image:
        assert image.read(0, 5) == b"other"
    for nothing in (None, ""):
        with open_image(top, options={"backing": nothing}) as image:
            assert image.read(0, 4) == bytes(4)
    with pytest.raises(InvalidRequestError, match="node"):
        open_image(top, options={"backing": "a-node-name"})


def test_backing_files_can_be_refused_or_left(tmp_path: Path, raw: str) -> None:
    top = qcow2(tmp_path / "top.qcow2", "absent.raw")
    with pytest.raises(NotFoundError, match=r"absent\.raw.*named by .*top\.qcow2"):
        open_image(top)
    with pytest.raises(InvalidRequestError, match="--no-backing"):
        open_image(top, backing=Backing.REFUSE)
    with open_image(top, backing=Backing.LEAVE) as image:
        assert image.backing is None
    open_image(raw, backing=Backing.REFUSE).close()


def test_data_files_can_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, SIZE, format="qcow2", options={"data_file": "data.raw"})
    with open_image(str(path), readonly=False) as image:
        image.write(0, b"data")
    assert (tmp_path / "data.raw").read_bytes()[:4] == b"data"
    with pytest.raises(InvalidRequestError, match="data-file"):
        open_image(str(path), backing=Backing.REFUSE)


def test_loops_are_refused(tmp_path: Path) -> None:
    for names in (["a"], ["a", "b"], ["a", "b", "c"]):
        for name, backing in zip(names, [*names[1:], names[0]], strict=True):
            qcow2(tmp_path / name, backing, "qcow2")
        with pytest.raises(InvalidRequestError, match=r"loop: .*a.* -> .*a;"):
            open_image(str(tmp_path / "a"))
        with pytest.raises(InvalidRequestError, match="loop"):
            open_image(str(tmp_path / "a"), readonly=False)


def test_loops_through_other_names_are_seen(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a")
    os.symlink("a", tmp_path / "link")
    os.link(path, tmp_path / "hard")
    for backing in ("link", "hard", "../" + tmp_path.name + "/a", f"file:{path}"):
        qcow2(tmp_path / "a", backing, "qcow2")
        (tmp_path / "hard").unlink()
        os.link(path, tmp_path / "hard")
        with pytest.raises(InvalidRequestError, match="loop"):
            open_image(path)


def test_chains_are_bounded(tmp_path: Path) -> None:
    below = None
    for number in range(MAX_CHAIN_DEPTH + 1):
        path = qcow2(tmp_path / str(number), below, "qcow2")
        below = path
        if number == MAX_CHAIN_DEPTH - 1:
            with open_image(path) as image:
                assert image.read(0, 4) == bytes(4)
                assert len(list(image.map())) == 1
    with pytest.raises(UnsupportedFeatureError, match="longer than"):
        open_image(path)


def test_what_a_raw_data_file_has_behind_the_end_is_the_grown_disks(tmp_path: Path) -> None:
    """The two files are the same disk at every moment."""
    path, data = str(tmp_path / "disk.qcow2"), tmp_path / "data"
    options = {"data_file": str(data), "data_file_raw": True}
    plan_creation(path, SIZE, format="qcow2", options=options).run()
    with data.open("ab") as file:
        file.write(b"longer" * 100_000)
    with open_image(path, readonly=False) as image:
        image.truncate(2 * SIZE)
        assert image.read(0, 2 * SIZE) == data.read_bytes().ljust(2 * SIZE, b"\0")


def test_a_data_file_is_never_recognised(tmp_path: Path) -> None:
    """Its bytes are the guest's, who may write what looks like an image with a backing file."""
    path, data = str(tmp_path / "disk.qcow2"), str(tmp_path / "data")
    options = {"data_file": data, "data_file_raw": True}
    plan_creation(path, SIZE, format="qcow2", options=options).run()
    disguise = Path(qcow2(tmp_path / "other.qcow2")).read_bytes()[:512]
    said: list[str] = []
    for _ in range(2):
        named = {"data-file.filename": data}
        with open_image(path, readonly=False, options=named, warn=said.append) as image:
            assert image.read(0, 512) in (bytes(512), disguise)
            image.write(0, disguise)
            image.flush()
            assert image.read(0, 512) == disguise
    assert not said


def test_the_data_file_that_is_given_replaces_the_one_that_is_named(tmp_path: Path) -> None:
    path, data, other = (str(tmp_path / name) for name in ("disk.qcow2", "data", "other"))
    plan_creation(path, SIZE, format="qcow2", options={"data_file": data}).run()
    shutil.copy(data, other)
    with open_image(path, readonly=False) as image:
        image.write(0, b"named")
    faulty = {"driver": "blkdebug", "image": {"driver": "file", "filename": other}}
    with open_image(path, readonly=False, options={"data-file": faulty}) as image:
        image.write(0, b"given")
    assert (Path(data).read_bytes()[:5], Path(other).read_bytes()[:5]) == (b"named", b"given")


def test_an_image_that_does_not_name_its_data_file_needs_it_given(tmp_path: Path) -> None:
    path, data = str(tmp_path / "disk.qcow2"), str(tmp_path / "data")
    plan_creation(path, SIZE, format="qcow2", options={"data_file": data}).run()
    with open_image(path, readonly=False) as image:
        image.amend({"data_file": ""})  # type: ignore[attr-defined]
    with pytest.raises(CorruptImageError, match="'data-file' is required"):
        open_image(path)
    with open_image(path, options={"data-file.filename": data}) as image:
        assert image.read(0, 512) == bytes(512)


def test_an_image_with_its_data_inside_takes_no_data_file(tmp_path: Path, raw: str) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    with pytest.raises(InvalidRequestError, match="only be set for images with an external"):
        open_image(path, options={"data-file.filename": raw})


def test_an_image_that_names_no_backing_file_takes_one_that_is_given(
    tmp_path: Path, raw: str
) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    with open_image(path, options={"backing": {"driver": "raw", "file.filename": raw}}) as image:
        assert image.backing is not None
        assert image.read(0, SIZE) == Path(raw).read_bytes()
