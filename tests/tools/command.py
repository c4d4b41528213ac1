"""Our commands: ``vdisk`` inside the test's process, quicker than one of its own; ``vdisk-nbd``.

Use :func:`tests.tools.peers.run_vdisk` where signals, limits or start-up matter.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from typing import NamedTuple

from tests.tools import peers
from vdisk.cli.main import main


class Done(NamedTuple):
    """How it ended; the names are those of :class:`subprocess.CompletedProcess`."""

    returncode: int
    stdout: bytes
    stderr: bytes


def vdisk(*arguments: str | os.PathLike[str], check: bool = True) -> Done:
    """Run ``vdisk`` with these arguments; ``check``: it must succeed."""
    words = [os.fspath(argument) for argument in arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = main(words)
    said = stdout.getvalue(), stderr.getvalue()
    assert not check or status == 0, f"vdisk {words} exited with {status}:\n{''.join(said)}"
    return Done(status, said[0].encode(), said[1].encode())


def vdisk_nbd(
    *arguments: object, check: bool = True, input: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run ``vdisk-nbd`` in a process of its own, as its copies and servers need one."""
    words = [sys.executable, "-m", "vdisk.cli.nbd", *map(str, arguments)]
    done = peers.run_words(words, input=input, timeout=peers.TIMEOUT, cwd=None)
    return peers.checked(done) if check else done
