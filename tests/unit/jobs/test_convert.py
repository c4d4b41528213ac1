"""convert: targets made and removed, what is skipped, what is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from vdisk.block import Kind
from vdisk.errors import (
    CancelledError,
    ImageLockedError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
)
from vdisk.jobs.convert import convert

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A raw disk of 4 MiB: a hole, data, written zeroes, data in its last sector."""
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
        file.seek(MIB)
        file.write(os.urandom(100_000) + bytes(500_000))
        file.seek(4 * MIB - 512)
        file.write(b"end!" * 128)
    return str(path)


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "target")


def content(path: str, format: str = "raw", **options: Any) -> bytes:
    with vdisk.open(path, format=format, **options) as image:
        return image.read(0, image.size)


@pytest.mark.parametrize("target_format", ["raw", "qcow2"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"sparse_size": 0},
        {"sparse_size": 65536},
        {"copy_offload": True},
        {"workers": 1},
        {"workers": 3, "out_of_order": True},
        {"salvage": True},
        {"target_cache": "writeback"},
        {"target_cache": "none"},
    ],
)
def test_content_is_the_same(
    source: str, target: str, target_format: str, how: dict[str, Any]
) -> None:
    result = convert(source, target, format="raw", target_format=target_format, **how)
    assert result.size == 4 * MIB
    assert content(target, target_format) == content(source)


def test_zeroes_become_holes_and_are_not_copied(source: str, target: str) -> None:
    result = convert(source, target, format="raw", target_format="qcow2")
    assert result.copied < 110_000
    with vdisk.open(target, format="qcow2") as image:
        kinds = [(extent.start, extent.kind) for extent in image.map()]
    assert kinds[0] == (0, Kind.HOLE)
    assert kinds[1] == (MIB, Kind.DATA)


def test_sparse_size_0_allocates_everything(source: str, target: str) -> None:
    result = convert(source, target, format="raw", sparse_size=0)
    assert result.copied == 4 * MIB
    with vdisk.open(target, format="raw") as image:
        assert [extent.kind for extent in image.map()] == [Kind.DATA]


def test_sparse_size_0_compresses_zeroes_too(source: str, target: str) -> None:
    convert(source, target, format="raw", target_format="qcow2", compress=True, sparse_size=0)
    with vdisk.open(target, format="qcow2") as image:
        kinds = {extent.kind for extent in image.map()}
    assert kinds <= {Kind.COMPRESSED, Kind.DATA}
    assert Kind.COMPRESSED in kinds
    assert content(target, "qcow2") == content(source)


def test_several_sources_have_no_backing_file_in_common(source: str, target: str) -> None:
    with pytest.raises(InvalidRequestError, match="makes no sense when concatenating"):
        convert(
            [source, source],
            target,
            format="raw",
            target_format="qcow2",
            backing_file=source,
            backing_format="raw",
        )
    assert not os.path.exists(target)


def test_several_sources_follow_one_another(source: str, target: str) -> None:
    result = convert([source, source], target, format="raw", target_format="qcow2")
    assert result.size == 8 * MIB
    assert content(target, "qcow2") == content(source) * 2


def test_an_old_file_is_replaced(source: str, target: str) -> None:
    with open(target, "wb") as file:
        file.write(b"old" * 5 * MIB)
    convert(source, target, format="raw")
    assert content(target) == content(source)


# -- targets that exist ----------------------------------------------------------------------------


