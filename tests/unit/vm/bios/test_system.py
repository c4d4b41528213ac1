"""int 15h, 11h, 12h, 1Ah, 14h, 17h, 05h: memory, time, mouse, ports; POST's effect on the chips."""

from __future__ import annotations

import struct

import pytest

from tests.tools.bios_machine import EPOCH, BiosMachine
from vdisk.vm._bios.memory_map import MemoryType, kib_above_1_mib, memory_map
from vdisk.vm.clock import SECOND
from vdisk.vm.memory import FOUR_GIB, PageKind

BUFFER = 0x2000
SMAP = 0x534D4150
MIB = 1 << 20


@pytest.fixture
def pc() -> BiosMachine:
    machine = BiosMachine(memory=64 * MIB)
    machine.post()
    return machine


class TestMemory:
    def test_the_map_is_told_entry_by_entry(self, pc: BiosMachine) -> None:
        entries, following = [], 0
        while True:
            answer = pc.interrupt(0x15, eax=0xE820, edx=SMAP, ecx=24, ebx=following, es=BUFFER)
            assert not answer.carry and answer.eax == SMAP and answer.ecx == 20
            entries.append(struct.unpack("<QQI", pc.memory.read(BUFFER << 4, 20)))
            following = answer.ebx
            if not following:
                break
        assert entries[0] == (0, 0x9FC00, 1)
        assert (0x100000, 63 * MIB, 1) in entries
        ends = [start + length for start, length, _ in entries]
        starts = [start for start, _, _ in entries]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))

    @pytest.mark.parametrize(
        "registers", [{"edx": 0}, {"ecx": 19}, {"ebx": 50}, {"ebx": 0xFFFFFFFF}]
    )
    def test_refusals(self, pc: BiosMachine, registers: dict[str, int]) -> None:
        call = {"eax": 0xE820, "edx": SMAP, "ecx": 20, "ebx": 0, **registers}
        answer = pc.interrupt(0x15, es=BUFFER, **call)
        assert answer.carry and answer.ah == 0x86

    def test_older_ways_agree(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x15, ax=0xE801)
        assert (answer.ax, answer.bx, answer.cx, answer.dx) == (15 * 1024, 768, 15 * 1024, 768)
        assert pc.interrupt(0x15, ax=0x8800).ax == 63 * 1024
        assert pc.interrupt(0x12).ax == 639

    @pytest.mark.parametrize("size", [1, 4, 16, 17, 3072, 8192])
    def test_sizes(self, size: int) -> None:
        low = min(size, 3072) * MIB
        high = FOUR_GIB + size * MIB - low
        entries = memory_map(low, high, [])
        usable = sum(entry.length for entry in entries if entry.kind is MemoryType.USABLE)
        assert usable == size * MIB - MIB + 0x9FC00 if size > 1 else usable == 0x9FC00
        below, blocks = kib_above_1_mib(entries)
        assert below * 1024 + blocks * 65536 == max(low - MIB, 0)

    def test_a_block_moves_above_1_mib_and_back(self, pc: BiosMachine) -> None:
        pc.memory.write(BUFFER << 4, b"payload!")
        self.move(pc, BUFFER << 4, 0x200000, 4)
        assert pc.memory.read(0x200000, 8) == b"payload!"

    def test_a_block_move_does_not_mind_a20(self, pc: BiosMachine) -> None:
        pc.memory.write(0x300000, b"odd")
        pc.a20 = False
        self.move(pc, 0x300000, 0x100000, 2)
        pc.a20 = True
        assert pc.memory.read(0x100000, 3) == b"odd"

    def move(self, pc: BiosMachine, source: int, target: int, words: int) -> None:
        table = bytearray(48)
        for at, base in ((0x10, source), (0x18, target)):
            low = base.to_bytes(4, "little")
            table[at : at + 8] = b"\xff\xff" + low[:3] + b"\x93\x00" + low[3:]
        pc.memory.write(0x5000, table)
        answer = pc.interrupt(0x15, ax=0x8700, cx=words, es=0x500, si=0)
        assert not answer.carry and answer.ah == 0

    def test_a_move_longer_than_its_segments_is_refused(self, pc: BiosMachine) -> None:
        pc.memory.write(0x5000, bytes(48))
        answer = pc.interrupt(0x15, ax=0x8700, cx=4, es=0x500, si=0)
        assert answer.carry and answer.ah == 2

    def test_a20(self, pc: BiosMachine) -> None:
        assert pc.interrupt(0x15, ax=0x2402).al == 1
        assert not pc.interrupt(0x15, ax=0x2400).carry
        assert not pc.a20 and pc.interrupt(0x15, ax=0x2402).al == 0
        pc.interrupt(0x15, ax=0x2401)
        assert pc.a20 and pc.interrupt(0x15, ax=0x2403).bx == 3

    def test_with_a20_closed_the_bios_wraps_as_the_processor_does(self, pc: BiosMachine) -> None:
        pc.memory.write(0x10_0000 - 16 + 0x500 + 16, b"above")
        pc.memory.write(0x500, b"below")
        pc.a20 = False
        space = pc.bios.services.hw.space
        assert space.read(0x10_0500, 5) == b"below"

    def test_what_is_not_there(self, pc: BiosMachine) -> None:
        for function in (0xD800, 0x5300, 0xFF00, 0x8900):
            answer = pc.interrupt(0x15, ax=function)
            assert answer.carry and answer.ah == 0x86

    def test_configuration(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x15, ax=0xC000)
        table = pc.memory.read((answer.es << 4) + answer.bx, 10)
        assert table[2] == 0xFC and table[5] & 0x04  # an AT, with an EBDA
        assert pc.interrupt(0x15, ax=0xC100).es == 0x9FC0


