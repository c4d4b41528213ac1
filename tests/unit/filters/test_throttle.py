"""A throttled device: requests begin as late as the limits want, and read the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import vdisk
from vdisk.errors import InvalidRequestError
from vdisk.filters.throttle import BURST_SECONDS, Throttle, Throttled
from vdisk.opening import open_image
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

BOTH = frozenset({"read", "write"})


class Clock:
    """Time that passes only by sleeping."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_as_many_requests_a_second_as_the_limit() -> None:
    clock = Clock()
    limits = [(BOTH, Throttle(iops=50))]
    device = Throttled(MemoryStore(bytes(4096)), limits, clock=clock, sleep=clock.sleep)
    for _ in range(50):
        device.write(0, b"x")
        device.read(0, 1)
    assert clock.now - 100 == pytest.approx(2, abs=2 * BURST_SECONDS)


def test_reads_and_writes_have_limits_of_their_own() -> None:
    clock = Clock()
    limits = [(frozenset({"write"}), Throttle(bps=1000)), (frozenset({"read"}), Throttle())]
    device = Throttled(MemoryStore(bytes(1 << 20)), limits, clock=clock, sleep=clock.sleep)
    device.read(0, 1 << 20)
    assert clock.now == 100
    for _ in range(10):
        device.writev(0, [bytes(50), bytes(50)])
        device.write_zeroes(0, 100)
        device.discard(0, 100)
    assert clock.now - 100 == pytest.approx(3, abs=0.3)
    assert {extent.source for extent in device.map()} == {device}


def test_options(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    vdisk.create(path, 1 << 20)
    node = {"driver": "throttle", "file": {"driver": "file", "filename": str(path)}}
    tree = {"driver": "raw", "file": {**node, "limits": {"iops-total": 1000, "bps-read": "1M"}}}
    with open_image("json:" + json.dumps(tree), readonly=False) as device:
        device.write(0, b"throttled")
        assert device.read(0, 9) == b"throttled"
    for wrong in ({"limits": 7}, {"limits": {"iops": 7}}, {"limit": {}}):
        with pytest.raises(InvalidRequestError):
            open_image({"driver": "raw", "file": {**node, **wrong}})
