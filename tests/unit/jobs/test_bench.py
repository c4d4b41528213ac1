"""bench: the requests that are sent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.leftovers import no_new_threads
from vdisk.errors import InvalidRequestError
from vdisk.jobs.bench import Workload, bench
from vdisk.stores.memory import MemoryStore


class Recorder(MemoryStore):
    """Remembers requests as ("r" or "w" or "f", offset, length)."""

    def __init__(self, size: int) -> None:
        super().__init__(bytes(size), growable=False)
        self.log: list[tuple[str, int, int]] = []

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.log.append(("r", offset, len(view)))

    def _write(self, offset: int, view: memoryview) -> None:
        self.log.append(("w", offset, len(view)))
        super()._write(offset, view)

    def _flush(self) -> None:
        self.log.append(("f", 0, 0))


def test_reads_go_on_at_the_start_when_the_end_is_reached() -> None:
    device = Recorder(10_000)
    result = bench(device, Workload(requests=4, depth=1, buffer_size=4096, offset=4096))
    assert result.requests == 4
    assert device.log == [
        ("r", 4096, 4096),
        ("r", 8192, 1808),
        ("r", 2288, 4096),
        ("r", 6384, 3616),
    ]


def test_every_request_is_sent_once_by_all_threads() -> None:
    device = Recorder(1 << 20)
    with no_new_threads():
        bench(device, Workload(requests=200, depth=8, buffer_size=512))
    assert sorted(device.log) == [("r", 512 * number, 512) for number in range(200)]


def test_writes_the_pattern_and_flushes_between_drained_batches() -> None:
    device = Recorder(8192)
    bench(
        device,
        Workload(requests=8, depth=2, buffer_size=1024, pattern=0xAB, flush_interval=3),
    )
    assert device.content() == b"\xab" * 8192
    assert "".join(kind for kind, _, _ in device.log) == "wwwfwwwfww"


def test_flushes_without_draining() -> None:
    device = Recorder(8192)
    workload = Workload(
        requests=8, depth=2, buffer_size=1024, pattern=1, flush_interval=2, drain=False
    )
    bench(device, workload)
    assert sum(kind == "f" for kind, _, _ in device.log) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 1025},
        {"buffer_size": 0},
        {"requests": -1},
        {"flush_interval": 4},
        {"flush_interval": 2, "pattern": 0, "depth": 4},
    ],
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        bench(Recorder(4096), Workload(**wrong))


def test_an_empty_disk_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        bench(Recorder(0), Workload(requests=1))
