"""From a log of writes come the disks that a cut can leave, all of them and no others."""

from __future__ import annotations

import random

from vdisk.filters.writelog import SECTOR, Cuts, Entry, Operation, WriteLog
from vdisk.stores.memory import MemoryStore

OLD, A, B = b"o" * SECTOR, b"a" * SECTOR, b"b" * SECTOR


def logged(*writes: tuple[int, bytes], size: int = 2) -> tuple[WriteLog, Cuts]:
    """A disk of old sectors, written to; and its cuts at the end of the log."""
    log = WriteLog(MemoryStore(OLD * size))
    for sector, data in writes:
        log.write(sector * SECTOR, data)
    cuts = Cuts(OLD * size, log.entries)
    cuts.advance(len(log.entries))
    return log, cuts


def contents(disks: list[MemoryStore] | None) -> set[bytes]:
    assert disks is not None
    found = [disk.content() for disk in disks]
    assert len(found) == len(set(found)), "a disk was built twice"
    return set(found)


def test_sectors_are_kept_or_lost_each_by_itself() -> None:
    _log, cuts = logged((0, A + B))
    assert contents(cuts.all(16)) == {OLD + OLD, A + OLD, OLD + B, A + B}


def test_of_several_versions_any_may_be_the_last() -> None:
    _log, cuts = logged((0, A), (0, B))
    assert contents(cuts.all(16)) == {OLD * 2, A + OLD, B + OLD}


def test_parts_of_one_sector_may_come_in_any_order() -> None:
    log = WriteLog(MemoryStore(OLD))
    log.write(0, b"12")
    log.write(1, b"34")
    cuts = Cuts(OLD, log.entries)
    cuts.advance(2)
    found = {content[:3] for content in contents(cuts.all(16))}
    assert found == {b"ooo", b"12o", b"o34", b"134", b"124"}


def test_too_many_are_not_all_built() -> None:
    _log, cuts = logged((0, A + B))
    assert cuts.all(3) is None
    many = [(sector, A) for sector in range(200)]
    assert logged(*many, size=200)[1].all(1 << 20) is None


def test_what_was_flushed_is_kept() -> None:
    log = WriteLog(MemoryStore(OLD * 2))
    log.write(0, A)
    log.flush()
    log.write(SECTOR, B)
    cuts = Cuts(OLD * 2, log.entries)
    cuts.advance(3)
    assert contents(cuts.all(16)) == {A + OLD, A + B}


def test_a_new_size_alone_is_there_or_not() -> None:
    log = WriteLog(MemoryStore(OLD))
    log.truncate(2 * SECTOR)
    cuts = Cuts(OLD, log.entries)
    cuts.advance(1)
    assert contents(cuts.all(16)) == {OLD, OLD + bytes(SECTOR)}
    log.write(0, A)
    cuts.advance(2)
    assert cuts.all(16) is None


def test_some_are_of_all() -> None:
    _log, cuts = logged((0, A), (1, B), (0, B))
    possible = contents(cuts.all(16))
    for seed in range(20):
        some = cuts.some(random.Random(seed), 9)
        assert len(some) == 9
        assert {disk.content() for disk in some} <= possible
    assert len(cuts.some(random.Random(0), 2)) == 2


def test_nothing_in_flight_leaves_one_disk() -> None:
    _log, cuts = logged()
    assert contents(cuts.all(1)) == {OLD * 2}
    assert [disk.content() for disk in cuts.some(random.Random(0), 5)] == [OLD * 2]


def test_devices_that_share_a_log_flush_by_themselves() -> None:
    entries: list[Entry] = []
    left, right = (
        WriteLog(MemoryStore(OLD), entries=entries, device=name) for name in ("left", "right")
    )
    left.write(0, A)
    right.write(0, B)
    left.flush()
    left.mark("flushed")
    assert [entry.operation for entry in entries][-2:] == [Operation.FLUSH, Operation.MARK]
    cuts = {name: Cuts(OLD, entries, name) for name in ("left", "right")}
    for one in cuts.values():
        one.advance(len(entries))
    assert contents(cuts["left"].all(4)) == {A}
    assert contents(cuts["right"].all(4)) == {OLD, B}
