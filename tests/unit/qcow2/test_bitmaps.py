"""Dirty bitmaps: adding and removing, what is recorded, merging, storage."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tests.tools.bitmaps import (
    GIB,
    KIB,
    MIB,
    SIZE,
    is_sound,
    new_image,
    ranges,
    reopened,
    table_words,
)
from vdisk import errors
from vdisk.formats._qcow2 import bitmap_directory


@pytest.mark.parametrize(
    ("cluster_size", "granularity"), [(512, 4 * KIB), (16 * KIB, 16 * KIB), (2 * MIB, 64 * KIB)]
)
def test_the_usual_granularity_is_a_cluster_within_limits(
    cluster_size: int, granularity: int
) -> None:
    with new_image(cluster_size=cluster_size) as image:
        image.add_bitmap("b")
        assert image.bitmaps() == [("b", granularity, ("auto",))]


@pytest.mark.parametrize("granularity", [0, 256, 1000, 4 * GIB, -512])
def test_granularities_are_powers_of_two_within_limits(granularity: int) -> None:
    with new_image() as image:
        image.add_bitmap("finest", 512)
        image.add_bitmap("coarsest", 2 * GIB)
        with pytest.raises(errors.InvalidRequestError):
            image.add_bitmap("b", granularity)


def test_names_have_1_to_1023_bytes() -> None:
    with new_image() as image:
        image.add_bitmap("ü" * 511)
        for name in ("", "n" * 1024, "ü" * 512):
            with pytest.raises(errors.InvalidRequestError):
                image.add_bitmap(name)
        assert [one.name for one in image.bitmaps()] == ["ü" * 511]


def test_what_is_there_and_what_is_not() -> None:
    with new_image() as image:
        image.add_bitmap("b")
        with pytest.raises(errors.AlreadyExistsError):
            image.add_bitmap("b")
        for change in (
            image.remove_bitmap,
            image.clear_bitmap,
            image.enable_bitmap,
            image.disable_bitmap,
            image.dirty_ranges,
        ):
            with pytest.raises(errors.NotFoundError):
                change("c")
        with pytest.raises(errors.NotFoundError):
            image.merge_bitmap("c", [])


def test_images_that_cannot_hold_bitmaps_say_so() -> None:
    with new_image(compat="0.10") as image, pytest.raises(errors.UnsupportedFeatureError):
        image.add_bitmap("b")
    with new_image(0) as image, pytest.raises(errors.InvalidRequestError):
        image.add_bitmap("b")
    with new_image(4 << 40) as image:
        with pytest.raises(errors.InvalidRequestError, match="larger granularity"):
            image.add_bitmap("b", 512)
        image.add_bitmap("b", 1024)


def test_the_largest_bitmap_records_and_is_stored() -> None:
    image = new_image(2 << 40, cluster_size=2 << 20)
    image.add_bitmap("b", 512)
    image.write((1 << 40) - 512, bytes(1024))
    image.write((2 << 40) - 1, b"x")
    with reopened(image) as image:
        assert list(image.dirty_ranges("b")) == [
            ((1 << 40) - 512, 1024),
            ((2 << 40) - 512, 512),
        ]
        assert is_sound(image)


def test_a_header_without_room_is_left_as_it_was() -> None:
    image = new_image(cluster_size=512)
    image.header.extensions.append((0x12345678, bytes(360)))
    image._core.header_file.save()
    with pytest.raises(errors.InvalidRequestError, match="first cluster"):
        image.add_bitmap("b")
    assert image.bitmaps() == []
    with reopened(image) as image:
        assert image.bitmaps() == []
        assert is_sound(image)


def test_a_read_only_image_is_not_changed() -> None:
    image = new_image()
    image.add_bitmap("b")
    with reopened(image, readonly=True) as image:
        assert image.bitmaps() == [("b", 64 * KIB, ("auto",))]
        for change in (image.add_bitmap, image.remove_bitmap, image.clear_bitmap):
            with pytest.raises(errors.ReadOnlyError):
                change("b")


def test_removing_the_last_bitmap_leaves_no_trace() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.merge_bitmap("b", [(0, SIZE)])
    image.remove_bitmap("b")
    with reopened(image) as image:
        assert image.header.bitmaps is None
        assert not image.header.autoclear_features
        assert is_sound(image)


def test_every_kind_of_change_is_recorded() -> None:
    image = new_image(cluster_size=4096)
    image.add_bitmap("b", 4096)
    image.add_bitmap("disabled", enabled=False)
    image.write(5000, b"x")
    image.writev(3 * 4096 + 4095, [b"x", b"", b"y"])
    image.writev(8 * 4096, [])
    image.write_zeroes(10 * 4096, 8192)
    image.discard(20 * 4096, 4096)
    payload = image.compress_cluster(bytes(4096))
    assert payload is not None
    image.write_compressed(30 * 4096, payload)
    wanted = [(1, 1), (3, 2), (10, 2), (20, 1), (30, 1)]
    assert ranges(image) == [(first * 4096, count * 4096) for first, count in wanted]
    with reopened(image, readonly=True) as image:
        assert ranges(image) == [(first * 4096, count * 4096) for first, count in wanted]
        assert ranges(image, "disabled") == []


def test_applying_a_snapshot_changes_everything() -> None:
    image = new_image(size=2 * MIB + 512)
    image.create_snapshot("s")
    image.resize(MIB)
    image.add_bitmap("b", 64 * KIB)
    image.add_bitmap("disabled", enabled=False)
    image.write(0, b"x")
    image.apply_snapshot("s")
    assert image.size == 2 * MIB + 512
    with reopened(image) as image:
        assert ranges(image) == [(0, 2 * MIB + 512)]
        assert ranges(image, "disabled") == []


def test_the_last_chunk_ends_with_the_disk() -> None:
    image = new_image(size=100 * KIB + 512)
    image.add_bitmap("b", 64 * KIB)
    image.write(100 * KIB, b"x")
    assert ranges(image) == [(64 * KIB, 36 * KIB + 512)]
    assert list(image.dirty_ranges("b", 70 * KIB, KIB)) == [(70 * KIB, KIB)]
    assert list(image.dirty_ranges("b", 0, 64 * KIB)) == []
    with pytest.raises(errors.OutOfRangeError):
        image.dirty_ranges("b", 0, MIB)
    image.close()


def test_disabled_bitmaps_keep_what_they_have() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.write(0, b"x")
    image.disable_bitmap("b")
    image.write(MIB, b"x")
    assert ranges(image) == [(0, 64 * KIB)]
    image.enable_bitmap("b")
    image.write(2 * MIB, b"x")
    assert ranges(image) == [(0, 64 * KIB), (2 * MIB, 64 * KIB)]
    image.clear_bitmap("b")
    assert ranges(image) == []
    with reopened(image) as image:
        assert ranges(image) == []
        assert image.bitmaps()[0].flags == ("auto",)


def test_one_recording_serves_all_granularities() -> None:
    image = new_image(size=64 * MIB)
    shifts = range(9, 32)
    for shift in shifts:
        image.add_bitmap(str(shift), 1 << shift)
    image.write(10 * MIB + 512, b"x" * 1024)
    for _ in range(2):
        for shift in shifts:
            first, end = (10 * MIB + 512) >> shift, ((10 * MIB + 1535) >> shift) + 1
            end_offset = min(end << shift, image.size)
            assert ranges(image, str(shift)) == [(first << shift, end_offset - (first << shift))]
        image = reopened(image, readonly=True)


def test_threads_record_side_by_side() -> None:
    """All bits of a byte are set by different threads; none is lost."""
    image = new_image(size=32 * MIB)
    image.add_bitmap("b", 512)
    chunks = range(0, 20_000, 2)

    def write(first: int) -> None:
        for chunk in chunks[first::4]:
            image.write(chunk * 512, b"x")

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    image.save_bitmaps()
    for thread in threads:
        thread.join()
    with reopened(image) as image:
        assert ranges(image) == [(chunk * 512, 512) for chunk in chunks]


def test_without_enabled_bitmaps_writes_pass_the_hook_by() -> None:
    with new_image() as image:
        assert image._bitmaps.record is None
        image.add_bitmap("b", enabled=False)
        image.write(0, b"x")
        assert image._bitmaps.record is None


def test_a_plain_image_does_not_import_construct() -> None:
    program = (
        "import sys; from tests.tools import images; from vdisk.stores.memory import MemoryStore\n"
        "file = MemoryStore(); images.create(file, 1 << 20)\n"
        "image = images.open_image(file); image.format_info(); image.write(0, b'x')\n"
        "image.bitmaps(); assert 'construct' not in sys.modules\n"
        "image.add_bitmap('b'); assert 'construct' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_merging_between_granularities() -> None:
    with new_image() as image:
        image.add_bitmap("fine", 512)
        image.write(MIB, b"x" * 1024)
        image.disable_bitmap("fine")
        image.add_bitmap("coarse", 64 * KIB, enabled=False)
        image.merge_bitmap("coarse", [(5 * MIB, 1)])
        image.merge_bitmap("coarse", image.dirty_ranges("fine"))
        assert ranges(image, "coarse") == [(MIB, 64 * KIB), (5 * MIB, 64 * KIB)]
        image.merge_bitmap("fine", image.dirty_ranges("coarse"))
        assert ranges(image, "fine") == ranges(image, "coarse")


def test_merging_what_was_just_recorded() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.add_bitmap("other")
    image.write(0, b"x")
    image.disable_bitmap("other")
    image.write(MIB, b"x")
    image.merge_bitmap("other", image.dirty_ranges("b"))
    with reopened(image) as image:
        assert ranges(image, "other") == [(0, 64 * KIB), (MIB, 64 * KIB)]


@pytest.mark.parametrize("outside", [(-1, 1), (SIZE, 1), (0, SIZE + 1), (5, -1)])
def test_merging_what_is_not_on_the_disk_changes_nothing(outside: tuple[int, int]) -> None:
    image = new_image()
    image.add_bitmap("b")
    with pytest.raises(errors.OutOfRangeError):
        image.merge_bitmap("b", [(0, 512), outside])
    assert ranges(image) == []
    with reopened(image) as image:
        assert is_sound(image)


def test_uniform_clusters_are_not_allocated() -> None:
    image = new_image(size=10 * MIB + 512, cluster_size=512)  # 5 clusters of bits and 1 bit
    image.add_bitmap("b", 512)
    image.merge_bitmap("b", [(2 * MIB, 4 * MIB), (8 * MIB, 512), (10 * MIB, 512)])
    words = table_words(image)
    assert [word if word < 512 else "data" for word in words] == [0, 1, 1, 0, "data", "data"]
    assert ranges(image) == [(2 * MIB, 4 * MIB), (8 * MIB, 512), (10 * MIB, 512)]
    with reopened(image) as image:
        assert is_sound(image)


def test_a_resize_keeps_bits_and_adds_clear_ones() -> None:
    image = new_image(size=3 * MIB, cluster_size=512)
    image.add_bitmap("b", 512)
    image.merge_bitmap("b", [(0, 3 * MIB)])
    image.resize(2 * MIB + 512)
    assert ranges(image) == [(0, 2 * MIB + 512)]
    image.resize(7 * MIB)
    assert ranges(image) == [(0, 2 * MIB + 512)]
    assert len(table_words(image)) == 4
    with reopened(image) as image:
        assert ranges(image) == [(0, 2 * MIB + 512)]
        assert image.bitmaps()[0].flags == ("auto",)
        assert is_sound(image)


def test_a_resize_gives_back_what_it_cuts_off() -> None:
    image = new_image(size=9 * MIB, cluster_size=512)
    image.add_bitmap("b", 512)
    image.merge_bitmap("b", [(offset, 512) for offset in range(0, 9 * MIB, MIB)])
    image.resize(MIB)
    with reopened(image) as image:
        assert ranges(image) == [(0, 512)]
        assert is_sound(image)


def test_a_last_cluster_of_ones_has_no_chunks_behind_the_disk() -> None:
    """Other programs may say "all set" (table entry 1) of a cluster that the disk does not fill."""
    image = new_image(size=MIB, cluster_size=512)
    image.add_bitmap("b", 1024)
    table = bitmap_directory.read(image._core)["b"].table_offset
    image.file.write(table, (1).to_bytes(8, "big"))
    assert ranges(image) == [(0, MIB)]
    image.resize(2 * MIB)
    with reopened(image) as image:
        assert ranges(image) == [(0, MIB)]


def test_tail_bits_are_cleared_when_their_cluster_is_rewritten() -> None:
    image = new_image(size=MIB - 8 * KIB, cluster_size=512)
    image.add_bitmap("b", 8 * KIB)  # 127 bits
    image.merge_bitmap("b", [(0, 512)])
    image.file.write(table_words(image)[0] + 15, b"\x80")
    image.merge_bitmap("b", [(MIB - 16 * KIB, 512)])
    assert image.file.read(table_words(image)[0], 16) == b"\x01" + bytes(14) + b"\x40"
    image.close()


def test_a_resize_that_a_bitmap_cannot_follow_is_refused() -> None:
    with new_image(cluster_size=65536) as image:
        image.add_bitmap("b", 512)
        for size in (4 << 40, 0):
            with pytest.raises(errors.InvalidRequestError):
                image.resize(size)
        assert image.size == SIZE
        assert image.bitmaps()[0].flags == ("auto",)


def test_a_resize_that_fails_leaves_the_bitmaps_usable() -> None:
    with new_image(cluster_size=512) as image:
        image.add_bitmap("b", 64 * KIB)
        image.write(0, b"x")
        with pytest.raises(errors.InvalidRequestError):
            image.resize(1 << 40)  # its L1 table would be too large
        assert ranges(image) == [(0, 64 * KIB)]


def test_large_sparse_bitmaps_are_walked_in_little_time_and_memory() -> None:
    with new_image(size=1 << 40) as image:
        image.add_bitmap("b", 2048)  # 64 MiB of bits
        wanted = [(gib << 30, 2048) for gib in range(0, 1024, 100)]
        image.merge_bitmap("b", wanted)
        assert ranges(image) == wanted
        image.write(5 << 30, b"x")
        assert list(image.dirty_ranges("b", 1 << 30, 10 << 30)) == [(5 << 30, 2048)]
