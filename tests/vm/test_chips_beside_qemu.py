"""The same accesses to our chips and to QEMU's give the same values.

QEMU 7.2's machine is stopped meanwhile, so what is compared are registers and memory, not timing.
Where the two differ on purpose the generators stay away, and say why.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools import qtest
from tests.tools.peers import requires_peer
from vdisk.emu_blockdev import EmuBlockDevice
from vdisk.stores.memory import MemoryStore
from vdisk.vm.bus import Bus
from vdisk.vm.clock import VirtualClock
from vdisk.vm.devices.dma import Dma
from vdisk.vm.devices.fdc import Fdc
from vdisk.vm.devices.ioapic import BASE as IOAPIC
from vdisk.vm.devices.ioapic import IoApic
from vdisk.vm.devices.pci import PciBus
from vdisk.vm.devices.pic import PicPair
from vdisk.vm.devices.pit import Pit
from vdisk.vm.devices.ps2 import BYTE_TIME, KeyboardController
from vdisk.vm.devices.ps2_keyboard import Keyboard
from vdisk.vm.devices.ps2_mouse import Mouse
from vdisk.vm.devices.rtc import Rtc
from vdisk.vm.devices.serial import COM_PORTS, Uart
from vdisk.vm.devices.vga import Vga
from vdisk.vm.irq import IrqLine
from vdisk.vm.memory import GuestMemory, PageKind

pytestmark = requires_peer("qemu-system-x86_64")
SEEDS = range(4)


@pytest.fixture(scope="module")
def qemu() -> Iterator[qtest.Qtest]:
    with qtest.machine(["-vga", "std", "-serial", "null"]) as machine:
        yield machine


class Pair:
    """Accesses carried out here at once, and collected for QEMU."""

    def __init__(self, qemu: qtest.Qtest) -> None:
        self.qemu = qemu
        self.bus = Bus()
        self.clock = VirtualClock()
        self.memory = GuestMemory(16 << 20)
        self.ours: list[int] = []
        self.masks: list[int] = []
        self.log: list[str] = []

    def out(self, port: int, value: int, size: int = 1) -> None:
        self.log.append(f"out {port:x} {value:x}")
        self.bus.ports.write(port, size, value)
        self.qemu.out(port, value, size)

    def read_port(self, port: int, size: int = 1, mask: int = 0xFFFF_FFFF) -> None:
        """Read both; what is compared are the bits of ``mask``."""
        self.log.append(f"in {port:x} #{len(self.ours)}")
        self.ours.append(self.bus.ports.read(port, size))
        self.masks.append(mask)
        self.qemu.read_port(port, size)

    def write(self, address: int, value: int, size: int = 1) -> None:
        self.log.append(f"write {address:x} {value:x}")
        if self.memory.kind(address) is PageKind.RAM:
            self.memory.view(address, size)[:] = value.to_bytes(size, "little")
        else:
            self.bus.mmio.write(address, size, value)
        self.qemu.write(address, value, size)

    def read(self, address: int, size: int = 1) -> None:
        self.log.append(f"read {address:x} #{len(self.ours)}")
        if self.memory.kind(address) is PageKind.RAM:
            value = int.from_bytes(self.memory.view(address, size), "little")
        else:
            value = self.bus.mmio.read(address, size)
        self.ours.append(value)
        self.masks.append(0xFFFF_FFFF)
        self.qemu.read(address, size)

    def compare(self) -> None:
        theirs = self.qemu.answers()
        assert len(theirs) == len(self.ours)
        rows = zip(self.ours, theirs, self.masks, strict=True)
        for number, (ours, expected, mask) in enumerate(rows):
            if (ours ^ expected) & mask:
                end = next(n for n, line in enumerate(self.log) if line.endswith(f"#{number}"))
                story = "\n".join(self.log[max(end - 40, 0) : end + 1])
                pytest.fail(f"here {ours:#x}, QEMU {expected:#x} after\n{story}")


@pytest.fixture
def pair(qemu: qtest.Qtest) -> Pair:
    return Pair(qemu)


CHIPS = {"master": (0x20, 0, "device[6]"), "slave": (0xA0, 8, "device[7]")}
"""Port, first IRQ, and where QEMU keeps the chip in a machine with these options."""


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_8259(pair: Pair, chip: str, seed: int) -> None:
    """Requests, masks, every command word, polling, each chip for itself.

    Not: non-specific EOI in special mask mode (QEMU ends masked levels too, the data sheet says
    not to), and level triggering of all inputs by ICW1, which QEMU lacks.
    """
    source = random.Random(seed)
    port, first, path = CHIPS[chip]
    pic = PicPair(pair.bus)
    inputs = [number for number in range(8) if first or number != 2]

    def drive(number: int, level: bool) -> None:
        pair.log.append(f"IR{number} {level}")
        pic.set_irq(first + number, level)
        pair.qemu.set_irq(f"/machine/unattached/{path}", "unnamed-gpio-in", number, level)

    for step in range(3000):
        if step % 300 == 0:
            for number in inputs:
                drive(number, False)
            pair.out(0x4D0 + first // 8, 0)
            pair.out(port, 0x11)
            pair.out(0x4D0 + first // 8, source.randrange(256))
            pair.read_port(0x4D0 + first // 8)
            for value in (source.randrange(256), 4, source.choice((0x01, 0x03, 0x11, 0x13))):
                pair.out(port + 1, value)
        action = source.randrange(6)
        if action == 0:
            pair.out(port + 1, source.randrange(256))
        elif action == 1:
            word = source.choice((0x20, 0x60, 0xA0, 0xC0, 0xE0, 0x80, 0x00))
            pair.out(port, word | source.randrange(8))
        elif action == 2:
            pair.out(port, source.choice((0x0A, 0x0B, 0x0C)))
        elif action == 3:
            pair.read_port(port + source.randrange(2))
        else:
            drive(source.choice(inputs), source.random() < 0.6)
    pair.compare()


@pytest.mark.parametrize("seed", SEEDS)
def test_8254(pair: Pair, seed: int) -> None:
    """Counts written, latched and read back in the moment of loading.

    Not: BCD, the null count bit (which QEMU does not have) and odd counts of mode 3, which begin
    one lower by the data sheet.
    """
    source = random.Random(seed)
    for number in range(3):
        pair.out(0x43, number << 6 | 0x34)
    Pit(pair.bus, pair.clock, IrqLine()).reset()
    for _ in range(600):
        number, access = source.randrange(3), source.choice((1, 2, 3))
        mode = source.choice((0, 2, 3, 4, 6, 7))
        pair.out(0x43, number << 6 | access << 4 | mode << 1)
        for _ in range(2 if access == 3 else 1):
            pair.out(0x40 + number, source.randrange(0, 256, 2))
        for _ in range(source.randrange(4)):
            if source.random() < 0.3:
                pair.out(0x43, source.choice((number << 6, 0xD0 | 2 << number)))
            pair.read_port(0x40 + number)
            if access == 3:
                pair.read_port(0x40 + number)
    pair.compare()


@pytest.mark.parametrize("seed", SEEDS)
def test_mc146818_memory(pair: Pair, seed: int) -> None:
    """Memory and formats, while SET keeps the time as it was written.

    Not: index 37h, QEMU's second century.
    """
    source = random.Random(seed)
    free = [*range(10), *range(0x0E, 0x37), *range(0x38, 0x80)]
    Rtc(pair.bus, pair.clock, IrqLine(), 0)
    for index, value in ((0x0A, 0x26), (0x0B, 0x82)):
        pair.out(0x70, index)
        pair.out(0x71, value)
    for index in free:
        pair.out(0x70, index)
        pair.out(0x71, source.randrange(256))
    for _ in range(1000):
        index = source.choice(free)
        pair.out(0x70, index | source.choice((0, 0x80)))
        pair.read_port(0x70)
        if source.random() < 0.5:
            pair.out(0x71, source.randrange(256))
        pair.read_port(0x71)
    for index in (0x0A, 0x0B, 0x0D):
        pair.out(0x70, index)
        pair.read_port(0x71)
    pair.compare()


@pytest.mark.parametrize("seed", SEEDS)
def test_16550a(pair: Pair, seed: int) -> None:
    """Registers, and bytes looped back.

    Not: changes of modem lines, which QEMU does not tell in loopback.
    """
    source = random.Random(seed)
    port = COM_PORTS[0]
    Uart(pair.bus, pair.clock, IrqLine(), port, Nobody())
    start = ((3, 0x80), (0, 12), (1, 0), (3, 0), (1, 0))
    for register, value in (*start, (4, 0x10), (2, 0x07), (2, 0x01), (4, 0x10)):
        pair.out(port + register, value)
    for register in (5, 2, 0, 5):
        pair.read_port(port + register)
    for _ in range(1500):
        register = source.randrange(8)
        if source.random() < 0.5:
            pair.read_port(port + register, mask=0xF0 if register == 6 else 0xFF)
        elif register == 4:
            pair.out(port + 4, 0x10 | source.randrange(16))
        elif register == 3:
            pair.out(port + 3, source.choice((0x03, 0x83, 0x1B)))
        elif register == 1:
            pair.out(port + 1, source.randrange(8))
        elif register != 2:
            pair.out(port + register, source.randrange(256))
    pair.compare()


class Nobody:
    """Takes what is sent and says nothing."""

    def write(self, data: bytes) -> None:
        del data


@pytest.mark.parametrize("seed", SEEDS)
def test_82093aa(pair: Pair, seed: int) -> None:
    """Registers of the I/O APIC; reserved bits are left alone, since QEMU keeps what is written."""
    source = random.Random(seed)
    IoApic(pair.bus, lambda _address, _data: None)
    for index in range(0x10, 0x40):
        pair.write(IOAPIC, index, 4)
        pair.write(IOAPIC + 0x10, 0 if index & 1 else 0x10000, 4)
    for _ in range(1500):
        selected = source.choice((0, 1, 2, *range(0x10, 0x40)))
        pair.write(IOAPIC, selected, 4)
        if source.random() < 0.5:
            value = source.randrange(1 << 17) if selected & 1 == 0 else source.randrange(256) << 24
            if selected >= 0x10:
                pair.write(IOAPIC + 0x10, value if selected & 1 else value | 0x10000, 4)
        pair.read(IOAPIC + 0x10, 4)
        pair.read(IOAPIC, 4)
    pair.compare()


KEYBOARD_COMMANDS = (0xED, 0xEE, 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFF)
MOUSE_COMMANDS = (0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFF)
CONTROLLER_COMMANDS = (0x20, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAD, 0xAE)


@pytest.mark.parametrize("seed", SEEDS)
def test_8042(pair: Pair, seed: int) -> None:
    """Commands to the controller, the keyboard and the mouse, and all that they answer.

    Not: RESEND and the test inputs, which QEMU does not know.
    """
    source = random.Random(seed)
    KeyboardController(
        pair.bus, pair.clock, Keyboard(), Mouse(),
        irq1=IrqLine(), irq12=IrqLine(),
        set_a20=lambda _level: None, reset_processor=lambda: None,
    )  # fmt: skip

    def listen() -> None:
        for _ in range(6):
            pair.clock.advance(pair.clock.now() + BYTE_TIME)
            pair.read_port(0x64, mask=0x21)
            pair.read_port(0x60)

    def tell(port: int, value: int) -> None:
        pair.out(port, value)
        listen()

    tell(0x64, 0xAA)
    tell(0x64, 0xAE)
    tell(0x64, 0xA8)
    tell(0x64, 0x60)
    tell(0x60, 0x07)
    tell(0x60, 0xFF)
    tell(0x64, 0xD4)
    tell(0x60, 0xFF)
    for _ in range(150):
        action = source.randrange(4)
        if action == 0:
            tell(0x64, source.choice(CONTROLLER_COMMANDS))
        elif action == 1:
            tell(0x64, 0x60)
            tell(0x60, source.choice((0x07, 0x47, 0x44, 0x04)))  # SYS stays set
        elif action == 2:
            command = source.choice(KEYBOARD_COMMANDS)
            tell(0x60, command)
            if command in {0xED, 0xF3}:
                tell(0x60, source.randrange(8))
            elif command == 0xF0:
                tell(0x60, source.choice((0, 1, 2)))
        else:
            command = source.choice(MOUSE_COMMANDS)
            tell(0x64, 0xD4)
            tell(0x60, command)
            if command in {0xE8, 0xF3}:
                tell(0x64, 0xD4)
                tell(0x60, source.choice((3, 80, 100, 200) if command == 0xF3 else (0, 1, 2, 3)))
    pair.compare()


class TestVga:
    @pytest.fixture
    def pair(self, qemu: qtest.Qtest) -> Pair:
        pair = Pair(qemu)
        self.vga = Vga(pair.bus, pair.memory, pair.clock)
        PciBus(pair.bus).add(self.vga, 2)
        self.vga.reset()
        pair.out(0x1CE, 4, 2)
        pair.out(0x1D0, 0, 2)
        pair.out(0x3C2, 0x67)
        for index in range(9):
            self.graphics(pair, index, 0xFF if index == 8 else 0)
        self.sequencer(pair, 0, 3)
        return pair

    def graphics(self, pair: Pair, index: int, value: int) -> None:
        pair.out(0x3CE, value << 8 | index, 2)

    def sequencer(self, pair: Pair, index: int, value: int) -> None:
        pair.out(0x3C4, value << 8 | index, 2)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_planes(self, pair: Pair, seed: int) -> None:
        """Every read and write mode, logical function, rotation, mask."""
        source = random.Random(seed)
        self.sequencer(pair, 4, 6)
        self.graphics(pair, 6, 5)
        for offset in range(64):
            for plane in range(4):
                self.sequencer(pair, 2, 1 << plane)
                pair.write(0xA0000 + offset, source.randrange(256))
        for _ in range(4000):
            action = source.randrange(10)
            if action == 0:
                self.graphics(pair, source.choice((0, 1, 2, 4, 7)), source.randrange(16))
            elif action == 1:
                self.graphics(pair, 3, source.choice((source.randrange(32), 0)))
            elif action == 2:
                self.graphics(pair, 5, source.randrange(4) | source.choice((0, 8)))
            elif action == 3:
                self.graphics(pair, 8, source.choice((0xFF, source.randrange(256))))
            elif action == 4:
                self.sequencer(pair, 2, source.choice((15, source.randrange(16))))
            elif action < 7:
                pair.write(0xA0000 + source.randrange(64), source.randrange(256))
            else:
                pair.read(0xA0000 + source.randrange(64))
        pair.compare()

    @pytest.mark.parametrize(
        ("memory_mode", "mode", "window", "start"),
        [(2, 0x10, 0x0E, 0xB8000), (2, 0x10, 0x0A, 0xB0000), (0x0E, 0x40, 0x05, 0xA0000)],
    )
    def test_plain_bytes(
        self, pair: Pair, memory_mode: int, mode: int, window: int, start: int
    ) -> None:
        """Text and chain-4, with map masks; what lies outside the window.

        Not: planes 2 and 3 in odd/even mode, which QEMU does not write.
        """
        source = random.Random(memory_mode)
        self.sequencer(pair, 4, memory_mode)
        self.graphics(pair, 5, mode)
        self.graphics(pair, 6, window)
        self.sequencer(pair, 2, 3 if memory_mode == 2 else 15)
        for offset in range(256):
            pair.write(start + offset, source.randrange(256))
        for _ in range(1500):
            action = source.randrange(8)
            if action == 0:
                masks = 4 if memory_mode == 2 else 16
                self.sequencer(pair, 2, source.choice((masks - 1, source.randrange(masks))))
            elif action == 1 and memory_mode == 2:
                self.graphics(pair, 4, source.randrange(2))
            elif action < 5:
                pair.write(start + source.randrange(256), source.randrange(256))
            else:
                pair.read(start + source.randrange(256))
        for address in (0xA0000, 0xB0000, 0xB8000):
            if address != start:
                pair.read(address)
        pair.compare()

    @pytest.mark.parametrize("seed", SEEDS)
    def test_registers(self, pair: Pair, seed: int) -> None:
        """Index and data registers, the DAC, the display interface."""
        source = random.Random(seed)
        pair.out(0x3C8, 0)
        for _ in range(768):
            pair.out(0x3C9, 0)
        pair.out(0x3D4, 0x0011, 2)
        for index in range(0x19):
            pair.out(0x3D4, index, 2)
        for index in range(0x15):
            pair.read_port(0x3DA, mask=0)
            pair.out(0x3C0, index)
            pair.out(0x3C0, 0)
        for index in range(1, 5):
            self.sequencer(pair, index, 0)
        for _ in range(2000):
            action = source.randrange(6)
            if action == 0:
                port, count = source.choice(((0x3C4, 5), (0x3CE, 9), (0x3D4, 0x19)))
                pair.out(port, source.randrange(count))
                if source.random() < 0.6:
                    pair.out(port + 1, source.randrange(256))
                pair.read_port(port + 1)
                pair.read_port(port)
            elif action == 1:
                pair.out(0x3C7, source.randrange(256))
                for _ in range(source.randrange(5)):
                    pair.read_port(0x3C9)
            elif action == 2:
                pair.out(0x3C8, source.randrange(256))
                for _ in range(3 * source.randrange(3)):
                    pair.out(0x3C9, source.randrange(64))  # QEMU keeps eight bits
            elif action == 3:
                pair.read_port(0x3DA, mask=0)
                index = source.randrange(0x15)
                pair.out(0x3C0, index)
                pair.out(0x3C0, source.randrange(256))
                pair.read_port(0x3C1)
            elif action == 4:
                pair.read_port(0x3CC)
            else:
                pair.out(0x1CE, source.choice((0, 1, 2, 3, 5, 6)), 2)
                pair.read_port(0x1CE, 2)
        pair.compare()


@pytest.mark.parametrize("seed", SEEDS)
def test_8237(pair: Pair, seed: int) -> None:
    """Addresses, counts and page registers of both controllers.

    Not: half of an address or count (QEMU takes both halves at once), requests by software, port
    80h, which is nobody's here, and reading the masks (PIIX3: all at 0Fh), which QEMU lacks.
    """
    source = random.Random(seed)
    Dma(pair.bus, pair.memory)
    pages = (0x81, 0x82, 0x83, 0x87, 0x89, 0x8A, 0x8B)
    for page in pages:
        pair.out(page, 0)
    for base, step in ((0x00, 1), (0xC0, 2)):
        pair.out(base + 0x0D * step, 0)
        pair.out(base + 0x0C * step, 0)
        for register in range(8):
            pair.out(base + register * step, 0)
            pair.out(base + register * step, 0)
    for _ in range(300):
        base, step = source.choice(((0x00, 1), (0xC0, 2)))
        register = source.choice((*range(8), *range(8), 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F))
        halves = 2 if register < 8 else 1
        if register < 8 and source.random() < 0.5:
            for _ in range(halves):
                pair.read_port(base + register * step)
        else:
            for _ in range(halves):
                pair.out(base + register * step, source.randrange(256))
        page = source.choice(pages)
        if source.random() < 0.5:
            pair.out(page, source.randrange(256))
        else:
            pair.read_port(page)
    pair.compare()


FDC_COMMANDS: tuple[tuple[int, int, int], ...] = (
    *((0x03, 2, 0), (0x04, 1, 1), (0x07, 1, 0), (0x08, 0, 2), (0x0E, 0, 10), (0x0F, 2, 0)),
    *((0x10, 0, 1), (0x13, 3, 0), (0x14, 0, 1), (0x94, 0, 1), (0x1F, 0, 1)),
)
"""A command, how many bytes it takes, and how many it answers with."""
FDC_DUMPED = {4: 0x00, 5: 0xFE, 6: 0x00}
"""What DUMPREG answers alike: QEMU has half of SPECIFY, and the last sector of a drive's type."""


