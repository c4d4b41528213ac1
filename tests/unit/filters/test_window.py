"""The window over part of a device."""

from __future__ import annotations

import pytest

from vdisk.block import Extent, Kind
from vdisk.errors import OutOfRangeError
from vdisk.filters.window import Window
from vdisk.stores.memory import MemoryStore


def test_requests_are_shifted() -> None:
    inner = MemoryStore(bytes(range(16)))
    window = Window(inner, 4, 8)
    assert window.size == 8
    assert window.read(0, 8) == bytes(range(4, 12))
    window.write(1, b"ab")
    window.writev(6, [b"c", b"d"])
    window.write_zeroes(3, 2)
    assert inner.content() == bytes([0, 1, 2, 3, 4]) + b"ab" + bytes([0, 0, 9]) + b"cd" + bytes(
        [12, 13, 14, 15]
    )
    first = bytearray(2)
    window.readv(1, [first])
    assert first == b"ab"


def test_nothing_outside_is_reached() -> None:
    window = Window(MemoryStore(bytes(16)), 4, 8)
    for offset, length in ((8, 1), (0, 9), (7, 2)):
        with pytest.raises(OutOfRangeError):
            window.read(offset, length)
        with pytest.raises(OutOfRangeError):
            window.write(offset, bytes(length))


def test_its_map_names_the_inner_device() -> None:
    inner = MemoryStore(bytes(16))
    assert list(Window(inner, 4, 8).map(2, 3)) == [Extent(2, 3, Kind.DATA, inner, 6)]


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (17, None), (0, 17), (16, 1), (4, -1)])
def test_a_window_that_does_not_fit_is_refused(offset: int, size: int | None) -> None:
    with pytest.raises(OutOfRangeError, match="does not fit"):
        Window(MemoryStore(bytes(16)), offset, size)


def test_without_a_size_it_reaches_to_the_end() -> None:
    assert Window(MemoryStore(bytes(16)), 10).size == 6


def test_closing_it_closes_what_is_inside() -> None:
    inner = MemoryStore(bytes(16))
    Window(inner).close()
    assert inner.closed