class TestTime:
    def test_ticks(self, pc: BiosMachine) -> None:
        seconds = EPOCH % 86400
        answer = pc.interrupt(0x1A, ax=0)
        ticks = answer.cx << 16 | answer.dx
        assert abs(ticks - seconds * 1193182 / 65536) < 2 and answer.al == 0
        pc.interrupt(0x1A, ax=0x0100, cx=0x12, dx=0x3456)
        assert pc.memory.read(0x46C, 4) == bytes([0x56, 0x34, 0x12, 0])

    def test_midnight_is_told_once(self, pc: BiosMachine) -> None:
        pc.memory.write(0x470, b"\x01")
        assert pc.interrupt(0x1A, ax=0).al == 1
        assert pc.interrupt(0x1A, ax=0).al == 0

    def test_date_and_time(self, pc: BiosMachine) -> None:
        time = pc.interrupt(0x1A, ax=0x0200)
        assert (time.ch, time.cl, time.dh) == (0x22, 0x13, 0x20) and not time.carry
        date = pc.interrupt(0x1A, ax=0x0400)
        assert (date.cx, date.dh, date.dl) == (0x2023, 0x11, 0x14)

    def test_setting_them(self, pc: BiosMachine) -> None:
        pc.interrupt(0x1A, ax=0x0500, cx=0x1999, dx=0x1231)
        pc.interrupt(0x1A, ax=0x0300, cx=0x2358, dx=0x5900)
        assert pc.interrupt(0x1A, ax=0x0400).cx == 0x1999
        pc.clock.advance(pc.clock.now() + 2 * SECOND)
        time = pc.interrupt(0x1A, ax=0x0200)
        assert time.cx in {0x2358, 0x2359}

    def test_reading_waits_for_an_update(self, pc: BiosMachine) -> None:
        pc.clock.advance(3 * SECOND - 1_000_000)
        assert pc.trap("time_of_day", ax=0x0200).waits
        assert pc.interrupt(0x1A, ax=0x0200).dh == 0x23

    def test_an_alarm(self, pc: BiosMachine) -> None:
        assert not pc.interrupt(0x1A, ax=0x0600, cx=0x2213, dx=0x2200).carry
        assert pc.interrupt(0x1A, ax=0x0600, cx=0, dx=0).carry  # there is one already
        pc.clock.advance(3 * SECOND)
        assert pc.trap("rtc_interrupt").waits  # int 4Ah follows
        pc.interrupt(0x1A, ax=0x0700)
        assert not pc.interrupt(0x1A, ax=0x0600, cx=0, dx=0).carry

    @pytest.mark.parametrize("microseconds", [0, 100, 20_000, 300_000])
    def test_waiting(self, pc: BiosMachine, microseconds: int) -> None:
        before = pc.clock.now()
        answer = pc.interrupt(0x15, ax=0x8600, cx=microseconds >> 16, dx=microseconds & 0xFFFF)
        assert not answer.carry
        taken = pc.clock.now() - before
        assert microseconds * 1000 <= taken <= microseconds * 1000 + 60_000

    def test_an_event_sets_its_flag(self, pc: BiosMachine) -> None:
        pc.memory.write(0x3000, b"\x00")
        assert not pc.interrupt(0x15, ax=0x8300, cx=0, dx=5000, es=0x300, bx=0).carry
        assert pc.interrupt(0x15, ax=0x8300, cx=0, dx=5000, es=0x300, bx=0).carry
        for _ in range(8):
            pc.clock.advance(pc.clock.now() + 976_563)
            pc.trap("rtc_interrupt")
        assert pc.memory.read(0x3000, 1) == b"\x80"
        assert not pc.interrupt(0x15, ax=0x8300, cx=0, dx=5000, es=0x300, bx=0).carry
        pc.interrupt(0x15, ax=0x8301)


