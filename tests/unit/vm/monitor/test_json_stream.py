"""JSON values cut out of a stream, however it is cut into pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.vm.monitor.json_stream import DEEPEST, LARGEST, JsonError, JsonStream

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=5)


def receive(data: bytes) -> list[Any]:
    return JsonStream().receive(data)


@given(values=OBJECTS, separator=st.sampled_from(["", "\n", " ", "\r\n\t"]), cut=st.integers(1, 30))
def test_any_objects_however_cut(values: list[Any], separator: str, cut: int) -> None:
    stream = separator.join(json.dumps(value, ensure_ascii=False) for value in values).encode()
    machine = JsonStream()
    found: list[Any] = []
    for start in range(0, len(stream), cut):
        found += machine.receive(stream[start : start + cut])
    assert found == values


def test_scalars_end_at_space_or_bracket() -> None:
    assert receive(b'1 "a" null {"b":2}\n') == [1, "a", None, {"b": 2}]
    assert receive(b"5{}") == [5, {}]


def test_single_quotes() -> None:
    assert receive(rb"""{'execute': 'it\'s "quoted" {', "b": "it's"}""") == [
        {"execute": 'it\'s "quoted" {', "b": "it's"}
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"{x}",
        b"{]",
        b"nonsense",
        b'{"a": NaN}',
        b'{"a": "b',
        b"[1,]",
        b'{"a": "\xff"}',
        b"9" * 5000,
    ],
)
def test_after_an_error_the_next_line_is_good(line: bytes) -> None:
    found = receive(line + b'\n{"good": 1}\n')
    assert any(isinstance(one, JsonError) for one in found[:-1])
    assert found[-1] == {"good": 1}


@pytest.mark.parametrize("reset", [b"\xff", b"\x01", b"\0"])
def test_a_control_character_begins_anew(reset: bytes) -> None:
    (error, good) = receive(b'{"a": [' + reset + b'{"good": 1}')
    assert isinstance(error, JsonError)
    assert good == {"good": 1}
    assert receive(reset + b"{}") == [{}]


def test_depth_and_length_have_an_end() -> None:
    deep = b"[" * (DEEPEST + 1)
    assert [type(one) for one in receive(deep)] == [JsonError]
    assert receive(b"[" * DEEPEST + b"]" * DEEPEST + b"\n")
    machine = JsonStream()
    found: list[Any] = []
    for _ in range(LARGEST // 4096 + 2):
        found += machine.receive(b'{"' + b"a" * 4094 if not machine._buffer else b"a" * 4096)
        assert len(machine._buffer) <= LARGEST
    assert isinstance(found[0], JsonError)
    assert machine.receive(b'\n{"good": 1}') == [{"good": 1}]
