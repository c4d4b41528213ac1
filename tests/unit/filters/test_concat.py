"""Several devices as one disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.block import Extent
from vdisk.errors import OutOfRangeError, ReadOnlyError
from vdisk.filters.concat import Concatenation
from vdisk.stores.memory import MemoryStore


@given(parts=st.lists(st.binary(max_size=40), min_size=1, max_size=6), data=st.data())
def test_reads_as_the_parts_joined(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    disk = Concatenation([MemoryStore(part) for part in parts])
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    assert disk.size == len(whole)
    assert disk.read(start, length) == whole[start : start + length]


def test_map_leads_to_the_parts() -> None:
    first, second = MemoryStore(b"abc"), MemoryStore(b"defgh")
    disk = Concatenation([first, MemoryStore(b""), second])
    extents = list(disk.map(1, 5))
    assert [(e.start, e.length, e.source_offset) for e in extents] == [(1, 2, 1), (3, 3, 0)]
    assert [e.source for e in extents] == [first, second]
    assert all(isinstance(extent, Extent) for extent in extents)


def test_is_read_only_and_ends_where_the_last_part_ends() -> None:
    disk = Concatenation([MemoryStore(b"abc"), MemoryStore(b"de")])
    with pytest.raises(ReadOnlyError):
        disk.write(0, b"x")
    with pytest.raises(OutOfRangeError):
        disk.read(4, 2)


def test_closes_its_parts() -> None:
    parts = [MemoryStore(b"abc"), MemoryStore(b"de")]
    Concatenation(parts).close()
    assert all(part.closed for part in parts)
