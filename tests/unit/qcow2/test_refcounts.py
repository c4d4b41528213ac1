"""Reference counts: packing, allocation, deferred freeing, growth of the table."""

from __future__ import annotations

import contextlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import images
from vdisk.errors import (
    CorruptImageError,
    DeviceError,
    InvalidRequestError,
    NoSpaceError,
    UnsupportedFeatureError,
)
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.formats._qcow2.refcounts import Refcounts, pack_counts, unpack_counts
from vdisk.formats._qcow2.tables import words_to_bytes
from vdisk.formats.qcow2 import read_header
from vdisk.stores.memory import MemoryStore

WIDTHS = [1, 2, 4, 8, 16, 32, 64]


def new_refcounts(store: MemoryStore | None = None, **options: object) -> Refcounts:
    store = store or MemoryStore()
    images.create(store, 1 << 20, **options)
    return Refcounts(store, read_header(store), 1 << 20, lambda: None)


@given(st.sampled_from(WIDTHS), st.integers(0, 1 << 64), st.integers(1, 8))
def test_packing_round_trips(bits: int, seed: int, octets: int) -> None:
    code = {8: "B", 16: "H", 32: "I", 64: "Q"}[max(bits, 8)]
    count = octets * 64 // bits
    counts = array(code, [(seed >> (i % 64)) % (1 << bits) for i in range(count)])
    packed = pack_counts(counts, bits)
    assert len(packed) == octets * 8
    assert unpack_counts(packed, bits) == counts


def test_bit_0_is_the_least_significant() -> None:
    """ "refcount block entry … bit 0 means the least significant bit"."""
    assert pack_counts(array("B", [1, 0, 0, 0, 0, 0, 0, 1]), 1) == b"\x81"
    assert pack_counts(array("B", [1, 2, 3, 0]), 2) == b"\x39"
    assert pack_counts(array("B", [1, 15]), 4) == b"\xf1"


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_count_that_does_not_fit_changes_nothing(bits: int) -> None:
    refcounts = new_refcounts(refcount_bits=bits)
    first, _ = refcounts.allocate(3)
    last = refcounts.block(0)
    assert last is not None
    last.words[first + 1] = refcounts.max_count
    with pytest.raises(UnsupportedFeatureError, match="refcount_bits"):
        refcounts.increase(first, 3)
    assert refcounts.count(first) == 1


def test_runs_are_contiguous_and_counted_once() -> None:
    refcounts = new_refcounts(cluster_size=512)
    seen: set[int] = set()
    for count in (1, 5, 300, 2):
        first, _ = refcounts.allocate(count)
        run = set(range(first, first + count))
        assert not run & seen
        assert list(refcounts.counts(first, count)) == [1] * count
        seen |= run


def test_what_is_freed_is_found_again() -> None:
    refcounts = new_refcounts()
    first, fresh = refcounts.allocate(4)
    assert fresh
    assert refcounts.decrease(first + 1, 2) == [(first + 1, 2)]
    again, fresh = refcounts.allocate(2)
    assert again == first + 1
    assert not fresh


def test_freeing_what_is_free_is_corruption() -> None:
    refcounts = new_refcounts()
    with pytest.raises(CorruptImageError, match="count 0"):
        refcounts.decrease(1000, 1)


@pytest.mark.parametrize("bits", [1, 16, 64])
def test_the_table_grows_and_counts_itself(bits: int) -> None:
    refcounts = new_refcounts(cluster_size=512, refcount_bits=bits)
    entries = len(refcounts.table.words)
    while len(refcounts.table.words) == entries:
        refcounts.allocate(500)
    assert refcounts.table_moved_from is not None
    own = list(refcounts.own_clusters())
    assert len(own) == len(set(own))
    assert all(refcounts.count(cluster) == 1 for cluster in own)


