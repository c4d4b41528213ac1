"""Planned, then made; what fails leaves no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vdisk
from tests.tools.named_images import SIZE
from vdisk.errors import (
    InvalidRequestError,
    NotFoundError,
    VdiskError,
)
from vdisk.opening import open_image
from vdisk.opening.creating import plan_creation


def test_creation_plans_touch_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"precious")
    plan_creation(str(path), SIZE)
    assert path.read_bytes() == b"precious"


def test_the_size_comes_from_the_backing_file(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "top.qcow2"
    vdisk.create(path, format="qcow2", backing_file="disk.raw", backing_format="raw")
    with open_image(str(path)) as image:
        assert image.size == SIZE
        assert image.read(0, 4) == b"0123"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "size"),
        ({"size": -1}, "size"),
        ({"size": 1 << 63}, "size"),
        ({"size": 512, "format": "nonsense"}, "nonsense"),
        ({"size": 512, "options": {"size": 512}}, "only once"),
        ({"size": 512, "options": {"surprise": 1}}, "surprise"),
        ({"size": 512, "options": {"preallocation": "some"}}, "preallocation"),
        ({"size": 512, "backing_format": "raw"}, "backing"),
        ({"size": 512, "backing_file": "x", "backing_format": "raw"}, "backing_file"),
        ({"size": 512, "format": "qcow2", "backing_file": "x"}, "-F"),
        ({"format": "qcow2", "backing_file": "new", "backing_format": "raw"}, "own backing"),
        ({"format": "qcow2", "backing_file": "x", "backing_format": "nonsense"}, "nonsense"),
        ({"format": "qcow2", "backing_file": "absent", "backing_format": "raw"}, "absent"),
        ({"size": 512, "format": "qcow2", "options": {"cluster_size": "3k"}}, "cluster_size"),
        ({"size": 512, "format": "qcow2", "options": {"lazy_refcounts": "perhaps"}}, "lazy"),
        ({"size": 512, "format": "qcow2", "options": {"refcount_bits": "x"}}, "refcount_bits"),
        ({"size": 512, "format": "qcow2", "options": {"refcount_bits": -8}}, "refcount_bits"),
        ({"size": 512, "format": "qcow2", "options": {"compat": 3}}, "compat"),
    ],
)
def test_creations_that_cannot_work(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VdiskError, match=message):
        vdisk.create("new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_creation_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdisk.formats.raw import RawDriver

    def fail(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RawDriver, "create", fail)
    with pytest.raises(KeyboardInterrupt):
        vdisk.create(tmp_path / "disk.raw", SIZE)
    assert not (tmp_path / "disk.raw").exists()
    with pytest.raises(NotFoundError):
        vdisk.create(tmp_path / "absent" / "disk.raw", SIZE)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_hints_to_the_file_system_are_given_or_ignored(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They change nothing that can be read, and file systems without them go on without."""
    asked: list[object] = []
    monkeypatch.setattr("vdisk.stores._linux.set_extent_size", lambda _, size: asked.append(size))

    def fail(_fd: int) -> None:
        asked.append("nocow")
        raise OSError(25, "no such thing here")

    monkeypatch.setattr("vdisk.stores._linux.set_nocow", fail)
    plan = plan_creation(
        str(tmp_path / "a"),
        1 << 20,
        format=format,
        options={"extent_size_hint": "1M", "nocow": "on"},
    )
    plan.run()
    assert asked == [1 << 20, "nocow"]
    plan_creation(str(tmp_path / "b"), 1 << 20, format=format).run()
    assert asked == [1 << 20, "nocow"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_hints_that_cannot_be(tmp_path: Path) -> None:
    for options in ({"extent_size_hint": "4G"}, {"nocow": "perhaps"}):
        with pytest.raises(InvalidRequestError):
            plan_creation(str(tmp_path / "a"), 1 << 20, options=options).run()
    assert not (tmp_path / "a").exists()
