"""A CD-ROM drive, driven through its ports."""

from __future__ import annotations

import random
import struct

import pytest

from tests.tools.ide_driver import MIB, IdeBoard, IdeDriver, IdeError
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.errors import DeviceError, InvalidRequestError
from vdisk.stores.memory import MemoryStore

CONTENT = random.Random(2).randbytes(2 * MIB)
BLOCKS = len(CONTENT) // 2048
NOT_READY, ILLEGAL_REQUEST, UNIT_ATTENTION = 2, 5, 6


def medium() -> MemoryStore:
    return MemoryStore(CONTENT, growable=False)


def drive_of(device: MemoryStore | None, threads: int = 4) -> tuple[IdeDriver, EmuBlockDevice]:
    board = IdeBoard()
    disk = EmuBlockDevice(
        device, removable=True, readonly=True, lock=board.bus.lock, threads=threads
    )
    driver = board.plug(disk, 1, 0, cdrom=True)
    board.enable()
    return driver, disk


def sense_of(driver: IdeDriver) -> tuple[int, int]:
    data = driver.packet(bytes([3, 0, 0, 0, 18]))
    return data[2], data[12]


def refused(driver: IdeDriver, packet: bytes, key: int, code: int) -> None:
    with pytest.raises(IdeError) as caught:
        driver.packet(packet)
    assert caught.value.error >> 4 == key
    assert sense_of(driver) == (key, code)
    assert sense_of(driver) == (0, 0)


def read_10(block: int, count: int) -> bytes:
    return struct.pack(">BxIxHx", 0x28, block, count)


def test_the_signature_and_identify() -> None:
    driver, _ = drive_of(medium())
    driver.ports.write(driver.control, 1, 4)
    driver.ports.write(driver.control, 1, 0)
    driver.select()
    assert (driver.get(4), driver.get(5)) == (0x14, 0xEB)
    words = driver.identify(0xA1)
    assert words[0] >> 14 == 2 and words[0] >> 8 & 0x1F == 5
    with pytest.raises(IdeError):
        driver.identify(0xEC)
    assert (driver.get(4), driver.get(5)) == (0x14, 0xEB)


@pytest.mark.parametrize("limit", [0xFFFE, 2048, 3000, 0])
@pytest.mark.parametrize("threads", [0, 2])
def test_blocks_in_pieces_of_the_byte_count(limit: int, threads: int) -> None:
    driver, _ = drive_of(medium(), threads)
    assert driver.packet(read_10(3, 100), limit=limit) == CONTENT[3 * 2048 : 103 * 2048]
    packet = struct.pack(">BxII", 0xA8, 5, 2)
    assert driver.packet(packet, limit=limit) == CONTENT[5 * 2048 : 7 * 2048]


def test_blocks_by_dma() -> None:
    driver, _ = drive_of(medium())
    assert driver.packet(read_10(7, 20), 20 * 2048, dma=True) == CONTENT[7 * 2048 : 27 * 2048]
    assert driver.packet(bytes([0x25]), 8, dma=True) == struct.pack(">II", BLOCKS - 1, 2048)


def test_what_the_drive_says_of_itself_and_the_medium() -> None:
    driver, _ = drive_of(medium())
    inquiry = driver.packet(bytes([0x12, 0, 0, 0, 96]))
    assert inquiry[0] == 5 and inquiry[1] == 0x80 and inquiry[8:13] == b"VDISK"
    assert driver.packet(bytes([0x12, 0, 0, 0, 5])) == inquiry[:5]
    assert driver.packet(bytes([0x25])) == struct.pack(">II", BLOCKS - 1, 2048)
    toc = driver.packet(bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 100]))
    assert toc[:4] == bytes([0, 18, 1, 1]) and struct.unpack(">I", toc[16:20]) == (BLOCKS,)
    msf = driver.packet(bytes([0x43, 2, 0, 0, 0, 0, 0, 0, 100]))
    assert msf[8:12] == bytes([0, 0, 2, 0])
    raw = driver.packet(bytes([0x43, 0, 2, 0, 0, 0, 0, 0, 100]))
    assert len(raw) == 48
    features = driver.packet(bytes([0x46, 0, 0, 0, 0, 0, 0, 1, 0]))
    assert struct.unpack(">IHH", features[:8]) == (len(features) - 4, 0, 8)
    pages = driver.packet(bytes([0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 200]))
    assert pages[8] == 0x2A and len(pages) == 30
    assert driver.packet(bytes([0x51, 0, 0, 0, 0, 0, 0, 0, 34]))[2] == 0x0E
    assert len(driver.packet(bytes([0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8]))) == 8
    assert driver.packet(bytes([0xBB])) == b""
    assert driver.packet(bytes([0])) == b""


