"""IDE disks, driven through their ports."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from tests.tools.disks import Gated
from tests.tools.ide_driver import DATA, MIB, TABLE, IdeBoard, IdeDriver, IdeError
from tests.tools.patience import PATIENCE
from vdisk.emu_blockdev import EmuBlockDevice, ErrorPolicy, Geometry, OnError
from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.stores.memory import MemoryStore
from vdisk.vm.devices.ide_registers import ABRT, BSY, DRQ, IDNF, UNC
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.block import BlockDevice

CONTENT = random.Random(1).randbytes(4 * MIB)
READING, WRITING = True, False


def store(content: bytes = CONTENT) -> MemoryStore:
    return MemoryStore(content, growable=False)


def driver_of(device: BlockDevice, **options: Any) -> IdeDriver:
    board = IdeBoard()
    driver = board.plug(EmuBlockDevice(device, lock=board.bus.lock, **options))
    board.enable()
    return driver


def disk_of(driver: IdeDriver) -> EmuBlockDevice:
    drive = driver.board.ide.channels[0].drives[0]
    assert drive is not None
    return drive.disk


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("read", "write", "block"),
    [(0x20, 0x30, 1), (0x24, 0x34, 1), (0xC4, 0xC5, 16), (0x29, 0x39, 16)],
)
def test_sectors_through_the_data_register(
    tmp_path: Path, read: int, write: int, block: int, threads: int, width: int
) -> None:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, 4 * MIB, format="qcow2")
    driver = driver_of(vdisk.open(path, "r+"), threads=threads)
    data = CONTENT[: 40 * 512]
    driver.pio_write(write, 77, data, block=block, width=width)
    assert driver.pio_read(read, 77, 40, block=block, width=width) == data
    assert driver.pio_read(read, 100, 1, block=block) == data[23 * 512 : 24 * 512]
    disk_of(driver).close()
    with vdisk.open(path) as image:
        assert image.read(77 * 512, len(data)) == data


def test_more_than_the_buffer_holds() -> None:
    driver = driver_of(store())
    assert driver.pio_read(0x29, 3, 1000, block=16) == CONTENT[3 * 512 : 1003 * 512]
    assert driver.pio_read(0x20, 0, 256, block=1) == CONTENT[: 256 * 512]


@pytest.mark.parametrize("start_first", [False, True])
@pytest.mark.parametrize("threads", [0, 2])
def test_dma_between_the_disk_and_regions_of_memory(threads: int, start_first: bool) -> None:
    device = store()
    driver = driver_of(device, threads=threads)
    regions = [(DATA + 6, 1024), (DATA + 0x20000, 0), (DATA + 0x50000, 512)]
    driver.table(regions)
    count = (1024 + 65536 + 512) // 512
    assert driver.dma_command(0xC8, 5, count, reading=READING, start_first=start_first) == 4
    found = b"".join(driver.board.memory.read(gpa, size or 65536) for gpa, size in regions)
    assert found == CONTENT[5 * 512 : (5 + count) * 512]
    driver.board.memory.write(DATA, b"w" * 1536)
    driver.table([(DATA, 1536)])
    assert driver.dma_command(0x35, 4000, 3, reading=WRITING, start_first=start_first) == 4
    assert device.read(4000 * 512, 1536) == b"w" * 1536


@pytest.mark.parametrize("before", [4, 8, 12, 16, 4096])
def test_a_table_across_the_end_of_a_page(before: int) -> None:
    """An entry may lie in two pages, too; and what is behind the last one is nobody's."""
    driver = driver_of(store())
    regions = [(DATA + 2048 * number, 512) for number in range(12)]
    driver.table(regions, at=TABLE + PAGE_SIZE - before)
    assert driver.dma_command(0xC8, 5, 12, reading=READING) == 4
    found = b"".join(driver.board.memory.read(gpa, size) for gpa, size in regions)
    assert found == CONTENT[5 * 512 : 17 * 512]


def test_a_table_that_reaches_out_of_memory() -> None:
    driver = driver_of(store())
    end = driver.board.memory.size
    driver.board.memory.write(end - 16, struct.pack("<IIII", DATA, 512, DATA + 4096, 512))
    driver.ports.write(driver.dma + 4, 4, end - 16)
    assert driver.dma_command(0xC8, 0, 2, reading=READING) == 5  # no entry is marked as the last
    driver.ports.write(driver.dma + 4, 4, end - 16)
    with pytest.raises(IdeError):
        driver.dma_command(0xC8, 0, 3, reading=READING)


