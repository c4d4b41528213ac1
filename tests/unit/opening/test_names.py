"""Names become trees of options, and trees are shown as names."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.named_images import SIZE, qcow2
from vdisk.errors import (
    InvalidRequestError,
    VdiskError,
)
from vdisk.opening import open_image
from vdisk.opening.names import (
    MAX_JSON_NAME,
    describe_tree,
    parse_image_options,
    parse_name,
    protocol_of,
    relative_to,
)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("disk.img", None),
        ("dir/a:b", None),
        ("./a:b", None),
        ("/a:b", None),
        ("nbd://host/x", "nbd"),
        ("file:a", "file"),
        ("a:b", "a"),
    ],
)
def test_a_protocol_stands_before_the_first_slash(name: str, protocol: str | None) -> None:
    assert protocol_of(name) == protocol


def test_every_spelling_of_a_name_opens_the_same_file(raw: str) -> None:
    nested = {"driver": "raw", "file": {"driver": "file", "filename": raw}}
    names: list[str | dict[str, Any]] = [
        raw,
        f"file:{raw}",
        "json:" + json.dumps(nested),
        "json:" + json.dumps({"driver": "raw", "file.driver": "file", "file.filename": raw}),
        "json:" + json.dumps({"file": {"filename": raw}}),
        nested,
        parse_image_options(f"driver=raw,file.filename={raw}"),
    ]
    for name in names:
        with open_image(name) as image:
            assert image.read(0, 10) == b"0123456789"


def test_a_protocol_node_is_a_device_by_itself(raw: str) -> None:
    with open_image({"driver": "file", "filename": raw}) as device:
        assert device.read(1, 3) == b"123"


def test_raw_can_be_a_part_of_a_file(raw: str) -> None:
    with open_image({"driver": "raw", "offset": 2, "size": "512", "file.filename": raw}) as image:
        assert image.size == 512
        assert image.read(0, 4) == b"2345"


def test_a_name_with_a_comma_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    path.write_bytes(bytes(512))
    text = str(path).replace(",", ",,")
    with open_image(parse_image_options(f"driver=raw,file.filename={text}")) as image:
        assert image.size == 512


def test_a_path_with_a_colon_needs_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").write_bytes(bytes(512))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"'\./a:b'"):
        open_image("a:b")
    for name in ("./a:b", "file:a:b"):
        open_image(name).close()


def test_names_are_relative_to_the_image() -> None:
    assert relative_to("dir", "base") == "dir/base"
    assert relative_to("", "base") == "base"
    assert relative_to("dir", "/base") == "/base"
    assert relative_to("dir", "nbd://host") == "nbd://host"
    with pytest.raises(InvalidRequestError, match="absolute"):
        relative_to(None, "base")


def test_trees_are_described_as_shortly_as_they_can() -> None:
    assert describe_tree(parse_name("disk.img"), "raw") == "disk.img"
    assert describe_tree(parse_name("file:disk.img"), "raw") == "disk.img"
    assert describe_tree({"driver": "file", "filename": "x"}, "file") == "x"
    for nbd, name in (
        ({"path": "/s", "export": "a b"}, "nbd+unix:///a%20b?socket=/s"),
        ({"host": "::1", "port": 7}, "nbd://[::1]:7"),
        ({"server": {"type": "inet", "host": "h", "port": "10809"}}, "nbd://h"),
        ({"uri": "nbd://h/x"}, "nbd://h/x"),
    ):
        for tree in ({"driver": "nbd", **nbd}, {"driver": "raw", "file": {"driver": "nbd", **nbd}}):
            assert describe_tree(tree, "raw") == name
    assert describe_tree({"driver": "nbd", "host": "h", "tls-creds": "t"}, "nbd")[:5] == "json:"
    tree = {"offset": 512, "file": {"filename": "x"}}
    described = describe_tree(tree, "raw")
    assert parse_name(described) == {"driver": "raw", **tree}


BAD_NAMES: list[str] = [
    "",
    "json:",
    "json:{",
    "json:[]",
    "json:5",
    'json:{"driver":"qcow2"}',
    'json:{"driver":["raw"],"file.filename":"x"}',
    'json:{"driver":"nonsense","file.filename":"x"}',
    'json:{"file":"x"}',
    'json:{"file":{}}',
    'json:{"file":{"filename":5}}',
    'json:{"file":{"driver":"file"}}',
    'json:{"file.filename":"x","file":{"filename":"y"}}',
    'json:{"file.filename":"x","cache":"none"}',
    'json:{"file.filename":"x","cache.direct":"perhaps"}',
    'json:{"file":{"driver":"file","filename":"x","surprise":1}}',
    "json:" + '{"file":' * 500 + "1" + "}" * 500,
    "json:" + "[" * 100_000,
    "json:" + " " * MAX_JSON_NAME + "{}",
    'json:{"driver":"raw","offset":-1,"file.filename":"%s"}',
    'json:{"driver":"raw","size":1e400,"file.filename":"%s"}',
    'json:{"driver":"raw","size":9999999999999999999999,"file.filename":"%s"}',
    'json:{"driver":"raw","surprise":1,"file.filename":"%s"}',
    "nonsense:x",
    "\0",
    "a\0b",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:40])
def test_bad_names_are_refused(name: str, raw: str) -> None:
    with pytest.raises(VdiskError):
        open_image(name.replace("%s", raw))


def test_json_may_have_single_quotes(raw: str) -> None:
    name = f"""json:{{'driver': 'raw', "file": {{'filename': '{raw}'}}}}"""
    with open_image(name) as image:
        assert image.size == SIZE
    assert parse_name(r"""json:{'a': 'it\'s "so"', "b": "'"}""") == {
        "a": """it's "so\"""",
        "b": "'",
    }
    with pytest.raises(InvalidRequestError, match="not JSON"):
        parse_name("json:{'a: 1}")


def test_a_name_with_a_colon_is_shown_as_it_can_be_typed(tmp_path: Path) -> None:
    image = qcow2(tmp_path / "of:disk.qcow2")
    with contextlib.chdir(tmp_path):
        with open_image("file:of:disk.qcow2") as opened:
            assert opened.name == "./of:disk.qcow2"
        with open_image(opened.name) as again:
            assert again.size == SIZE
        assert describe_tree(parse_name("file:of:disk.qcow2"), "qcow2") == "./of:disk.qcow2"
        named = {"file": {"driver": "file", "filename": "of:disk.qcow2"}}
        assert describe_tree(named, "qcow2") == "./of:disk.qcow2"
    assert describe_tree(parse_name("nbd://host/disk"), "raw") == "nbd://host/disk"
    with open_image(image) as opened:
        assert opened.name == image
