"""The device interface: the gate, plans and their execution."""

from __future__ import annotations

import itertools
from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.block import ZERO_CHUNK, BlockDevice, Extent, Kind, execute_read, merged
from vdisk.errors import (
    ClosedError,
    InvalidRequestError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedFeatureError,
)
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 4096


class Recorder(BlockDevice):
    """A device that does nothing but say which hooks were called."""

    name = "recorder"

    def __init__(self, size: int = SIZE) -> None:
        self._length = size
        self.calls: list[tuple[object, ...]] = []

    @property
    def size(self) -> int:
        return self._length

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.calls.append(("read", offset, len(view)))

    def _write(self, offset: int, view: memoryview) -> None:
        self.calls.append(("write", offset, bytes(view)))

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.calls.append(("zero", offset, length, unmap))

    def _discard(self, offset: int, length: int) -> None:
        self.calls.append(("discard", offset, length))

    def _flush(self) -> None:
        self.calls.append(("flush",))

    def _truncate(self, size: int) -> None:
        self.calls.append(("truncate", size))

    def _close(self) -> None:
        self.calls.append(("close",))


REQUESTS: dict[str, Callable[[BlockDevice, int, int], object]] = {
    "read": lambda device, offset, length: device.read(offset, length),
    "read_into": lambda device, offset, length: device.read_into(offset, bytearray(length)),
    "readv": lambda device, offset, length: device.readv(offset, [bytearray(length)]),
    "map": lambda device, offset, length: list(device.map(offset, length)),
    "write": lambda device, offset, length: device.write(offset, bytes(length)),
    "writev": lambda device, offset, length: device.writev(offset, [bytes(length)]),
    "write_zeroes": lambda device, offset, length: device.write_zeroes(offset, length),
    "discard": lambda device, offset, length: device.discard(offset, length),
    "copy_from": lambda device, offset, length: device.copy_from(
        offset, MemoryStore(bytes(length)), 0, length
    ),
}
WRITES = ["write", "writev", "write_zeroes", "discard", "copy_from"]


@pytest.mark.parametrize("request_name", REQUESTS)
class TestGate:
    """No hook sees a request that it would have to refuse."""

    @pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (1 << 70, 1)])
    def test_past_the_end(self, request_name: str, offset: int, length: int) -> None:
        device = Recorder()
        with pytest.raises(OutOfRangeError) as caught:
            REQUESTS[request_name](device, offset, length)
        assert caught.value.path == "recorder"
        assert device.calls == []

    def test_before_the_beginning(self, request_name: str) -> None:
        with pytest.raises(InvalidRequestError):
            REQUESTS[request_name](Recorder(), -1, 1)

    def test_up_to_the_end_and_of_nothing(self, request_name: str) -> None:
        device = Recorder()
        REQUESTS[request_name](device, 0, SIZE)
        REQUESTS[request_name](device, SIZE, 0)

    def test_after_close(self, request_name: str) -> None:
        device = Recorder()
        device.close()
        with pytest.raises(ClosedError):
            REQUESTS[request_name](device, 0, 1)

    def test_past_the_end_of_what_grows(self, request_name: str) -> None:
        device = Recorder()
        device.growable = True
        REQUESTS[request_name](device, SIZE, 10)


@pytest.mark.parametrize("request_name", WRITES)
def test_nothing_writes_to_a_read_only_device(request_name: str) -> None:
    device = Recorder()
    device.readonly = True
    with pytest.raises(ReadOnlyError):
        REQUESTS[request_name](device, 0, 1)
    with pytest.raises(ReadOnlyError):
        device.truncate(1)
    assert device.calls == []


@pytest.mark.parametrize("request_name", ["write", "write_zeroes", "discard"])
def test_requests_of_nothing_reach_no_hook(request_name: str) -> None:
    device = Recorder()
    REQUESTS[request_name](device, 0, 0)
    assert device.calls == []


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        Recorder().truncate(-1)


def test_close_flushes_once_and_a_second_close_does_nothing() -> None:
    device = Recorder()
    with device:
        device.write(1, b"abc")
    device.close()
    assert device.calls == [("write", 1, b"abc"), ("flush",), ("close",)]
    with pytest.raises(ClosedError):
        device.flush()


def test_a_read_only_device_is_not_flushed() -> None:
    device = Recorder()
    device.readonly = True
    device.flush()
    device.close()
    assert device.calls == [("close",)]


def test_a_device_whose_flush_fails_is_closed_all_the_same() -> None:
    class Failing(Recorder):
        def _flush(self) -> None:
            raise ReadOnlyError("no")

    device = Failing()
    with pytest.raises(ReadOnlyError):
        device.close()
    assert device.closed
    assert device.calls == [("close",)]


def test_buffers_of_other_items_count_in_bytes() -> None:
    device = MemoryStore()
    device.write(0, array("I", [1, 2]))
    assert device.size == 8
    found = array("I", [0, 0])
    device.read_into(0, found)
    assert found.tolist() == [1, 2]


