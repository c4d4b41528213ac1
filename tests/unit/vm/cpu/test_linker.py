"""Object code is laid out, linked and executed; what code generation never asks for is refused."""

from __future__ import annotations

import ctypes

import pytest

from vdisk.vm.cpu.codegen import c_function
from vdisk.vm.cpu.compiler import Compiler, Level
from vdisk.vm.cpu.linker import CodeFullError, CodeMemory, LinkError, Piece, piece

SQUARES = """
@table = private constant [4 x i64] [i64 0, i64 1, i64 4, i64 9]
define i64 @square(i64 %n) noinline {
  %at = getelementptr [4 x i64], ptr @table, i64 0, i64 %n
  %found = load i64, ptr %at
  ret i64 %found
}
declare i64 @add_one(i64)
declare i64 @labs(i64)
define i64 @both(i64 %n) {
  %a = call i64 @labs(i64 %n)
  %b = call i64 @square(i64 %a)
  %c = call i64 @add_one(i64 %b)
  ret i64 %c
}
"""
ADD_ONE = "define i64 @add_one(i64 %n) {\n  %m = add i64 %n, 1\n  ret i64 %m\n}"
SWITCH = """
define i64 @choose(i64 %n) {
  switch i64 %n, label %other [ i64 0, label %a  i64 1, label %b  i64 2, label %c  i64 3, label %d
                                i64 4, label %e ]
a:
  ret i64 17
b:
  ret i64 4
c:
  ret i64 99
d:
  ret i64 1000
e:
  ret i64 -5
other:
  ret i64 0
}
"""
VARIABLE = """
@shared = external global i64
define i64 @get() {
  %v = load i64, ptr @shared
  ret i64 %v
}
"""
UNARY = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


@pytest.fixture(scope="module")
def compiler():
    return Compiler()


@pytest.fixture
def memory():
    return CodeMemory(c_function, 1 << 20)


def add(memory: CodeMemory, packed: bytes) -> dict[str, int]:
    added = Piece.unpack(packed)
    base = memory.add(added)
    return {name: base + offset for name, offset in added.symbols.items()}


@pytest.mark.parametrize("level", list(Level))
def test_pieces_call_each_other_and_the_c_library(level, compiler, memory):
    memory.symbols.update(add(memory, compiler.compile(ADD_ONE, level)))
    both = UNARY(add(memory, compiler.compile(SQUARES, level))["both"])
    assert [both(number) for number in (0, 1, -2, 3, -3)] == [1, 2, 5, 10, 10]


@pytest.mark.parametrize("level", list(Level))
def test_tables_of_constants_are_found(level, compiler, memory):
    choose = UNARY(add(memory, compiler.compile(SWITCH, level))["choose"])
    assert [choose(number) for number in range(-1, 6)] == [0, 17, 4, 99, 1000, -5, 0]


def test_only_global_symbols_are_given(compiler):
    assert set(Piece.unpack(compiler.compile(SQUARES, Level.BEST)).symbols) == {"square", "both"}


NUMBER = """
define i64 @add(i64 %n) {
  %a = call i64 asm "movq $$number+0, $0", "=r"()
  %b = call i64 asm "movq $$number+4096, $0", "=r"()
  %m = add i64 %n, %a
  %o = xor i64 %m, %b
  ret i64 %o
}
"""


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("number", [0, 77, -(1 << 31), (1 << 31) - 4097])
def test_numbers_are_filled_in(level, number, compiler, memory):
    added = Piece.unpack(compiler.compile(NUMBER, level))
    base = memory.add(added, numbers={"number": number})
    add = UNARY(base + added.symbols["add"])
    assert [add(n) for n in (0, 5)] == [(n + number) ^ (number + 4096) for n in (0, 5)]


def test_a_number_that_does_not_fit_is_refused(compiler, memory):
    added = Piece.unpack(compiler.compile(NUMBER, Level.BEST))
    with pytest.raises(LinkError, match="does not fit"):
        memory.add(added, numbers={"number": 1 << 64})
    assert memory.used == 0


def test_packing_keeps_everything():
    whole = Piece(b"code", {"a": 1, "b": 2}, [])
    assert Piece.unpack(whole.pack()) == whole
    nothing = Piece(b"", {}, [])
    assert Piece.unpack(nothing.pack()).code == b""


def test_a_variable_of_others_is_refused(compiler):
    with pytest.raises(LinkError, match="relocation of type"):
        compiler.compile(VARIABLE, Level.BEST)


def test_other_files_are_refused():
    with pytest.raises(LinkError, match="ELF"):
        piece(b"MZ" + bytes(100))


def test_the_code_is_not_writable_where_it_is_executed(memory):
    address = memory.add(Piece(b"\xc3", {}, []))
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                assert line.split()[1] == "r-xs"
                return
    pytest.fail("the code is not mapped")


def test_memory_ends(memory):
    page = Piece(bytes(4096), {}, [])
    for _ in range(128):
        memory.add(page, reserved=512 << 10)
    with pytest.raises(CodeFullError):
        memory.add(page, reserved=512 << 10)
    for _ in range(128):
        memory.add(page)
    with pytest.raises(CodeFullError):
        memory.add(page)
