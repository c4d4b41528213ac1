"""Going to the background, and telling the world that the server is ready."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from vdisk.errors import UnsupportedFeatureError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def fork() -> Callable[[], None]:
    """Continue in a child process; what to call when it is ready.

    The parent stays until then, and ends well; or until the child ends, and ends as it did,
    so that whoever started us learns of a mistake.  Must be called before threads are started.
    """
    if not hasattr(os, "fork"):
        raise UnsupportedFeatureError("this system cannot fork: leave --fork out")
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        ready = os.read(reader, 1)
        os._exit(0 if ready else _exit_status(child))
    os.close(reader)
    os.setsid()

    def tell_ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        os.write(writer, b"+")
        os.close(writer)

    return tell_ready


def _exit_status(child: int) -> int:
    _pid, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


@contextlib.contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """The process id in a file, as long as the block runs."""
    if path is None:
        yield
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise from_os_error(error, path=path, operation="write the process id") from error
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
