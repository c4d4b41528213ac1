"""The compress filter: what is written arrives compressed, whatever its edges."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

import vdisk
from vdisk.block import Kind
from vdisk.errors import UnsupportedFeatureError

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = 64 << 10
SIZE = 1 << 20


def tree(path: Path) -> dict[str, object]:
    file = {"driver": "file", "filename": str(path)}
    return {"driver": "compress", "file": {"driver": "qcow2", "file": file}}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    vdisk.create(tmp_path / "disk.qcow2", SIZE - 512, format="qcow2")
    return tmp_path / "disk.qcow2"


def test_random_writes_are_kept_and_compressed(image: Path) -> None:
    rng = random.Random(3)
    model = bytearray(SIZE - 512)
    with vdisk.open(tree(image), "r+") as disk:
        for _ in range(60):
            offset = rng.randrange(len(model))
            length = rng.randrange(min(3 * CLUSTER, len(model) - offset) + 1)
            kind = rng.randrange(4)
            data = bytes([rng.randrange(256)]) * length
            if kind == 0:
                data = bytes(length)
                disk.write_zeroes(offset, length)
            else:
                if kind == 1:  # nothing to compress
                    data = rng.randbytes(length)
                disk.write(offset, data)
            model[offset : offset + length] = data
            assert disk.read(0, len(model)) == model
    assert not vdisk.check(image).corruptions
    with vdisk.open(image) as disk:
        assert disk.read(0, len(model)) == model


def test_whole_clusters_and_the_last_are_not_read_first(image: Path) -> None:
    with vdisk.open(tree(image), "r+") as disk:
        disk.write(0, b"a" * (SIZE - 512))
        kinds = {extent.kind for extent in disk.map()}
    assert kinds == {Kind.COMPRESSED}
    assert image.stat().st_size < 8 * CLUSTER


def test_writes_into_one_cluster_at_once_lose_nothing(image: Path) -> None:
    with vdisk.open(tree(image), "r+") as disk:

        def write(number: int) -> None:
            for start in range(number * 512, CLUSTER, 16 * 512):
                disk.write(start, bytes([number + 1]) * 512)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4):
            for start in range(number * 512, CLUSTER, 16 * 512):
                assert disk.read(start, 512) == bytes([number + 1]) * 512


def test_a_format_without_compression(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", SIZE, format="raw")
    options = {"driver": "raw", "file.driver": "file", "file.filename": str(tmp_path / "disk.raw")}
    with pytest.raises(UnsupportedFeatureError, match="raw does not hold compressed clusters"):
        vdisk.open({"driver": "compress", "file": options}, "r+")
