"""What becomes of samples: what is compiled, from what, and when that is used."""

from __future__ import annotations

import pytest

from vdisk.vm.accel.hotspots import COVERED_THRESHOLD, THRESHOLD
from vdisk.vm.accel.llvm import LlvmAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.region_store import RegionStore
from vdisk.vm.memory import PAGE_SIZE, GuestMemory

LONG = Mode(64, 64, checked=False)
PAGE = 5
START = PAGE * PAGE_SIZE
LOOP = bytes.fromhex("83c001 01c2 39d8 75f7 c3")
"""0: add eax, 1; add edx, eax; cmp eax, ebx; jne 0; 9: ret"""
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
        (physical, mode), content, entries = self.hotspots._hottest(wait=False)
        return self.hotspots._compile(physical, mode, content, entries)

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
    it.found(THRESHOLD - 1)
    assert not it.is_waiting()
    it.found(1)
    assert it.compile()
    assert it.in_use() == {0}


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
