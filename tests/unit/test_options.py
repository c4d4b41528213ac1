"""Options as QEMU writes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import InvalidRequestError
from vdisk.options import (
    MAX_OPTION_DEPTH,
    OptionBag,
    escape_commas,
    flatten,
    nest,
    parse_keyval,
    split_commas,
)

KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
VALUES = st.text(max_size=20)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_doubled_commas_are_commas(parts: list[str]) -> None:
    text = ",".join(escape_commas(part) or "" for part in parts)
    if any(part == "" or part.startswith(",") for part in parts[1:]):
        return  # an empty part, or one that begins with a comma, is read as part of a doubled one
    assert split_commas(text) == parts


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
def test_keyval_holds_any_value(options: dict[str, str]) -> None:
    text = ",".join(f"{key}={escape_commas(value)}" for key, value in options.items())
    assert parse_keyval(text) == options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1,b=2", {"a": "1", "b": "2"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=x,,y", {"a": "x,y"}),
        ("a=x=y", {"a": "x=y"}),
        ("lazy_refcounts", {"lazy_refcounts": "on"}),
        ("nolazy_refcounts", {"lazy_refcounts": "off"}),
        ("a=", {"a": ""}),
    ],
)
def test_keyval(text: str, expected: dict[str, str]) -> None:
    assert parse_keyval(text) == expected


def test_implied_key() -> None:
    assert parse_keyval("secret,id=s", implied_key="qom-type") == {"qom-type": "secret", "id": "s"}
    uri = "nbd+unix:///export?socket=/run/nbd"
    assert parse_keyval(f"{uri},if=virtio", implied_key="file") == {"file": uri, "if": "virtio"}
    assert parse_keyval("./a=b", implied_key="file") == {"file": "./a=b"}
    assert parse_keyval("a=b", implied_key="file") == {"a": "b"}


@pytest.mark.parametrize("text", ["", ",a=1", "a=1,", "=1", "a=1,=2"])
def test_options_have_names(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_keyval(text)


def test_nesting_mixes_dots_and_objects() -> None:
    mixed = {"file": {"driver": "file"}, "file.filename": "x", "a.b.c": 1}
    assert nest(mixed) == {"file": {"driver": "file", "filename": "x"}, "a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    "options",
    [{"a": 1, "a.b": 2}, {"a": {"b": 1}, "a.b": 2}, {"a.b": 1, "a": 2}],
)
def test_a_key_has_one_value(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        nest(options)


def test_nesting_is_bounded() -> None:
    with pytest.raises(InvalidRequestError):
        nest({".".join(["a"] * (MAX_OPTION_DEPTH + 1)): 1})
    deep: dict[str, Any] = {}
    for _ in range(MAX_OPTION_DEPTH + 5):
        deep = {"a": deep}
    with pytest.raises(InvalidRequestError):
        nest(deep)


def test_flatten_undoes_nest() -> None:
    flat = {"a.b": 1, "a.c.d": "x", "e": None}
    assert dict(flatten(nest(flat))) == flat


def test_bag_reads_text_and_types() -> None:
    bag = OptionBag({"size": "64k", "offset": 512, "flag": "on", "other": False}, "node")
    assert bag.size("size") == 65536
    assert bag.size("offset") == 512
    assert bag.boolean("flag")
    assert not bag.boolean("other", True)
    assert bag.string("absent", "default") == "default"
    bag.finish()


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("size", -1),
        ("size", True),
        ("size", "many"),
        ("size", [1]),
        ("boolean", "maybe"),
        ("boolean", 1),
        ("string", 5),
        ("string", {"a": "b"}),
    ],
)
def test_bag_refuses_other_types(method: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="node: option 'x'"):
        getattr(OptionBag({"x": value}, "node"), method)("x")


def test_bag_refuses_what_nobody_read() -> None:
    with pytest.raises(InvalidRequestError, match="node has no option 'b', 'c'"):
        OptionBag({"c": 1, "b": 2}, "node").finish()


def test_bag_needs_required_and_known_choices() -> None:
    with pytest.raises(InvalidRequestError, match="needs the option 'filename'"):
        OptionBag({}, "node").required("filename")
    with pytest.raises(InvalidRequestError, match="one of on, off"):
        OptionBag({"x": "both"}, "node").choice("x", ("on", "off"), "on")
