"""i440FX (PAM), PIIX3 (PIRQ routing, reset control), PIIX4 (ACPI power management)."""

from __future__ import annotations

import pytest

from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.vm.bus import Bus
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.devices.acpi_pm import TIMER_FREQUENCY, AcpiPm
from vdisk.vm.devices.i440fx import I440fx
from vdisk.vm.devices.isa_irqs import IsaIrqs
from vdisk.vm.devices.pci import Identity, PciBus, PciDevice
from vdisk.vm.devices.pic import PicPair
from vdisk.vm.devices.piix3 import Piix3
from vdisk.vm.memory import GuestMemory, PageKind


class Board:
    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.memory = GuestMemory(16 << 20)
        self.log: list[object] = []
        self.pci = PciBus(self.bus)
        self.pic = PicPair(self.bus)
        self.levels = [False] * 16
        self.irqs = IsaIrqs(self.pic.set_irq, self.levels.__setitem__)
        self.host = I440fx(self.bus, self.memory)
        self.piix3 = Piix3(self.bus, self.pci, self.irqs, lambda: self.log.append("reset"))
        self.pm = AcpiPm(
            self.bus, self.clock, self.irqs.line(9), lambda: self.log.append("power off"),
            lambda: self.log.append("suspend"),
        )  # fmt: skip
        self.pci.add(self.host, 0)
        self.pci.add(self.piix3, 1)
        self.pci.add(self.pm, 1, 3)
        self.host.load_rom(0xE0000, b"\xea" * 0x20000)
        for device in (self.host, self.piix3, self.pm):
            device.reset()

    def config(self, slot: int, register: int, value: int | None = None, size: int = 1) -> int:
        self.bus.ports.write(0xCF8, 4, 1 << 31 | slot << 8 | register & 0xFC)
        if value is not None:
            self.bus.ports.write(0xCFC + (register & 3), size, value)
        return self.bus.ports.read(0xCFC + (register & 3), size)


@pytest.fixture
def board() -> Board:
    return Board()


class TestI440fx:
    def test_identity(self, board: Board) -> None:
        assert board.config(0, 0, size=4) == 0x1237_8086
        assert board.config(0, 8, size=4) == 0x06000002

    def test_roms_are_roms_after_reset_and_the_rest_is_nothing(self, board: Board) -> None:
        assert board.memory.kind(0xF0000) is PageKind.ROM
        assert board.memory.kind(0xE0000) is PageKind.ROM
        assert board.memory.kind(0xC0000) is PageKind.MMIO
        assert board.memory.read(0xFFFF0, 2) == b"\xea\xea"

    @pytest.mark.parametrize(
        ("register", "shift", "start", "length"),
        [
            (0x59, 4, 0xF0000, 0x10000),
            (0x5A, 0, 0xC0000, 0x4000),
            (0x5A, 4, 0xC4000, 0x4000),
            (0x5D, 0, 0xD8000, 0x4000),
            (0x5F, 4, 0xEC000, 0x4000),
        ],
    )
    def test_each_area_has_its_bits(
        self, board: Board, register: int, shift: int, start: int, length: int
    ) -> None:
        before = [board.memory.kind(page) for page in range(0xC0000, 0x100000, 0x1000)]
        board.config(0, register, 3 << shift)
        for number, page in enumerate(range(0xC0000, 0x100000, 0x1000)):
            inside = start <= page < start + length
            assert board.memory.kind(page) is (PageKind.RAM if inside else before[number])
        board.config(0, register, 1 << shift)
        assert board.memory.kind(start) is PageKind.ROM
        assert board.memory.kind(start + length - 1) is PageKind.ROM
        board.config(0, register, 0)
        assert board.memory.kind(start) is before[(start - 0xC0000) >> 12]

    def test_all_areas_at_once(self, board: Board) -> None:
        board.config(0, 0x58, 0x33333333, size=4)
        board.config(0, 0x5C, 0x33333333, size=4)
        assert board.memory.is_ram(0xC0000, 0x40000)
        assert board.config(0, 0x59) == 0x30
        assert board.config(0, 0x58) == 0

    def test_a_reset_brings_the_rom_back(self, board: Board) -> None:
        board.config(0, 0x59, 0x30)
        board.memory.write(0xFFFF0, b"\0\0")
        board.host.reset()
        assert board.memory.read(0xFFFF0, 2) == b"\xea\xea"
        assert board.memory.kind(0xFFFF0) is PageKind.ROM

    def test_a_rom_needs_its_place(self, board: Board) -> None:
        with pytest.raises(InvalidRequestError):
            board.host.load_rom(0xF0000, bytes(0x10001))
        with pytest.raises(InvalidRequestError):
            board.host.load_rom(0xF0001, bytes(16))

    def test_state_survives(self, board: Board) -> None:
        board.config(0, 0x59, 0x30)
        saved = board.host.save_state()
        other = Board()
        other.host.load_state(saved)
        assert other.memory.kind(0xF0000) is PageKind.RAM


