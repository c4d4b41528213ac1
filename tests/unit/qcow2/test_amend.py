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
