"""Regions are found by their bytes and by nothing less."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.cpu.codegen import c_function
from vdisk.vm.cpu.compiler import Level
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.linker import CodeMemory, Piece
from vdisk.vm.cpu.region_builder import SYMBOL
from vdisk.vm.cpu.region_store import MOST_ALIKE, MOST_COPIES, RESERVED, KeptRegion, RegionStore

LONG = Mode(64, 64, checked=False)
CODE = Piece(b"\xc3", {SYMBOL: 0}, []).pack()
PAGE = bytes(range(256)) * 16


@pytest.fixture
def memory():
    return CodeMemory(c_function, RESERVED + (1 << 20))


def region(
    *spans: tuple[int, int],
    mode: Mode = LONG,
    page: bytes = PAGE,
    fields: tuple[int, ...] = (),
    entries: tuple[int, ...] = (),
    level: Level = Level.BEST,
) -> KeptRegion:
    """By default its first block is its entry."""
    blocks = tuple(page[start:end] for start, end in spans)
    entries = entries or (spans[0][0],)
    return KeptRegion(mode, spans, entries, fields, blocks, lambda: CODE, level)


def find(store: RegionStore, offset: int, page: bytes = PAGE, mode: Mode = LONG):
    found = store.candidates(mode, offset, page[offset:])
    return [each for each in found if each.base(page) is not None]


def test_a_later_run_finds_it(memory, tmp_path):
    RegionStore(memory, str(tmp_path), "x").keep(region((16, 40), (64, 67)))
    store = RegionStore(memory, str(tmp_path), "x")
    (found,) = find(store, 16)
    assert found.spans == ((16, 40), (64, 67))
    assert store.address(found, 0) == store.address(found, 0) >= memory.address
    assert not find(store, 64)
    assert not find(store, 16, mode=LONG._replace(code=32, stack=32))
    assert not find(RegionStore(memory, str(tmp_path), "another version"), 16)


def test_it_is_found_by_each_of_its_entries(memory, tmp_path):
    RegionStore(memory, str(tmp_path), "x").keep(region((16, 40), (64, 67), entries=(16, 64)))
    store = RegionStore(memory, str(tmp_path), "x")
    (found,) = find(store, 16)
    assert find(store, 64) == [found]
    assert found.entries == (16, 64)


def test_a_short_block_is_found_whatever_follows_it(memory):
    store = RegionStore(memory, None, "x")
    store.keep(region((16, 18)))
    assert find(store, 16, PAGE[:18] + bytes(len(PAGE) - 18))


@pytest.mark.parametrize("changed", [16, 39, 66])
def test_each_byte_counts(memory, changed):
    store = RegionStore(memory, None, "x")
    store.keep(region((16, 40), (64, 67)))
    other = bytearray(PAGE)
    other[changed] ^= 1
    assert not find(store, 16, bytes(other))
    other = bytearray(PAGE)
    other[40] ^= 1
    assert find(store, 16, bytes(other))


def test_a_short_block_at_the_end_of_the_page(memory):
    store = RegionStore(memory, None, "x")
    store.keep(region((4095, 4096)))
    assert find(store, 4095)


def test_those_that_begin_alike_are_told_apart_and_not_too_many(memory):
    store = RegionStore(memory, None, "x")
    pages = [PAGE[:100] + bytes([number]) + PAGE[101:] for number in range(MOST_ALIKE + 5)]
    for page in pages:
        store.keep(region((16, 24), (96, 104), page=page))
    assert len(store.candidates(LONG, 16, PAGE[16:])) == MOST_ALIKE
    assert len(find(store, 16, pages[-1])) == 1
    assert not find(store, 16, pages[0])


def test_the_last_of_the_same_bytes_counts(memory):
    store = RegionStore(memory, None, "x")
    store.keep(region((16, 24)))
    last = store.keep(region((16, 24)))
    assert find(store, 16) == [last]


def test_of_the_same_bytes_the_best_counts(memory, tmp_path):
    store = RegionStore(memory, str(tmp_path), "x")
    first = store.keep(region((16, 24), level=Level.QUICK))
    assert store.address(first, 0) in store.quick
    best = store.keep(region((16, 24)))
    assert store.keep(region((16, 24), level=Level.QUICK)) is best
    assert find(store, 16) == [best]
    (found,) = find(RegionStore(memory, str(tmp_path), "x"), 16)
    assert found.level is Level.BEST


def test_damaged_code_is_not_used(memory, tmp_path):
    RegionStore(memory, str(tmp_path), "x").keep(region((16, 40)))
    (path,) = tmp_path.iterdir()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    store = RegionStore(memory, str(tmp_path), "x")
    (found,) = find(store, 16)
    assert store.address(found, 0) == 0


def test_room_is_left_for_handlers(tmp_path):
    memory = CodeMemory(c_function, RESERVED)
    store = RegionStore(memory, None, "x")
    assert store.address(store.keep(region((16, 40))), 0) == 0


NUMBERED = b"\x48\x81\xc0\0\0\0\x81\x48\x81\xc1\x34\x12\0\x82"
"""add rax, 0FFFFFFFF81000000h; add rcx, 0FFFFFFFF82001234h"""
FIELDS = (3, 10)


def moved(by: int, more: int = 0) -> bytes:
    """The page in which both numbers are larger, the second one by some more."""
    page = bytearray(NUMBERED.ljust(4096, b"\x90"))
    for place, extra in zip(FIELDS, (0, more), strict=True):
        number = int.from_bytes(page[place : place + 4], "little") + by + extra
        page[place : place + 4] = number.to_bytes(4, "little")
    return bytes(page)


def test_addresses_of_a_kernel_may_all_be_others(memory, tmp_path):
    RegionStore(memory, str(tmp_path), "x").keep(region((0, 14), page=moved(0), fields=FIELDS))
    store = RegionStore(memory, str(tmp_path), "x")
    (found,) = find(store, 0, moved(0x1200_0000))
    assert found.base(moved(0)) == -0x7F00_0000
    assert found.base(moved(0x1200_0000)) == -0x6D00_0000
    assert found.base(moved(0x20_0000, more=1)) is None
    other = bytearray(moved(0x20_0000))
    other[7] ^= 1
    assert found.base(bytes(other)) is None


def test_of_two_kernels_the_regions_are_one(memory):
    store = RegionStore(memory, None, "x")
    for by in range(0, 0x1000_0000, 0x20_0000):
        store.keep(region((0, 14), page=moved(by), fields=FIELDS))
    assert len(store.candidates(LONG, 0, NUMBERED)) == 1


def test_a_region_is_copied_for_each_kernel_but_not_for_too_many(memory):
    store = RegionStore(memory, None, "x")
    kept = store.keep(region((0, 14), page=moved(0), fields=FIELDS))
    places = [store.address(kept, base) for base in range(MOST_COPIES + 1)]
    assert len(set(places)) == MOST_COPIES + 1
    assert places[-1] == 0
    assert store.address(kept, 1) == places[1]


@given(st.binary(max_size=80))
def test_any_label_is_a_region_or_a_value_error(label):
    try:
        kept = KeptRegion.from_label(label, lambda: None)
    except ValueError:
        return
    assert kept.label()[4:] == label[4:]


@given(
    st.builds(Mode, st.sampled_from([16, 32, 64]), st.sampled_from([16, 32, 64]),
              st.booleans(), st.booleans(), st.booleans()),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 60)), min_size=1, max_size=20),
    st.sampled_from(Level),
)  # fmt: skip
def test_labels_keep_everything(mode, blocks, level):
    spans = [(start, min(start + size, 4096)) for start, size in blocks]
    kept = region(*spans, mode=mode, fields=(8, 4092), level=level)
    again = KeptRegion.from_label(kept.label(), lambda: None)
    assert again.is_like(kept)
    assert (again.mode, again.entries, again.blocks) == (kept.mode, kept.entries, kept.blocks)
    assert again.level is level
