"""The header: round trips, the gate for every field, and totality."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import images
from vdisk.errors import CorruptImageError, UnsupportedFeatureError, VdiskError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.header import Header, parse
from vdisk.formats.qcow2 import read_header
from vdisk.stores.memory import MemoryStore


def new_image(**options: object) -> MemoryStore:
    store = MemoryStore()
    images.create(store, 1 << 20, **options)
    return store


def poked(store: MemoryStore, offset: int, layout: str, value: int) -> MemoryStore:
    """A copy of the image with one big-endian field changed."""
    content = bytearray(store.content())
    struct.pack_into(">" + layout, content, offset, value)
    return MemoryStore(content)


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(
    version=st.sampled_from([2, 3]),
    backing=st.none() | names.filter(lambda name: len(name.encode()) < 200),
    backing_format=st.none() | st.sampled_from(["raw", "qcow2"]),
    unknown=st.lists(st.tuples(st.integers(1, 1000), st.binary(max_size=40)), max_size=3),
    autoclear=st.integers(0, 1 << 64).map(lambda bits: bits & ~layout.RAW_EXTERNAL_DATA),
    additional=st.binary(max_size=4).map(lambda data: bytes(8) * bool(data) + data * 8),
)
def test_what_is_written_is_read(
    version: int,
    backing: str | None,
    backing_format: str | None,
    unknown: list[tuple[int, bytes]],
    autoclear: int,
    additional: bytes,
) -> None:
    header = Header()
    header.version = version
    header.size, header.cluster_bits = 1 << 30, 12
    header.backing_file, header.backing_format = backing, backing_format
    header.extensions = unknown
    if version == 3:
        header.autoclear_features = autoclear & (1 << 64) - 1
        header.additional = additional
    again = parse(header.to_bytes(), path="memory")
    if version == 2:
        header.feature_names.clear()
    header.name_offset = again.name_offset
    assert vars(again) == vars(header)
    assert again.to_bytes() == header.to_bytes()


@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_declared_error(tail: bytes) -> None:
    for head in (b"", b"QFI\xfb", b"QFI\xfb\0\0\0\x02", b"QFI\xfb\0\0\0\x03"):
        try:
            parse(head + tail, path="memory")
        except VdiskError as error:
            assert error.path == "memory"


@given(st.integers(0, 111), st.binary(min_size=1, max_size=8))
def test_a_changed_header_opens_or_is_a_declared_error(offset: int, change: bytes) -> None:
    content = bytearray(new_image().content())
    content[offset : offset + len(change)] = change
    store = MemoryStore(content)
    try:
        with images.open_image(store, readonly=True) as image:
            image.read(0, min(image.size, 1 << 20))
    except VdiskError:
        pass
    assert store.content() == content


@pytest.mark.parametrize(
    ("offset", "field", "value", "rule"),
    [
        (8, "Q", 50, "backing file name does not lie"),
        (20, "I", 8, "cluster_bits"),
        (20, "I", 22, "cluster_bits"),
        (24, "Q", 1 << 63, "8 EiB"),
        (24, "Q", 1 << 40, "too small"),
        (36, "I", 1 << 30, "at most"),
        (40, "Q", 0x30001, "cluster boundary"),
        (40, "Q", 1 << 40, "past the end"),
        (48, "Q", 0x10200, "cluster boundary"),
        (56, "I", 0, "no refcount table"),
        (56, "I", 1 << 20, "at most"),
        (60, "I", 1 << 20, "snapshots"),
        (64, "Q", 1, None),
        (96, "I", 7, "refcount_order"),
        (100, "I", 90, "header_length"),
        (100, "I", 1 << 20, "header_length"),
    ],
)
def test_a_broken_rule_is_named(offset: int, field: str, value: int, rule: str | None) -> None:
    store = poked(new_image(), offset, field, value)
    if offset == 8:
        store = poked(store, 16, "I", 5)
    if rule is None:
        read_header(store)
        return
    with pytest.raises(VdiskError, match=rule):
        read_header(store)


def test_extensions_end_with_the_cluster_wherever_the_name_claims_to_be() -> None:
    content = bytearray(new_image(cluster_size=512).content())
    content[112:512] = b"\x12\x34\x56\x78\0\0\0\0" * 50
    store = poked(poked(MemoryStore(content), 8, "Q", 1 << 40), 16, "I", 5)
    with pytest.raises(CorruptImageError, match="backing file name does not lie"):
        read_header(store)


def test_an_unknown_incompatible_feature_is_refused_by_name() -> None:
    store = poked(new_image(), 72, "Q", 1 << 5)
    with pytest.raises(UnsupportedFeatureError, match=r"Unknown incompatible feature: 20$"):
        read_header(store)


def test_the_feature_name_table_names_unknown_features() -> None:
    store = new_image()
    header = read_header(store)
    header.feature_names[0, 40] = "time travel"
    header.incompatible_features |= 1 << 40
    store.write(0, header.to_bytes())
    with pytest.raises(UnsupportedFeatureError, match="time travel"):
        read_header(store)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (b"\0\x3fcut short", "cut short"),
        (b"\0\x3f" + b"padded\0with spaces".ljust(46), "padded"),
    ],
)
def test_feature_names_end_at_a_zero_and_with_the_table(table: bytes, name: str) -> None:
    header = read_header(new_image())
    header.feature_names = {}
    header.extensions = [(0x6803F857, table)]
    header.incompatible_features |= 1 << 63
    store = new_image()
    store.write(0, header.to_bytes())
    with pytest.raises(UnsupportedFeatureError, match=rf"feature\(s\): {name}$"):
        read_header(store)


def test_unknown_autoclear_bits_are_cleared_by_the_first_writer() -> None:
    store = poked(new_image(), 88, "Q", 1 << 20)
    with images.open_image(store, readonly=True) as image:
        assert image.header.autoclear_features == 1 << 20
    with images.open_image(MemoryStore(store.content())) as image:
        assert image.header.autoclear_features == 0


def test_a_corrupt_image_is_opened_for_reading_only() -> None:
    store = poked(new_image(), 72, "Q", layout.CORRUPT)
    with pytest.raises(CorruptImageError, match="Image is corrupt"):
        images.open_image(MemoryStore(store.content()))
    images.open_image(store, readonly=True).close()


def test_the_feature_table_gives_way_in_small_clusters() -> None:
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512, backing_file="b" * 150, backing_fmt="raw")
    assert read_header(store).backing_file == "b" * 150
