"""Constants are folded, and both languages compute the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.cpu.llvm_builder import LlvmBuilder
from vdisk.vm.cpu.python_builder import PythonBuilder
from vdisk.vm.cpu.python_runtime import NAMES

OPERATIONS = ("add", "sub", "mul", "and", "or", "xor", "shl", "lshr", "ashr")
RELATIONS = ("eq", "ne", "ult", "ule", "ugt", "uge", "slt", "sle", "sgt", "sge")
WIDTHS = st.sampled_from([8, 16, 32, 64])


def run(b, result):
    """What the written Python computes."""
    text = "def f():\n" + b.body() + f"\n    return {result.text}\n"
    names = dict(NAMES)
    exec(text, names)
    return names["f"]()


def opaque(b, kind, number):
    """A value that the builder does not know is a constant."""
    return b.assign(kind, str(number))


@given(st.sampled_from(OPERATIONS), WIDTHS, st.data())
def test_folding_gives_what_the_code_computes(operation, width, data):
    kind, limit = f"i{width}", (1 << width) - 1
    left = data.draw(st.integers(0, limit))
    most = width - 1 if operation in {"shl", "lshr", "ashr"} else limit
    right = data.draw(st.integers(0, most))
    b = PythonBuilder({})
    folded = b.binary(operation, b.const(kind, left), right)
    assert folded.const == run(b, b.binary(operation, opaque(b, kind, left), right))


@given(st.sampled_from(RELATIONS), WIDTHS, st.data())
def test_relations_of_constants_are_those_of_values(relation, width, data):
    kind, limit = f"i{width}", (1 << width) - 1
    left, right = (data.draw(st.integers(0, limit)) for _ in range(2))
    b = PythonBuilder({})
    known = b.compare(relation, b.const(kind, left), right)
    assert bool(run(b, known)) == bool(run(b, b.compare(relation, opaque(b, kind, left), right)))


@pytest.mark.parametrize("make", [PythonBuilder, LlvmBuilder])
def test_a_value_is_no_condition_of_python(make):
    b = make({})
    with pytest.raises(TypeError):
        bool(b.const("i1", 1))


@pytest.mark.parametrize("make", [PythonBuilder, LlvmBuilder])
def test_types_do_not_mix(make):
    b = make({})
    with pytest.raises(AssertionError):
        b.const("i32", 1) + b.const("i64", 1)


def test_a_loop_leaves_by_its_condition():
    b = PythonBuilder({})
    total, left = b.variable("i32"), b.variable("i32", 10)
    with b.loop():
        b.break_if(left.get().eq(0))
        total.set(total.get() + left.get())
        left.set(left.get() - 1)
    assert run(b, total.get()) == 55
