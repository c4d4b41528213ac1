"""What each encoder writes, and what it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.jobs.encoding import Compressed, Different, Sparse, Write, verbatim
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer


def shown(writes: Iterable[Write]) -> list[tuple[int, int, bytes | None]]:
    return [(w.offset, w.length, None if w.data is None else bytes(w.data)) for w in writes]


BUFFER = bytearray(b"??" + b"aaaa" + bytes(8) + b"bb\0\0" + b"??")
"""Sixteen bytes, two bytes into the buffer."""


def test_verbatim_writes_everything() -> None:
    assert shown(verbatim(BUFFER, 2, 100, 16)) == [(100, 16, bytes(BUFFER[2:18]))]


def test_sparse_leaves_zeroes_out_of_a_target_that_is_zero() -> None:
    encode = Sparse(4, target_is_zero=True)
    assert shown(encode(BUFFER, 2, 100, 16)) == [(100, 4, b"aaaa"), (112, 4, b"bb\0\0")]


def test_sparse_zeroes_a_target_that_is_not() -> None:
    encode = Sparse(4, target_is_zero=False)
    assert shown(encode(BUFFER, 2, 100, 16)) == [
        (100, 4, b"aaaa"),
        (104, 8, None),
        (112, 4, b"bb\0\0"),
    ]


class HalvingDevice:
    """Compresses what begins with "a" to half its size."""

    def compress_cluster(self, data: Buffer) -> bytes | None:
        content = bytes(data)
        return content[: len(content) // 2] if content.startswith(b"a") else None

    def write_compressed(self, offset: int, compressed: Buffer) -> None:
        raise AssertionError("encoders do not write")


def test_compressed_falls_back_to_plain_and_leaves_zeroes_out() -> None:
    encode = Compressed(HalvingDevice(), 4, target_is_zero=True)
    writes = list(encode(BUFFER, 2, 100, 16))
    assert shown(writes) == [(100, 4, b"aa"), (112, 4, b"bb\0\0")]
    assert [write.compressed for write in writes] == [True, False]


def test_different_writes_blocks_that_differ() -> None:
    there = MemoryStore(bytes(100) + b"aaaa" + b"cccc" + bytes(4), growable=False)
    encode = Different(there, 4)
    assert shown(encode(BUFFER, 2, 100, 16)) == [(104, 4, None), (112, 4, b"bb\0\0")]


def test_different_takes_a_missing_device_for_zeroes() -> None:
    assert shown(Different(None, 4)(BUFFER, 2, 100, 16)) == [
        (100, 4, b"aaaa"),
        (112, 4, b"bb\0\0"),
    ]
