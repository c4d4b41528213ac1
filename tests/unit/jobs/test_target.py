"""Which targets may be taken for zero, and which files are removed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.jobs.target import TargetSettings, opened_target

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("settings", "zero"),
    [
        ({}, True),
        ({"format": "qcow2", "options": {"preallocation": "metadata"}}, True),
        ({"options": {"preallocation": "full"}}, True),
        ({"exists": True}, None),
        ({"format": "qcow2", "options": {"backing_file": "base"}}, None),
        ({"format": "luks"}, None),
        ({"format": "qcow2", "options": {"encrypt.format": "luks"}}, True),
        (
            {
                "format": "qcow2",
                "options": {"encrypt.format": "luks", "preallocation": "metadata"},
            },
            None,
        ),
        ({"name": "/dev/null"}, None),  # as a block device: not emptied by being opened
        ({"format": "qcow2", "options": {"data_file": "/dev/null"}}, None),
        ({"name": "nbd://localhost/disk"}, None),
        ({"name": {"driver": "raw", "file": {"driver": "nbd", "server": {}}}}, None),
    ],
    ids=str,
)
def test_new_files_are_zero_and_nothing_else(
    tmp_path: Path, settings: dict[str, Any], zero: bool | None
) -> None:
    wanted = {"name": str(tmp_path / "target"), **settings}
    assert TargetSettings(**wanted).made_zero is zero


def test_an_old_file_is_emptied_and_so_is_zero(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x" * 1024)
    settings = TargetSettings(str(tmp_path / "target"))
    assert settings.made_zero
    with opened_target(settings, 1024, []) as target:
        assert target.read(0, 1024) == bytes(1024)


def test_nothing_is_said_of_a_target_that_was_not_touched(tmp_path: Path) -> None:
    said: list[str] = []
    settings = TargetSettings(str(tmp_path / "missing"), exists=True, warn=said.append)
    with pytest.raises(NotFoundError), opened_target(settings, 512, []):
        raise AssertionError("there is no such target")
    vdisk.create(tmp_path / "small", 512)
    settings = TargetSettings(str(tmp_path / "small"), exists=True, warn=said.append)
    with pytest.raises(InvalidRequestError), opened_target(settings, 1024, []):
        raise AssertionError("the target is too small")
    assert said == []


def test_every_name_of_an_unfinished_file_loses_its_content(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    os.link(tmp_path / "target", tmp_path / "link")
    settings = TargetSettings(str(tmp_path / "target"))
    with pytest.raises(ZeroDivisionError), opened_target(settings, 1024, []) as target:
        target.write(0, b"half")
        raise ZeroDivisionError
    assert not (tmp_path / "target").exists()
    assert (tmp_path / "link").stat().st_size == 0
