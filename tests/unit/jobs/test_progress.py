"""Progress is told from zero to the end, and not too often."""

from __future__ import annotations

from vdisk.jobs.progress import Progress


def test_begins_at_zero_and_ends_at_the_total() -> None:
    calls: list[tuple[int, int]] = []
    meter = Progress(100, lambda done, total: calls.append((done, total)))
    meter.reach(50)
    meter.finish()
    assert calls == [(0, 100), (50, 100), (100, 100)]


def test_never_goes_back_and_skips_small_steps() -> None:
    calls: list[int] = []
    meter = Progress(1_000_000, lambda done, _total: calls.append(done))
    for done in (500_000, 400_000, 500_001, 600_000):
        meter.reach(done)
    assert calls == [0, 500_000, 600_000]


def test_without_a_callback_nothing_happens() -> None:
    meter = Progress(10, None)
    meter.reach(10)
    meter.finish()
    assert meter.done == 10


def test_a_disk_of_no_bytes_is_done() -> None:
    calls: list[tuple[int, int]] = []
    Progress(0, lambda done, total: calls.append((done, total))).finish()
    assert calls == [(0, 0), (0, 0)]
