"""Amending an image: what version 2 cannot hold is refused before anything changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vdisk
from vdisk.errors import UnsupportedFeatureError
from vdisk.formats.qcow2 import Qcow2Image

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
CLUSTER = 4096


@pytest.fixture
def image(tmp_path: Path) -> Qcow2Image:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, MIB, format="qcow2", options={"lazy_refcounts": True})
    opened = vdisk.open(path, "r+", format="qcow2")
    assert isinstance(opened, Qcow2Image)
    return opened


def test_a_downgrade_turns_lazy_refcounts_off(image: Qcow2Image) -> None:
    with image:
        image.write(0, b"x" * 4096)
        image.amend({"compat": "0.10"})
        assert (image.header.version, image.header.lazy_refcounts) == (2, False)
        assert image.check().clean


def test_a_downgrade_keeps_no_snapshot_of_another_size(image: Qcow2Image) -> None:
    """Version 2 would take it for one of the present size."""
    with image:
        image.create_snapshot("small")
        image.resize(2 * MIB)
        with pytest.raises(UnsupportedFeatureError, match="prevent downgrade of image"):
            image.amend({"compat": "0.10"})
        assert image.header.version == 3
        image.amend({"compat": "0.10", "size": MIB})
        assert (image.header.version, image.size) == (2, MIB)


@pytest.mark.parametrize("backing", [0, 20 * CLUSTER, MIB])
def test_a_downgrade_writes_the_zeroes_of_snapshots_out(tmp_path: Path, backing: int) -> None:
    base, path = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    base.write_bytes(b"below" * (backing // 5))
    names = {"backing_file": str(base), "backing_format": "raw"} if backing else {}
    vdisk.create(path, MIB, format="qcow2", options={"cluster_size": CLUSTER}, **names)
    with vdisk.open(path, "r+", format="qcow2") as image:
        assert isinstance(image, Qcow2Image)
        image.write(0, b"data" * (MIB // 8))
        image.write_zeroes(2 * CLUSTER, 3 * CLUSTER, unmap=False)
        image.write_zeroes(10 * CLUSTER, 60 * CLUSTER)
        image.write_zeroes(MIB - CLUSTER, CLUSTER)
        image.create_snapshot("one")
        image.create_snapshot("two")  # shares all its tables
        image.write_zeroes(70 * CLUSTER, CLUSTER, unmap=False)
        image.create_snapshot("three")
        image.write(3 * CLUSTER, b"new" * CLUSTER)
        names_held = ["one", "two", "three"]
        before = [image.read(0, MIB), *(snapshot_of(image, name) for name in names_held)]
        image.amend({"compat": "0.10"})
        assert image.header.version == 2
        assert [image.read(0, MIB), *(snapshot_of(image, name) for name in names_held)] == before
        assert image.check().clean
        image.delete_snapshot("two")
        assert image.check().clean
    with vdisk.open(path, "r+", format="qcow2") as image:
        assert isinstance(image, Qcow2Image)
        assert [image.read(0, MIB), snapshot_of(image, "one")] == before[:2]
        image.apply_snapshot("three")
        assert image.read(0, MIB) == before[3]
        assert image.check().clean


def snapshot_of(image: Qcow2Image, name: str) -> bytes:
    with image.open_snapshot(name) as view:
        return view.read(0, view.size)
