"""Which blocks a region takes in, and where it is entered."""

from __future__ import annotations

import pytest

from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.decoder import Decoder
from vdisk.vm.cpu.hot import Region
from vdisk.vm.cpu.semantics import load_all

LONG = Mode(64, 64, checked=False)


@pytest.fixture(scope="module")
def decoder():
    load_all()
    return Decoder(LONG)


def region(decoder, code, head, blocks, **options):
    """The region around ``head``; ``blocks``: what is translated."""
    content = bytes.fromhex(code).ljust(4096, b"\xcc")
    made = Region(decoder, LONG, frozenset(blocks), head, **options)
    return made if made.gather(content) else None


FUNCTION = "31c0 e8f9100000 83c001 39d8 75f9 89c2 c3"
"""0: xor eax, eax; call another page; 7: add eax, 1; cmp eax, ebx; jne 7; 14: mov edx, eax; ret"""


@pytest.mark.parametrize("head", [0, 7, 14])
def test_wherever_it_was_found_hot_it_is_the_function(decoder, head):
    made = region(decoder, FUNCTION, head, {0, 7, 14})
    assert made.blocks.keys() == {0, 7, 14}
    assert made.entries == (0, 7)


def test_a_function_is_entered_where_it_comes_back_to(decoder):
    made = region(decoder, "31c0 e8f9100000 83c001 01d8 c3", 0, {0, 7})
    assert made.entries == (0, 7)


def test_a_loop_is_entered_where_a_jump_leads_back_to(decoder):
    code = "31c0 83c001 85c9 7402 01c8 39d8 75f3 c3"  # 2: the loop; 9: around which its test jumps
    made = region(decoder, code, 11, {0, 2, 9, 11, 15})
    assert made.blocks.keys() == {0, 2, 9, 11, 15}
    assert made.entries == (0, 2)


def test_only_what_was_executed_is_in_it(decoder):
    made = region(decoder, FUNCTION, 7, {7, 14})
    assert made.blocks.keys() == {7, 14}
    assert made.entries == (7,)


def test_the_nearest_blocks_are_in_it_when_there_are_too_many(decoder):
    made = region(decoder, FUNCTION, 14, {0, 7, 14}, limit=6)
    assert made.blocks.keys() == {7, 14}
    assert made.entries == (7,)


def test_a_block_that_was_met_outside_of_it_becomes_an_entry(decoder):
    content = bytes.fromhex(FUNCTION).ljust(4096, b"\xcc")
    made = Region(decoder, LONG, frozenset({0, 7, 14}), 14)
    assert made.gather(content, enter=True)
    assert made.entries == (0, 7, 14)


def test_nothing_is_gained_where_it_would_begin_with_a_system_instruction(decoder):
    assert region(decoder, "f4 90 90 90 90 c3", 0, {0}) is None
    made = region(decoder, "e8fb100000 f4 83c001 90 90 c3", 0, {0, 5, 6})
    assert made is None or 5 not in made.entries
