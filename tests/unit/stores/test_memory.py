"""The store in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from vdisk.errors import OutOfRangeError
from vdisk.stores.memory import MemoryStore


def test_it_grows_like_a_file() -> None:
    store = MemoryStore(b"abc")
    store.write(5, b"x")
    assert store.content() == b"abc\0\0x"
    assert store.read(4, 4) == b"\0x\0\0"
    store.write_zeroes(1, 7)
    assert store.content() == b"a" + bytes(7)
    store.truncate(2)
    store.truncate(4)
    assert store.content() == b"a\0\0\0"


def test_it_keeps_its_size_when_told_so() -> None:
    store = MemoryStore(bytes(4), growable=False)
    for write in (lambda: store.write(3, b"ab"), lambda: store.write_zeroes(4, 1)):
        with pytest.raises(OutOfRangeError):
            write()
    assert store.size == 4


def test_writes_from_several_threads_are_all_kept() -> None:
    store = MemoryStore()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.write(n * 1000, bytes([n]) * 1000), range(64)))
    assert store.content() == b"".join(bytes([n]) * 1000 for n in range(64))
