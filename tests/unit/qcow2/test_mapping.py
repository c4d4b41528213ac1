"""Maps: runs found by galloping, subclusters, chains, and the fast lookup."""

from __future__ import annotations

import random
import threading
from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import images
from tests.tools.patience import PATIENCE
from vdisk.block import Extent, Kind
from vdisk.errors import CorruptImageError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.mapping import gallop, run_length
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.formats.qcow2 import Qcow2Image

CLUSTER = 65536


def new_image(size: int = 64 * CLUSTER, **options: object) -> Qcow2Image:
    store = MemoryStore()
    images.create(store, size, **options)
    return images.open_image(store)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_gallop_finds_the_end_of_a_run(run: int, limit: int) -> None:
    asked = 0

    def matches(at: int, step: int) -> bool:
        nonlocal asked
        asked += 1
        return at + step <= run

    assert gallop(matches, 1, limit) == min(run, limit)
    assert asked < 60


@given(st.lists(st.tuples(st.sampled_from([0, 1, 7 << 40]), st.sampled_from([0, 512]),
                          st.integers(1, 600))))  # fmt: skip
def test_run_length_is_the_number_of_equal_steps(parts: list[tuple[int, int, int]]) -> None:
    words = array("Q")
    for first, step, count in parts:
        words.extend(first + step * number for number in range(count))
    for step in (0, 512):
        if len(words) < 2:
            continue
        expected = 1
        while expected < len(words) and words[expected] == words[0] + expected * step:
            expected += 1
        assert run_length(words, 0, len(words), step) == expected


