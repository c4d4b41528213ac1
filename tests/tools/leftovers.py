"""What is left behind: descriptors and threads that were not there before."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def descriptors() -> set[int]:
    """Those that are open in this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them is closed again
            os.fstat(int(name))
            found.add(int(name))
    return found


@contextlib.contextmanager
def no_new_descriptors() -> Iterator[None]:
    """Whatever is opened inside is closed at the end.

    What others close meanwhile is their affair: the threads of an earlier test, which may still be
    ending, or the garbage collector.
    """
    before = descriptors()
    yield
    assert not descriptors() - before


@contextlib.contextmanager
def no_new_threads() -> Iterator[None]:
    """Threads that are started inside have ended at the end."""
    before = set(threading.enumerate())
    yield
    assert not {thread.name for thread in set(threading.enumerate()) - before}
