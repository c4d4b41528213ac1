"""virtio-net: frames both ways, through buffers of any size."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.tools.virtio_pci_driver import PciDriver
from vdisk.vm.devices.virtio import DEVICE_NEEDS_RESET
from vdisk.vm.devices.virtio_net import (
    MAX_PENDING,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
    VirtioNet,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Cable:
    """What the card is plugged into."""

    def __init__(self, *, offloads: bool = True) -> None:
        self.offloads = offloads
        self.full = False
        self.frames: list[bytes] = []
        self.headers: list[bytes] = []
        self.adapter: VirtioNet | None = None
        self.resets = self.rooms = self.starts = 0

    def attach(self, adapter: VirtioNet) -> None:
        self.adapter = adapter

    def start(self) -> None:
        self.starts += 1

    def transmit(self, header: bytes | memoryview, parts: Sequence[memoryview]) -> bool:
        if not self.full:
            self.headers.append(bytes(header))
            self.frames.append(b"".join(parts))
        return not self.full

    def room_again(self) -> None:
        self.rooms += 1

    def reset(self) -> None:
        self.resets += 1


def card(*, without: int = 0, **mode: bool) -> tuple[PciDriver, VirtioNet, Cable]:
    cable = Cable()
    driver = PciDriver(lambda board: VirtioNet(cable, board.memory, board.clock), **mode)
    driver.wake(without=without)
    assert isinstance(driver.device, VirtioNet) and cable.adapter is driver.device
    return driver, driver.device, cable


@pytest.mark.parametrize(("mode", "header"), [({}, 12), ({"legacy": True}, 12)], ids=str)
def test_frames_of_the_guest(mode: dict[str, bool], header: int) -> None:
    driver, _, cable = card(**mode)
    driver.add([bytes(header), b"frame"], [], queue=1)
    driver.add([bytes(header) + b"one part"], [], queue=1)
    driver.kick(1)
    assert cable.frames == [b"frame", b"one part"]
    assert len(driver.queues[1].used()) == 2


def test_a_legacy_header_without_merged_buffers() -> None:
    driver, _, cable = card(legacy=True, without=VIRTIO_NET_F_MRG_RXBUF)
    driver.add([bytes(10), b"frame"], [], queue=1)
    driver.kick(1)
    assert cable.frames == [b"frame"]


def test_frames_for_the_guest_fill_as_many_buffers_as_they_need() -> None:
    driver, device, _ = card()
    places = [driver.add([], [100])[1][0] for _ in range(4)]
    driver.kick(0)
    device.deliver(b"a" * 250)
    used = driver.queues[0].used()
    assert [one.written for one in used] == [100, 100, 62]
    content = b"".join(driver.memory.read(gpa, 100) for gpa, _ in places[:3])[:262]
    assert content[12:] == b"a" * 250
    assert struct.unpack_from("<H", content, 10) == (3,)
    device.deliver(b"b" * 10)
    assert driver.queues[0].used()[0].written == 22


def test_a_frame_waits_for_room_and_loses_nothing() -> None:
    driver, device, _ = card()
    driver.add([], [100])
    driver.kick(0)
    device.deliver(b"a" * 150)
    assert driver.queues[0].used() == []
    driver.add([], [100])
    driver.kick(0)
    assert [one.written for one in driver.queues[0].used()] == [100, 62]


def test_a_frame_too_long_for_its_buffer_is_lost() -> None:
    driver, device, _ = card(without=VIRTIO_NET_F_MRG_RXBUF)
    driver.add([], [100])
    driver.kick(0)
    device.deliver(b"a" * 150)
    assert driver.queues[0].used() == []
    device.deliver(b"b" * 50)
    assert driver.queues[0].used()[0].written == 62


def test_offloads_are_what_the_driver_took() -> None:
    driver, device, _ = card()
    assert device.completes_checksums
    assert all(device.largest_segment(ipv6=ipv6) > 50000 for ipv6 in (False, True))
    _, places = driver.add([], [5000])
    driver.kick(0)
    device.deliver(bytes(4000), partial=True, segment=1460)
    header = driver.memory.read(places[0][0], 12)
    assert struct.unpack("<BBHHHHH", header) == (1, 1, 54, 1460, 34, 16, 1)
    _, places = driver.add([], [5000])
    driver.kick(0)
    device.deliver(bytes(12) + b"\x86\xdd" + bytes(4000), partial=True, segment=1440)
    header = driver.memory.read(places[0][0], 12)
    assert struct.unpack("<BBHHHHH", header) == (1, 4, 74, 1440, 54, 16, 1)
    driver.wake(without=VIRTIO_NET_F_GUEST_TSO4)
    assert device.largest_segment(ipv6=False) == 1460 < device.largest_segment(ipv6=True)
    driver.wake(without=VIRTIO_NET_F_GUEST_CSUM)
    assert not device.completes_checksums and device.largest_segment(ipv6=True) == 1460


def test_room_is_bounded_and_told_of() -> None:
    driver, device, cable = card()
    while device.room:
        device.deliver(bytes(60000))
    for _ in range(30):
        device.deliver(bytes(60000))
    assert device._pending_bytes <= MAX_PENDING
    for _ in range(40):
        driver.add([], [65562], queue=0)
        driver.kick(0)
    assert cable.rooms == 1 and device.room


def test_broken_frames() -> None:
    for readable in ([b"short"], [bytes(70000)]):
        driver, _, cable = card()
        driver.add(readable, [], queue=1)
        driver.kick(1)
        assert driver.status & DEVICE_NEEDS_RESET and not cable.frames
    driver, device, _ = card()
    driver.add([], [5])
    driver.kick(0)
    device.deliver(bytes(60))
    assert driver.status & DEVICE_NEEDS_RESET


def test_the_link_and_a_reset() -> None:
    driver, device, cable = card()
    assert bytes(driver.config(n, 1) for n in range(6)) == device.mac
    assert driver.config(6, 2) == 1
    device.set_link(False)
    assert driver.config(6, 2) == 0 and driver.board.messages == [0x40]
    device.deliver(bytes(60))
    driver.add([bytes(12), b"frame"], [], queue=1)
    driver.kick(1)
    assert not cable.frames and not device._pending
    before = cable.resets
    driver.status = 0
    assert cable.resets == before + 1


def test_buffers_that_were_taken_are_saved() -> None:
    driver, device, _ = card()
    key, places = driver.add([], [100])
    driver.kick(0)
    device.deliver(b"a" * 150)
    state = driver.function.save_state()
    other, again, _ = card()
    other.memory.view(0, other.memory.size)[:] = driver.memory.view(0, driver.memory.size)
    other.function.load_state(state)
    other.board.clock.advance(1)
    again.deliver(b"b" * 50)
    driver.queues[0].memory = other.memory
    assert driver.queues[0].used() == [(key, 62)]
    assert other.memory.read(places[0][0] + 12, 50) == b"b" * 50