def test_kinds_and_neighbours() -> None:
    image = new_image()
    image.write(2 * CLUSTER, bytes(3 * CLUSTER))
    image.write_zeroes(4 * CLUSTER, CLUSTER, unmap=False)
    image.write_compressed(8 * CLUSTER, image.compress_cluster(b"z" * CLUSTER) or b"")
    kinds = [(e.start // CLUSTER, e.length // CLUSTER, e.kind) for e in image.map()]
    assert kinds == [
        (0, 2, Kind.HOLE),
        (2, 2, Kind.DATA),
        (4, 1, Kind.ZERO),
        (5, 3, Kind.HOLE),
        (8, 1, Kind.COMPRESSED),
        (9, 55, Kind.HOLE),
    ]
    assert image.read(8 * CLUSTER + 5, 3) == b"zzz"


def test_the_map_of_any_part_is_that_part_of_the_map() -> None:
    image = new_image(extended_l2=True)
    rng = random.Random(5)
    for _ in range(40):
        offset = rng.randrange(60 * CLUSTER)
        image.write(offset, b"x" * rng.choice([1, 3000, 70_000]))
    whole = list(image.map())
    for _ in range(100):
        start = rng.randrange(image.size)
        length = rng.randrange(1, image.size - start + 1)
        clipped = [e.clipped(start, start + length) for e in whole if e.end > start]
        clipped = [e for e in clipped if e.length > 0]
        assert list(image.map(start, length)) == clipped


def test_locate_agrees_with_the_map() -> None:
    image = new_image(16 * CLUSTER)
    image.write(0, b"a" * 4 * CLUSTER)
    image.write_zeroes(CLUSTER, CLUSTER)
    for offset in range(0, image.size, 4096):
        found = image.locate(offset, 4096)
        extents = list(image.map(offset, 4096))
        if extents[0].kind is Kind.DATA:
            assert found == (extents[0].source, extents[0].source_offset)
        else:
            assert found is None


def locate_to_write(image: Qcow2Image, offset: int, length: int) -> object:
    with image.hold_to_write():
        return image.locate_to_write(offset, length)


def test_only_data_clusters_of_the_disks_own_are_overwritten_in_place(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    images.create(path, 16 * CLUSTER)
    with images.open_image(path) as image:
        image.write(0, b"a" * 3 * CLUSTER)
        image.write_zeroes(CLUSTER, CLUSTER, unmap=False)
        image.write_compressed(4 * CLUSTER, b"c" * 100)
        assert locate_to_write(image, 100, 4096) == image.locate(100, 4096) is not None
        for offset, length in [
            (CLUSTER, 4096),  # a zero cluster
            (3 * CLUSTER, 4096),  # nothing
            (4 * CLUSTER, 4096),  # compressed
            (3 * CLUSTER - 1, 2),  # in two clusters
        ]:
            assert locate_to_write(image, offset, length) is None, offset
        image.create_snapshot("shared")
        assert locate_to_write(image, 100, 4096) is None
        image.write(100, b"b")
        assert locate_to_write(image, 100, 4096) == image.locate(100, 4096) is not None
        assert locate_to_write(image, 2 * CLUSTER, 4096) is None


def test_clusters_one_behind_the_other_are_overwritten_as_one() -> None:
    """That is, where the map says that a range is one piece, and one slice describes it."""
    image = new_image(8300 * CLUSTER)
    slice_end = 1 << image._core.slice_bits
    for cluster, count in [(0, 4), (6, 2), (4, 2), (slice_end - 3, 5), (9, 1)]:
        image.write(cluster * CLUSTER, b"x" * count * CLUSTER)
    found_runs = 0
    for around in (0, slice_end - 4):
        for first in range(around, around + 10):
            for last in range(first, around + 10):
                offset, end = first * CLUSTER + 512, (last + 1) * CLUSTER - 512
                extents = list(image.map(offset, end - offset))
                one = len(extents) == 1 and extents[0].kind is Kind.DATA
                expected = (extents[0].source, extents[0].source_offset) if one else None
                if first < slice_end <= last:
                    expected = None
                assert locate_to_write(image, offset, end - offset) == expected, (first, last)
                found_runs += expected is not None and last > first
    assert found_runs > 10
    image.create_snapshot("shared")
    image.write(CLUSTER, b"y" * CLUSTER)
    assert locate_to_write(image, 0, 2 * CLUSTER) is None


def test_what_is_overwritten_in_place_is_marked_in_bitmaps(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    images.create(path, 16 * CLUSTER)
    with images.open_image(path) as image:
        image.write(0, b"a" * 4 * CLUSTER)
        image.add_bitmap("b", CLUSTER)
        assert locate_to_write(image, 2 * CLUSTER + 5, 10) is not None
        assert list(image.dirty_ranges("b")) == [(2 * CLUSTER, CLUSTER)]


@pytest.mark.parametrize("victim", ["header", "l1", "l2", "refcounts"])
def test_metadata_is_no_place_to_overwrite(victim: str) -> None:
    image = new_image()
    image.write(0, b"x")
    core = image._core
    table, index = core.l2_slice_for_write(0)
    place = {
        "header": 0,
        "l1": core.l1.offset,
        "l2": core.l1.words[0] & layout.OFFSET_MASK,
        "refcounts": core.refcounts.table.offset,
    }[victim]
    table.words[index] = layout.COPIED | place
    if victim == "header":  # host offset 0 means none
        assert locate_to_write(image, 0, 512) is None
        return
    with pytest.raises(CorruptImageError, match="overlaps"):
        locate_to_write(image, 0, 512)
    assert locate_to_write(image, 0, 512) is None  # nothing is written any more


def test_structure_does_not_change_while_somebody_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    images.create(path, 4 * CLUSTER)
    with images.open_image(path) as image:
        image.write(0, b"a" * CLUSTER)
        with image.hold_to_write():
            taking = threading.Thread(target=image.create_snapshot, args=("s",))
            taking.start()
            taking.join(0.1)
            assert taking.is_alive()
            assert image.locate_to_write(0, 512) is not None
        taking.join(PATIENCE)
        assert not taking.is_alive()
        assert locate_to_write(image, 0, 512) is None


def test_locate_looks_through_a_chain(tmp_path: Path) -> None:
    """Shorter and longer backing files, of qcow2 and raw: as the map says, at every block."""
    base = tmp_path / "base.raw"
    base.write_bytes(random.Random(7).randbytes(3 * CLUSTER))
    previous, format = str(base), "raw"
    for number, clusters in enumerate([6, 4, 8]):
        path = tmp_path / f"{number}.qcow2"
        images.create(path, clusters * CLUSTER, backing_file=previous, backing_fmt=format)
        with images.open_image(path) as image:
            image.write(number * CLUSTER, bytes([number + 1]) * CLUSTER)
            image.write_zeroes((number + 1) * CLUSTER, 4096)
            image.write((clusters - 1) * CLUSTER, b"e" * CLUSTER)
        previous, format = str(path), "qcow2"
    with images.open_image(previous, readonly=True) as image:
        for offset in range(0, image.size, 4096):
            found = image.locate(offset, 4096)
            extents = list(image.map(offset, 4096))
            if extents[0].kind is Kind.DATA:
                assert found == (extents[0].source, extents[0].source_offset)
            else:
                assert found is None


def test_depth_counts_backing_files(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"b" * 2 * CLUSTER)
    previous, format = str(base), "raw"
    for number in range(3):
        path = tmp_path / f"{number}.qcow2"
        images.create(path, 4 * CLUSTER, backing_file=previous, backing_fmt=format)
        previous, format = str(path), "qcow2"
    with images.open_image(previous) as image:
        image.write(CLUSTER, b"t" * 10)
        extents = list(image.map())
        assert [(e.start, e.kind, e.depth) for e in extents] == [
            (0, Kind.DATA, 3),
            (CLUSTER, Kind.DATA, 0),
            (2 * CLUSTER, Kind.HOLE, 2),
        ]
        assert image.read(0, 3) == b"bbb"
        assert image.locate(0, 4096) is not None


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        (layout.COPIED | 0x30200, "not cluster-aligned"),
        (layout.COPIED | layout.ZERO | 0x30200, "not cluster-aligned"),
    ],
)
def test_a_misaligned_entry_is_corruption(entry: int, rule: str) -> None:
    image = new_image()
    image.write(0, b"x")
    table, index = image._core.l2_slice_for_write(0)
    table.words[index] = entry
    with pytest.raises(CorruptImageError, match=rule):
        list(image.map(0, 10))
    assert image.header.incompatible_features & layout.CORRUPT


def test_extents_join_only_what_continues() -> None:
    store = MemoryStore(bytes(100))
    first = Extent(0, 10, Kind.DATA, store, 50)
    assert Extent(10, 5, Kind.DATA, store, 60).follows(first)
    assert not Extent(10, 5, Kind.DATA, store, 61).follows(first)
    assert not Extent(11, 5, Kind.DATA, store, 61).follows(first)


def test_zeroing_part_of_a_cluster_leaves_what_is_written_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = new_image()
    extents, neighbour = image._mapping.extents, b"n" * 4096

    def write_beside(start: int, length: int) -> list[Extent]:
        found = list(extents(start, length))
        monkeypatch.undo()
        image.write(8192, neighbour)
        return found

    monkeypatch.setattr(image._mapping, "extents", write_beside)
    image.write_zeroes(0, 4096)
    assert image.read(8192, 4096) == neighbour
