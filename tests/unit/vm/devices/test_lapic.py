"""The local APIC against SDM volume 3, chapter 11."""

from __future__ import annotations

import pytest

from vdisk.errors import CorruptImageError
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices import lapic as chip
from vdisk.vm.devices.apic_bus import ApicBus, DeliveryMode
from vdisk.vm.devices.lapic import Lapic
from vdisk.vm.devices.lapic_timer import Tsc


class Core:
    """A processor that notes what it is told."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def interrupt(self) -> None:
        self.log.append("interrupt")

    def nmi(self) -> None:
        self.log.append("nmi")

    def init(self) -> None:
        self.log.append("init")

    def startup(self, vector: int) -> None:
        self.log.append(f"startup {vector:#x}")


class Pic:
    """The 8259 pair: one vector."""

    def __init__(self) -> None:
        self.vectors: list[int] = []

    def pending(self) -> bool:
        return bool(self.vectors)

    def acknowledge(self) -> int:
        return self.vectors.pop(0)


class Board:
    """``count`` processors, switched on, flat logical addressing: APIC n is bit n."""

    def __init__(self, count: int = 1, *, tsc: bool = False, enable: bool = True) -> None:
        self.clock = VirtualClock()
        self.bus = ApicBus()
        self.pic = Pic()
        self.cores = [Core() for _ in range(count)]
        counter = Tsc(lambda: self.clock.now() * 2, 2_000_000_000) if tsc else None
        self.apics = [
            Lapic(number, self.bus, self.clock, core, self.pic, counter)
            for number, core in enumerate(self.cores)
        ]
        for number, apic in enumerate(self.apics if enable else []):
            apic.mmio_write(chip.SVR, 4, 0x1FF)
            apic.mmio_write(chip.LDR, 4, 1 << 24 + number)

    def ipi(self, low: int, destination: int = 0, *, sender: int = 0) -> None:
        self.apics[sender].mmio_write(chip.ICR_HIGH, 4, destination << 24)
        self.apics[sender].mmio_write(chip.ICR_LOW, 4, low)

    def waiting(self) -> list[int]:
        return [number for number, apic in enumerate(self.apics) if apic.pending()]


def fixed(apic: Lapic, vector: int, *, level: bool = False) -> None:
    apic.accept(DeliveryMode.FIXED, vector, level=level)


# -- reset ---------------------------------------------------------------------------------------


def test_registers_after_reset() -> None:
    board = Board(2, enable=False)
    bsp, ap = board.apics
    values = {offset: ap.mmio_read(offset, 4) for offset in (0x20, 0xD0, 0xE0, 0xF0, 0x320, 0x350)}
    assert values == {
        0x20: 1 << 24, 0xD0: 0, 0xE0: 0xFFFF_FFFF, 0xF0: 0xFF, 0x320: 0x10000, 0x350: 0x10000,
    }  # fmt: skip
    assert bsp.read_msr(0x1B) == 0xFEE0_0900
    assert ap.read_msr(0x1B) == 0xFEE0_0800
    assert bsp.mmio_read(0x30, 4) & 0xFF in range(0x10, 0x16)


def test_narrow_reads_and_odd_writes_are_defined() -> None:
    apic = Board().apics[0]
    apic.mmio_write(chip.DFR, 4, 0x0FFF_FFFF)
    assert apic.mmio_read(chip.DFR + 3, 1) == 0x0F
    assert apic.mmio_read(chip.DFR + 2, 2) == 0x0FFF
    assert apic.mmio_read(chip.DFR + 4, 4) == 0
    apic.mmio_write(chip.TPR + 4, 4, 0xFF)
    apic.mmio_write(chip.TPR, 1, 0xFF)
    assert apic.mmio_read(chip.TPR, 4) == 0


# -- acceptance and priority ---------------------------------------------------------------------


def test_the_highest_vector_is_served_first_and_eoi_uncovers_the_next() -> None:
    apic = Board().apics[0]
    for vector in (0x31, 0x45, 0x41):
        fixed(apic, vector)
    assert apic.mmio_read(chip.IRR + 0x20, 4) == 1 << 5 | 1 << 1  # vectors 0x40-0x5F
    assert apic.acknowledge() == 0x45
    assert apic.mmio_read(chip.ISR + 0x20, 4) == 1 << 5
    assert apic.mmio_read(chip.PPR, 4) == 0x40
    assert not apic.pending()  # 0x41 is of the same class
    apic.mmio_write(chip.EOI, 4, 0)
    assert apic.acknowledge() == 0x41
    fixed(apic, 0x52)
    assert apic.acknowledge() == 0x52  # a higher class nests
    for _ in range(2):
        apic.mmio_write(chip.EOI, 4, 0)
    assert apic.acknowledge() == 0x31


def test_an_interrupt_that_was_held_back_is_announced_when_it_may_be_taken() -> None:
    board = Board()
    apic, log = board.apics[0], board.cores[0].log
    apic.accept(DeliveryMode.FIXED, 0x61, level=False)
    apic.acknowledge()
    apic.accept(DeliveryMode.FIXED, 0x31, level=False)
    assert log == ["interrupt"]
    apic.mmio_write(chip.EOI, 4, 0)
    assert log == ["interrupt"] * 2 and apic.pending()
    apic.task_priority = 4
    assert log == ["interrupt"] * 2 and not apic.pending()
    apic.task_priority = 2
    assert log == ["interrupt"] * 3 and apic.pending()


def test_task_priority_holds_classes_back_and_cr8_is_its_upper_half() -> None:
    board = Board()
    apic = board.apics[0]
    apic.task_priority = 4
    assert apic.mmio_read(chip.TPR, 4) == 0x40
    fixed(apic, 0x4F)
    assert not apic.pending() and board.cores[0].log == []
    apic.mmio_write(chip.TPR, 4, 0x3F)
    assert apic.pending() and apic.task_priority == 3
    assert apic.acknowledge() == 0x4F
    apic.mmio_write(chip.TPR, 4, 0x52)
    assert apic.mmio_read(chip.PPR, 4) == 0x52


def test_an_acknowledge_for_nothing_gives_the_spurious_vector() -> None:
    apic = Board().apics[0]
    apic.mmio_write(chip.SVR, 4, 0x1EF)
    assert apic.acknowledge() == 0xEF
    assert apic.mmio_read(chip.ISR + 0x70, 4) == 0


def test_a_disabled_apic_takes_no_fixed_interrupt_but_nmi() -> None:
    board = Board(enable=False)
    apic = board.apics[0]
    fixed(apic, 0x40)
    apic.accept(DeliveryMode.NMI, 0, level=False)
    assert not apic.pending() and board.cores[0].log == ["nmi"]
    apic.mmio_write(chip.LVT_TIMER, 4, 0x40)
    assert apic.mmio_read(chip.LVT_TIMER, 4) & chip.MASKED  # cannot be unmasked (11.4.7.2)


def test_only_level_triggered_interrupts_broadcast_their_eoi() -> None:
    board = Board()
    apic, ended = board.apics[0], []
    board.bus.on_eoi(ended.append)
    for level in (True, False):
        fixed(apic, 0x60, level=level)
        assert apic.acknowledge() == 0x60
        assert apic.mmio_read(chip.TMR + 0x30, 4) == int(level)
        apic.mmio_write(chip.EOI, 4, 0)
    assert ended == [0x60]
    apic.mmio_write(chip.EOI, 4, 0)  # nothing in service
    assert ended == [0x60]


# -- errors --------------------------------------------------------------------------------------


def test_illegal_vectors_and_registers_are_errors() -> None:
    board = Board()
    apic = board.apics[0]
    apic.mmio_write(chip.LVT_ERROR, 4, 0xFE)
    fixed(apic, 3)
    board.ipi(0x4_0005)
    apic.mmio_read(0x0, 4)
    assert apic.mmio_read(chip.ESR, 4) == 0  # until it is written
    apic.mmio_write(chip.ESR, 4, 0)
    assert apic.mmio_read(chip.ESR, 4) == 0x20 | 0x40 | 0x80
    assert apic.acknowledge() == 0xFE
    apic.mmio_write(chip.ESR, 4, 0)
    assert apic.mmio_read(chip.ESR, 4) == 0


def test_an_error_vector_that_is_itself_illegal_ends_there() -> None:
    apic = Board().apics[0]
    apic.mmio_write(chip.LVT_ERROR, 4, 0x01)
    fixed(apic, 1)
    apic.mmio_write(chip.ESR, 4, 0)
    assert apic.mmio_read(chip.ESR, 4) == 0x40


# -- destinations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("destination", "expected"), [(0, [0]), (2, [2]), (0xFF, [0, 1, 2, 3]), (9, [])]
)
def test_physical_destinations(destination: int, expected: list[int]) -> None:
    board = Board(4)
    board.ipi(0x4050, destination)
    assert board.waiting() == expected


@pytest.mark.parametrize(
    ("destination", "expected"), [(0b0101, [0, 2]), (0xFF, [0, 1, 2, 3]), (0x80, [])]
)
def test_logical_flat_destinations(destination: int, expected: list[int]) -> None:
    board = Board(4)
    board.ipi(0x4850, destination, sender=3)
    assert board.waiting() == expected


def test_logical_cluster_destinations() -> None:
    board = Board(4)
    for number, apic in enumerate(board.apics):  # two clusters of two
        apic.mmio_write(chip.DFR, 4, 0x0FFF_FFFF)
        apic.mmio_write(chip.LDR, 4, (number // 2 << 4 | 1 << number % 2) << 24)
    for destination, expected in ((0x12, [3]), (0x03, [0, 1]), (0xF1, [0, 2])):
        board.ipi(0x4850, destination)
        assert board.waiting() == expected
        for number in expected:
            assert board.apics[number].acknowledge() == 0x50
            board.apics[number].mmio_write(chip.EOI, 4, 0)


@pytest.mark.parametrize(
    ("shorthand", "expected"),
    [(1, [1]), (2, [0, 1, 2]), (3, [0, 2])],
    ids=["self", "all", "others"],
)
def test_shorthands(shorthand: int, expected: list[int]) -> None:
    board = Board(3)
    board.ipi(shorthand << 18 | 0x4050, 0x77, sender=1)
    assert board.waiting() == expected


def test_lowest_priority_goes_to_the_least_busy() -> None:
    board = Board(3)
    for apic, priority in zip(board.apics, (5, 2, 4), strict=True):
        apic.task_priority = priority
    board.ipi(0x4950, 0xFF)
    assert board.waiting() == [1]


# -- INIT and SIPI, NMI --------------------------------------------------------------------------


def test_init_and_startup_reach_the_cores() -> None:
    board = Board(3)
    board.ipi(0xC4500)  # INIT, all but self
    board.ipi(0x8500)  # level de-assert: nothing
    board.ipi(0x4608, 2)
    board.ipi(0x4400, 1)
    assert [core.log for core in board.cores] == [[], ["init", "nmi"], ["init", "startup 0x8"]]


def test_init_keeps_id_and_base() -> None:
    board = Board(2)
    apic = board.apics[1]
    apic.mmio_write(chip.ID, 4, 9 << 24)
    fixed(apic, 0x50)
    apic.init()
    assert not apic.pending()
    assert apic.mmio_read(chip.ID, 4) == 9 << 24
    assert apic.read_msr(0x1B) == 0xFEE0_0800


# -- the 8259 pair behind LINT0 ------------------------------------------------------------------


def test_virtual_wire_after_reset_and_when_masked() -> None:
    board = Board(2, enable=False)
    board.pic.vectors = [0x08]
    board.bus.set_lint0(True)
    assert board.cores[0].log == ["interrupt"] and board.waiting() == [0]
    bsp = board.apics[0]
    bsp.mmio_write(chip.SVR, 4, 0x1FF)
    bsp.mmio_write(chip.LVT_LINT0, 4, 0x10700)
    assert board.waiting() == []
    bsp.mmio_write(chip.LVT_LINT0, 4, 0x700)
    assert bsp.acknowledge() == 0x08
    assert bsp.mmio_read(chip.ISR, 4) == 0  # ExtINT needs no EOI here


def test_an_apic_switched_off_lets_the_pair_through() -> None:
    board = Board()
    board.apics[0].mmio_write(chip.LVT_LINT0, 4, 0x10700)
    assert board.apics[0].write_msr(0x1B, 0xFEE0_0000)
    board.pic.vectors = [0x70]
    assert board.apics[0].pending() and board.apics[0].acknowledge() == 0x70


def test_lint0_as_a_fixed_edge() -> None:
    board = Board()
    apic = board.apics[0]
    apic.mmio_write(chip.LVT_LINT0, 4, 0x31)
    board.bus.set_lint0(True)
    assert apic.acknowledge() == 0x31
    apic.mmio_write(chip.EOI, 4, 0)
    board.bus.set_lint0(True)  # no new edge
    assert not apic.pending()
    board.bus.set_lint0(False)
    board.bus.set_lint0(True)
    assert apic.pending()


def test_lint1_as_nmi() -> None:
    board = Board()
    board.apics[0].mmio_write(chip.LVT_LINT1, 4, 0x400)
    board.bus.set_lint1(True)
    assert board.cores[0].log == ["nmi"]


# -- MSI -----------------------------------------------------------------------------------------


def test_message_signalled_interrupts() -> None:
    board = Board(4)
    board.bus.send_msi(0xFEE0_0000 | 2 << 12, 0x4041)
    assert board.waiting() == [2]
    board.bus.send_msi(0xFEE0_0000 | 0b1001 << 12 | 1 << 2, 0x0051)  # logical
    assert board.waiting() == [0, 2, 3]
    board.apics[1].task_priority = 1
    assert board.apics[0].acknowledge() == 0x51
    board.bus.send_msi(0xFEE0_0000 | 0b0011 << 12 | 1 << 3 | 1 << 2, 0x0061)  # redirection hint
    assert 1 in board.waiting() and not board.apics[0].pending()
    board.bus.send_msi(0xFED0_0000, 0x4041)  # not an interrupt message


# -- the timer -----------------------------------------------------------------------------------


def test_one_shot() -> None:
    board = Board()
    apic, clock = board.apics[0], board.clock
    apic.mmio_write(chip.DIVIDE, 4, 0b0011)  # by 16
    apic.mmio_write(chip.LVT_TIMER, 4, 0x40)
    apic.mmio_write(chip.INITIAL_COUNT, 4, 1000)
    clock.advance(15_999)
    assert not apic.pending() and apic.mmio_read(chip.CURRENT_COUNT, 4) == 1
    clock.advance(16_000)
    assert apic.acknowledge() == 0x40 and apic.mmio_read(chip.CURRENT_COUNT, 4) == 0
    apic.mmio_write(chip.EOI, 4, 0)
    clock.advance(1_000_000)
    assert not apic.pending()


@pytest.mark.parametrize(
    ("bits", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_divide_configuration(bits: int, divisor: int) -> None:
    board = Board()
    apic = board.apics[0]
    apic.mmio_write(chip.DIVIDE, 4, bits)
    apic.mmio_write(chip.INITIAL_COUNT, 4, 0xFFFF_FFFF)
    board.clock.advance(1280)
    assert 0xFFFF_FFFF - apic.mmio_read(chip.CURRENT_COUNT, 4) == 1280 // divisor


def test_periodic_goes_on_and_stops_at_zero() -> None:
    board = Board()
    apic, clock = board.apics[0], board.clock
    apic.mmio_write(chip.DIVIDE, 4, 0b1011)
    apic.mmio_write(chip.LVT_TIMER, 4, 0x2_0041)
    apic.mmio_write(chip.INITIAL_COUNT, 4, 100_000)
    for number in range(1, 6):
        clock.advance(number * 100_000 - 1)
        assert not apic.pending()
        clock.advance(number * 100_000)
        assert apic.acknowledge() == 0x41
        apic.mmio_write(chip.EOI, 4, 0)
    apic.mmio_write(chip.LVT_TIMER, 4, 0x3_0041)  # masked: counts on
    clock.advance(650_000)
    assert not apic.pending() and apic.mmio_read(chip.CURRENT_COUNT, 4) == 50_000
    apic.mmio_write(chip.INITIAL_COUNT, 4, 0)
    apic.mmio_write(chip.LVT_TIMER, 4, 0x2_0041)
    clock.advance(2_000_000)
    assert not apic.pending()


def test_a_guest_cannot_drown_the_host_in_timer_interrupts() -> None:
    board = Board()
    apic = board.apics[0]
    apic.mmio_write(chip.DIVIDE, 4, 0b1011)
    apic.mmio_write(chip.LVT_TIMER, 4, 0x2_0041)
    apic.mmio_write(chip.INITIAL_COUNT, 4, 1)
    board.clock.advance(10_000_000)
    assert len(board.cores[0].log) <= 10_000_000 // 20_000 + 1


def test_a_late_clock_loses_periods_but_keeps_the_phase() -> None:
    board = Board()
    apic = board.apics[0]
    apic.mmio_write(chip.DIVIDE, 4, 0b1011)
    apic.mmio_write(chip.LVT_TIMER, 4, 0x2_0041)
    apic.mmio_write(chip.INITIAL_COUNT, 4, 100_000)
    board.clock._now = 1_050_000  # nobody called for a while
    board.clock.fire()
    assert board.clock.next_deadline() == 1_100_000


def test_tsc_deadline() -> None:
    board = Board(tsc=True)
    apic, clock = board.apics[0], board.clock
    apic.mmio_write(chip.LVT_TIMER, 4, 0x4_0042)
    assert apic.write_msr(0x6E0, 10_000)  # the TSC runs at 2 GHz
    assert apic.read_msr(0x6E0) == 10_000
    apic.mmio_write(chip.INITIAL_COUNT, 4, 5)  # has no effect in this mode
    clock.advance(4_999)
    assert not apic.pending()
    clock.advance(5_000)
    assert apic.acknowledge() == 0x42 and apic.read_msr(0x6E0) == 0
    apic.mmio_write(chip.EOI, 4, 0)
    assert apic.write_msr(0x6E0, 1)  # already over
    clock.advance(5_001)
    assert apic.pending()


def test_without_the_feature_there_is_no_tsc_deadline() -> None:
    apic = Board().apics[0]
    apic.mmio_write(chip.LVT_TIMER, 4, 0x4_0042)
    assert apic.mmio_read(chip.LVT_TIMER, 4) == 0x42
    assert apic.read_msr(0x6E0) is None and not apic.write_msr(0x6E0, 1)


# -- MSRs, saving --------------------------------------------------------------------------------


def test_the_base_register_refuses_what_is_reserved() -> None:
    apic = Board().apics[0]
    assert not apic.write_msr(0x1B, 0xFEE0_0D00)  # x2APIC
    assert not apic.write_msr(0x1B, 1 << 52)
    assert apic.write_msr(0x1B, 0xFED0_0800) and apic.read_msr(0x1B) == 0xFED0_0900
    assert apic.read_msr(0x10) is None and not apic.write_msr(0x10, 0)


def test_a_saved_apic_goes_on_where_it_was() -> None:
    board = Board()
    apic = board.apics[0]
    apic.mmio_write(chip.DIVIDE, 4, 0b1011)
    apic.mmio_write(chip.LVT_TIMER, 4, 0x2_0041)
    apic.mmio_write(chip.INITIAL_COUNT, 4, 100_000)
    for vector in (0x80, 0xFF):
        fixed(apic, vector, level=True)
    assert apic.acknowledge() == 0xFF
    board.clock.advance(30_000)
    state = apic.save_state()
    other = Board(enable=False)
    other.clock.advance(30_000)
    other.apics[0].load_state(state)
    assert other.apics[0].save_state() == state
    other.apics[0].mmio_write(chip.EOI, 4, 0)
    assert other.apics[0].acknowledge() == 0x80
    other.apics[0].mmio_write(chip.EOI, 4, 0)
    other.clock.advance(100_000)
    assert other.apics[0].acknowledge() == 0x41


@pytest.mark.parametrize(
    ("field", "value"),
    [("irr", b"short"), ("tpr", 256), ("base", 1 << 60), ("lvt", [1 << 32] * 6), ("isr", 5)],
)
def test_an_impossible_state_is_refused(field: str, value: object) -> None:
    apic = Board().apics[0]
    state = {**apic.save_state(), field: value}
    with pytest.raises(CorruptImageError):
        apic.load_state(state)