def test_dma_says_when_memory_was_written() -> None:
    driver = driver_of(store())
    seen: list[tuple[int, int]] = []
    driver.table([(DATA, 512), (DATA + 4096, 512)])
    driver.board.memory.on_dirtied(seen.extend)
    driver.dma_command(0x25, 0, 2, reading=READING)
    assert (DATA, 512) in seen and (DATA + 4096, 512) in seen


def test_prd_tables_that_do_not_fit() -> None:
    driver = driver_of(store())
    driver.table([(DATA, 2048)])
    assert driver.dma_command(0xC8, 0, 1, reading=READING) == 5  # still active: room was left
    driver.table([(DATA, 512)])
    driver.address(0, 2, extended=False)
    driver.put(7, 0xC8)
    driver.start_dma(reading=READING)
    assert not driver.irq.level  # too short: nothing happens
    assert driver.stop_dma() & 7 == 0
    for region in ((16 * MIB - 512, 1024), (1 << 31, 1024)):
        driver.table([region])
        with pytest.raises(IdeError):
            driver.dma_command(0xC8, 0, 2, reading=READING)
    driver.ports.write(driver.dma + 4, 4, 1 << 30)
    with pytest.raises(IdeError):
        driver.dma_command(0xC8, 0, 2, reading=READING)
    driver.table([(DATA, 1024)])
    with pytest.raises(IdeError):
        driver.dma_command(0xC8, 0, 2, reading=WRITING)
    assert driver.dma_command(0xC8, 0, 2, reading=READING) == 4


def test_an_endless_table_ends() -> None:
    driver = driver_of(store())
    driver.board.memory.write(4 * MIB, struct.pack("<II", DATA, 2) * 20000)
    driver.ports.write(driver.dma + 4, 4, 4 * MIB)
    driver.address(0, 0, extended=False)
    driver.put(7, 0xC8)
    driver.start_dma(reading=READING)
    assert not driver.ports.read(driver.dma + 2, 1) & 1


def test_identify_tells_the_disk() -> None:
    driver = driver_of(
        store(), serial="SN-1", physical_sector_size=4096, geometry=Geometry(130, 2, 31)
    )
    words = driver.identify()
    assert words[1] == 130 and words[3] == 2 and words[6] == 31
    assert words[60] | words[61] << 16 == 8192
    assert words[100] | words[101] << 16 == 8192
    assert words[106] == 0x6003
    text = b"".join(struct.pack(">H", word) for word in words[10:20]).decode()
    assert text.strip() == "SN-1"
    assert sum(struct.pack("<256H", *words)) & 0xFF == 0
    with pytest.raises(IdeError) as caught:
        driver.command(0xA1)
    assert caught.value.error == ABRT


def test_chs_addresses_and_another_translation() -> None:
    driver = driver_of(store())
    heads, sectors = driver.identify()[3], driver.identify()[6]
    lba = (2 * heads + 5) * sectors + 9
    assert driver.chs_read(2, 5, 10, 2) == CONTENT[lba * 512 : (lba + 2) * 512]
    driver.select(3)
    driver.put(2, 10)
    driver.put(7, 0x91)
    driver.wait_for_interrupt()
    assert driver.identify()[55:57] == [4, 10]
    lba = (7 * 4 + 3) * 10 + 9
    assert driver.chs_read(7, 3, 10, 1) == CONTENT[lba * 512 : (lba + 1) * 512]
    with pytest.raises(IdeError) as caught:
        driver.chs_read(7, 3, 11, 1)
    assert caught.value.error == IDNF


def test_sectors_past_the_end() -> None:
    driver = driver_of(store())
    for command, lba, count in ((0x20, 8191, 2), (0x24, 1 << 40, 1), (0x30, 8192, 1)):
        driver.address(lba, count, extended=command == 0x24)
        driver.put(7, command)
        with pytest.raises(IdeError) as caught:
            driver.wait_for_interrupt()
        assert caught.value.error == IDNF


