"""int 13h: CHS functions and EDD, over devices in memory."""

from __future__ import annotations

import struct

import pytest

from tests.tools.bios_machine import STACK, STACK_SEGMENT, BiosMachine
from vdisk.emu_blockdev import EmuBlockDevice, ErrorPolicy, OnError, Operation
from vdisk.errors import DeviceError
from vdisk.filters.faults import Faults, InjectError, IoType, Where
from vdisk.stores.memory import MemoryStore

SECTORS = 63 * 16 * 20
BUFFER = 0x2000  # segment
PACKET_SEGMENT = 0x0800
DISK, SECOND, CD = 0x80, 0x81, 0xE0


def numbered(sectors: int, size: int = 512) -> bytes:
    """Sectors that begin with their number."""
    return b"".join(number.to_bytes(4, "little").ljust(size, b"\x11") for number in range(sectors))


class Failing(MemoryStore):
    """A disk whose sectors from 1000 on cannot be used."""

    def _read_into(self, offset: int, view: memoryview) -> None:
        if offset + len(view) > 512_000:
            raise DeviceError("a bad sector")
        super()._read_into(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        if offset + len(view) > 512_000:
            raise DeviceError("a bad sector")
        super()._write(offset, view)


@pytest.fixture
def device() -> MemoryStore:
    return MemoryStore(numbered(SECTORS), growable=False)


@pytest.fixture
def pc(device: MemoryStore) -> BiosMachine:
    machine = BiosMachine(
        disks=[device, numbered(100)], floppies=[numbered(2880)], cdroms=[numbered(40, 2048), None]
    )
    machine.post()
    return machine


def first_numbers(pc: BiosMachine, count: int, size: int = 512) -> list[int]:
    read = pc.memory.read
    return [int.from_bytes(read((BUFFER << 4) + n * size, 4), "little") for n in range(count)]


def packet(
    pc: BiosMachine, lba: int, count: int, buffer: int = BUFFER << 16, size: int = 16, flat: int = 0
) -> dict[str, int]:
    data = struct.pack("<BBHIQQ", size, 0, count, buffer, lba, flat)
    pc.memory.write(PACKET_SEGMENT << 4, data)
    return {"ds": PACKET_SEGMENT, "si": 0}


class TestChs:
    def test_reads_the_sector_that_the_geometry_names(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x0203, cx=0x0205, dx=0x0180, es=BUFFER)
        assert not done.carry and done.ah == 0 and done.al == 3
        first = (2 * 16 + 1) * 63 + 4
        assert first_numbers(pc, 3) == [first, first + 1, first + 2]

    def test_reading_over_the_stack_leaves_the_way_back(self, pc: BiosMachine) -> None:
        """There are boot sectors that do, some with the whole frame in what is read."""
        frame = (STACK_SEGMENT << 4) + STACK - 6
        segment = (frame >> 9 << 5) - 0x20
        done = pc.interrupt(0x13, ax=0x0203, cx=0x0001, dx=0x0080, es=segment)
        assert not done.carry
        assert pc.memory.read(frame, 4) == bytes.fromhex("34120000")
        assert pc.memory.read(frame - 1, 1) == pc.memory.read(segment << 4 | 5, 1) == b"\x11"

    def test_writes(self, pc: BiosMachine, device: MemoryStore) -> None:
        pc.memory.write(BUFFER << 4, b"new" * 200)
        assert not pc.interrupt(0x13, ax=0x0301, cx=0x0002, dx=0x0080, es=BUFFER).carry
        assert device.read(512, 6) == b"newnew" and device.read(1024, 4) == b"\2\0\0\0"

    @pytest.mark.parametrize(
        ("ax", "cx", "dx", "status"),
        [
            (0x0200, 0x0001, 0x80, 0x01),  # no sectors
            (0x0281, 0x0001, 0x80, 0x01),  # more than 64 KiB
            (0x0201, 0x0000, 0x80, 0x04),  # sector 0
            (0x0201, 0x0001, 0x1080, 0x04),  # head 16
            (0x0201, 0xFFC1, 0x80, 0x04),  # cylinder 1023
            (0x0201, 0x0001, 0x82, 0x01),  # no such disk
            (0x0201, 0x0001, 0x01, 0x80),  # no such diskette
            (0x6601, 0x0001, 0x80, 0x01),  # no such function
        ],
    )
    def test_refusals(self, pc: BiosMachine, ax: int, cx: int, dx: int, status: int) -> None:
        done = pc.interrupt(0x13, ax=ax, cx=cx, dx=dx, es=BUFFER)
        assert done.carry and done.ah == status
        again = pc.interrupt(0x13, ax=0x0100, dx=dx)
        assert again.ah == status and again.carry

    def test_a_success_is_remembered_too(self, pc: BiosMachine) -> None:
        pc.interrupt(0x13, ax=0x0201, cx=0, dx=0x80)
        pc.interrupt(0x13, ax=0x0201, cx=1, dx=0x80, es=BUFFER)
        done = pc.interrupt(0x13, ax=0x0100, dx=0x80)
        assert done.ah == 0 and not done.carry

    def test_parameters_of_a_disk(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x0800, dx=0x80)
        assert not done.carry and done.ah == 0
        assert done.ch | (done.cl & 0xC0) << 2 == 19 and done.cl & 63 == 63
        assert done.dh == 15 and done.dl == 2

    def test_parameters_of_a_diskette(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x0800, dx=0x00)
        assert (done.ch, done.cl, done.dh, done.dl, done.bl) == (79, 18, 1, 1, 4)
        assert (done.es, done.registers.gprs[7]) == (0xF000, 0xEFC7)

    def test_parameters_of_nothing(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x0800, dx=0x85)
        assert done.carry and done.ah == 1

    def test_type(self, pc: BiosMachine) -> None:
        disk = pc.interrupt(0x13, ax=0x1500, dx=0x80)
        assert disk.ah == 3 and disk.cx << 16 | disk.dx == SECTORS and not disk.carry
        assert pc.interrupt(0x13, ax=0x1500, dx=0x00).ah == 2
        assert pc.interrupt(0x13, ax=0x1500, dx=0x03).ah == 0

    def test_the_upper_halves_of_registers_stay(self, pc: BiosMachine) -> None:
        done = pc.interrupt(
            0x13, eax=0xAAAA0201, ecx=0xBBBB0001, edx=0xCCCC0080, ebx=0xDDDD0000, es=BUFFER
        )
        assert done.eax == 0xAAAA0001 and done.ecx == 0xBBBB0001 and done.ebx == 0xDDDD0000

    def test_a_format_fills_a_track_of_a_diskette(self, pc: BiosMachine) -> None:
        assert not pc.interrupt(0x13, ax=0x0512, cx=0x0100, dx=0x0000).carry
        device = pc.drives[0].medium()
        assert device is not None
        assert device.read(36 * 512, 18 * 512) == b"\xf6" * 18 * 512
        assert device.read(54 * 512, 4) == (54).to_bytes(4, "little")

    def test_tables_and_counts_that_programs_read_directly(self, pc: BiosMachine) -> None:
        assert pc.memory.read(0x475, 1) == b"\x02"
        offset, segment = pc.word(0x104), pc.word(0x106)
        table = pc.memory.read((segment << 4) + offset, 16)
        assert int.from_bytes(table[:2], "little") == 20 and table[2] == 16 and table[14] == 63


def once(disk: EmuBlockDevice, iotype: IoType) -> list[OnError]:
    """Let the next such request of a disk fail; what is done about failures."""
    actions: list[OnError] = []
    disk.on_error = lambda _request, _error, action: actions.append(action)
    faults = disk.device
    assert isinstance(faults, Faults)
    faults.set_rules(InjectError(where=Where(iotypes=frozenset({iotype}), once=True)))
    return actions


class TestErrorPolicy:
    def machine(self, policy: ErrorPolicy) -> tuple[BiosMachine, EmuBlockDevice]:
        pc = BiosMachine(disks=[Faults(MemoryStore(numbered(2000), growable=False))], policy=policy)
        pc.post()
        return pc, pc.drives[0].disk

    def test_reported(self) -> None:
        pc, disk = self.machine(ErrorPolicy())
        actions = once(disk, IoType.READ)
        done = pc.interrupt(0x13, ax=0x0201, cx=1, dx=DISK, es=BUFFER)
        assert done.carry and done.ah == 0x10
        assert actions == [OnError.REPORT] and disk.statistics.failed[Operation.READ] == 1

    def test_ignored(self) -> None:
        pc, disk = self.machine(ErrorPolicy(werror=OnError.IGNORE))
        actions = once(disk, IoType.WRITE)
        assert not pc.interrupt(0x13, ax=0x0301, cx=1, dx=DISK, es=BUFFER).carry
        assert actions == [OnError.IGNORE]

    @pytest.mark.parametrize("function", [2, 3, 4])
    def test_the_call_is_made_again_when_the_machine_goes_on(self, function: int) -> None:
        pc, disk = self.machine(ErrorPolicy(OnError.STOP, OnError.STOP))
        actions = once(disk, IoType.WRITE if function == 3 else IoType.READ)
        before = {"ax": function << 8 | 2, "cx": 5, "dx": DISK}
        stopped = pc.trap("disk", es=BUFFER, **before)
        assert stopped.waits and {name: getattr(stopped, name) for name in before} == before
        assert pc.trap("disk", es=BUFFER, **before).waits  # it has not gone on yet
        assert actions == [OnError.STOP] and disk.stopped
        disk.resume()
        done = pc.trap("disk", es=BUFFER, **before)
        assert not (done.waits or done.carry or disk.stopped)
        assert function != 2 or first_numbers(pc, 2) == [4, 5]

    def test_booting_waits_too(self) -> None:
        boot = b"".ljust(510, b"B") + b"\x55\xaa"
        pc = BiosMachine(
            disks=[Faults(MemoryStore(boot, growable=False))],
            policy=ErrorPolicy(rerror=OnError.STOP),
        )
        pc.post()
        once(pc.drives[0].disk, IoType.READ)
        assert all(pc.trap("bootstrap").waits for _ in range(9))
        assert pc.drives[0].disk.stopped
        pc.drives[0].disk.resume()
        assert not pc.trap("bootstrap").waits
        assert pc.memory.read(0x7C00, 512) == boot
        assert pc.screen().count("Booting from hard disk") == 1


class TestErrors:
    def test_a_bad_sector_is_reported_as_such(self) -> None:
        pc = BiosMachine(disks=[Failing(numbered(2000), growable=False)])
        pc.post()
        read = pc.interrupt(0x13, ax=0x4200, dx=DISK, **packet(pc, 999, 2))
        assert read.carry and read.ah == 0x10
        assert pc.word((PACKET_SEGMENT << 4) + 2) == 0
        written = pc.interrupt(0x13, ax=0x4300, dx=DISK, **packet(pc, 1000, 1))
        assert written.carry and written.ah == 0xCC

    def test_a_disk_that_can_only_be_read(self) -> None:
        device = MemoryStore(numbered(2000), growable=False)
        device.readonly = True
        pc = BiosMachine(disks=[device])
        pc.post()
        done = pc.interrupt(0x13, ax=0x0301, cx=1, dx=DISK, es=BUFFER)
        assert done.carry and done.ah == 0x03


class TestEdd:
    def test_installation_check(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x4100, bx=0x55AA, dx=DISK)
        assert (done.ah, done.bx, done.cx, done.carry) == (0x30, 0xAA55, 7, False)
        assert pc.interrupt(0x13, ax=0x4100, bx=0x55AA, dx=0x8F).carry
        assert pc.interrupt(0x13, ax=0x4100, bx=0, dx=DISK).carry

    def test_reads_by_lba(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x4200, dx=DISK, **packet(pc, SECTORS - 2, 2))
        assert not done.carry and done.ah == 0
        assert first_numbers(pc, 2) == [SECTORS - 2, SECTORS - 1]

    def test_reads_more_than_a_segment(self, pc: BiosMachine) -> None:
        assert not pc.interrupt(0x13, ax=0x4200, dx=DISK, **packet(pc, 0, 300)).carry
        assert first_numbers(pc, 300) == list(range(300))

    def test_reads_to_a_flat_address_above_1_mib(self, pc: BiosMachine) -> None:
        where = packet(pc, 5, 1, buffer=0xFFFFFFFF, size=0x18, flat=0x200000)
        assert not pc.interrupt(0x13, ax=0x4200, dx=DISK, **where).carry
        assert pc.memory.read(0x200000, 4) == b"\5\0\0\0"

    def test_writes_to_the_video_memory_of_a_graphics_mode_arrive(self, pc: BiosMachine) -> None:
        assert not pc.interrupt(
            0x13, ax=0x4200, dx=DISK, **packet(pc, 9, 1, buffer=0xA000 << 16)
        ).carry
        assert pc.vga.memory[:5] == b"\x09\0\0\0\x11"

    @pytest.mark.parametrize(
        ("lba", "count", "size", "status"),
        [(SECTORS, 1, 16, 4), (SECTORS - 1, 2, 16, 4), (1 << 60, 1, 16, 4), (0, 1, 15, 1)],
    )
    def test_refusals(self, pc: BiosMachine, lba: int, count: int, size: int, status: int) -> None:
        done = pc.interrupt(0x13, ax=0x4200, dx=DISK, **packet(pc, lba, count, size=size))
        assert done.carry and done.ah == status

    def test_a_flat_address_beyond_4_gib_is_refused(self, pc: BiosMachine) -> None:
        where = packet(pc, 0, 1, buffer=0xFFFFFFFF, size=0x18, flat=(1 << 32) - 1)
        done = pc.interrupt(0x13, ax=0x4200, dx=DISK, **where)
        assert done.carry and done.ah == 1

    def test_verify_moves_nothing(self, pc: BiosMachine) -> None:
        before = pc.memory.read(BUFFER << 4, 512)
        assert not pc.interrupt(0x13, ax=0x4400, dx=DISK, **packet(pc, 1, 4)).carry
        assert pc.memory.read(BUFFER << 4, 512) == before

    @pytest.mark.parametrize(("room", "size"), [(0x1A, 0x1A), (0x1E, 0x1E), (0x200, 0x42)])
    def test_parameters_fill_the_room_there_is(self, pc: BiosMachine, room: int, size: int) -> None:
        at = PACKET_SEGMENT << 4
        pc.memory.write(at, room.to_bytes(2, "little") + b"\xee" * 100)
        assert not pc.interrupt(0x13, ax=0x4800, dx=DISK, ds=PACKET_SEGMENT).carry
        found = struct.unpack("<HHIIIQH", pc.memory.read(at, 26))
        assert found == (size, 0x03, 20, 16, 63, SECTORS, 512)
        assert pc.memory.read(at + size, 2) == b"\xee\xee"

    def test_too_little_room_for_parameters(self, pc: BiosMachine) -> None:
        pc.memory.write(PACKET_SEGMENT << 4, b"\x19\x00")
        assert pc.interrupt(0x13, ax=0x4800, dx=DISK, ds=PACKET_SEGMENT).carry

    def test_a_cdrom_has_big_sectors_and_a_tray(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x4200, dx=CD, **packet(pc, 30, 2))
        assert not done.carry and first_numbers(pc, 2, 2048) == [30, 31]
        assert pc.interrupt(0x13, ax=0x4500, dx=CD).al == 1
        assert pc.interrupt(0x13, ax=0x4600, dx=CD).ah == 0xB1
        assert pc.interrupt(0x13, ax=0x4501, dx=CD).al == 0
        assert pc.interrupt(0x13, ax=0x4501, dx=CD).ah == 0xB0
        assert not pc.interrupt(0x13, ax=0x4600, dx=CD).carry
        gone = pc.interrupt(0x13, ax=0x4200, dx=CD, **packet(pc, 30, 2))
        assert gone.carry and gone.ah == 0x31

    def test_a_cdrom_cannot_be_written(self, pc: BiosMachine) -> None:
        done = pc.interrupt(0x13, ax=0x4300, dx=CD, **packet(pc, 0, 1))
        assert done.carry and done.ah == 0x03

    def test_a_hard_disk_has_no_tray(self, pc: BiosMachine) -> None:
        assert pc.interrupt(0x13, ax=0x4600, dx=DISK).ah == 0xB2

    def test_reads_are_counted(self, pc: BiosMachine) -> None:
        from vdisk.emu_blockdev import Operation

        pc.interrupt(0x13, ax=0x4200, dx=DISK, **packet(pc, 0, 8))
        assert pc.drives[1].disk.statistics.bytes[Operation.READ] == 4096
