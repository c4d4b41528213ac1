"""PCI: configuration space, BARs, INTx, MSI-X, through ports CF8h and CFCh as a guest does."""

from __future__ import annotations

import pytest

from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.vm.bus import Bus
from vdisk.vm.devices import pci
from vdisk.vm.devices.pci import Identity, PciBus, PciDevice
from vdisk.vm.memory import GuestMemory, PageKind

IDENTITY = Identity(0x1234, 0x5678, 0x010180, 2, 0x1AF4, 0x1100, 1)


class Card(PciDevice):
    """An I/O BAR of 16 bytes, a memory BAR of 4 KiB, a 64-bit one of 1 MiB."""

    def __init__(self, bus: Bus, msix: bool = False) -> None:
        super().__init__("card", bus, IDENTITY)
        self.log: list[tuple[int, int, int]] = []
        self.add_bar(0, 16, self.read, self.write, pci.BAR_IO)
        self.add_bar(1, 4096, self.read, self.write)
        self.add_bar(2, 1 << 20, self.read, self.write, pci.BAR_64 | pci.BAR_PREFETCHABLE)
        if msix:
            self.add_msix(3, 4)

    def read(self, offset: int, size: int) -> int:
        return 0x40 + offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


class Machine:
    def __init__(self, msix: bool = False) -> None:
        self.bus = Bus()
        self.pci = PciBus(self.bus)
        self.messages: list[tuple[int, int]] = []
        self.pci.send_msi = lambda address, data: self.messages.append((address, data))
        self.card = Card(self.bus, msix)
        self.pci.add(self.card, 3)

    def select(self, slot: int, register: int, function: int = 0, bus: int = 0) -> None:
        address = 1 << 31 | bus << 16 | slot << 11 | function << 8 | register & 0xFC
        self.bus.ports.write(0xCF8, 4, address)

    def read(self, slot: int, register: int, size: int = 4) -> int:
        self.select(slot, register)
        return self.bus.ports.read(0xCFC + (register & 3), size)

    def write(self, slot: int, register: int, value: int, size: int = 4) -> None:
        self.select(slot, register)
        self.bus.ports.write(0xCFC + (register & 3), size, value)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_header_reads_as_declared(machine: Machine) -> None:
    assert machine.read(3, 0x00) == 0x5678_1234
    assert machine.read(3, 0x08) == 0x010180_02
    assert machine.read(3, 0x2C) == 0x1100_1AF4
    assert machine.read(3, 0x3D, 1) == 1
    assert machine.read(3, 0x0A, 2) == 0x0101


def test_nobody_answers_with_ones(machine: Machine) -> None:
    assert machine.read(4, 0) == 0xFFFF_FFFF
    machine.select(3, 0, bus=1)
    assert machine.bus.ports.read(0xCFC, 4) == 0xFFFF_FFFF
    machine.select(3, 0, function=1)
    assert machine.bus.ports.read(0xCFC, 2) == 0xFFFF


def test_a_disabled_address_selects_nothing(machine: Machine) -> None:
    machine.bus.ports.write(0xCF8, 4, 3 << 11)
    assert machine.bus.ports.read(0xCFC, 4) == 0xFFFF_FFFF


def test_the_address_register_takes_dwords_only(machine: Machine) -> None:
    machine.select(3, 0x10)
    before = machine.bus.ports.read(0xCF8, 4)
    machine.bus.ports.write(0xCF8, 2, 0)
    machine.bus.ports.write(0xCFA, 1, 0)
    assert machine.bus.ports.read(0xCF8, 4) == before
    assert machine.bus.ports.read(0xCF8, 1) == 0xFF


def test_reserved_bits_of_the_address_read_zero(machine: Machine) -> None:
    machine.bus.ports.write(0xCF8, 4, 0xFFFF_FFFF)
    assert machine.bus.ports.read(0xCF8, 4) == 0x80FF_FFFC


