"""What one input may cost: 2 seconds of processor time and 256 MiB of memory.

Both are of this process alone, so a loaded machine changes nothing: time is ``ITIMER_PROF``'s,
which counts every thread; memory is address space beyond what was mapped before the input.
"""

from __future__ import annotations

import resource
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

CPU_SECONDS = 2.0
MEMORY = 256 << 20
INSTRUMENTED = 4.0
"""How much slower code may be that tells a fuzzer where it has been."""


class TooSlow(BaseException):
    """The input took its time; not an ``Exception``, so that nothing on the way swallows it."""


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlow(f"more than {CPU_SECONDS} seconds of processor time")


def _mapped() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", "rb") as status:
        return int(status.read().split()[0]) * resource.getpagesize()


@contextmanager
def limited(slowness: float = 1.0) -> Iterator[None]:
    """While inside, too much time is :class:`TooSlow` and too much memory ``MemoryError``.

    For the main thread.  ``slowness``: how many times more time than the limit there is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, _too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS * slowness)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, previous)