def test_where_a_table_stood_that_grew_is_free_when_the_image_is_closed() -> None:
    store = MemoryStore(growable=True)
    images.create(store, 5 << 20, cluster_size=512)
    with images.open_image(store) as image:
        old = image.header.refcount_table_offset
        image.write(0, bytes(image.size))
        image.create_snapshot("keeps it")
        image.write(0, bytes(image.size))
    content = MemoryStore(store.content())
    with images.open_image(content, readonly=True) as image:
        assert image.header.refcount_table_offset != old
        assert image.check().clean


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_whoever_opens_an_image_says_whether_counts_are_lazy(
    stored: bool, asked: bool | None
) -> None:
    store = MemoryStore(growable=True)
    images.create(store, 1 << 20, lazy_refcounts=stored)
    options = {} if asked is None else {"lazy_refcounts": asked}
    lazy = stored if asked is None else asked
    with images.open_image(store, **options) as image:
        image.write(0, b"x")
        image.flush()
        cut = store.content()
    with images.open_image(MemoryStore(cut), readonly=True) as image:
        assert image.dirty == lazy
        assert bool(image.check().corruptions) == lazy
        assert image.header.lazy_refcounts == stored
    with images.open_image(MemoryStore(cut)) as image:
        assert image.check().clean


def test_version_2_is_never_lazy() -> None:
    store = MemoryStore(growable=True)
    images.create(store, 1 << 20, compat="0.10")
    with pytest.raises(InvalidRequestError, match="Lazy refcounts require"):
        images.open_image(store, lazy_refcounts=True)


def test_a_file_that_cannot_grow_is_full() -> None:
    small = MemoryStore(growable=True)
    images.create(small, 1 << 20)
    fixed = MemoryStore(small.content() + bytes(3 * 65536), growable=False)
    refcounts = Refcounts(fixed, read_header(fixed), 1 << 20, lambda: None)
    refcounts.allocate(3)
    with pytest.raises(NoSpaceError):
        refcounts.allocate(1)


def test_last_used() -> None:
    refcounts = new_refcounts()
    first, _ = refcounts.allocate(7)
    assert refcounts.last_used() == first + 6


def test_a_run_longer_than_the_cache_is_counted_whole() -> None:
    """Two blocks fit in the cache; none of ten may be lost between fetching and changing it."""
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512)

    def save() -> None:
        for block in refcounts.blocks.dirty():
            store.write(block.offset, pack_counts(block.words, refcounts.bits))
            block.take_dirty()

    refcounts = Refcounts(store, read_header(store), 1024, save)
    first, _ = refcounts.allocate(2560)
    refcounts.increase(first, 2560)
    assert set(refcounts.counts(first, 2560)) == {2}
    refcounts.decrease(first, 2560)
    assert set(refcounts.counts(first, 2560)) == {1}


def test_a_new_block_is_counted_or_not_made() -> None:
    """Its cluster is counted by an older block, which the new one drives out of the cache."""
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512, refcount_bits=64)
    faults = Faults(store)
    refcounts = Refcounts(faults, read_header(store), 1024, lambda: None)
    while refcounts.allocate(1)[0] < 125:
        pass
    for block in refcounts.blocks.dirty():
        block.take_dirty()
        store.write(block.offset, words_to_bytes(block.words))
    refcounts.increase(5)
    assert refcounts.count(126) == 0
    where = Where(iotypes=frozenset({IoType.READ}), once=True)
    faults.set_rules(InjectError(where=where))
    with contextlib.suppress(DeviceError):
        refcounts.allocate(4)
    faults.set_rules()
    for offset in filter(None, refcounts.table.words):
        assert refcounts.count(offset // 512) == 1


def test_a_new_block_that_finds_no_room_is_not_made() -> None:
    store = MemoryStore()
    images.create(store, 1 << 20, cluster_size=512, refcount_bits=64)

    def full() -> None:
        raise DeviceError("the tables in memory cannot be saved")

    refcounts = Refcounts(store, read_header(store), 1024, full)
    with pytest.raises(DeviceError):
        while True:
            refcounts.allocate(3)
    for offset in filter(None, refcounts.table.words):
        assert refcounts.count(offset // 512) == 1
    assert refcounts.table.words.count(0) == 64 - 2
    assert refcounts.last_used() + 1 == sum(map(refcounts.count, range(128)))
