"""A fuzzer finds what breaks a limit, whatever else the input does."""

from __future__ import annotations

import itertools
import random
import resource
from typing import TYPE_CHECKING

import pytest

from fuzz import engine, limits
from fuzz import target as targets
from fuzz.differences import DIFFERENCES, accepted
from fuzz.mutate import Field, Means, change_bytes, change_fields
from fuzz.targets.qcow2_qemu import Verdict, compare

if TYPE_CHECKING:
    from pathlib import Path


def test_an_endless_loop_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CPU_SECONDS", 0.05)
    with pytest.raises(limits.TooSlow), limits.limited():
        for _ in itertools.count():
            pass


def test_a_large_buffer_is_refused() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), limits.limited():
        bytearray(4 * limits.MEMORY)  # more than a long test run may have left free
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_half_of_it_is_not() -> None:
    with limits.limited():
        assert len(bytearray(limits.MEMORY // 2)) == limits.MEMORY // 2


def _seeds() -> dict[str, bytes]:
    return {"zero": bytes(4)}


def _mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    change_fields(changed, {"all": [Field(0, 4, Means.COUNT)]}, rng, 1)
    return bytes(changed)


def _run(data: bytes) -> None:
    if data == b"\0\0\0\1":
        raise KeyError("left the library")


def test_defects_are_kept_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = targets.Target(
        "broken", "Any bytes.", _seeds, _mutate, _run, 4, True, slowness=1.0, prepare=lambda: None
    )
    monkeypatch.setattr(targets, "load", lambda _name: broken)
    assert engine.run_plain("broken", 1, tmp_path, seed=1) == 1
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == b"\0\0\0\1"
    assert "KeyError" in capsys.readouterr().out


def test_corpora_are_packed_where_that_helps(tmp_path: Path) -> None:
    for data in (b"short", bytes(5000)):
        path = tmp_path / targets.write_input(tmp_path, f"n{len(data)}", data)
        assert targets.read_input(path) == data
        assert path.stat().st_size <= 5000 // 2


def test_differences_are_seen_unless_they_are_known() -> None:
    fine = Verdict("", b"x" * 512, "", True, "")
    assert compare(fine, fine) is None
    assert compare(fine, fine._replace(content=b"y" * 512)) is not None
    assert compare(fine, fine._replace(sound=False)) is not None
    assert compare(fine, fine._replace(content=None, failure="bad")) is not None
    assert compare(fine, Verdict("nonsense")) is not None
    assert compare(fine, Verdict("Broken bitmap directory")) is None
    assert accepted("open", "", "Broken bitmap directory") in DIFFERENCES


@pytest.mark.parametrize("means", list(Means))
def test_a_field_gets_other_values_and_its_neighbours_do_not(means: Means) -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(60):
        data = bytearray(b"\xaa" * 24)
        change_fields(data, {"all": [Field(8, 8, means)]}, rng, 512)
        assert data[:8] == data[16:] == b"\xaa" * 8
        seen.add(bytes(data[8:16]))
    assert len(seen) > 4


def test_bytes_change_in_length_and_content() -> None:
    rng = random.Random(0)
    results = set()
    for _ in range(60):
        data = bytearray(b"0123456789abcdef")
        change_bytes(data, rng, 4)
        results.add(bytes(data))
    assert len({len(result) for result in results}) > 3
