"""Requests fail when, where and how the rules say, and only then."""

from __future__ import annotations

import errno

import pytest

from vdisk.errors import DeviceError, NoSpaceError, VdiskError
from vdisk.filters.faults import (
    EVENTS,
    Corrupt,
    Delay,
    Effect,
    Faults,
    InjectError,
    IoType,
    SetState,
    Where,
)
from vdisk.filters.writelog import WriteLog
from vdisk.stores.memory import MemoryStore

CONTENT = bytes(range(256)) * 16
WRITES = frozenset({IoType.WRITE})
READS = frozenset({IoType.READ})


def faulty(*rules: object) -> Faults:
    return Faults(MemoryStore(CONTENT), rules)  # type: ignore[arg-type]


def outcomes(device: Faults, count: int) -> list[bool]:
    """Which of so many reads succeed."""
    found = []
    for _ in range(count):
        try:
            device.read(0, 512)
            found.append(True)
        except DeviceError:
            found.append(False)
    return found


def test_without_rules_all_passes() -> None:
    device = faulty()
    device.write(10, b"abc")
    device.write_zeroes(0, 5)
    device.discard(100, 5)
    device.truncate(2000)
    device.flush()
    assert device.read(8, 6) == CONTENT[8:10] + b"abc" + CONTENT[13:14]
    assert device.size == 2000
    assert device.requests[IoType.WRITE] == device.requests[IoType.READ] == 1


def test_an_error_has_its_number_place_and_operation() -> None:
    with pytest.raises(NoSpaceError, match="injected") as caught:
        faulty(InjectError(errno=errno.ENOSPC)).write(512, b"x")
    assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 512)
    assert caught.value.operation == "write"


def test_once_and_after_some() -> None:
    assert outcomes(faulty(InjectError()), 3) == [False] * 3
    assert outcomes(faulty(InjectError(where=Where(once=True))), 3) == [False, True, True]
    assert outcomes(faulty(InjectError(where=Where(skip=2))), 4) == [True, True, False, False]
    late = InjectError(where=Where(skip=1, once=True))
    assert outcomes(faulty(late), 4) == [True, False, True, True]


@pytest.mark.parametrize(
    ("offset", "length", "fails"),
    [(0, 1000, False), (1000, 1, True), (1023, 500, True), (1024, 1, False), (0, 4096, True)],
)
def test_a_range_is_what_requests_touch(offset: int, length: int, fails: bool) -> None:
    device = faulty(InjectError(where=Where(offset=1000, length=24)))
    try:
        device.read(offset, length)
    except DeviceError:
        assert fails
    else:
        assert not fails
    device.flush()  # is nowhere


def test_kinds_of_requests() -> None:
    device = faulty(InjectError(where=Where(iotypes=frozenset({IoType.FLUSH, IoType.TRUNCATE}))))
    device.read(0, 1)
    device.write(0, b"x")
    for call in (device.flush, lambda: device.truncate(0)):
        with pytest.raises(DeviceError):
            call()
    assert device.size == len(CONTENT)


@pytest.mark.parametrize(
    ("effect", "written"), [(Effect.NONE, 0), (Effect.HALF, 1024), (Effect.DONE, 2048)]
)
def test_how_much_of_a_failed_request_takes_place(effect: Effect, written: int) -> None:
    store = MemoryStore(CONTENT)
    device = Faults(store, [InjectError(effect=effect)])
    with pytest.raises(DeviceError):
        device.writev(0, [bytes(1000), bytes(1048)])
    assert store.content() == bytes(written) + CONTENT[written:]
    buffer = bytearray(b"?" * 2048)
    with pytest.raises(DeviceError):
        device.read_into(0, buffer)
    assert bytes(buffer) == store.content()[:written] + b"?" * (2048 - written)