class TestPiix3:
    def test_identity(self, board: Board) -> None:
        assert board.config(8, 0, size=4) == 0x7000_8086
        assert board.config(8, 0x0E) == 0x80
        assert board.config(8, 0x60, size=4) == 0x80808080

    def test_pins_are_routed(self, board: Board) -> None:
        board.pci.pirq[2].raise_()
        assert not any(board.levels)
        board.config(8, 0x62, 11)
        assert board.levels[11]
        board.config(8, 0x62, 0x0A)
        assert board.levels[10] and not board.levels[11]
        board.config(8, 0x62, 0x8A)
        assert not any(board.levels)

    def test_two_pins_share_an_interrupt(self, board: Board) -> None:
        board.config(8, 0x60, 0x0B)
        board.config(8, 0x61, 0x0B)
        board.pci.pirq[0].raise_()
        board.pci.pirq[1].raise_()
        board.pci.pirq[0].lower()
        assert board.levels[11]
        board.pci.pirq[1].lower()
        assert not board.levels[11]

    def test_an_interrupt_that_cannot_be_routed_to_stays_low(self, board: Board) -> None:
        board.pci.pirq[0].raise_()
        for route in (0, 1, 2, 8, 13):
            board.config(8, 0x60, route)
            assert not any(board.levels)

    def test_reset_control(self, board: Board) -> None:
        board.bus.ports.write(0xCF9, 1, 0x02)
        assert board.log == []
        board.bus.ports.write(0xCF9, 1, 0x06)
        board.bus.ports.write(0xCF9, 1, 0x06)
        assert board.log == ["reset"]
        assert board.bus.ports.read(0xCF9, 1) == 0x06

    def test_a_card_interrupts_through_the_router(self, board: Board) -> None:
        card = PciDevice("card", board.bus, Identity(1, 2, 0x020000, interrupt_pin=1))
        board.pci.add(card, 3)
        board.config(8, 0x62, 11)
        card.set_intx(True)
        assert board.levels[11]

    def test_state_survives(self, board: Board) -> None:
        board.config(8, 0x60, 10)
        board.pci.pirq[0].raise_()
        saved = board.piix3.save_state()
        other = Board()
        other.piix3.load_state(saved)
        assert other.levels[10]


