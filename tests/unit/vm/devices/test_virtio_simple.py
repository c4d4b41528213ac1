"""virtio-rng and virtio-console."""

from __future__ import annotations

import random

import pytest

from tests.tools.virtio_pci_driver import PciDriver
from vdisk.errors import CorruptImageError
from vdisk.vm.devices.virtio import DEVICE_NEEDS_RESET
from vdisk.vm.devices.virtio_console import BACKLOG, VirtioConsole
from vdisk.vm.devices.virtio_rng import VirtioRng

MODES = [{}, {"legacy": True}]


def rng_of(seed: int, **mode: bool) -> PciDriver:
    source = random.Random(seed).randbytes
    driver = PciDriver(lambda b: VirtioRng(b.memory, b.clock, source=source), **mode)
    driver.wake()
    return driver


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_random_bytes_fill_the_room(mode: dict[str, bool]) -> None:
    driver = rng_of(1, **mode)
    _, places = driver.add([], [10, 20])
    driver.kick()
    assert driver.queues[0].used()[0].written == 30
    expected = random.Random(1)
    assert driver.memory.read(*places[0]) == expected.randbytes(10)
    assert driver.memory.read(*places[1]) == expected.randbytes(20)


def test_a_large_buffer_gets_a_part() -> None:
    driver = rng_of(1)
    driver.add([], [100_000])
    driver.kick()
    assert driver.queues[0].used()[0].written == 4096


def test_a_buffer_to_read_is_refused() -> None:
    driver = rng_of(1)
    driver.add([b"x"], [4])
    driver.kick()
    assert driver.status & DEVICE_NEEDS_RESET


class Printed:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def console() -> tuple[PciDriver, VirtioConsole, Printed]:
    printed = Printed()
    driver = PciDriver(lambda board: VirtioConsole(board.memory, board.clock, printed))
    driver.wake()
    assert isinstance(driver.device, VirtioConsole)
    return driver, driver.device, printed


def test_what_is_printed() -> None:
    driver, _, printed = console()
    for text in (b"hello ", b"world"):
        driver.add([text], [], queue=1)
        driver.kick(1)
    assert printed.data == b"hello world"
    assert len(driver.queues[1].used()) == 2
    driver.set_config(8, 4, ord("!"))
    assert printed.data == b"hello world!"


def test_what_is_typed_waits_for_room() -> None:
    driver, device, _ = console()
    device.feed(b"abcdef")
    assert device.space() == BACKLOG - 6
    _, first = driver.add([], [4])
    driver.kick(0)
    _, second = driver.add([], [4])
    driver.kick(0)
    used = driver.queues[0].used()
    assert [one.written for one in used] == [4, 2]
    assert driver.memory.read(first[0][0], 4) + driver.memory.read(second[0][0], 2) == b"abcdef"
    _, third = driver.add([], [4])
    driver.kick(0)
    assert driver.queues[0].used() == []
    device.feed(b"x")
    assert driver.queues[0].used()[0].written == 1
    assert driver.memory.read(third[0][0], 1) == b"x"


def test_more_than_the_backlog_is_lost() -> None:
    _, device, _ = console()
    device.feed(bytes(BACKLOG + 5))
    assert device.space() == 0


def test_the_size_of_the_window() -> None:
    driver, device, _ = console()
    assert driver.config(0, 2) == 80 and driver.config(2, 2) == 25
    device.resize(132, 43)
    assert driver.config(0, 2) == 132
    assert driver.board.messages == [0x40]


def test_what_waits_is_saved() -> None:
    driver, device, _ = console()
    device.feed(b"abc")
    other, again, _ = console()
    other.function.load_state(driver.function.save_state())
    assert again.space() == BACKLOG - 3
    state = driver.function.save_state()
    state["device"]["backlog"] = bytes(BACKLOG + 1)
    with pytest.raises(CorruptImageError):
        other.function.load_state(state)