def test_commands_without_data() -> None:
    driver = driver_of(store())
    for command in (0x10, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, 0xE7, 0xEA, 0xF5, 0x94, 0x97):
        driver.command(command)
    driver.command(0xE5)
    assert driver.get(2) == 0xFF
    driver.command(0x70, 0, 0, 5)
    driver.command(0x40, 0, 4, 5)
    driver.select(0x40)
    driver.put(7, 0xF8)
    driver.wait_for_interrupt()
    assert driver.get(3) | driver.get(4) << 8 == 8191
    driver.address(0, 1, extended=True)
    driver.put(7, 0x27)
    driver.wait_for_interrupt()
    assert driver.get(3) | driver.get(4) << 8 == 8191
    driver.ports.write(driver.control, 1, 0x80)
    assert driver.get(3) == 0
    for command in (0x00, 0x50, 0xB1, 0xFF):
        with pytest.raises(IdeError) as caught:
            driver.command(command)
        assert caught.value.error == ABRT


def test_features() -> None:
    device = Gated(store(), gated=False)
    driver = driver_of(device)
    driver.command(0xEF, 0x82)
    assert device.events == ["flush"]
    assert not driver.identify()[85] & 0x20
    driver.pio_write(0x30, 0, bytes(512))
    assert device.events[1:] == ["written 0", "flush"]
    driver.command(0xEF, 0x02)
    driver.command(0xEF, 0x03, 0x45)
    assert driver.identify()[88] == 0x203F
    driver.command(0xEF, 0x03, 0x22)
    assert driver.identify()[63] == 0x0407
    for registers in ((0x03, 0x47), (0x03, 0x18), (0x77,)):
        with pytest.raises(IdeError):
            driver.command(0xEF, *registers)
    driver.command(0xC6, 0, 8)
    assert driver.identify()[59] == 0x108
    driver.command(0xC6, 0, 0)
    with pytest.raises(IdeError):
        driver.pio_read(0xC4, 0, 1)
    with pytest.raises(IdeError):
        driver.command(0xC6, 0, 3)


def test_fua_is_stable_before_it_is_done() -> None:
    device = Gated(store(), gated=False)
    driver = driver_of(device)
    driver.table([(DATA, 512)])
    driver.dma_command(0x3D, 0, 1, reading=WRITING)
    assert device.events == ["written 0", "flush"]
    driver.pio_write(0xCE, 0, bytes(512), block=16)
    assert device.events[2:] == ["written 1", "flush"]


def test_smart() -> None:
    driver = driver_of(store())
    driver.command(0xB0, 0xDA, 0, 0, 0x4F, 0xC2)
    assert (driver.get(4), driver.get(5)) == (0x4F, 0xC2)
    for function, count, low in ((0xD0, 1, 0), (0xD1, 1, 0), (0xD5, 1, 0), (0xD5, 1, 1)):
        for number, value in enumerate((function, count, low, 0x4F, 0xC2), 1):
            driver.put(number, value)
        driver.put(7, 0xB0)
        assert driver.wait_for_interrupt() & DRQ
        page = driver.read_block(512)
        if function != 0xD5:
            assert sum(page) & 0xFF == 0
    driver.command(0xB0, 0xD9, 0, 0, 0x4F, 0xC2)
    with pytest.raises(IdeError):
        driver.command(0xB0, 0xD0, 1, 0, 0x4F, 0xC2)
    driver.command(0xB0, 0xD8, 0, 0, 0x4F, 0xC2)
    with pytest.raises(IdeError):
        driver.command(0xB0, 0xDA, 0, 0, 0, 0)


def test_trim_discards_ranges() -> None:
    device = store()
    driver = driver_of(device)
    assert driver.identify()[169] == 1
    discarded: list[tuple[int, int]] = []
    device._discard = lambda *where: discarded.append(where)  # type: ignore[method-assign]
    ranges = struct.pack("<QQ", 8 << 48 | 16, 65535 << 48 | 100)
    driver.board.memory.write(DATA, ranges[:8].ljust(512, b"\0"))
    driver.table([(DATA, 512)])
    driver.dma_command(0x06, 0, 1, reading=WRITING, features=1)
    assert discarded == [(16 * 512, 8 * 512)]
    driver.board.memory.write(DATA, ranges.ljust(512, b"\0"))
    driver.table([(DATA, 512)])
    with pytest.raises(IdeError):
        driver.dma_command(0x06, 0, 1, reading=WRITING, features=1)
    with pytest.raises(IdeError):
        driver.dma_command(0x06, 0, 9, reading=WRITING, features=1)


