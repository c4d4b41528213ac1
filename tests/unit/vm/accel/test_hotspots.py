"""What becomes of samples: what is compiled, from what, and when that is used."""

from __future__ import annotations

import struct

import pytest

from vdisk.vm.accel import hotspots
from vdisk.vm.accel.hotspots import (
    COVERED_THRESHOLD,
    FEW,
    QUICK_FIRST,
    THRESHOLD,
    WORTH_BEST,
)
from vdisk.vm.accel.llvm import LlvmAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu.arena import MOST_DROPS
from vdisk.vm.cpu.compiler import Level
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.region_store import RegionStore
from vdisk.vm.memory import PAGE_SIZE, GuestMemory
from vdisk.vm.ranges import Ranges

LONG = Mode(64, 64, checked=False)
PAGE = 5
START = PAGE * PAGE_SIZE
LOOP = bytes.fromhex("83c001 01c2 39d8 75f7 c3")
"""0: add eax, 1; add edx, eax; cmp eax, ebx; jne 0; 9: ret"""
TAIL = bytes.fromhex("eb0d") + bytes(13) + LOOP
"""0: jmp 15; 15: the loop."""
OTHER = bytes.fromhex("83c002 01c2 39d8 75f7 c3")


class Bench:
    """An engine whose second tier does nothing by itself."""

    def __init__(self):
        self.memory = GuestMemory(1 << 20)
        self.engine = LlvmAccelerator(self.memory, Bus())
        self.vcpu = self.engine.vcpu(0)
        self.arena, self.hotspots = self.engine.arena, self.engine.hotspots
        self.hotspots.use(RegionStore(self.engine.native.memory, None, ""))

    def write(self, code, offset=0):
        self.memory.write(START + offset, code)
        self.engine.dirtied([(START + offset, len(code))])

    def translate(self, *offsets):
        for offset in offsets:
            self.engine.translate(self.vcpu, START + offset, LONG)

    def found(self, times, offset=0):
        for _ in range(times):
            self.hotspots.found(START + offset, LONG)

    def compile(self):
        """Compile what was met most often; True if it is used now."""
        (physical, mode), content, entries = self.hotspots._hottest()
        return self.hotspots._compile(physical, mode, content, entries)

    def make_best(self):
        """Make the quick region that was met most often better; True if it is used now."""
        region = self.hotspots._hottest_region()
        return region is not None and self.hotspots._make_best(*region)

    def level(self, offset=0):
        """Of the code of the region that is entered by a block."""
        address = self.hotspots._region_at(START + offset, LONG)
        kept = {each for alike in self.hotspots.store.known.values() for each in alike}
        (level,) = (each.level for each in kept if address in each.addresses.values())
        return level

    def is_waiting(self):
        return bool(self.hotspots._waiting)

    def in_use(self):
        """Where regions of the page are entered."""
        codes = self.arena.codes(PAGE, LONG)
        records = {region.record for region in self.arena.regions.get(PAGE, ())}
        return {at for at in self.arena.entries(codes) if self.arena.entry(codes, at) in records}


@pytest.fixture
def it():
    made = Bench()
    yield made
    made.engine.close()


def test_what_is_met_twice_is_compiled(it):
    it.write(LOOP)
    it.translate(0, 9)
    it.found(THRESHOLD)
    assert it.compile()
    assert it.in_use() == {0}


def test_a_page_that_changes_often_is_let_alone_until_it_does_no_more(it, monkeypatch):
    for _ in range(MOST_DROPS + 1):
        it.write(LOOP)
        it.translate(0)
    it.write(LOOP)
    it.translate(0)
    it.found(COVERED_THRESHOLD)
    assert not it.is_waiting()
    monkeypatch.setattr(hotspots, "CALM", 0)
    it.write(LOOP)
    it.translate(0)
    it.found(1)
    assert not it.is_waiting()
    it.found(1)
    assert it.is_waiting()
    assert it.compile()
    assert it.in_use() == {0}


def test_once_is_enough_while_few_wait(it):
    starts = range(0, 16 * (FEW + 2), 16)
    for start in starts:
        it.write(LOOP, start)
        it.translate(start)
        it.found(1, start)
    waiting = it.hotspots._waiting
    assert {physical - START for physical, _ in waiting} == set(starts[:-1])
    it.found(THRESHOLD - 1, starts[-1])
    assert len(waiting) == len(starts)


def test_a_block_of_a_region_has_to_be_met_more_often_and_is_an_entry_then(it):
    it.write(LOOP)
    it.translate(0, 9)
    it.found(THRESHOLD)
    it.compile()
    it.found(COVERED_THRESHOLD)
    assert not it.is_waiting()  # an entry needs nothing
    it.found(COVERED_THRESHOLD - 1, offset=9)
    assert not it.is_waiting()
    it.found(1, offset=9)
    assert it.compile()
    assert it.in_use() == {0, 9}


def test_other_blocks_of_a_region_wait_no_more(it):
    it.write(LOOP)
    it.translate(0, 9)
    it.found(THRESHOLD + 1)
    it.found(THRESHOLD, offset=9)
    assert it.compile()
    assert not it.is_waiting()


