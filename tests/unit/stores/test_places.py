"""What is remembered of where a device's bytes stand, and for how long."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import vdisk
from vdisk.block import BlockDevice
from vdisk.filters.window import Window
from vdisk.formats.qcow2 import Qcow2Image
from vdisk.stores import places
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore
from vdisk.stores.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNIT = 4096
UNITS = 2048
"""Of the device: four pages."""


class Scattered(BlockDevice):
    """Unit ``n`` stands at the place ``where[n]`` of a file, if that is known."""

    locate_unit = UNIT
    size = UNIT * UNITS - 512

    def __init__(self, file: BlockDevice) -> None:
        self.file = file
        self.where = {number: (UNITS - number) * UNIT for number in range(UNITS)}
        self.asked: list[tuple[int, int]] = []
        self.number_of_moves: int | None = 0

    def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
        self.asked.append((offset, length))
        first, last = offset // UNIT, (offset + length - 1) // UNIT
        if first != last or first not in self.where:
            return None
        return self.file, self.where[first] + offset % UNIT

    def moves(self) -> int | None:
        return self.number_of_moves


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FileStore]:
    (tmp_path / "file").write_bytes(bytes(4096))
    with FileStore(tmp_path / "file") as store:
        yield store


def test_a_unit_is_looked_up_once(file: FileStore) -> None:
    device = Scattered(file)
    found = Places(device)
    for offset, length in ((UNIT, 512), (UNIT + 512, UNIT - 512), (UNIT, UNIT), (UNIT + 1, 1)):
        assert found.find(offset, length) == (file.fileno(), device.where[1] + offset - UNIT)
    assert device.asked == [(UNIT, UNIT)]


def test_every_unit_has_a_place_of_its_own(file: FileStore) -> None:
    device = Scattered(file)
    found = Places(device)
    for _ in range(2):
        for number, host in device.where.items():
            assert found.find(number * UNIT, 512) == (file.fileno(), host)
    assert len(device.asked) == UNITS
    assert len(found.pages) == UNITS >> places.PAGE_BITS


def test_the_last_unit_ends_with_the_device(file: FileStore) -> None:
    device = Scattered(file)
    last = UNIT * (UNITS - 1)
    assert Places(device).find(last, 512) == (file.fileno(), UNIT)
    assert device.asked == [(last, UNIT - 512)]


def test_what_moved_is_looked_up_anew(file: FileStore) -> None:
    device = Scattered(file)
    found = Places(device)
    found.find(0, 512)
    device.where[0], device.number_of_moves = 512, 1
    found.refresh()
    assert found.find(0, 512) == (file.fileno(), 512)
    del device.where[0]
    device.number_of_moves = 2
    found.refresh()
    assert found.find(0, 512) is None


def test_nothing_is_remembered_where_moves_are_not_told(file: FileStore) -> None:
    device = Scattered(file)
    device.number_of_moves = None
    found = Places(device)
    for _ in range(2):
        found.refresh()
        assert found.find(512, 512) == (file.fileno(), device.where[0] + 512)
    assert device.asked == [(512, 512)] * 2


def test_a_file_is_undivided_and_a_part_of_it_is_not(file: FileStore) -> None:
    assert Places(file).undivided
    assert Places(Window(file, 0, 512)).undivided
    assert not Places(Window(file, 512)).undivided
    assert not Places(Scattered(file)).undivided


def test_a_part_is_found_of_what_does_not_stand_in_one_piece(file: FileStore) -> None:
    class Halves(Scattered):
        def locate(self, offset: int, length: int) -> tuple[BlockDevice, int] | None:
            return super().locate(offset, length) if length <= UNIT // 2 else None

    assert Places(Halves(file)).find(512, 512) == (file.fileno(), UNITS * UNIT + 512)
    assert Places(Halves(file)).find(UNIT - 512, 1024) is None


def test_what_stands_in_no_file_or_off_a_sector_is_not_remembered(file: FileStore) -> None:
    assert Places(Scattered(MemoryStore(bytes(UNIT)))).find(0, 512) is None
    device = Scattered(file)
    device.where[0] = 1000
    found = Places(device)
    assert found.find(0, 512) == found.find(0, 512) == (file.fileno(), 1000)
    assert len(device.asked) == 2


def test_memory_is_bounded(file: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MOST_PAGES", 2)
    device = Scattered(file)
    found = Places(device)
    for number in (0, 600, 1200, 1800, 0):
        assert found.find(number * UNIT, 512) == (file.fileno(), device.where[number])
        assert len(found.pages) <= 2


@pytest.mark.parametrize("offset", [0, 512, 1 << 16, 3 << 20])
def test_a_window_has_the_units_of_what_it_shows(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, 8 << 20, format="qcow2")
    with vdisk.open(path, "r+", format="qcow2") as disk:
        disk.write(0, bytes(range(256)) * (disk.size >> 8))
    with vdisk.open(path, format="qcow2") as disk:
        window = Window(disk, offset)
        assert window.locate_unit == (512 if offset == 512 else 1 << 16)
        found = Places(window)
        assert found.find(1 << 20, 512) == found.find(1 << 20, 512)
        assert found.pages


def test_an_image_tells_when_clusters_move(tmp_path: Path) -> None:
    """Each change here makes what was remembered of the first cluster untrue."""
    base, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    vdisk.create(base, 1 << 20, format="qcow2")
    with vdisk.open(base, "r+", format="qcow2") as below:
        below.write(0, b"b" * below.size)
    vdisk.create(path, format="qcow2", backing_file="base.qcow2", backing_format="qcow2")
    with vdisk.open(path, "r+", format="qcow2") as disk:
        assert isinstance(disk, Qcow2Image)
        found = Places(disk)

        def reads_right() -> None:
            with disk.hold():
                found.refresh()
                place = found.find(0, 512)
                if place is not None:
                    assert os.pread(place[0], 512, place[1]) == disk.read(0, 512)

        compressed = disk.compress_cluster(b"c" * disk.cluster_size)
        assert compressed is not None
        for change in (
            lambda: disk.write(0, b"w"),
            lambda: disk.create_snapshot("s"),
            lambda: disk.write(0, b"x"),
            lambda: disk.apply_snapshot("s"),
            lambda: disk.write_zeroes(0, 1 << 16),
            lambda: disk.write(0, b"y"),
            lambda: disk.discard(0, 1 << 16),
            lambda: disk.write(0, b"z" * 4096),
            lambda: disk.write_compressed(0, compressed),
            lambda: disk.write(0, b"z" * 4096),
            disk.unallocate,
        ):
            reads_right()
            change()
            reads_right()
