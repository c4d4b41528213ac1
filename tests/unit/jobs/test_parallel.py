"""Results in order, a bounded number under way, and an end whatever happens."""

from __future__ import annotations

import time

import pytest

from tests.tools.leftovers import no_new_threads
from vdisk.jobs.parallel import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item * item

    assert list(in_order(slow_first, range(20), 4, 8)) == [n * n for n in range(20)]


def test_no_more_items_are_taken_than_may_be_under_way() -> None:
    taken = 0

    def items():  # type: ignore[no-untyped-def]
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    results = in_order(lambda item: item, items(), 2, 5)
    assert next(results) == 0
    assert taken == 6
    results.close()


def test_a_failure_comes_out_and_the_rest_is_dropped() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ZeroDivisionError
        done.append(item)
        return item

    results = in_order(work, range(1000), 1, 4)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert len(done) < 10


def test_threads_have_ended_when_the_consumer_stops() -> None:
    with no_new_threads():
        results = in_order(lambda item: time.sleep(0.01), range(100), 4, 8)
        next(results)
        results.close()