@pytest.mark.parametrize("seed", SEEDS)
def test_82077(tmp_path: Path, seed: int) -> None:
    """Phases, seeks and what the chip tells of itself; data are compared by Linux's own driver."""
    source = random.Random(seed)
    image = tmp_path / "floppy.img"
    image.write_bytes(bytes(1440 << 10))
    options = ["-drive", f"if=floppy,format=raw,file={image}"]
    with qtest.machine(options) as qemu:
        pair = Pair(qemu)
        disk = EmuBlockDevice(MemoryStore(bytes(1440 << 10)), removable=True, threads=0)
        Fdc(pair.bus, Dma(pair.bus, pair.memory), IrqLine(), [disk])
        pair.out(0x3F2, 0x00)
        pair.out(0x3F2, 0x1C)
        pair.read_port(0x3F4)
        first = [(0x08, 0, 2)] * 4 + [(0x13, 3, 0)]
        for command, words, answers in first + source.choices(FDC_COMMANDS, k=150):
            pair.out(0x3F5, command)
            for number in range(words):
                unit = command in (0x04, 0x07, 0x0F) and number == 0
                pair.out(0x3F5, 0 if unit else source.randrange(80))
            if command in (0x07, 0x0F):
                pair.out(0x3F5, 0x08)
            for number in range(2 if command in (0x07, 0x0F) else answers):
                pair.read_port(0x3F4)
                mask = FDC_DUMPED.get(number, 0xFF) if command == 0x0E else 0xFF
                pair.read_port(0x3F5, mask=mask)
            pair.read_port(0x3F4)
        pair.compare()