def test_errors_of_the_storage() -> None:
    faults = Faults(store())
    driver = driver_of(faults, policy=ErrorPolicy(werror=OnError.REPORT))
    driver.table([(DATA, 512)])
    faults.set_rules(InjectError(where=Where(iotypes=frozenset({IoType.READ}))))
    for read in (
        lambda: driver.pio_read(0x20, 9, 1),
        lambda: driver.dma_command(0xC8, 9, 1, reading=READING),
    ):
        with pytest.raises(IdeError) as caught:
            read()
        assert caught.value.error == UNC
        assert driver.get(3) == 9
    faults.set_rules(InjectError(where=Where(iotypes=frozenset({IoType.WRITE, IoType.FLUSH}))))
    with pytest.raises(IdeError):
        driver.pio_write(0x30, 9, bytes(512))
    with pytest.raises(IdeError):
        driver.command(0xE7)
    faults.set_rules()
    assert driver.pio_read(0x20, 9, 1) == CONTENT[9 * 512 : 10 * 512]


def test_a_read_only_disk() -> None:
    driver = driver_of(store(), readonly=True)
    with pytest.raises(IdeError) as caught:
        driver.pio_write(0x30, 0, bytes(512))
    assert caught.value.error == ABRT


def test_master_and_slave_and_nobody() -> None:
    board = IdeBoard()
    drives = [
        board.plug(EmuBlockDevice(store(bytes([number + 1]) * MIB), lock=board.bus.lock), 1, number)
        for number in range(2)
    ]
    board.enable()
    for number, driver in enumerate(drives):
        assert driver.pio_read(0x20, 0, 1) == bytes([number + 1]) * 512
    absent = IdeDriver(board, 0, 1)
    absent.select()
    assert [absent.get(register) for register in range(1, 8)] == [0] * 7
    absent.put(7, 0xEC)
    assert absent.ports.read(absent.base, 2) == 0
    assert not absent.irq.level


def test_resets_leave_the_signature() -> None:
    driver = driver_of(store())
    driver.address(77, 5, extended=False)
    driver.put(7, 0x20)
    driver.ports.write(driver.control, 1, 4)
    assert driver.ports.read(driver.control, 1) & BSY
    driver.ports.write(driver.control, 1, 0)
    assert driver.wait() == 0x50
    assert [driver.get(register) for register in range(1, 7)] == [1, 1, 1, 0, 0, 0xA0]
    driver.put(7, 0x90)
    driver.wait_for_interrupt()
    assert driver.get(1) == 1


def test_interrupts_can_be_disabled() -> None:
    driver = driver_of(store())
    driver.ports.write(driver.control, 1, 2)
    driver.put(7, 0xEC)
    assert not driver.irq.level
    driver.ports.write(driver.control, 1, 0)
    assert driver.irq.level
    driver.read_block(512)
    driver.get(7)
    assert not driver.irq.level


def test_4096_byte_sectors() -> None:
    driver = driver_of(store(), sector_size=4096)
    words = driver.identify()
    assert words[60] == 1024 and words[117] | words[118] << 16 == 2048
    assert driver.pio_read(0x20, 3, 2, sector=4096) == CONTENT[3 * 4096 : 5 * 4096]
    driver.pio_write(0xC5, 7, b"s" * 4096 * 20, sector=4096, block=16)
    assert driver.pio_read(0xC4, 26, 1, sector=4096, block=16) == b"s" * 4096


def test_stopping_dma_gives_the_transfer_up() -> None:
    device = Gated(store())
    driver = driver_of(device)
    driver.table([(DATA, 512)])
    with driver.board.bus.lock:
        driver.address(0, 1, extended=False)
        driver.put(7, 0xCA)
        driver.start_dma(reading=WRITING)
        assert driver.ports.read(driver.control, 1) & BSY
    assert device.entered.wait(PATIENCE)
    device.open(0)
    driver.stop_dma()
    assert driver.wait() == 0x50
    device.open(1)
    driver.table([(DATA, 512)])
    assert driver.dma_command(0xCA, 0, 1, reading=WRITING) == 4


@pytest.mark.parametrize("way", ["pio", "dma"])
def test_what_stopped_the_machine_goes_on_in_a_loaded_one(way: str) -> None:
    faults = Faults(store())
    driver = driver_of(faults, policy=ErrorPolicy(werror=OnError.STOP), threads=0)
    faults.set_rules(InjectError(where=Where(iotypes=frozenset({IoType.WRITE}))))
    driver.address(4, 2, extended=False)
    if way == "pio":
        driver.put(7, 0x30)
        driver.write_block(b"n" * 512)
    else:
        driver.board.memory.write(DATA, b"n" * 1024)
        driver.table([(DATA, 1024)])
        driver.put(7, 0xCA)
        driver.start_dma(reading=WRITING)
    assert disk_of(driver).stopped
    state = driver.board.ide.save_state()
    device = store()
    other = driver_of(device, threads=0)
    other.board.memory.view(0, 16 * MIB)[:] = driver.board.memory.view(0, 16 * MIB)
    other.board.ide.load_state(state)
    other.board.clock.advance(1)
    other.wait_for_interrupt()
    if way == "pio":
        other.write_block(b"m" * 512)
        other.wait_for_interrupt()
    assert device.read(4 * 512, 1024) == (b"n" * 512 + b"m" * 512 if way == "pio" else b"n" * 1024)


