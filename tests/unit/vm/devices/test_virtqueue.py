"""Virtqueues: chains as a driver makes them, and as a hostile one forges them."""

from __future__ import annotations

import random
import struct

import pytest

from tests.tools.virtio_driver import Allocator, DriverQueue, PackedDriver, SplitDriver
from vdisk.vm.accel.llvm import LlvmAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.devices import virtqueue
from vdisk.vm.devices.virtqueue import (
    FEW,
    LARGEST_QUEUE,
    BrokenQueueError,
    Chain,
    Layout,
    SplitQueue,
    Virtqueue,
)
from vdisk.vm.devices.virtqueue_packed import PackedQueue
from vdisk.vm.memory import Gathered, GuestMemory

MIB = 1 << 20
RINGS, DATA = 1 * MIB, 2 * MIB

DRIVERS = [SplitDriver, PackedDriver]
NEXT, WRITE, INDIRECT = 1, 2, 4


def pair(kind: type[DriverQueue], size: int = 8, **options: bool) -> tuple[DriverQueue, Virtqueue]:
    memory = GuestMemory(4 * MIB)
    driver = kind(memory, Allocator(RINGS), size, **options)
    device = (PackedQueue if driver.packed else SplitQueue)(memory, driver.layout())
    return driver, device


def popped(device: Virtqueue) -> Chain:
    chain = device.pop()
    assert chain is not None
    return chain


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("kind", DRIVERS)
def test_a_chain_is_the_memory_that_it_names(kind: type[DriverQueue], indirect: bool) -> None:
    driver, device = pair(kind)
    driver.memory.write(DATA, b"request")
    key = driver.add(
        [(DATA, 3), (DATA + 3, 4)], [(DATA + 4096, 8), (DATA + 9000, 1)], indirect=indirect
    )
    chain = popped(device)
    assert [bytes(view) for view in chain.readable] == [b"request"]  # neighbours are one
    assert [len(view) for view in chain.writable] == [8, 1]
    chain.writable[0][:3] = b"yes"
    assert device.pop() is None
    device.push(chain, 3)
    assert driver.used() == []
    assert device.publish()
    assert driver.used() == [(key, 3)]
    assert driver.memory.read(DATA + 4096, 3) == b"yes"


@pytest.mark.parametrize("event_index", [False, True])
@pytest.mark.parametrize("size", [1, 2, 8, 64])
@pytest.mark.parametrize("kind", DRIVERS)
def test_any_life_gives_every_buffer_back_once(
    kind: type[DriverQueue], size: int, event_index: bool
) -> None:
    """Buffers of any length come back in any order, and nobody sleeps while there is work."""
    rng = random.Random(size)
    driver, device = pair(kind, size, event_index=event_index)
    out: dict[int, list[int]] = {}
    held: list[tuple[Chain, int]] = []
    device.await_notification()
    kicked = interrupted = False
    for _ in range(3000):
        if rng.random() < 0.6 and driver.room:
            indirect = rng.random() < 0.3
            count = rng.randint(1, 5 if indirect else min(driver.room, 4))
            lengths = [rng.randint(1, 100) for _ in range(count)]
            cut = rng.randint(0, count)
            parts = [(DATA + 4096 * number, length) for number, length in enumerate(lengths)]
            out[driver.add(parts[:cut], parts[cut:], indirect=indirect)] = lengths
        if rng.random() < 0.3:
            kicked |= driver.wants_kick()
        if kicked and rng.random() < 0.5:
            kicked = False
            device.pause_notifications()
            while True:
                while (chain := device.pop()) is not None:
                    views = chain.readable + chain.writable
                    held.append((chain, sum(map(len, views))))
                if not device.await_notification():
                    break
        if held and rng.random() < 0.5:
            for _ in range(rng.randint(1, len(held))):
                chain, total = held.pop(rng.randrange(len(held)))
                device.push(chain, total)
            interrupted |= device.publish()
        if interrupted:
            interrupted = False
            for key, written in driver.used():
                assert written == sum(out.pop(key))
        if not driver.room:  # what nobody was told of has to be found all the same
            assert kicked or held or interrupted or driver.wants_kick()
            kicked = True
    assert device.held == len(held) if not driver.packed else True


@pytest.mark.parametrize("kind", DRIVERS)
def test_saved_indices_go_on(kind: type[DriverQueue]) -> None:
    driver, device = pair(kind, 4)
    for _ in range(7):
        driver.add([(DATA, 1)])
        device.push(popped(device), 0)
        device.publish()
        driver.used()
    again = type(device)(driver.memory, driver.layout())
    again.load(device.save())
    key = driver.add([(DATA, 1)])
    again.push(popped(again), 0)
    assert again.publish()
    assert driver.used() == [(key, 0)]
    with pytest.raises(BrokenQueueError):
        again.load([1 << 20] * 4)
    with pytest.raises(BrokenQueueError):
        again.load([])


