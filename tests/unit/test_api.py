"""The library's public names: ``import vdisk``."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import vdisk

SIZE = 1 << 20


def test_every_name_is_there() -> None:
    for name in vdisk.__all__:
        assert getattr(vdisk, name) is not None
    assert set(vdisk.__all__) <= set(dir(vdisk))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vdisk.nonsense  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(vdisk.__file__).read_bytes())
    declared = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vdisk.")
        for alias in node.names
    }
    assert declared == vdisk._HOME


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_image_from_creation_to_conversion(format: str, tmp_path: Path) -> None:
    path, copy = tmp_path / "disk", tmp_path / "copy"
    vdisk.create(path, SIZE, format=format)
    with vdisk.open(path, "r+", format=format) as disk:
        disk.write(4096, b"content")
        disk.write_zeroes(8192, 4096)
        disk.flush()
        assert disk.read(4096, 7) == b"content"
        disk.truncate(2 * SIZE)
    found = vdisk.info(path, format=format)
    assert (found.format, found.virtual_size) == (format, 2 * SIZE)
    entries = list(vdisk.map(path, format=format))
    assert sum(entry.length for entry in entries) == 2 * SIZE
    vdisk.convert(path, copy, format=format, target_format="qcow2")
    with vdisk.open(path, format=format) as one, vdisk.open(copy, format="qcow2") as other:
        assert vdisk.compare(one, other).identical
    assert vdisk.check(copy).clean
    assert vdisk.measure(copy, target_format="qcow2").required > 0


def test_commit_and_rebase(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    vdisk.create(base, SIZE)
    vdisk.create(top, format="qcow2", backing_file="base", backing_format="raw")
    with vdisk.open(top, "r+") as disk:
        disk.write(0, b"new")
    vdisk.commit(str(top))
    assert base.read_bytes()[:3] == b"new"
    vdisk.rebase(str(top), None)
    assert vdisk.info(top).backing_filename is None
    with vdisk.open(top) as disk:
        assert disk.read(0, 3) == b"new"


def test_snapshots_are_opened_by_name(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    vdisk.create(path, SIZE, format="qcow2")
    with vdisk.open(path, "r+") as disk:
        assert isinstance(disk, vdisk.Qcow2Image)
        disk.write(0, b"old")
        disk.create_snapshot("before")
        disk.write(0, b"new")
    with vdisk.open(path, snapshot="before") as view:
        assert view.read(0, 3) == b"old"
        assert view.readonly
    vdisk.open(path, "r+").close()  # nothing holds the image any more
    with pytest.raises(vdisk.NotFoundError):
        vdisk.open(path, snapshot="absent")
    with pytest.raises(vdisk.InvalidRequestError):
        vdisk.open(path, "r+", snapshot="before")
    vdisk.open(path, "r+").close()


def test_raw_images_have_no_snapshots(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk", SIZE)
    with pytest.raises(vdisk.UnsupportedFeatureError):
        vdisk.open(tmp_path / "disk", snapshot="x")
    vdisk.open(tmp_path / "disk", "r+", format="raw").close()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda path: vdisk.open(path, "w"), vdisk.InvalidRequestError),  # type: ignore[arg-type]
        (lambda path: vdisk.open(path / "absent"), vdisk.VdiskError),
        (vdisk.check, vdisk.UnsupportedFeatureError),
        (lambda path: vdisk.check(path, repair="some"), vdisk.InvalidRequestError),
        (lambda path: next(vdisk.map(path, format="qcow2")), vdisk.FormatError),
        (lambda path: vdisk.info({"driver": "raw"}), vdisk.InvalidRequestError),
    ],
)
def test_only_errors_of_the_family_leave(call: Any, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "disk"
    vdisk.create(path, SIZE)
    with pytest.raises(error):
        call(path)


def test_forbidden_chains(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "base", SIZE)
    vdisk.create(tmp_path / "top", format="qcow2", backing_file="base", backing_format="raw")
    for call in (vdisk.open, vdisk.info, vdisk.check):
        with pytest.raises(vdisk.InvalidRequestError, match="base"):
            call(tmp_path / "top", backing=False)


def test_an_encrypted_disk(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    path = tmp_path / "disk"
    secrets = {"s": b"sesame"}
    options = {"encrypt.format": "luks", "encrypt.key-secret": "s", "encrypt.iter-time": 10}
    vdisk.create(path, SIZE, format="qcow2", options=options, secrets=secrets)
    assert vdisk.info(path).encrypted
    key = {"encrypt": {"key-secret": "s"}}
    with vdisk.open(path, "r+", options=key, secrets=secrets) as disk:
        disk.write(0, b"hidden")
        assert disk.read(0, 6) == b"hidden"
    assert b"hidden" not in path.read_bytes()
    with pytest.raises(vdisk.AuthenticationError):
        vdisk.open(path, options=key, secrets={"s": b"wrong"})
