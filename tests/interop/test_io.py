"""``vdisk io`` beside qemu-io (7.2): the same commands, the same words, the same bytes."""

from __future__ import annotations

import functools
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.tools import peers, qemu
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-io", "qemu-img")

SIZE = 1 << 20

READ_AND_WRITE = [
    ["write 0 64k"],
    ["write -P 0xaa 0 64k", "read -P 0xaa 0 64k", "read -P 0xab 0 64k", "read 0 512"],
    ["write -P 010 3 70000", "read -v 0 100", "read -P 8 -s 3 -l 70000 0 128k"],
    ["write -C 0 64k", "read -C 0 512", "write -q 0 512", "read -q 0 512", "discard -C 0 64k"],
    ["write -z 0 64k", "write -zu 64k 64k", "write -zn 0 128k", "write -zf 4k 4k"],
    ["write -f 0 64k", "writev -f 0 64k", "aio_write -f 0 64k"],
    ["write -c 128k 64k", "write -c -P 7 192k 128k", "read -P 7 192k 128k", "write -c 0 1k"],
    ["write 0 2M", "read 1M 1", "write 1023k 2k", "discard 0 3M", "readv 0 1M 1M", "writev 0 2M"],
    ["readv 0 1k 2k", "writev -P 5 1000 1k 2k", "readv -P 5 1000 1k 2k", "readv -P 6 0 1k 1k"],
    ["readv -v 0 16 32", "readv -C 0 1k 1k", "writev -q 0 1k", "writev -C 0 512"],
    ["aio_write -P 9 64k 64k 512", "aio_flush", "aio_read -P 9 64k 64k 512", "aio_flush"],
    ["aio_read -v 0 32", "aio_flush", "aio_read -P 7 0 64k", "aio_flush", "aio_read -C 0 1k"],
    ["aio_write 0 4M", "aio_flush", "aio_read 0 4M", "aio_flush"],
    ["aio_read -i 0 1k", "aio_write -i 0 1k", "aio_write -z 0 1k 1k", "aio_write -u 0 1k"],
    ["write 64k 64k", "discard 64k 64k", "read -P 0 64k 64k", "discard -q 0 1M"],
    ["read 0 0", "write 0 0", "read -P 0 0 0", "alloc 0 0"],
]

WRONG_WORDS = [
    ["foo", "", "length"],
    ["write 10", "write", "readv 0", "alloc", "alloc 1 2 3", "truncate", "sleep", "map foo"],
    ["write -P zz 0 10", "write -P 256 0 10", "write -P -1 0 1", "write -P 0x 0 1"],
    ["write abc 10", "write 0 abc", "write 1.5 1", "write 9E 1", "write 0 9.5E", "write 1e3 1"],
    ["write -1 10", "write 0 -1", "write -Z 0 10", "write -P 1", "discard -Z 0 1", "writev -z 0 1"],
    ["write -z -P 1 0 10", "write -n 0 10", "write -u 0 10", "write -bz 0 1k", "write -bf 0 1k"],
    ["write -s /does/not/exist 0 64k", "write 0 3G", "discard 0 3G", "readv 0 2G"],
    ["readv 0 1500M 1500M", "read 0 2147483137", "alloc abc", "alloc 0 abc", "alloc 100G"],
    ["read -l 10 0 100", "read -s 10 0 100", "read -P 0 -s 90 -l 20 0 100", "read -P 0 -l 0 0 9"],
    ["truncate abc", "truncate -m foo 2M", "discard abc 1", "sleep abc", "sigraise abc"],
    ["read -b 0 16", "write -b 1 512", "read -P abc 0 1", "readv -P zz 0 1", "aio_read -P zz 0 1"],
    ["help nothing", "open", "reopen -r -w", "reopen -c foo", "reopen what", "sleep 1k"],
]