def test_only_writable_bits_change(machine: Machine) -> None:
    for register in range(0, 256, 4):
        machine.write(3, register, 0xFFFF_FFFF)
    assert machine.read(3, 0x00) == 0x5678_1234
    assert machine.read(3, 0x04, 2) == pci.COMMAND_WRITABLE
    assert machine.read(3, 0x08) == 0x010180_02
    assert machine.read(3, 0x3C, 2) == 0x01FF
    assert machine.read(3, 0x40) == 0


def test_status_bits_are_cleared_by_ones(machine: Machine) -> None:
    machine.card.config[7] = 0xF9
    machine.write(3, 0x06, 0x2000, 2)
    assert machine.read(3, 0x07, 1) == 0xD9


def test_bars_are_sized_by_writing_ones(machine: Machine) -> None:
    for register in range(0x10, 0x28, 4):
        machine.write(3, register, 0xFFFF_FFFF)
    assert machine.read(3, 0x10) == 0xFFFF_FFF1
    assert machine.read(3, 0x14) == 0xFFFF_F000
    assert machine.read(3, 0x18) == 0xFFF0_000C
    assert machine.read(3, 0x1C) == 0xFFFF_FFFF
    assert machine.read(3, 0x20) == 0


def test_a_bar_answers_only_while_enabled(machine: Machine) -> None:
    machine.write(3, 0x10, 0xC000)
    machine.write(3, 0x14, 0xFEBF_0000)
    assert machine.bus.ports.read(0xC004, 1) == 0xFF
    machine.write(3, 0x04, pci.COMMAND_IO, 2)
    assert machine.bus.ports.read(0xC004, 1) == 0x44
    assert machine.bus.mmio.read(0xFEBF_0008, 4) == 0xFFFF_FFFF
    machine.write(3, 0x04, pci.COMMAND_MEMORY, 2)
    assert machine.bus.ports.read(0xC004, 1) == 0xFF
    assert machine.bus.mmio.read(0xFEBF_0008, 4) == 0x48
    machine.bus.mmio.write(0xFEBF_0010, 2, 0x1234)
    assert machine.card.log == [(16, 2, 0x1234)]


def test_a_64_bit_bar_lies_above_4_gib(machine: Machine) -> None:
    machine.write(3, 0x04, pci.COMMAND_MEMORY, 2)
    machine.write(3, 0x18, 0x4010_0000)
    machine.write(3, 0x1C, 0x12)
    assert machine.card.bars[2].address == 0x12_4010_0000
    assert machine.bus.mmio.read(0x12_4010_0001, 1) == 0x41


def test_a_bar_that_collides_waits_until_the_place_is_free(machine: Machine) -> None:
    other = Card(machine.bus)
    machine.pci.add(other, 4)
    for slot in (3, 4):
        machine.write(slot, 0x10, 0xC000)
        machine.write(slot, 0x04, pci.COMMAND_IO, 2)
    machine.bus.ports.write(0xC000, 1, 1)
    assert machine.card.log and not other.log
    machine.write(3, 0x10, 0xD000)
    machine.bus.ports.write(0xC000, 1, 2)
    assert other.log == [(0, 1, 2)]


def test_a_bar_outside_the_ports_answers_nowhere(machine: Machine) -> None:
    machine.write(3, 0x04, pci.COMMAND_IO, 2)
    machine.write(3, 0x10, 0x1234_0000)
    assert machine.card.bars[0].address is None
    machine.write(3, 0x10, 0xC000)
    assert machine.card.bars[0].address == 0xC000


def test_reset_takes_addresses_away(machine: Machine) -> None:
    machine.write(3, 0x04, 3, 2)
    machine.write(3, 0x10, 0xC000)
    machine.card.reset()
    assert machine.read(3, 0x10) == 1
    assert machine.read(3, 0x04, 2) == 0
    assert machine.bus.ports.find(0xC000) is None


