"""``vdisk`` run inside the test's own process: its exit status and what it printed."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from typing import NamedTuple

from vdisk.cli.main import main


class Outcome(NamedTuple):
    """How a run of ``vdisk`` ended."""

    status: int
    stdout: str
    stderr: str


def vdisk(*arguments: str | os.PathLike[str]) -> Outcome:
    """Run ``vdisk`` with these arguments."""
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = main([os.fspath(argument) for argument in arguments])
            except SystemExit as end:  # --help
                status = int(end.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Outcome(status, output.getvalue(), errors.getvalue())


def run(*arguments: str | os.PathLike[str]) -> str:
    """Run ``vdisk``, which must succeed and complain of nothing; what it printed."""
    outcome = vdisk(*arguments)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr == "", outcome.stderr
    return outcome.stdout


def fail(*arguments: str | os.PathLike[str], status: int = 1) -> str:
    """Run ``vdisk``, which must fail with one line of explanation; that line."""
    outcome = vdisk(*arguments)
    assert outcome.status == status, outcome
    assert outcome.stderr.startswith("vdisk: "), outcome.stderr
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    return outcome.stderr
