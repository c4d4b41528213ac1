"""Debian's packages of either PC architecture, unpacked without installing anything.

``apt-get`` runs with lists and a status of our own, so it needs no root, changes nothing on the
machine, and fetches i386 packages on an amd64 one.  What was fetched stays in :data:`CACHE`, which
all tests and their worker processes share.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tools import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE = Path(__file__).resolve().parents[2] / ".guests"
ARCHITECTURES = ("amd64", "i386")
FETCH_SECONDS = 100
ATTEMPTS = 3


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time makes what is called ``name``."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The file or directory ``name`` in the cache; ``make(path)`` makes it where it is missing."""
    target = CACHE / name
    with locked(name):
        if not target.exists():
            unfinished = CACHE / f"{name}.part"
            _remove(unfinished)
            make(unfinished)
            unfinished.rename(target)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unpacked(package: str, architecture: str = "amd64") -> Path:
    """The directory with the files of a package."""

    def make(target: Path) -> None:
        folder = target.with_suffix(".deb")
        _remove(folder)
        folder.mkdir()
        _apt("apt-get", architecture, "download", package, cwd=folder)
        (archive,) = folder.iterdir()
        peers.run("dpkg-deb", "-x", archive, target)
        shutil.rmtree(folder)

    return made(f"{package}-{architecture}", make)


def dependency(package: str, pattern: str, architecture: str = "amd64") -> str:
    """The name of the package that ``package`` depends on and ``pattern`` matches."""
    shown = _apt("apt-cache", architecture, "show", "--no-all-versions", package)
    (depends,) = re.findall(r"^Depends: (.*)$", shown, re.MULTILINE)
    names = [word.split()[0] for word in depends.split(",")]
    (found,) = [name for name in names if re.fullmatch(pattern, name)]
    return str(found)


def _apt(tool: str, architecture: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run one of APT's tools for an architecture, with lists that have been fetched before."""
    folder = made(f"apt-{architecture}", lambda path: _fetch_lists(architecture, path))
    words = [*_options(folder, architecture), *arguments]
    done = peers.run(tool, *words, timeout=FETCH_SECONDS, cwd=cwd)
    return done.stdout.decode()


def _options(folder: Path, architecture: str) -> list[str]:
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Acquire::Retries": "3",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _fetch_lists(architecture: str, folder: Path) -> None:
    """``apt-get update``; one source of several may fail, as long as Debian's own is there."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    options = _options(folder, architecture)
    for _ in range(ATTEMPTS):
        peers.run("apt-get", *options, "update", check=False, timeout=FETCH_SECONDS)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            peers.run("apt-cache", *options, "show", "busybox-static")
            return
    raise AssertionError(f"no lists of Debian's packages for {architecture}")
