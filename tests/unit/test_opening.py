"""Names and trees of options become devices; what fails leaves nothing open."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools.leftovers import no_new_descriptors
from vdisk.errors import (
    CorruptImageError,
    DeviceError,
    FormatError,
    ImageLockedError,
    InvalidRequestError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedFeatureError,
    VdiskError,
)
from vdisk.formats.raw import RawImage
from vdisk.opening import Backing, open_image
from vdisk.opening.creating import plan_creation
from vdisk.opening.names import (
    MAX_JSON_NAME,
    describe_tree,
    parse_image_options,
    parse_name,
    protocol_of,
    relative_to,
)
from vdisk.opening.nodes import MAX_CHAIN_DEPTH
from vdisk.options import MAX_OPTION_DEPTH
from vdisk.stores.file import DirectFileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Whatever a test opens and fails to open."""
    with no_new_descriptors():
        yield


@pytest.fixture
def raw(tmp_path: Path) -> str:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"0123456789" + bytes(SIZE - 10))
    return str(path)


def qcow2(path: Path, backing: str | None = None, format: str | None = "raw") -> str:
    """A new qcow2 image, its backing file named but not looked at."""
    vdisk.create(path, SIZE, format="qcow2")
    if backing is not None:
        with open_image(str(path), readonly=False, format="qcow2") as image:
            image.change_backing(backing, format)  # type: ignore[attr-defined]
    return str(path)


# -- names -----------------------------------------------------------------------------------


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


def test_stacks_of_nodes_are_bounded(raw: str) -> None:
    tree: dict[str, Any] = {"driver": "file", "filename": raw}
    for _ in range(MAX_OPTION_DEPTH // 2):
        tree = {"driver": "raw", "file": tree}
    with open_image(tree) as image:
        assert image.read(0, 1) == b"0"
    for _ in range(MAX_OPTION_DEPTH):
        tree = {"driver": "raw", "file": tree}
    with pytest.raises(InvalidRequestError, match="deep"):
        open_image(tree)


# -- files, formats, modes ---------------------------------------------------------------------


def test_bad_files_are_refused(tmp_path: Path, raw: str) -> None:
    with pytest.raises(NotFoundError):
        open_image(str(tmp_path / "absent"))
    with pytest.raises(InvalidRequestError, match="directory"):
        open_image(str(tmp_path))
    with pytest.raises(DeviceError, match="directory"):
        open_image(str(tmp_path), readonly=False)
    with pytest.raises(FormatError):
        open_image(raw, format="qcow2")
    with pytest.raises(InvalidRequestError, match="nonsense"):
        open_image(raw, format="nonsense")
    with pytest.raises(InvalidRequestError, match="cache"):
        open_image(raw, cache="fast")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidRequestError, match="regular file, or a block device"):
        open_image(str(tmp_path / "fifo"), readonly=False)


@pytest.mark.parametrize("length", [0, 3, 4, 8, 71, 72, 103, 104, 200, 65536, 3 * 65536 - 1])
def test_truncated_images_are_refused(length: int, tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    os.truncate(path, length)
    with pytest.raises(VdiskError):
        open_image(path, format="qcow2")


def test_a_guessed_raw_disk_keeps_looking_raw(raw: str) -> None:
    said: list[str] = []
    with open_image(raw, readonly=False, warn=said.append) as image:
        image.write(512, b"QFI\xfb\0\0\0\3")
        with pytest.raises(ReadOnlyError, match="qcow2"):
            image.write(0, b"QFI\xfb\0\0\0\3")
    assert len(said) == 1
    assert "guessed" in said[0]
    said.clear()
    with open_image(raw, readonly=False, format="raw", warn=said.append) as image:
        image.write(0, b"QFI\xfb\0\0\0\3")
    assert not said


@pytest.mark.parametrize("kind", ["zeroes", "discard"])
def test_zeroes_do_not_disguise_a_guessed_raw_disk(kind: str, raw: str) -> None:
    with open_image(raw, readonly=False) as image:
        image.write(0, b"QFI\xfb\x01\0\0\3")  # no version that there is
        with pytest.raises(ReadOnlyError, match="qcow2"):
            if kind == "zeroes":
                image.write_zeroes(4, 1)
            else:
                image.discard(4, 1)
        assert image.read(0, 8) == b"QFI\xfb\x01\0\0\3"
        image.write_zeroes(0, 4096)


def test_halves_written_at_once_do_not_disguise_a_guessed_raw_disk() -> None:
    class Slow(MemoryStore):
        """A disk whose reads let other threads come first."""

        def _read_into(self, offset: int, view: memoryview) -> None:
            super()._read_into(offset, view)
            time.sleep(0.05)

    image = RawImage(Slow(bytes(1 << 16)), readonly=False, guessed=True)
    image.write(4, b"\0\0\0\3")
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(image.write, 0, b"QF"), pool.submit(image.write, 2, b"I\xfb")]
        refused = [half.exception() for half in halves]
    assert [type(error) for error in refused if error] == [ReadOnlyError]


