"""Trees of options become devices; what fails leaves nothing open."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.tools.named_images import SIZE, qcow2
from vdisk.errors import (
    DeviceError,
    FormatError,
    ImageLockedError,
    InvalidRequestError,
    NotFoundError,
    ReadOnlyError,
    VdiskError,
)
from vdisk.formats.raw import RawImage
from vdisk.opening import open_image
from vdisk.options import MAX_OPTION_DEPTH
from vdisk.stores.file import DirectFileStore
from vdisk.stores.memory import MemoryStore


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
