"""Check and repair against qemu-img (7.2): same verdicts, each accepts what the other repaired."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools import damage, qemu
from tests.tools.peers import requires_peer
from vdisk.errors import VdiskError
from vdisk.formats import OpenContext
from vdisk.formats.qcow2 import DRIVER
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.formats._qcow2.check import CheckResult

pytestmark = requires_peer("qemu-img")

COUNTED_OTHERWISE = {
    "L1 entry past the end": "QEMU counts the entry, and its COPIED flag once more",
    "L1 entry not aligned": "QEMU takes the bytes at the wrong place for an L2 table, and counts",
    "L2 entry past the end": "QEMU counts the entry, and its COPIED flag once more",
    "zero cluster past the end": "QEMU counts the entry, and its COPIED flag once more",
    "COPIED without a cluster": "QEMU does not look at the flags of unallocated clusters",
    "data as L2 table": "QEMU takes each wrong entry for several faults",
    "refcount block as L2 table": "QEMU takes each wrong entry for several faults",
    "refcount block not aligned": "QEMU cannot read any count, we take all for 0",
    "refcount block with reserved bits": "QEMU takes the block itself for leaked",
    "refcount table not aligned": "QEMU cannot open the image",
    "refcount table on the L1 table": "QEMU cannot read any count, we take all for 0",
    "no refcount table": "QEMU does not count that there is none",
    "refcount table past the end": "QEMU counts the table's place in another way",
    "snapshot table past the end": "QEMU takes the zeroes there for a snapshot",
    "snapshot table not aligned": "QEMU cannot open the image",
    "snapshot's L1 table not aligned": "QEMU takes what is there for an L1 table",
    "snapshot's L1 table past the end": "QEMU counts each entry of the empty table",
    "snapshot's L1 table too long": "QEMU gives up",
    "snapshot's L1 table is the active one": "we also count that it is written in place",
    "snapshot with too much extra data": "QEMU gives up",
}
"""Damages for which our numbers differ from QEMU's, and why; the verdict is the same."""

NEVER_MENDED = {
    "L1 entry not aligned",
    "L2 entry not aligned",
    "compressed past the end",
    "snapshot table past the end",
    "snapshot table not aligned",
    "snapshot's L1 table not aligned",
    "snapshot's L1 table past the end",
    "snapshot's L1 table too long",
    "snapshot with too much extra data",
}
"""What was there can only be guessed at."""


def check(path: Path, *repair: str) -> CheckResult:
    context = OpenContext(readonly=not repair, repairing=True)
    with DRIVER.open(FileStore(path, readonly=not repair), context) as image:
        return image.check(repair=repair)


def qemu_check(path: Path, *options: str) -> dict[str, Any] | None:
    """What ``qemu-img check`` says; None if it gave up."""
    done = qemu.img("check", "-f", "qcow2", "--output=json", *options, path, check=False)
    report: dict[str, Any] | None = json.loads(done.stdout) if done.stdout else None
    return report


def is_clean(report: dict[str, Any] | None) -> bool:
    wrong = ("corruptions", "leaks", "check-errors")
    return report is not None and not any(report.get(name) for name in wrong)


def numbers(result: CheckResult) -> dict[str, int]:
    return {
        name.replace("_", "-"): number
        for name, number in result._asdict().items()
        if isinstance(number, int) and number
    }


def content(path: Path) -> bytes | None:
    """The disk as QEMU reads it; None where it refuses."""
    target = path.with_suffix(".raw")
    done = qemu.img("convert", "-f", "qcow2", "-O", "raw", path, target, check=False)
    return target.read_bytes() if done.returncode == 0 else None


STRICTER = ("a version 2 image", "set without", "of the active L1 table has")
"""From what we say of things that QEMU does not look at."""

