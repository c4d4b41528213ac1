"""The NBD client and servers that are killed meanwhile: nbdkit 1.32, qemu-nbd 7.2."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import peers, qemu
from tests.tools.content import content, exercise
from tests.tools.nbdkit import Running, nbdkit
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.errors import DeviceError
from vdisk.stores._nbd.pool import PoolSettings
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MiB = 1 << 20


@contextlib.contextmanager
def served(place: Path, settings: NbdSettings) -> Iterator[tuple[Running, NbdStore]]:
    with (
        nbdkit("file", place) as server,
        NbdStore(server.uri, readonly=False, settings=settings) as store,
    ):
        yield server, store


@contextlib.contextmanager
def at_work(count: int, work: Callable[[NbdStore, int], None], store: NbdStore) -> Iterator[None]:
    """Threads that work on a store, each with its number; all of them get to their end."""
    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(work, store, number) for number in range(count)]
        yield
        for each in done:
            each.result(PATIENCE)


@requires_peer("nbdkit")
def test_kill_9_in_the_middle_of_writing(tmp_path: Path) -> None:
    """nbdkit 1.32 dies twice while four threads write; nothing that was flushed is missing."""
    place = tmp_path / "disk.raw"
    place.write_bytes(bytes(64 * MiB))
    data = random.Random(3).randbytes(16 * MiB)
    pool = PoolSettings(reconnect_delay=30)
    settings = NbdSettings(pool, request_size=65536)

    def fill(store: NbdStore, number: int) -> None:
        for start in range(0, 16 * MiB, 256 << 10):
            store.write(number * 16 * MiB + start, data[start : start + (256 << 10)])

    with served(place, settings) as (server, store):
        with at_work(4, fill, store):
            for _ in range(2):
                time.sleep(0.05)
                server.kill()
                server.start()
        store.flush()
    assert place.read_bytes() == data * 4


@requires_peer("nbdkit")
def test_kill_9_again_and_again(tmp_path: Path) -> None:
    """Six threads, each with a model of its part of the disk; nbdkit 1.32 dies and returns."""
    part = 4 * MiB
    place = tmp_path / "disk.raw"
    place.write_bytes(bytes(6 * part))
    pool = PoolSettings(connections=3, depth=8, reconnect_delay=30)
    settings = NbdSettings(pool, request_size=32768)
    over = threading.Event()

    def work(store: NbdStore, number: int) -> None:
        chance, model = random.Random(number), bytearray(part)
        while not over.is_set():
            offset = chance.randrange(part)
            length = min(chance.choice([1, 4096, 100_000, 600_000]), part - offset)
            if chance.random() < 0.05:
                store.flush()
            if chance.random() < 0.5:
                model[offset : offset + length] = chance.randbytes(length)
                store.write(number * part + offset, model[offset : offset + length])
            found = store.read(number * part + offset, length)
            assert found == model[offset : offset + length]

    pauses = random.Random(9)
    with served(place, settings) as (server, store), at_work(6, work, store):
        for _ in range(14):
            time.sleep(pauses.random())
            server.kill()
            server.start()
        over.set()


@requires_peer("nbdkit")
def test_kill_9_of_a_server_that_forgets_everything() -> None:
    """nbdkit's memory is gone when it dies: what was not flushed is written again."""
    settings = NbdSettings(PoolSettings(reconnect_delay=30))
    with (
        nbdkit("memory", "8M") as server,
        NbdStore(server.uri, readonly=False, settings=settings) as store,
    ):
        model = exercise(store, 4 * MiB)
        store.write(0, bytes(model))
        server.kill()
        server.start()
        assert store.read(0, 4 * MiB) == model
        store.flush()


@requires_peer("nbdkit")
def test_kill_9_without_reconnecting() -> None:
    with nbdkit("memory", "8M") as server:
        store = NbdStore(server.uri, readonly=False)
        store.write(0, b"x")
        server.kill()
        with pytest.raises(DeviceError) as caught:
            store.read(0, 1)
        assert caught.value.errno in (104, 32)
        with pytest.raises(DeviceError, match=r"refused|No such"):
            store.read(0, 1)
        server.start()
        time.sleep(0.6)
        assert store.read(0, 1) == b"\0"
        with pytest.raises(DeviceError, match="may be gone"):
            store.close()


@requires_peer("qemu-nbd", "qemu-img")
def test_a_qcow2_image_survives_the_death_of_its_server(tmp_path: Path) -> None:
    """Our qcow2 over NBD; the server, qemu-nbd 7.2, is killed and comes back."""
    place = tmp_path / "place.raw"
    with place.open("wb") as file:
        file.truncate(64 * MiB)
    path = tmp_path / "s"
    words = peers.command("qemu-nbd", "-t", "-e", "0", "-k", path, "-f", "raw", place)

    def start() -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        qemu.wait_for_server(process, path)
        return process

    process = start()
    try:
        node = {"driver": "nbd", "path": str(path), "reconnect-delay": 30}
        vdisk.create(f"nbd:unix:{path}", 32 * MiB, format="qcow2")
        with vdisk.open({"driver": "qcow2", "file": node}, "r+") as image:
            image.write(0, content(8 * MiB))
            process.kill()
            process.communicate()
            process = start()
            image.write(8 * MiB, content(8 * MiB, seed=2))
            image.flush()
    finally:
        process.terminate()
        process.communicate()
    assert qemu.check(place, "qcow2")["check-errors"] == 0
    expected = content(8 * MiB) + content(8 * MiB, seed=2) + bytes(16 * MiB)
    assert qemu.content(place, "qcow2") == expected
