"""virtio-blk, driven through its PCI function the way drivers do it."""

from __future__ import annotations

import random
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools.disks import Gated
from tests.tools.patience import PATIENCE
from tests.tools.virtio_pci_driver import Board, PciDriver
from vdisk.emu_blockdev import EmuBlockDevice, ErrorPolicy, OnError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.stores.memory import MemoryStore
from vdisk.vm.devices.virtio import DEVICE_NEEDS_RESET, VIRTIO_F_EVENT_IDX
from vdisk.vm.devices.virtio_blk import (
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VirtioBlk,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.block import BlockDevice

MIB = 1 << 20
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2


class BlkDriver(PciDriver):
    """Sends requests and waits for them."""

    def __init__(
        self,
        device: BlockDevice,
        *,
        queues: int = 1,
        packed: bool = False,
        legacy: bool = False,
        messages: bool = True,
        indirect: bool = False,
        **options: Any,
    ) -> None:
        def make(board: Board) -> VirtioBlk:
            disk = EmuBlockDevice(device, lock=board.bus.lock, **options)
            return VirtioBlk(disk, board.memory, board.clock, queues=queues, packed=packed)

        super().__init__(make, legacy=legacy, messages=messages)
        self.indirect = indirect

    @property
    def disk(self) -> EmuBlockDevice:
        assert isinstance(self.device, VirtioBlk)
        return self.device.disk

    def request(
        self,
        kind: int,
        sector: int,
        data: bytes = b"",
        room: int = 0,
        *,
        queue: int = 0,
        cuts: int = 1,
    ) -> tuple[int, bytes]:
        """Status, and what was read; the data in ``cuts`` parts."""
        header = struct.pack("<IIQ", kind, 0, sector)
        step = -(-max(len(data), room) // cuts) or 1
        parts = [data[start : start + step] for start in range(0, len(data), step)]
        rooms = [min(step, room - start) for start in range(0, room, step)]
        with self.board.bus.lock:
            key, places = self.add(
                [header, *parts], [*rooms, 1], queue=queue, indirect=self.indirect
            )
            self.kick(queue)
        done = self.wait(queue)
        assert [used.key for used in done] == [key]
        assert done[0].written == (room if kind in (IN, GET_ID) and room else 0) + 1
        content = b"".join(self.memory.read(*place) for place in places)
        return content[-1], content[:-1]

    def wait(self, queue: int = 0) -> list[Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with self.board.bus.lock:
                self.board.clock.advance(self.board.clock.now())
                if done := self.queues[queue].used():
                    return done
            time.sleep(0.0005)
        raise TimeoutError


KINDS: list[dict[str, Any]] = [
    {},
    {"indirect": True},
    {"packed": True},
    {"packed": True, "indirect": True},
    {"messages": False},
    {"legacy": True},
    {"legacy": True, "messages": False},
]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_disk_keeps_what_is_written(
    tmp_path: Path, options: dict[str, Any], threads: int
) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, MIB, format="qcow2")
    driver = BlkDriver(vdisk.open(path, "r+"), threads=threads, serial="abc", **options)
    driver.wake()
    assert driver.config(0, 4) == MIB // 512
    rng, content = random.Random(7), bytearray(MIB)
    for _ in range(60):
        first = rng.randrange(2000)
        count = rng.choice([1, 8, 40])
        start, end = first * 512, (first + count) * 512
        if rng.random() < 0.5:
            content[start:end] = data = rng.randbytes(end - start)
            assert driver.request(OUT, first, data, cuts=rng.choice([1, 3])) == (OK, b"")
        elif rng.random() < 0.3:
            content[start:end] = bytes(end - start)
            segment = struct.pack("<QII", first, count, 1)
            assert driver.request(WRITE_ZEROES, 0, segment) == (OK, b"")
        else:
            found = driver.request(IN, first, room=end - start, cuts=rng.choice([1, 5]))
            assert found == (OK, bytes(content[start:end]))
    assert driver.request(FLUSH, 0) == (OK, b"")
    assert driver.request(GET_ID, 0, room=20) == (OK, b"abc".ljust(20, b"\0"))
    assert driver.request(99, 0, room=4)[0] == UNSUPP
    driver.disk.close()
    with vdisk.open(path) as image:
        assert image.read(0, MIB) == content


def memory_disk(size: int = MIB) -> MemoryStore:
    return MemoryStore(bytes(size), growable=False)


def test_interrupts_by_message_and_by_pin() -> None:
    driver = BlkDriver(memory_disk(), queues=2)
    driver.wake()
    driver.request(FLUSH, 0, queue=1)
    assert driver.board.messages == [0x42]
    pinned = BlkDriver(memory_disk(), messages=False)
    pinned.wake()
    pinned.request(FLUSH, 0)
    assert pinned.board.intx
    assert pinned.isr() == 1
    assert not pinned.board.intx and pinned.isr() == 0


def test_queues_are_served_side_by_side() -> None:
    driver = BlkDriver(memory_disk(), queues=4, packed=True)
    driver.wake()
    assert driver.config(34, 2) == 4
    for queue in range(4):
        assert driver.request(OUT, queue, bytes([queue + 1]) * 512, queue=queue)[0] == OK
    for queue in range(4):
        assert driver.request(IN, queue, room=512, queue=3 - queue)[1][:1] == bytes([queue + 1])


def test_requests_past_the_end_and_odd_ones_are_refused() -> None:
    driver = BlkDriver(memory_disk(), sector_size=4096)
    driver.wake()
    assert driver.config(20, 4) == 4096
    assert driver.request(IN, 2048, room=512)[0] == IOERR
    assert driver.request(IN, 1, room=512)[0] == IOERR
    assert driver.request(IN, (1 << 64) - 1, room=4096)[0] == IOERR
    assert driver.request(OUT, 0, b"x" * 100)[0] == IOERR
    assert driver.request(DISCARD, 0, struct.pack("<QII", 0, 8, 1))[0] == UNSUPP
    assert driver.request(WRITE_ZEROES, 0, struct.pack("<QII", 0, 1 << 30, 0))[0] == UNSUPP
    assert driver.request(WRITE_ZEROES, 0, b"short")[0] == UNSUPP
    assert driver.request(IN, 8, room=4096)[0] == OK


def test_a_read_only_disk() -> None:
    driver = BlkDriver(memory_disk(), readonly=True)
    features = driver.wake()
    assert features & VIRTIO_BLK_F_RO and not features & VIRTIO_BLK_F_WRITE_ZEROES
    assert driver.request(OUT, 0, bytes(512))[0] == IOERR
    assert driver.request(IN, 0, room=512)[0] == OK


def test_a_driver_without_flush_gets_write_through() -> None:
    device = Gated(memory_disk(), gated=False)
    driver = BlkDriver(device)
    driver.wake(without=VIRTIO_BLK_F_FLUSH)
    driver.request(OUT, 0, bytes(512))
    assert device.events == ["written 0", "flush"]
    driver.wake()
    driver.request(OUT, 0, bytes(512))
    assert device.events[2:] == ["written 1"]
    driver.set_config(32, 1, 0)
    assert driver.config(32, 1) == 0
    driver.request(OUT, 0, bytes(512))
    assert device.events[3:] == ["written 2", "flush"]


def test_resizing_interrupts_and_shows_the_new_capacity() -> None:
    driver = BlkDriver(memory_disk())
    driver.wake()
    before = driver.common(0x15, 1)
    driver.disk.resize(2 * MIB)
    assert driver.board.messages == [0x40]
    assert driver.common(0x15, 1) == before + 1
    assert driver.config(0, 4) == 4096


@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_driver_is_told_to_reset(packed: bool) -> None:
    driver = BlkDriver(memory_disk(), packed=packed)
    driver.wake()
    driver.add([b"short"], [1])
    driver.kick()
    assert driver.status & DEVICE_NEEDS_RESET
    assert driver.board.messages == [0x40]
    driver.add([struct.pack("<IIQ", FLUSH, 0, 0)], [1])
    driver.kick(always=True)
    assert driver.queues[0].used() == []
    driver.wake()
    assert driver.request(FLUSH, 0)[0] == OK


def test_a_request_without_room_for_a_status_breaks_the_device() -> None:
    driver = BlkDriver(memory_disk())
    driver.wake()
    driver.add([struct.pack("<IIQ", FLUSH, 0, 0)], [])
    driver.kick()
    assert driver.status & DEVICE_NEEDS_RESET


def test_header_and_status_may_be_anywhere_in_the_parts() -> None:
    driver = BlkDriver(memory_disk())
    driver.wake()
    packet = struct.pack("<IIQ", OUT, 0, 3) + b"z" * 512
    driver.add([packet[:5], packet[5:9], packet[9:100], packet[100:]], [1])
    driver.kick()
    driver.wait()
    _, places = driver.add([struct.pack("<IIQ", IN, 0, 3)], [500, 13])
    driver.kick()
    assert driver.wait()[0].written == 513
    content = b"".join(driver.memory.read(*place) for place in places)
    assert content == b"z" * 512 + b"\0"


def test_a_reset_while_requests_are_in_work_leaves_memory_alone() -> None:
    device = Gated(memory_disk())
    driver = BlkDriver(device)
    driver.wake()
    with driver.board.bus.lock:
        _, places = driver.add([struct.pack("<IIQ", OUT, 0, 0), bytes(512)], [1])
        driver.memory.write(places[0][0], b"\xaa")
        driver.kick()
    assert device.entered.wait(PATIENCE)
    device.open(0)
    with driver.board.bus.lock:
        driver.status = 0
        assert driver.memory.read(places[0][0], 1) == b"\xaa"
        assert driver.disk.in_flight == 0
    device.open(1)
    driver.wake()
    assert driver.request(OUT, 0, bytes(512))[0] == OK
    driver.disk.close()


@pytest.mark.parametrize("packed", [False, True])
def test_what_stopped_the_machine_goes_on_in_a_loaded_one(packed: bool) -> None:
    faults = Faults(memory_disk())
    driver = BlkDriver(faults, packed=packed, policy=ErrorPolicy(werror=OnError.STOP), threads=0)
    driver.wake()
    faults.set_rules(InjectError(where=Where(iotypes=frozenset({IoType.WRITE}))))
    key, places = driver.add([struct.pack("<IIQ", OUT, 0, 1), b"n" * 512], [1])
    driver.kick()
    assert driver.disk.stopped and driver.queues[0].used() == []
    state = driver.function.save_state()
    other = BlkDriver(memory_disk(), packed=packed, threads=0)
    other.memory.view(0, other.memory.size)[:] = driver.memory.view(0, driver.memory.size)
    other.function.load_state(state)
    other.queues = driver.queues
    driver.queues[0].memory = other.memory
    other.board.clock.advance(1)
    assert [used.key for used in driver.queues[0].used()] == [key]
    assert other.memory.read(*places[0]) == b"\0"
    assert other.disk.device is not None
    assert other.disk.device.read(512, 3) == b"nnn"
    assert other.board.messages == [0x41]


def test_nothing_happens_before_driver_ok_or_without_bus_mastering() -> None:
    driver = BlkDriver(memory_disk())
    driver.wake()
    driver.board.write_config(4, 3, 2)
    driver.add([struct.pack("<IIQ", FLUSH, 0, 0)], [1])
    driver.kick(always=True)
    assert driver.queues[0].used() == []
    driver.board.write_config(4, 7, 2)
    driver.kick(always=True)
    assert len(driver.wait()) == 1


def test_features_that_were_not_offered_are_not_accepted() -> None:
    driver = BlkDriver(memory_disk())
    driver.status = 0
    driver.status = 3
    driver.take(driver.offered() | 1 << 63)
    driver.status = 3 | 8
    assert not driver.status & 8
    driver.status = 3 | 8 | 4
    assert not driver.status & 4
    driver.take(driver.offered() & ~(1 << 32))
    driver.status = 3 | 8
    assert not driver.status & 8


def test_every_register_answers_any_access() -> None:
    driver = BlkDriver(memory_disk(), queues=2)
    rng = random.Random(3)
    for _ in range(3000):
        size = rng.choice([1, 2, 4, 8])
        offset = rng.choice([rng.randrange(0x48), rng.randrange(0x4000 - 8), 0x3000, 0x2000])
        address = driver.structures[1][0] + offset
        if rng.random() < 0.6:
            value = rng.choice([0, 1, 2, 0xF, rng.randrange(1 << 8 * size)])
            driver.board.bus.mmio.write(address, size, value)
        else:
            driver.board.bus.mmio.read(address, size)
        driver.set_port(rng.randrange(128), rng.choice([1, 2, 4]), rng.randrange(1 << 16))
        driver.port(rng.randrange(128), rng.choice([1, 2, 4]))
    driver.wake()
    assert driver.request(FLUSH, 0)[0] == OK


def test_the_window_in_configuration_space() -> None:
    driver = BlkDriver(memory_disk())
    board, place = driver.board, driver.board.read_config(0x34, 1)
    while not (board.read_config(place, 1) == 9 and board.read_config(place + 3, 1) == 5):
        place = board.read_config(place + 1, 1)
    board.write_config(place + 4, 4, 1)
    board.write_config(place + 8, 0x14)
    board.write_config(place + 12, 1)
    board.write_config(place + 16, 1, 1)
    assert driver.status == 1
    assert board.read_config(place + 16) == 1
    board.write_config(place + 8, 0x2000)
    board.write_config(place + 12, 4)
    assert board.read_config(place + 16) == MIB // 512
    board.write_config(place + 12, 3)
    board.write_config(place + 16, 0)


def test_without_event_index_flags_are_used() -> None:
    driver = BlkDriver(memory_disk())
    driver.wake(without=VIRTIO_F_EVENT_IDX)
    for sector in range(5):
        assert driver.request(IN, sector, room=512)[0] == OK
    assert len(driver.board.messages) == 5


def test_the_legacy_registers_show_what_fits_of_a_modern_address() -> None:
    driver = BlkDriver(MemoryStore(bytes(MIB), growable=False))
    driver.set_common(0x20, 4, 0x1234_5000)
    driver.set_common(0x24, 4, 0xFFFF_FFFF)
    assert driver.port(0x08, 4) == 0xFFF1_2345
