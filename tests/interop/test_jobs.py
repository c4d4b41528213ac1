"""``compare``, ``measure``, ``commit``, ``rebase``, ``dd`` and ``bench`` beside qemu-img 7.2."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.tools import qemu
from tests.tools.command import vdisk
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img", "qemu-io")

MIB = 1 << 20


def both(*arguments: object) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    """(exit status, output) of vdisk and of qemu-img."""
    words = [str(argument) for argument in arguments]
    ours, theirs = vdisk(*words, check=False), qemu.img(*words, check=False)
    return (ours.returncode, ours.stdout), (theirs.returncode, theirs.stdout)


# -- compare ---------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Images that hold the same, nearly the same, and more."""
    names = ("raw", "qcow2", "packed", "other", "longer", "longest", "overlay")
    found = {name: tmp_path / name for name in names}
    noise = random.Random(2).randbytes(MIB)
    with found["raw"].open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(3 * MIB)
        file.write(noise)
    qemu.img("convert", "-f", "raw", "-O", "qcow2", found["raw"], found["qcow2"])
    qemu.img("convert", "-f", "raw", "-O", "qcow2", "-c", found["raw"], found["packed"])
    shutil.copy(found["raw"], found["other"])
    with found["other"].open("r+b") as file:
        file.seek(3 * MIB + 70_001)
        file.write(b"!!!")
    qemu.create(found["longer"], 9 * MIB)
    qemu.img("convert", "-n", "-f", "raw", "-O", "qcow2", found["raw"], found["longer"])
    shutil.copy(found["longer"], found["longest"])
    qemu.io(found["longest"], "write -P 5 8703k 512")
    qemu.create(found["overlay"], 8 * MIB, backing_file=found["raw"], backing_fmt="raw")
    return found


def test_compare_says_and_returns_the_same(images: dict[str, Path]) -> None:
    for first, second in itertools.combinations(images, 2):
        ours, theirs = both("compare", images[first], images[second])
        assert ours == theirs, (first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("raw", "overlay"), ("raw", "qcow2"), ("raw", "longer"), ("qcow2", "qcow2")],
)
def test_strict_compare_says_and_returns_the_same(
    images: dict[str, Path], first: str, second: str
) -> None:
    ours, theirs = both("compare", "-s", images[first], images[second])
    assert ours == theirs


def test_the_format_of_the_first_is_not_that_of_the_second(images: dict[str, Path]) -> None:
    ours, theirs = both("compare", "-f", "raw", images["raw"], images["qcow2"])
    assert ours == theirs == (0, b"Images are identical.\n")
    ours, theirs = both("compare", "-f", "raw", "-F", "raw", images["raw"], images["qcow2"])
    assert ours == theirs
    assert ours[0] == 1


def test_compare_with_what_is_not_there_is_status_2(images: dict[str, Path]) -> None:
    ours, theirs = both("compare", images["raw"], images["raw"].with_name("missing"))
    assert ours == theirs == (2, b"")


def test_compare_q_and_p(images: dict[str, Path]) -> None:
    assert both("compare", "-q", images["raw"], images["other"])[0] == (1, b"")
    output = vdisk("compare", "-p", images["raw"], images["qcow2"]).stdout
    assert output.startswith(b"    (0.00/100%)\r")
    assert output.endswith(b"(100.00/100%)\r\nImages are identical.\n")


# -- measure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("more", ["", ",refcount_bits=1", ",refcount_bits=64", ",extended_l2=on"])
def test_measure_of_sizes_is_the_same(cluster_size: int, more: str) -> None:
    for size in ("0", "1000", "100000000k", "256T"):
        options = f"cluster_size={cluster_size}{more}"
        ours, theirs = both("measure", "-O", "qcow2", "-o", options, "--size", size)
        assert ours == theirs, size


def test_measure_of_images_is_the_same(images: dict[str, Path]) -> None:
    qemu.img("bitmap", "--add", images["qcow2"], "bitmap")
    qemu.img("bitmap", "--add", "-g", "4k", images["qcow2"], "another")
    for name, image in images.items():
        for target in (["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-o", "cluster_size=512"]):
            for output in ("human", "json"):
                ours, theirs = both("measure", f"--output={output}", *target, image)
                assert ours == theirs, (name, target)


