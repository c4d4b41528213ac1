"""The parts of the server that need no socket."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vdisk
from vdisk.block import Kind
from vdisk.errors import FormatError, InvalidRequestError, NotFoundError
from vdisk.filters.copy_on_read import CopyOnRead
from vdisk.filters.detect_zeroes import DetectZeroes, zero_runs
from vdisk.filters.throttle import Throttle
from vdisk.nbd.events import Request
from vdisk.nbd.wire import Command, CommandFlag
from vdisk.nbd_serving.access import Peer, format_name, parse_rule, permits
from vdisk.nbd_serving.execution import Job, joined
from vdisk.nbd_serving.export import Export
from vdisk.nbd_serving.limits import Account, Budget, ServerLimits
from vdisk.nbd_serving.partitions import SECTOR, find_partition
from vdisk.opening.overlay import temporary_overlay
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


def test_names_are_written_as_rfc_4514_has_them() -> None:
    subject = (
        (("countryName", "GB"),),
        (("organizationName", "Example, Org"),),
        (("commonName", "laptop.example.com"), ("userId", "x")),
    )
    assert format_name(subject) == r"CN=laptop.example.com+UID=x,O=Example\, Org,C=GB"
    peer = Peer("here").with_certificate({"subject": subject})
    assert peer.common_names == ("laptop.example.com",)
    rule = parse_rule(r"dn:CN=laptop.example.com+UID=x,O=Example\, Org,C=GB")
    assert permits([rule], peer)
    assert not permits([rule], Peer("here"))
    assert permits([], Peer("here"))


def test_an_account_at_its_limits_is_full_but_one_request_always_goes() -> None:
    limits = ServerLimits(client_requests=2, client_bytes=100, total_bytes=150)
    budget = Budget(limits)
    first, second, third = Account(budget), Account(budget), Account(budget)
    first.charge(100, 1)
    assert first.full
    second.charge(60, 1)
    assert second.full
    assert not third.full
    first.release(100, 1)
    assert not first.full and not second.full
    first.charge(0, 2)
    assert first.full
    for account in (first, second, third):
        account.close()
    assert budget.bytes == budget.requests == 0


@given(st.floats(1, 1e6), st.lists(st.floats(0, 2), min_size=1, max_size=50))
def test_a_throttle_never_lets_more_in_than_its_rate_and_a_burst(
    rate: float, pauses: list[float]
) -> None:
    throttle = Throttle(iops=rate)
    now = began = 100.0
    throttle.delay(now)
    for count, pause in enumerate(pauses, 1):
        now += pause
        now += throttle.delay(now)
        throttle.admit(4096)
        assert count <= (now - began) * rate + rate * 0.1 + 2


def test_rates_are_not_negative() -> None:
    with pytest.raises(InvalidRequestError):
        Throttle(iops=-1)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), max_size=30), st.integers(1, 10))
def test_joined_statuses_are_a_beginning_of_the_same(
    statuses: list[tuple[int, int]], limit: int
) -> None:
    def spread(runs: list[tuple[int, int]]) -> list[int]:
        return [status for length, status in runs for _ in range(length)]

    found = joined(statuses, limit)
    assert len(found) <= limit
    assert spread(found) == spread(statuses)[: len(spread(found))]
    assert all(one[1] != other[1] for one, other in pairwise(found))
    if len(found) < limit:
        assert spread(found) == spread(statuses)


@given(
    st.integers(0, 1 << 18),
    st.lists(st.tuples(st.integers(1, 100_000), st.booleans()), min_size=1, max_size=6),
)
def test_runs_of_zeroes_cover_what_is_written(offset: int, pieces: list[tuple[int, bool]]) -> None:
    data = b"".join(bytes(length) if zero else b"x" * length for length, zero in pieces)
    position = 0
    for start, length, zero in zero_runs(offset, memoryview(data)):
        assert start == position and length > 0
        assert not zero or not any(data[start : start + length])
        position += length
    assert position == len(data)


def test_zeroes_are_not_written_but_zeroed() -> None:
    calls: list[tuple[str, int, int]] = []

    class Watching(MemoryStore):
        def _write(self, offset: int, view: memoryview) -> None:
            calls.append(("write", offset, len(view)))
            super()._write(offset, view)

        def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
            calls.append(("zero", offset, length))
            super()._write_zeroes(offset, length, unmap)

    device = DetectZeroes(Watching(b"q" * (1 << 18), growable=False), unmap=True)
    device.write(0, b"x" * 65536 + bytes(131072) + b"y" * 65536)
    assert calls == [("write", 0, 65536), ("zero", 65536, 131072), ("write", 196608, 65536)]
    assert device.read(65536, 131072) == bytes(131072)
    calls.clear()
    device.writev(0, [bytes(4096), b"z" * 4096])
    assert calls == [("zero", 0, 4096), ("write", 4096, 4096)]


def test_what_is_read_from_below_is_kept_above() -> None:
    base = MemoryStore(b"b" * (1 << 20), growable=False)
    overlay = temporary_overlay(base)
    device = CopyOnRead(overlay)
    assert {extent.depth for extent in overlay.map()} == {1}
    assert device.locate(0, 4096) is None
    assert device.read(70_000, 10) == b"b" * 10
    depths = {extent.start: extent.depth for extent in overlay.map()}
    assert depths[65536] == 0
    base.write(65536, b"X" * 65536)
    assert device.read(70_000, 10) == b"b" * 10
    device.write(0, b"new")
    assert device.read(0, 4) == b"newb"
    assert all(extent.kind is Kind.DATA for extent in device.map())
    device.close()


def test_zeroes_that_are_read_from_below_are_kept_too() -> None:
    """So that what was read no longer needs the backing file: its clusters are whole."""
    cluster = 65536
    base = MemoryStore(b"b" * 4096 + bytes(15 * cluster - 4096) + b"e" * cluster, growable=False)
    overlay = temporary_overlay(base)
    device = CopyOnRead(overlay)
    overlay.write_zeroes(4 * cluster, cluster)
    for offset, length in ((8192, 10), (2 * cluster + 5, cluster), (5 * cluster, 1)):
        assert device.read(offset, length) == bytes(length)
    own = [(e.start // cluster, e.length // cluster) for e in overlay.map() if not e.depth]
    assert own == [(0, 1), (2, 4)] or own == [(0, 1), (2, 2), (4, 1), (5, 1)]
    before = device.read(0, device.size)
    base.write(0, b"X" * base.size)
    assert device.read(0, device.size) == before
    device.close()


def test_copying_on_read_needs_to_write() -> None:
    readonly = MemoryStore(bytes(512))
    readonly.readonly = True
    with pytest.raises(InvalidRequestError):
        CopyOnRead(readonly)


def test_an_overlay_leaves_what_is_below_as_it_is() -> None:
    base = MemoryStore(b"b" * 102_400, growable=False)
    with temporary_overlay(base) as overlay:
        overlay.write(10, b"changed")
        assert overlay.read(8, 11) == b"bbchangedbb"
        assert overlay.size == 102_400
    assert base.content() == b"b" * 102_400


# -- partitions ----------------------------------------------------------------------------------


def entry(kind: int, first: int, count: int) -> bytes:
    return struct.pack("<4xB3xII", kind, first, count)


def mbr(*entries: bytes) -> bytes:
    return (bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa").ljust(SECTOR, b"\0")


def make(sectors: dict[int, bytes], size: int = 1000) -> MemoryStore:
    content = bytearray(size * SECTOR)
    for sector, data in sectors.items():
        content[sector * SECTOR : sector * SECTOR + len(data)] = data
    return MemoryStore(content, growable=False)


def test_primary_and_logical_partitions_are_found() -> None:
    device = make(
        {
            0: mbr(entry(0x83, 10, 20), bytes(16), entry(5, 100, 500)),
            100: mbr(entry(0x83, 5, 30), entry(5, 50, 100)),
            150: mbr(entry(0x83, 7, 40)),
        }
    )
    assert find_partition(device, 1) == (10 * SECTOR, 20 * SECTOR)
    assert find_partition(device, 5) == (105 * SECTOR, 30 * SECTOR)
    assert find_partition(device, 6) == (157 * SECTOR, 40 * SECTOR)
    for number in (-1, 0, 2, 4, 7, 1000):
        with pytest.raises(NotFoundError):
            find_partition(device, number)


def test_a_gpt_is_read_where_the_mbr_protects_one() -> None:
    header = b"EFI PART" + bytes(64) + (2).to_bytes(8, "little")
    header += (4).to_bytes(4, "little") + (128).to_bytes(4, "little")
    part = b"T" * 16 + bytes(16) + (40).to_bytes(8, "little") + (139).to_bytes(8, "little")
    device = make({0: mbr(entry(0xEE, 1, 999)), 1: header, 2: bytes(128) + part})
    assert find_partition(device, 2) == (40 * SECTOR, 100 * SECTOR)
    for number in (0, 1, 3, 5):
        with pytest.raises(NotFoundError):
            find_partition(device, number)


@pytest.mark.parametrize(
    "device",
    [
        make({}),
        make({}, size=0),
        make({0: mbr(entry(0x83, 10, 5000))}),
        make({0: mbr(entry(0xEE, 1, 9)), 1: b"EFI PART" + b"\xff" * 84}),
        make({0: mbr(entry(0xEE, 1, 9))}, size=1),
    ],
)
def test_damaged_partition_tables_are_refused(device: MemoryStore) -> None:
    with pytest.raises(FormatError):
        find_partition(device, 1)


@given(st.binary(min_size=64, max_size=64), st.integers(1, 12))
def test_no_partition_table_leads_out_of_the_disk(table: bytes, number: int) -> None:
    device = make({0: bytes(446) + table + b"\x55\xaa", 1: table * 8})
    try:
        offset, size = find_partition(device, number)
    except (FormatError, NotFoundError):
        return
    assert 0 < size <= device.size - offset


# -- flushing ------------------------------------------------------------------------------------


def test_a_flush_is_never_answered_by_one_that_began_before() -> None:
    written: list[int] = []
    stable: list[int] = []

    class Recording(MemoryStore):
        def _flush(self) -> None:
            stable[:] = written

    export = Export("", Recording(bytes(512), growable=False))
    for number in range(5):
        written.append(number)
        export.flush()
        assert stable == written


def test_a_hole_of_one_sector_is_a_chunk_of_its_own(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk", 4096, format="qcow2", options={"cluster_size": 512})
    with vdisk.open(tmp_path / "disk", "r+") as disk:
        disk.write(0, b"d" * 4096)
        disk.write_zeroes(2048, 512)
        read = Request(Command.NBD_CMD_READ, CommandFlag(0), 1, 2048, 1024)
        split, whole = (
            Job(Export("", disk), (), [read], can_split).run()[0].parts
            for can_split in (True, False)
        )
    assert split == [(2048, 512), (2560, b"d" * 512)]
    assert whole == [(2048, bytes(512) + b"d" * 512)]
