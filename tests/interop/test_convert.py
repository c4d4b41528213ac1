"""``vdisk convert`` beside ``qemu-img convert`` 7.2: content, holes, options, exit statuses."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tools import qemu
from tests.tools.command import vdisk
from tests.tools.patience import PATIENCE, eventually
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires_peer("qemu-img", "qemu-io", "losetup")

MIB = 1 << 20

CREATE_OPTIONS = [
    {},
    {"compat": "0.10"},
    {"cluster_size": 512},
    {"cluster_size": 4096, "refcount_bits": 1},
    {"cluster_size": 2 * MIB},
    {"extended_l2": "on"},
    {"lazy_refcounts": "on", "refcount_bits": 64},
    {"preallocation": "metadata"},
    {"preallocation": "full", "cluster_size": 4096},
    {"compression_type": "zstd"},
]


def words(options: dict[str, object]) -> list[str]:
    """Options as ``-o`` takes them."""
    if not options:
        return []
    return ["-o", ",".join(f"{name}={value}" for name, value in options.items())]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw disk of 8 MiB and a bit: noise, text, written zeroes and holes, on odd edges."""
    noise = random.Random(1)
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB + 512 * 7)
        for offset, data in (
            (0, noise.randbytes(70_000)),
            (MIB + 512, b"text " * 60_000),
            (2 * MIB, bytes(300_000)),
            (5 * MIB - 1024, noise.randbytes(MIB)),
            (8 * MIB + 512 * 6, b"last sector" * 46 + b"......"),
        ):
            file.seek(offset)
            file.write(data)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.mark.parametrize("options", CREATE_OPTIONS, ids=str)
@pytest.mark.parametrize("flags", [[], ["-W", "-m", "4"], ["-S", "0"], ["-C"]], ids=str)
def test_to_qcow2(raw: Path, target: Path, options: dict[str, object], flags: list[str]) -> None:
    vdisk("convert", "-f", "raw", "-O", "qcow2", *words(options), *flags, raw, target)
    report = qemu.check(target)
    assert not report.get("leaks")
    assert not report.get("corruptions")
    qemu.compare(raw, target, "-f", "raw", "-F", "qcow2")


@pytest.mark.parametrize("options", CREATE_OPTIONS, ids=str)
def test_from_qcow2(raw: Path, tmp_path: Path, target: Path, options: dict[str, object]) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.img("convert", "-f", "raw", "-O", "qcow2", *words(options), raw, image)
    vdisk("convert", "-f", "qcow2", image, target)
    assert target.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [512, 65536, 2 * MIB])
def test_compressed_by_either_is_read_by_the_other(
    raw: Path, tmp_path: Path, compression: str, cluster_size: int
) -> None:
    ours, theirs, back = (tmp_path / name for name in ("ours", "theirs", "back"))
    flags = words({"compression_type": compression, "cluster_size": cluster_size})
    vdisk("convert", "-c", "-f", "raw", "-O", "qcow2", *flags, raw, ours)
    qemu.img("convert", "-c", "-f", "raw", "-O", "qcow2", *flags, raw, theirs)
    qemu.check(ours)
    qemu.compare(raw, ours, "-f", "raw", "-F", "qcow2")
    vdisk("convert", "-f", "qcow2", theirs, back)
    assert back.read_bytes() == raw.read_bytes()
    assert ours.stat().st_size < 1.3 * theirs.stat().st_size


def test_uses_no_more_room_than_qemu_img(raw: Path, tmp_path: Path) -> None:
    for format in ("raw", "qcow2"):
        ours, theirs = tmp_path / f"ours.{format}", tmp_path / f"theirs.{format}"
        vdisk("convert", "-f", "raw", "-O", format, raw, ours)
        qemu.img("convert", "-f", "raw", "-O", format, raw, theirs)
        assert ours.stat().st_size <= theirs.stat().st_size
        assert ours.stat().st_blocks <= theirs.stat().st_blocks + 64


def test_a_chain_is_flattened(raw: Path, tmp_path: Path, target: Path) -> None:
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    qemu.create(middle, 9 * MIB, backing_file=raw, backing_fmt="raw")
    qemu.io(middle, "write -P 1 1M 1M", "write -z 5M 64k")
    qemu.create(top, 9 * MIB, backing_file=middle, backing_fmt="qcow2", cluster_size=4096)
    qemu.io(top, "write -P 2 1500k 4k", "write -P 3 8500k 64k")
    vdisk("convert", "-O", "raw", top, target)
    assert target.read_bytes() == qemu.content(top)