def test_reading_a_guessed_raw_disk_warns_of_nothing(raw: str) -> None:
    said: list[str] = []
    open_image(raw, warn=said.append).close()
    assert not said


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough", "directsync", "unsafe"])
def test_cache_modes_write_and_read(cache: str, raw: str) -> None:
    with open_image(raw, readonly=False, format="raw", cache=cache) as image:
        image.write(4096, b"x" * 4096)
        image.flush()
        file = image.file  # type: ignore[attr-defined]
        assert isinstance(file, DirectFileStore) == (cache in ("none", "directsync"))
    assert Path(raw).read_bytes()[4096:8192] == b"x" * 4096


def test_filters_are_nodes(tmp_path: Path, raw: str) -> None:
    top = qcow2(tmp_path / "top.qcow2", raw)
    tree: dict[str, Any] = {"driver": "qcow2", "file": {"filename": top}}
    with open_image({"driver": "copy-on-read", "file": tree}, readonly=False) as image:
        assert image.read(0, 4) == b"0123"
    os.truncate(raw, 0)
    os.truncate(raw, SIZE)
    with open_image(top) as image:
        assert image.read(0, 4) == b"0123"
    for options in ({}, {"file": "x"}, {"file": {}}, {"file": tree, "surprise": 1}):
        with pytest.raises(InvalidRequestError):
            open_image({"driver": "copy-on-read", **options}, readonly=False)
    with pytest.raises(InvalidRequestError, match="read-only"):
        open_image({"driver": "copy-on-read", "file": tree})


def test_cache_options_of_one_node(raw: str) -> None:
    tree = {"driver": "raw", "file": {"filename": raw, "cache.direct": "on"}}
    with open_image(tree) as image:
        assert isinstance(image.file, DirectFileStore)  # type: ignore[attr-defined]


def test_read_only_option_wins(raw: str) -> None:
    with (
        open_image({"read-only": True, "file.filename": raw}, readonly=False) as image,
        pytest.raises(ReadOnlyError),
    ):
        image.write(0, b"x")


def test_locks(raw: str) -> None:
    with open_image(raw, readonly=False, format="raw"):
        with pytest.raises(ImageLockedError, match="-U"):
            open_image(raw)
        with open_image(raw, force_share=True) as image:
            assert image.read(0, 1) == b"0"
        with open_image({"file": {"filename": raw, "locking": "off"}}) as image:
            assert image.read(0, 1) == b"0"
    with open_image(raw), open_image(raw), pytest.raises(ImageLockedError):
        open_image(raw, readonly=False, format="raw")


def test_sharing_is_for_readers(raw: str) -> None:
    with pytest.raises(InvalidRequestError, match="reading"):
        open_image(raw, readonly=False, force_share=True)
    with pytest.raises(InvalidRequestError, match="reading"):
        open_image({"force-share": True, "file.filename": raw}, readonly=False)


# -- backing files -------------------------------------------------------------------------------


def test_backing_files_lie_beside_the_image(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "base.raw").write_bytes(b"base" + bytes(SIZE - 4))
    qcow2(tmp_path / "dir" / "disk.qcow2", "base.raw")
    for directory, name in ((tmp_path, "dir/disk.qcow2"), (tmp_path / "dir", "disk.qcow2")):
        monkeypatch.chdir(directory)
        with open_image(name) as image:
            assert image.read(0, 4) == b"base"
            assert image.backing is not None
            assert image.backing.readonly


