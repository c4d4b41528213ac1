"""Dirty bitmaps beside QEMU (7.2): made, changed and written by one side, read by the other.

What a bitmap holds is compared through ``qemu-nbd -B`` and ``nbdinfo --map``.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import images, peers, qemu
from tests.tools.peers import requires_peer
from vdisk import errors

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.formats.qcow2 import Qcow2Image

pytestmark = requires_peer("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo")

SIZE = 9 * (1 << 20) + 512
MIB = 1 << 20
LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "512-byte clusters": {"cluster_size": 512},
    "2 MiB clusters": {"cluster_size": 2 << 20},
    "subclusters": {"extended_l2": True},
    "lazy, 1-bit refcounts": {"lazy_refcounts": True, "refcount_bits": 1},
}


@pytest.fixture(params=sorted(LAYOUTS))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    qemu.create(path, SIZE, **LAYOUTS[request.param])
    return path


def qemu_ranges(path: Path, name: str) -> list[tuple[int, int]]:
    """The runs of set bits of a bitmap as QEMU serves them."""
    with qemu.nbd(path, "qcow2", f"--bitmap={name}", readonly=True) as uri:
        done = peers.run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", uri)
    return [(one["offset"], one["length"]) for one in json.loads(done.stdout) if one["type"] & 1]


def our_ranges(path: Path, name: str) -> list[tuple[int, int]]:
    with images.open_image(path, readonly=True) as image:
        return list(image.dirty_ranges(name))


def our_listing(path: Path) -> list[dict[str, Any]]:
    with images.open_image(path, readonly=True) as image:
        return image.format_info().get("bitmaps", [])


def agree(path: Path) -> list[tuple[str, list[tuple[int, int]]]]:
    """Both see the same bitmaps in a sound image; what the consistent ones hold."""
    listing = our_listing(path)
    theirs = qemu.img_json("info", path)["format-specific"]["data"].get("bitmaps", [])
    assert listing == theirs
    report = qemu.check(path)
    assert report["check-errors"] == 0
    assert not report.get("leaks")
    names = [one["name"] for one in listing if "in-use" not in one["flags"]]
    held = [(name, our_ranges(path, name)) for name in names]
    assert held == [(name, qemu_ranges(path, name)) for name in names]
    return held


def scribble(image: Qcow2Image, seed: int) -> None:
    source = random.Random(seed)
    for _ in range(12):
        start = source.randrange(SIZE)
        length = min(source.choice([1, 512, 5000, 70_000, MIB]), SIZE - start)
        change = source.choice([image.write_zeroes, image.discard, None])
        if change is None:
            image.write(start, source.randbytes(length))
        else:
            change(start, length)


def scribble_with_qemu(path: Path, seed: int) -> None:
    source = random.Random(seed)
    commands = []
    for _ in range(12):
        start = source.randrange(SIZE)
        length = min(source.choice([512, 5000, 70_000, MIB]), SIZE - start)
        how = source.choice(["write -P 7", "write -z", "write -zu", "discard"])
        commands.append(f"{how} {start} {length}")
    qemu.io(path, *commands)


def test_bitmaps_made_here_are_qemus(path: Path) -> None:
    with images.open_image(path) as image:
        image.add_bitmap("usual")
        image.add_bitmap("finest", 512)
        image.add_bitmap("coarsest", 2 << 30)
        image.add_bitmap("n" * 1023, 4096)
        image.add_bitmap("disabled", 1 << 20, enabled=False)
        scribble(image, 1)
        image.merge_bitmap("disabled", image.dirty_ranges("finest"))
    held = dict(agree(path))
    assert held["finest"]
    assert held["coarsest"] == [(0, SIZE)]
    with images.open_image(path) as image:
        image.disable_bitmap("usual")
        image.enable_bitmap("disabled")
        image.clear_bitmap("finest")
        image.remove_bitmap("n" * 1023)
        scribble(image, 2)
    agree(path)
    with images.open_image(path) as image:
        for one in image.bitmaps():
            image.remove_bitmap(one.name)
    assert agree(path) == []


def test_bitmaps_made_by_qemu_are_ours(path: Path) -> None:
    qemu.img("bitmap", "--add", path, "usual")
    qemu.img("bitmap", "--add", "-g", "512", path, "finest")
    qemu.img("bitmap", "--add", "--disable", "-g", "2G", path, "coarsest")
    scribble_with_qemu(path, 3)
    qemu.img("bitmap", "--merge", "finest", path, "coarsest")
    assert dict(agree(path))["coarsest"] == [(0, SIZE)]
    with images.open_image(path) as image:
        scribble(image, 4)
        image.merge_bitmap("coarsest", [])
    agree(path)
    qemu.img("bitmap", "--disable", path, "usual")
    qemu.img("bitmap", "--clear", path, "finest")
    scribble_with_qemu(path, 5)
    agree(path)
    with images.open_image(path) as image:
        image.remove_bitmap("usual")
    qemu.img("bitmap", "--remove", path, "finest")
    qemu.img("bitmap", "--remove", path, "coarsest")
    assert agree(path) == []


def test_the_same_changes_give_the_same_bitmaps(path: Path, tmp_path: Path) -> None:
    """Each side does to its own copy what the other does; the bitmaps are equal."""
    other = tmp_path / "other.qcow2"
    qemu.img("bitmap", "--add", "-g", "4k", path, "b")
    shutil.copy(path, other)
    changes = [(0, 4096), (100_000, 70_000), (SIZE - 512, 512), (5 * MIB, MIB)]
    qemu.io(other, *(f"write {start} {length}" for start, length in changes))
    with images.open_image(path) as image:
        for start, length in changes:
            image.write(start, b"\xcd" * length)
    assert our_ranges(path, "b") == our_ranges(other, "b")
    qemu.compare(path, other)


def test_a_full_bitmap_is_read_by_qemu(path: Path) -> None:
    """Clusters of bits that are all set are not stored (table entry 1), which QEMU never makes."""
    with images.open_image(path) as image:
        image.add_bitmap("b", 512)
        image.merge_bitmap("b", [(0, SIZE)])
    assert agree(path) == [("b", [(0, SIZE)])]
    qemu.io(path, "write 0 512")
    assert agree(path) == [("b", [(0, SIZE)])]


@pytest.mark.parametrize("size", [MIB, 5 * MIB, 20 * MIB + 512, 1 << 30])
def test_a_resize_keeps_the_bits_as_qemu_does(path: Path, tmp_path: Path, size: int) -> None:
    other = tmp_path / "other.qcow2"
    qemu.img("bitmap", "--add", "-g", "512", path, "fine")
    qemu.img("bitmap", "--add", "-g", "1M", path, "coarse")
    qemu.img("bitmap", "--add", "--disable", path, "disabled")
    scribble_with_qemu(path, 6)
    qemu.img("bitmap", "--merge", "fine", path, "disabled")
    shutil.copy(path, other)
    qemu.img("resize", "-q", "--shrink", other, str(size))
    with images.open_image(path) as image:
        image.resize(size)
    assert agree(path) == agree(other)


def test_bitmaps_merged_from_another_image(tmp_path: Path) -> None:
    source, target, wanted = (tmp_path / f"{name}.qcow2" for name in ("source", "target", "wanted"))
    for path, granularity in ((source, "512"), (target, "64k")):
        qemu.create(path, SIZE)
        qemu.img("bitmap", "--add", "-g", granularity, path, "b")
    scribble_with_qemu(source, 7)
    shutil.copy(target, wanted)
    qemu.img("bitmap", "--merge", "b", "-b", source, "-F", "qcow2", wanted, "b")
    with images.open_image(target) as image, images.open_image(source, readonly=True) as other:
        image.merge_bitmap("b", other.dirty_ranges("b"))
    assert agree(target) == agree(wanted)


def test_qemu_sees_that_we_crashed(path: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed.qcow2"
    with images.open_image(path) as image:
        image.add_bitmap("b")
        image.add_bitmap("disabled", enabled=False)
        image.write(0, b"x")
        image.flush()
        shutil.copy(path, crashed)
    assert our_listing(crashed)[0]["flags"] == ["in-use", "auto"]
    theirs = qemu.img_json("info", crashed)["format-specific"]["data"]["bitmaps"]
    assert theirs == our_listing(crashed)
    assert qemu.img("bitmap", "--clear", crashed, "b", check=False).returncode == 1
    qemu.img("bitmap", "--remove", crashed, "b")
    qemu.img("check", "-q", "-r", "all", crashed)  # where the dirty bit was set
    assert agree(crashed) == [("disabled", [])]


def test_we_see_that_qemu_crashed(path: Path) -> None:
    qemu.img("bitmap", "--add", path, "b")
    qemu_io = peers.command("qemu-io", "-f", "qcow2", path)
    killed = subprocess.run(
        [*qemu_io, "-c", "write 0 64k", "-c", "flush", "-c", "sigraise 9"],
        capture_output=True,
        timeout=peers.TIMEOUT,
        check=False,
    )
    assert killed.returncode < 0
    assert [one["flags"] for one in our_listing(path)] == [["in-use", "auto"]]
    qemu.img("check", "-q", "-r", "all", path)  # where the dirty bit was set
    with images.open_image(path) as image:
        with pytest.raises(errors.CorruptImageError, match="inconsistent"):
            image.enable_bitmap("b")
        image.resize(SIZE + MIB)
        image.write(MIB, b"x")
    assert [one["flags"] for one in our_listing(path)] == [["in-use", "auto"]]
    agree(path)
    with images.open_image(path) as image:
        image.remove_bitmap("b")
    assert agree(path) == []


def test_bitmaps_that_lost_their_feature_bit_are_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, SIZE)
    qemu.img("bitmap", "--add", path, "b")
    with path.open("r+b") as file:
        file.seek(88)
        file.write(bytes(8))  # autoclear_features
    assert our_listing(path) == []
    assert "bitmaps" not in qemu.img_json("info", path)["format-specific"]["data"]
    with images.open_image(path) as image:
        image.add_bitmap("b", 512)
        image.write(0, b"x")
    qemu.img("check", "-q", "-r", "leaks", path)
    assert agree(path) == [("b", [(0, 512)])]


def test_a_snapshot_applied_here_is_a_change_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, SIZE)
    with images.open_image(path) as image:
        image.write(0, b"x")
        image.create_snapshot("s")
        image.add_bitmap("b", 4096)
        image.write(0, b"y")
        image.apply_snapshot("s")
    assert agree(path) == [("b", [(0, SIZE)])]
