"""Resizing with preallocation: what was promised room needs no more of it when it is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import vdisk
from vdisk.formats.qcow2 import Qcow2Image

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = 65536
OLD = 3 * CLUSTER + 4096
NEW = OLD + 8192


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_the_cluster_that_the_old_disk_ends_in_gets_room_too(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, OLD, format="qcow2")
    with vdisk.open(path, "r+") as image:
        assert isinstance(image, Qcow2Image)
        image.resize(NEW, mode)
    before = path.stat().st_size
    with vdisk.open(path, "r+") as image:
        assert image.read(0, NEW) == bytes(NEW)
        image.write(OLD, b"x" * (NEW - OLD))
    assert path.stat().st_size == before


@pytest.mark.parametrize("mode", ["metadata", "full"])
def test_what_a_backing_file_shows_before_the_old_end_stays(tmp_path: Path, mode: str) -> None:
    base, path = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    base.write_bytes(os.urandom(2 * NEW))
    vdisk.create(path, OLD, format="qcow2", backing_file=str(base), backing_format="raw")
    with vdisk.open(path, "r+") as image:
        assert isinstance(image, Qcow2Image)
        image.resize(NEW + CLUSTER, mode)
        assert image.read(0, OLD) == base.read_bytes()[:OLD]
        assert image.read(OLD, NEW + CLUSTER - OLD) == bytes(NEW + CLUSTER - OLD)
        assert image.check().clean