def test_vectors_are_consecutive() -> None:
    device = MemoryStore(bytes(16))
    device.writev(2, [b"ab", b"", b"cde"])
    first, second = bytearray(3), bytearray(2)
    device.readv(2, [first, second])
    assert (first, second) == (b"abc", b"de")


def test_zeroes_are_written_in_chunks_where_there_is_no_faster_way() -> None:
    class Plain(Recorder):
        _write_zeroes = BlockDevice._write_zeroes

    device = Plain(3 * ZERO_CHUNK)
    device.write_zeroes(5, 2 * ZERO_CHUNK + 1)
    assert [(call[1], len(call[2])) for call in device.calls] == [  # type: ignore[arg-type]
        (5, ZERO_CHUNK),
        (5 + ZERO_CHUNK, ZERO_CHUNK),
        (5 + 2 * ZERO_CHUNK, 1),
    ]


def test_what_a_device_cannot_do_it_says() -> None:
    class Bare(BlockDevice):
        size = SIZE

    with pytest.raises(UnsupportedFeatureError):
        Bare().write(0, b"x")
    with pytest.raises(UnsupportedFeatureError):
        Bare().truncate(0)
    assert Bare().copy_from(0, MemoryStore(b"x"), 0, 1) == 0


def test_the_representation_tells_state() -> None:
    device = Recorder()
    assert repr(device) == "<Recorder 'recorder' 4096 bytes>"
    device.close()
    assert repr(device) == "<Recorder 'recorder' closed>"


# -- extents -------------------------------------------------------------------------------------


def test_an_extent_is_clipped_and_shifted_with_its_source() -> None:
    source = Recorder()
    extent = Extent(100, 50, Kind.DATA, source, 1000, depth=1)
    assert extent.end == 150
    assert extent.clipped(0, 1000) == extent
    assert extent.clipped(120, 130) == Extent(120, 10, Kind.DATA, source, 1020, depth=1)
    assert extent.shifted(-100) == Extent(0, 50, Kind.DATA, source, 1000, depth=1)
    assert Extent(0, 8, Kind.HOLE).clipped(2, 4) == Extent(2, 2, Kind.HOLE)


def test_zero_and_hole_read_as_zeroes() -> None:
    assert [Extent(0, 1, kind).reads_zero for kind in Kind] == [False, False, True, True]


SOURCES = (MemoryStore(bytes(range(256)) * 4), MemoryStore(bytes(range(255, -1, -1)) * 4))


@st.composite
def plans(draw: st.DrawFn) -> list[Extent]:
    """A gapless plan, whose extents often continue each other."""
    extents: list[Extent] = []
    position = draw(st.integers(0, 100))
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([Kind.DATA, Kind.DATA, Kind.ZERO, Kind.HOLE]))
        length = draw(st.integers(1, 20))
        source, offset = None, None
        if kind is Kind.DATA:
            source = draw(st.sampled_from(SOURCES))
            last = extents[-1] if extents else None
            if last and last.source_offset is not None and draw(st.booleans()):
                offset = last.source_offset + last.length
            else:
                offset = draw(st.integers(0, 200))
        extents.append(Extent(position, length, kind, source, offset, draw(st.integers(0, 1))))
        position += length
    return extents


def content(extents: list[Extent]) -> bytes:
    start = extents[0].start
    buffer = bytearray(b"\xee" * (extents[-1].end - start))
    execute_read(extents, start, memoryview(buffer))
    return bytes(buffer)


@given(plans())
def test_merging_keeps_the_content_and_leaves_nothing_to_merge(extents: list[Extent]) -> None:
    found = list(merged(extents))
    assert content(found) == content(extents)
    assert [extent.end for extent in found[:-1]] == [extent.start for extent in found[1:]]
    assert not any(second.follows(first) for first, second in itertools.pairwise(found))
    assert all(extent.length > 0 for extent in found)


@given(plans())
def test_executing_a_plan_reads_each_extent_from_its_source(extents: list[Extent]) -> None:
    expected = b"".join(
        bytes(extent.length)
        if extent.source is None or extent.source_offset is None
        else extent.source.read(extent.source_offset, extent.length)
        for extent in extents
    )
    assert content(extents) == expected


def test_a_device_reads_by_its_map_and_maps_as_one_run_by_default() -> None:
    class Mapped(Recorder):
        _read_into = BlockDevice._read_into

        def _map(self, start: int, length: int) -> Iterator[Extent]:
            for position in range(start, start + length):
                yield Extent(position, 1, Kind.DATA, SOURCES[0], position + 1)

    device = Mapped()
    assert device.read(3, 4) == bytes([4, 5, 6, 7])
    assert list(device.map(3, 4)) == [Extent(3, 4, Kind.DATA, SOURCES[0], 4)]
    plain = Recorder()
    assert list(plain.map(10)) == [Extent(10, SIZE - 10, Kind.DATA, plain, 10)]
    assert list(plain.map(SIZE)) == []
