"""A first run: handlers are made before they are asked for, whatever becomes of who makes them."""

from __future__ import annotations

import ctypes
import threading

import pytest

from tests.tools.patience import PATIENCE
from tests.unit.vm.cpu.test_translate import LONG, START, bench
from vdisk.vm.accel.interp import InterpAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu import ahead, codegen, known_store
from vdisk.vm.cpu.codegen import COMPLETE, RUNTIME, NativeCode
from vdisk.vm.cpu.common import Common, common_instructions, shapes_of
from vdisk.vm.cpu.compiler import CompilerProcess, Level
from vdisk.vm.cpu.known_store import InstructionStore
from vdisk.vm.cpu.orders import InstructionsOrder, RuntimeOrder, decoder
from vdisk.vm.memory import GuestMemory

SOME = 40
"""Lines of the list that these tests make do with."""
KERNELS = {64: [Common.parse("64 9090c3 - nop")], 32: [Common.parse("32 40 - inc eax")]}


class Told(list):
    """What a progress was told."""

    def __call__(self, done, total):
        self.append((done, total))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A short list, in small orders, of which only the first is waited for, and two
    instructions that are known."""
    some = [line._replace(often=()) for line in common_instructions()[:SOME]]
    monkeypatch.setattr(ahead, "kernel_instructions", KERNELS.get)
    monkeypatch.setattr(ahead, "common_instructions", lambda: some)
    monkeypatch.setattr(ahead, "BATCH", 8)
    monkeypatch.setattr(ahead, "FIRST", 8)
    return {shape.symbol for shape in shapes_of(some, decoder)}


@pytest.fixture
def processes(monkeypatch):
    """Those that were begun."""
    begun = []

    class Process(CompilerProcess):
        def __init__(self):
            super().__init__()
            begun.append(self)

    monkeypatch.setattr(ahead, "CompilerProcess", Process)
    return begun


def await_end():
    for thread in threading.enumerate():
        if thread.name.startswith("vdisk-ahead"):
            thread.join(PATIENCE)
            assert not thread.is_alive()


def has_ended(process):
    return process._process.poll() is not None


def test_a_first_run_has_them_and_leaves_them(tmp_path, few, processes):
    told = Told()
    first = NativeCode(str(tmp_path), ahead=told)
    assert told == [(1, 2), (2, 2)]
    await_end()
    assert told == [(1, 2), (2, 2)]  # what is made behind the guest's back is not shown
    assert all(map(has_ended, processes))
    assert first._kept.keys() >= few | {RUNTIME, COMPLETE}
    assert not first.memory.symbols.keys() & few  # they are put in place when they are used
    shapes = shapes_of(ahead.common_instructions(), decoder)
    first.prepare(shapes)
    assert {first.handlers[shape] for shape in shapes} <= set(first.memory.symbols.values())

    begun = len(processes)
    later = NativeCode(str(tmp_path), ahead=told)
    assert len(processes) == begun
    assert later._kept.keys() >= few | {RUNTIME, COMPLETE}
    assert not later.next_rough()


def test_what_is_executed_most_is_fine_at_once(tmp_path, monkeypatch):
    lines = ahead.common_instructions()
    lines[0] = lines[0]._replace(often=lines[0].variants[:1])
    monkeypatch.setattr(ahead, "common_instructions", lambda: lines)
    told = Told()
    first = NativeCode(str(tmp_path), ahead=told)
    assert told[-1] == (3, 3)
    await_end()
    most = ahead.executed_most()
    assert most
    for shape in shapes_of(lines, decoder):
        expected = Level.FINE if shape in most else Level.ROUGH
        assert first._kept[shape.symbol][0] is expected
    first.prepare(most)
    assert not first.next_rough()


def test_nothing_is_made_ahead_unless_it_is_asked_for(tmp_path, few, processes):
    code = NativeCode(str(tmp_path))
    assert not processes
    assert not code._kept.keys() & few
    assert not code.next_rough()


def test_without_a_directory(few, processes):
    code = NativeCode(None, ahead=Told())
    await_end()
    assert code._kept.keys() >= few


def test_processes_that_end_are_not_waited_for(tmp_path, monkeypatch, processes):
    def carry_out(process, order):
        process._process.kill()

    monkeypatch.setattr(CompilerProcess, "carry_out", carry_out)
    code = NativeCode(str(tmp_path), ahead=Told())
    await_end()
    assert all(map(has_ended, processes))
    shapes = shapes_of(ahead.common_instructions(), decoder)
    code.prepare(shapes[:3])  # here and now
    assert COMPLETE not in code._kept


def test_what_a_run_left_undone_the_next_one_makes_when_it_has_time(tmp_path, monkeypatch, few):
    carry_out = CompilerProcess.carry_out

    def only_learn(process, order):
        return carry_out(process, order) if isinstance(order, InstructionsOrder) else None

    with monkeypatch.context() as patch:
        patch.setattr(CompilerProcess, "carry_out", only_learn)
        NativeCode(str(tmp_path), ahead=Told())
        await_end()
    told = Told()
    second = NativeCode(str(tmp_path), ahead=told)
    assert not told  # nobody waits
    left = set()
    while shapes := second.next_rough():
        left |= {shape.symbol for shape in shapes}
        order = codegen.handlers_module(shapes)
        code = second.compiler.compile(order, codegen.Level.FINE)
        second.keep([shape.symbol for shape in shapes], code, codegen.Level.FINE)
    assert left == few
    third = NativeCode(str(tmp_path), ahead=told)
    assert not third.next_rough()
    assert COMPLETE in NativeCode(str(tmp_path))._kept


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_first_run_leaves_no_processes(tmp_path, monkeypatch, processes, error):
    def interrupt(code, *_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(NativeCode, "_compile_rough_runtime", interrupt)
        with pytest.raises(error):
            NativeCode(str(tmp_path), ahead=Told())
    await_end()
    assert processes
    assert all(map(has_ended, processes))
    assert RUNTIME in NativeCode(str(tmp_path), ahead=Told()).memory.symbols
    await_end()


def test_the_runtime_that_a_run_left_rough(tmp_path, monkeypatch, processes):
    with monkeypatch.context() as patch:
        patch.setattr(NativeCode, "take_runtime", lambda *_: None)
        NativeCode(str(tmp_path), ahead=Told())
        await_end()
    begun, told = len(processes), Told()
    second = NativeCode(str(tmp_path), ahead=told)
    assert len(processes) == begun
    assert not told
    assert second.lacks_runtime()
    second.take_runtime(second.carry_out(RuntimeOrder()))
    assert not second.lacks_runtime()
    check_junctions(second)
    assert not NativeCode(str(tmp_path), ahead=told)._junctions


def test_what_kernels_have_in_common_is_known(tmp_path):
    code = NativeCode(str(tmp_path), ahead=Told())
    await_end()
    memory = GuestMemory(1 << 20)
    engine = InterpAccelerator(memory, Bus())
    InstructionStore(str(tmp_path), code.digest).load(engine.translator)
    memory.write(START, b"\x90\xc3")
    engine.translate(engine.vcpu(0), START, LONG)
    assert engine.arena.known.count == 2


def known_instructions(directory, digest):
    with bench(InterpAccelerator) as it:
        InstructionStore(str(directory), digest).load(it.engine.translator)
        return it.engine.arena.known.count


def test_the_first_kernel_of_other_bits(tmp_path, few, processes):
    first = NativeCode(str(tmp_path), ahead=Told(), bits=64)
    await_end()
    assert known_instructions(tmp_path, first.digest) == 2
    told = Told()
    other = NativeCode(str(tmp_path), ahead=told, bits=32)
    assert told == [(1, 1)]  # its instructions; handlers are there
    assert known_instructions(tmp_path, first.digest) == 3
    await_end()
    assert all(map(has_ended, processes))
    assert not other.lacks_runtime()
    for bits in (32, 64):
        later = Told()
        NativeCode(str(tmp_path), ahead=later, bits=bits)
        assert not later


def test_a_first_run_waits_for_what_its_kernel_needs(tmp_path, monkeypatch):
    narrow = Common.parse("32 40 - inc eax")
    monkeypatch.setattr(ahead, "common_instructions", lambda: [*common_instructions(), narrow])
    monkeypatch.setattr(ahead, "FIRST", 200)
    wide, slim = ahead.needed_first(64), ahead.needed_first(32)
    assert len(wide) == 200
    assert any(shape.size == 64 for shape in wide)
    assert set(shapes_of([narrow], decoder)) <= set(slim)
    assert {shape for shape in slim if shape.size == 64} <= {
        shape for line in common_instructions() if line.mode.code != 64
        for shape in shapes_of([line], decoder)
    }  # fmt: skip
    assert set(slim) & set(wide)  # what does not depend on the mode


def test_what_is_known_already_is_not_lost(tmp_path):
    digest = NativeCode(None).digest
    with bench(InterpAccelerator) as it, pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_store, "WORTH_KEEPING", 1)
        it.translate("31c0 01d8 c3")
        InstructionStore(str(tmp_path), digest).save(it.engine.translator)
    NativeCode(str(tmp_path), ahead=Told())
    await_end()
    assert known_instructions(tmp_path, digest) == 3 + 1  # RET is known


def test_the_runtime_is_exchanged_under_those_who_use_it(tmp_path):
    code = NativeCode(str(tmp_path), ahead=Told())
    await_end()
    assert not code.lacks_runtime()
    check_junctions(code)


def check_junctions(code):
    """All that leads to the run-time leads to the real one."""
    assert code._junctions
    for name, junction in code._junctions.items():
        jump = ctypes.string_at(junction, 16)
        assert jump[:8] == b"\xff\x25\2\0\0\0\0\0"  # jmp *2(%rip)
        assert int.from_bytes(jump[8:], "little") == code.memory.symbols[name]
