"""``vdisk`` beside qemu-img (7.2): the same answers, byte for byte where they are JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import vdisk
from tests.tools import cli, peers, qemu
from tests.tools.peers import requires_peer

pytestmark = requires_peer("qemu-img", "qemu-io")

SECRET = ["--object", "secret,id=s,data=sesame"]

IMAGES: dict[str, list[str]] = {
    "default": [],
    "v2": ["-o", "compat=0.10"],
    "small clusters": ["-o", "cluster_size=512,refcount_bits=1"],
    "large clusters": ["-o", "cluster_size=2M,refcount_bits=64,lazy_refcounts=on"],
    "subclusters": ["-o", "extended_l2=on"],
    "zstd": ["-o", "compression_type=zstd"],
    "metadata": ["-o", "preallocation=metadata"],
    "falloc": ["-o", "preallocation=falloc"],
    "full": ["-o", "preallocation=full"],
    "data file": ["-o", "data_file=data.raw"],
    "raw data file": ["-o", "data_file=data.raw,data_file_raw=on"],
    "luks": [*SECRET, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100"],
    "aes": [*SECRET, "-o", "encrypt.format=aes,encrypt.key-secret=s"],
}

WRITES = [
    "write -P 1 0 100k",
    "write -P 2 1M 64k",
    "write -z 1280k 64k",
    "write -z -u 1344k 64k",
    "write -P 3 1536k 1k",
    "discard 1M 64k",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def theirs(*arguments: str) -> tuple[int, str]:
    done = qemu.img(*arguments, check=False)
    return done.returncode, done.stdout.decode(errors="surrogateescape")


def agree(*arguments: str) -> str:
    """Both programs end alike and print the same; what that is."""
    ours = cli.vdisk(*arguments)
    assert (ours.status, ours.stdout) == theirs(*arguments), ours.stderr
    return ours.stdout


def agree_on_map(*arguments: str) -> list[dict[str, Any]]:
    """As :func:`agree`, but for where the room of subclusters is that hold nothing yet.

    QEMU gives an offset for ranges of which it says that nothing is present.
    """
    ours = json.loads(cli.run("map", "--output=json", *arguments))
    merged: list[dict[str, Any]] = []
    for entry in json.loads(theirs("map", "--output=json", *arguments)[1]):
        if not entry["present"]:
            entry.pop("offset", None)
            if merged and {**merged[-1], "start": 0, "length": 0} == {
                **entry,
                "start": 0,
                "length": 0,
            }:
                merged[-1]["length"] += entry["length"]
                continue
        merged.append(entry)
    assert ours == merged
    return merged


def image_options(name: str, *, encrypted: bool) -> list[str]:
    """How to name an image to either program."""
    if not encrypted:
        return ["-f", "qcow2", name]
    tree = f"driver=qcow2,encrypt.key-secret=s,file.filename={name}"
    return [*SECRET, "--image-opts", tree]


def fill(name: str, *, encrypted: bool) -> None:
    words = [word for each in WRITES for word in ("-c", each)]
    peers.run("qemu-io", *words, *image_options(name, encrypted=encrypted))


@pytest.mark.parametrize("kind", IMAGES)
def test_what_they_make_looks_the_same_to_both(kind: str) -> None:
    encrypted = kind in ("luks", "aes")
    names = image_options("disk", encrypted=encrypted)
    qemu.img("create", "-q", "-f", "qcow2", *IMAGES[kind], "disk", "3M")
    for _ in range(2):
        agree("info", "--output=json", "disk")
        agree("info", "disk")
        entries = agree_on_map(*names)
        assert sum(entry["length"] for entry in entries) == 3 << 20
        agree("check", "--output=json", *names)
        if not encrypted:  # each look at an encrypted image derives its key anew
            agree_on_map("-s", "70k", "-l", "1M", *names)
            agree("map", *names)
            agree("check", *names)
            if kind != "subclusters":
                agree("map", "--output=json", *names)
        fill("disk", encrypted=encrypted)


@pytest.mark.parametrize("kind", IMAGES)
def test_what_we_make_looks_the_same_to_both(kind: str) -> None:
    encrypted = kind in ("luks", "aes")
    ours = cli.run("create", "-f", "qcow2", *IMAGES[kind], "disk", "3M")
    assert ours == theirs("create", "-f", "qcow2", *IMAGES[kind], "theirs", "3M")[1].replace(
        "'theirs'", "'disk'"
    )
    if "data_file=data.raw" in " ".join(IMAGES[kind]):
        os.truncate("data.raw", 0)  # the second creation emptied the first one's file
        os.truncate("data.raw", 3 << 20)
    names = image_options("disk", encrypted=encrypted)
    for _ in range(1 if encrypted else 2):
        fill("disk", encrypted=encrypted)
        agree("info", "--output=json", "disk")
        agree("check", "--output=json", *names)
        agree_on_map(*names)


def test_chains_look_the_same() -> None:
    os.mkdir("sub")
    peers.run("qemu-img", "create", "-q", "-f", "raw", "base", "1000k")
    qemu.io("base", "write -P 1 0 70k", "write -P 2 300k 4k", format="raw")
    arguments = ["create", "-q", "-f", "qcow2"]
    qemu.img(*arguments, "-b", "../base", "-F", "raw", "sub/middle", "2M")
    qemu.io("sub/middle", "write -P 3 64k 64k", "write -z 300k 64k", "write -P 4 1M 64k")
    qemu.img(*arguments, "-b", "sub/middle", "-F", "qcow2", "-o", "extended_l2=on", "top", "3M")
    qemu.io("top", "write -P 5 0 2k", "discard 64k 64k", "write -c -P 6 2M 64k")
    for name in ("base", "sub/middle", "top"):
        agree("info", "--output=json", name)
        agree("info", "--output=json", "--backing-chain", name)
        agree("info", name)
        agree_on_map(name)
        agree("map", name)
    os.rename("base", "gone")
    agree("info", "--output=json", "top")
    for arguments in (["map", "top"], ["check", "top"], ["info", "--backing-chain", "top"]):
        assert cli.vdisk(*arguments).status == theirs(*arguments)[0] == 1


def test_options_of_backing_files_are_described_alike() -> None:
    vdisk.create("base", 1 << 20)
    tree = {"driver": "raw", "file": {"driver": "file", "filename": "base"}}
    vdisk.create(
        "top",
        1 << 20,
        format="qcow2",
        backing_file=f"json:{json.dumps(tree)}",
        backing_format="raw",
    )
    agree("info", "--output=json", "--backing-chain", "top")
    agree("map", "--output=json", "top")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000, 70000])
def test_raw_files_of_any_size(size: int) -> None:
    for content in (bytes(size), b"x" * size):
        with open("disk", "wb") as file:
            file.write(content)
        for arguments in (["info", "--output=json"], ["map", "--output=json"], ["map"]):
            agree(*arguments, "-f", "raw", "disk")
    os.truncate("disk", 0)
    os.truncate("disk", size)
    agree("map", "--output=json", "-f", "raw", "disk")


@pytest.mark.parametrize("name", ['q"uote', "back\\slash", "tab\t", "é", "😀", "\x01", "\x7f"])
def test_odd_names_in_json(name: str) -> None:
    vdisk.create(name, 512)
    agree("info", "--output=json", "-f", "raw", name)


def test_luks_volumes() -> None:
    cli.run("create", "-q", "-f", "luks", *SECRET, "-o", "key-secret=s,iter-time=10", "disk", "1M")
    agree("info", "--output=json", "disk")
    names = [*SECRET, "--image-opts", "driver=luks,key-secret=s,file.filename=disk"]
    agree("map", "--output=json", *names)
    agree("check", *names)


SNAPSHOT = re.compile(r"^(\d+) +(.*?) +(\d+ B) (\S+ \S+) +(\S+) *(\d*)$")


def test_snapshots_are_seen_and_changed_by_both() -> None:
    cli.run("create", "-q", "-f", "qcow2", "disk", "2M")
    for number, program in enumerate((cli.run, qemu.img, cli.run, qemu.img)):
        qemu.io("disk", f"write -P {number + 1} 0 {number + 1}M" if number < 2 else "write 0 4k")
        program("snapshot", "-c", f"snapshot {number}", "disk")
    agree("info", "--output=json", "disk")
    agree("check", "--output=json", "disk")
    ours = [line.split() for line in cli.run("snapshot", "-l", "disk").splitlines()]
    assert ours == [line.split() for line in theirs("snapshot", "-l", "disk")[1].splitlines()]
    cli.run("snapshot", "-a", "snapshot 1", "disk")
    qemu.io("disk", "read -P 2 0 2M")
    qemu.img("snapshot", "-a", "1", "disk")
    qemu.io("disk", "read -P 1 0 1M")
    cli.run("snapshot", "-d", "snapshot 2", "disk")
    qemu.img("snapshot", "-d", "snapshot 3", "disk")
    agree("info", "--output=json", "disk")
    agree("check", "--output=json", "disk")


@pytest.mark.parametrize("flag", ["-a", "-d"])
def test_a_name_that_is_also_an_id(flag: str) -> None:
    for program, name in ((cli.run, "ours"), (qemu.img, "theirs")):
        qemu.create(name, "1M")
        for number, tag in enumerate(("one", "3", "1")):
            qemu.io(name, f"write -P {number} 0 64k")
            qemu.img("snapshot", "-c", tag, name)
        program("snapshot", flag, "1", name)
    qemu.compare("ours", "theirs")
    kept = [
        [(each["id"], each["name"]) for each in qemu.img_json("info", name)["snapshots"]]
        for name in ("ours", "theirs")
    ]
    assert kept[0] == kept[1]


def test_bitmaps_are_seen_and_changed_by_both() -> None:
    cli.run("create", "-q", "-f", "qcow2", "disk", "2M")
    steps = [
        ["--add", "-g", "4k", "disk", "a"],
        ["--add", "--disable", "disk", "b"],
        ["--add", "--merge", "a", "disk", "c"],
        ["--merge", "b", "--merge", "c", "--enable", "disk", "b"],
        ["--clear", "disk", "c"],
        ["--remove", "--add", "disk", "a"],
    ]
    for first, second in ((cli.run, qemu.img), (qemu.img, cli.run)):
        for number, step in enumerate(steps):
            (first if number % 2 else second)("bitmap", *step)
            qemu.io("disk", f"write {number * 100}k 64k")
            cli.run("io", "-c", f"write {number * 200}k 1k", "-c", "write 1900k 1k", "disk")
            agree("info", "--output=json", "disk")
            agree("check", "--output=json", "disk")
        for name in ("a", "b", "c"):
            second("bitmap", "--remove", "disk", name)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_resize_ends_alike(format: str) -> None:
    for program, name in ((cli.vdisk, "ours"), (theirs, "theirs")):
        qemu.create(name, "1M", format)
        outcomes = []
        for arguments in (
            ["+1M"],
            ["1M"],
            ["--shrink", "1M"],
            ["--preallocation=full", "2M"],
            ["--preallocation=full", "--shrink", "1M"],
            ["--preallocation=some", "4M"],
            ["--shrink", "-5M"],
            ["nonsense"],
            ["-q", "3M"],
        ):
            *options, size = arguments
            found: Any = program("resize", "-f", format, *options, name, size)
            size_now = qemu.img_json("info", "-f", format, name)["virtual-size"]
            outcomes.append((found[0], found[1], size_now))
        if program is cli.vdisk:
            expected = outcomes
    assert outcomes == expected


@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "compat=0.10,refcount_bits=16",
        "size=3M",
        "cluster_size=4k",
        "data_file_raw=on",
        "nonsense=1",
        "refcount_bits=3",
        "compat=0.10,lazy_refcounts=on",
    ],
)
def test_amend_ends_alike(options: str) -> None:
    facts = []
    for program, name in ((cli.vdisk, "ours"), (theirs, "theirs")):
        qemu.create(name, "2M")
        qemu.io(name, "write -P 1 0 64k", "write -z 64k 64k")
        found: Any = program("amend", "-o", options, name)
        info = qemu.img_json("info", name)
        facts.append(
            (
                found[0],
                info["virtual-size"],
                info["format-specific"],
                info.get("backing-filename"),
                qemu.check(name)["check-errors"],
            )
        )
        qemu.io(name, "read -P 1 0 64k", "read -P 0 64k 64k")
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", ["moved.raw", ""])
def test_amend_renames_the_data_file_alike(name: str) -> None:
    """The name in the image only: the file itself was moved before, and is named meanwhile."""
    facts: list[Any] = []
    for program, image in ((cli.vdisk, "ours"), (theirs, "theirs")):
        qemu.create(image, "2M", data_file=f"{image}.raw")
        qemu.io(image, "write -P 1 0 64k")
        Path(f"{image}.raw").rename("moved.raw")
        tree = f"driver=qcow2,file.driver=file,file.filename={image}"
        tree += ",data-file.driver=file,data-file.filename=moved.raw"
        found: Any = program("amend", "--image-opts", "-o", f"data_file={name}", tree)
        done = peers.run("qemu-img", "info", "--output=json", "--image-opts", tree)
        facts.append((found[0], json.loads(done.stdout)["format-specific"]["data"]))
        shown = cli.run("info", "--output=json", "--image-opts", tree)
        assert json.loads(shown)["format-specific"]["data"] == facts[-1][1]
        peers.run("qemu-io", "--image-opts", "-c", "read -P 1 0 64k", tree)
        qemu.create("without", "2M")
        found = program("amend", "-o", "data_file=other", "without")
        facts[-1] += (found[0],)
    assert facts[0] == facts[1]
    assert facts[0][1].get("data-file", "") == name


def damage(name: str, offset: int, content: bytes) -> None:
    with open(name, "r+b") as file:
        file.seek(offset)
        file.write(content)


def test_check_ends_alike_on_damaged_images() -> None:
    cluster = 65536
    for number, (offset, content) in enumerate(
        [
            (2 * cluster + 2 * 5, b"\0\0"),  # data counted as free
            (2 * cluster + 2 * 5, b"\0\2"),  # data counted twice
            (2 * cluster + 2 * 40, b"\0\1"),  # a leak
        ]
    ):
        qemu.create("disk", "4M")
        qemu.io("disk", "write 0 3M")
        damage("disk", offset, content)
        ours = cli.vdisk("check", "--output=json", "disk")
        status, expected = theirs("check", "--output=json", "disk")
        assert (ours.status, ours.stdout) == (status, expected), number
        cli.vdisk("check", "-q", "-r", "all", "disk")
        agree("check", "--output=json", "disk")


def test_locks_hold_between_the_programs() -> None:
    qemu.create("disk", "1M")
    with qemu.holding("disk", "qcow2"):
        for arguments in (["info", "disk"], ["map", "disk"], ["snapshot", "-c", "x", "disk"]):
            assert "in use" in cli.fail(*arguments) or "open elsewhere" in cli.fail(*arguments)
        agree("info", "-U", "--output=json", "disk")
    with vdisk.open("disk", "r+"):
        assert theirs("info", "disk")[0] == 1
        assert theirs("info", "-U", "disk")[0] == 0
