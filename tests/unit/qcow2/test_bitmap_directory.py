"""The bitmap directory: its bytes, what breaks it, and what is kept without being known."""

from __future__ import annotations

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import images
from tests.tools.bitmaps import (
    KIB,
    copy_of,
    new_image,
    ranges,
    reopened,
)
from vdisk import errors
from vdisk.formats import OpenContext
from vdisk.formats._qcow2 import bitmap_directory, layout
from vdisk.formats._qcow2.bitmap_directory import Entry
from vdisk.formats._qcow2.tables import words_to_bytes
from vdisk.formats.qcow2 import DRIVER, Qcow2Image
from vdisk.stores.memory import MemoryStore

ENTRIES = st.builds(
    Entry,
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    table_offset=st.integers(0, (1 << 64) - 1),
    table_size=st.integers(0, (1 << 32) - 1),
    flags=st.integers(0, (1 << 32) - 1),
    granularity_bits=st.integers(0, 255),
    type=st.integers(0, 255),
    extra_data=st.binary(max_size=20),
)


def packed(entry: Entry) -> bytes:
    name = entry.name.encode()
    data = struct.pack(
        ">QIIBBHI",
        entry.table_offset,
        entry.table_size,
        entry.flags,
        entry.type,
        entry.granularity_bits,
        len(name),
        len(entry.extra_data),
    )
    data += entry.extra_data + name
    return data + bytes(-len(data) % 8)


@given(st.lists(ENTRIES, max_size=5))
def test_a_directory_survives_being_rewritten(entries: list[Entry]) -> None:
    data = bitmap_directory.build(entries)
    assert data == b"".join(map(packed, entries))
    assert bitmap_directory.parse(data, len(entries), path="x", offset=0) == entries


@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_bytes_are_a_directory_or_a_declared_error(data: bytes, count: int) -> None:
    try:
        entries = bitmap_directory.parse(data, count, path="x", offset=0)
    except errors.CorruptImageError:
        return
    assert len(bitmap_directory.build(entries)) == len(data)


def set_directory(image: Qcow2Image, *entries: Entry, count: int | None = None) -> MemoryStore:
    """The image's file with this directory in the place of its own."""
    header = image.header
    assert header.bitmaps is not None
    data = bitmap_directory.build(entries)
    image.file.write(header.bitmaps[2], data)
    header.bitmaps = (len(entries) if count is None else count, len(data), header.bitmaps[2])
    image._core.header_file.save()
    return copy_of(image)


def valid_entry(image: Qcow2Image) -> Entry:
    return bitmap_directory.read(image._core)["b"]


BREAKAGES = {
    "table past the end": {"table_offset": 1 << 40},
    "table not aligned": {"table_offset": 5 * 65536 + 512},
    "table in the header": {"table_offset": 0},
    "table too small": {"table_size": 0},
    "table too large": {"table_size": 1 << 20},
    "granularity": {"granularity_bits": 64},
    "no name": {"name": ""},
    "long name": {"name": "n" * 1024},
}


@pytest.mark.parametrize("breakage", sorted(BREAKAGES))
def test_a_broken_directory_costs_the_bitmaps_but_not_the_disk(breakage: str) -> None:
    image = new_image()
    image.write(0, b"content")
    image.add_bitmap("b")
    image.flush()
    file = set_directory(image, valid_entry(image)._replace(**BREAKAGES[breakage]))
    with images.open_image(MemoryStore(file.content()), readonly=True) as broken:
        assert broken.read(0, 7) == b"content"
        with pytest.raises(errors.CorruptImageError):
            broken.bitmaps()
    with pytest.raises(errors.CorruptImageError):
        images.open_image(MemoryStore(file.content()))


@pytest.mark.parametrize("bitmaps", [(0, 32, 5), (2, 32, 5), (1, 40, 5), (1, 1 << 40, 5)])
def test_a_broken_extension_is_named(bitmaps: tuple[int, int, int]) -> None:
    image = new_image()
    image.add_bitmap("b")
    count, size, _cluster = bitmaps
    assert image.header.bitmaps is not None
    image.header.bitmaps = (count, size, image.header.bitmaps[2])
    image._core.header_file.save()
    with (
        images.open_image(copy_of(image), readonly=True) as broken,
        pytest.raises(errors.CorruptImageError),
    ):
        broken.bitmaps()


def test_two_bitmaps_of_one_name_are_refused() -> None:
    image = new_image()
    image.add_bitmap("b")
    entry = valid_entry(image)
    file = set_directory(image, entry, entry)
    with (
        images.open_image(file, readonly=True) as broken,
        pytest.raises(errors.CorruptImageError, match="two bitmaps"),
    ):
        broken.bitmaps()


def test_a_repair_may_open_an_image_with_a_broken_directory_and_drop_it() -> None:
    image = new_image()
    image.add_bitmap("b")
    file = set_directory(image, valid_entry(image)._replace(table_offset=512))
    repaired = DRIVER.open(file, OpenContext(readonly=False, repairing=True))
    with pytest.raises(errors.CorruptImageError):
        repaired.write(0, b"x")
    repaired._bitmaps.forget()
    repaired.write(0, b"x")
    with reopened(repaired) as image:
        assert image.bitmaps() == []
        assert image.header.bitmaps is None


def test_a_broken_table_entry_is_named_and_the_bitmap_can_be_removed() -> None:
    image = new_image()
    image.add_bitmap("b")
    image.file.write(valid_entry(image).table_offset, words_to_bytes(array("Q", [1 << 60])))
    with pytest.raises(errors.CorruptImageError, match="bitmap table entry"):
        ranges(image)
    image.remove_bitmap("b")
    assert image.bitmaps() == []
    image.close()


STRANGE = {
    "type": {"type": 7},
    "flags": {"flags": layout.BITMAP_AUTO | 1 << 20},
    "extra data": {"extra_data": b"what is this"},
    "fine granularity": {"granularity_bits": 8, "table_size": 1},
    "coarse granularity": {"granularity_bits": 40},
}


@pytest.mark.parametrize("strangeness", sorted(STRANGE))
def test_what_is_unknown_is_kept_and_not_used(strangeness: str) -> None:
    image = new_image()
    image.add_bitmap("b", enabled=False)
    entry = valid_entry(image)._replace(**STRANGE[strangeness])
    file = set_directory(image, entry)
    with images.open_image(file) as strange:
        assert [one.name for one in strange.bitmaps()] == ["b"]
        for change in (strange.clear_bitmap, strange.enable_bitmap, strange.dirty_ranges):
            with pytest.raises(errors.UnsupportedFeatureError):
                change("b")
        strange.add_bitmap("other")
        assert bitmap_directory.read(strange._core)["b"] == entry
        strange.write(0, b"x")
        found = bitmap_directory.read(strange._core)["b"]
        enabled = entry.flags & layout.BITMAP_AUTO
        assert found == entry._replace(flags=entry.flags | (1 if enabled else 0))
        strange.remove_bitmap("b")


def test_compatible_extra_data_is_kept_and_the_bitmap_used() -> None:
    image = new_image()
    image.add_bitmap("b")
    entry = valid_entry(image)
    flags = entry.flags | layout.BITMAP_EXTRA_DATA_COMPATIBLE
    file = set_directory(image, entry._replace(extra_data=b"extra", flags=flags))
    image = images.open_image(file)
    image.write(0, b"x")
    with reopened(image) as image:
        assert ranges(image) == [(0, 64 * KIB)]
        found = bitmap_directory.read(image._core)["b"]
        assert (found.extra_data, found.flags) == (b"extra", flags)