def test_an_existing_target_is_overwritten_zeroes_included(source: str, target: str) -> None:
    with open(target, "wb") as file:
        file.write(b"old!" * (5 * MIB // 4))
    result = convert(source, target, format="raw", target_exists=True)
    assert content(target) == content(source) + b"old!" * (MIB // 4)
    assert result.zeroed > 3 * MIB


def test_an_existing_target_that_is_zero_is_not_zeroed_again(source: str, target: str) -> None:
    vdisk.create(target, 4 * MIB, format="qcow2")
    result = convert(source, target, format="raw", target_format="qcow2", target_exists=True)
    assert result.zeroed == 0
    assert content(target, "qcow2") == content(source)


def test_target_is_zero_is_believed(source: str, target: str) -> None:
    with open(target, "wb") as file:
        file.write(b"x" * 4 * MIB)
    convert(source, target, format="raw", target_exists=True, target_is_zero=True)
    assert content(target)[:MIB] == b"x" * MIB


def test_a_target_that_is_too_small_is_refused_and_kept(source: str, target: str) -> None:
    with open(target, "wb") as file:
        file.write(b"x" * MIB)
    with pytest.raises(InvalidRequestError, match="holds 1048576 bytes"):
        convert(source, target, format="raw", target_exists=True)
    assert os.path.getsize(target) == MIB


# -- what remains after a failure ------------------------------------------------------------------


def cancel_at(share: float) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= total * share:
            raise CancelledError("cancelled by the test")

    return progress


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("existed", [False, True])
def test_a_cancelled_conversion_leaves_no_target(
    source: str, target: str, share: float, existed: bool
) -> None:
    if existed:
        with open(target, "wb") as file:
            file.write(b"old")
    with pytest.raises(CancelledError):
        convert(source, target, format="raw", target_format="qcow2", progress=cancel_at(share))
    assert not os.path.exists(target)
    assert os.path.getsize(source) == 4 * MIB


def test_an_interrupt_leaves_no_target(source: str, target: str) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, format="raw", progress=interrupt)
    assert not os.path.exists(target)


def test_an_external_data_file_goes_too(source: str, target: str, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        convert(
            source,
            target,
            format="raw",
            target_format="qcow2",
            options={"data_file": "data.raw"},
            progress=cancel_at(0.3),
        )
    assert sorted(os.listdir(tmp_path)) == ["source.raw"]


def test_an_existing_target_stays_and_is_called_incomplete(source: str, target: str) -> None:
    vdisk.create(target, 4 * MIB)
    said: list[str] = []
    with pytest.raises(CancelledError):
        convert(
            source,
            target,
            format="raw",
            target_exists=True,
            progress=cancel_at(0.3),
            warn=said.append,
        )
    assert os.path.getsize(target) == 4 * MIB
    assert said == [f"{target} was not finished: its content is incomplete"]


def test_a_target_that_cannot_be_made_does_not_cost_the_old_file(source: str, target: str) -> None:
    with open(target, "wb") as file:
        file.write(b"precious")
    with pytest.raises(InvalidRequestError):
        convert(source, target, format="raw", target_format="qcow2", options={"cluster_size": 1000})
    with open(target, "rb") as file:
        assert file.read() == b"precious"


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("force_share", [False, True])
def test_an_image_is_not_converted_onto_itself(
    source: str, tmp_path: Path, force_share: bool
) -> None:
    other_name = str(tmp_path / "link")
    os.link(source, other_name)
    before = content(source)
    for target in (source, other_name):
        with pytest.raises(InvalidRequestError, match="being read"):
            convert(source, target, format="raw", force_share=force_share)
    assert content(source) == before


def test_nor_onto_its_backing_file(source: str, target: str) -> None:
    vdisk.create(target, format="qcow2", backing_file=source, backing_format="raw")
    with pytest.raises(InvalidRequestError, match="being read"):
        convert(target, source, format="qcow2")
    assert os.path.getsize(source) == 4 * MIB


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"compress": True}, UnsupportedFeatureError),
        ({"compress": True, "out_of_order": True}, InvalidRequestError),
        ({"compress": True, "copy_offload": True}, InvalidRequestError),
        ({"workers": 0}, InvalidRequestError),
        ({"workers": 17}, InvalidRequestError),
        ({"target_is_zero": True}, InvalidRequestError),
        ({"snapshot": "none"}, UnsupportedFeatureError),
        ({"bitmaps": True}, UnsupportedFeatureError),
        ({"target_format": "nonesuch"}, InvalidRequestError),
        ({"target_cache": "nonesuch"}, InvalidRequestError),
    ],
)
def test_refused_before_anything_remains(
    source: str, target: str, how: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        convert(source, target, format="raw", **how)
    assert not os.path.exists(target)


def test_no_source_no_target(target: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        convert(str(tmp_path / "missing"), target)
    with pytest.raises(InvalidRequestError):
        convert([], target)
    assert not os.path.exists(target)


def test_a_locked_target_is_left_alone(source: str, target: str) -> None:
    with open(target, "wb") as file:
        file.write(b"x" * 512)
    with vdisk.open(target, "r+", format="raw"), pytest.raises(ImageLockedError):
        convert(source, target, format="raw")
    assert os.path.getsize(target) == 512


# -- over a backing file ---------------------------------------------------------------------------


def test_over_a_backing_file_only_the_top_layer_is_copied(
    source: str, target: str, tmp_path: Path
) -> None:
    overlay = str(tmp_path / "overlay")
    vdisk.create(overlay, format="qcow2", backing_file=source, backing_format="raw")
    with vdisk.open(overlay, "r+", format="qcow2") as image:
        image.write(2 * MIB, b"new" * 1000)
        image.write_zeroes(MIB, 65536)
    result = convert(
        overlay,
        target,
        format="qcow2",
        target_format="qcow2",
        backing_file=source,
        backing_format="raw",
    )
    assert (result.copied, result.zeroed) == (4096, 65536 + 65536 - 4096)
    assert content(target, "qcow2") == content(overlay, "qcow2")


def test_compressed_and_read_back(source: str, target: str, tmp_path: Path) -> None:
    for compression in ("zlib", "zstd"):
        convert(
            source,
            target,
            format="raw",
            target_format="qcow2",
            compress=True,
            options={"compression_type": compression},
        )
        assert content(target, "qcow2") == content(source)
    back = str(tmp_path / "back")
    convert(target, back, format="qcow2")
    assert content(back) == content(source)