@pytest.mark.parametrize("format", ["raw", None])
def test_a_backing_file_without_a_format_is_recognised(
    tmp_path: Path, raw: str, format: str | None
) -> None:
    middle = qcow2(tmp_path / "middle.qcow2", raw, "raw")
    stored = None if format is None else "qcow2"
    top = qcow2(tmp_path / "top.qcow2", middle, stored)
    with open_image(top) as image:
        assert image.read(0, 4) == b"0123"


def test_backing_names_may_be_trees(tmp_path: Path, raw: str) -> None:
    for tree in (
        {"driver": "raw", "file": {"driver": "file", "filename": raw}},
        {"driver": "file", "filename": raw},
        {"file.filename": raw},
    ):
        top = qcow2(tmp_path / "top.qcow2", "json:" + json.dumps(tree))
        with open_image(top) as image:
            assert image.read(0, 4) == b"0123"


def test_options_replace_and_complete_the_backing_file(tmp_path: Path, raw: str) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(b"other" + bytes(SIZE - 5))
    top = qcow2(tmp_path / "top.qcow2", raw)
    with open_image(top, options={"backing": {"driver": "raw", "offset": 2}}) as image:
        assert image.read(0, 4) == b"2345"
    with open_image(top, options={"backing": {"file": {"filename": str(other)}}}) as image:
        assert image.read(0, 5) == b"other"
    for nothing in (None, ""):
        with open_image(top, options={"backing": nothing}) as image:
            assert image.read(0, 4) == bytes(4)
    with pytest.raises(InvalidRequestError, match="node"):
        open_image(top, options={"backing": "a-node-name"})


def test_backing_files_can_be_refused_or_left(tmp_path: Path, raw: str) -> None:
    top = qcow2(tmp_path / "top.qcow2", "absent.raw")
    with pytest.raises(NotFoundError, match=r"absent\.raw.*named by .*top\.qcow2"):
        open_image(top)
    with pytest.raises(InvalidRequestError, match="--no-backing"):
        open_image(top, backing=Backing.REFUSE)
    with open_image(top, backing=Backing.LEAVE) as image:
        assert image.backing is None
    open_image(raw, backing=Backing.REFUSE).close()


def test_data_files_can_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, SIZE, format="qcow2", options={"data_file": "data.raw"})
    with open_image(str(path), readonly=False) as image:
        image.write(0, b"data")
    assert (tmp_path / "data.raw").read_bytes()[:4] == b"data"
    with pytest.raises(InvalidRequestError, match="data-file"):
        open_image(str(path), backing=Backing.REFUSE)


def test_loops_are_refused(tmp_path: Path) -> None:
    for names in (["a"], ["a", "b"], ["a", "b", "c"]):
        for name, backing in zip(names, [*names[1:], names[0]], strict=True):
            qcow2(tmp_path / name, backing, "qcow2")
        with pytest.raises(InvalidRequestError, match=r"loop: .*a.* -> .*a;"):
            open_image(str(tmp_path / "a"))
        with pytest.raises(InvalidRequestError, match="loop"):
            open_image(str(tmp_path / "a"), readonly=False)


def test_loops_through_other_names_are_seen(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a")
    os.symlink("a", tmp_path / "link")
    os.link(path, tmp_path / "hard")
    for backing in ("link", "hard", "../" + tmp_path.name + "/a", f"file:{path}"):
        qcow2(tmp_path / "a", backing, "qcow2")
        (tmp_path / "hard").unlink()
        os.link(path, tmp_path / "hard")
        with pytest.raises(InvalidRequestError, match="loop"):
            open_image(path)


def test_chains_are_bounded(tmp_path: Path) -> None:
    below = None
    for number in range(MAX_CHAIN_DEPTH + 1):
        path = qcow2(tmp_path / str(number), below, "qcow2")
        below = path
        if number == MAX_CHAIN_DEPTH - 1:
            with open_image(path) as image:
                assert image.read(0, 4) == bytes(4)
                assert len(list(image.map())) == 1
    with pytest.raises(UnsupportedFeatureError, match="longer than"):
        open_image(path)


# -- creating ------------------------------------------------------------------------------------


def test_creation_plans_touch_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"precious")
    plan_creation(str(path), SIZE)
    assert path.read_bytes() == b"precious"


