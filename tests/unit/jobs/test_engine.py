"""The engine: order of writes, threads, limits, failures."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.tools.leftovers import no_new_threads
from vdisk.block import BlockDevice, Extent, Kind
from vdisk.errors import CancelledError, DeviceError
from vdisk.jobs.encoding import Sparse
from vdisk.jobs.engine import BATCH_SIZE, CopySettings, run
from vdisk.jobs.plan import Action, plan
from vdisk.jobs.progress import Progress
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vdisk.jobs.plan import Step

SIZE = 5 * BATCH_SIZE + 12345


def pattern(size: int = SIZE) -> bytes:
    """Bytes that differ everywhere, so that a piece in the wrong place is seen."""
    return b"".join(number.to_bytes(4, "little") for number in range(size // 4 + 1))[:size]


def everything(source: BlockDevice) -> Iterator[Step]:
    return plan(((extent, Action.COPY) for extent in source.map()), 512)


class Recorder(MemoryStore):
    """Remembers where it was written, and by which threads."""

    def __init__(self, size: int) -> None:
        super().__init__(bytes(size), growable=False)
        self.offsets: list[int] = []
        self.threads: set[str] = set()

    def _write(self, offset: int, view: memoryview) -> None:
        self.offsets.append(offset)
        self.threads.add(threading.current_thread().name)
        super()._write(offset, view)


def test_writes_are_in_order_and_by_the_caller() -> None:
    source, target = MemoryStore(pattern()), Recorder(SIZE)
    totals = run(everything(source), target, CopySettings(workers=4), Progress(SIZE, None))
    assert target.content() == source.content()
    assert target.offsets == sorted(target.offsets)
    assert target.threads == {threading.current_thread().name}
    assert totals == (SIZE, 0)


def test_out_of_order_writes_are_by_the_threads() -> None:
    source, target = MemoryStore(pattern()), Recorder(SIZE)
    settings = CopySettings(workers=4, out_of_order=True)
    run(everything(source), target, settings, Progress(SIZE, None))
    assert target.content() == source.content()
    assert threading.current_thread().name not in target.threads


def test_zero_steps_and_zeroes_found_are_counted() -> None:
    source = MemoryStore(b"x" * 4096 + bytes(4096))
    target = MemoryStore(b"y" * 12288)
    extents = [
        (Extent(0, 8192, Kind.DATA, source, 0), Action.COPY),
        (Extent(8192, 4096, Kind.HOLE), Action.ZERO),
    ]
    settings = CopySettings(encode=Sparse(4096, target_is_zero=False))
    totals = run(plan(extents, 4096), target, settings, Progress(12288, None))
    assert totals == (4096, 8192)
    assert target.content() == b"x" * 4096 + bytes(8192)


@pytest.mark.parametrize("out_of_order", [False, True])
def test_a_progress_callback_stops_it(out_of_order: bool) -> None:
    def stop(done: int, _total: int) -> None:
        if done:
            raise CancelledError("enough")

    source, target = MemoryStore(pattern()), MemoryStore(bytes(SIZE))
    with no_new_threads(), pytest.raises(CancelledError):
        run(
            everything(source),
            target,
            CopySettings(workers=2, out_of_order=out_of_order),
            Progress(SIZE, stop),
        )


class Failing(MemoryStore):
    """Cannot be read from ``bad`` on."""

    bad = 3 * BATCH_SIZE

    def _read_into(self, offset: int, view: memoryview) -> None:
        if offset + len(view) > self.bad:
            raise DeviceError("cannot read", path=self.name, offset=offset)
        super()._read_into(offset, view)


def test_a_read_error_comes_out_after_what_was_read_before() -> None:
    source, target = Failing(pattern()), MemoryStore(bytes(SIZE))
    with pytest.raises(DeviceError):
        run(everything(source), target, CopySettings(), Progress(SIZE, None))
    assert target.content()[: Failing.bad] == pattern()[: Failing.bad]


def test_a_rate_limit_takes_its_time() -> None:
    source, target = MemoryStore(pattern(BATCH_SIZE)), MemoryStore(bytes(BATCH_SIZE))
    begin = time.monotonic()
    settings = CopySettings(rate_limit=BATCH_SIZE * 5)
    run(everything(source), target, settings, Progress(BATCH_SIZE, None))
    assert time.monotonic() - begin > 0.15


def test_offload_between_files_and_without_them(tmp_path: Path) -> None:
    content = pattern()
    (tmp_path / "source").write_bytes(content)
    settings = CopySettings(offload=True)
    with (
        FileStore(tmp_path / "source") as source,
        FileStore(tmp_path / "target", readonly=False, create=True) as target,
    ):
        totals = run(everything(source), target, settings, Progress(SIZE, None))
        assert totals.copied == SIZE
        memory = MemoryStore(bytes(SIZE))
        run(everything(source), memory, settings, Progress(SIZE, None))
        assert memory.content() == content
    assert (tmp_path / "target").read_bytes() == content
