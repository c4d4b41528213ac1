"""What a copy writes, zeroes and leaves, where the source has zeroes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vdisk.block import Extent, Kind
from vdisk.errors import DeviceError
from vdisk.jobs.copying import CopyOptions, Zeroes, copy_disk
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


class Source(MemoryStore):
    """Data, a hole, and data that is zero."""

    def __init__(self) -> None:
        super().__init__(b"d" * MIB + bytes(2 * MIB), growable=False)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        for first, kind in ((0, Kind.DATA), (MIB, Kind.HOLE), (2 * MIB, Kind.DATA)):
            if first < start + length and start < first + MIB:
                whole = Extent(first, MIB, kind, self, first if kind is Kind.DATA else None)
                yield whole.clipped(max(start, first), min(start + length, first + MIB))


class Target(MemoryStore):
    """Says that it holds data, and remembers what is done to it."""

    def __init__(self, content: bytes, kind: Kind = Kind.DATA) -> None:
        super().__init__(content, growable=False)
        self.kind = kind
        self.written: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int, bool]] = []
        self.asked = 0

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        self.asked = max(self.asked, start + length)
        yield Extent(start, length, self.kind, self, start if self.kind is Kind.DATA else None)

    def _write(self, offset: int, view: memoryview) -> None:
        self.written.append((offset, len(view)))
        super()._write(offset, view)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.zeroed.append((offset, length, unmap))
        super()._write(offset, memoryview(bytes(length)))


@pytest.mark.parametrize(
    ("options", "written", "zeroed"),
    [
        (CopyOptions(), MIB, [(MIB, MIB, True), (2 * MIB, MIB, True)]),
        (CopyOptions(sparse_size=0), 2 * MIB, [(MIB, MIB, True)]),
        (CopyOptions(0, Zeroes.ALLOCATED), 2 * MIB, [(MIB, MIB, False)]),
        (CopyOptions(0, Zeroes.ALLOCATED, target_is_zero=True), 2 * MIB, [(MIB, MIB, False)]),
        (CopyOptions(0, Zeroes.DATA), 3 * MIB, []),
    ],
)
def test_zeroes_become_what_was_asked_for(
    options: CopyOptions, written: int, zeroed: list[tuple[int, int, bool]]
) -> None:
    source, target = Source(), Target(b"y" * (3 * MIB))
    copy_disk(source, target, options)
    assert target.read(0, 3 * MIB) == source.read(0, 3 * MIB)
    assert sum(length for _, length in target.written) == written
    assert target.zeroed == zeroed


def test_a_target_that_is_zero_is_left_alone() -> None:
    target = Target(bytes(3 * MIB), Kind.HOLE)
    copy_disk(Source(), target, CopyOptions())
    assert target.written == [(0, MIB)]
    assert not target.zeroed


def test_no_more_of_a_huge_target_is_looked_at_than_will_be_written() -> None:
    class Huge(Target):
        size = 7 << 60

    target = Huge(b"y" * (3 * MIB))
    copy_disk(Source(), target, CopyOptions())
    assert target.asked == 3 * MIB


def test_a_target_that_cannot_say_what_it_holds_is_written() -> None:
    class Mute(Target):
        def _map(self, start: int, length: int) -> Iterator[Extent]:
            raise DeviceError("mute", operation="map")

    target = Mute(b"y" * (3 * MIB))
    copy_disk(Source(), target, CopyOptions())
    assert target.read(0, 3 * MIB) == Source().read(0, 3 * MIB)


def test_salvage_reads_where_the_map_fails() -> None:
    class Patchy(Source):
        """Nobody knows what is at one offset."""

        def _map(self, start: int, length: int) -> Iterator[Extent]:
            if start <= MIB // 2 < start + length:
                raise DeviceError("patchy", operation="map")
            yield from super()._map(start, length)

    said: list[str] = []
    with pytest.raises(DeviceError):
        copy_disk(Patchy(), Target(bytes(3 * MIB)), CopyOptions())
    target = Target(b"y" * (3 * MIB))
    copy_disk(Patchy(), target, CopyOptions(salvage=said.append))
    assert target.read(0, 3 * MIB) == Source().read(0, 3 * MIB)
    assert len(said) == 1
    assert said[0] == f"error while reading block status at offset {MIB // 2}: Input/output error"


def test_progress_is_of_what_is_copied_or_of_where_it_is() -> None:
    for count_copied, ends in ((True, [(0, 2 * MIB), (MIB, 2 * MIB)]), (False, [(0, 3 * MIB)])):
        told: list[tuple[int, int]] = []
        copy_disk(
            Source(),
            Target(bytes(3 * MIB), Kind.ZERO),
            CopyOptions(count_copied=count_copied, workers=1),
            lambda done, total, told=told: told.append((done, total)),  # type: ignore[misc]
        )
        total = ends[0][1]
        assert told[: len(ends)] == ends
        assert told[-1] == (total, total)
