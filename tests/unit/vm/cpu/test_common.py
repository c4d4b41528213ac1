"""The list of common instructions: each line can be used, and is needed."""

from __future__ import annotations

import pytest

from vdisk.vm.cpu import ahead
from vdisk.vm.cpu.codegen import handlers_module
from vdisk.vm.cpu.common import (
    FILE,
    Common,
    common_instructions,
    kernel_instructions,
    shapes_of,
)
from vdisk.vm.cpu.compiler import Compiler, Level
from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.linker import Piece
from vdisk.vm.cpu.orders import decoder
from vdisk.vm.cpu.translate import variant_shapes

LONG, REAL = Mode(64, 64, checked=False), Mode(16, 16, checked=True)


def lines():
    return [line for line in FILE.read_text().splitlines() if not line.startswith("#")]


def test_a_line_says_what_it_was_made_from():
    for line in lines():
        text = Common.parse(line).text()
        assert line.startswith(text + " ")


def test_a_line_is_a_whole_instruction_of_a_mode_that_systems_run_in():
    for mode, code, variants, often in common_instructions():
        (only,) = decoder(mode).decode_block(code, 0, 1)
        assert only.length == len(code)
        assert not mode.careful
        assert len(variants) == len(set(variants))
        assert set(often) <= set(variants)


def test_each_line_brings_something():
    shapes = set()
    for each in common_instructions():
        new = set(shapes_of([each], decoder))
        assert not new <= shapes, each.text()
        shapes |= new


def test_every_way_in_which_a_common_instruction_occurs():
    je = Common(LONG, b"\x74\x00", (0, *(Common.parse("64 7400 sub8,logic64+f je").variants)))
    assert Common.parse(je.text() + "   je short 2") == je
    shapes = [shape for shape in shapes_of([je], decoder) if shape.operation == "jcc"]
    assert len(shapes) == 2 * 3  # each goes to goto, or follows a link
    assert {(shape.flags, shape.known) for shape in shapes} == {
        (False, -1),
        (False, 12),
        (True, 23),
    }


@pytest.mark.parametrize("mode", [REAL, LONG, Mode(16, 32, checked=True), Mode(32, 32, False)])
def test_modes(mode):
    each = Common(mode, b"\x90", (0, 1))
    assert Common.parse(each.text() + " nop") == each


@pytest.mark.parametrize(
    "line", ["64 90", "64 9 - nop", "x 90 - nop", "64 90 nor8 nop", "64 90 f+sub8 nop"]
)
def test_what_is_no_line(line):
    with pytest.raises((ValueError, KeyError)):
        Common.parse(line)


@pytest.mark.parametrize("bits", [32, 64])
def test_instructions_of_kernels_are_whole(bits):
    found = kernel_instructions(bits)
    assert sum(len(list(decoder(each.mode).instructions(each.code))) for each in found) > 20_000
    for mode, code, variants, _ in found:
        *_, last = [each for each, _ in decoder(mode).instructions(code)]
        assert code.endswith(last)
        assert variants
        assert not mode.careful


def test_what_is_executed_most_is_little_of_it():
    line = "64 7400 sub8!,sub32,logic8!"
    assert Common.parse(f"{line} je short 2").text() == line
    most = ahead.executed_most()
    assert 50 < len(most) < 400
    assert set(most) <= set(shapes_of(common_instructions(), decoder))
    assert "jcc" in {shape.operation for shape in most}


@pytest.mark.parametrize("bits", [32, 64])
def test_what_kernels_need_is_among_what_is_compiled(bits):
    needed = set()
    for mode, code, variants, _ in kernel_instructions(bits):
        each_form = {decoder(mode).form(*each) for each in decoder(mode).instructions(code)}
        needed |= {shape for key in variants for form in each_form
                   for shape in variant_shapes(form, key)}  # fmt: skip
    assert needed <= set(ahead.needed_first(bits))


def test_all_of_them_can_be_compiled():
    shapes = shapes_of(common_instructions(), decoder)
    code = Compiler().compile(handlers_module(shapes), Level.ROUGH)
    assert Piece.unpack(code).symbols.keys() == {shape.symbol for shape in shapes}
