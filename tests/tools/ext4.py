"""ext4 file systems made, looked into and checked by e2fsprogs, without mounting them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.tools import peers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOOLS = ("mke2fs", "e2fsck", "debugfs")


def make(path: Path, size: int, label: str, files: Mapping[str, bytes]) -> None:
    """A raw image that is one ext4 with this label, and these files in its root."""
    tree = path.with_name(f"{path.name}.tree")
    tree.mkdir()
    for name, content in files.items():
        (tree / name).write_bytes(content)
    with path.open("wb") as file:
        file.truncate(size)
    peers.run("mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", tree, path)


def make_partition(image: Path, start: int, end: int, label: str, tree: Path) -> None:
    """An ext4 in a part of a raw image, with everything that is below ``tree``."""
    options = ("-q", "-F", "-t", "ext4", "-L", label, "-E", f"offset={start}", "-d", tree)
    peers.run("mke2fs", *options, image, f"{(end - start) >> 10}k", timeout=600)


def add(path: Path, name: str, content: bytes) -> None:
    """Put one more file into it."""
    source = path.with_name(f"{path.name}.{name}")
    source.write_bytes(content)
    debugfs(path, f"write {source} {name}", write=True)


def replay_journal(path: Path) -> bool:
    """What mounting does after a crash; True if something had to be done."""
    return b"recovering journal" in peers.run("e2fsck", "-p", path).stdout


def check(path: Path) -> None:
    """Nothing is wrong with it, nor is anything left to replay."""
    done = peers.run("e2fsck", "-f", "-n", path, check=False)
    assert done.returncode == 0, done.stdout.decode()


def read(path: Path, name: str) -> bytes:
    """A file's content."""
    target = path.with_name(f"{path.name}.out")
    debugfs(path, f"dump {name} {target}")
    return target.read_bytes()


def names(path: Path) -> set[str]:
    """What is in its root."""
    listed = debugfs(path, "ls -p /")
    return {line.split("/")[5] for line in listed.splitlines() if line.startswith("/")}


def debugfs(path: Path, command: str, *, write: bool = False) -> str:
    """What a command of debugfs prints; it has no other way to tell of an error."""
    options = ("-w",) if write else ()
    done = peers.run("debugfs", *options, "-R", command, path)
    complaints = done.stderr.decode().splitlines()[1:]  # the first line is its version
    assert not complaints, complaints
    return done.stdout.decode()
