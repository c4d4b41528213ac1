"""The same drivers get the same from our disk controllers and from QEMU's."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vdisk
from tests.tools import qtest
from tests.tools.ide_driver import DATA, IdeBoard, IdeDriver, IdeError
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from tests.tools.qtest_board import QEMU_SLOT, QemuIde, QemuVirtio
from tests.tools.virtio_pci_driver import Board, PciDriver
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.vm.devices.virtio_blk import VirtioBlk

pytestmark = requires_peer("qemu-system-x86_64")

CONTENT = random.Random(11).randbytes(2 << 20)
SECTORS = len(CONTENT) // 512


class Two(NamedTuple):
    """The same drive here and in QEMU."""

    ours: IdeDriver
    theirs: IdeDriver

    def same(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Both do it, with the same result or the same error; that result."""
        found = [_tried(act, driver, *arguments, **named) for driver in self]
        assert found[0] == found[1], (act, arguments)
        return found[0]


def _tried(act: Callable[..., Any], driver: IdeDriver, *arguments: Any, **named: Any) -> Any:
    try:
        return act(driver, *arguments, **named)
    except IdeError as error:
        return f"error {error.error >> 4:#x}x"  # of packets, QEMU sets the sense key alone


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "ours", tmp_path / "theirs"]
    for path in paths:
        path.write_bytes(CONTENT)
    return paths


@pytest.fixture
def drives(images: list[Path]) -> Iterator[dict[str, Two]]:
    board = IdeBoard()
    disk = board.plug(EmuBlockDevice(vdisk.open(images[0], "r+", format="raw"), serial="S1"))
    cd = EmuBlockDevice(vdisk.open(images[0], format="raw", force_share=True), removable=True)
    cdrom = board.plug(cd, 1, 0, cdrom=True)
    board.enable()
    options = [
        *("-drive", f"file={images[1]},format=raw,if=none,id=d"),
        *("-device", "ide-hd,drive=d,bus=ide.0,serial=S1"),
        *("-drive", f"file={images[1]},format=raw,if=none,id=c,readonly=on,file.locking=off"),
        *("-device", "ide-cd,drive=c,bus=ide.1"),
    ]
    with qtest.machine(options) as qemu:
        theirs = QemuIde(qemu)
        yield {
            "disk": Two(disk, theirs.driver(0, 0)),
            "cdrom": Two(cdrom, theirs.driver(1, 0)),
        }


def test_identify(drives: dict[str, Two]) -> None:
    """Words that drivers act by; not names, versions, and what we have and QEMU has not (48: QEMU's
    speaks of 32-bit PIO, as before ATA-7)."""
    words = [driver.identify() for driver in drives["disk"]]
    for number in (0, 1, 3, 6, 10, 11, 12, 47, 54, 55, 56, 57, 58, 59, 60, 61, 100, 101, 102):
        assert words[0][number] == words[1][number], number
    for mine, known in zip(words[0][82:85], words[1][82:85], strict=True):
        assert mine & 0xC000 == known & 0xC000 == 0x4000
    packet = [driver.identify(0xA1) for driver in drives["cdrom"]]
    assert packet[0][0] == packet[1][0]


@pytest.mark.parametrize("seed", range(3))
def test_any_commands_of_a_disk(drives: dict[str, Two], images: list[Path], seed: int) -> None:
    two, rng = drives["disk"], random.Random(seed)
    for driver in two:
        driver.command(0xC6, 0, 16)
    for _ in range(40):
        lba, count = rng.randrange(SECTORS + 4), rng.choice([1, 2, 17, 40])
        data, kind = rng.randbytes(512 * count), rng.randrange(8)
        if lba + count > SECTORS and kind in (0, 1, 2, 3):
            continue  # refused by both, with IDNF here and ABRT there
        if kind == 0:
            read, block = rng.choice([(0x20, 1), (0x24, 1), (0xC4, 16), (0x29, 16)])
            two.same(IdeDriver.pio_read, read, lba, count, block=block)
        elif kind == 1:
            write, block = rng.choice([(0x30, 1), (0x34, 1), (0xC5, 16), (0x39, 16)])
            two.same(IdeDriver.pio_write, write, lba, data, block=block)
        elif kind == 2:
            command = rng.choice([0xC8, 0x25])
            cut = rng.randrange(2, 512 * count, 2)
            two.same(_dma_read, command, lba, count, cut)
        elif kind == 3:
            two.same(_dma_write, rng.choice([0xCA, 0x35]), lba, data)
        elif kind == 4:
            command = rng.choice([0xE7, 0xEA, 0xE5, 0xE0, 0xE3, 0x10, 0x00, 0xF8, 0xB1])
            two.same(_registers, command)
        elif kind == 5:
            two.same(IdeDriver.chs_read, lba % 4, lba % 16, 1 + lba % 63, 1)
        elif kind == 6:
            two.same(IdeDriver.command, 0xEF, rng.choice([2, 0x82, 0x55]), 0)
        else:
            two.same(_reset)
            for driver in two:
                driver.command(0xC6, 0, 16)
    for driver in two:
        driver.command(0xE7)
    assert images[0].read_bytes() == images[1].read_bytes()


def _dma_read(driver: IdeDriver, command: int, lba: int, count: int, cut: int) -> tuple[int, bytes]:
    parts = [(DATA, cut), (DATA + 0x20000, count * 512 - cut)]
    driver.table(parts)
    status = driver.dma_command(command, lba, count, reading=True)
    return status & 3, b"".join(driver.board.memory.read(*part) for part in parts)