def test_over_a_backing_file(raw: Path, tmp_path: Path, target: Path) -> None:
    top = tmp_path / "top.qcow2"
    qemu.create(top, 9 * MIB, backing_file=raw, backing_fmt="raw")
    qemu.io(top, "write -P 2 1500k 4k", "write -z 5M 1M", "write -P 3 8900k 64k")
    vdisk("convert", "-O", "qcow2", "-B", raw, "-F", "raw", top, target)
    qemu.check(target)
    qemu.compare(top, target)
    assert qemu.img_json("info", target)["backing-filename"] == str(raw)
    assert target.stat().st_size < MIB


def test_several_sources(raw: Path, tmp_path: Path, target: Path) -> None:
    theirs = tmp_path / "theirs"
    vdisk("convert", "-f", "raw", "-O", "qcow2", raw, raw, target)
    qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, raw, theirs)
    qemu.compare(target, theirs)


def test_a_snapshot(raw: Path, tmp_path: Path, target: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    qemu.img("snapshot", "-c", "first", image)
    qemu.io(image, "write -P 9 0 4M")
    for tag in ("first", "1", "snapshot.name=first", "snapshot.id=1"):
        vdisk("convert", "-l", tag, image, target)
        assert target.read_bytes() == raw.read_bytes()
    assert b"nonesuch" in vdisk("convert", "-l", "nonesuch", image, target, check=False).stderr


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_into_an_image_that_exists(raw: Path, target: Path, format: str) -> None:
    qemu.create(target, 16 * MIB, format=format)
    qemu.io(target, "write -P 7 0 16M", format=format)
    vdisk("convert", "-n", "-f", "raw", "-O", format, raw, target)
    size = raw.stat().st_size
    content = qemu.content(target, format)
    assert content[:size] == raw.read_bytes()
    assert content[size:] == b"\7" * (16 * MIB - size)


def test_without_O_an_image_that_exists_is_raw(raw: Path, target: Path) -> None:
    """As with qemu-img: an old qcow2 header on a disk is content like any other."""
    qemu.create(target, 16 * MIB)
    qemu.io(target, "write -P 7 0 16M")
    vdisk("convert", "-n", "-f", "raw", raw, target)
    assert target.read_bytes()[: raw.stat().st_size] == raw.read_bytes()


def test_bitmaps_are_copied(raw: Path, tmp_path: Path, target: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    qemu.img("bitmap", "--add", "-g", "32k", image, "one")
    qemu.io(image, "write 1M 64k", "write 5M 1k")
    qemu.img("bitmap", "--add", "--disable", image, "two")
    vdisk("convert", "--bitmaps", "-O", "qcow2", image, target)
    found = [qemu.img_json("info", path)["format-specific"]["data"] for path in (image, target)]
    assert found[0]["bitmaps"] == found[1]["bitmaps"]
    qemu.check(target)
    with (
        qemu.nbd(image, "qcow2", "--bitmap=one", readonly=True) as theirs,
        qemu.nbd(target, "qcow2", "--bitmap=one", readonly=True) as ours,
    ):
        maps = [
            qemu.img_json("map", "--image-opts", dirty_map(uri.partition("socket=")[2], "one"))
            for uri in (theirs, ours)
        ]
    assert maps[0] == maps[1]
    assert len(maps[0]) > 2


def dirty_map(socket: str, bitmap: str) -> str:
    """Options of an NBD export whose map shows a bitmap."""
    context = f"x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    return f"driver=nbd,server.type=unix,server.path={socket},{context}"


def test_target_image_opts_and_json_names(raw: Path, target: Path) -> None:
    qemu.create(target, 9 * MIB)
    vdisk(
        "convert",
        "-n",
        "--image-opts",
        "--target-image-opts",
        f"driver=raw,file.driver=file,file.filename={raw}",
        f"driver=qcow2,file.driver=file,file.filename={target}",
    )
    assert qemu.content(target)[: raw.stat().st_size] == raw.read_bytes()


def test_encrypted_both_ways(raw: Path, tmp_path: Path) -> None:
    """Both volumes are made by vdisk: on a busy machine qemu-img 7.2 cannot make one, since it
    first finds out how fast it is."""
    secret = ["--object", "secret,id=s,data=letmein"]
    ours, theirs, back = (tmp_path / name for name in ("ours.luks", "theirs.luks", "back"))
    fast = ["-o", "key-secret=s,iter-time=10"]
    vdisk("convert", *secret, "-f", "raw", "-O", "luks", *fast, raw, ours)
    vdisk("create", *secret, "-q", "-f", "luks", *fast, theirs, str(raw.stat().st_size))
    options = f"driver=luks,key-secret=s,file.filename={theirs}"
    qemu.img("convert", *secret, "-n", "--target-image-opts", "-f", "raw", raw, options)
    for program, image in ((qemu.img, ours), (vdisk, theirs)):
        options = f"driver=luks,key-secret=s,file.filename={image}"
        program("convert", *secret, "--image-opts", "-O", "raw", options, back)
        assert back.read_bytes() == raw.read_bytes()


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 64 MiB, full of junk."""
    file = tmp_path / "device"
    file.write_bytes(random.Random(3).randbytes(64 * MIB))
    made = subprocess.run(
        ["losetup", "--find", "--show", file], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.mark.parametrize(
    "options", [{}, {"preallocation": "metadata"}, {"extended_l2": "on"}], ids=str
)
def test_qcow2_on_a_block_device(raw: Path, block_device: Path, options: dict[str, object]) -> None:
    vdisk("convert", "-f", "raw", "-O", "qcow2", *words(options), raw, block_device)
    qemu.check(block_device)
    qemu.compare(raw, block_device, "-f", "raw", "-F", "qcow2")


def test_raw_on_a_block_device(raw: Path, block_device: Path) -> None:
    vdisk("convert", "-f", "raw", "-O", "raw", raw, block_device)
    content = raw.read_bytes()
    with block_device.open("rb") as device:
        assert device.read(len(content)) == content
    assert block_device.is_block_device()


# -- exit statuses, failures, interrupts -----------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["disk.raw"],
        ["missing", "target"],
        ["-O", "nonesuch", "disk.raw", "target"],
        ["-f", "qcow2", "disk.raw", "target"],
        ["-c", "-f", "raw", "-O", "raw", "disk.raw", "target"],
        ["-m", "17", "disk.raw", "target"],
        ["-n", "disk.raw", "missing"],
        ["-C", "-S", "4k", "disk.raw", "target"],
        ["--target-is-zero", "disk.raw", "target"],
        ["--skip-broken-bitmaps", "disk.raw", "target"],
        ["-o", "cluster_size=1000", "-O", "qcow2", "disk.raw", "target"],
    ],
    ids=" ".join,
)
def test_refused_with_status_1_as_by_qemu_img(
    raw: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(raw.parent)
    ours = vdisk("convert", *arguments, check=False)
    assert ours.returncode == 1
    assert ours.stderr.startswith(b"vdisk: ")
    assert len(ours.stderr.splitlines()) <= 2
    assert not (raw.parent / "target").exists()
    assert qemu.img("convert", *arguments, check=False).returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_interrupt_removes_the_target(
    raw: Path, target: Path, format: str, number: signal.Signals
) -> None:
    words = ["convert", "-r", "100k", "-f", "raw", "-O", format, str(raw), str(target)]
    process = subprocess.Popen([sys.executable, "-m", "vdisk.cli.main", *words])
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait, timeout=PATIENCE)
        assert eventually(lambda: target.exists() and target.stat().st_size)
        time.sleep(0.3)
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert not target.exists()
    assert sorted(os.listdir(raw.parent)) == ["disk.raw"]


def test_a_full_disk_is_told_and_leaves_nothing(raw: Path, target: Path) -> None:
    limit = 2 * MIB  # RLIMIT_FSIZE: writes beyond fail with EFBIG, as on a full disk with ENOSPC
    code = (
        "import resource, signal, sys; from vdisk.cli.main import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["convert", "-f", "raw", "-O", "qcow2", "-S", "0", str(raw), str(target)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    assert not target.exists()


def test_progress_is_qemu_imgs(raw: Path, target: Path) -> None:
    done = vdisk("convert", "-p", "-f", "raw", raw, target)
    assert done.stdout.startswith(b"    (0.00/100%)\r")
    assert done.stdout.endswith(b"    (100.00/100%)\r\n")
    assert vdisk("convert", "-p", "-q", "-f", "raw", raw, target).stdout == b""