class TestMouse:
    def start(self, pc: BiosMachine) -> None:
        pc.clock.advance(SECOND)
        pc.bus.ports.read(0x60, 1)  # what the keyboard has answered to POST
        assert not pc.interrupt(0x15, ax=0xC205, bx=0x0300).carry
        assert not pc.interrupt(0x15, ax=0xC207, es=0x1234, bx=0x5678).carry
        assert not pc.interrupt(0x15, ax=0xC200, bx=0x0100).carry

    def byte(self, pc: BiosMachine) -> bool:
        pc.clock.advance(pc.clock.now() + SECOND // 100)
        return pc.trap("mouse_interrupt").waits

    def test_reset_says_what_it_is(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x15, ax=0xC201)
        assert not answer.carry and answer.bx == 0x00AA
        answer = pc.interrupt(0x15, ax=0xC204)
        assert not answer.carry and answer.bh == 0

    def test_a_packet_reaches_the_handler(self, pc: BiosMachine) -> None:
        self.start(pc)
        pc.mouse.report(bytes([0x18, 0xFB, 0x07]))
        assert [self.byte(pc) for _ in range(3)] == [False, False, True]
        assert pc.processor.system.ds.selector == 0x9FC0
        assert pc.memory.read(0x9FC22, 4) == bytes([0x78, 0x56, 0x34, 0x12])
        assert struct.unpack("<3H", pc.memory.read(0x9FC90, 6)) == (0x18, 0xFB, 0x07)

    def test_nothing_is_enabled_without_a_handler(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x15, ax=0xC200, bx=0x0100)
        assert answer.carry and answer.ah == 5

    def test_bad_arguments(self, pc: BiosMachine) -> None:
        for ax, bx, status in ((0xC202, 0x0700, 2), (0xC203, 0x0400, 2), (0xC20A, 0, 1)):
            answer = pc.interrupt(0x15, ax=ax, bx=bx)
            assert answer.carry and answer.ah == status

    def test_status(self, pc: BiosMachine) -> None:
        pc.interrupt(0x15, ax=0xC202, bx=0x0400)
        pc.interrupt(0x15, ax=0xC203, bx=0x0300)
        answer = pc.interrupt(0x15, ax=0xC206, bx=0)
        assert not answer.carry and (answer.cl, answer.dl) == (3, 80)

    def test_the_keyboard_goes_on_afterwards(self, pc: BiosMachine) -> None:
        pc.interrupt(0x15, ax=0xC201)
        pc.bus.ports.write(0x64, 1, 0x20)
        assert pc.bus.ports.read(0x60, 1) & 0x51 == 0x41

    def test_a_mouse_that_is_silent_is_an_error(self, pc: BiosMachine) -> None:
        pc.mouse.receive = lambda _byte: None  # type: ignore[method-assign]
        pc.clock.advance(SECOND)
        pc.bus.ports.read(0x60, 1)
        answer = pc.interrupt(0x15, ax=0xC204)
        assert answer.carry and answer.ah == 3


class TestPorts:
    def test_what_there_is(self, pc: BiosMachine) -> None:
        equipment = pc.interrupt(0x11).ax
        assert equipment == 0x4226  # a parallel port, a serial port, colour, mouse, FPU
        assert pc.word(0x400) == 0x3F8 and pc.word(0x402) == 0 and pc.word(0x408) == 0x378

    def test_serial(self, pc: BiosMachine) -> None:
        pc.interrupt(0x14, ax=0x00E3, dx=0)
        for character in b"hi":
            assert not pc.interrupt(0x14, ax=0x0100 | character, dx=0).ah & 0x80
        pc.clock.advance(pc.clock.now() + SECOND)
        assert bytes(pc.serial.sent) == b"hi"

    def test_a_serial_line_that_is_silent_times_out(self, pc: BiosMachine) -> None:
        before = pc.clock.now()
        assert pc.interrupt(0x14, ax=0x0200, dx=0).ah & 0x80
        assert SECOND <= pc.clock.now() - before <= 2 * SECOND

    def test_a_port_that_is_not_there(self, pc: BiosMachine) -> None:
        assert pc.interrupt(0x14, ax=0x0155, dx=3).ax == 0x0155

    def test_printing(self, pc: BiosMachine) -> None:
        status = pc.interrupt(0x17, ax=0x0041, dx=0)
        assert not status.ah & 1 and bytes(pc.printer.sent) == b"A"

    def test_the_screen_on_paper(self, pc: BiosMachine) -> None:
        pc.interrupt(0x05)
        assert b"vdisk BIOS" in bytes(pc.printer.sent)
        assert pc.memory.read(0x500, 1) == b"\0"


class TestPci:
    def test_installed(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x1A, ax=0xB101)
        assert not answer.carry and answer.edx == 0x20494350 and answer.bx == 0x0210

    def test_finding(self, pc: BiosMachine) -> None:
        answer = pc.interrupt(0x1A, ax=0xB102, cx=0x7113, dx=0x8086, si=0)
        assert not answer.carry and answer.bx == 0x000B
        assert pc.interrupt(0x1A, ax=0xB102, cx=0x7113, dx=0x8086, si=1).ah == 0x86
        assert pc.interrupt(0x1A, ax=0xB103, ecx=0x060100, si=0).bx == 0x0008
        assert pc.interrupt(0x1A, ax=0xB102, cx=0, dx=0xFFFF, si=0).ah == 0x83

    def test_configuration_space(self, pc: BiosMachine) -> None:
        assert pc.interrupt(0x1A, ax=0xB10A, bx=0, di=0).ecx == 0x12378086
        assert pc.interrupt(0x1A, ax=0xB109, bx=8, di=0x0A).cx == 0x0601
        assert pc.interrupt(0x1A, ax=0xB109, bx=8, di=1).ah == 0x87
        pc.interrupt(0x1A, ax=0xB10B, bx=8, di=0x3C, cx=0x5A)
        assert pc.interrupt(0x1A, ax=0xB10E, bx=0, di=0, es=BUFFER).ah == 0x89  # no room

    def test_32_bit_code_finds_it(self, pc: BiosMachine) -> None:
        rom = pc.memory.read(0xF0000, 0x10000)
        at = next(n for n in range(0, 0x10000, 16) if rom[n : n + 4] == b"_32_")
        assert sum(rom[at : at + 16]) & 0xFF == 0
        pc.trap("bios32_directory", eax=0x49435024, ebx=0)
        gprs = pc.processor.registers.gprs
        assert gprs[0] & 0xFF == 0 and gprs[3] == 0xF0000
        answer = pc.trap("pci_bios", eax=0xB101)
        assert not answer.waits and answer.edx == 0x20494350

    def test_the_routing_table(self, pc: BiosMachine) -> None:
        rom = pc.memory.read(0xF0000, 0x10000)
        at = next(n for n in range(0, 0x10000, 16) if rom[n : n + 4] == b"$PIR")
        size = int.from_bytes(rom[at + 6 : at + 8], "little")
        assert sum(rom[at : at + size]) & 0xFF == 0 and rom[at + 9] == 0x08


class TestPost:
    def test_the_rom_is_shadowed_and_locked(self, pc: BiosMachine) -> None:
        assert pc.memory.kind(0xF0000) is PageKind.ROM
        assert pc.memory.kind(0xC0000) is PageKind.RAM

    def test_interrupts_are_where_real_mode_has_them(self, pc: BiosMachine) -> None:
        assert pc.bus.ports.read(0x21, 1) == 0xF8
        pc.bus.ports.write(0x21, 1, 0xFD)
        pc.irqs.line(1).raise_()
        assert pc.pic.acknowledge() == 0x09

    def test_vectors(self, pc: BiosMachine) -> None:
        assert pc.word(0x13 * 4 + 2) == 0xF000 and pc.word(0x10 * 4) == 0xF065
        assert pc.memory.read(0x60 * 4, 4) == bytes(4)

    def test_power_management_has_its_registers(self, pc: BiosMachine) -> None:
        assert pc.bus.ports.find(0x604) is not None

    def test_an_unwanted_interrupt_is_ended_and_masked(self, pc: BiosMachine) -> None:
        pc.bus.ports.write(0x21, 1, 0xDF)
        pc.irqs.line(5).raise_()
        assert pc.pic.acknowledge() == 0x0D
        pc.trap("other_interrupt")
        assert pc.bus.ports.read(0x21, 1) == 0xFF
        pc.bus.ports.write(0x20, 1, 0x0B)
        assert pc.bus.ports.read(0x20, 1) == 0
        assert pc.memory.read(0x46B, 1) == b"\x20"

    def test_a_write_from_elsewhere_is_no_trap(self, pc: BiosMachine) -> None:
        pc.processor.system.cs.base = 0
        pc.processor.registers.rip = 0x7C00
        pc.processor.registers.gprs[0] = 0x4242
        pc.bus.ports.write(0xE6, 1, 0)
        assert pc.processor.registers.gprs[0] == 0x4242