def _dma_write(driver: IdeDriver, command: int, lba: int, data: bytes) -> int:
    driver.board.memory.write(DATA, data)
    driver.table([(DATA, len(data))])
    return driver.dma_command(command, lba, len(data) // 512, reading=False) & 3


def _registers(driver: IdeDriver, command: int) -> list[int]:
    driver.select(0x40)
    for number in range(1, 6):
        driver.put(number, 0)
    driver.put(7, command)
    driver.wait_for_interrupt()
    return [driver.get(number) for number in range(2, 6)]


def _reset(driver: IdeDriver) -> list[int]:
    driver.ports.write(driver.control, 1, 4)
    driver.ports.write(driver.control, 1, 0)
    driver.wait()
    return [driver.get(number) for number in range(1, 6)]


# Not: the event descriptor's length, which QEMU counts without its own header, and sessions, of
# which it leaves out the control field.
PACKETS = {
    "test unit ready": (bytes(12), 0),
    "read capacity": (bytes([0x25]), 8),
    "read 10": (struct.pack(">BxIxHx", 0x28, 5, 3), 3 * 2048),
    "read 12": (struct.pack(">BxII", 0xA8, 9, 2), 2 * 2048),
    "past the end": (struct.pack(">BxIxHx", 0x28, 1 << 20, 1), 0),
    "toc": (bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 100]), 0),
    "toc in msf": (bytes([0x43, 2, 0, 0, 0, 0, 0, 0, 100]), 0),
    "unknown": (bytes([0x5E]), 0),
    "mode page unknown": (bytes([0x5A, 0, 0x31, 0, 0, 0, 0, 0, 100]), 0),
    "lock": (bytes([0x1E, 0, 0, 0, 1]), 0),
    "unlock": (bytes([0x1E]), 0),
    "seek": (bytes([0x2B]), 0),
}


def _sense(driver: IdeDriver) -> tuple[int, int]:
    """Sense key and additional sense code."""
    data = driver.packet(bytes([3, 0, 0, 0, 18]))
    return data[2], data[12]


def test_packets(drives: dict[str, Two]) -> None:
    two = drives["cdrom"]
    for driver in two:  # whatever unit attention there is
        for _ in range(3):
            _tried(IdeDriver.packet, driver, bytes([3, 0, 0, 0, 18]))
            _tried(IdeDriver.packet, driver, bytes(12))
    for name, (packet, room) in PACKETS.items():
        found = two.same(IdeDriver.packet, packet, limit=2048)
        if isinstance(found, str):  # QEMU keeps it after the next command, too
            assert two.same(_sense)[0] == 5, name
        if room and not isinstance(found, str):
            assert len(found) == room
            two.same(IdeDriver.packet, packet, room, dma=True)


# -- virtio-blk ------------------------------------------------------------------------------------


class Blk:
    """Requests to a virtio-blk device, one at a time."""

    def __init__(self, driver: PciDriver) -> None:
        self.driver = driver

    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, int, bytes]:
        """Status, bytes written, and what was read."""
        driver = self.driver
        driver.board.allocator = type(driver.board.allocator)(4 << 20)
        header = struct.pack("<IIQ", kind, 0, sector)
        rooms = [room, 1] if room else [1]
        _, places = driver.add([header, data] if data else [header], rooms)
        driver.kick()
        end = time.monotonic() + PATIENCE
        while not (used := driver.queues[0].used()):
            assert time.monotonic() < end
            time.sleep(0.001)
        content = b"".join(driver.memory.read(*place) for place in places)
        return content[-1], used[0].written, content[:-1]


@pytest.mark.parametrize(("legacy", "packed"), [(False, False), (False, True), (True, False)])
def test_any_requests_of_virtio_blk(images: list[Path], legacy: bool, packed: bool) -> None:

    def make(board: Board) -> VirtioBlk:
        disk = EmuBlockDevice(vdisk.open(images[0], "r+", format="raw"), serial="S1")
        return VirtioBlk(disk, board.memory, board.clock, packed=packed)

    ours = PciDriver(make, legacy=legacy, messages=False)
    options = [
        *("-drive", f"file={images[1]},format=raw,if=none,id=d,discard=unmap"),
        "-device",
        f"virtio-blk-pci,drive=d,serial=S1,{QEMU_SLOT},num-queues=1,queue-size=256,"
        f"packed={'on' if packed else 'off'}",
    ]
    rng = random.Random(5)
    with qtest.machine(options) as qemu:
        theirs = QemuVirtio(qemu, queues=1, legacy=legacy)
        features = [driver.wake() for driver in (ours, theirs)]
        both = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14 | 1 << 28 | 1 << 29
        assert features[0] & both == features[1] & both == both
        for offset, size in ((0, 4), (16, 2), (18, 1), (19, 1), (20, 4), (32, 1), (34, 2)):
            assert ours.config(offset, size) == theirs.config(offset, size), offset
        devices = [Blk(ours), Blk(theirs)]
        for _ in range(40):
            sector, count = rng.randrange(SECTORS), rng.choice([1, 3, 8])
            segment = struct.pack("<QII", sector, count, 0)
            act = rng.choice(
                [
                    (0, sector, b"", 512 * count),
                    (1, sector, rng.randbytes(512 * count), 0),
                    (4, 0, b"", 0),
                    (8, 0, b"", 20),
                    (13, 0, segment, 0),
                    (99, 0, b"", 0),
                ]
            )
            found = [device.request(*act) for device in devices]
            assert found[0][0] == found[1][0]
            if found[0][0] == 0:  # QEMU leaves what is behind a short serial number
                length = 3 if act[0] == 8 else None
                assert found[0][2][:length] == found[1][2][:length]
        assert [device.request(4, 0, b"", 0)[0] for device in devices] == [0, 0]
    assert images[0].read_bytes() == images[1].read_bytes()
