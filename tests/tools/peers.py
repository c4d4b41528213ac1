"""The other programs ("peers") that the interop tests run, and what to do when one is missing.

A peer is looked up on the PATH, and in sbin, where Debian keeps ``mke2fs`` and ``nbd-client``.
An environment variable names another build: ``VDISK_TEST_QEMU_IMG=~/qemu/build/qemu-img``.

A test that needs a peer says so::

    @requires_peer("qemu-img")
    def test_info_agrees_with_qemu(): ...

Without the peer the test is a skip that names it; with ``CI`` set it is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

IN_CI = "VDISK_TEST_CI"
"""The variable by which tests/conftest.py tells, also its worker processes, that this is CI."""

MOMENTARY_FAILURE = b"Unable to get accurate CPU usage"
"""What qemu-img 7.2 says when its measuring of key derivation (LUKS) saw no CPU time pass.

Where the host counts a thread's CPU time in coarse ticks, that is every third try or every other.
"""

ATTEMPTS = 50
"""Tries until then; one that fails so ends within milliseconds."""

TIMEOUT = 60
"""Seconds after which a peer that was run is taken to hang."""


def find(name: str) -> str | None:
    """Where the peer called ``name`` is, or None; an absolute path is a file that it needs."""
    if os.path.isabs(name):
        return name if os.path.exists(name) else None
    variable = "VDISK_TEST_" + name.upper().replace("-", "_")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(os.environ.get(variable, name), path=path)


def requires_peer(*names: str) -> pytest.MarkDecorator:
    """Mark a test, class or module (``pytestmark``) that runs the named peers."""
    return pytest.mark.requires_peer(*names)


def check_required(names: Sequence[str]) -> None:
    """Skip the running test if a peer is missing, or fail it in CI."""
    missing = [name for name in names if find(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)} not found ('make peers' installs what the tests run)"
    if IN_CI in os.environ:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def command(name: str, *arguments: str | os.PathLike[str]) -> list[str]:
    """The command line that runs a peer, which must be there."""
    found = find(name)
    assert found is not None, f"a test that runs {name} must be marked requires_peer({name!r})"
    return [found, *(os.fspath(argument) for argument in arguments)]


def run(
    name: str,
    *arguments: str | os.PathLike[str],
    input: bytes = b"",
    check: bool = True,
    timeout: float = TIMEOUT,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a peer to its end, its output caught; with ``check`` it must succeed."""
    words = command(name, *arguments)
    for _ in range(ATTEMPTS):
        done = run_words(words, input=input, timeout=timeout, cwd=cwd)
        if MOMENTARY_FAILURE not in done.stderr:
            break
    return checked(done) if check else done


def run_vdisk(
    *arguments: str | os.PathLike[str],
    input: bytes = b"",
    check: bool = True,
    timeout: float = TIMEOUT,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``vdisk`` in a process of its own."""
    words = [sys.executable, "-m", "vdisk.cli.main", *(os.fspath(word) for word in arguments)]
    done = run_words(words, input=input, timeout=timeout, cwd=cwd)
    return checked(done) if check else done


def run_words(
    words: list[str], *, input: bytes, timeout: float, cwd: str | os.PathLike[str] | None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command line to its end, its output caught."""
    return subprocess.run(
        words, input=input, capture_output=True, timeout=timeout, cwd=cwd, check=False
    )


def checked(done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[bytes]:
    """``done``, which must have succeeded; a failure shows what the program said."""
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise AssertionError(f"{done.args} exited with {done.returncode}:\n{said}")
    return done