def test_what_is_refused() -> None:
    driver, _ = drive_of(medium())
    refused(driver, bytes([0x5D]), ILLEGAL_REQUEST, 0x20)
    refused(driver, read_10(BLOCKS, 1), ILLEGAL_REQUEST, 0x21)
    refused(driver, read_10(BLOCKS - 1, 2), ILLEGAL_REQUEST, 0x21)
    refused(driver, bytes([0x43, 0, 5, 0, 0, 0, 0, 0, 100]), ILLEGAL_REQUEST, 0x24)
    refused(driver, bytes([0x5A, 0, 0x31]), ILLEGAL_REQUEST, 0x24)
    refused(driver, bytes([0x4A, 0, 0, 0, 0x10]), ILLEGAL_REQUEST, 0x24)


def test_a_medium_comes_and_goes() -> None:
    driver, disk = drive_of(None)
    refused(driver, bytes([0]), NOT_READY, 0x3A)
    refused(driver, read_10(0, 1), NOT_READY, 0x3A)
    disk.insert(medium())
    event = driver.packet(bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]))
    assert event[4] == 2 and event[5] == 2
    refused(driver, bytes([0]), UNIT_ATTENTION, 0x28)
    assert driver.packet(read_10(0, 1)) == CONTENT[:2048]
    disk.eject()
    event = driver.packet(bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]))
    assert event[4] == 3 and event[5] == 1
    refused(driver, bytes([0x25]), NOT_READY, 0x3A)


def test_the_guest_locks_and_ejects() -> None:
    driver, disk = drive_of(medium())
    driver.packet(bytes([0x1E, 0, 0, 0, 1]))
    with pytest.raises(DeviceError):
        disk.eject()
    assert driver.packet(bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]))[4] == 1  # somebody asks
    refused(driver, bytes([0x1B, 0, 0, 0, 2]), ILLEGAL_REQUEST, 0x53)
    driver.packet(bytes([0x1E]))
    driver.packet(bytes([0x1B, 0, 0, 0, 2]))
    assert disk.tray_open
    refused(driver, bytes([0]), NOT_READY, 0x3A)
    driver.packet(bytes([0x1B, 0, 0, 0, 3]))
    refused(driver, bytes([0]), UNIT_ATTENTION, 0x28)
    driver.packet(bytes([0]))


def test_device_reset_ends_a_packet() -> None:
    driver, _ = drive_of(medium())
    driver.select()
    driver.put(7, 0xA0)
    assert driver.wait() & 8
    driver.put(7, 0x08)
    assert driver.wait() == 0
    assert (driver.get(4), driver.get(5)) == (0x14, 0xEB)
    assert driver.packet(read_10(0, 1)) == CONTENT[:2048]


def test_a_state_saved_between_blocks() -> None:
    driver, _ = drive_of(medium())
    driver.select()
    driver.put(4, 0)
    driver.put(5, 8)
    driver.put(7, 0xA0)
    driver.wait()
    driver.write_block(read_10(1, 100).ljust(12, b"\0"))
    driver.wait_for_interrupt()
    data = driver.read_block(2048)
    other, _ = drive_of(medium())
    other.board.ide.load_state(driver.board.ide.save_state())
    for _ in range(99):
        other.wait_for_interrupt()
        data += other.read_block(2048)
    other.wait_for_interrupt()
    assert data == CONTENT[2048 : 101 * 2048]


def test_only_removable_media() -> None:
    with pytest.raises(InvalidRequestError):
        IdeBoard().plug(EmuBlockDevice(medium()), cdrom=True)
