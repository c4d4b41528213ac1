"""int 19h and 18h: what is tried, in which order, and how boot code is entered; El Torito."""

from __future__ import annotations

import struct

import pytest

from tests.tools.bios_machine import STACK, BiosMachine
from vdisk.vm.bios import DriveKind

BUFFER = 0x2000
BOOT = 0x7C00
SECTOR = 512


def bootable(mark: bytes = b"\xeb\xfe", sectors: int = 2880) -> bytes:
    return mark.ljust(510, b"\0") + b"\x55\xaa" + bytes((sectors - 1) * SECTOR)


def cdrom(media: int, image: bytes, *, segment: int = 0, count: int = 4, **changes: int) -> bytes:
    """A CD-ROM with a boot catalog at sector 19 and the image from sector 20 on."""
    record = b"\0CD001\x01EL TORITO SPECIFICATION".ljust(0x47, b"\0") + struct.pack("<I", 19)
    validation = bytearray(32)
    validation[0], validation[1] = 1, changes.get("platform", 0)
    validation[30:32] = b"\x55\xaa"
    total = sum(struct.unpack("<16H", validation))
    validation[28:30] = (-total + changes.get("wrong", 0) & 0xFFFF).to_bytes(2, "little")
    flag = changes.get("flag", 0x88)
    entry = struct.pack("<BBHBBHI", flag, media, segment, 0, 0, count, 20)
    sectors = [bytes(2048)] * 17 + [record.ljust(2048, b"\0"), bytes(2048)]
    sectors.append(bytes(validation + entry).ljust(2048, b"\0"))
    return b"".join(sectors) + image + bytes(-len(image) % 2048)


def boot(pc: BiosMachine, steps: int = 50) -> bool:
    """Let int 19h go on until it runs something; False if it only waits."""
    answer = pc.trap("bootstrap")
    for _ in range(steps):
        if not answer.waits:
            return True
        if not pc.processor.registers.rflags & 1 << 6:  # it would halt
            return False
        answer = pc.trap("bootstrap")
    return False


def frame(pc: BiosMachine) -> tuple[int, int, int]:
    sp = pc.processor.registers.gprs[4] & 0xFFFF
    ip, cs, flags = struct.unpack("<3H", pc.memory.read(sp, 6))
    return cs, ip, flags


class TestOrder:
    def test_a_diskette_comes_first_then_the_disk(self) -> None:
        pc = BiosMachine(floppies=[bootable(b"FD")], disks=[bootable(b"HD")])
        pc.post()
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"FD"
        assert pc.processor.registers.gprs[2] == 0
        assert frame(pc) == (0, BOOT, 0x0202) and pc.processor.registers.gprs[4] == STACK + 0xBFA

    def test_the_user_decides(self) -> None:
        pc = BiosMachine(
            floppies=[bootable(b"FD")], disks=[bootable(b"HD")], order=[DriveKind.HARD_DISK]
        )
        pc.post()
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"HD"
        assert pc.processor.registers.gprs[2] == 0x80

    def test_what_cannot_boot_is_passed_over(self) -> None:
        pc = BiosMachine(disks=[bytes(1 << 20), bootable(b"2D")], cdroms=[None])
        pc.post()
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"2D"
        assert "not a bootable disk" in pc.screen()

    def test_the_disk_that_boots_is_80h(self) -> None:
        pc = BiosMachine(disks=[bytes(1 << 20), bootable(b"2D")])
        pc.post()
        boot(pc)
        pc.interrupt(0x13, ax=0x0201, cx=1, dx=0x80, es=BUFFER)
        assert pc.memory.read(BUFFER << 4, 2) == b"2D"
        pc.interrupt(0x13, ax=0x0201, cx=1, dx=0x81, es=BUFFER)
        assert pc.memory.read(BUFFER << 4, 2) == b"\0\0"
        assert pc.interrupt(0x13, ax=0x0800, dx=0x80).dl == 2

    def test_int_18h_tries_the_next(self) -> None:
        pc = BiosMachine(floppies=[bootable(b"FD")], disks=[bootable(b"HD")])
        pc.post()
        boot(pc)
        pc.trap("boot_failed")
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"HD"

    def test_int_19h_begins_with_the_first(self) -> None:
        pc = BiosMachine(floppies=[bootable(b"FD")], disks=[bootable(b"HD")])
        pc.post()
        pc.trap("boot_again")
        for _ in range(2):
            assert boot(pc) and pc.memory.read(BOOT, 2) == b"FD"
            pc.trap("boot_failed")
            assert boot(pc) and pc.memory.read(BOOT, 2) == b"HD"
            pc.trap("boot_again")

    def test_nothing_at_all_waits_for_a_key(self) -> None:
        pc = BiosMachine(cdroms=[None])
        pc.post()
        assert not boot(pc) and "No bootable device" in pc.screen()
        assert not boot(pc) and pc.screen().count("No bootable device") == 1
        pc.type(0x1C)
        assert not boot(pc) and pc.screen().count("No bootable device") == 2

    def test_nothing_at_all_resets_after_a_while(self) -> None:
        pc = BiosMachine(cdroms=[None], retry_wait=5)
        pc.post()
        assert not boot(pc) and "No bootable device" in pc.screen()
        pc.clock.advance(pc.clock.now() + 4_900_000_000)
        assert not boot(pc) and not pc.log
        pc.clock.advance(pc.clock.now() + 200_000_000)
        boot(pc)
        assert pc.log == ["reset"]


