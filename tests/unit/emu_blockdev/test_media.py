"""Trays, sizes and geometry of emulated disks."""

from __future__ import annotations

import pytest

from tests.tools.disks import Submitter
from vdisk.emu_block.geometry import for_size, guess, translate
from vdisk.emu_blockdev import EmuBlockDevice, Geometry, Operation, Request, Translation
from vdisk.errors import DeviceError, InvalidRequestError, NotFoundError
from vdisk.stores.memory import MemoryStore
from vdisk.stores.null import NullStore


def medium(text: bytes) -> MemoryStore:
    return MemoryStore(text.ljust(4096), growable=False)


def test_a_medium_comes_and_goes() -> None:
    disk = EmuBlockDevice(None, removable=True, readonly=True)
    changes: list[int] = []
    disk.on_change(lambda: changes.append(disk.size))
    request = Request(Operation.READ, 0, 512, [memoryview(bytearray(512))])
    assert disk.submit(request)
    assert isinstance(request.error, NotFoundError)
    first = medium(b"one")
    disk.insert(first)
    with pytest.raises(InvalidRequestError):
        disk.insert(medium(b"two"))
    guest = Submitter(disk)
    read = guest.read(0, 2048)
    assert read.data.startswith(b"one")
    disk.eject()
    assert first.closed and not disk.present
    disk.insert(medium(b"two"))
    assert guest.read(0, 512).data.startswith(b"two")
    assert changes == [4096, 0, 4096]
    disk.close()


def test_a_locked_tray_asks_the_guest_first() -> None:
    disk = EmuBlockDevice(medium(b"x"), removable=True)
    asked: list[bool] = []
    disk.on_eject_request(lambda: asked.append(True))
    disk.tray_locked = True
    with pytest.raises(DeviceError):
        disk.eject()
    assert asked == [True] and disk.present
    disk.eject(force=True)
    assert not disk.present and not disk.tray_locked
    disk.close()


def test_the_guest_moves_the_tray_with_the_medium_in_it() -> None:
    disk = EmuBlockDevice(medium(b"x"), removable=True)
    disk.move_tray(out=True)
    assert not disk.present
    disk.move_tray(out=False)
    assert disk.present
    disk.close()
    with pytest.raises(InvalidRequestError):
        EmuBlockDevice(medium(b"x")).move_tray(out=True)


def test_resizing_tells() -> None:
    disk = EmuBlockDevice(MemoryStore(bytes(4096), growable=False))
    sizes: list[int] = []
    disk.on_change(lambda: sizes.append(disk.size))
    disk.resize(10000)
    assert sizes == [9728]  # whole sectors
    disk.close()


def test_another_device_takes_over() -> None:
    disk = EmuBlockDevice(medium(b"one"))
    former = disk.exchange(medium(b"two"))
    assert former.read(0, 3) == b"one"
    assert Submitter(disk).read(0, 512).data.startswith(b"two")
    with pytest.raises(InvalidRequestError):
        disk.exchange(MemoryStore(b"short"))
    disk.close()


@pytest.mark.parametrize(
    "options",
    [
        {"sector_size": 520},
        {"sector_size": 4096, "physical_sector_size": 512},
        {"serial": "x" * 21},
    ],
)
def test_options_that_no_disk_has(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        EmuBlockDevice(medium(b""), **options)  # type: ignore[arg-type]


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "physical", "logical", "translation"),
    [
        (100 * MIB, (203, 16, 63), (203, 16, 63), Translation.NONE),
        (504 * MIB, (1024, 16, 63), (1024, 16, 63), Translation.NONE),
        (1000 * MIB, (2031, 16, 63), (1015, 32, 63), Translation.LARGE),
        (4000 * MIB, (8126, 16, 63), (1015, 128, 63), Translation.LARGE),
        (8000 * MIB, (16253, 16, 63), (1019, 255, 63), Translation.LBA),
        (1 << 40, (16383, 16, 63), (1024, 255, 63), Translation.LBA),
    ],
)
def test_geometry_by_size(
    size: int, physical: tuple[int, ...], logical: tuple[int, ...], translation: Translation
) -> None:
    found = guess(NullStore(size))
    assert found == (physical, logical, translation)


def test_lba_assist_by_size() -> None:
    for heads, mib in ((16, 500), (32, 1000), (64, 2000), (128, 4000), (255, 7000)):
        sectors = mib * 2048
        assert translate(for_size(sectors), Translation.LBA, sectors).heads == heads


def test_the_partition_table_shows_the_geometry_it_was_made_with() -> None:
    sector = bytearray(512)
    sector[446:462] = bytes([0x80, 1, 1, 0, 0x83, 239, 0x3F, 0xFF]) + b"\x3f\0\0\0\0\x10\0\0"
    sector[510:] = b"\x55\xaa"
    disk = MemoryStore(sector + bytes(64 * MIB - 512), growable=False)
    found = guess(disk)
    assert found.logical.heads == 240 and found.logical.sectors == 63
    assert found.translation is Translation.LBA
    sector[446 + 5] = 9
    found = guess(MemoryStore(sector + bytes(64 * MIB - 512), growable=False))
    assert found.physical[1:] == found.logical[1:] == (10, 63)
    assert found.translation is Translation.NONE


def test_sectors_by_chs() -> None:
    geometry = Geometry(100, 4, 17)
    assert geometry.lba(0, 0, 1) == 0
    assert geometry.lba(99, 3, 17) == geometry.total - 1
    assert geometry.lba(0, 0, 0) is None
    assert geometry.lba(100, 0, 1) is None
    with pytest.raises(InvalidRequestError):
        Geometry(0, 1, 1).checked()
