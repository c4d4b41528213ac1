"""Limits of a device: what is asked for is kept, and what the device sees keeps to them."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from vdisk.block import BlockDevice
from vdisk.errors import InvalidRequestError
from vdisk.filters.blkdebug import FILTER
from vdisk.filters.faults import Faults
from vdisk.filters.limits import Limited, Limits
from vdisk.options import OptionBag
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import Extent

SIZE = 100_352
"""No multiple of 4096."""


class Recorder(BlockDevice):
    """Memory that writes down what it is asked."""

    name = "recorder"

    def __init__(self, size: int = SIZE) -> None:
        self.store = MemoryStore(size)
        self.asked: list[tuple[str, int, int]] = []

    @property
    def size(self) -> int:
        return self.store.size

    def note(self, event: str) -> None:
        if event != "none":
            self.asked.append((event, 0, 0))

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        return self.store.map(start, length)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self.asked.append(("read", offset, len(view)))
        self.store.read_into(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self.asked.append(("write", offset, len(view)))
        self.store.write(offset, view)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.asked.append(("zero", offset, length))
        self.store.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        self.asked.append(("discard", offset, length))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(align=4096),
        Limits(align=512, max_transfer=8192, opt_write_zero=4096, max_write_zero=16384),
    ],
)
def test_any_requests_are_kept(limits: Limits) -> None:
    rng = random.Random(5)
    below = Recorder()
    disk, model = Limited(below, limits), bytearray(SIZE)
    for _ in range(300):
        offset = rng.randrange(SIZE)
        length = rng.randrange(min(30_000, SIZE - offset) + 1)
        if rng.random() < 0.3:
            disk.write_zeroes(offset, length)
            model[offset : offset + length] = bytes(length)
        elif rng.random() < 0.5:
            data = rng.randbytes(length)
            disk.write(offset, data)
            model[offset : offset + length] = data
        assert disk.read(offset, length) == model[offset : offset + length]
    assert disk.read(0, SIZE) == model
    for kind, offset, length in below.asked:
        assert offset % limits.align == 0
        assert length % limits.align == 0 or offset + length == SIZE
        if kind in ("read", "write") and limits.max_transfer:
            assert length <= limits.max_transfer
        if kind == "zero" and limits.opt_write_zero:
            assert offset % limits.opt_write_zero == length % limits.opt_write_zero == 0
            assert length <= limits.max_write_zero


def test_edges_are_read_changed_and_written() -> None:
    below = Recorder()
    Limited(below, Limits(align=4096)).write(5000, b"x" * 8000)
    assert below.asked == [
        ("pwritev_rmw_head", 0, 0),
        ("read", 4096, 4096),
        ("pwritev_rmw_after_head", 0, 0),
        ("write", 4096, 4096),
        ("write", 8192, 4096),
        ("pwritev_rmw_tail", 0, 0),
        ("read", 12288, 4096),
        ("pwritev_rmw_after_tail", 0, 0),
        ("write", 12288, 4096),
    ]


def test_discards_are_cut_and_lose_parts_of_blocks() -> None:
    below = Recorder()
    disk = Limited(below, Limits(align=512, opt_discard=4096, max_discard=8192))
    disk.discard(1000, 30_000)
    assert below.asked == [
        ("discard", 1024, 3072),
        ("discard", 4096, 8192),
        ("discard", 12288, 8192),
        ("discard", 20480, 8192),
        ("discard", 28672, 2048),
    ]
    disk.discard(100, 300)
    assert len(below.asked) == 5


def test_the_options_of_blkdebug() -> None:
    words = {"align": "4k", "max-transfer": "64k", "opt-write-zero": 65536, "max-discard": "1M"}
    disk = FILTER.open({"image": Recorder()}, OptionBag(words, "blkdebug"))
    assert isinstance(disk, Limited)
    assert disk.limits == Limits(4096, 65536, 65536, 0, 0, 1 << 20)
    assert not isinstance(FILTER.open({"image": Recorder()}, OptionBag({}, "x")), Limited)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ({"align": "1000"}, "'align' is no power of two"),
        ({"align": "4G"}, "'align' is no power of two"),
        ({"align": "4k", "max-transfer": "6k"}, "'max-transfer' is no multiple of 4096"),
        ({"opt-discard": "64k", "max-discard": "96k"}, "'max-discard' is no multiple of 65536"),
        ({"max-write-zero": "2G"}, "'max-write-zero'"),
    ],
)
def test_limits_that_cannot_be(words: dict[str, str], wrong: str) -> None:
    with pytest.raises(InvalidRequestError, match=wrong):
        FILTER.open({"image": Recorder()}, OptionBag(words, "blkdebug"))


def test_writes_into_other_blocks_pass_one_that_is_held() -> None:
    """Of three writes two change the same block: only those wait for one another."""
    faults = Faults(MemoryStore(SIZE))
    disk = Limited(faults, Limits(align=4096))
    faults.breakpoints.set("pwritev_rmw_after_tail", "A")
    held = threading.Thread(target=disk.write, args=(4096, b"a" * 512))
    held.start()
    assert faults.breakpoints.wait("A", 60)
    disk.write(9000, b"b" * 512)
    after = threading.Thread(target=disk.write, args=(4608, b"c" * 512))
    after.start()
    assert disk.read(9000, 1) == b"b"
    assert disk.read(4096, 1024) == bytes(1024)
    faults.breakpoints.resume("A")
    held.join(60)
    after.join(60)
    assert disk.read(4096, 1024) == b"a" * 512 + b"c" * 512


def test_a_write_inside_one_block_has_two_edges() -> None:
    below = Recorder()
    Limited(below, Limits(align=4096)).write(100, b"x")
    assert [event for event, _, _ in below.asked if event.startswith("pwritev")] == [
        "pwritev_rmw_head",
        "pwritev_rmw_tail",
        "pwritev_rmw_after_head",
        "pwritev_rmw_after_tail",
    ]
