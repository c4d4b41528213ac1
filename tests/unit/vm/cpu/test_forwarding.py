"""What is known of the state is not loaded again, and nothing else is taken for known."""

from __future__ import annotations

import pytest

from vdisk.vm.cpu.forwarding import ForwardingBuilder
from vdisk.vm.cpu.native import KNOWN
from vdisk.vm.cpu.state import FIELDS

RBX = FIELDS["rbx"].offset
XMM1 = FIELDS["xmm1"].offset


@pytest.fixture
def b():
    return ForwardingBuilder(KNOWN)


def is_known(b, kind="i64", place=RBX):
    """Whether reading a field writes nothing that loads it."""
    before = b.body().count(" load ")
    b.load_state(place, kind)
    return b.body().count(" load ") == before


def test_what_was_stored_or_loaded_is_known(b):
    assert not is_known(b)
    assert is_known(b)
    b.set("rbx", 7)
    assert b.get("rbx").const == 7
    assert b.body().count("store") == 1


def test_less_of_it_is_known_but_not_more(b):
    b.store_state(RBX, b.const("i32", 5))
    assert is_known(b, "i8")
    assert not is_known(b, "i64")
    assert is_known(b, "i64")


def test_what_was_extended_is_what_it_was_before(b):
    narrow = b.load_state(8, "i32")
    b.store_state(RBX, narrow.zext("i64"))
    assert b.load_state(RBX, "i32") is narrow
    assert b.load_state(RBX, "i16").type == "i16"


@pytest.mark.parametrize(("place", "kind"), [(RBX, "i8"), (RBX + 1, "i8"), (RBX + 6, "i16")])
def test_a_store_to_a_part_of_it(b, place, kind):
    b.get("rbx")
    b.store_state(place, b.const(kind, 1))
    assert not is_known(b)


def test_a_store_that_goes_anywhere(b):
    b.get("rbx")
    b.store_state(b.get("rcx"), b.const("i64", 1))
    assert not is_known(b)


def test_only_what_all_ways_agree_on(b):
    for name in ("rax", "rbx", "rcx"):
        b.get(name)
    with b.if_(b.get("rdx").eq(0)):
        b.set("rbx", 1)
        b.set("rcx", 2)
    with b.else_():
        b.set("rcx", 2)
    assert is_known(b, place=FIELDS["rax"].offset)
    assert is_known(b, place=FIELDS["rcx"].offset)
    assert not is_known(b)


def test_a_way_that_ends_does_not_count(b):
    b.get("rbx")
    with b.if_(b.get("rdx").eq(0)):
        b.set("rbx", 1)
        b.return_()
    assert is_known(b)


def test_nothing_where_something_comes_back(b):
    b.get("rbx")
    with b.loop():
        assert not is_known(b)
        b.break_if(b.get("rbx").eq(0))
        b.set("rbx", b.get("rbx") - 1)
    assert is_known(b)


@pytest.mark.parametrize(("routine", "kept"), [("slow_load", True), ("deliver_long", False)])
def test_calls(b, routine, kept):
    b.get("rbx")
    b.load_state(XMM1, "i128")
    b.call(routine, *(b.const(kind, 0) for kind in KNOWN[routine].arguments))
    assert is_known(b) is kept
    assert not is_known(b, "i128", XMM1)


def test_fields_that_others_change_are_never_known(b):
    b.get("pending")
    assert not is_known(b, "i32", FIELDS["pending"].offset)
