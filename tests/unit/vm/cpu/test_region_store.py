"""Regions are found by their bytes and by nothing less."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.cpu.codegen import c_function
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.hot import SYMBOL
from vdisk.vm.cpu.linker import CodeMemory, Piece
from vdisk.vm.cpu.region_store import MOST_ALIKE, RESERVED, KeptRegion, RegionStore, key_bytes

LONG = Mode(64, 64, checked=False)
CODE = Piece(b"\xc3", {SYMBOL: 0}, []).pack()
PAGE = bytes(range(256)) * 16


@pytest.fixture
def memory():
    return CodeMemory(c_function, RESERVED + (1 << 20))


def region(*spans: tuple[int, int], mode: Mode = LONG, page: bytes = PAGE) -> KeptRegion:
    blocks = tuple(page[start:end] for start, end in spans)
    head = spans[0][0]
    return KeptRegion(mode, head, key_bytes(page, head), spans, blocks, lambda: CODE)


def find(store: RegionStore, offset: int, page: bytes = PAGE, mode: Mode = LONG):
    found = store.candidates(mode, offset, key_bytes(page, offset))
    return [each for each in found if each.matches(page)]


def test_a_later_run_finds_it(memory, tmp_path):
    RegionStore(memory, str(tmp_path), "x").keep(region((16, 40), (64, 67)))
    store = RegionStore(memory, str(tmp_path), "x")
    (found,) = find(store, 16)
    assert found.spans == ((16, 40), (64, 67))
    assert store.address(found) == store.address(found) >= memory.address
    assert not find(store, 64)
    assert not find(store, 16, mode=LONG._replace(code=32, stack=32))
    assert not find(RegionStore(memory, str(tmp_path), "another version"), 16)


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
    assert len(store.candidates(LONG, 16, key_bytes(PAGE, 16))) == MOST_ALIKE
    assert len(find(store, 16, pages[-1])) == 1
    assert not find(store, 16, pages[0])


def test_the_last_of_the_same_bytes_counts(memory):
    store = RegionStore(memory, None, "x")
    store.keep(region((16, 24)))
    last = store.keep(region((16, 24)))
    assert find(store, 16) == [last]


def test_damaged_code_is_not_used(memory, tmp_path):
    RegionStore(memory, str(tmp_path), "x").keep(region((16, 40)))
    (path,) = tmp_path.iterdir()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    store = RegionStore(memory, str(tmp_path), "x")
    (found,) = find(store, 16)
    assert store.address(found) == 0


def test_room_is_left_for_handlers(tmp_path):
    memory = CodeMemory(c_function, RESERVED)
    store = RegionStore(memory, None, "x")
    assert store.address(store.keep(region((16, 40)))) == 0


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
)  # fmt: skip
def test_labels_keep_everything(mode, blocks):
    spans = [(start, min(start + size, 4096)) for start, size in blocks]
    kept = region(*spans, mode=mode)
    again = KeptRegion.from_label(kept.label(), lambda: None)
    assert (again.mode, again.head, again.spans, again.blocks) == (
        *(kept.mode, kept.head, kept.spans),
        kept.blocks,
    )