AROUND_THE_IMAGE = [
    ["length", "flush", "f", "l", "map", "alloc 0", "alloc 0 128k", "alloc 64k 128k", "a 512"],
    ["write 128k 64k", "write -z 512k 4k", "map", "alloc 0 1M", "alloc 65k"],
    ["info", "i", "truncate 10G", "info"],
    ["read -b -v 0 512", "write -b -P 5 64k 100k", "read -b -P 5 64k 100k", "read -P 0 200k 100k"],
    ["truncate -m off 2M", "length", "truncate -m falloc 3M", "length", "truncate -m full 4M"],
    ["truncate 2M", "length", "map", "truncate 1.5M", "length", "read 1M 512k"],
    ["close", "length", "close"],
    ["reopen -r", "write 0 1k", "read 0 1k", "reopen -w", "write 0 1k", "reopen -c none", "reopen"],
    ["sleep 1", "quit", "length"],
    ["open image", "close", "open image", "length"],
]


def normalised(output: bytes) -> str:
    """``output`` without times, rates and the name of the program."""
    text = output.decode()
    text = re.sub(r"\(\S+ \w+/sec and \S+ ops/sec\)", "(rates)", text)
    text = re.sub(r"ops; (\d+:\d\d:)?\d\d\.\d\d( sec)?", "ops; time", text)
    text = re.sub(r"^(\d+),1,[\d:.]+,[\d.]+,[\d.]+$", r"\1,1,rates", text, flags=re.MULTILINE)
    text = re.sub(r"^(\w+ \S* ?.*) -- .*$", r"\1", text, flags=re.MULTILINE)  # usage, own words
    return text.replace("qemu-io", "vdisk io")


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A small image with a hole, and its format."""
    path = tmp_path / "image"
    qemu.create(path, SIZE, request.param)
    qemu.io(path, "write -P 0x61 0 100k", "write -P 0x62 512k 64k", format=request.param)
    return path, request.param


def run_both(
    image: tuple[Path, str], options: list[str], commands: list[str], *, script: bool = False
) -> None:
    """Run the commands with either program on its own copy; output, status, content agree."""
    path, format = image
    words = ["-f", format, *options, "image"]
    if not script:
        words += [word for command in commands for word in ("-c", command)]
    results = []
    for name, run in (("qemu", run_qemu_io), ("vdisk", run_vdisk_io)):
        folder = path.parent / name
        folder.mkdir()
        shutil.copy(path, folder / "image")
        typed = "\n".join(commands).encode() if script else b""
        results.append(run(*words, input=typed, check=False, cwd=folder))
        if format == "qcow2":
            qemu.check(folder / "image")
    theirs, ours = results
    assert normalised(ours.stdout) == normalised(theirs.stdout)
    # Where QEMU says why something failed, so do we; where it does not, we may.
    assert ours.stderr or not theirs.stderr
    assert ours.returncode == theirs.returncode
    qemu.compare(
        path.parent / "qemu/image", path.parent / "vdisk/image", "-f", format, "-F", format
    )


run_qemu_io = functools.partial(peers.run, "qemu-io")
run_vdisk_io = functools.partial(peers.run_vdisk, "io")


@pytest.mark.parametrize("commands", READ_AND_WRITE + WRONG_WORDS + AROUND_THE_IMAGE, ids="; ".join)
def test_commands_print_and_do_the_same(image: tuple[Path, str], commands: list[str]) -> None:
    run_both(image, [], commands)


@pytest.mark.parametrize(
    "options", [["-r"], ["-s"], ["-n"], ["-t", "unsafe"], ["-d", "ignore"], ["-C"], ["-r", "-U"]]
)
def test_options_mean_the_same(image: tuple[Path, str], options: list[str]) -> None:
    run_both(image, options, ["write 0 64k", "discard 64k 64k", "read -v 64k 16", "read 0 1M"])


@pytest.mark.parametrize("options", [["-t", "foo"], ["-d", "foo"], ["-i", "foo"], ["-r", "-C"]])
def test_wrong_options_are_refused_alike(image: tuple[Path, str], options: list[str]) -> None:
    run_both(image, options, ["length"])


def test_a_script_on_standard_input(image: tuple[Path, str]) -> None:
    run_both(
        image, [], ["write 0 64k", "", "foo", "read -P 3 0 1k", "length", "quit", "read 0 1"],
        script=True,
    )  # fmt: skip
