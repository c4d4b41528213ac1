"""Disks of no bytes: their L1 table has no clusters, and nobody may free those at offset 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools import images
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from vdisk.formats.qcow2 import Qcow2Image

SIZE = 10 << 20


def sound(image: Qcow2Image) -> None:
    image.flush()
    assert image.check().clean


@pytest.fixture
def empty() -> MemoryStore:
    store = MemoryStore()
    images.create(store, 0)
    return store


def test_a_new_one_has_no_clusters_to_spare(empty: MemoryStore) -> None:
    with images.open_image(empty) as image:
        assert (image.header.l1_size, image.header.l1_table_offset) == (0, 0)
        sound(image)


def test_it_grows(empty: MemoryStore) -> None:
    with images.open_image(empty) as image:
        image.truncate(SIZE)
        image.write(SIZE // 2, b"x" * 65536)
        sound(image)
        assert image.read(SIZE // 2, 65537) == b"x" * 65536 + b"\0"


def test_its_snapshots_come_and_go(empty: MemoryStore) -> None:
    with images.open_image(empty) as image:
        image.create_snapshot("nothing")
        sound(image)
        image.truncate(SIZE)
        image.write(0, b"x" * 65536)
        image.create_snapshot("something")
        image.apply_snapshot("nothing")
        assert image.size == 0
        sound(image)
        image.apply_snapshot("something")
        assert image.read(0, 65536) == b"x" * 65536
        image.delete_snapshot("nothing")
        sound(image)
