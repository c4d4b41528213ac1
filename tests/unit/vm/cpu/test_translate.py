"""Blocks: where they end, which flags they leave, how they are linked and dropped."""

from __future__ import annotations

import pytest

from vdisk.vm.cpu.arena import Arena, HotRegion
from vdisk.vm.cpu.decode import FLAT_MODE, Mode
from vdisk.vm.cpu.flags import Family, cc_op
from vdisk.vm.cpu.semantics import load_all
from vdisk.vm.cpu.translate import BLOCK_LIMIT, Translator
from vdisk.vm.memory import GuestMemory

LONG = Mode(64, 64, checked=False)
PAGE = 5
STALE = 0x5741


class Handlers(dict):
    """A number for each shape, as an engine gives addresses."""

    def __missing__(self, shape):
        self[shape] = 1000 + len(self)
        return self[shape]


@pytest.fixture
def handlers():
    load_all()
    return Handlers()


@pytest.fixture
def arena():
    return Arena(GuestMemory(1 << 20))


@pytest.fixture
def translator(arena, handlers):
    return Translator(arena, lambda shapes: [handlers[shape] for shape in shapes] and handlers)


def shapes(arena, handlers, codes, offset, count):
    """The shapes of a block's first records."""
    by_number = {number: shape for shape, number in handlers.items()}
    entry = arena.entry(codes, offset)
    return [by_number[arena.handler(entry + place)] for place in range(count)]


def translate(translator, code, offset=0, mode=LONG):
    assert translator.translate(bytes.fromhex(code), PAGE, offset, mode)
    return translator.arena.codes(PAGE, mode)


def test_flags_that_the_next_instruction_overwrites_are_not_left(translator, arena, handlers):
    codes = translate(translator, "01c8 29d8 c3")  # add; sub; ret
    add, sub, ret = shapes(arena, handlers, codes, 0, 3)
    assert (add.operation, add.flags) == ("add", False)
    assert (sub.operation, sub.flags) == ("sub", True)
    assert ret.operation == "ret"


def test_a_fault_shows_flags_so_they_are_left_before_it(translator, arena, handlers):
    codes = translate(translator, "01c8 8903 29d8 c3")  # add; mov [rbx], eax; sub; ret
    assert shapes(arena, handlers, codes, 0, 1)[0].flags


def test_a_reader_is_told_where_its_flags_come_from(translator, arena, handlers):
    codes = translate(translator, "39d8 7402 c3 90 90 c3")  # cmp; je; ret
    _, jump = shapes(arena, handlers, codes, 0, 2)
    assert jump.operation == "jcc"
    assert jump.known == cc_op(Family.SUB, 32)


def test_a_carry_that_inc_keeps_is_known_to_nobody(translator, arena, handlers):
    codes = translate(translator, "0fa3c8 7201 c3")  # bt; jc
    assert shapes(arena, handlers, codes, 0, 2)[1].known == -1


def test_a_block_ends_at_its_limit(translator, arena):
    translate(translator, "90" * (BLOCK_LIMIT + 10))
    assert translator.last_end == BLOCK_LIMIT


def test_half_an_instruction_is_no_block(translator):
    assert not translator.translate(b"\xe8\x00", PAGE, 0, LONG)


def test_a_jump_waits_for_its_target_and_then_follows_it(translator, arena):
    codes = translate(translator, "eb04" + "90" * 4 + "c3")  # jmp +4
    jump = arena.entry(codes, 0)
    stub = arena.wide(jump)
    translate(translator, "eb04" + "90" * 4 + "c3", offset=6)
    assert arena.wide(jump) == arena.record_address(arena.entry(codes, 6)) != stub


def test_a_narrow_jump_is_not_linked(translator, arena, handlers):
    translator.translate(bytes.fromhex("66eb02909090c3"), PAGE, 0, FLAT_MODE)
    codes = arena.codes(PAGE, FLAT_MODE)
    assert not shapes(arena, handlers, codes, 0, 1)[0].variant >> 8


def test_the_instruction_after_sti_ends_the_block(translator):
    translate(translator, "fb 90 90 90")
    assert translator.last_end == 2


def test_dropping_a_page_makes_all_its_records_stale(translator, arena):
    codes = translate(translator, "01c8 29d8 c3")
    first = arena.entry(codes, 0)
    arena.drop(PAGE, STALE)
    assert arena.entry(codes, 0) == 0
    assert [arena.handler(first + place) for place in range(3)] == [STALE] * 3


def test_a_write_drops_the_blocks_that_it_touches_and_no_others(translator, arena):
    code = "01c8 c3 29d8 c3"
    codes = translate(translator, code)
    translate(translator, code, offset=3)
    second = arena.entry(codes, 3)
    assert not arena.drop(PAGE, STALE, 6, 7)
    assert arena.drop(PAGE, STALE, 2, 3)
    assert (arena.entry(codes, 0), arena.entry(codes, 3)) == (0, second)
    assert arena.handler(second) != STALE
    assert arena.mask(PAGE) == 1


def test_a_region_gives_way_when_any_of_its_blocks_is_written_to(translator, arena):
    codes = translate(translator, "01c8 c3 29d8 c3")
    translate(translator, "01c8 c3 29d8 c3", offset=3)
    head = arena.entry(codes, 0)
    before = arena.handler(head)
    arena.pages[PAGE].regions.append(HotRegion(head, before, ((0, 3), (3, 6))))
    arena.set_handler(head, 0x4077)
    arena.drop(PAGE, STALE, 4, 5)
    assert arena.handler(head) == before
    assert not arena.pages[PAGE].regions


def test_only_pages_with_code_are_told_of_writes(translator, arena):
    translate(translator, "c3")
    assert arena.touches_code(PAGE << 12, 1) == [(PAGE, 0, 1)]
    assert arena.touches_code((PAGE + 1) << 12, 1) == []
    assert arena.touches_code(0, 1 << 20) == [(PAGE, 0, 0x1000)]
