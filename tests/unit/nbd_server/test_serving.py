"""What a client gets, whichever way the server answers: the hot path or the state machine."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vdisk
from tests.tools.nbd_pipeline import Answer, Pipeline, client
from tests.tools.nbd_server import Running, running
from tests.tools.patience import PATIENCE, eventually
from vdisk.block import BlockDevice
from vdisk.errors import DeviceError
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.events import StatusReceived
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import QEMU_ALLOCATION_DEPTH, ErrorValue
from vdisk.nbd_server import Export, Server
from vdisk.nbd_serving.channel import Channel
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SIZE = 4 << 20

BOTH = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
STYLES = pytest.mark.parametrize("style", list(HeaderStyle), ids=lambda style: style.value)


def make_disk(kind: str, folder: Path) -> BlockDevice:
    if kind == "memory":
        return MemoryStore(bytes(SIZE), growable=False)
    base = folder / "base.raw"
    base.write_bytes(random.Random(1).randbytes(SIZE // 2))
    os.truncate(base, SIZE)
    if kind == "raw":
        return vdisk.open(base, "r+", format="raw")
    vdisk.create(
        folder / "top.qcow2",
        format="qcow2",
        backing_file="base.raw",
        backing_format="raw",
    )
    return vdisk.open(folder / "top.qcow2", "r+")


@contextlib.contextmanager
def serving(device: BlockDevice, *, fast: bool = True, **options: object) -> Iterator[Running]:
    def make() -> Server:
        return Server([Export("", device, discard=True, **options)], fast=fast)  # type: ignore[arg-type]

    with running(make) as server:
        yield server


@STYLES
@BOTH
@pytest.mark.parametrize("kind", ["raw", "qcow2", "memory"])
def test_reads_give_what_the_device_holds(
    kind: str, fast: bool, style: HeaderStyle, tmp_path: Path
) -> None:
    with make_disk(kind, tmp_path) as disk, serving(disk, fast=fast) as server:
        content = disk.read(0, SIZE)
        with client(server, style) as talk:
            ranges = [(0, 1), (511, 4096), (65530, 20), (SIZE - 7, 7), (SIZE // 2 - 100, 300)]
            ranges += [(0, 1 << 20), (100, 70_000), (SIZE // 2 - 40_000, 80_000)]
            answers = talk.all([talk.machine.read(*one) for one in ranges])
        assert answers == [Answer(None, content[start : start + n]) for start, n in ranges]


@STYLES
@BOTH
@pytest.mark.parametrize("kind", ["raw", "qcow2", "memory"])
def test_what_is_written_is_read_and_reaches_the_device(
    kind: str, fast: bool, style: HeaderStyle, tmp_path: Path
) -> None:
    with make_disk(kind, tmp_path) as disk, serving(disk, fast=fast) as server:
        expected = bytearray(disk.read(0, SIZE))
        pieces = [(4096 * n, bytes([n + 1]) * 4096) for n in range(40)]
        pieces += [(1 << 20, b"L" * (1 << 20)), (3 << 20, b"odd" * 70_001)]
        with client(server, style) as talk:
            writes = [
                talk.machine.write(offset, data, fua=n % 7 == 0)
                for n, (offset, data) in enumerate(pieces)
            ]
            assert set(talk.all(writes)) == {Answer(None, b"")}
            zeroing = talk.machine.write_zeroes(8192, 10_000)
            trim = talk.machine.trim(2 << 20, 1 << 20)
            flush = talk.machine.flush()
            cache = talk.machine.cache(0, 1 << 20)
            assert set(talk.all([zeroing, trim, flush, cache])) == {Answer(None, b"")}
            for offset, data in pieces:
                expected[offset : offset + len(data)] = data
            expected[8192:18192] = bytes(10_000)
            seen = talk.one(talk.machine.read(0, SIZE)).data
        trimmed = slice(2 << 20, 3 << 20)
        assert not any(seen[trimmed]) or seen[trimmed] == expected[trimmed]
        expected[trimmed] = seen[trimmed]
        assert seen == bytes(expected)
        assert disk.read(0, SIZE) == seen


@STYLES
@BOTH
def test_each_fault_of_a_request_is_named(fast: bool, style: HeaderStyle, tmp_path: Path) -> None:
    """The client's own gate would not let such requests out, so their headers are changed."""
    with (
        make_disk("raw", tmp_path) as disk,
        serving(disk, fast=fast) as server,
        client(server, style) as talk,
    ):
        for field in ("length", "flags", "command"):
            expected = ErrorValue.NBD_EINVAL
            good = talk.machine.read(0, 4096)
            header = bytearray(good.buffers[0])
            if field == "length":
                header[24:] = (SIZE + 1).to_bytes(len(header) - 24, "big")
            elif field == "flags":
                header[4:6] = b"\x80\x00"
            else:
                header[6:8] = b"\x00\x63"
            bad = good._replace(buffers=[bytes(header)])
            others = [talk.machine.read(n * 4096, 4096) for n in range(3)]
            answers = talk.all([others[0], bad, *others[1:]])
            assert answers[1].error is expected, field
            assert [answer.error for answer in answers] == [None, expected, None, None]