def test_pins_are_swizzled_over_the_pirq_lines(machine: Machine) -> None:
    second = Card(machine.bus)
    machine.pci.add(second, 7)  # the same line as slot 3
    machine.card.set_intx(True)
    assert [line.level for line in machine.pci.pirq] == [False, False, True, False]
    second.set_intx(True)
    machine.card.set_intx(False)
    assert machine.pci.pirq[2].level
    second.set_intx(False)
    assert not machine.pci.pirq[2].level


def test_intx_can_be_disabled_and_its_status_still_read(machine: Machine) -> None:
    machine.card.set_intx(True)
    machine.write(3, 0x04, pci.COMMAND_INTX_DISABLE, 2)
    assert not machine.pci.pirq[2].level
    assert machine.read(3, 0x06, 2) & pci.STATUS_INTERRUPT
    machine.write(3, 0x04, 0, 2)
    assert machine.pci.pirq[2].level


def test_capabilities_form_a_list(machine: Machine) -> None:
    card = machine.card
    first = card.add_capability(0x09, b"\x05abc")
    second = card.add_capability(0x01, bytes(6), b"\x00\x00\x03")
    assert card.config[pci.CAPABILITIES_POINTER] == second
    assert card.config[second : second + 2] == bytes([0x01, first])
    assert card.config[first : first + 2] == bytes([0x09, 0])
    assert machine.read(3, 0x06, 2) & pci.STATUS_CAPABILITIES
    machine.write(3, second + 4, 0xFF, 1)
    assert machine.read(3, second + 4, 1) == 3
    with pytest.raises(InvalidRequestError):
        card.add_capability(0x09, bytes(250))


def test_a_rom_lies_where_its_own_bar_says(machine: Machine) -> None:
    memory = GuestMemory(1 << 20)
    machine.card.add_rom(b"\x55\xaa" + bytes(3000), memory)
    machine.write(3, 0x30, 0xFFFF_FFFE)
    assert machine.read(3, 0x30) == 0xFFFF_F000
    machine.write(3, 0x04, pci.COMMAND_MEMORY, 2)
    machine.write(3, 0x30, 0xFEB0_0001)
    assert memory.read(0xFEB0_0000, 2) == b"\x55\xaa"
    assert memory.kind(0xFEB0_0FFF) is PageKind.ROM
    machine.write(3, 0x30, 0x0000_8001)  # over RAM
    assert memory.kind(0xFEB0_0000) is PageKind.MMIO
    assert memory.kind(0x8000) is PageKind.RAM
    machine.write(3, 0x30, 0xFEB0_0000)
    assert memory.kind(0xFEB0_0000) is PageKind.MMIO


def test_functions_share_a_slot() -> None:
    bus = Bus()
    bridge = PciBus(bus)
    first, second = Card(bus), Card(bus)
    bridge.add(first, 1)
    bridge.add(second, 1, 1)
    assert first.config[pci.HEADER_TYPE] == pci.MULTIFUNCTION
    assert second.config[pci.HEADER_TYPE] == 0
    first.reset()
    assert first.config[pci.HEADER_TYPE] == pci.MULTIFUNCTION
    with pytest.raises(InvalidRequestError):
        bridge.add(Card(bus), 1, 1)
    with pytest.raises(InvalidRequestError):
        bridge.add(Card(bus), 2, 1)


def test_state_survives_with_its_mapping(machine: Machine) -> None:
    machine.write(3, 0x04, 3, 2)
    machine.write(3, 0x10, 0xC000)
    machine.card.set_intx(True)
    saved = machine.card.save_state()
    loaded = Machine()
    loaded.card.load_state(saved)
    assert loaded.bus.ports.read(0xC004, 1) == 0x44
    assert loaded.pci.pirq[2].level


def test_a_saved_header_of_another_function_is_refused(machine: Machine) -> None:
    saved = machine.card.save_state()
    saved["config"] = b"\x86\x80" + saved["config"][2:]
    with pytest.raises(CorruptImageError):
        machine.card.load_state(saved)


