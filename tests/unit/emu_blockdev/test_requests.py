"""Requests of a disk controller: done at once or by workers, in order where order matters."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

import vdisk
from tests.tools.disks import Gated, Submitter
from tests.tools.patience import PATIENCE
from vdisk.emu_blockdev import (
    MAX_REQUEST,
    EmuBlockDevice,
    ErrorPolicy,
    OnError,
    Operation,
    Request,
)
from vdisk.errors import DeviceError, NoSpaceError, ReadOnlyError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * 8192)
    return path


def disk_of(path: Path, **options: object) -> EmuBlockDevice:
    return EmuBlockDevice(vdisk.open(path, "r+"), **options)  # type: ignore[arg-type]


def test_a_read_fills_slices_of_memory_at_once(raw: Path) -> None:
    disk, ram = disk_of(raw), memoryview(bytearray(8192))
    views = [ram[4096 : 4096 + 512], ram[0:100], ram[1000 : 1000 + 412]]
    request = Request(Operation.READ, 512, 1024, views)
    with disk.lock:
        assert disk.submit(request)
    assert request.error is None
    content = raw.read_bytes()[512:1536]
    assert bytes(ram[4096:4608]) + bytes(ram[:100]) + bytes(ram[1000:1412]) == content
    assert disk.statistics.at_once == 1
    assert disk.statistics.bytes[Operation.READ] == 1024
    disk.close()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "chain"])
@pytest.mark.parametrize("threads", [0, 4])
def test_any_sequence_is_what_the_device_holds(tmp_path: Path, kind: str, threads: int) -> None:
    path = tmp_path / "disk"
    if kind == "chain":
        base = tmp_path / "base"
        vdisk.create(base, 4 * MIB, format="qcow2")
        vdisk.create(path, format="qcow2", backing_file=str(base), backing_format="qcow2")
    else:
        vdisk.create(path, 4 * MIB, format=kind)
    image = vdisk.open(path, "r+", format="raw" if kind == "raw" else None)
    guest = Submitter(EmuBlockDevice(image, threads=threads))
    guest.live(steps=150, seed=threads)
    guest.disk.close()
    with vdisk.open(path, format="raw" if kind == "raw" else None) as device:
        assert device.read(0, device.size) == bytes(guest.expected)


def test_bad_requests_are_refused_and_counted(raw: Path) -> None:
    disk = disk_of(raw, sector_size=4096)
    half = memoryview(bytearray(512))
    for request in (
        Request(Operation.READ, 0, 512, [half]),
        Request(Operation.READ, disk.size, 4096, [memoryview(bytearray(4096))]),
        Request(Operation.READ, -4096, 4096, [memoryview(bytearray(4096))]),
        Request(Operation.READ, 0, 4096, [half]),
        Request(Operation.WRITE_ZEROES, 0, 1 << 64),
    ):
        assert disk.submit(request)
        assert request.error is not None
    assert sum(disk.statistics.invalid) == 5
    disk.close()


def test_a_request_longer_than_the_limit_is_refused() -> None:
    disk = EmuBlockDevice(MemoryStore(bytes(MAX_REQUEST + 512), growable=False))
    request = Request(Operation.READ, 0, MAX_REQUEST + 512, [memoryview(bytearray(512))])
    assert disk.submit(request)
    assert request.error is not None
    disk.close()


def test_a_flush_waits_for_writes_before_it_and_not_for_those_after() -> None:
    device = Gated(MemoryStore(bytes(MIB), growable=False))
    guest = Submitter(EmuBlockDevice(device))
    first = guest.write(0, b"a" * 512)
    flush = guest.flush()
    assert device.entered.wait(PATIENCE)
    second = guest.write(512, b"b" * 512)
    device.open(1)
    guest.wait(second)  # it overtakes both
    assert not first.finished and not flush.finished
    assert "flush" not in device.events
    device.open(0)
    guest.wait(first, flush)
    assert device.events.index("flush") > device.events.index("written 0")
    guest.disk.close()


def test_write_through_flushes_before_a_write_is_done(raw: Path) -> None:
    device = Gated(vdisk.open(raw, "r+"), gated=False)
    guest = Submitter(EmuBlockDevice(device, write_cache=False))
    guest.wait(guest.write(0, b"x" * 512))
    assert device.events[-2:] == ["written 0", "flush"]
    guest.disk.close()


def test_fua_flushes_although_there_is_a_cache() -> None:
    device = Gated(MemoryStore(bytes(4096), growable=False), gated=False)
    guest = Submitter(EmuBlockDevice(device))
    guest.wait(guest.submit(Request(Operation.WRITE, 0, 512, [memoryview(bytes(512))], fua=True)))
    assert device.events == ["written 0", "flush"]
    guest.disk.close()


def faulty(policy: ErrorPolicy, number: int, iotype: IoType, threads: int = 4) -> Submitter:
    device = Faults(MemoryStore(bytes(MIB), growable=False))
    guest = Submitter(EmuBlockDevice(device, policy=policy, threads=threads))
    where = Where(iotypes=frozenset({iotype}), once=True)
    device.set_rules(InjectError(errno=number, where=where))
    return guest


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_are_reported_or_ignored(threads: int) -> None:
    actions: list[OnError] = []
    guest = faulty(ErrorPolicy(), errno.EIO, IoType.READ, threads)
    guest.disk.on_error = lambda _request, _error, action: actions.append(action)
    read = guest.read(0, 512)
    guest.wait(read)
    assert read.request.error is not None
    assert guest.disk.statistics.failed[Operation.READ] == 1
    guest.disk.close()
    guest = faulty(ErrorPolicy(rerror=OnError.IGNORE), errno.EIO, IoType.READ, threads)
    guest.disk.on_error = lambda _request, _error, action: actions.append(action)
    read = guest.read(0, 512)
    guest.wait(read)
    assert read.request.error is None
    assert actions == [OnError.REPORT, OnError.IGNORE]
    guest.disk.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_full_disk_stops_the_machine_until_it_resumes(threads: int) -> None:
    guest = faulty(ErrorPolicy(), errno.ENOSPC, IoType.WRITE, threads)
    stops = []
    stopped = threading.Event()

    def on_error(request: Request, error: Exception, action: OnError) -> None:
        assert action is OnError.STOP
        stops.append((request, error))
        stopped.set()

    guest.disk.on_error = on_error
    write, flush = guest.write(0, b"x" * 512), guest.flush()
    assert stopped.wait(PATIENCE)
    guest.disk.drain()
    assert isinstance(stops[0][1], NoSpaceError)
    assert guest.disk.stopped and not write.finished
    assert not flush.finished  # it must not promise what was not written
    guest.disk.resume()
    guest.wait(write, flush)
    assert write.request.error is None
    assert guest.disk.device is not None
    assert guest.disk.device.read(0, 1) == b"x"
    assert not guest.disk.stopped
    guest.disk.close()


def test_cancel_forgets_what_was_kept() -> None:
    guest = faulty(ErrorPolicy(werror=OnError.STOP), errno.EIO, IoType.WRITE, 0)
    write, flush = guest.write(0, b"x" * 512), guest.flush()
    guest.disk.cancel()
    guest.disk.resume()
    assert not write.finished and not flush.finished
    assert guest.disk.in_flight == 0
    guest.wait(guest.flush())
    guest.disk.close()


def test_get_id_and_discard_that_is_off() -> None:
    disk = EmuBlockDevice(MemoryStore(b"x" * 4096, growable=False), serial="S1", discard=False)
    ram = memoryview(bytearray(b"?" * 20))
    assert disk.submit(Request(Operation.GET_ID, views=[ram[:1], ram[1:]]))
    assert bytes(ram) == b"S1".ljust(20, b"\0")
    assert disk.submit(Request(Operation.DISCARD, 0, 4096))
    assert disk.device is not None
    assert disk.device.read(0, 1) == b"x"
    disk.close()


def test_a_read_only_disk_refuses_to_be_written(raw: Path) -> None:
    disk = disk_of(raw, readonly=True)
    request = Request(Operation.WRITE, 0, 512, [memoryview(bytes(512))])
    assert disk.submit(request)
    assert isinstance(request.error, ReadOnlyError)
    disk.close()
    with pytest.raises(ReadOnlyError):
        EmuBlockDevice(vdisk.open(raw), readonly=False)


def test_snapshot_keeps_the_image_as_it_is(raw: Path, tmp_path: Path) -> None:
    before = raw.read_bytes()
    disk = EmuBlockDevice(vdisk.open(raw), snapshot=True, snapshot_directory=str(tmp_path))
    guest = Submitter(disk)
    guest.wait(guest.write(0, b"new" * 1024 * 4))
    read = guest.read(0, 12288)
    guest.wait(read)
    assert read.data == b"new" * 4096
    disk.close()
    assert raw.read_bytes() == before


def test_a_throttled_disk_never_keeps_the_submitter_waiting(raw: Path) -> None:
    disk = disk_of(raw, throttle={"iops-total": 10})
    guest = Submitter(disk)
    reads = [guest.read(0, 512) for _ in range(4)]
    assert disk.statistics.at_once == 0
    guest.wait(*reads)
    assert disk.statistics.nanoseconds[Operation.READ] > 100_000_000
    disk.close()


def test_the_lock_is_free_while_draining() -> None:
    device = Gated(MemoryStore(bytes(4096), growable=False))
    guest = Submitter(EmuBlockDevice(device))
    write = guest.write(0, b"x" * 512)
    assert device.entered.wait(PATIENCE)
    threading.Timer(0.05, device.open, [0]).start()
    with guest.disk.lock, guest.disk.lock:
        guest.disk.drain()
        assert write.finished
    guest.disk.close()


@pytest.mark.parametrize("error", [None, DeviceError("bad sector")])
def test_the_lock_is_free_while_firmware_waits(error: DeviceError | None) -> None:
    device = Gated(MemoryStore(bytes(4096), growable=False))
    disk = EmuBlockDevice(device)
    request = Request(Operation.WRITE, 512, 512, [memoryview(b"f" * 512)])
    done = []
    if error is not None:
        device.inner.writev = Mock(side_effect=error)  # type: ignore[method-assign]

    def firmware() -> None:
        with disk.lock, disk.lock:
            done.append(disk.perform(request))

    thread = threading.Thread(target=firmware)
    thread.start()
    assert device.entered.wait(PATIENCE)
    with disk.lock:  # nobody else holds it
        assert not done
        device.open(0)
        disk.drain()
    thread.join(PATIENCE)
    assert done == [True]
    assert request.error is error
    assert disk.statistics.operations[Operation.WRITE] == int(error is None)
    disk.close()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_short_write_over_what_is_there_goes_to_the_file(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"disk.{format}"
    vdisk.create(path, MIB, format=format)
    with vdisk.open(path, "r+", format=format) as image:
        image.write(0, b"a" * 4096)
    disk = EmuBlockDevice(vdisk.open(path, "r+", format=format))
    assert disk.device is not None
    disk.device.writev = Mock(side_effect=DeviceError("not by this way"))  # type: ignore[method-assign]
    views = [memoryview(b"b" * 512), memoryview(b"c" * 1024)]
    write = Submitter(disk).submit(Request(Operation.WRITE, 1024, 1536, views))
    assert write.finished and write.request.error is None
    assert disk.statistics.at_once == 1
    assert disk.device.read(0, 4096) == b"a" * 1024 + b"b" * 512 + b"c" * 1024 + b"a" * 1536
    disk.close()


def test_a_short_write_elsewhere_is_the_image_s(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, MIB, format="qcow2")
    disk = EmuBlockDevice(vdisk.open(path, "r+"))
    guest = Submitter(disk)
    write = guest.write(65536 - 512, b"n" * 1024)  # two clusters that are not there yet
    assert write.finished and write.request.error is None
    disk.close()
    with vdisk.open(path) as image:
        assert image.read(65536 - 1024, 2048) == bytes(512) + b"n" * 1024 + bytes(512)


def test_a_short_write_that_the_file_refuses_is_reported(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Mock(side_effect=OSError(errno.EIO, "I/O error"))
    monkeypatch.setattr(os, "pwritev", refused)
    disk = disk_of(raw)
    write = Submitter(disk).write(4096, b"x" * 512)
    assert write.finished and write.request.error is not None
    assert refused.call_count == 2, "once more by the device, which says what is wrong"
    disk.close()