SAMPLES = {
    "plain": {},
    "64 KiB clusters": {"cluster_size": 65536},
    "v2": {"compat": "0.10"},
    "snapshot": {"snapshot": True},
    "512-byte clusters": {"cluster_size": 512, "snapshot": True},
    "2 MiB clusters": {"cluster_size": 2 << 20, "compressed": False},
    "64-bit refcounts": {"refcount_bits": 64, "snapshot": True},
    "8-bit refcounts": {"refcount_bits": 8, "snapshot": True},
    "1-bit refcounts": {"refcount_bits": 1, "compressed": False},
    "subclusters": {"extended_l2": True, "cluster_size": 16384, "snapshot": True},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sound_images_have_the_same_numbers(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = SAMPLES[name]
    path = tmp_path / "image.qcow2"
    path.write_bytes(damage.sample(**options))
    report = qemu_check(path)
    assert report is not None
    expected = {key: number for key, number in report.items() if isinstance(number, int) and number}
    assert numbers(check(path)) == expected


CASES = [(name, False) for name in damage.DAMAGES]
CASES += [(name, True) for name in (*damage.DAMAGES, *damage.SNAPSHOT_DAMAGES)]


@pytest.mark.parametrize(("name", "snapshot"), CASES)
def test_each_damage(tmp_path: Path, name: str, snapshot: bool) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(damage.damaged(damage.sample(snapshot=snapshot), name))
    theirs, ours = qemu_check(path), check(path)
    assert not ours.clean
    if name not in COUNTED_OTHERWISE:
        assert theirs is not None
        expected = {k: number for k, number in theirs.items() if isinstance(number, int) and number}
        assert numbers(ours) == expected, ours.findings
    before = content(path)

    by_us, by_them = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    by_us.write_bytes(path.read_bytes())
    by_them.write_bytes(path.read_bytes())
    result = check(by_us, "leaks", "errors")
    if name in NEVER_MENDED:
        assert result.corruptions
        assert result.remaining
    else:
        assert result.clean, result.remaining
        assert is_clean(qemu_check(by_us))
        assert before is None or content(by_us) == before
    qemu_check(by_them, "-r", "all")
    if is_clean(qemu_check(by_them)):
        left = check(by_them)
        assert left.clean or name in {"L1 table as data", "COPIED without a cluster"}, left.findings


@pytest.mark.parametrize("name", ["a leaked cluster", "refcount too high"])
def test_leaks_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(damage.damaged(damage.sample(), name))
    theirs = tmp_path / "theirs.qcow2"
    theirs.write_bytes(path.read_bytes())
    report = qemu_check(theirs, "-r", "leaks")
    assert report is not None
    result = check(path, "leaks")
    assert (result.leaks, result.leaks_fixed) == (report.get("leaks", 0), report["leaks-fixed"])
    assert numbers(check(path)) == numbers(check(theirs))


@pytest.mark.parametrize("made", ["plain", "snapshot", "64-bit refcounts", "subclusters", "v2"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_random_damage(tmp_path_factory: pytest.TempPathFactory, made: str, seed: int) -> None:
    """Whatever bytes of the metadata change: the same verdict, and a repair that is honest."""
    rng = random.Random(seed)
    options: dict[str, Any] = SAMPLES[made]
    metadata = damage.Metadata(damage.sample(**options))
    places = [metadata.l1, metadata.l2, metadata.refcount_table, metadata.refcount_block]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.choice(places) + rng.randrange(80)
        if rng.random() < 0.4:
            metadata.content[at] ^= 1 << rng.randrange(8)
        else:
            target = rng.randrange(metadata.clusters) * metadata.cluster_size
            metadata.set_word(at & -8, target | rng.choice([0, damage.COPIED]))
    path = tmp_path_factory.mktemp("random") / "image.qcow2"
    path.write_bytes(metadata.content)
    before, theirs, ours = content(path), qemu_check(path), check(path)
    wrong = theirs is None or bool(theirs.get("corruptions") or theirs["check-errors"])
    if wrong or not ours.corruptions:
        assert bool(ours.corruptions or ours.check_errors) == wrong, (ours.findings, theirs)
    else:
        corruptions = [one.message for one in ours.findings if one.kind == "corruption"]
        assert all(any(words in text for words in STRICTER) for text in corruptions), corruptions
    result = check(path, "leaks", "errors")
    if result.clean:
        assert is_clean(qemu_check(path))
        assert before is None or content(path) == before
    else:
        assert result.remaining


def test_dirty_images_are_repaired_when_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    metadata = damage.Metadata(damage.sample(lazy_refcounts=True))
    metadata.set_refcount(metadata.cluster_of(metadata.host(1)), 0)
    metadata.set_word(72, metadata.word(72) | 1)
    path.write_bytes(metadata.content)
    before = content(path)
    with DRIVER.open(FileStore(path, readonly=False), OpenContext(readonly=False)) as image:
        assert not image.dirty
    assert is_clean(qemu_check(path))
    assert content(path) == before


def test_a_bitmap_of_qemu_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, "64M")
    qemu.img("bitmap", "--add", path, "b")
    qemu.io(path, "write 1M 2M")
    assert numbers(check(path)) == {
        key: number
        for key, number in qemu.check(path).items()
        if isinstance(number, int) and number
    }


def test_hopeless_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    metadata = damage.Metadata(damage.sample())
    metadata.set_word(40, damage.FAR)  # no L1 table: nothing can be checked
    path.write_bytes(metadata.content)
    assert qemu_check(path) is None or not is_clean(qemu_check(path))
    with pytest.raises(VdiskError, match="L1 table"):
        check(path)
