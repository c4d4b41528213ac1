"""Work in several threads, results in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 16
"""As many as qemu-img's ``-m`` allows; no disk is faster with more."""


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """``function`` of each item, computed by ``workers`` threads, given in the items' order.

    At most ``ahead`` items are under way or waiting to be given.  When the consumer stops, or
    the function fails, what has begun is waited for and what has not is dropped.
    """
    from concurrent.futures import ThreadPoolExecutor

    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                if len(running) == ahead:
                    yield running.popleft().result()
                running.append(pool.submit(function, item))
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
