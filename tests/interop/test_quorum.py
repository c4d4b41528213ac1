"""The same quorum under qemu-io (7.2) and here: who is believed, and when nobody is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.tools import cli, peers, qemu
from tests.tools.peers import requires_peer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img", "qemu-io")


def both(folder: Path, *commands: str, **options: object) -> list[tuple[int, int, str]]:
    """Exit status, requests done and the last line of either, for a quorum of three images."""
    found = []
    words = [word for command in commands for word in ("-c", command)]
    for name in ("theirs", "ours"):
        files = [{"driver": "file", "filename": str(folder / f"{name}{n}")} for n in range(3)]
        children = [{"driver": "qcow2", "file": file} for file in files]
        tree = {"driver": "quorum", "vote-threshold": 2, "children": children, **options}
        image = f"json:{json.dumps(tree)}"
        if name == "ours":
            done = cli.vdisk("io", *words, image)
            found.append((done.status, done.stdout.count(" ops;"), done.stdout))
        else:
            peer = peers.run("qemu-io", *words, image, check=False)
            found.append((peer.returncode, peer.stdout.count(b" ops;"), peer.stdout.decode()))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("theirs", "ours"):
        for number in range(3):
            qemu.create(tmp_path / f"{name}{number}", "1M")
    return tmp_path


def test_what_is_written_is_on_all(folder: Path) -> None:
    for status, count, _ in both(folder, "write -P 1 0 300k", "write -z 100k 9k", "flush"):
        assert (status, count) == (0, 2)
    contents = {bytes(qemu.content(each)) for each in folder.iterdir()}
    assert len(contents) == 1


@pytest.mark.parametrize("rewrite", [False, True])
def test_one_of_three_is_outvoted(folder: Path, rewrite: bool) -> None:
    both(folder, "write -P 1 0 1M")
    for name in ("theirs1", "ours1"):
        qemu.io(folder / name, "write -P 2 64k 64k")
    for status, count, said in both(folder, "read -P 1 0 1M", **{"rewrite-corrupted": rewrite}):
        assert (status, count) == (0, 1), said
    for name in ("theirs1", "ours1"):
        qemu.io(folder / name, f"read -P {1 if rewrite else 2} 64k 64k")


def test_three_that_differ(folder: Path) -> None:
    for name in ("theirs", "ours"):
        for number in range(3):
            qemu.io(folder / f"{name}{number}", f"write -P {number} 0 4k")
    for status, _, said in both(folder, "read 0 4k"):
        assert status == 1
        assert "Input/output error" in said
    for status, _, said in both(folder, "read -P 0 0 4k", **{"read-pattern": "fifo"}):
        assert status == 0, said