def test_the_size_comes_from_the_backing_file(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "top.qcow2"
    vdisk.create(path, format="qcow2", backing_file="disk.raw", backing_format="raw")
    with open_image(str(path)) as image:
        assert image.size == SIZE
        assert image.read(0, 4) == b"0123"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "size"),
        ({"size": -1}, "size"),
        ({"size": 1 << 63}, "size"),
        ({"size": 512, "format": "nonsense"}, "nonsense"),
        ({"size": 512, "options": {"size": 512}}, "only once"),
        ({"size": 512, "options": {"surprise": 1}}, "surprise"),
        ({"size": 512, "options": {"preallocation": "some"}}, "preallocation"),
        ({"size": 512, "backing_format": "raw"}, "backing"),
        ({"size": 512, "backing_file": "x", "backing_format": "raw"}, "backing_file"),
        ({"size": 512, "format": "qcow2", "backing_file": "x"}, "-F"),
        ({"format": "qcow2", "backing_file": "new", "backing_format": "raw"}, "own backing"),
        ({"format": "qcow2", "backing_file": "x", "backing_format": "nonsense"}, "nonsense"),
        ({"format": "qcow2", "backing_file": "absent", "backing_format": "raw"}, "absent"),
        ({"size": 512, "format": "qcow2", "options": {"cluster_size": "3k"}}, "cluster_size"),
        ({"size": 512, "format": "qcow2", "options": {"lazy_refcounts": "perhaps"}}, "lazy"),
        ({"size": 512, "format": "qcow2", "options": {"refcount_bits": "x"}}, "refcount_bits"),
        ({"size": 512, "format": "qcow2", "options": {"refcount_bits": -8}}, "refcount_bits"),
        ({"size": 512, "format": "qcow2", "options": {"compat": 3}}, "compat"),
    ],
)
def test_creations_that_cannot_work(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VdiskError, match=message):
        vdisk.create("new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_creation_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdisk.formats.raw import RawDriver

    def fail(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RawDriver, "create", fail)
    with pytest.raises(KeyboardInterrupt):
        vdisk.create(tmp_path / "disk.raw", SIZE)
    assert not (tmp_path / "disk.raw").exists()
    with pytest.raises(NotFoundError):
        vdisk.create(tmp_path / "absent" / "disk.raw", SIZE)


def test_options_reach_the_nodes_of_a_name(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    rule = {"event": "none", "iotype": "write", "once": True}
    rules = {f"file.inject-error.0.{key}": value for key, value in rule.items()}
    with open_image(f"blkdebug::{path}", readonly=False, format="qcow2", options=rules) as image:
        assert image.format_name == "qcow2"
        image.read(0, 512)
        with pytest.raises(DeviceError):
            image.write(0, b"x" * 65536)
            image.flush()


def test_a_name_and_options_are_one_tree(tmp_path: Path, raw: str) -> None:
    """A filter among the options takes the name, by its own scheme or as what is below it."""
    path = qcow2(tmp_path / "disk.qcow2")
    for name in (path, f"blkdebug::{path}"):
        options = {"driver": "blkdebug", "image.driver": "qcow2"}
        with open_image(name, options=options) as image:
            assert image.inner.format_name == "qcow2"  # type: ignore[attr-defined]
    with open_image(path, options={"file.driver": "blkdebug"}) as image:
        assert image.format_name == "qcow2"
    verify = {"driver": "raw", "file.driver": "blkverify", "file.raw.filename": raw}
    with open_image(raw, readonly=True, options=verify) as image:
        assert image.file.raw.name == raw  # type: ignore[attr-defined]


def test_options_of_qemus_own_are_read(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    options = {
        "lazy-refcounts": "on",
        "overlap-check.template": "all",
        "overlap-check.inactive-l2": "off",
        "cache-clean-interval": "60",
        "auto-read-only": True,
        "discard": "unmap",
        "detect-zeroes": "on",
        "l2-cache-entry-size": "4k",
    }
    open_image(path, options=options).close()
    for wrong in (
        {"discard": "some"},
        {"overlap-check": "some"},
        {"l2-cache-entry-size": 4095},
        {"lazy": "on"},
    ):
        with pytest.raises(InvalidRequestError):
            open_image(path, options=wrong)
    with pytest.raises(InvalidRequestError, match=r"the cluster size \(65536\)"):
        open_image(path, options={"l2-cache-entry-size": "128k"})


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


def test_what_a_raw_data_file_has_behind_the_end_is_the_grown_disks(tmp_path: Path) -> None:
    """The two files are the same disk at every moment."""
    path, data = str(tmp_path / "disk.qcow2"), tmp_path / "data"
    options = {"data_file": str(data), "data_file_raw": True}
    plan_creation(path, SIZE, format="qcow2", options=options).run()
    with data.open("ab") as file:
        file.write(b"longer" * 100_000)
    with open_image(path, readonly=False) as image:
        image.truncate(2 * SIZE)
        assert image.read(0, 2 * SIZE) == data.read_bytes().ljust(2 * SIZE, b"\0")


def test_a_data_file_is_never_recognised(tmp_path: Path) -> None:
    """Its bytes are the guest's, who may write what looks like an image with a backing file."""
    path, data = str(tmp_path / "disk.qcow2"), str(tmp_path / "data")
    options = {"data_file": data, "data_file_raw": True}
    plan_creation(path, SIZE, format="qcow2", options=options).run()
    disguise = Path(qcow2(tmp_path / "other.qcow2")).read_bytes()[:512]
    said: list[str] = []
    for _ in range(2):
        named = {"data-file.filename": data}
        with open_image(path, readonly=False, options=named, warn=said.append) as image:
            assert image.read(0, 512) in (bytes(512), disguise)
            image.write(0, disguise)
            image.flush()
            assert image.read(0, 512) == disguise
    assert not said


def test_the_data_file_that_is_given_replaces_the_one_that_is_named(tmp_path: Path) -> None:
    path, data, other = (str(tmp_path / name) for name in ("disk.qcow2", "data", "other"))
    plan_creation(path, SIZE, format="qcow2", options={"data_file": data}).run()
    shutil.copy(data, other)
    with open_image(path, readonly=False) as image:
        image.write(0, b"named")
    faulty = {"driver": "blkdebug", "image": {"driver": "file", "filename": other}}
    with open_image(path, readonly=False, options={"data-file": faulty}) as image:
        image.write(0, b"given")
    assert (Path(data).read_bytes()[:5], Path(other).read_bytes()[:5]) == (b"named", b"given")


def test_an_image_that_does_not_name_its_data_file_needs_it_given(tmp_path: Path) -> None:
    path, data = str(tmp_path / "disk.qcow2"), str(tmp_path / "data")
    plan_creation(path, SIZE, format="qcow2", options={"data_file": data}).run()
    with open_image(path, readonly=False) as image:
        image.amend({"data_file": ""})  # type: ignore[attr-defined]
    with pytest.raises(CorruptImageError, match="'data-file' is required"):
        open_image(path)
    with open_image(path, options={"data-file.filename": data}) as image:
        assert image.read(0, 512) == bytes(512)


def test_an_image_with_its_data_inside_takes_no_data_file(tmp_path: Path, raw: str) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    with pytest.raises(InvalidRequestError, match="only be set for images with an external"):
        open_image(path, options={"data-file.filename": raw})


def test_an_image_that_names_no_backing_file_takes_one_that_is_given(
    tmp_path: Path, raw: str
) -> None:
    path = qcow2(tmp_path / "disk.qcow2")
    with open_image(path, options={"backing": {"driver": "raw", "file.filename": raw}}) as image:
        assert image.backing is not None
        assert image.read(0, SIZE) == Path(raw).read_bytes()


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


# -- options of the file ---------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_hints_to_the_file_system_are_given_or_ignored(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They change nothing that can be read, and file systems without them go on without."""
    asked: list[object] = []
    monkeypatch.setattr("vdisk.stores._linux.set_extent_size", lambda _, size: asked.append(size))

    def fail(_fd: int) -> None:
        asked.append("nocow")
        raise OSError(25, "no such thing here")

    monkeypatch.setattr("vdisk.stores._linux.set_nocow", fail)
    plan = plan_creation(
        str(tmp_path / "a"),
        1 << 20,
        format=format,
        options={"extent_size_hint": "1M", "nocow": "on"},
    )
    plan.run()
    assert asked == [1 << 20, "nocow"]
    plan_creation(str(tmp_path / "b"), 1 << 20, format=format).run()
    assert asked == [1 << 20, "nocow"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_hints_that_cannot_be(tmp_path: Path) -> None:
    for options in ({"extent_size_hint": "4G"}, {"nocow": "perhaps"}):
        with pytest.raises(InvalidRequestError):
            plan_creation(str(tmp_path / "a"), 1 << 20, options=options).run()
    assert not (tmp_path / "a").exists()