def test_it_is_compiled_from_what_was_hot_though_something_else_stands_there_now(it):
    it.write(LOOP)
    it.translate(0, 9)
    it.found(THRESHOLD)
    it.write(OTHER)
    it.translate(0)
    assert not it.compile()
    assert not it.in_use()
    it.write(LOOP)
    it.translate(0)
    assert it.in_use() == {0}


def test_what_an_earlier_run_had_is_used_again_after_a_change(it):
    it.write(LOOP)
    it.translate(0, 9)
    it.found(THRESHOLD)
    assert it.compile()
    it.write(b"\xcc", offset=9)
    assert not it.in_use()
    it.write(LOOP[9:], offset=9)
    it.translate(9)  # no region is entered there
    assert not it.in_use()
    it.hotspots._look_again()
    assert it.in_use() == {0}


def test_the_block_that_a_region_was_made_for_may_become_an_entry_later(it):
    it.write(LOOP)
    it.translate(0, 9)
    it.found(1, offset=9)
    assert it.compile()
    assert it.in_use() == {0}
    it.found(COVERED_THRESHOLD, offset=9)
    assert it.compile()
    assert it.in_use() == {0, 9}


@pytest.fixture
def quick(it):
    """With a region that was compiled quickly."""
    it.write(TAIL)
    it.translate(0, 15, 24)
    it.found(1)
    assert it.compile()
    assert it.in_use() == {0, 15}
    return it


def test_a_region_that_goes_on_being_met_gets_its_best_code(quick):
    before = quick.hotspots._region_at(START, LONG)
    assert quick.level() is Level.QUICK
    quick.found(WORTH_BEST - 1, offset=15)
    assert not quick.make_best()
    quick.hotspots.found(START + 24, LONG, before)  # as a vCPU says that has left it
    assert quick.make_best()
    assert quick.in_use() == {0, 15}
    assert quick.level() is quick.level(15) is Level.BEST
    assert quick.hotspots.refined == 1
    quick.found(WORTH_BEST, offset=15)
    assert not quick.make_best()


def test_what_gives_way_to_the_first_tier_is_what_was_there_before_both(quick):
    quick.found(WORTH_BEST)
    assert quick.make_best()
    address = quick.hotspots._region_at(START + 15, LONG)
    record = quick.arena.entry(quick.arena.codes(PAGE, LONG), 0)
    quick.write(b"\xcc", offset=24)
    assert not quick.in_use()
    assert quick.arena.handler(record) not in quick.hotspots.store.quick
    assert quick.arena.handler(record) != address


def test_blocks_without_a_region_come_first_unless_they_are_met_much_less(quick):
    quick.write(LOOP, offset=100)
    quick.translate(100)
    quick.found(THRESHOLD, offset=100)
    quick.found(THRESHOLD * QUICK_FIRST - 1)
    assert not quick.make_best()
    quick.found(1)
    assert quick.make_best()
    assert quick.compile()


def test_a_quick_region_of_an_earlier_run_is_made_better(quick, tmp_path):
    quick.hotspots.use(RegionStore(quick.engine.native.memory, str(tmp_path), "x"))
    quick.write(TAIL)
    quick.translate(15)
    quick.found(1, offset=15)
    assert quick.compile()
    run_again(quick, tmp_path)
    assert quick.level(15) is Level.QUICK
    quick.found(WORTH_BEST, offset=15)
    assert quick.make_best()
    run_again(quick, tmp_path)
    assert quick.level(15) is Level.BEST


def run_again(quick, directory):
    """As another process would: with what is kept, and nothing in use."""
    quick.write(OTHER, offset=15)
    quick.hotspots.use(RegionStore(quick.engine.native.memory, str(directory), "x"))
    quick.write(TAIL)
    quick.translate(15)


def test_code_that_was_changed_meanwhile_is_not_made_better(quick):
    quick.found(WORTH_BEST)
    region = quick.hotspots._hottest_region()
    quick.write(OTHER, offset=15)
    assert not quick.hotspots._make_best(*region)
    assert not quick.in_use()


def test_what_a_device_writes_to_many_pages_drops_code_as_well(it):
    it.write(LOOP)
    it.translate(0)
    beside = [(page * PAGE_SIZE, PAGE_SIZE) for page in range(PAGE + 1, PAGE + 80)]
    assert not it.engine.may_touch_code(many(beside))
    it.memory.all_dirtied(many(beside))
    assert it.arena.entry(it.arena.codes(PAGE, LONG), 0)
    for hit in ((START, 1), (START - 1, 2), (START - PAGE_SIZE, 3 * PAGE_SIZE)):
        it.translate(0)
        assert it.engine.may_touch_code(many([*beside, hit]))
        it.memory.all_dirtied(many([*beside, hit]))
        assert not it.arena.entry(it.arena.codes(PAGE, LONG), 0)


def many(pairs):
    data = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    return Ranges(data)