@pytest.mark.parametrize(("offset", "length", "end"), [(200, 2048, 1024), (200, 300, 200)])
def test_half_of_a_write_ends_with_a_sector(offset: int, length: int, end: int) -> None:
    store = MemoryStore(CONTENT)
    with pytest.raises(DeviceError):
        Faults(store, [InjectError(effect=Effect.HALF)]).write(offset, bytes(length))
    assert store.content() == CONTENT[:offset] + bytes(end - offset) + CONTENT[end:]


@pytest.mark.parametrize("effect", Effect)
def test_a_flush_is_done_or_not(effect: Effect) -> None:
    log = WriteLog(MemoryStore())
    with pytest.raises(DeviceError):
        Faults(log, [InjectError(effect=effect)]).flush()
    assert len(log.entries) == (effect is Effect.DONE)


def test_events_lead_from_state_to_state() -> None:
    device = faulty(
        SetState("l2_update", state=1, new_state=2),
        SetState("l2_update", state=2, new_state=3),
        InjectError("l2_update", state=2, where=Where(iotypes=WRITES)),
    )
    device.note("l2_update")
    assert device.state == 2
    device.write(0, b"first")
    device.note("l2_update")
    assert device.state == 3
    with pytest.raises(DeviceError):
        device.write(0, b"second")
    device.note("l2_update")  # has no rule for this state, so nothing changes
    with pytest.raises(DeviceError):
        device.write(0, b"third")
    assert device.events["l2_update"] == 3


def test_newly_armed_rules_replace_the_old() -> None:
    device = faulty(
        InjectError("l2_update", where=Where(iotypes=WRITES)),
        InjectError("l1_update", where=Where(iotypes=READS)),
    )
    device.note("l2_update")
    device.note("l1_update")
    device.write(0, b"x")
    with pytest.raises(DeviceError):
        device.read(0, 1)


def test_a_rule_for_once_is_spent_for_good() -> None:
    device = faulty(InjectError("l2_update", where=Where(once=True)))
    device.note("l2_update")
    assert outcomes(device, 2) == [False, True]
    device.note("l2_update")
    assert outcomes(device, 1) == [True]


def test_writes_are_events_themselves() -> None:
    device = faulty(InjectError("pwritev_zero"))
    device.write(0, b"x")
    with pytest.raises(DeviceError):
        device.write_zeroes(0, 1)
    assert device.events == {"none": 1, "pwritev": 1, "pwritev_done": 1, "pwritev_zero": 1}
    assert set(device.events) <= EVENTS


def test_corruption_of_what_is_read_and_written() -> None:
    store = MemoryStore(bytes(4096))
    bad = Corrupt(where=Where(iotypes=READS, offset=100, length=2))
    assert Faults(store, [bad]).read(99, 4) == b"\0\xff\xff\0"
    bad = Corrupt(where=Where(iotypes=WRITES, offset=100, length=2, once=True))
    data = b"\x0f" * 4
    Faults(store, [bad]).write(99, data)
    assert store.content()[99:103] == b"\x0f\xf0\xf0\x0f"
    assert data == b"\x0f" * 4


def test_delays() -> None:
    slept: list[float] = []
    rules = [Delay(0.25, where=Where(iotypes=READS)), InjectError(where=Where(iotypes=WRITES))]
    device = Faults(MemoryStore(CONTENT), rules, sleep=slept.append)
    device.read(0, 1)
    with pytest.raises(DeviceError):
        device.write(0, b"x")
    assert slept == [0.25]


def test_nobody_reads_past_the_rules_by_the_map() -> None:
    device = faulty(InjectError())
    extents = list(device.map())
    assert {extent.source for extent in extents} == {device}
    assert device.locate(0, 10) == (device, 0)
    status = faulty(InjectError(where=Where(iotypes=frozenset({IoType.BLOCK_STATUS}))))
    with pytest.raises(DeviceError):
        list(status.map())


def test_events_pass_through_to_faults_below() -> None:
    below = faulty(InjectError("l2_update"))
    above = Faults(below)
    above.note("l2_update")
    with pytest.raises(VdiskError):
        above.read(0, 1)
