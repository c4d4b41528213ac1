"""What is known of instructions, kept between runs."""

from __future__ import annotations

import os

import pytest

from tests.unit.vm.cpu.test_translate import LONG, START, bench
from vdisk.vm.accel.interp import InterpAccelerator
from vdisk.vm.cpu import known_store
from vdisk.vm.cpu.known_store import InstructionStore
from vdisk.vm.memory import PAGE_SIZE

CODE = "4801d8 488b4508 7402 0fa2 ebf4 c3"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(known_store, "WORTH_KEEPING", 1)


@pytest.fixture
def store(tmp_path):
    """A store that has the instructions of CODE, and the records that they gave."""
    with bench(InterpAccelerator) as it:
        first = it.translate(CODE)
        made = InstructionStore(str(tmp_path), "1")
        made.save(it.engine.translator)
        yield made, it.parameters(first, 4)


def fresh(store, it):
    InstructionStore(os.path.dirname(store.path), "1").load(it.engine.translator)


def learned(it):
    """Translate CODE; how many instructions that took to learn."""
    count = it.arena.known.count
    first = it.translate(CODE)
    return it.arena.known.count - count, first


def test_what_is_kept_need_not_be_learned(store):
    store, records = store
    with bench(InterpAccelerator) as it:
        it.engine.handlers([it.engine.shapes[0]._replace(operation="hlt")])  # other numbers
        fresh(store, it)
        new, first = learned(it)
        assert new == 0
        assert it.parameters(first, 4) == records
        assert [shape.operation for shape in it.shapes(first, 2)] == ["add", "mov"]
        it.memory.write(START + PAGE_SIZE - 3, b"\x0f\xa2\xe8")  # cpuid, and half a call
        assert it.translate(b"", offset=PAGE_SIZE - 3, mode=LONG)


@pytest.mark.parametrize("place", [1, 20, -1])
def test_a_damaged_file_is_as_good_as_none(store, place):
    store, records = store
    with open(store.path, "r+b") as file:
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with bench(InterpAccelerator) as it:
        fresh(store, it)
        assert it.arena.known.count == 0
        new, first = learned(it)
        assert new > 0
        assert it.parameters(first, 4) == records


def test_a_file_that_others_can_write_is_not_read(store):
    store, _ = store
    os.chmod(store.path, 0o666)
    with bench(InterpAccelerator) as it:
        fresh(store, it)
        assert it.arena.known.count == 0


def test_nothing_is_written_for_little_news(store):
    store, _ = store
    before = os.stat(store.path).st_ino
    with bench(InterpAccelerator) as it:
        again = InstructionStore(os.path.dirname(store.path), "1")
        again.load(it.engine.translator)
        again.save(it.engine.translator)
        assert os.stat(store.path).st_ino == before
        it.translate("31c0 c3")
        again.save(it.engine.translator)
    assert os.stat(store.path).st_ino != before
    assert os.listdir(os.path.dirname(store.path)) == [os.path.basename(store.path)]


def test_a_directory_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    store = InstructionStore(str(tmp_path / "file" / "below"), "1")
    with bench(InterpAccelerator) as it:
        it.translate(CODE)
        store.load(it.engine.translator)
        store.save(it.engine.translator)