def test_a_state_saved_in_the_middle_of_a_block() -> None:
    driver = driver_of(store())
    driver.address(10, 3, extended=False)
    driver.put(7, 0x20)
    driver.wait_for_interrupt()
    first = driver.read_block(100)
    other = driver_of(store())
    other.board.ide.load_state(driver.board.ide.save_state())
    rest = other.read_block(412)
    for _ in range(2):
        other.wait_for_interrupt()
        rest += other.read_block(512)
    assert first + rest == CONTENT[5120 : 5120 + 1536]


def test_the_write_cache_is_saved_and_comes_back_with_a_reset() -> None:
    driver, other = driver_of(store()), driver_of(store())
    driver.command(0xEF, 0x82)
    other.board.ide.load_state(driver.board.ide.save_state())
    assert not disk_of(other).write_cache
    other.board.ide.reset()
    assert disk_of(other).write_cache


def test_states_that_cannot_be_are_refused() -> None:
    driver = driver_of(store())
    for field, value in (
        ("job", "x"),
        ("position", 1),
        ("status", 300),
        ("then", "y"),
        ("left", -1),
    ):
        state = driver.board.ide.save_state()
        state["ide0"]["drives"][0][field] = value
        with pytest.raises(CorruptImageError):
            driver.board.ide.load_state(state)


def test_too_many_heads() -> None:
    with pytest.raises(InvalidRequestError):
        driver_of(store(), geometry=Geometry(10, 17, 63))


def test_every_access_has_an_answer() -> None:
    driver = driver_of(store())
    rng = random.Random(5)
    for _ in range(4000):
        base = rng.choice([driver.base, driver.base, driver.control, driver.dma])
        offset, size = rng.randrange(8), rng.choice([1, 2, 4])
        if base == driver.control:
            offset = 0
        if rng.random() < 0.6:
            value = rng.choice(
                [0, 1, 4, 0xFF, 0x20, 0x30, 0xC8, 0xCA, 0xEC, rng.randrange(1 << 32)]
            )
            driver.ports.write(base + offset, size, value & (1 << 8 * size) - 1)
        else:
            driver.ports.read(base + offset, size)
    driver.ports.write(driver.control, 1, 4)
    driver.ports.write(driver.control, 1, 0)
    disk_of(driver).write_cache = True
    assert driver.identify()[0] == 0x40


@pytest.mark.parametrize("width", [1, 2, 4])
def test_many_accesses_at_once_are_so_many_accesses(width: int) -> None:
    one, many = driver_of(store()), driver_of(store())
    for driver in (one, many):
        driver.address(4, 5, extended=False)
        driver.put(7, 0xC4)
    count = 5 * 512 // width + 7
    wanted = b"".join(
        one.ports.read(one.base, width).to_bytes(width, "little") for _ in range(count)
    )
    parts = [many.ports.read_many(many.base, width, number) for number in (1, 100, count - 101)]
    assert b"".join(parts) == wanted
    assert wanted[: 5 * 512] == CONTENT[4 * 512 : 9 * 512]
    for driver in (one, many):
        driver.get(7)
        driver.address(4, 3, extended=False)
        driver.put(7, 0x30)
    data = bytes(range(256)) * 7
    for start in range(0, len(data), width):
        one.ports.write(one.base, width, int.from_bytes(data[start : start + width], "little"))
    many.ports.write_many(many.base, width, data)
    assert one.get(7) == many.get(7)
    contents = [driver.pio_read(0x20, 4, 3) for driver in (one, many)]
    assert contents[0] == contents[1] == data[:1536]


def test_many_accesses_to_other_registers() -> None:
    driver = driver_of(store())
    driver.ports.write_many(driver.base + 3, 1, b"abc")
    assert driver.ports.read_many(driver.base + 3, 1, 2) == b"cc"
    assert driver.ports.read_many(0x5000, 2, 2) == b"\xff" * 4
    driver.ports.write_many(0x5000, 2, bytes(4))
