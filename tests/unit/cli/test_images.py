"""The commands that look at an image and change it: what they print and what they do."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools import cli
from vdisk.block import Kind
from vdisk.cli.main import main
from vdisk.formats.qcow2 import Qcow2Image

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
CLUSTER = 65536


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, SIZE, format="qcow2")
    with vdisk.open(path, "r+") as image:
        image.write(CLUSTER, b"x" * CLUSTER)
    return path


def overlay(path: Path, backing: Path) -> Path:
    vdisk.create(path, format="qcow2", backing_file=backing.name, backing_format="qcow2")
    return path


# -- create ----------------------------------------------------------------------------------------


def test_create_announces_what_it_makes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run("create", "a.raw", "1.5k") == "Formatting 'a.raw', fmt=raw size=1536\n"
    assert (tmp_path / "a.raw").stat().st_size == 1536
    shown = cli.run("create", "-f", "qcow2", "-o", "cluster_size=4k", "-o", "compat=v3", "b", "1M")
    assert shown == (
        "Formatting 'b', fmt=qcow2 cluster_size=4096 extended_l2=off compression_type=zlib "
        "size=1048576 compat=v3 lazy_refcounts=off refcount_bits=16\n"
    )
    assert cli.run("create", "-q", "-f", "qcow2", "c", "1M") == ""
    shown = cli.run("create", "-f", "qcow2", "-b", "b", "-F", "qcow2", "d,e")
    assert "size=1048576 backing_file=b backing_fmt=qcow2 " in shown


def test_create_takes_the_size_as_an_option(tmp_path: Path) -> None:
    cli.run("create", "-q", "-o", "size=2M", tmp_path / "a.raw")
    assert (tmp_path / "a.raw").stat().st_size == 2 << 20


@pytest.mark.parametrize("format", ["raw", "qcow2", "luks"])
def test_create_lists_its_options(format: str) -> None:
    shown = cli.run("create", "-f", format, "-o", "help")
    assert shown.startswith(f"Supported {format} options:\n")
    assert "  size=<size>" in shown


def test_create_without_looking_at_the_backing_file(tmp_path: Path) -> None:
    path = tmp_path / "top.qcow2"
    arguments = ["create", "-q", "-f", "qcow2", "-b", "absent", "-F", "raw"]
    assert "absent" in cli.fail(*arguments, path, "1M")
    assert "size" in cli.fail(*arguments, "-u", path)
    assert not path.exists()
    cli.run(*arguments, "-u", path, "1M")
    assert vdisk.info(path).backing_filename == "absent"


def test_a_new_raw_file_begins_with_a_written_block(tmp_path: Path) -> None:
    """By reading it, programs that bypass the page cache find out how they must align."""
    cli.run("create", "-q", tmp_path / "large.raw", "1M")
    with vdisk.open(tmp_path / "large.raw", format="raw") as image:
        assert [(extent.reads_zero, extent.length) for extent in image.map()] == [
            (False, 4096),
            (True, SIZE - 4096),
        ]
    cli.run("create", "-q", tmp_path / "small.raw", "512")
    cli.run("create", "-q", tmp_path / "empty.raw", "0")
    assert (tmp_path / "small.raw").read_bytes() == bytes(512)
    assert (tmp_path / "empty.raw").read_bytes() == b""


# -- bitmap ----------------------------------------------------------------------------------------


def test_bitmaps_of_an_overlay_are_merged_into_its_backing_file(disk: Path, tmp_path: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", disk)
    cli.run("bitmap", "--add", top, "b")
    with vdisk.open(top, "r+") as image:
        image.write(3 * CLUSTER, b"y" * CLUSTER)
    cli.run("bitmap", "--add", "--merge", "b", "-b", top, "-F", "qcow2", disk, "kept")
    with vdisk.open(disk) as image:
        assert isinstance(image, Qcow2Image)
        assert list(image.dirty_ranges("kept")) == [(3 * CLUSTER, CLUSTER)]


def test_bitmaps_need_no_backing_file(disk: Path, tmp_path: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", disk)
    disk.unlink()
    cli.run("bitmap", "--add", top, "b")
    assert "forbidden" in cli.fail("bitmap", "--no-backing", "--clear", top, "b")


# -- info ------------------------------------------------------------------------------------------


def test_info_needs_no_secret_that_a_name_mentions(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    secret = ("--object", "secret,id=s,data=x")
    cli.run("create", "-q", *secret, "-f", "qcow2", "-o", options, path, "1M")
    tree = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    shown = [
        json.loads(cli.run("info", *words, "--output=json", "--image-opts", tree))
        for words in ((), secret)
    ]
    assert shown[0] == shown[1]
    assert shown[0]["encrypted"]


@pytest.mark.parametrize("secret", ['["s"]', '{"a": 1}', "1"])
def test_info_says_which_secrets_are_none(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(512))
    tree = f'json:{{"driver": "luks", "key-secret": {secret}, "file.filename": "{path}"}}'
    assert "key-secret" in cli.fail("info", tree)


def test_info_of_a_chain(disk: Path, tmp_path: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", disk)
    shown = cli.run("info", "--backing-chain", top)
    assert shown.count("\nfile format: qcow2\n") == 2
    assert f"backing file: disk.qcow2 (actual path: {disk})\n" in shown
    table = shown.partition("Backing chain:\n")[2].splitlines()
    assert [line.split()[0] for line in table] == ["DEPTH", "0", "1"]
    images = json.loads(cli.run("info", "--backing-chain", "--output=json", top))
    assert [image["filename"] for image in images] == [str(top), str(disk)]
    assert json.loads(cli.run("info", "--output=json", top)) == images[0]


def test_info_of_a_broken_chain(disk: Path, tmp_path: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", disk)
    disk.unlink()
    assert "backing file: disk.qcow2" in cli.run("info", top)
    assert "disk.qcow2" in cli.fail("info", "--backing-chain", top)
    assert "--no-backing" in cli.fail("info", "--no-backing", top)


def test_info_reads_what_another_process_writes(disk: Path) -> None:
    with vdisk.open(disk, "r+"):
        assert "-U" in cli.fail("info", disk)
        assert "virtual size: 1 MiB (1048576 bytes)" in cli.run("info", "-U", disk)


def test_info_of_options(disk: Path) -> None:
    tree = {"driver": "raw", "offset": 512, "size": 1024, "file": {"filename": str(disk)}}
    by_name = json.loads(cli.run("info", "--output=json", f"json:{json.dumps(tree)}"))
    assert by_name["virtual-size"] == 1024
    assert json.loads(by_name["filename"].removeprefix("json:")) == tree
    by_options = f"driver=raw,offset=512,size=1k,file.filename={disk}"
    assert json.loads(cli.run("info", "--output=json", "--image-opts", by_options)) == {
        **by_name,
        "filename": by_name["filename"].replace("1024", '"1k"').replace("512", '"512"'),
    }


# -- map -------------------------------------------------------------------------------------------


def test_map_for_people(disk: Path) -> None:
    header, line = cli.run("map", disk).splitlines()
    assert header.split() == ["Offset", "Length", "Mapped", "to", "File"]
    start, length, offset, name = line.split()
    assert (int(start, 0), int(length, 0), name) == (CLUSTER, CLUSTER, str(disk))
    assert disk.read_bytes()[int(offset, 0) :][:4] == b"xxxx"


def test_map_of_a_part(disk: Path) -> None:
    part = json.loads(cli.run("map", "--output=json", "-s", "65k", "--max-length=2k", disk))
    assert [(entry["start"], entry["length"]) for entry in part] == [(65 << 10, 2 << 10)]
    assert part[0]["data"]
    past = json.loads(cli.run("map", "--output=json", "--start-offset=1T", disk))
    assert past[0]["length"] == 0


def test_map_cannot_place_compressed_data(disk: Path) -> None:
    with vdisk.open(disk, "r+") as image:
        packed = image.compress_cluster(bytes(CLUSTER))  # type: ignore[attr-defined]
        image.write_compressed(0, packed)  # type: ignore[attr-defined]
        assert next(image.map()).kind is Kind.COMPRESSED
    assert "--output=json" in cli.vdisk("map", disk).stderr
    assert cli.vdisk("map", disk).status == 1
    assert "offset" not in json.loads(cli.run("map", "--output=json", disk))[0]


# -- snapshots, size, options, bitmaps -------------------------------------------------------------


def test_snapshots_come_and_go(disk: Path) -> None:
    assert cli.run("snapshot", "-l", disk) == cli.run("snapshot", disk) == ""
    assert cli.run("snapshot", "-c", "before the flood", disk) == ""
    with vdisk.open(disk, "r+") as image:
        image.write(0, b"flood")
    cli.run("snapshot", "-c", "x", disk)
    shown = cli.run("snapshot", "-l", disk)
    assert shown.splitlines()[0] == "Snapshot list:"
    assert "1         before the flood " in shown
    assert shown in cli.run("info", disk)
    assert [
        entry["name"] for entry in json.loads(cli.run("info", "--output=json", disk))["snapshots"]
    ] == ["before the flood", "x"]
    cli.run("snapshot", "-a", "1", disk)
    with vdisk.open(disk) as image:
        assert image.read(0, 5) == bytes(5)
    with vdisk.open(disk, snapshot="x") as view:
        assert view.read(0, 5) == b"flood"
    cli.run("snapshot", "-d", "x", disk)
    assert "no snapshot" in cli.fail("snapshot", "-d", "x", disk)
    assert "no snapshot" in cli.fail("snapshot", "-a", "x", disk)
    assert "reading" in cli.fail("snapshot", "-U", "-c", "y", disk)
    assert "2    " not in cli.run("snapshot", "-U", "-l", disk)
    cli.run("check", disk)


def test_raw_images_have_no_snapshots(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", SIZE)
    assert (
        cli.run("snapshot", "-l", "--image-opts", f"driver=raw,file.filename={tmp_path}/disk.raw")
        == ""
    )
    outcome = cli.vdisk("snapshot", "-c", "x", tmp_path / "disk.raw")
    assert outcome.status == 1
    assert "warning" in outcome.stderr.splitlines()[0]
    assert "convert it to qcow2" in outcome.stderr.splitlines()[1]


@pytest.mark.parametrize("name", ["disk.raw", "disk.qcow2"])
def test_resize(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    format = path.suffix[1:]
    vdisk.create(path, SIZE, format=format)
    steps: list[tuple[list[str], int]] = [
        (["2M"], 2 << 20),
        (["+512"], (2 << 20) + 512),
        (["--shrink", "-512"], 2 << 20),
        (["--shrink", "--", "-1M"], 1 << 20),
        (["--preallocation=full", "+1M"], 2 << 20),
        (["+0"], 2 << 20),
    ]
    for arguments, size in steps:
        *options, change = arguments
        if "--" in options:
            words = ["resize", "-f", format, "--shrink", str(path), "--", change]
        else:
            words = ["resize", "-f", format, *options, str(path), change]
        assert cli.run(*words) == "Image resized.\n"
        assert vdisk.info(path, format=format).virtual_size == size
    assert cli.run("resize", "-q", "-f", format, path, "3M") == ""
    assert "--shrink" in cli.fail("resize", "-f", format, path, "2M")
    assert "--shrink" in cli.fail("resize", "-f", format, path, "-1M")
    assert "positive" in cli.fail("resize", "-f", format, "--shrink", path, "-3M")
    assert "512" in cli.fail("resize", "-f", format, path, "+5")
    assert "grow" in cli.fail(
        "resize", "-f", format, "--shrink", "--preallocation=full", path, "1M"
    )
    assert vdisk.info(path, format=format).virtual_size == 3 << 20


def test_resize_says_what_a_format_cannot(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    vdisk.create(path, SIZE)
    assert "metadata" in cli.fail("resize", "-f", "raw", "--preallocation=metadata", path, "2M")
    assert path.stat().st_size == SIZE


def test_amend(disk: Path) -> None:
    cli.run("amend", "-o", "lazy_refcounts=on", "-o", "refcount_bits=8", disk)
    facts = vdisk.info(disk).format_specific
    assert facts is not None
    assert facts["data"]["lazy-refcounts"] is True
    assert facts["data"]["refcount-bits"] == 8
    assert "cluster_size" in cli.fail("amend", "-o", "cluster_size=4k", disk)
    assert cli.run("amend", "-f", "qcow2", "-o", "help").startswith("Amend options for 'qcow2':\n")
    assert cli.run("amend", "-o", "help", disk) == cli.run("amend", "-f", "qcow2", "-o", "help")
    assert "(100.00/100%)" in cli.run("amend", "-p", "-o", "compat=1.1", disk)


def test_raw_images_have_nothing_to_amend(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", SIZE)
    assert "does not support option amendment" in cli.fail(
        "amend", "-f", "raw", "-o", "size=1M", tmp_path / "disk.raw"
    )


def bitmaps(path: Path) -> list[dict[str, Any]]:
    facts = vdisk.info(path).format_specific
    assert facts is not None
    found: list[dict[str, Any]] = facts["data"].get("bitmaps", [])
    return found


def test_bitmap_actions_run_in_the_order_given(disk: Path, tmp_path: Path) -> None:
    cli.run("bitmap", "--add", "-g", "4k", disk, "a")
    cli.run("bitmap", "--add", "--disable", disk, "b")
    assert bitmaps(disk) == [
        {"name": "a", "granularity": 4096, "flags": ["auto"]},
        {"name": "b", "granularity": CLUSTER, "flags": []},
    ]
    cli.run("bitmap", "--remove", "--add", "--disable", "--enable", disk, "b")
    assert bitmaps(disk)[1]["flags"] == ["auto"]
    assert "exists" in cli.fail("bitmap", "--add", disk, "a")
    assert "absent" in cli.fail("bitmap", "--remove", disk, "absent")
    cli.fail("bitmap", "--add", "-g", "3000", disk, "c")


def test_bitmaps_are_merged_from_here_and_elsewhere(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.qcow2"
    vdisk.create(other, SIZE, format="qcow2")
    for path, name, start in ((disk, "here", 0), (other, "there", 512 << 10)):
        cli.run("bitmap", "--add", path, name)
        with vdisk.open(path, "r+") as image:
            image.write(start, b"x")
    cli.run("bitmap", "--add", "--merge", "here", disk, "all")
    cli.run("bitmap", "--merge", "there", "-b", other, "-F", "qcow2", disk, "all")
    with vdisk.open(disk) as image:
        runs = list(image.dirty_ranges("all"))  # type: ignore[attr-defined]
    assert runs == [(0, CLUSTER), (512 << 10, CLUSTER)]
    cli.run("bitmap", "--clear", disk, "all")
    with vdisk.open(disk) as image:
        assert not list(image.dirty_ranges("all"))  # type: ignore[attr-defined]


def test_bitmap_takes_long_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, other = str(tmp_path / "image"), str(tmp_path / "other")
    for name in (image, other):
        assert main(["create", "-q", "-f", "qcow2", name, "1M"]) == 0
    assert main(["bitmap", "--add", "--granularity", "512", "-f", "qcow2", image, "b"]) == 0
    source = ["--source-file", image, "--source-format", "qcow2"]
    assert (
        main(["bitmap", "--add", "--granularity", "512", "--merge", "b", *source, other, "c"]) == 0
    )
    assert not capsys.readouterr().err


def test_raw_images_have_no_bitmaps(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", SIZE)
    assert "no bitmaps" in cli.fail("bitmap", "--add", *_raw(tmp_path / "disk.raw"), "x")


def _raw(path: Path) -> list[str]:
    return ["-f", "raw", str(path)]


# -- check -----------------------------------------------------------------------------------------


def leak(path: Path) -> None:
    """Count a cluster behind the end as used."""
    with path.open("r+b") as file:
        file.seek(2 * CLUSTER + 2 * 20)
        file.write(b"\0\1")
    os.truncate(path, 21 * CLUSTER)


def corrupt(path: Path) -> None:
    """Count the cluster of data as free."""
    with vdisk.open(path) as image:
        data = next(extent for extent in image.map() if extent.kind is Kind.DATA)
    assert data.source_offset is not None
    with path.open("r+b") as file:
        file.seek(2 * CLUSTER + 2 * (data.source_offset // CLUSTER))
        file.write(b"\0\0")


def test_check_tells_by_its_status(disk: Path, tmp_path: Path) -> None:
    assert cli.run("check", disk).startswith("No errors were found on the image.\n1/16 = 6.25% ")
    assert cli.run("check", "-q", disk) == ""
    leak(disk)
    outcome = cli.vdisk("check", disk)
    assert outcome.status == 3
    assert "1 leaked clusters" in outcome.stdout
    assert "0x140000" in outcome.stderr
    report = json.loads(cli.vdisk("check", "--output=json", disk).stdout)
    assert report["leaks"] == 1
    assert report["filename"] == str(disk)
    corrupt(disk)
    outcome = cli.vdisk("check", disk)
    assert outcome.status == 2
    assert "errors were found on the image" in outcome.stdout


def test_check_repairs_leaks(disk: Path) -> None:
    leak(disk)
    outcome = cli.vdisk("check", "-r", "leaks", disk)
    assert outcome.status == 0, outcome
    assert "    1 leaked clusters\n    0 corruptions\n" in outcome.stdout
    cli.run("check", disk)


def test_check_repairs_corruption(disk: Path) -> None:
    corrupt(disk)
    report = json.loads(cli.vdisk("check", "-r", "all", "--output=json", disk).stdout)
    assert report["corruptions-fixed"] > 0
    cli.run("check", disk)
    with vdisk.open(disk) as image:
        assert image.read(CLUSTER, 1) == b"x"


def test_raw_images_have_no_check(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.raw", SIZE)
    said = cli.fail("check", *_raw(tmp_path / "disk.raw"), status=63)
    assert said == "vdisk: This image format does not support checks\n"


def test_convert_over_a_backing_file_asks_for_its_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, target = str(tmp_path / "base"), str(tmp_path / "target")
    assert main(["create", "-q", "-f", "qcow2", base, "1M"]) == 0
    assert main(["convert", "-O", "qcow2", "-B", base, base, target]) == 1
    assert "name it with -F" in capsys.readouterr().err
