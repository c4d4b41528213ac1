"""Jobs on disks that fill up or fail: the images they read and change lose nothing.

Every request of a job fails once, by rules in the image's own options (``blkdebug``), as on a
command line; and the file system itself is full, or the largest file allowed is reached.  Law: an
error says so; the disk that is read is as it was; a disk that is changed reads as before or as it
was to be, and a check finds leaks at most; a new image that was not finished is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools import cli, images
from vdisk.errors import DeviceError, NoSpaceError, VdiskError
from vdisk.filters.faults import IoType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ALL = os.environ.get("VDISK_TEST_FAULTS") == "all"
SAMPLE = 5
UNIT = 4096
SIZE = 40 * UNIT
NO_FLUSH = {"no-flush": True}


def pattern(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


class Chain:
    """base <- overlay, and another base: what the jobs work on."""

    def __init__(self, folder: Path) -> None:
        self.base, self.other = folder / "base.qcow2", folder / "other.qcow2"
        self.overlay = folder / "overlay.qcow2"
        self.target = folder / "target.qcow2"
        self.kept = folder / "kept"
        for path, seed in ((self.base, 1), (self.other, 2)):
            images.create(path, SIZE, cluster_size=UNIT)
            with images.open_image(path) as image:
                image.write(0, pattern(seed, 20 * UNIT))
        images.create(
            self.overlay, SIZE, cluster_size=UNIT, backing_file=str(self.base), backing_fmt="qcow2"
        )
        with images.open_image(self.overlay) as image:
            image.write(5 * UNIT, pattern(3, 6 * UNIT))
            image.write(25 * UNIT + 100, pattern(4, UNIT))
            image.write_zeroes(3 * UNIT, UNIT)
        self.kept.mkdir()
        for path in (self.base, self.other, self.overlay):
            shutil.copyfile(path, self.kept / path.name)
        self.content = self.read(self.overlay)

    def restore(self) -> None:
        for path in (self.base, self.other, self.overlay):
            shutil.copyfile(self.kept / path.name, path)
        self.target.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path) -> bytes:
        with vdisk.open(path, format="qcow2") as image:
            return image.read(0, image.size)

    @staticmethod
    def is_sound(path: Path) -> bool:
        result = vdisk.check(path, format="qcow2")
        return not result.corruptions and not result.check_errors


def faulty(path: Path, rule: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A tree of options: the qcow2 image at ``path`` over a device with one rule."""
    file = {"driver": "file", "filename": str(path), "cache": NO_FLUSH}
    return {
        "driver": "qcow2",
        "file": {"driver": "blkdebug", "image": file, "inject-error": [{"event": "none", **rule}]},
        **options,
    }


def commit_with_faulty_base(chain: Chain, rule: dict[str, Any]) -> None:
    vdisk.commit(
        {
            "driver": "qcow2",
            "file.filename": str(chain.overlay),
            "backing": faulty(chain.base, rule),
        }
    )


def commit_with_faulty_overlay(chain: Chain, rule: dict[str, Any]) -> None:
    vdisk.commit(faulty(chain.overlay, rule))


def rebase(chain: Chain, rule: dict[str, Any]) -> None:
    vdisk.rebase(faulty(chain.overlay, rule), str(chain.other), backing_format="qcow2")


def flatten(chain: Chain, rule: dict[str, Any]) -> None:
    vdisk.rebase(faulty(chain.overlay, rule), None)


def convert_from_faulty(chain: Chain, rule: dict[str, Any]) -> None:
    vdisk.convert(faulty(chain.overlay, rule), str(chain.target), target_format="qcow2")


def repair(chain: Chain, rule: dict[str, Any]) -> None:
    """Of an image with a leak, and with a reference that is not counted."""
    with open(chain.overlay, "r+b") as file:
        file.seek(2 * UNIT)  # the first refcount block
        counts = bytearray(file.read(UNIT))
        counts[18:20], counts[200:202] = b"\0\0", b"\0\1"
        file.seek(2 * UNIT)
        file.write(counts)
    vdisk.check(faulty(chain.overlay, rule), repair="all")


JOBS: list[Callable[[Chain, dict[str, Any]], None]] = [
    commit_with_faulty_base,
    commit_with_faulty_overlay,
    rebase,
    flatten,
    convert_from_faulty,
    repair,
]

FAULTS: dict[str, dict[str, Any]] = {
    "a read": {"iotype": "read", "once": True},
    "a write": {"iotype": "write", "once": True},
    "a write, half done": {"iotype": "write", "once": True, "effect": "half"},
    "a flush": {"iotype": "flush", "once": True},
    "disk full": {"iotype": "write", "errno": errno.ENOSPC},
}