class TestAcpiPm:
    BASE = 0xB000

    @pytest.fixture
    def board(self) -> Board:
        board = Board()
        board.config(0x0B, 0x40, self.BASE | 1, size=4)
        board.config(0x0B, 0x80, 1)
        return board

    def read(self, board: Board, register: int, size: int = 2) -> int:
        return board.bus.ports.read(self.BASE + register, size)

    def write(self, board: Board, register: int, value: int, size: int = 2) -> None:
        board.bus.ports.write(self.BASE + register, size, value)

    def test_identity_and_decoding(self, board: Board) -> None:
        assert board.config(0x0B, 0, size=4) == 0x7113_8086
        assert self.read(board, 4) == 0
        board.config(0x0B, 0x80, 0)
        assert self.read(board, 4) == 0xFFFF
        board.config(0x0B, 0x80, 1)
        board.config(0x0B, 0x40, 0xC000, size=4)
        assert self.read(board, 4) == 0xFFFF
        assert board.bus.ports.read(0xC004, 2) == 0

    def test_a_taken_place_is_not_taken_twice(self, board: Board) -> None:
        board.bus.ports.map(0xC000, 4, lambda *_: 0x5A, lambda *_: None, "card")
        board.config(0x0B, 0x40, 0xC000, size=4)
        assert board.bus.ports.read(0xC000, 1) == 0x5A
        assert self.read(board, 4) == 0xFFFF
        board.config(0x0B, 0x40, self.BASE, size=4)
        assert self.read(board, 4) == 0

    def test_the_timer_runs_at_its_frequency(self, board: Board) -> None:
        assert self.read(board, 8, 4) == 0
        board.clock.advance(SECOND)
        assert self.read(board, 8, 4) == TIMER_FREQUENCY
        assert self.read(board, 9, 1) == TIMER_FREQUENCY >> 8 & 0xFF
        board.clock.advance(10 * SECOND)
        assert self.read(board, 8, 4) == 10 * TIMER_FREQUENCY & 0xFFFFFF

    def test_the_timer_interrupts_when_its_top_bit_toggles(self, board: Board) -> None:
        self.write(board, 4, 1)
        self.write(board, 2, 1)
        half = (1 << 23) * SECOND // TIMER_FREQUENCY
        board.clock.advance(half - 1)
        assert not board.levels[9]
        board.clock.advance(half + 1000)
        assert board.levels[9]
        self.write(board, 0, 1)
        assert not board.levels[9]
        board.clock.advance(2 * half + 1000)
        assert board.levels[9]

    def test_timer_status_is_there_without_an_interrupt(self, board: Board) -> None:
        board.clock.advance(3 * SECOND)
        assert self.read(board, 0) == 1
        self.write(board, 0, 1)
        assert self.read(board, 0) == 0

    def test_the_power_button(self, board: Board) -> None:
        self.write(board, 2, 0x100)
        board.pm.press_power_button()
        assert self.read(board, 0) == 0x100
        assert not board.levels[9]  # ACPI is not on
        board.bus.ports.write(0xB2, 1, 0xF1)
        assert self.read(board, 4) == 1
        assert board.levels[9]
        self.write(board, 0, 0x100)
        assert not board.levels[9]
        board.bus.ports.write(0xB2, 1, 0xF0)
        assert self.read(board, 4) == 0

    def test_sleeping_in_s5_is_power_off(self, board: Board) -> None:
        self.write(board, 4, 1 | 2 << 10 | 1 << 13)  # a type that is not offered
        assert board.log == []
        assert self.read(board, 4) == 0x0801
        self.write(board, 4, 1 | 1 << 13)
        assert board.log == ["power off"]

    def test_what_wakes_from_s3(self, board: Board) -> None:
        woken: list[str] = []
        board.pm.wake_up = lambda: woken.append("woken")
        assert not board.pm.wake(0x100)
        self.write(board, 2, 0x400)
        self.write(board, 4, 1 | 1 << 10 | 1 << 13)
        assert board.log == ["suspend"] and board.pm.sleeping
        board.pm.alarm()
        board.pm.press_power_button()
        assert woken == ["woken"] * 2 and board.pm.wakers == 0x500
        assert self.read(board, 0) & 0x500 == 0  # told when it has woken up
        other = Board()
        other.pm.load_state(board.pm.save_state())
        assert other.pm.sleeping and other.pm.wakers == 0x500
        board.pm.reset()
        assert not board.pm.sleeping and board.pm.wakers == 0
        other.pm.woken(0x400)
        assert self.read(other, 0) == 0x8400
        self.write(other, 0, 0x8400)
        assert self.read(other, 0) == 0

    def test_an_alarm_that_may_not_wake(self, board: Board) -> None:
        self.write(board, 4, 1 | 1 << 10 | 1 << 13)
        board.pm.alarm()
        assert not board.pm.wakers

    def test_status_and_enable_in_one_access(self, board: Board) -> None:
        self.write(board, 0, 0xFFFF_FFFF, 4)
        assert self.read(board, 0, 4) == 0x0521_0000

    def test_apm_status_is_memory(self, board: Board) -> None:
        board.bus.ports.write(0xB3, 1, 0x12)
        assert board.bus.ports.read(0xB3, 1) == 0x12

    def test_any_access_has_an_answer(self, board: Board) -> None:
        for offset in range(64):
            for size in (1, 2, 4):
                self.write(board, offset, (1 << 8 * size) - 1, size)
                assert 0 <= self.read(board, offset, size) < 1 << 8 * size

    def test_state_survives(self, board: Board) -> None:
        self.write(board, 4, 1)
        self.write(board, 2, 0x100)
        board.pm.press_power_button()
        other = Board()
        other.pm.load_state(board.pm.save_state())
        assert other.levels[9]
        assert self.read(other, 0, 4) == 0x0100_0100
        with pytest.raises(CorruptImageError):
            other.pm.load_state(board.pm.save_state() | {"control": -1})