@pytest.mark.parametrize(
    "options",
    [
        ["-O", "raw", "-o", "preallocation=full"],
        ["-O", "qcow2", "-o", "preallocation=full"],
        ["-O", "qcow2", "-o", "preallocation=metadata"],
        ["-O", "qcow2", "-o", "backing_file=raw,backing_fmt=raw"],
        ["-O", "qcow2", "-o", "compat=0.10"],
    ],
    ids=" ".join,
)
def test_measure_of_options_is_the_same(images: dict[str, Path], options: list[str]) -> None:
    for what in (["--size", "1G"], [str(images["qcow2"])]):
        ours, theirs = both("measure", *options, *what)
        assert ours == theirs


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--size", "1G", "raw"],
        ["-O", "nonesuch", "--size", "1G"],
        ["-O", "qcow2", "-o", "cluster_size=512", "--size", "1T"],
        ["-O", "qcow2", "-o", "compat=0.10,refcount_bits=1", "--size", "1G"],
    ],
    ids=" ".join,
)
def test_measure_refuses_the_same(arguments: list[str]) -> None:
    ours, theirs = both("measure", *arguments)
    assert ours == theirs == (1, b"")


def test_what_measure_requires_is_enough(images: dict[str, Path], tmp_path: Path) -> None:
    for options in ("cluster_size=512", "extended_l2=on", "refcount_bits=64,cluster_size=4096"):
        flags = ["-O", "qcow2", "-o", options, images["raw"]]
        measured = json.loads(vdisk("measure", "--output=json", *flags).stdout)
        vdisk("convert", *flags, tmp_path / "made")
        assert (tmp_path / "made").stat().st_size <= measured["required"]


# -- commit and rebase -----------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """base <- middle <- top, each with something of its own, in clusters of its own size."""
    base, middle, top = (tmp_path / name for name in ("base", "middle", "top"))
    qemu.create(base, 8 * MIB)
    qemu.io(base, "write -P 1 0 5M")
    qemu.create(middle, 8 * MIB, backing_file=base, backing_fmt="qcow2", cluster_size=4096)
    qemu.io(middle, "write -P 2 1M 100k", "write -z 2M 512k", "write -P 2 6M 4k")
    qemu.create(top, 8 * MIB, backing_file=middle, backing_fmt="qcow2", extended_l2=True)
    qemu.io(top, "write -P 3 1000k 50k", "write -z 6M 64k", "write -P 3 4M 10k")
    return [base, middle, top]


def check_all(*images: Path) -> None:
    for image in images:
        report = qemu.check(image)
        assert "leaks" not in report
        assert "corruptions" not in report


def test_commit(chain: list[Path]) -> None:
    _, middle, top = chain
    before = qemu.content(top)
    assert vdisk("commit", top).stdout == b"Image committed.\n"
    check_all(*chain)
    assert qemu.content(middle) == before
    assert qemu.content(top) == before
    assert all(extent["depth"] > 0 for extent in qemu.img_json("map", top))


def test_commit_into_a_deeper_base(chain: list[Path]) -> None:
    base, _, top = chain
    before = qemu.content(top)
    vdisk("commit", "-q", "-b", base, top)
    check_all(*chain)
    assert qemu.content(base) == before
    assert qemu.content(top) == before


def test_commit_without_emptying(chain: list[Path]) -> None:
    _, middle, top = chain
    before, content = qemu.content(top), top.read_bytes()
    vdisk("commit", "-d", top)
    assert qemu.content(middle) == before
    assert top.read_bytes() == content


@pytest.mark.parametrize("arguments", [["base"], ["-b", "stranger", "top"], ["missing"]])
def test_commit_refused(chain: list[Path], arguments: list[str]) -> None:
    *flags, name = arguments
    ours = vdisk("commit", *flags, chain[0].with_name(name), check=False)
    theirs = qemu.img("commit", *flags, chain[0].with_name(name), check=False)
    assert ours.returncode == theirs.returncode == 1


def test_rebase_past_the_middle_and_back(chain: list[Path]) -> None:
    base, middle, top = chain
    before = qemu.content(top)
    for backing in (base, middle, base):
        vdisk("rebase", "-b", backing, "-F", "qcow2", top)
        check_all(top)
        assert qemu.img_json("info", top)["backing-filename"] == str(backing)
        assert qemu.content(top) == before


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_rebase_writes_what_differs(chain: list[Path], tmp_path: Path, compat: str) -> None:
    middle = chain[1]
    top, new = tmp_path / "small", tmp_path / "new"
    qemu.create(top, 9 * MIB, backing_file=middle, backing_fmt="qcow2", compat=compat)
    qemu.create(new, 9 * MIB)
    qemu.io(new, "write -P 9 5M 4M")
    before = qemu.content(top)
    vdisk("rebase", "-b", new, "-F", "qcow2", top)
    check_all(top)
    assert qemu.content(top) == before