def fails(job: Callable[[Chain, dict[str, Any]], None], chain: Chain, rule: dict[str, Any]) -> bool:
    try:
        job(chain, rule)
    except VdiskError as error:
        assert error.errno in (errno.EIO, errno.ENOSPC), error
        return True
    return False


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
@pytest.mark.parametrize("fault", FAULTS)
def test_any_request_of_a_job_may_fail(
    tmp_path: Path, job: Callable[[Chain, dict[str, Any]], None], fault: str
) -> None:
    chain = Chain(tmp_path)
    rng = random.Random(f"{job.__name__} {fault}")
    number = 0
    while True:
        chain.restore()
        if not fails(job, chain, {**FAULTS[fault], "skip": number}):
            break
        if job is repair:
            vdisk.check(chain.overlay, repair="all", format="qcow2")
        assert chain.read(chain.overlay) == chain.content, number
        assert chain.is_sound(chain.overlay), number
        assert chain.is_sound(chain.base), number
        assert not chain.target.exists()
        number += 1 if ALL else rng.randrange(1, 2 * SAMPLE)
    only_read = job is convert_from_faulty and fault != "a read"
    assert number or only_read, "nothing failed"
    if chain.target.exists():
        assert chain.read(chain.target) == chain.content
    assert chain.read(chain.overlay) == chain.content


def test_the_kinds_of_requests_are_those_of_the_filter() -> None:
    assert {rule["iotype"] for rule in FAULTS.values()} <= {kind.value for kind in IoType}


# -- really full -----------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(length: int) -> Iterator[None]:
    """Files of this process cannot grow past ``length`` bytes (EFBIG; Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def image_with_data(path: Path, size: int = 1 << 20) -> bytes:
    content = pattern(7, size // 2) + bytes(size // 2)
    images.create(path, size, cluster_size=UNIT)
    with images.open_image(path) as image:
        image.write(0, content[: size // 2])
    return content


def test_converting_into_too_small_a_place(tmp_path: Path) -> None:
    source, target = tmp_path / "source.qcow2", tmp_path / "target"
    content = image_with_data(source)
    for format in ("raw", "qcow2"):
        with largest_file(300_000):
            assert "File too large" in cli.fail("convert", "-O", format, source, target)
        assert not target.exists()
    assert Chain.read(source) == content
    assert Chain.is_sound(source)


def test_a_guest_fills_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    content = image_with_data(path)
    half = len(content) // 2
    before = path.stat().st_size
    image = images.open_image(path)
    with largest_file(before):
        with pytest.raises(NoSpaceError):
            image.write(half, pattern(8, half))
        image.write(0, b"in place, needs no room")
        image.flush()
        with pytest.raises(NoSpaceError):
            image.create_snapshot("no room")
        assert image.read(0, 8) == b"in place"
    image.write(half, b"room again")
    image.create_snapshot("room")
    image.close()
    assert vdisk.check(path, format="qcow2").clean
    assert Chain.read(path)[half : half + 10] == b"room again"
    assert Chain.read(path)[23:half] == content[23:half]


def test_committing_into_a_full_base(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    image_with_data(base)
    images.create(overlay, 1 << 20, backing_file=str(base), backing_fmt="qcow2")
    with images.open_image(overlay) as image:
        image.write(600_000, pattern(9, 400_000))
    content = Chain.read(overlay)
    with largest_file(base.stat().st_size + 100_000):
        assert "File too large" in cli.fail("commit", overlay)
    assert Chain.read(overlay) == content
    assert Chain.is_sound(base) and Chain.is_sound(overlay)
    cli.vdisk("commit", overlay)
    assert Chain.read(base) == content


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte; needs the right to mount one."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = shutil.which("mount") and subprocess.run(words, capture_output=True, check=False)
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_file_system(tmp_path: Path, small_disk: Path) -> None:
    source, path = tmp_path / "source.qcow2", small_disk / "disk.qcow2"
    image_with_data(source, 4 << 20)
    assert "No space left" in cli.fail("convert", "-O", "raw", source, small_disk / "copy.raw")
    assert not (small_disk / "copy.raw").exists()
    images.create(path, 4 << 20, cluster_size=UNIT)
    image = images.open_image(path)
    written = 0
    with pytest.raises(NoSpaceError):
        for start in range(0, 4 << 20, UNIT):
            image.write(start, pattern(start, UNIT))
            written = start + UNIT
            if start % (16 * UNIT) == 0:
                image.flush()
    assert written > 500_000
    for start in range(0, written, UNIT):
        assert image.read(start, UNIT) == pattern(start, UNIT)
    with contextlib.suppress(DeviceError):  # the last tables may find no room
        image.close()
    assert Chain.is_sound(path)
    flushed = (written - UNIT) // (16 * UNIT) * 16 * UNIT
    content = Chain.read(path)
    for start in range(0, flushed, UNIT):
        assert content[start : start + UNIT] == pattern(start, UNIT)
