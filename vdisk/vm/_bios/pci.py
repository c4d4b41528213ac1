"""PCI configuration space (PCI Local Bus 3.0, section 6), through configuration mechanism #1.

POST gives every base address register room of its own and every interrupt pin a line, as an
operating system expects to find them::

    memory   from the end of low RAM, at 3 GiB at the earliest, up to the I/O APIC
    I/O      C000h - FFFFh
    PIRQ A-D IRQ 10, 10, 11, 11
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm._bios.hardware import Hardware, Ports

ADDRESS, DATA = 0xCF8, 0xCFC
ENABLE = 1 << 31
DEVICES, FUNCTIONS = 32, 8

VENDOR, COMMAND, CLASS, HEADER_TYPE, BARS, ROM_BAR = 0x00, 0x04, 0x08, 0x0E, 0x10, 0x30
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
NOBODY, MULTIFUNCTION = 0xFFFF, 0x80
IO_ENABLE, MEMORY_ENABLE, BUS_MASTER = 1, 2, 4
VGA_CLASS, ISA_BRIDGE, IDE, HOST_BRIDGE = 0x0300, 0x0601, 0x0101, 0x0600
BAR_IO, BAR_64, BAR_PREFETCHABLE = 1, 4, 8
BAR_COUNT = 6

MEMORY_START, MEMORY_END = 0xE000_0000, 0xFEC0_0000  # the I/O APIC comes next
IO_START, IO_END = 0xC000, 0x1_0000
MEMORY_STEP = 0x1000  # functions do not share pages, so that a driver can map its own alone
PIRQ_LINES = (10, 10, 11, 11)
PIRQ_ROUTES = 0x60  # PIIX3: PIRQRC[A:D]
EDGE_LEVEL = 0x4D0  # ELCR1, ELCR2: which lines are level-triggered
PAM = 0x59  # i440FX: programmable attribute map, PAM0-PAM6


class Function(NamedTuple):
    """A PCI function's configuration space, seen through the ports."""

    ports: Ports
    bus: int
    device: int
    function: int

    def _select(self, offset: int) -> int:
        where = self.bus << 16 | self.device << 11 | self.function << 8 | offset & 0xFC
        self.ports.write(ADDRESS, 4, ENABLE | where)
        return DATA + offset % 4

    def read(self, offset: int, size: int) -> int:
        return self.ports.read(self._select(offset), size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.ports.write(self._select(offset), size, value & (1 << 8 * size) - 1)

    @property
    def exists(self) -> bool:
        return self.read(VENDOR, 2) != NOBODY

    @property
    def class_code(self) -> int:
        """Base class and subclass."""
        return self.read(CLASS + 2, 2)


def functions(ports: Ports) -> Iterator[Function]:
    """Every function of bus 0."""
    for device in range(DEVICES):
        first = Function(ports, 0, device, 0)
        if not first.exists:
            continue
        several = first.read(HEADER_TYPE, 1) & MULTIFUNCTION
        for number in range(FUNCTIONS if several else 1):
            function = Function(ports, 0, device, number)
            if number == 0 or function.exists:
                yield function


class Bar(NamedTuple):
    """A base address register that wants room."""

    function: Function
    offset: int
    size: int
    is_io: bool
    is_64_bit: bool


def bars(function: Function) -> Iterator[Bar]:
    """The implemented base address registers of a function, decoding being off meanwhile."""
    command = function.read(COMMAND, 2)
    function.write(COMMAND, 2, command & ~(IO_ENABLE | MEMORY_ENABLE))
    index = 0
    while index < BAR_COUNT:
        offset = BARS + 4 * index
        bar = _probe(function, offset)
        index += 1
        if bar is not None:
            index += bar.is_64_bit
            yield bar
    function.write(COMMAND, 2, command)


def _probe(function: Function, offset: int) -> Bar | None:
    """Write ones and see which bits stay zero."""
    function.write(offset, 4, 0xFFFFFFFF)
    value = function.read(offset, 4)
    if value in {0, 0xFFFFFFFF}:
        return None
    is_io = bool(value & BAR_IO)
    is_64_bit = not is_io and value & 6 == BAR_64
    mask = value & (0xFFFFFFFC if is_io else 0xFFFFFFF0)
    if is_io:
        mask |= 0xFFFF0000
    elif is_64_bit:
        function.write(offset + 4, 4, 0xFFFFFFFF)
        mask |= function.read(offset + 4, 4) << 32
        size = (~mask & (1 << 64) - 1) + 1
        return Bar(function, offset, size, False, True) if size < 1 << 32 else None
    return Bar(function, offset, (~mask & 0xFFFFFFFF) + 1, is_io, is_64_bit)


def _aligned(address: int, size: int) -> int:
    return -(-address // size) * size


class Assigner:
    """POST's part: resources for everything on the bus."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self._next_io = IO_START
        self._next_memory = max(MEMORY_START, -(-hardware.low_end // (1 << 28)) << 28)

    def run(self) -> None:
        """Place BARs, the largest first so that no room is lost to alignment; then enable."""
        found = list(functions(self.hw.ports))
        wanted = [bar for function in found for bar in bars(function)]
        wanted.sort(key=lambda bar: bar.size, reverse=True)
        homeless = {bar.function for bar in wanted if not self._place(bar)}
        for function in found:
            self._route(function)
            command = function.read(COMMAND, 2)
            if function not in homeless:
                command |= IO_ENABLE | MEMORY_ENABLE
            if function.class_code == IDE:
                command |= BUS_MASTER
            function.write(COMMAND, 2, command)
        self._route_pirqs(found)

    def _place(self, bar: Bar) -> bool:
        """Give a BAR its address; False: there is no room left, and the function stays off."""
        if bar.is_io:
            address, end = _aligned(self._next_io, bar.size), IO_END
        else:
            address, end = _aligned(self._next_memory, max(bar.size, MEMORY_STEP)), MEMORY_END
        if address + bar.size > end:
            return False
        if bar.is_io:
            self._next_io = address + bar.size
        else:
            self._next_memory = address + max(bar.size, MEMORY_STEP)
        bar.function.write(bar.offset, 4, address)
        if bar.is_64_bit:
            bar.function.write(bar.offset + 4, 4, 0)
        return True

    def _route(self, function: Function) -> None:
        pin = function.read(INTERRUPT_PIN, 1)
        if 1 <= pin <= 4:
            line = PIRQ_LINES[(function.device - 1 + pin - 1) % 4]
            function.write(INTERRUPT_LINE, 1, line)

    def _route_pirqs(self, found: list[Function]) -> None:
        """Lead PIRQ A-D to their lines, which are level-triggered from now on."""
        for function in found:
            if function.class_code == ISA_BRIDGE:
                for pirq, line in enumerate(PIRQ_LINES):
                    function.write(PIRQ_ROUTES + pirq, 1, line)
        levels = sum(1 << line for line in {*PIRQ_LINES})
        self.hw.ports.write(EDGE_LEVEL, 1, levels & 0xFF)
        self.hw.ports.write(EDGE_LEVEL + 1, 1, levels >> 8)
