"""compare: the first difference, what is skipped, how images of unlike sizes compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.block import BlockDevice, Extent, Kind
from vdisk.errors import CancelledError, CorruptImageError, DeviceError
from vdisk.jobs.compare import Difference, compare, first_difference
from vdisk.stores.file import FileStore
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


class Mapped(BlockDevice):
    """A device with a given map, which cannot be read but through the map."""

    readonly = True

    def __init__(self, *extents: Extent) -> None:
        self._extents = extents

    @property
    def size(self) -> int:
        return self._extents[-1].end

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        for extent in self._extents:
            if extent.start < start + length and extent.end > start:
                yield extent.clipped(max(start, extent.start), min(start + length, extent.end))


class Unreadable(MemoryStore):
    def _read_into(self, offset: int, view: memoryview) -> None:
        raise DeviceError("cannot read")


@given(
    content=st.binary(min_size=1, max_size=3000),
    at=st.integers(0, 2999),
    change=st.booleans(),
)
def test_reports_the_sector_of_the_first_difference(content: bytes, at: int, change: bool) -> None:
    other = bytearray(content)
    at %= len(content)
    if change:
        other[at] ^= 0xFF
    result = compare(MemoryStore(content), MemoryStore(other))
    if change:
        assert result == (Difference.CONTENT, at // 512 * 512)
    else:
        assert result.identical


@given(st.integers(1, 5000), st.lists(st.integers(0, 4999), min_size=1, max_size=5))
def test_first_difference_bisects_right(length: int, places: list[int]) -> None:
    one, other = bytearray(length), bytearray(length)
    for place in places:
        other[place % length] = 1
    assert first_difference(one, other) == min(p % length for p in places) // 512 * 512


def test_the_first_of_several_differences_is_reported() -> None:
    one = bytearray(6 * MIB)
    other = bytearray(one)
    other[5 * MIB] = other[3 * MIB + 7] = 1
    assert compare(MemoryStore(one), MemoryStore(other)).offset == 3 * MIB


def test_what_both_maps_call_zero_is_not_read() -> None:
    left = Mapped(Extent(0, 1 << 50, Kind.HOLE))
    right = Mapped(Extent(0, 1 << 49, Kind.ZERO), Extent(1 << 49, 1 << 49, Kind.HOLE))
    assert compare(left, right).identical


def test_the_same_place_of_one_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"")
    with FileStore(tmp_path / "image") as one, FileStore(tmp_path / "image") as other:
        size = 1 << 50  # reading this would not end
        left = Mapped(Extent(0, size, Kind.DATA, one, 0))
        right = Mapped(Extent(0, size, Kind.DATA, other, 0))
        assert compare(left, right).identical


def test_a_shorter_image_is_followed_by_zeroes() -> None:
    short = MemoryStore(b"x" * 1000)
    assert compare(short, MemoryStore(b"x" * 1000 + bytes(5000))).identical
    longer = MemoryStore(b"x" * 1000 + bytes(5000) + b"y")
    assert compare(longer, short) == (Difference.CONTENT, 5632)


def test_strict_refuses_other_sizes() -> None:
    result = compare(MemoryStore(bytes(512)), MemoryStore(bytes(1024)), strict=True)
    assert result == (Difference.SIZE, None)


def test_strict_refuses_other_allocation_but_reports_earlier_content_first() -> None:
    data = MemoryStore(bytes(2048))
    left = Mapped(Extent(0, 1024, Kind.DATA, data, 0), Extent(1024, 1024, Kind.ZERO))
    right = Mapped(Extent(0, 2048, Kind.DATA, data, 0))
    assert compare(left, right, strict=True) == (Difference.ALLOCATION, 1024)
    assert compare(left, right).identical
    other = Mapped(Extent(0, 2048, Kind.DATA, MemoryStore(b"x" * 2048), 0))
    assert compare(left, other, strict=True) == (Difference.CONTENT, 0)


def test_strict_does_not_mind_compression() -> None:
    data = MemoryStore(b"x" * 1024)
    left = Mapped(Extent(0, 1024, Kind.COMPRESSED, data, 0))
    right = Mapped(Extent(0, 1024, Kind.DATA, data, 0))
    assert compare(left, right, strict=True).identical


def test_a_failed_read_is_told_from_a_failed_map() -> None:
    with pytest.raises(DeviceError) as failed:
        compare(Unreadable(b"x"), MemoryStore(b"x"))
    assert failed.value.operation == "read"

    class Corrupt(MemoryStore):
        def _map(self, start: int, length: int) -> Iterator[Extent]:
            raise CorruptImageError("an entry is wrong")

    with pytest.raises(CorruptImageError) as failed_map:
        compare(Corrupt(b"x"), MemoryStore(b"x"))
    assert failed_map.value.operation != "read"


def test_progress_reaches_the_end_and_can_cancel() -> None:
    calls: list[tuple[int, int]] = []
    compare(
        MemoryStore(bytes(MIB)),
        MemoryStore(bytes(2 * MIB)),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[0] == (0, 2 * MIB)
    assert calls[-1] == (2 * MIB, 2 * MIB)

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError("enough")

    with pytest.raises(CancelledError):
        compare(MemoryStore(b"x"), MemoryStore(b"x"), progress=cancel)


def test_images_are_opened_by_name_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 512)
    (tmp_path / "b").write_bytes(b"y" * 512)
    result = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert result == (Difference.CONTENT, 0)