def split(size: int = 8, *, indirect: bool = True) -> tuple[SplitDriver, SplitQueue]:
    driver, device = pair(SplitDriver, size, indirect=indirect)
    assert isinstance(driver, SplitDriver) and isinstance(device, SplitQueue)
    return driver, device


FORGED = {
    "loop": [(DATA, 1, NEXT, 0)],
    "two in a loop": [(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)],
    "next is none": [(DATA, 1, NEXT, 8)],
    "out of RAM": [(4 * MIB - 1, 2, 0, 0)],
    "far out of RAM": [((1 << 64) - 1, 1 << 31, 0, 0)],
    "readable after writable": [(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)],
    "indirect with next": [(DATA, 16, INDIRECT | NEXT, 1), (DATA, 1, 0, 0)],
    "indirect of no entry": [(DATA, 0, INDIRECT, 0)],
    "indirect of half an entry": [(DATA, 24, INDIRECT, 0)],
    "indirect of too many": [(DATA, 16 * 1025, INDIRECT, 0)],
    "indirect out of RAM": [(4 * MIB - 16, 32, INDIRECT, 0)],
    "more than 4 GiB": [(0, 1 << 31, NEXT, 1), (0, 1 << 31, NEXT, 2), (0, 1, 0, 0)],
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_chain_is_refused(name: str) -> None:
    driver, device = split()
    for number, fields in enumerate(FORGED[name]):
        driver.write_descriptor(number, *fields)
    driver.offer(0)
    with pytest.raises(BrokenQueueError):
        device.pop()


@pytest.mark.parametrize("entry", [(DATA, 16, INDIRECT, 0), (DATA, 1, NEXT, 0), (DATA, 1, NEXT, 1)])
def test_a_forged_table_is_refused(entry: tuple[int, int, int, int]) -> None:
    driver, device = split()
    driver.memory.write(DATA, struct.pack("<QIHH", *entry))
    driver.write_descriptor(0, DATA, 16, INDIRECT, 0)
    driver.offer(0)
    with pytest.raises(BrokenQueueError):
        device.pop()


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges, neighbours as one."""
    found: list[tuple[int, int]] = []
    for start, length in ranges:
        if found and sum(found[-1]) == start:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((start, length))
    return found


def _long_table(rng: random.Random) -> list[list[int]]:
    """Descriptors in order, pages upwards, downwards or anywhere; sometimes forged a little."""
    count = rng.choice([rng.randrange(1, 40), rng.randrange(60, 100)])
    first = rng.randrange(count + 1)
    step = rng.choice([0x1000, -0x1000, 0x3000])
    base = DATA + (0x100000 if step < 0 else 0)
    table = []
    for number in range(count):
        flags = (NEXT if number < count - 1 else 0) | (WRITE if number >= first else 0)
        length = rng.choice([0x1000, 0x200, 0] if rng.random() < 0.01 else [0x1000, 0x200])
        table.append([base + step * number, length, flags, number + 1])
    for _ in range(rng.choice([0, 0, 1, 2])):
        entry = rng.choice(table)
        field = rng.randrange(4)
        entry[field] = rng.choice(
            [[1 << 40, 16], [1 << 31, 5], [entry[2] ^ WRITE, entry[2] ^ NEXT, 4], [0, 3, 900]][
                field
            ]
        )
    return table


@pytest.mark.parametrize("seed", range(200))
def test_a_table_read_at_once_means_what_it_does_followed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _long_table(random.Random(seed))
    driver, device = pair(SplitDriver)
    assert isinstance(driver, SplitDriver)
    at = DATA + 0x180000
    driver.memory.write(DATA, random.Random(1).randbytes(0x180000))
    driver.memory.write(at, b"".join(struct.pack("<QIHH", *entry) for entry in table))
    driver.write_descriptor(0, at, 16 * len(table), INDIRECT, 0)
    engine = LlvmAccelerator(driver.memory, Bus(), hot=False)
    engine.vcpu(0)
    gather, taken = driver.memory.gather, []

    def noted(place: int, count: int) -> Gathered | None:
        assert gather is not None
        taken.append(gather(place, count))
        return taken[-1]

    driver.memory.gather = noted
    found = []
    for how in ("gathered", "at once", "followed"):
        if how == "at once":
            driver.memory.gather = None
        elif how == "followed":
            monkeypatch.setattr(virtqueue.Parts, "add_in_order", lambda *_: False)
        try:
            chain = device._read_chain(0)
        except BrokenQueueError as error:
            found.append(str(error))
        else:
            sizes = [sum(map(len, each)) for each in (chain.readable, chain.writable)]
            dirtied: list[tuple[int, int]] = []
            driver.memory.on_dirtied(dirtied.extend)
            chain.dirtied(driver.memory)
            read = hash(b"".join(chain.readable))
            found.append(f"{sizes} {chain.room} {joined(dirtied)} {read}")
    assert found[0] == found[1] == found[2]
    if len(table) < FEW:
        assert not taken
    elif _is_in_order(table):
        assert taken[0] is not None


def _is_in_order(table: list[list[int]]) -> bool:
    """Whether a table is what an engine reads, having 2 MiB from DATA on."""
    flags = [entry[2] for entry in table]
    wanted = sorted(flags[:-1]) == flags[:-1] and {*flags[:-1]} <= {NEXT, NEXT | WRITE}
    wanted &= flags[-1] == (WRITE if WRITE & flags[-2] else flags[-1] & WRITE)
    following = [entry[3] for entry in table[:-1]] == [*range(1, len(table))]
    inside = all(at >= DATA and at + size <= DATA + 0x200000 and size for at, size, *_ in table)
    return wanted and following and inside


def test_a_header_wherever_it_is_cut() -> None:
    driver, device = pair(SplitDriver, 16)
    driver.memory.write(DATA, bytes(range(32)))
    for cuts in ([8, 24], [3, 5, 24], [1, 31], [32], [4, 4]):
        at, parts = DATA, []
        for length in cuts:
            parts.append((at, length))
            at += length + 0x1000
            driver.memory.write(at, bytes(range(sum(cuts[: len(parts)]), 32)))
        driver.add(parts)
        head, rest = popped(device).head(8)
        assert bytes(head) == bytes(range(8))
        assert b"".join(rest) == bytes(range(8, sum(cuts)))
    driver.add([(DATA, 4), (DATA + 0x2000, 3)])
    with pytest.raises(BrokenQueueError, match="header"):
        popped(device).head(8)


def test_indirect_has_to_be_negotiated() -> None:
    driver, device = split(indirect=False)
    driver.write_descriptor(0, DATA, 16, INDIRECT, 0)
    driver.offer(0)
    with pytest.raises(BrokenQueueError):
        device.pop()


def test_a_head_or_an_index_out_of_range_is_refused() -> None:
    driver, device = split()
    driver.offer(8)
    with pytest.raises(BrokenQueueError):
        device.pop()
    driver, device = split()
    driver.memory.write(driver.avail + 2, struct.pack("<H", 9))
    with pytest.raises(BrokenQueueError):
        device.pop()


@pytest.mark.parametrize("kind", DRIVERS)
def test_more_buffers_than_the_ring_holds_are_refused(kind: type[DriverQueue]) -> None:
    driver, device = pair(kind, 4, event_index=False)
    if isinstance(driver, SplitDriver):
        driver.write_descriptor(0, DATA, 1, 0, 0)
        with pytest.raises(BrokenQueueError):
            for _ in range(5):
                driver.offer(0)
                assert device.pop() is not None
        return
    with pytest.raises(BrokenQueueError):
        for turn in range(3):
            flags = 1 << 7 if turn % 2 == 0 else 1 << 15
            for number in range(4):
                entry = struct.pack("<QIHH", DATA, 1, 0, flags)
                driver.memory.write(driver.layout().descriptors + 16 * number, entry)
            for _ in range(4):
                assert device.pop() is not None


def test_a_packed_chain_without_end_is_refused() -> None:
    driver, device = pair(PackedDriver, 4)
    entry = struct.pack("<QIHH", DATA, 1, 0, 1 << 7 | NEXT)
    driver.memory.write(driver.layout().descriptors, entry * 4)
    with pytest.raises(BrokenQueueError):
        device.pop()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(0, RINGS, RINGS, RINGS),
        Layout(3, RINGS, RINGS, RINGS),
        Layout(LARGEST_QUEUE * 2, RINGS, RINGS, RINGS),
        Layout(8, RINGS + 8, RINGS, RINGS),
        Layout(8, RINGS, RINGS + 1, RINGS),
        Layout(8, RINGS, RINGS, RINGS + 2),
        Layout(8, 4 * MIB - 64, RINGS, RINGS),
        Layout(8, RINGS, 1 << 63, RINGS),
    ],
)
def test_rings_that_cannot_be(layout: Layout) -> None:
    with pytest.raises(BrokenQueueError):
        SplitQueue(GuestMemory(4 * MIB), layout)