def test_rebase_onto_nothing(chain: list[Path]) -> None:
    before = qemu.content(chain[2])
    vdisk("rebase", "-p", "-b", "", chain[2])
    check_all(chain[2])
    assert "backing-filename" not in qemu.img_json("info", chain[2])
    chain[0].unlink()
    chain[1].unlink()
    assert qemu.content(chain[2]) == before


def test_unsafe_rebase_changes_the_header_as_qemu_img_does(chain: list[Path]) -> None:
    chain[1].rename(chain[1].with_name("moved"))
    ours, theirs = chain[2], chain[2].with_name("theirs")
    shutil.copy(ours, theirs)
    vdisk("rebase", "-u", "-b", "moved", "-F", "qcow2", ours)
    qemu.img("rebase", "-u", "-b", "moved", "-F", "qcow2", theirs)
    names = ("backing-filename", "backing-filename-format", "full-backing-filename")
    infos = [qemu.img_json("info", path) for path in (ours, theirs)]
    assert [infos[0][name] for name in names] == [infos[1][name] for name in names]
    qemu.compare(ours, theirs)


@pytest.mark.parametrize(
    "flags", [["-b", "missing", "-F", "qcow2"], ["-b", "base"], ["-u", "-b", "base"]], ids=" ".join
)
def test_rebase_refused(chain: list[Path], flags: list[str]) -> None:
    top = chain[2]
    before = top.read_bytes()
    assert vdisk("rebase", *flags, top, check=False).returncode == 1
    assert top.read_bytes() == before
    assert qemu.img("rebase", *flags, top, check=False).returncode == 1


# -- dd and bench ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operands",
    [
        [],
        ["bs=1M"],
        ["bs=1M", "count=2"],
        ["bs=1000", "skip=3000"],
        ["bs=1M", "count=100"],
        ["bs=64k", "skip=1000"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_dd(images: dict[str, Path], tmp_path: Path, operands: list[str], format: str) -> None:
    source = images["qcow2"]
    made = [tmp_path / name for name in ("ours", "theirs")]
    for program, target in zip((vdisk, qemu.img), made, strict=True):
        program("dd", "-O", format, f"if={source}", f"of={target}", *operands)
    assert qemu.content(made[0], format) == qemu.content(made[1], format)


@pytest.mark.parametrize(
    "operands", [["if=raw"], ["of=x"], ["if=raw", "of=x", "bs=0"], ["if=raw", "of=x", "y=1"]]
)
def test_dd_refused(
    images: dict[str, Path], operands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images["raw"].parent)
    done = vdisk("dd", *operands, check=False)
    assert done.returncode == 1
    assert not images["raw"].with_name("x").exists()


def first_lines(output: bytes) -> list[bytes]:
    """What bench announces, without the time it took."""
    return [line for line in output.splitlines() if line.startswith(b"Sending")]


@pytest.mark.parametrize(
    "flags",
    [
        ["-c", "100"],
        ["-c", "100", "-d", "4", "-s", "64k", "-S", "128k", "-o", "1M"],
        ["-c", "100", "-d", "4", "-w", "--flush-interval", "10", "--pattern", "3"],
        ["-c", "100", "-d", "4", "-w", "--flush-interval", "4", "--no-drain"],
    ],
    ids=" ".join,
)
def test_bench_does_what_qemu_img_does(
    images: dict[str, Path], tmp_path: Path, flags: list[str]
) -> None:
    copies = [tmp_path / name for name in ("first", "second")]
    for copy in copies:
        shutil.copy(images["qcow2"], copy)
    ours = vdisk("bench", "-f", "qcow2", *flags, copies[0]).stdout
    theirs = qemu.img("bench", "-f", "qcow2", *flags, copies[1]).stdout
    assert first_lines(ours) == first_lines(theirs)
    assert b"Run completed in" in ours
    qemu.compare(*copies)
    check_all(copies[0])


@pytest.mark.parametrize(
    "flags",
    [["--flush-interval", "10"], ["-w", "--flush-interval", "10"], ["-o", "-1"], ["-s", "3G"]],
    ids=" ".join,
)
def test_bench_refuses_the_same(images: dict[str, Path], flags: list[str]) -> None:
    ours, theirs = both("bench", "-f", "qcow2", *flags, images["qcow2"])
    assert ours[0] == theirs[0] == 1