class TestMsix:
    TABLE = 0xFEA0_0000

    @pytest.fixture
    def machine(self) -> Machine:
        machine = Machine(msix=True)
        machine.write(3, 0x20, self.TABLE)
        machine.write(3, 0x04, pci.COMMAND_MEMORY | pci.COMMAND_MASTER, 2)
        return machine

    def program(self, machine: Machine, vector: int, mask: int = 0) -> None:
        entry = self.TABLE + 16 * vector
        for offset, value in ((0, 0xFEE0_1000), (4, 0), (8, 0x4100 + vector), (12, mask)):
            machine.bus.mmio.write(entry + offset, 4, value)

    def enable(self, machine: Machine, control: int = 0x8000) -> None:
        machine.write(3, 0x42, control, 2)

    def test_the_capability_describes_the_table(self, machine: Machine) -> None:
        assert machine.read(3, 0x40) == 0x0002_0011
        assert machine.read(3, 0x44) == 4
        assert machine.read(3, 0x48) == 0x800 | 4

    def test_entries_are_masked_after_reset(self, machine: Machine) -> None:
        assert machine.bus.mmio.read(self.TABLE + 12, 4) == 1

    def test_an_enabled_vector_sends_its_message(self, machine: Machine) -> None:
        self.program(machine, 1)
        machine.card.msix.notify(1)
        assert machine.messages == []
        self.enable(machine)
        machine.card.msix.notify(1)
        assert machine.messages == [(0xFEE0_1000, 0x4101)]

    def test_a_masked_vector_is_sent_when_unmasked(self, machine: Machine) -> None:
        self.program(machine, 2, mask=1)
        self.enable(machine)
        machine.card.msix.notify(2)
        assert machine.messages == []
        assert machine.bus.mmio.read(self.TABLE + 0x800, 8) == 4
        machine.bus.mmio.write(self.TABLE + 2 * 16 + 12, 4, 0)
        assert machine.messages == [(0xFEE0_1000, 0x4102)]
        assert machine.bus.mmio.read(self.TABLE + 0x800, 8) == 0

    def test_the_function_mask_holds_everything_back(self, machine: Machine) -> None:
        self.program(machine, 0)
        self.enable(machine, 0xC000)
        machine.card.msix.notify(0)
        assert machine.messages == []
        self.enable(machine)
        assert machine.messages == [(0xFEE0_1000, 0x4100)]

    def test_no_message_without_bus_mastering(self, machine: Machine) -> None:
        self.program(machine, 0)
        self.enable(machine)
        machine.write(3, 0x04, pci.COMMAND_MEMORY, 2)
        machine.card.msix.notify(0)
        assert machine.messages == []

    def test_a_vector_that_is_not_there_does_nothing(self, machine: Machine) -> None:
        self.enable(machine)
        machine.card.msix.notify(0xFFFF)
        machine.card.msix.notify(3)
        assert machine.messages == []

    def test_intx_is_silent_while_msix_is_enabled(self, machine: Machine) -> None:
        machine.card.set_intx(True)
        assert machine.pci.pirq[2].level
        self.enable(machine)
        assert not machine.pci.pirq[2].level
        self.enable(machine, 0)
        assert machine.pci.pirq[2].level

    def test_accesses_of_any_size_have_an_answer(self, machine: Machine) -> None:
        for offset in (*range(0x40), *range(0x7F8, 0x810), 0xFFF):
            for size in (1, 2, 4, 8):
                machine.bus.mmio.write(self.TABLE + offset, size, (1 << 8 * size) - 1)
                machine.bus.mmio.read(self.TABLE + offset, size)

    def test_state_survives(self, machine: Machine) -> None:
        self.program(machine, 2, mask=1)
        self.enable(machine)
        machine.card.msix.notify(2)
        saved = machine.card.save_state()
        machine.card.reset()
        machine.card.load_state(saved)
        machine.bus.mmio.write(self.TABLE + 2 * 16 + 12, 4, 0)
        assert machine.messages == [(0xFEE0_1000, 0x4102)]