@BOTH
def test_a_read_only_export_refuses_every_change(fast: bool, tmp_path: Path) -> None:
    with make_disk("raw", tmp_path) as disk, serving(disk, fast=fast, read_only=True) as server:
        before = disk.read(0, SIZE)
        with client(server, HeaderStyle.STRUCTURED) as talk:
            good = talk.machine.read(0, 4096)
            header = bytearray(good.buffers[0])
            header[6:8] = b"\x00\x01"
            bad = good._replace(buffers=[bytes(header), b"x" * 4096])
            assert talk.one(bad).error is ErrorValue.NBD_EPERM
        assert disk.read(0, SIZE) == before


class FailingDisk(MemoryStore):
    """Fails where told to."""

    def __init__(self) -> None:
        super().__init__(bytes(SIZE), growable=False)
        self.bad = range(65536, 131072)

    def _fail(self, offset: int, length: int) -> None:
        if offset < self.bad.stop and offset + length > self.bad.start:
            raise DeviceError("a bad sector", path="/secret/path", offset=12345)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._fail(offset, len(view))
        super()._read_into(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self._fail(offset, len(view))
        super()._write(offset, view)


@STYLES
@BOTH
def test_a_failing_device_fails_one_request_and_not_the_connection(
    fast: bool, style: HeaderStyle
) -> None:
    with serving(FailingDisk(), fast=fast) as server, client(server, style) as talk:
        answers = talk.all(
            [
                talk.machine.write(0, b"a" * 4096),
                talk.machine.write(65536, b"b" * 4096),
                talk.machine.write(69632, b"c" * 4096),
                talk.machine.read(65536, 4096),
                talk.machine.write(8192, b"d" * 4096),
            ]
        )
        eio = ErrorValue.NBD_EIO
        assert [answer.error for answer in answers] == [None, eio, eio, eio, None]
        assert talk.one(talk.machine.read(0, 4096)).data == b"a" * 4096


@STYLES
@pytest.mark.parametrize("kind", ["memory", "raw", "qcow2"])
@settings(max_examples=10)
@given(data=st.data())
def test_no_request_can_tell_which_way_it_was_answered(
    kind: str, style: HeaderStyle, data: st.DataObject
) -> None:
    """Writes that do not overlap, then reads: equal answers and equal devices both ways."""
    blocks = data.draw(st.lists(st.integers(0, 255), unique=True, max_size=40))
    lengths = data.draw(st.lists(st.integers(1, 4096), min_size=len(blocks), max_size=len(blocks)))
    fuas = data.draw(st.lists(st.booleans(), min_size=len(blocks), max_size=len(blocks)))
    reads = data.draw(
        st.lists(st.tuples(st.integers(0, (1 << 20) - 1), st.integers(1, 300_000)), max_size=20)
    )
    at_once = data.draw(st.booleans())
    outcomes = []
    for fast in (True, False):
        with (
            tempfile.TemporaryDirectory() as folder,
            make_disk(kind, Path(folder)) as disk,
            serving(disk, fast=fast) as server,
            client(server, style) as talk,
        ):
            if kind == "qcow2":  # some of it can be overwritten in place, and some cannot
                disk.write(0, b"o" * (1 << 18))
                disk.write_zeroes(1 << 16, 1 << 16)
            requests = [
                talk.machine.write(4096 * block, bytes([block + 1 & 255]) * length, fua=fua)
                for block, length, fua in zip(blocks, lengths, fuas, strict=True)
            ]
            answers = talk.all(requests) if at_once else [talk.one(item) for item in requests]
            requests = [talk.machine.read(*one) for one in reads]
            answers += talk.all(requests) if at_once else [talk.one(item) for item in requests]
            outcomes.append((answers, disk.read(0, SIZE)))
    assert outcomes[0] == outcomes[1]


def statuses(talk: Pipeline, offset: int, length: int) -> dict[str, list[tuple[int, int]]]:
    events = talk.call(talk.machine.block_status(offset, length))
    return {
        event.context.name: list(event.extents)
        for event in events
        if isinstance(event, StatusReceived)
    }


@BOTH
def test_block_status_follows_the_map(fast: bool, tmp_path: Path) -> None:
    with make_disk("qcow2", tmp_path) as disk:
        disk.write(SIZE - 65536, b"x" * 65536)
        disk.write_zeroes(0, 65536)
        with (
            serving(disk, fast=fast, allocation_depth=True) as server,
            client(server, HeaderStyle.EXTENDED) as talk,
        ):
            found = statuses(talk, 0, SIZE)
        half = SIZE // 2
        assert found["base:allocation"] == [
            (65536, 3),
            (half - 65536, 0),
            (half - 65536, 3),
            (65536, 0),
        ]
        assert found[QEMU_ALLOCATION_DEPTH] == [(65536, 1), (SIZE - 131072, 2), (65536, 1)]


def test_dirty_bitmaps_are_offered(tmp_path: Path) -> None:
    vdisk.create(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    with vdisk.open(tmp_path / "disk.qcow2", "r+") as disk:
        disk.add_bitmap("b0", 65536)  # type: ignore[attr-defined]
        disk.write(131072, b"x" * 10)
        with serving(disk, bitmaps=["b0"]) as server:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(server.path))
            wanted = ClientSettings(meta_contexts=("qemu:dirty-bitmap:b0",))
            with connection:
                talk = Pipeline(connection, wanted)
                found = statuses(talk, 0, SIZE)
                talk.one(talk.machine.write(1 << 20, b"y"))
                later = statuses(talk, 1 << 20, 65536)
    assert found == {"qemu:dirty-bitmap:b0": [(131072, 0), (65536, 1), (SIZE - 196608, 0)]}
    assert later == {"qemu:dirty-bitmap:b0": [(65536, 1)]}


def test_fua_and_flush_reach_the_device() -> None:
    class Counting(MemoryStore):
        flushes = 0

        def _flush(self) -> None:
            Counting.flushes += 1

    device = Counting(bytes(SIZE), growable=False)
    with serving(device) as server, client(server, HeaderStyle.SIMPLE) as talk:
        talk.one(talk.machine.write(0, b"x"))
        assert Counting.flushes == 0
        talk.one(talk.machine.write(0, b"x", fua=True))
        assert Counting.flushes == 1
        talk.one(talk.machine.flush())
        assert Counting.flushes == 2


@pytest.mark.parametrize("discard", [True, False])
def test_trim_and_zeroing_give_room_back_only_with_discard(discard: bool) -> None:
    calls: list[tuple[str, bool]] = []

    class Watching(MemoryStore):
        def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
            calls.append(("zero", unmap))

        def _discard(self, offset: int, length: int) -> None:
            calls.append(("discard", True))

    device = Watching(bytes(SIZE), growable=False)
    with (
        running(lambda: Server([Export("", device, discard=discard)])) as server,
        client(server, HeaderStyle.SIMPLE) as talk,
    ):
        talk.one(talk.machine.trim(0, 4096))
        talk.one(talk.machine.write_zeroes(0, 4096))
        talk.one(talk.machine.write_zeroes(0, 4096, no_hole=True))
    expected: list[tuple[str, bool]] = [("discard", True)] if discard else []
    assert calls == [*expected, ("zero", discard), ("zero", False)]


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("style", list(HeaderStyle), ids=lambda style: style.value)
def test_one_request_at_a_time(kind: str, style: HeaderStyle, tmp_path: Path) -> None:
    """A lone client is waited for in ``recv``: whatever it asks next, it is answered."""
    with (
        make_disk(kind, tmp_path) as disk,
        serving(disk) as server,
        client(server, style) as talk,
    ):
        expected = bytearray(disk.read(0, SIZE))
        random_ = random.Random(kind)
        for number in range(300):
            offset = random_.randrange(SIZE - 400_000)
            length = random_.choice([1, 512, 4096, 4096, 4096, 70_000, 300_000])
            match number % 7:
                case 3:
                    data = random_.randbytes(length)
                    expected[offset : offset + length] = data
                    assert talk.one(talk.machine.write(offset, data)) == Answer(None, b"")
                case 5:
                    assert talk.one(talk.machine.flush()) == Answer(None, b"")
                case _:
                    answer = talk.one(talk.machine.read(offset, length))
                    assert answer == Answer(None, bytes(expected[offset : offset + length]))
        reads = server.server.exports[""].statistics.reads
        assert reads.requests == sum(number % 7 not in (3, 5) for number in range(300))


def test_others_are_served_while_a_lone_client_is_waited_for(tmp_path: Path) -> None:
    """It may hold the event loop for a moment at a time, however busy it is."""
    stop = threading.Event()

    def keep_asking(talk: Pipeline) -> None:
        while not stop.is_set():
            talk.one(talk.machine.read(0, 4096))

    with (
        make_disk("raw", tmp_path) as disk,
        serving(disk) as server,
        client(server, HeaderStyle.SIMPLE) as busy,
    ):
        asking = threading.Thread(target=keep_asking, args=(busy,))
        asking.start()
        try:
            for _ in range(20):
                with client(server, HeaderStyle.SIMPLE) as other:
                    assert len(other.one(other.machine.read(4096, 512)).data) == 512
                assert server.call(lambda: 42) == 42
        finally:
            stop.set()
            asking.join(PATIENCE)


def test_a_silent_client_is_not_waited_for_again_soon(tmp_path: Path) -> None:
    silent = threading.Event()

    class Counting(Channel):
        starts = 0

        def __init__(self, connection: socket.socket) -> None:
            super().__init__(connection)
            receive = self.recv_into

            def recv_into(view: memoryview) -> int:
                try:
                    return receive(view)
                except BlockingIOError:
                    if self.waits:
                        silent.set()
                    raise

            self.recv_into = recv_into

        def start_waiting(self) -> None:
            Counting.starts += 1
            super().start_waiting()

    with (
        pytest.MonkeyPatch.context() as patch,
        make_disk("raw", tmp_path) as disk,
        serving(disk) as server,
    ):
        patch.setattr("vdisk.nbd_serving.client.Channel", Counting)
        patch.setattr("vdisk.nbd_serving.fast.DISTRUST", 60.0)
        with client(server, HeaderStyle.SIMPLE) as talk:
            while not silent.is_set():  # a busy server may answer without waiting for more
                talk.one(talk.machine.read(0, 4096))
                silent.wait(0.1)
            starts = Counting.starts
            for _ in range(4):
                talk.one(talk.machine.read(0, 4096))
            assert Counting.starts == starts > 0


def write_through_flushes(make: Callable[[BlockDevice], Export]) -> int:
    class Counting(MemoryStore):
        flushes = 0

        def _flush(self) -> None:
            Counting.flushes += 1

    device = Counting(bytes(SIZE), growable=False)
    with (
        running(lambda: Server([make(device)])) as server,
        client(server, HeaderStyle.SIMPLE) as talk,
    ):
        talk.all([talk.machine.write(4096 * n, b"x") for n in range(5)])
        return Counting.flushes


def test_write_through_flushes_every_write() -> None:
    assert write_through_flushes(lambda disk: Export("", disk, write_through=True)) == 5
    assert write_through_flushes(lambda disk: Export("", disk)) == 0


@BOTH
def test_what_was_done_is_counted_once(fast: bool) -> None:
    device = FailingDisk()
    with serving(device, fast=fast) as server, client(server, HeaderStyle.STRUCTURED) as talk:
        export = server.server.exports[""]
        talk.all([talk.machine.read(4096 * n, 4096) for n in range(20)])
        talk.all([talk.machine.write(4096 * n, b"w" * 4096) for n in range(14, 18)])
        talk.one(talk.machine.flush())
        reads, writes = export.statistics.reads, export.statistics.writes
        assert (reads.requests, reads.bytes, reads.errors) == (20, 20 * 4096, 4)
        assert (writes.requests, writes.bytes, writes.errors) == (4, 4 * 4096, 2)
        assert sum(reads.latencies) == 20


@STYLES
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("trouble", [None, "missing", "short", "unknown"])
def test_many_reads_of_one_length(
    trouble: str | None,
    kind: str,
    style: HeaderStyle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than are answered at once; and some of their pages are not in the page cache."""
    real, calls = os.preadv, 0

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        nonlocal calls
        calls += bool(flags)
        if trouble == "unknown" and flags:
            raise OSError(errno.EOPNOTSUPP, "no such flag")
        if trouble is None or not flags or calls % 7:
            return real(descriptor, buffers, offset, flags)
        if trouble == "missing":
            raise BlockingIOError
        return real(descriptor, [buffers[0][:512]], offset, flags)

    monkeypatch.setattr("os.preadv", preadv)
    with (
        make_disk(kind, tmp_path) as disk,
        serving(disk) as server,
        client(server, style) as talk,
    ):
        offsets = [random.Random(2).randrange(SIZE // 4096) * 4096 for _ in range(600)]
        answers = talk.all([talk.machine.read(offset, 4096) for offset in offsets])
        for offset, answer in zip(offsets, answers, strict=True):
            assert answer.data == disk.read(offset, 4096)
        reads = server.server.exports[""].statistics.reads
        # Some are counted when their whole batch is answered.
        assert eventually(lambda: reads.requests >= 600)
        assert reads.requests == 600