class TestMenu:
    def test_escape_brings_it_too(self) -> None:
        pc = BiosMachine(disks=[bootable(b"1D"), bootable(b"2D")], menu_wait=3)
        pc.post()
        assert not boot(pc) and "Esc" in pc.screen()
        pc.type(0x01)
        assert not boot(pc) and "2. Hard disk" in pc.screen()

    def test_a_choice(self) -> None:
        pc = BiosMachine(disks=[bootable(b"1D"), bootable(b"2D")], menu_wait=3)
        pc.post()
        assert not boot(pc) and "F12" in pc.screen()
        pc.type(0x58)
        assert not boot(pc) and "2. Hard disk" in pc.screen()
        pc.type(0x0A, 0x03)  # 9 is no choice, 2 is
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"2D"

    def test_time_runs_out(self) -> None:
        pc = BiosMachine(disks=[bootable(b"1D"), bootable(b"2D")], menu_wait=3)
        pc.post()
        assert not boot(pc)
        pc.clock.advance(pc.clock.now() + 4_000_000_000)
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"1D"


class TestElTorito:
    def machine(self, image: bytes) -> BiosMachine:
        pc = BiosMachine(disks=[bytes(1 << 20)], floppies=[b"\x77" * 1474560], cdroms=[image])
        pc.post()
        return pc

    def test_no_emulation(self) -> None:
        pc = self.machine(cdrom(0, b"NO" + bytes(8190), count=4))
        assert boot(pc) and frame(pc)[:2] == (0, BOOT)
        assert pc.memory.read(BOOT, 2) == b"NO" and pc.processor.registers.gprs[2] == 0xE0
        answer = pc.interrupt(0x13, ax=0x4B01, dx=0xE0, ds=BUFFER)
        packet = pc.memory.read(BUFFER << 4, 19)
        assert not answer.carry and packet[0] == 0x13 and packet[2] == 0xE0
        assert struct.unpack_from("<I", packet, 4)[0] == 20

    def test_another_segment(self) -> None:
        pc = self.machine(cdrom(0, b"SG" + bytes(2046), segment=0x3000))
        assert boot(pc) and frame(pc)[:2] == (0x3000, 0)
        assert pc.memory.read(0x30000, 2) == b"SG"

    @pytest.mark.parametrize("change", ["wrong", "flag", "platform", "media", "huge"])
    def test_what_is_no_catalog_is_refused(self, change: str) -> None:
        changes = {"wrong": {"wrong": 1}, "flag": {"flag": 0}, "platform": {"platform": 0xEF}}
        media = 9 if change == "media" else 0
        count = 0xFFFF if change == "huge" else 4
        image = cdrom(media, bytes(1 << 20), count=count, **changes.get(change, {}))
        pc = self.machine(image)
        assert not boot(pc)
        assert "No bootable device" in pc.screen()

    def test_a_diskette_is_a_and_the_real_one_b(self) -> None:
        floppy = bootable(b"EM")
        pc = self.machine(cdrom(2, floppy))
        assert boot(pc) and pc.memory.read(BOOT, 2) == b"EM"
        assert pc.processor.registers.gprs[2] == 0
        pc.interrupt(0x13, ax=0x0201, cx=1, dx=0, es=BUFFER)
        assert pc.memory.read(BUFFER << 4, 2) == b"EM"
        pc.interrupt(0x13, ax=0x0201, cx=1, dx=1, es=BUFFER)
        assert pc.memory.read(BUFFER << 4, 2) == b"\x77\x77"
        parameters = pc.interrupt(0x13, ax=0x0800, dx=0)
        assert (parameters.ch, parameters.cl, parameters.dl) == (79, 18, 2)
        written = pc.interrupt(0x13, ax=0x0301, cx=1, dx=0, es=BUFFER)
        assert written.carry and written.ah == 3

    def test_the_end_of_emulation(self) -> None:
        pc = self.machine(cdrom(2, bootable(b"EM")))
        boot(pc)
        assert not pc.interrupt(0x13, ax=0x4B00, dx=0x7F, ds=BUFFER).carry
        pc.interrupt(0x13, ax=0x0201, cx=1, dx=0, es=BUFFER)
        assert pc.memory.read(BUFFER << 4, 2) == b"\x77\x77"
        assert pc.interrupt(0x13, ax=0x4B01, dx=0x7F, ds=BUFFER).carry

    def test_a_hard_disk_image_has_the_shape_its_table_says(self) -> None:
        image = bytearray(bootable(b"HI", sectors=4 * 16 * 63))
        image[446:462] = bytes([0x80, 1, 1, 0, 6, 15, 63, 3]) + struct.pack("<II", 63, 3969)
        pc = self.machine(cdrom(4, bytes(image)))
        assert boot(pc) and pc.processor.registers.gprs[2] == 0x80
        parameters = pc.interrupt(0x13, ax=0x0800, dx=0x80)
        assert (parameters.ch, parameters.cl, parameters.dh) == (3, 63, 15)
        assert parameters.dl == 2  # with the real one

    def test_the_catalog_can_be_read(self) -> None:
        pc = self.machine(cdrom(0, bytes(8192)))
        boot(pc)
        pc.memory.write(0x5000, struct.pack("<BBIH", 8, 1, 0x30000, 0))
        assert not pc.interrupt(0x13, ax=0x4D00, ds=0x500, si=0).carry
        assert pc.memory.read(0x30000, 1) == b"\x01" and pc.memory.read(0x3001E, 2) == b"\x55\xaa"

    def test_a_packet_of_nonsense_in_memory_does_no_harm(self) -> None:
        pc = self.machine(cdrom(2, bootable(b"EM")))
        boot(pc)
        for controller, first in ((0, 0xFFFFFFFF), (200, 20), (0, 1 << 20)):
            packet = struct.pack("<BBBBI", 19, 2, 0, controller, first)
            pc.memory.write(0x9FC00 + 0xB0, packet)
            pc.interrupt(0x13, ax=0x0201, cx=1, dx=0, es=BUFFER)


class TestOptionRoms:
    def test_each_valid_one_is_called_once(self) -> None:
        pc = BiosMachine()
        rom = bytearray(b"\x55\xaa\x04\xcb" + bytes(2044))
        rom[-1] = -sum(rom) & 0xFF
        pc.host.load_rom(0xD0000, bytes(rom))
        pc.host.load_rom(0xD4000, b"\x55\xaa\x04\xcb" + bytes(2043) + b"\x01")  # a wrong sum
        pc.host.reset()
        pc.post()
        answer = pc.trap("option_rom")
        assert answer.waits and pc.processor.system.ds.selector == 0x9FC0
        assert pc.memory.read(0x9FC80, 4) == b"\x03\x00\x00\xd0"
        assert not pc.trap("option_rom").waits
